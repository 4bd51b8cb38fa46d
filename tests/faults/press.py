"""A load that makes memcached busy, switched by a word: `python -m tests.faults.press PORT`, then shares on its input.

A share of 0 rests, 1 keeps one of memcached's threads busy, what is between does so for that share of the time. It goes
on when memcached is not there for a while.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_BATCH = 200
_QUESTION, _ANSWER = b"get nothing\r\n" * _BATCH, len(b"END\r\n") * _BATCH


class Press:
    """The other end of it."""

    def __init__(self, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.press", str(port)], stdin=subprocess.PIPE, text=True,
            cwd=Path(__file__).parent.parent.parent,
        )  # fmt: skip

    def put(self, share: float) -> float:
        """From now on that much; when it was said, on the monotonic clock."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{share}\n")
        self._process.stdin.flush()
        return time.monotonic()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def pressing(port: int, share: float = 0.0) -> Iterator[Press]:
    """A load that is over when the block is."""
    press = Press(port)
    try:
        press.put(share)
        yield press
    finally:
        press.close()


def told() -> float:
    """The last of what has been said; past Python's buffer, which `select` knows nothing of."""
    words = os.read(sys.stdin.fileno(), 4096).split()
    if not words:
        raise SystemExit
    return float(words[-1])


def main(port: int) -> None:
    share = 0.0
    while True:
        while select.select([sys.stdin], [], [], None if share == 0 else 0)[0]:
            share = told()
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            while share:
                begin_s = time.monotonic()
                connection.sendall(_QUESTION)
                missing = _ANSWER
                while missing:
                    got = len(connection.recv(65536))
                    if not got:
                        raise ConnectionResetError
                    missing -= got
                rest_s = (time.monotonic() - begin_s) * (1 - share) / share
                if select.select([sys.stdin], [], [], rest_s)[0]:
                    share = told()
        if share:
            time.sleep(0.01)


if __name__ == "__main__":
    main(int(sys.argv[1]))
