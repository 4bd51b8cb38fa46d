"""The signals that ask a run to end in order."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType


def say_if_heard(fd: int, words: bytes) -> None:
    """Write, unless that would have to wait: a terminal may have been stopped (Ctrl-S), a pipe be full.

    Raises:
        OSError: whoever reads is gone.
    """
    ready = select.poll()
    ready.register(fd, select.POLLOUT)
    if ready.poll(0):
        os.write(fd, words)


@contextmanager
def signals(ring: Callable[[], None] = lambda: None) -> Iterator[Callable[[], int]]:
    """Note the first of SIGINT, SIGTERM, SIGHUP, and ring; put the handlers back at the end."""
    got: list[int] = []

    def handler(number: int, _frame: FrameType | None) -> None:
        if got:
            with suppress(OSError, ValueError):  # past its buffer, which may be in use; whoever reads it may be gone
                say_if_heard(sys.stderr.fileno(), b"colocate: already ending: jobs and cores are being put back\n")
        got.append(number)
        ring()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [(number, signal.signal(number, handler)) for number in numbers]
    try:
        yield lambda: got[0] if got else 0
    finally:
        for number, old in before:
            signal.signal(number, old)
