"""An in-memory runtime whose jobs follow scripts, and a host on which moving too often or too seldom hurts."""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from colocate.cores import CoreSet, nonempty
from colocate.errors import UserError
from colocate.jobs import JobEvent, JobEventKind, JobSpec
from colocate.move import Move, MoveKind, OnExit
from colocate.view import CoreUse, JobSample, Observation, ServiceSample, Signal

CPU_STEP_S = 0.01  # CPU time that a running job uses on each core between two calls of `events`


@dataclass(frozen=True, slots=True)
class JobScript:
    """How a job behaves, counted in calls of `ScriptedRuntime.events`.

    Attributes:
        ends_after: it runs for so many calls, pauses left out; None ends only on command.
        code: its exit code then.
        create_error: why it cannot be created; empty where it can.
        start_errors: how many starts fail before one succeeds.
        vanishes_after: as `ends_after`, but it is removed by somebody.
        start_calls: calls from the wish to start it until it has started.
        pause_calls: calls until a pause or a resumption has taken effect; 0 is the fast path.
        resize_calls: calls until a resize has.
        ignores_term: calls that a stop takes.
    """

    ends_after: int | None = None
    code: int = 0
    create_error: str = ""
    start_errors: int = 0
    vanishes_after: int | None = None
    start_calls: int = 0
    pause_calls: int = 0
    resize_calls: int = 0
    ignores_term: int = 0


@dataclass(slots=True)
class _Job:
    spec: JobSpec
    script: JobScript
    threads: int
    cores: CoreSet
    created: bool = False
    running: bool = False
    paused: bool = False
    starts: int = 0
    ran: int = 0
    cpu_s: float = 0.0
    due: dict[str, tuple[int, Callable[[], None]]] = field(default_factory=dict)  # by kind: the last wish wins


