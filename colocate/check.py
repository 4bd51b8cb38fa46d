"""One thing tried on this machine: what a self-test is made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from colocate.errors import UserError
from colocate.host.memcached import PinError


@dataclass(frozen=True, slots=True)
class Check:
    """One thing tried: how long it took, and what to do if it failed."""

    component: str
    name: str
    ok: bool
    ms: float
    detail: str = ""
    cure: str | None = None


class FailedError(Exception):
    """What was tried does not work: what is wrong, and a cure."""

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(what)
        self.what, self.cure = what, cure


def attempt(component: str, name: str, action: Callable[[], str]) -> Check:
    """Time an action; what it returns is told, what it raises is a failure."""
    start_s = time.perf_counter()
    detail, cure, ok = "", None, False
    try:
        detail, ok = action(), True
    except (FailedError, UserError) as error:
        detail, cure = error.what, error.cure
    except (OSError, PinError) as error:
        detail, cure = str(error), "see the message"
    return Check(component, name, ok, 1e3 * (time.perf_counter() - start_s), detail, cure)


def attempts(
    component: str, steps: Iterable[tuple[str, Callable[[], str]]], last: tuple[str, Callable[[], str]]
) -> Iterator[Check]:
    """Try one step after the other until one fails; the last one is tried in any case."""
    try:
        for name, action in steps:
            check = attempt(component, name, action)
            yield check
            if not check.ok:
                break
    finally:
        yield attempt(component, *last)
