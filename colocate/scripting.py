"""The loop's parts under direct command: for scripts that decide for themselves, step by step.

The commands are those that users of such controllers know. They go through the same controller, host and event log as
`colocate run`, so the log of a script can be graded like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from colocate.controller import Controller
from colocate.cores import CoreSet
from colocate.jobs import ACTIVE, ENDED, JobState
from colocate.lifecycle import JobLife
from colocate.loop import end, perform
from colocate.move import SERVICE, Move, MoveKind
from colocate.session import Session, Settings, session

_PATIENCE_S = 60.0
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class JobStatus:
    """Where a job stands, and the cores it holds (kept while it is paused)."""

    state: JobState
    cores: CoreSet


class Scheduler:
    """A context manager: memcached is pinned on entry; on exit jobs are stopped and its cores are given back.

    Args:
        settings: as for `colocate run`; the policy is not asked.
        memcached_cores: its first cores; None is one for each of its threads, but not all there are.

    Raises:
        UserError: on entry, if something is wrong with the settings.
    """

    def __init__(self, settings: Settings, memcached_cores: Iterable[int] | None = None) -> None:
        self._settings = settings
        self._first = None if memcached_cores is None else frozenset(memcached_cores)
        self._stack = ExitStack()
        self._session: Session | None = None

    def __enter__(self) -> Self:
        opened = self._session = self._stack.enter_context(session(self._settings))
        try:
            self._refresh()
            managed = sorted(self._controller.topology.cores)
            threads = self._controller.seen.service.threads or 1
            self.update_memcached_cores(self._first or managed[: max(1, min(threads, len(managed) - 1))])
        except BaseException:
            end(opened.host, opened.controller, opened.log, "stop", "script failed")
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        opened = self._open
        end(opened.host, opened.controller, opened.log, self._settings.on_exit, "script ended")
        opened.metrics.close()
        self._stack.__exit__(kind, error, trace)

    def update_memcached_cores(self, cores: Iterable[int]) -> None:
        """Pin every thread of memcached.

        Raises:
            ValueError: no such cores, or a running job holds one of them.
            RuntimeError: it did not happen.
        """
        wanted = self._managed(cores)
        for name, job in self._controller.jobs.items():
            if job.state in ACTIVE and not job.wish_paused and job.wish_cores & wanted:
                raise ValueError(f"{name} runs on {sorted(job.wish_cores & wanted)}: move or pause it first")
        self._do(Move(MoveKind.PIN, SERVICE, wanted, reason="script"))

    def start_batch_job(self, job: str, cores: Iterable[int], threads: int | None = None) -> None:
        """Start a job that waits, and return when it runs (or is over already).

        Raises:
            KeyError: no such job.
            ValueError: it does not wait, no such cores, or memcached or another job holds one.
            RuntimeError: it did not start.
        """
        life = self._life(job, JobState.WAITING)
        wanted = self._free(cores, job)
        count = threads or life.threads
        if not life.created or count != life.threads:
            self._do(Move(MoveKind.CREATE, job, self._controller.topology.cores, count, "script"))
            self._until(lambda: life.created, f"{job} is not created")
        self._do(Move(MoveKind.START, job, wanted, count, "script"))
        self._until(lambda: life.state is not JobState.STARTING, f"{job} does not start")
        if life.state not in {JobState.RUNNING, JobState.FINISHED}:
            raise RuntimeError(f"{job} did not start: it is {life.state}")

    def update_job_cores(self, job: str, cores: Iterable[int]) -> None:
        """Move a running or paused job.

        Raises:
            KeyError: no such job.
            ValueError: it is neither, no such cores, or memcached or another job holds one.
            RuntimeError: it did not happen.
        """
        life = self._life(job, JobState.RUNNING, JobState.PAUSED)
        wanted = self._free(cores, job)
        self._do(Move(MoveKind.RESIZE, job, wanted, reason="script"))
        self._until(lambda: life.cores == wanted or life.state in ENDED, f"{job} does not move")

    def pause_job(self, job: str) -> None:
        """Freeze a running job.

        Raises:
            KeyError: no such job.
            ValueError: it does not run.
            RuntimeError: it did not happen.
        """
        life = self._life(job, JobState.RUNNING)
        self._do(Move(MoveKind.PAUSE, job, reason="script"))
        self._until(lambda: life.state is not JobState.RUNNING, f"{job} does not pause")

    def unpause_job(self, job: str) -> None:
        """Let a paused job go on, on the cores that it had.

        Raises:
            KeyError: no such job.
            ValueError: it is not paused, or memcached or another job holds one of its cores now.
            RuntimeError: it did not happen.
        """
        life = self._life(job, JobState.PAUSED)
        self._free(life.cores, job)
        self._do(Move(MoveKind.RESUME, job, reason="script"))
        self._until(lambda: life.state is not JobState.PAUSED, f"{job} does not go on")

    def stop_job(self, job: str) -> None:
        """End a job that runs or is paused.

        Raises:
            KeyError: no such job.
            ValueError: it does neither.
            RuntimeError: it did not happen.
        """
        life = self._life(job, JobState.RUNNING, JobState.PAUSED)
        self._do(Move(MoveKind.STOP, job, reason="script"))
        self._until(lambda: life.state in ENDED, f"{job} does not stop")

    def get_available_cores(self) -> list[int]:
        """The managed cores that neither memcached nor a running job holds."""
        self._refresh()
        return sorted(self._controller.topology.cores - self._held())

    def get_job_status(self) -> Mapping[str, JobStatus]:
        """Every job's state and cores, as they are now."""
        self._refresh()
        return {name: JobStatus(job.state, job.cores) for name, job in self._controller.jobs.items()}

    def wait(self, seconds: float) -> None:
        """Let time pass; returns earlier when all jobs have ended."""
        host = self._open.host
        until_s = host.now() + seconds
        while host.now() < until_s and not self._controller.done:
            host.wait(min(until_s, host.now() + _LOOK_S))
            self._refresh()

    @property
    def _open(self) -> Session:
        if self._session is None:
            raise RuntimeError("use the scheduler in a with statement")
        return self._session

    @property
    def _controller(self) -> Controller:
        return self._open.controller

    def _refresh(self) -> None:
        self._controller.absorb(self._open.host.observe())
        perform(self._open.host, self._controller, self._open.log, self._controller.reassert())

    def _life(self, job: str, *states: JobState) -> JobLife:
        self._refresh()
        life = self._controller.jobs[job]
        if life.state not in states:
            raise ValueError(f"{job} is {life.state}, not {' or '.join(states)}")
        return life

    def _managed(self, cores: Iterable[int]) -> CoreSet:
        wanted = frozenset(cores)
        if not wanted or not wanted <= self._controller.topology.cores:
            raise ValueError(f"{sorted(wanted)}: give some of {sorted(self._controller.topology.cores)}")
        return wanted

    def _held(self, but: str = "") -> CoreSet:
        jobs = (
            job.wish_cores
            for name, job in self._controller.jobs.items()
            if name != but and job.state in ACTIVE and not job.wish_paused
        )
        return self._controller.service_cores.union(*jobs)

    def _free(self, cores: Iterable[int], job: str) -> CoreSet:
        wanted = self._managed(cores)
        if taken := wanted & self._held(but=job):
            raise ValueError(f"cores {sorted(taken)} are held by memcached or another job")
        return wanted

    def _do(self, move: Move) -> None:
        failed = self._controller.counts["failed_moves"]
        perform(self._open.host, self._controller, self._open.log, [move])
        if self._controller.counts["failed_moves"] > failed:
            raise RuntimeError(f"{move.kind} {move.target} failed, see {self._open.log.path}")

    def _until(self, reached: Callable[[], bool], complaint: str) -> None:
        host = self._open.host
        give_up_s = host.now() + _PATIENCE_S
        while not reached():
            if host.now() > give_up_s:
                raise RuntimeError(complaint)
            host.wait(host.now() + _LOOK_S)
            self._refresh()
