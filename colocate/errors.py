"""The one family of errors that a user can cause and cure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(SystemExit):
    """A signal asked the program to end; no policy's own `sys.exit`."""


class UserError(Exception):
    """Bad input or a missing permission: printed as one line, exit code 2, and nothing has been touched.

    Args:
        what: what is wrong, naming the culprit (file, option, address, job).
        cure: what to do about it, as an order; empty where `what` says it all.
    """

    def __init__(self, what: str, cure: str = "") -> None:
        super().__init__(what if not cure else f"{what}; {cure}")
        self.what = what
        self.cure = cure


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """For imports of what only an extra of the package brings.

    Raises:
        UserError: a module is not installed; names it and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"", "colocate"}:
            raise
        raise UserError(f"the Python package {error.name!r} is missing", f"pip install 'colocate[{extra}]'") from error
