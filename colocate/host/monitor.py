"""What the kernel says of the cores, of memcached's threads, of memory and of pressure, between two looks.

Descriptors stay open and nothing here waits, so that one sample of everything costs a small part of a millisecond.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from colocate.cores import CoreSet
from colocate.host import procfs
from colocate.host.procfs import KeptFile
from colocate.view import CoreUse, Signal

_SLOW_S = 1.0  # memory and pressure change slowly
_LIST_EVERY = 4  # looks; memcached makes threads at its start


class ResourceMonitor:
    """Deltas since the last call, of this machine or of a tree that looks like it.

    Args:
        cores: the cores to report.
        root: where `proc` and `sys` lie.
        clock: monotonic seconds.
    """

    def __init__(
        self, cores: Iterable[int], root: Path = Path("/"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root = root
        self._clock = clock
        self._stat = KeptFile(root / "proc/stat")
        self._online = KeptFile(root / "sys/devices/system/cpu/online")
        self._meminfo = KeptFile(root / "proc/meminfo")
        self._pressure = KeptFile(root / "proc/pressure/cpu")
        self._slow_until_s = float("-inf")
        self._memory: int | None = None
        self._some: float | None = None
        self._ticks = procfs.core_ticks(self._stat.read())
        self._use = dict.fromkeys(sorted(cores), CoreUse(0.0, 0.0, 0.0))
        self._offline: CoreSet = frozenset()
        self._threads = _Threads(0, root, clock)

    def cores(self) -> dict[int, CoreUse]:
        """Each core's use since the last call; a core for which no time has passed repeats its last value.

        The kernel counts in ticks (10 ms) and samples at the tick: bursts between ticks do not show here.
        """
        for core, ticks in procfs.core_ticks(self._stat.read()).items():
            if core not in self._use:
                continue
            before = self._ticks.get(core, ticks)
            # Idle time may run backwards a little where cores go on- and offline (proc(5)).
            user, nice, system, idle, iowait, irq, softirq, steal = (
                max(0, now - then) for now, then in zip(ticks, before, strict=True)
            )
            self._ticks[core] = ticks
            busy = user + nice + system + irq + softirq
            if total := busy + idle + iowait + steal:
                self._use[core] = CoreUse(busy / total, softirq / total, steal / total)
        return dict(self._use)

    def offline(self) -> CoreSet:
        """Those of the cores that are unplugged; while the kernel does not tell, those of the last call."""
        if (online := procfs.core_list(self._online.read())) is not None:
            self._offline = frozenset(self._use.keys() - online)
        return self._offline

    def service(self, pid: int) -> tuple[Signal, Signal, Signal]:
        """CPU used, in cores; run-queue delay a time slice, in microseconds; and run-queue wait, in cores.

        All over the time since the last call with that pid; each is unknown at the first call. While no figure can be
        had (the process is gone; no slice has begun, so that there is no delay a slice) the last one stays and ages.
        The delay's `samples` are its slices.
        """
        if pid != self._threads.pid:
            self._threads.close()
            self._threads = _Threads(pid, self._root, self._clock)
        return self._threads.sample()

    def memory_available_bytes(self) -> int | None:
        """`MemAvailable`, at most a second old; None where it is not told."""
        self._look_slowly()
        return self._memory

    def cpu_pressure(self) -> float | None:
        """Share of the last 10 s in which some task waited for a core, at most a second old; None without PSI."""
        self._look_slowly()
        return self._some

    def close(self) -> None:
        """Give the descriptors back; idempotent."""
        for file in (self._stat, self._online, self._meminfo, self._pressure):
            file.close()
        self._threads.close()

    def _look_slowly(self) -> None:
        if (now_s := self._clock()) >= self._slow_until_s:
            self._slow_until_s = now_s + _SLOW_S
            self._memory = procfs.mem_available_bytes(self._meminfo.read())
            self._some = procfs.some_avg10(self._pressure.read())


class _Threads:
    """The schedstat of every thread of one process.

    Counters are compared thread by thread: a sum over all would fall when a thread ends.
    """

    def __init__(self, pid: int, root: Path, clock: Callable[[], float]) -> None:
        self.pid = pid
        self._root = root
        self._clock = clock
        self._last: dict[int, tuple[KeptFile, tuple[int, int, int]]] = {}
        self._last_s = clock()
        self._looks = 0
        self._lost = self._unread = False
        self._cpu = self._wait = self._delay = (Signal(), 0.0)  # each with the time of its reading

    def sample(self) -> tuple[Signal, Signal, Signal]:
        """See `ResourceMonitor.service`."""
        now_s = self._clock()
        seen: dict[int, tuple[KeptFile, tuple[int, int, int]]] = {}
        ran_ns = waited_ns = slices = compared = 0
        unread, cut = False, self._unread  # a thread is there and cannot be read: what the others do is too little
        for tid in self._tids():
            known = self._last.get(tid)
            file = known[0] if known else KeptFile(f"{self._root}/proc/{self.pid}/task/{tid}/schedstat")
            now = procfs.run_delay(file.read())
            if now is None:
                file.close()
                unread |= os.path.exists(f"{self._root}/proc/{self.pid}/task/{tid}")  # noqa: PTH110  # needs no descriptor
                continue
            seen[tid] = file, now
            if known and all(a >= b for a, b in zip(now, known[1], strict=True)):  # else: another thread, same id
                ran_ns += now[0] - known[1][0]
                waited_ns += now[1] - known[1][1]
                slices += now[2] - known[1][2]
                compared += 1
        self._lost = unread or bool(self._last.keys() - seen.keys())
        for tid in self._last.keys() - seen.keys():
            self._last[tid][0].close()
        self._last = seen
        gap_ns = (now_s - self._last_s) * 1e9
        self._last_s = now_s
        self._unread = unread
        if compared and gap_ns > 0 and not (unread or cut):  # nor has it anything to be compared with the next time
            self._cpu = Signal(ran_ns / gap_ns, 0.0, compared), now_s
            self._wait = Signal(waited_ns / gap_ns, 0.0, compared), now_s
            if slices:
                self._delay = Signal(waited_ns / slices / 1e3, 0.0, slices), now_s
        return _aged(self._cpu, now_s), _aged(self._delay, now_s), _aged(self._wait, now_s)

    def _tids(self) -> Iterable[int]:
        """The threads, listed anew now and then, and when one of them has ended."""
        self._looks += 1
        if self._looks % _LIST_EVERY and self._last and not self._lost:
            return list(self._last)
        return procfs.threads(self.pid, self._root)

    def close(self) -> None:
        for file, _ in self._last.values():
            file.close()
        self._last = {}


def _aged(reading: tuple[Signal, float], now_s: float) -> Signal:
    signal, read_s = reading
    return signal if signal.value is None else Signal(signal.value, now_s - read_s, signal.samples)
