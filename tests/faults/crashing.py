"""`colocate`, killed by SIGKILL at a boundary: `python -m tests.faults.crashing run ...`.

A boundary is before and after each thing that changes the machine or a file: each thread of memcached that is pinned,
each wish of a job and each call to the engine, each line of the log (and half of it), each step in which the state file
is replaced. `CRASH_AT` counts from 1 those whose names have `CRASH_NAMED` in them; with 0 nobody is killed. The names
of those that were passed stand in the file `CRASH_PASSED`: at the end all of them, a line each, else that of the last.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

from colocate import eventlog, metrics
from colocate.cli.main import main
from colocate.host import containers, guard, lock, memcached, processes, record, sharing, state

_AT = int(os.environ["CRASH_AT"])
_LOCK = threading.Lock()
_NAMED, _PASSED = os.environ["CRASH_NAMED"], Path(os.environ["CRASH_PASSED"])
_passed: list[str] = []


def boundary(name: str) -> None:
    """Die here, if it is our turn."""
    if _NAMED not in name:
        return
    with _LOCK:
        _passed.append(name)
        if len(_passed) == _AT:
            _PASSED.write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)


def around(place: Any, name: str) -> None:
    """A boundary before and after each call of a function or method."""
    real: Callable[..., Any] = getattr(place, name)
    told = f"{getattr(place, '__name__', place)}.{name}"

    def wrapped(*arguments: Any, **options: Any) -> Any:
        boundary(f"before {told}")
        try:
            return real(*arguments, **options)
        finally:
            boundary(f"after {told}")

    setattr(place, name, wrapped)


class TornFile(FileIO):
    """Writes in two halves, with a boundary between."""

    def write(self, data: Any) -> int:
        boundary("before a line")
        half = len(data) // 2
        super().write(data[:half])
        boundary("within a line")
        super().write(data[half:])
        boundary("after a line")
        return len(data)


class Kernel:
    """`os`, as far as what is wrapped uses it: with boundaries around what changes anything."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self._names:
            return real

        def wrapped(*arguments: Any, **options: Any) -> Any:
            boundary(f"before os.{name}")
            try:
                return real(*arguments, **options)
            finally:
                boundary(f"after os.{name}")

        return wrapped


def wrap() -> None:
    """Put boundaries everywhere."""
    memcached.os = Kernel("sched_setaffinity")  # type: ignore[assignment]  # in a module's place
    state.os = Kernel("fsync")  # type: ignore[assignment]  # likewise
    lock.os = Kernel("ftruncate", "pwrite")  # type: ignore[assignment]  # likewise
    eventlog.FileIO = metrics.FileIO = TornFile  # type: ignore[misc, assignment]
    for place in (processes.ProcessRuntime, containers.ContainerRuntime):
        for name in ("prepare", "create", "start", "resize", "pause", "resume", "stop", "close"):
            around(place, name)
    for name in ("_spawn", "_set_cores", "_set_frozen", "_make_group"):
        around(processes.ProcessRuntime, name)
    for name in ("create", "start", "write_cores", "set_paused"):
        around(record.Record, name)
    for name in ("open", "close"):
        around(sharing.Sharing, name)
    for name in ("write", "clear"):
        around(state.StateFile, name)
    around(state.Path, "replace")
    for name in ("acquire", "release"):
        around(lock.Lock, name)
    around(guard.Guard, "__init__")
    around(guard.Guard, "end")


if __name__ == "__main__":
    wrap()
    code = main()
    if not _AT:
        _PASSED.write_text("\n".join(_passed))
    sys.exit(code)
