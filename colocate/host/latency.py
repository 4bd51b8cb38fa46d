"""memcached's latency: seen from here by a probe, or reported from outside by a load generator's output."""

from __future__ import annotations

import math
import os
import random
import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

from colocate.errors import UserError
from colocate.mcperf import Row, is_late_mark, parse_row
from colocate.view import Signal, Slo

_NO_OPERATION = b"mn\r\n"  # memcached's doc/protocol.txt, "Meta No-Op"; one too old for it answers ERROR, as quickly
_SO_TIMESTAMPNS = 35  # socket(7); Python names it only from 3.15 on
_TIMESPEC = struct.Struct("@ll")
_TAIL = 1 << 16
_INTERVAL_S = 1.0  # of reported rows, where it cannot be seen: about the shortest that is in use


class LatencySource(Protocol):
    """Where the SLO's percentile comes from; `source` is `probe` or `reported`."""

    source: str

    def signal(self) -> Signal:
        """The percentile in milliseconds, with its age now and its number of samples; never waits."""

    def stop(self) -> None:
        """Give back threads, connections and descriptors; idempotent."""


def percentile_of(values: list[float], percentile: float) -> float:
    """The nearest-rank percentile of a list that is not empty."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(percentile / 100 * len(ranked) - 1e-9) - 1)]


class Probe:
    """Asks memcached for nothing, at a steady rate with jitter, and times the answers.

    The question passes through a worker thread's event loop like any other. A request that is held up stands for those
    that would have been sent meanwhile: they count as waiting, too, also before the answer has come. So a stall of
    200 ms is not one bad sample among many good ones.

    Args:
        ip: memcached's address.
        port: its TCP port.
        rate_hz: questions a second. One costs 40 to 220 us of CPU, the more the colder batch jobs keep the caches: 16
            a second stay within 0.4 % of a core.
        window_s: what the percentile is taken over; by default twice the samples that it needs, and no less than 1 s.
        percentile: which one.
        timeout_s: an answer that takes longer counts with this time, and the connection is made anew.
        seed: of the jitter.
    """

    source = "probe"

    def __init__(
        self,
        ip: str,
        port: int,
        rate_hz: float = 16.0,
        window_s: float | None = None,
        percentile: float = 95.0,
        *,
        timeout_s: float = 0.5,
        seed: int = 1,
    ) -> None:
        self._address = (ip, port)
        self._gap_s = 1 / rate_hz
        self._needed = Slo(percentile=percentile).least_samples
        self._window_s = window_s if window_s is not None else max(1.0, 2 * self._needed * self._gap_s)
        self._percentile = percentile
        self._timeout_s = timeout_s
        self._random = random.Random(seed)  # noqa: S311  # jitter, no secret
        self._lock = threading.Lock()
        self._latencies: deque[tuple[float, float]] = deque()  # (time, latency), both in seconds
        self._asked_s: float | None = None  # when the question was sent that has no answer yet
        self._socket: socket.socket | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="latency-probe", daemon=True)
        self._thread.start()

    def signal(self) -> Signal:
        """See `LatencySource`; the value is None while there are too few samples."""
        now_s = time.monotonic()
        with self._lock:
            while self._latencies and self._latencies[0][0] < now_s - self._window_s:
                self._latencies.popleft()
            values = [latency for _, latency in self._latencies]
            newest_s = self._latencies[-1][0] if self._latencies else -math.inf
            if self._asked_s is not None and (waited_s := now_s - self._asked_s) > self._gap_s:
                values += [waited_s, *self._standing_for(waited_s)]
                newest_s = now_s
        if len(values) < self._needed:
            return Signal(None, math.inf, len(values))
        return Signal(percentile_of(values, self._percentile) * 1e3, max(0.0, now_s - newest_s), len(values))

    def stop(self) -> None:
        """End the thread, also in the middle of a wait for memcached; idempotent."""
        self._stopped = True
        with suppress(OSError):
            if (sock := self._socket) is not None:
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        _hurry()
        while not self._stopped:
            # Sleep is half of the cost of waiting for an event; this loop runs with cold caches, every call shows.
            time.sleep(self._gap_s * (0.5 + self._random.random()))
            self._asked_s = asked_s = time.monotonic()
            try:
                if self._socket is None:
                    self._socket = _connect(self._address, self._timeout_s)
                    self._asked_s = asked_s = time.monotonic()
                latency_s = _ask(self._socket)
            except TimeoutError:
                latency_s = time.monotonic() - asked_s
                self._disconnect()
            except OSError:  # it is not running, or the connection was closed: there is no latency to speak of
                self._asked_s = None
                self._disconnect()
                continue
            answered_s = asked_s + latency_s
            with self._lock:
                self._latencies.append((answered_s, latency_s))
                if latency_s > self._gap_s:
                    self._latencies.extend((answered_s, each) for each in self._standing_for(latency_s))
                self._asked_s = None
        self._disconnect()

    def _standing_for(self, latency_s: float) -> list[float]:
        """The latencies of the requests that would have been sent while one waited."""
        return [latency_s - i * self._gap_s for i in range(1, 1 + int(latency_s / self._gap_s))]

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _connect(address: tuple[str, int], timeout_s: float) -> socket.socket:
    sock = socket.create_connection(address, timeout=timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with suppress(OSError):  # without it, see _ask
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    return sock


def _ask(sock: socket.socket) -> float:
    """One question; seconds until the kernel had its answer.

    The answer's arrival is the kernel's time stamp, so that neither a batch job on this thread's core nor Python's
    global lock adds to memcached's latency. It is wall time: where that has been set meanwhile, or there is none, this
    thread's own monotonic time stands.
    """
    wall_ns, asked_ns = time.time_ns(), time.monotonic_ns()
    sock.sendall(_NO_OPERATION)
    answer, extra, _, _ = sock.recvmsg(64, 64)
    taken_ns = time.monotonic_ns() - asked_ns
    if not answer:
        raise ConnectionResetError("memcached closed the connection")
    if not extra:
        return taken_ns / 1e9
    seconds, nanoseconds = _TIMESPEC.unpack_from(extra[0][2])
    arrived_ns = seconds * 1_000_000_000 + nanoseconds - wall_ns
    return (arrived_ns if 0 < arrived_ns < taken_ns else taken_ns) / 1e9


def _hurry() -> None:
    """Put this thread before the batch jobs on its core where that is permitted, lest it send late."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)  # on Linux, 0 is the calling thread (setpriority(2))


