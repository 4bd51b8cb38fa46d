"""What somebody else than the controller can do to a machine: only there do faults differ from machine to machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from colocate.cores import CoreSet
from colocate.jobs import JobEvent, JobEventKind
from colocate.move import SERVICE, Host, Move, MoveError, MoveKind
from colocate.view import Observation, ServiceSample


@dataclass(frozen=True, slots=True)
class Situation:
    """How a machine really is: memcached's cores; of each job that runs or is paused, its cores and whether it is."""

    service: CoreSet
    jobs: Mapping[str, tuple[CoreSet, bool]]


class Others(Protocol):
    """Somebody else at a machine. Each method returns whether that changed anything; the controller is not told.

    Attributes:
        hidden_death: memcached is gone and the host does not know it: a pin of its must fail.
    """

    hidden_death: bool

    def pin(self, cores: CoreSet) -> bool:
        """Put memcached's threads on these cores."""

    def confine(self, job: str, cores: CoreSet) -> bool:
        """Put a job on these cores."""

    def unplug(self, cores: CoreSet, left: CoreSet) -> bool:
        """What the kernel does when cores go offline: who has none of those that are left has them all (cpuset(7))."""

    def pause(self, job: str, *, paused: bool) -> bool:
        """Freeze a job, or thaw it."""

    def end(self, job: str, code: int | None) -> bool:
        """End a job with this exit code, or the nearest that can be had; None removes it."""

    def kill_service(self) -> bool:
        """End memcached."""

    def restart_service(self) -> bool:
        """Start a memcached that has been killed: another process, pinned to nothing."""

    def told(self, seen: Observation) -> Observation:
        """What the machine tells of itself, with what the host under it cannot know of the above."""


class Pretended:
    """Somebody else at any host, by its own moves; how a job ended and that memcached is gone is only told.

    Args:
        host: the machine.
        cores: the managed ones.
        look: how it really is; without it, everything is taken to change something.
    """

    def __init__(self, host: Host, cores: CoreSet, look: Callable[[], Situation] | None = None) -> None:
        self.hidden_death = False
        self._host = host
        self._cores = cores
        self._look = look
        self._fates: dict[str, int | None] = {}  # the exit codes of jobs that were ended, until that is told
        self._deaths = 0  # added to memcached's pid

    def pin(self, cores: CoreSet) -> bool:
        """See `Others.pin`."""
        return self._would(lambda now: now.service != cores) and self._act(Move(MoveKind.PIN, SERVICE, cores))

    def confine(self, job: str, cores: CoreSet) -> bool:
        """See `Others.confine`."""
        there = self._would(lambda now: job in now.jobs and now.jobs[job][0] != cores)
        return there and self._act(Move(MoveKind.RESIZE, job, cores))

    def unplug(self, cores: CoreSet, left: CoreSet) -> bool:
        """See `Others.unplug`."""
        now = self._look() if self._look else Situation(cores, {})
        self.pin(now.service - cores or left)
        for job, (held, _) in now.jobs.items():
            self.confine(job, held - cores or left)
        return True

    def pause(self, job: str, *, paused: bool) -> bool:
        """See `Others.pause`."""
        there = self._would(lambda now: job in now.jobs and now.jobs[job][1] != paused)
        return there and self._act(Move(MoveKind.PAUSE if paused else MoveKind.RESUME, job))

    def end(self, job: str, code: int | None) -> bool:
        """See `Others.end`."""
        if job in self._fates or not self._would(lambda now: job in now.jobs):
            return False
        self._fates[job] = code
        return self._act(Move(MoveKind.STOP, job))

    def kill_service(self) -> bool:
        """See `Others.kill_service`."""
        killed, self.hidden_death = not self.hidden_death, True
        return killed

    def restart_service(self) -> bool:
        """See `Others.restart_service`."""
        restarted, self.hidden_death = self.hidden_death, False
        if restarted:
            self._deaths += 1
            self._act(Move(MoveKind.PIN, SERVICE, self._cores))
        return restarted

    def told(self, seen: Observation) -> Observation:
        """See `Others.told`."""
        if not self._deaths and not self.hidden_death and not self._fates:
            return seen
        service = seen.service
        if self._deaths:
            service = replace(service, pid=(service.pid or 1) + self._deaths)
        if self.hidden_death:
            service = ServiceSample(alive=False, pid=service.pid, threads=service.threads)
        return replace(seen, service=service, events=tuple(map(self._fated, seen.events)))

    def _fated(self, event: JobEvent) -> JobEvent:
        """An event as it is told of a job that may have been ended."""
        if event.kind not in (JobEventKind.EXITED, JobEventKind.GONE) or event.job not in self._fates:
            return event
        code = self._fates.pop(event.job)
        if event.code == 0:  # it has come to its own end before
            return event
        if code is None:
            return replace(event, kind=JobEventKind.GONE, code=None, detail="removed by somebody")
        return replace(event, kind=JobEventKind.EXITED, code=code)

    def _would(self, change: Callable[[Situation], bool]) -> bool:
        return self._look is None or change(self._look())

    def _act(self, move: Move) -> bool:
        try:
            self._host.act(move)
        except MoveError:
            return False
        return True