class ScriptedRuntime:
    """An in-memory `Runtime` whose jobs follow scripts, and what a test tells them by `end`, `vanish` and `script`.

    Time passes by calls of `events`, so a test is as fast as it can be and every run of it alike.

    Args:
        scripts: by job name; a job without one runs until it is told to end.
        notify: called whenever an event was queued.
        clock: stamps the events.
        prepare_error: raised by `prepare`, for hosts that must survive it.

    Attributes:
        calls: every call in order, such as `("resize", "a", frozenset({0}))`.
        left: after `close`: the jobs that were left, with what holds for them.
    """

    name = "scripted"

    def __init__(
        self,
        scripts: Mapping[str, JobScript] | None = None,
        notify: Callable[[], None] = lambda: None,
        *,
        clock: Callable[[], float] = time.monotonic,
        prepare_error: UserError | None = None,
    ) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.left: dict[str, JobSample] = {}
        self._scripts = dict(scripts or {})
        self._notify = notify
        self._clock = clock
        self._prepare_error = prepare_error
        self._jobs: dict[str, _Job] = {}
        self._events: deque[JobEvent] = deque()
        self._closed = False

    def prepare(self, jobs: Sequence[JobSpec], progress: Callable[[str, float], None]) -> None:
        """See `Runtime.prepare`."""
        self.calls.append(("prepare", *(job.name for job in jobs)))
        if self._prepare_error is not None:
            raise self._prepare_error
        progress("nothing", 1.0)

    def create(self, job: JobSpec, threads: int, cores: CoreSet) -> None:
        """See `Runtime.create`."""
        self.calls.append(("create", job.name, threads, _checked(cores)))
        script = self._scripts.get(job.name, JobScript())
        if script.create_error:
            self._emit(job.name, JobEventKind.FAILED, detail=script.create_error)
            return
        starts = self._jobs[job.name].starts if job.name in self._jobs else 0
        self._jobs[job.name] = _Job(job, script, threads, cores, created=True, starts=starts)
        self._emit(job.name, JobEventKind.CREATED, cores=cores)

    def start(self, job: str, cores: CoreSet) -> None:
        """See `Runtime.start`."""
        self.calls.append(("start", job, _checked(cores)))
        one = self._jobs[job]
        if one.running:
            return
        one.starts += 1
        if not one.created or one.starts <= one.script.start_errors:
            self._emit(job, JobEventKind.FAILED, detail="told to fail" if one.created else "is gone")
            return
        one.cores, one.paused, one.ran, one.cpu_s = cores, False, 0, 0.0
        self._after(one, "start", one.script.start_calls, lambda: self._started(one, cores))

    def resize(self, job: str, cores: CoreSet) -> bool:
        """See `Runtime.resize`."""
        self.calls.append(("resize", job, _checked(cores)))
        one = self._jobs[job]

        def resized() -> None:
            one.cores = cores

        return self._wish(one, "resize", one.script.resize_calls, resized, JobEventKind.RESIZED, cores)

    def pause(self, job: str) -> bool:
        """See `Runtime.pause`."""
        return self._wish_paused(job, JobEventKind.PAUSED)

    def resume(self, job: str) -> bool:
        """See `Runtime.resume`."""
        return self._wish_paused(job, JobEventKind.RESUMED)

    def stop(self, job: str) -> None:
        """See `Runtime.stop`."""
        self.calls.append(("stop", job))
        one = self._jobs[job]
        if one.running or "start" in one.due:
            self._after(one, "stop", one.script.ignores_term, lambda: self.end(job, 143))
        elif one.created:
            self.vanish(job)

    def look(self) -> Mapping[str, JobSample]:
        """See `Runtime.look`."""
        return {name: JobSample(one.cores, one.paused, one.cpu_s) for name, one in self._jobs.items() if one.running}

    def events(self) -> list[JobEvent]:
        """See `Runtime.events`; also the tick of this runtime's clock."""
        for one in tuple(self._jobs.values()):
            for what, (calls, act) in tuple(one.due.items()):
                if calls > 1:
                    one.due[what] = (calls - 1, act)
                else:
                    del one.due[what]
                    act()
            if one.running and not one.paused:
                one.ran += 1
                one.cpu_s += CPU_STEP_S * len(one.cores)
                if one.script.vanishes_after is not None and one.ran > one.script.vanishes_after:
                    self.vanish(one.spec.name)
                elif one.script.ends_after is not None and one.ran > one.script.ends_after:
                    self.end(one.spec.name, one.script.code)
        return [self._events.popleft() for _ in range(len(self._events))]

    def close(self, on_exit: OnExit, deadline_s: float) -> list[str]:
        """See `Runtime.close`."""
        self.calls.append(("close", on_exit, deadline_s))
        if not self._closed and on_exit != "stop":
            self.left = {name: replace(sample, paused=on_exit == "pause") for name, sample in self.look().items()}
        self._closed = True
        self._jobs.clear()
        return []

    def end(self, job: str, code: int = 0) -> None:
        """A command of the test: the job exits by itself now."""
        one = self._jobs[job]
        if one.running:
            self._over(one)
            self._emit(job, JobEventKind.EXITED, code=code)

    def vanish(self, job: str) -> None:
        """A command of the test: somebody removes the job."""
        one = self._jobs[job]
        reported = one.created and not one.running and one.ran > 0
        self._over(one)
        one.created = False
        if not reported:
            self._emit(job, JobEventKind.GONE, detail="removed by somebody")

    def script(self, job: str, script: JobScript) -> None:
        """A command of the test: the job behaves like this from now on."""
        self._scripts[job] = script
        if job in self._jobs:
            self._jobs[job].script = script

    def _wish_paused(self, job: str, kind: JobEventKind) -> bool:
        self.calls.append(("pause" if kind is JobEventKind.PAUSED else "resume", job))
        one = self._jobs[job]

        def done() -> None:
            one.paused = kind is JobEventKind.PAUSED

        return self._wish(one, "pause", one.script.pause_calls, done, kind, one.cores)

    def _wish(
        self, one: _Job, what: str, calls: int, act: Callable[[], None], kind: JobEventKind, cores: CoreSet
    ) -> bool:
        one.due.pop(what, None)
        if "start" in one.due:
            calls = max(calls, one.due["start"][0]) + 1
        elif not one.running:
            return False
        if not calls:
            act()
            return True

        def later() -> None:
            act()
            self._emit(one.spec.name, kind, cores=cores)

        one.due[what] = (calls, later)
        return False

    def _after(self, one: _Job, what: str, calls: int, act: Callable[[], None]) -> None:
        if calls:
            one.due[what] = (calls, act)
        else:
            act()

    def _started(self, one: _Job, cores: CoreSet) -> None:
        one.running = True
        self._emit(one.spec.name, JobEventKind.STARTED, cores=cores)

    def _over(self, one: _Job) -> None:
        one.running = one.paused = False
        one.due.clear()

    def _emit(
        self, job: str, kind: JobEventKind, *, code: int | None = None, detail: str = "", cores: CoreSet = frozenset()
    ) -> None:
        self._events.append(JobEvent(job, kind, self._clock(), code, detail, cores))
        self._notify()


def _checked(cores: CoreSet) -> CoreSet:
    nonempty(cores)
    return cores


