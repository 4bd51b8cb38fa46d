"""memcached's own statistics, asked for on a thread of their own: a stuck memcached stalls nobody."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from pymemcache.client.base import Client  # type: ignore[import-untyped]  # it ships no types
from pymemcache.exceptions import MemcacheError  # type: ignore[import-untyped]  # it ships no types

from colocate.view import Signal

_UNKNOWN = Signal()


@dataclass(frozen=True, slots=True)
class StatisticsSample:
    """What memcached said last (its doc/protocol.txt, "General-purpose statistics").

    Attributes:
        qps: requests a second (`cmd_get` + `cmd_set`) between the last two answers.
        connections: open connections; None before the first answer.
        threads: worker threads; 0 before the first answer.
        pid: its process id as it sees it itself (another one in a pid namespace).
        age_s: time since the last answer.
    """

    qps: Signal = _UNKNOWN
    connections: int | None = None
    threads: int = 0
    pid: int | None = None
    age_s: float = math.inf


@dataclass(frozen=True, slots=True)
class _Answer:
    time_s: float
    requests: int
    connections: int
    threads: int
    pid: int


class Statistics:
    """Polls `stats` until stopped; connects anew when the connection or memcached is lost.

    Args:
        ip: memcached's address.
        port: its TCP port.
        notify: called after each answer, in the polling thread.
        period_s: time from one answer to the next question.
        timeout_s: longest wait for an answer.
    """

    def __init__(
        self,
        ip: str,
        port: int,
        notify: Callable[[], None] | None = None,
        period_s: float = 0.2,
        timeout_s: float = 0.5,
    ) -> None:
        self._client = Client((ip, port), connect_timeout=timeout_s, timeout=timeout_s, no_delay=True)
        self._notify = notify
        self._period_s = period_s
        self._stopped = threading.Event()
        self._answered = threading.Event()
        self._last: _Answer | None = None
        self._qps: tuple[float, float] | None = None
        self._thread = threading.Thread(target=self._run, name="memcached-statistics", daemon=True)
        self._thread.start()

    def sample(self) -> StatisticsSample:
        """The last answer, with its age now; never waits."""
        last, qps = self._last, self._qps
        if last is None:
            return StatisticsSample()
        now_s = time.monotonic()
        return StatisticsSample(
            qps=Signal(qps[0], now_s - qps[1], 1) if qps else _UNKNOWN,
            connections=last.connections,
            threads=last.threads,
            pid=last.pid,
            age_s=now_s - last.time_s,
        )

    def first(self, timeout_s: float) -> bool:
        """Wait for the first answer; whether there was one."""
        return self._answered.wait(timeout_s)

    def stop(self) -> None:
        """End the thread, also in the middle of a wait for memcached; idempotent."""
        self._stopped.set()
        with suppress(OSError):
            if (sock := self._client.sock) is not None:
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._take(self._client.stats())
            # The last three are pymemcache's on an answer that is not memcached's.
            except (OSError, MemcacheError, ValueError, KeyError, IndexError):
                self._client.close()
            self._stopped.wait(self._period_s)
        self._client.close()

    def _take(self, stats: Mapping[bytes, object]) -> None:
        now = _Answer(
            time_s=time.monotonic(),
            requests=_count(stats, b"cmd_get") + _count(stats, b"cmd_set"),
            connections=_count(stats, b"curr_connections"),
            threads=_count(stats, b"threads"),
            pid=_count(stats, b"pid"),
        )
        before, self._last = self._last, now
        # A restarted memcached counts from zero: there is no rate until its second answer.
        if before is not None and before.pid == now.pid and before.requests <= now.requests:
            self._qps = (now.requests - before.requests) / (now.time_s - before.time_s), now.time_s
        self._answered.set()
        if self._notify is not None:
            self._notify()


def _count(stats: Mapping[bytes, object], name: bytes) -> int:
    value = stats[name]
    if not isinstance(value, int):
        raise ValueError(f"{name!r} is {value!r}")
    return value
