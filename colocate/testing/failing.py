"""What fails besides the host: a policy, and the disk under the event log, while the host's schedule says so."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from datetime import datetime
from io import FileIO
from pathlib import Path

from colocate.eventlog import SchedulerLogger
from colocate.policy import Plan, Policy, View
from colocate.regulator import OverrunError
from colocate.testing.chaos import ChaosHost
from colocate.testing.schedule import Kind


class Erratic(Policy):
    """A policy that fails while the host's schedule says so.

    Args:
        policy: decides otherwise.
        host: has the schedule.
    """

    def __init__(self, policy: Policy, host: ChaosHost) -> None:
        self._policy = policy
        self._host = host

    def decide(self, view: View) -> Plan:
        """The policy's plan, or what the fault makes of it."""
        fault = self._host.on(Kind.POLICY)
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
            Plan(1 + self._host.tick % view.total_cores),
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