class Reported:
    """The last row of a load generator's output in mcperf's format, read on as the file grows.

    The file may appear later, grow by parts of lines, be cut, or be replaced. No more than its last 64 KiB are read
    at once.

    Args:
        path: the file.
        percentile: which of the columns.

    Raises:
        UserError: the format has no such column.
    """

    source = "reported"

    def __init__(self, path: Path, percentile: float = 95.0) -> None:
        name = f"p{percentile:g}".replace(".", "")
        columns = [f.name.removesuffix("_us") for f in fields(Row) if f.name[0] == "p" and f.name.endswith("_us")]
        if name not in columns:
            raise UserError(f"{path} has no {percentile:g}th percentile", f"its columns are {' '.join(columns)}")
        self._column = f"{name}_us"
        self._path = path
        self._fd = -1
        self._offset = 0
        self._partial = b""
        self._last = self._before = _Reading()

    def signal(self) -> Signal:
        """See `LatencySource`; the age is the time since the row was written."""
        with suppress(OSError):  # not there yet, or not any more: what is known ages
            self._read_on()
        if self._last.latency_ms is None:
            return Signal()
        return Signal(self._last.latency_ms, max(0.0, time.monotonic() - self._last.written_s), self._last.samples)

    def stop(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_on(self) -> None:
        there = self._path.stat()
        if self._fd >= 0:
            opened = os.fstat(self._fd)
            if (opened.st_dev, opened.st_ino) != (there.st_dev, there.st_ino) or opened.st_size < self._offset:
                self.stop()
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._offset, self._partial = 0, b""
        if there.st_size == self._offset:
            return
        if there.st_size - self._offset > _TAIL:
            self._offset, self._partial = there.st_size - _TAIL, b""
        data = os.pread(self._fd, _TAIL, self._offset)
        self._offset += len(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._take([line.decode(errors="replace") for line in lines], there.st_mtime)

    def _take(self, lines: list[str], modified_s: float) -> None:
        written_s = time.monotonic() - max(0.0, time.time() - modified_s)
        rows = 0
        for line in lines:
            if is_late_mark(line):  # the row before it does not tell of memcached
                self._last = self._before
            elif (row := parse_row(line)) is not None and math.isfinite(latency_us := getattr(row, self._column)):
                rows += 1
                # The rows' interval is not in the file: it is the time from one row to the next, if they come singly.
                interval_s = written_s - self._last.written_s if rows == 1 else math.inf
                samples = round(row.qps * (interval_s if math.isfinite(interval_s) else _INTERVAL_S))
                self._before, self._last = self._last, _Reading(latency_us / 1e3, written_s, max(1, samples))


@dataclass(frozen=True, slots=True)
class _Reading:
    latency_ms: float | None = None
    written_s: float = -math.inf
    samples: int = 0
