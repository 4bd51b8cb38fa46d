"""What fails besides the host while its schedule says so: a policy, and the disk under event log and metrics."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from io import FileIO
from pathlib import Path

from colocate.eventlog import SchedulerLogger
from colocate.metrics import MetricsWriter
from colocate.policy import Plan, Policy, View
from colocate.regulator import OverrunError
from colocate.testing.chaos import ChaosHost
from colocate.testing.schedule import Fault, Kind

Met = tuple[Fault | None, int]  # the fault of the policy that lasts, and the tick


class Erratic(Policy):
    """A policy that fails while a fault says so.

    Args:
        policy: decides otherwise.
        meet: asked at each decision.

    Attributes:
        met: what it has answered, for a replay.
    """

    def __init__(self, policy: Policy, meet: Callable[[], Met]) -> None:
        self.met: list[Met] = []
        self._policy = policy
        self._meet = meet

    def decide(self, view: View) -> Plan:
        """The policy's plan, or what the fault makes of it."""
        fault, tick = self._meet()
        self.met.append((fault, tick))
        if fault is None:
            return self._policy.decide(view)
        job = next(iter(view.jobs), "nobody")
        foolish: tuple[object, ...] = (
            None,
            Plan(-1),
            Plan(0),
            Plan(1),
            Plan(view.total_cores, dict.fromkeys(view.jobs, view.total_cores)),
            Plan(1, {"stranger": 1}),
            Plan(1, {job: -1}),
            Plan(1, {job: math.nan}),  # type: ignore[dict-item]  # so it is meant
            Plan(1, share=frozenset(view.jobs)),
            Plan(1, threads={job: 0}),
            Plan(1 + tick % view.total_cores),
        )
        match fault.pick % (len(foolish) + 2):
            case 0:
                raise RuntimeError("told to fail")
            case 1:
                raise OverrunError("told to take too long")
            case number:
                return foolish[number - 2]  # type: ignore[return-value]  # so it is meant


class ChaosLog(SchedulerLogger):
    """An event log on a disk that is full while the host's schedule says so.

    Args:
        directory: where it goes.
        clock: the wall clock.
        host: has the schedule and the run's clock.
    """

    def __init__(self, directory: Path, clock: Callable[[], datetime], host: ChaosHost) -> None:
        super().__init__(directory, clock, host.now)
        self._file.close()
        self._file = _Disk(self.path, host)


class _Disk(FileIO):
    def __init__(self, path: Path, host: ChaosHost) -> None:
        super().__init__(path, "ab")
        self._host = host
        self._room = True

    def write(self, data: bytes) -> int | None:  # type: ignore[override]  # what the log writes
        fault = self._host.on(Kind.DISK)
        if fault is None:
            self._room = True
            return super().write(data)
        if self._room and fault.pick % 2:  # the last bytes that fit
            self._room = False
            return super().write(data[: max(1, len(data) // 2)])
        raise OSError(errno.ENOSPC, "No space left on device")


class ChaosMetrics(MetricsWriter):
    """A metrics file on a disk that is full while the host's schedule says so.

    It writes each record at once and in the loop's own thread, so that a schedule hits the same ones every time.

    Args:
        path: the file.
        host: has the schedule.

    Attributes:
        taken: how many records it was given.
    """

    def __init__(self, path: Path, host: ChaosHost) -> None:
        self.taken = 0
        self._host = host
        super().__init__(path)

    def write(self, record: Mapping[str, object]) -> None:
        """See `MetricsWriter.write`."""
        self.taken += 1
        super().write(record)
        lies = self.path
        if self._host.on(Kind.DISK):
            self.path = _FULL
        try:
            self._flush()
        finally:
            self.path = lies

    def _work(self) -> None:
        """Nothing is left for its thread."""


_FULL = Path("/dev/full")  # every write to it fails with ENOSPC (full(4))
