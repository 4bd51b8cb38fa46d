"""The signals that ask a run to end in order."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType


@contextmanager
def signals(ring: Callable[[], None] = lambda: None) -> Iterator[Callable[[], int]]:
    """Note the first of SIGINT, SIGTERM, SIGHUP, and ring; put the handlers back at the end."""
    got: list[int] = []

    def handler(number: int, _frame: FrameType | None) -> None:
        if got:
            with suppress(OSError, ValueError):  # past its buffer, which may be in use; whoever reads it may be gone
                os.write(sys.stderr.fileno(), b"colocate: already ending: jobs and cores are being put back\n")
        got.append(number)
        ring()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [(number, signal.signal(number, handler)) for number in numbers]
    try:
        yield lambda: got[0] if got else 0
    finally:
        for number, old in before:
            signal.signal(number, old)
