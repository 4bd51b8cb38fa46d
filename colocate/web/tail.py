"""A file that grows, read from where the last reading ended."""

from __future__ import annotations

from pathlib import Path

_PIECE_BYTES = 1 << 20


class Tail:
    """The whole lines of a file, each once.

    Args:
        path: need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._rest = b""

    def read(self) -> list[str]:
        """The next lines, some thousands at most; none at the end, and where the file cannot be read.

        A line in the making has to wait.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_PIECE_BYTES)
        except OSError:
            return []
        self._offset += len(data)
        whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
        return [f"{line}\n" for line in whole.decode(errors="replace").split("\n")] if newline else []
