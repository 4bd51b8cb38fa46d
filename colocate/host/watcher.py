"""One thread that calls back: when a file descriptor becomes readable (a pidfd: its process has ended), or later."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable


class Watcher:
    """An event loop on a thread of its own; callbacks run there, one after another, and must not block.

    Every method may be called from any thread. File descriptors handed over are closed by the watcher, on its own
    thread, so that no number is used anew while its callback is still on the way.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._fds: set[int] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back once when `fd` is readable; the watcher owns `fd` from now on."""
        self.soon(lambda: self._add(fd, callback))

    def forget(self, fd: int) -> None:
        """Watch `fd` no longer, and close it."""
        self.soon(lambda: self._drop(fd))

    def soon(self, callback: Callable[[], None]) -> None:
        """Call back as soon as the thread is free."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)

    def later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call back after `delay_s` seconds."""
        self.soon(lambda: self._schedule(delay_s, callback))

    def close(self) -> None:
        """End the thread and close every file descriptor; idempotent."""
        if self._loop.is_closed():
            return
        self.soon(self._loop.stop)
        self._thread.join()
        for fd in tuple(self._fds):
            self._drop(fd)
        self._loop.close()

    def _schedule(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._loop.call_later(delay_s, callback)

    def _add(self, fd: int, callback: Callable[[], None]) -> None:
        self._fds.add(fd)
        self._loop.add_reader(fd, self._fire, fd, callback)

    def _fire(self, fd: int, callback: Callable[[], None]) -> None:
        self._loop.remove_reader(fd)  # a pidfd stays readable for ever
        callback()

    def _drop(self, fd: int) -> None:
        if fd in self._fds:
            self._fds.discard(fd)
            self._loop.remove_reader(fd)
            os.close(fd)
