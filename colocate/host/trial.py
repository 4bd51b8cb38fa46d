"""How long a job takes alone, and how long moves take, through the runtime that a run would use."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import psutil

from colocate.cores import CoreSet
from colocate.host.memcached import ServiceAffinity
from colocate.host.runtime import Runtime
from colocate.jobs import JobEvent, JobEventKind, JobSpec

_PATIENCE_S = 60.0  # for anything but a job's own end
_GAP_S = 0.02
_SETTLED_S = 0.7  # until its first process stands out by the CPU it has used


class TrialError(Exception):
    """A job or a move did not do what it was measured for; one line."""


class Trials:
    """Runs jobs one by one and keeps the durations of what it did.

    Args:
        runtime: runs them; prepared by the caller, closed by the caller.
        rung: set by the runtime whenever an event was queued.

    Attributes:
        moves: seconds by kind: `create`, `start`, `resize`, `pause`, `resume`, `notice`, `pin`.
    """

    def __init__(self, runtime: Runtime, rung: threading.Event) -> None:
        self.moves: dict[str, list[float]] = {}
        self._runtime = runtime
        self._rung = rung
        self._events: list[JobEvent] = []
        self._count = 0

    def run(self, job: JobSpec, threads: int, cores: CoreSet, tick: Callable[[float], None]) -> float:
        """Seconds from the job's start to its end; `tick` is called with each bit of time that passes.

        Raises:
            TrialError: it failed.
        """
        name, started = self._start(job, threads, cores)
        seen_s = started.time_s

        def pass_time() -> None:
            nonlocal seen_s
            now_s = time.monotonic()
            tick(now_s - seen_s)
            seen_s = now_s

        ended = self._wait(name, JobEventKind.EXITED, patience_s=None, meanwhile=pass_time)
        if ended.code:
            raise TrialError(f"{job.name} with {threads} threads ended with exit code {ended.code}")
        return ended.time_s - started.time_s

    @contextmanager
    def running(self, job: JobSpec, threads: int, cores: CoreSet) -> Iterator[str]:
        """A job that runs as long as the block does; gives its name at the runtime."""
        name, _ = self._start(job, threads, cores)
        yield name
        self._runtime.stop(name)
        self._wait(name, JobEventKind.EXITED)

    def time_moves(self, job: JobSpec, cores: CoreSet, one: CoreSet, count: int) -> None:
        """Resize, pause and resume a running job so often, each until the kernel shows it."""
        with self.running(job, job.threads, cores) as name:
            time.sleep(_GAP_S)
            for index in range(count):
                if self._runtime.look().get(name) is None:
                    raise TrialError(f"{job.name} ended while moves were timed")
                wanted = one if index % 2 == 0 else cores
                self._time("resize", partial(self._runtime.resize, name, wanted), name)
                self._time("pause", lambda: self._runtime.pause(name), name)
                self._time("resume", lambda: self._runtime.resume(name), name)

    def time_notice(self, job: JobSpec, cores: CoreSet) -> None:
        """From the death of a job's first process until the runtime tells."""
        before = set(psutil.pids())
        name, _ = self._start(job, job.threads, cores)
        time.sleep(_SETTLED_S)
        pid = _busiest(set(psutil.pids()) - before)
        if pid is None:
            raise TrialError(f"{job.name} ended while the notice of its end was timed")
        killed_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        self._keep("notice", self._wait(name, JobEventKind.EXITED).time_s - killed_s)

    def time_pins(self, service: ServiceAffinity, first: CoreSet, second: CoreSet, count: int) -> None:
        """Pin memcached here and there so often; whoever calls puts it back."""
        for index in range(count):
            begun_s = time.perf_counter()
            service.pin(second if index % 2 == 0 else first)
            self._keep("pin", time.perf_counter() - begun_s)
            time.sleep(_GAP_S)

    def _start(self, job: JobSpec, threads: int, cores: CoreSet) -> tuple[str, JobEvent]:
        self._count += 1
        name = f"{job.name}-{self._count}"  # a runtime creates a name once, with one thread count
        begun_s = time.monotonic()
        self._runtime.create(replace(job, name=name), threads, cores)
        self._keep("create", self._wait(name, JobEventKind.CREATED).time_s - begun_s)
        begun_s = time.monotonic()
        self._runtime.start(name, cores)
        started = self._wait(name, JobEventKind.STARTED)
        self._keep("start", started.time_s - begun_s)
        return name, started

    def _time(self, kind: str, act: Callable[[], bool], name: str) -> None:
        followed = {"resize": JobEventKind.RESIZED, "pause": JobEventKind.PAUSED, "resume": JobEventKind.RESUMED}
        begun_s = time.perf_counter()
        if not act():
            self._wait(name, followed[kind])
        self._keep(kind, time.perf_counter() - begun_s)
        time.sleep(_GAP_S)

    def _keep(self, kind: str, seconds: float) -> None:
        self.moves.setdefault(kind, []).append(max(1e-6, seconds))

    def _wait(
        self, name: str, kind: JobEventKind, patience_s: float | None = _PATIENCE_S,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> JobEvent:  # fmt: skip
        end_s = None if patience_s is None else time.monotonic() + patience_s
        while end_s is None or time.monotonic() < end_s:
            self._events += [event for event in self._runtime.events() if event.kind is not JobEventKind.CHANGED]
            for event in self._events:
                if event.job == name and event.kind in (kind, JobEventKind.FAILED, JobEventKind.GONE):
                    self._events = [other for other in self._events if other is not event]
                    if event.kind is not kind:
                        raise TrialError(f"{name}: {event.detail or event.kind}")
                    return event
            self._rung.wait(0.25)
            self._rung.clear()
            meanwhile()
        raise TrialError(f"{name}: not {kind} after {patience_s:g} s")


def _busiest(pids: Iterable[int]) -> int | None:
    """The process that has used most CPU; the engine's helpers use next to none."""
    used = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            used[pid] = times.user + times.system
    return max(used, key=lambda pid: used[pid], default=None)