class UShapedHost:
    """A host in virtual time on which moving too often is as bad as moving too seldom, by a known amount.

    Memcached's latency is `base_ms * (1 + much * rate + little / rate)`, where `rate` is how many times a second its
    cores have been changed over the last `memory_s`. It is lowest at `best_rate`. Its CPU use swings between what one
    core carries and what takes two, so that a policy that follows it always has a reason to move. Jobs never end.

    Args:
        cores: how many.
        much: seconds: how bad a move is.
        little: a second: how bad it is to let one be.
        base_ms: the latency without either.
        memory_s: over which the rate is taken.
        uses: CPU that memcached uses, in cores, in turn.
        swing_s: how long each.
        noise: standard deviation of the latency's logarithm, anew at each look.
        seed: of the noise.

    Attributes:
        moved_s: when memcached's cores were changed.
    """

    def __init__(
        self,
        cores: int = 4,
        *,
        much: float,
        little: float,
        base_ms: float = 0.1,
        memory_s: float = 20.0,
        uses: tuple[float, float] = (0.6, 0.85),
        swing_s: float = 0.5,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.moved_s: list[float] = []
        self._cores = frozenset(range(cores))
        self._much, self._little, self._base_ms, self._memory_s = much, little, base_ms, memory_s
        self._uses, self._swing_s, self._noise = uses, swing_s, noise
        self._draw = random.Random(seed)  # noqa: S311 -- a fake, no secret
        self._now_s = 0.0
        self._service: CoreSet = frozenset()
        self._jobs: dict[str, JobSample] = {}
        self._events: list[JobEvent] = []

    @property
    def best_rate(self) -> float:
        """Changes a second at which the latency is lowest."""
        return math.sqrt(self._little / self._much)

    def latency_ms(self, rate: float) -> float:
        """The latency at so many changes a second."""
        return self._base_ms * (1 + self._much * rate + self._little / rate)

    def now(self) -> float:
        """See `Host.now`."""
        return self._now_s

    def observe(self) -> Observation:
        """See `Host.observe`."""
        events, self._events = tuple(self._events), []
        recent = sum(1 for when_s in reversed(self.moved_s[-1000:]) if when_s > self._now_s - self._memory_s)
        rate = max(recent, 0.5) / self._memory_s  # no move at all is not infinitely bad
        latency_ms = self.latency_ms(rate) * math.exp(self._noise * self._draw.gauss(0.0, 1.0))
        used = self._uses[int(self._now_s / self._swing_s) % 2]
        return Observation(
            self._now_s,
            dict.fromkeys(self._cores, CoreUse(0.5, 0.0, 0.0)),
            ServiceSample(
                pid=1, threads=2, cpu_cores=Signal(used, 0.0, 1), wait_us=Signal(5.0, 0.0, 1),
                wait_cores=Signal(0.0, 0.0, 1), qps=Signal(1e5 * used, 0.0, 1), latency_ms=Signal(latency_ms, 0.0, 100),
            ),
            dict(self._jobs),
            events,
        )  # fmt: skip

    def act(self, move: Move) -> bool:
        """See `Host.act`; everything takes effect at once."""
        job = self._jobs.get(move.target)
        match move.kind:
            case MoveKind.PIN:
                self._service = move.cores
                self.moved_s.append(self._now_s)
            case MoveKind.CREATE:
                self._events.append(JobEvent(move.target, JobEventKind.CREATED, self._now_s))
                return False
            case MoveKind.START:
                self._jobs[move.target] = JobSample(move.cores, False, 0.0)  # noqa: FBT003 -- not paused
                self._events.append(JobEvent(move.target, JobEventKind.STARTED, self._now_s, cores=move.cores))
                return False
            case MoveKind.STOP:
                self._jobs.pop(move.target, None)
                self._events.append(JobEvent(move.target, JobEventKind.EXITED, self._now_s, code=143))
                return False
            case MoveKind.RESIZE if job:
                self._jobs[move.target] = replace(job, cores=move.cores)
            case MoveKind.PAUSE | MoveKind.RESUME if job:
                self._jobs[move.target] = replace(job, paused=move.kind is MoveKind.PAUSE)
        return True

    def wait(self, until_s: float) -> None:
        """See `Host.wait`."""
        passed_s, self._now_s = max(0.0, until_s - self._now_s), max(self._now_s, until_s)
        for name, job in self._jobs.items():
            if job.cores and not job.paused:
                self._jobs[name] = replace(job, cpu_s=(job.cpu_s or 0.0) + passed_s * len(job.cores))

    def deadline(self, seconds: float) -> AbstractContextManager[None]:  # noqa: ARG002 -- virtual time stands still
        """See `Host.deadline`."""
        return nullcontext()

    def close(self, on_exit: OnExit) -> list[str]:  # noqa: ARG002 -- nothing to put back
        """See `Host.close`."""
        self._jobs.clear()
        return []
