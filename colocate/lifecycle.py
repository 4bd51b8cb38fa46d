"""The life of each job as it has really happened, and the last wish uttered for it.

Every change of state that counts leaves an `Entry` for the event log, in the order in which things happened.
"""

from __future__ import annotations

from collections.abc import Callable

from colocate.cores import CoreSet
from colocate.jobs import ACTIVE, ENDED, NEXT, JobEvent, JobEventKind, JobSpec, JobState
from colocate.move import Entry, Move, MoveKind
from colocate.view import JobSample, JobView

PATIENCE_S = 2.0  # a wish not fulfilled after this is made again
BACK_OFF_S = 1.0  # after a failed move the next one for the same job waits this long
_STRAYS = 3  # looks in a row that found it where it had been moved away from: moving it does not help
_STUCK_S = 10.0  # so long after the last of these looks it is tried again
_RETRY_S = 0.1  # a crash loop must not run at the loop's pace
_HINTS = {127: " (no such command)", 137: " (killed, out of memory?)", 139: " (crashed)"}


class JobLife:
    """One job: what it is, what was asked of it, what became of it.

    Args:
        spec: the job.
        retries: how often it is started again after a failure.
        say: takes each entry for the event log.

    Attributes:
        state: where it stands in its life.
        cores: its cpuset as it really is (kept while it is paused); empty before its start.
        wish_cores: the cpuset last asked for.
        wish_paused: whether it was last asked to pause.
        wish_s: when something was last asked of it.
        failures: how often it has failed.
    """

    def __init__(self, spec: JobSpec, retries: int, say: Callable[[Entry], None]) -> None:
        self.spec = spec
        self.threads = spec.threads
        self.state = JobState.WAITING
        self.cores: CoreSet = frozenset()
        self.wish_cores: CoreSet = frozenset()
        self.wish_paused = False
        self.asked_for = False  # its creation
        self.created = False
        self.stopping = False
        self.failures = 0
        self._retries = retries
        self._say = say
        self._logged = False
        self.wish_s = float("-inf")
        self._not_before_s = float("-inf")  # until then nothing is asked for it
        self._refused_s: dict[MoveKind, float] = {}  # until then no pause, no resize to less: it has just failed
        self._begun_s = float("-inf")  # when its creation or start was last asked for
        self._asked: CoreSet = frozenset()  # where it was last started or moved to
        self._strays = 0
        self._astray: CoreSet = frozenset()  # where it was found then
        self._astray_s = float("-inf")
        self._starts_paused = False
        self._known_s: dict[str, float] = {}  # when its cores, and whether it is paused, were last known
        self._run_s = 0.0
        self._since_s: float | None = None
        self._cpu_s: tuple[float, float] | None = None  # when, how much
        self._cpu_cores: float | None = None
        self._viewed: tuple[tuple[object, ...], JobView] | None = None

    @property
    def name(self) -> str:
        """The job's name."""
        return self.spec.name

    @property
    def retries(self) -> int:
        """How often it has been started again."""
        return max(0, self.failures - (self.state is JobState.FAILED))

    @property
    def there(self) -> bool:
        """Whether it is on the cores that were last asked for, or will be once it has started."""
        return self.state is not JobState.PAUSED or self.cores == self.wish_cores

    def stuck(self, now_s: float) -> CoreSet:
        """Where it stays although it was moved away again and again, as far as that is known; else nothing."""
        return self._astray if self._strays >= _STRAYS and now_s - self._astray_s < _STUCK_S else frozenset()

    def open(self, now_s: float) -> bool:
        """Whether something may be asked of it now."""
        return self.state not in ENDED and not self.stopping and now_s >= self._not_before_s

    def may_lose(self, kind: MoveKind, now_s: float) -> bool:
        """Whether it may be paused, or resized to less: that waits only for what has failed of its own kind."""
        return not self.stopping and now_s >= self._refused_s.get(kind, float("-inf"))

    def view(self, now_s: float) -> JobView:
        """The job as a policy sees it."""
        run_s = self._run_s + (max(0.0, now_s - self._since_s) if self._since_s is not None else 0.0)
        held = self.wish_cores if self.state in ACTIVE and not self.wish_paused else frozenset()
        cpu_cores = self._cpu_cores if self.state is JobState.RUNNING else None
        used_s = None if self._cpu_s is None else self._cpu_s[1]
        facts = (self.spec, self.state, held, self.threads, cpu_cores, run_s, self.failures, used_s)
        if self._viewed is None or facts != self._viewed[0]:  # of a job that does not run nothing changes
            self._viewed = (facts, JobView(*facts))
        return self._viewed[1]

    def measured(self, sample: JobSample, now_s: float) -> None:
        """Take in what the kernel says of its CPU use."""
        if sample.cpu_s is None:
            return
        if self._cpu_s is not None and now_s > self._cpu_s[0]:
            self._cpu_cores = max(0.0, (sample.cpu_s - self._cpu_s[1]) / (now_s - self._cpu_s[0]))
        self._cpu_s = (now_s, sample.cpu_s)

    def contradiction(self, sample: JobSample | None, now_s: float) -> str:
        """What the kernel says that differs from what we did, once a move has settled; empty if nothing.

        The wish is made void with it, so that it will be uttered again; so is one that has been on its way too long.
        Where that has not helped again and again (the runtime says yes, the cores stay), it counts as refused.
        """
        paused = self.state is JobState.PAUSED
        if not paused and self.state is not JobState.RUNNING:
            return ""
        if self.wish_cores != self.cores or self.wish_paused != paused:
            if now_s - self.wish_s > PATIENCE_S:
                self.wish_cores, self.wish_paused = self.cores, paused
                return "a move was not confirmed in time, made again"
            return ""
        if sample is not None and sample.cores and sample.cores <= self._asked:
            self._strays = 0
        if sample is None or now_s - self.wish_s < BACK_OFF_S / 2:  # the look may be older than the move
            return ""
        found = ""
        if sample.cores and sample.cores != self.cores:
            if not sample.cores <= self._asked:
                self._strays, self._astray, self._astray_s = self._strays + 1, sample.cores, now_s
            if self._strays >= _STRAYS:
                self._refused_s[MoveKind.RESIZE] = now_s + BACK_OFF_S
            found = f"found on cores {sorted(sample.cores)} instead of {sorted(self.cores)}, moved back"
            self.cores = self.wish_cores = sample.cores
        if sample.paused is not None and sample.paused != paused:
            found = f"found {'paused' if sample.paused else 'running'} by somebody else, put right"
            self.wish_paused = sample.paused
        return found

    def unplugged(self, present: CoreSet, now_s: float) -> None:
        """Cores went offline: the kernel leaves it those of its own that are present, or all where none is (cpuset(7)).

        What was last asked for cannot be any more: a job that runs is resized at once, a paused one when it goes on.
        """
        if self.state not in (JobState.RUNNING, JobState.PAUSED) or self.cores <= present:
            return
        self.cores = self.cores & present or present
        if self.state is JobState.PAUSED:
            self.wish_cores = self.cores
        self.wish_s = now_s
        self._say(Entry("update_cores", self.name, self.cores))

    def wished(self, move: Move, now_s: float, since_s: float) -> None:
        """A move for it has been handed to the host, which took it at `since_s`."""
        self.wish_s = now_s
        if move.kind in {MoveKind.CREATE, MoveKind.START}:
            self._begun_s = since_s
        match move.kind:
            case MoveKind.CREATE:
                self.asked_for, self.created = True, False
                self.threads = move.threads
            case MoveKind.START:
                self.wish_cores = self.cores = self._asked = move.cores
                self.wish_paused = self._starts_paused = False
                self._refused_s.clear()
                self._strays = 0
                self._enter(JobState.STARTING, now_s)
            case MoveKind.RESIZE:
                self.wish_cores = self._asked = move.cores
            case MoveKind.PAUSE | MoveKind.RESUME:
                self.wish_paused = move.kind is MoveKind.PAUSE
            case MoveKind.STOP:
                self.stopping = True

    def took_effect(self, kind: MoveKind, cores: CoreSet, now_s: float) -> None:
        """A resize, a pause or a resumption has really happened; what is told after something newer is no news."""
        what = "cores" if kind is MoveKind.RESIZE else "paused"
        if now_s < self._known_s.get(what, float("-inf")):
            return
        self._known_s[what] = now_s
        if kind is MoveKind.RESIZE and self.state in ACTIVE:
            changed, self.cores = cores != self.cores, cores
            if changed and self._logged:
                self._say(Entry("update_cores", self.name, cores))
        elif self.state is JobState.STARTING:  # it has started, and that is not told yet
            self._starts_paused = kind is MoveKind.PAUSE
        elif kind is MoveKind.PAUSE and self.state is JobState.RUNNING:
            self._enter(JobState.PAUSED, now_s)
            self._say(Entry("pause", self.name))
        elif kind is MoveKind.RESUME and self.state is JobState.PAUSED:
            self._enter(JobState.RUNNING, now_s)
            self._say(Entry("unpause", self.name))

    def failed(self, kind: MoveKind, why: str, now_s: float, *, less: bool) -> None:
        """A move did not happen; `less` says whether it was to take something from the job."""
        if self.state in ENDED:
            return
        if less:
            self._refused_s[kind] = now_s + BACK_OFF_S
        if kind in {MoveKind.CREATE, MoveKind.START}:
            self._unsuccessful(f"did not start: {why}", now_s)
        self.wish_cores, self.wish_paused = self.cores, self.state is JobState.PAUSED
        self._not_before_s = now_s + BACK_OFF_S

    def happened(self, event: JobEvent) -> None:
        """Take in what a runtime reports; what FAILED means follows from the state."""
        if self.state in ENDED or event.time_s < self._begun_s:  # told late: of a try that is over
            return
        match event.kind:
            case JobEventKind.CREATED:
                self.created = True
            case JobEventKind.STARTED:
                self._started(event.time_s)
            case JobEventKind.RESIZED:
                self.took_effect(MoveKind.RESIZE, event.cores or self.wish_cores, event.time_s)
            case JobEventKind.PAUSED:
                self.took_effect(MoveKind.PAUSE, frozenset(), event.time_s)
            case JobEventKind.RESUMED:
                self.took_effect(MoveKind.RESUME, frozenset(), event.time_s)
            case JobEventKind.EXITED if self.state is not JobState.WAITING:  # else told twice
                self._exited(event)
            case JobEventKind.GONE if self.state is JobState.WAITING:  # made anew; it had not begun
                self.asked_for = self.created = False
                self._not_before_s = event.time_s + BACK_OFF_S
            case JobEventKind.GONE:
                why = "stopped" if self.stopping else f"vanished: {event.detail or 'removed by somebody'}"
                self._over(JobState.STOPPED, why, event.time_s)
            case JobEventKind.FAILED:
                self._failed_later(event)

    def _failed_later(self, event: JobEvent) -> None:
        """What was on its way did not happen: which wish that was follows from the state."""
        if self.state in {JobState.WAITING, JobState.STARTING}:
            self.failed(MoveKind.START, event.detail, event.time_s, less=False)
        elif self.wish_paused and self.state is JobState.RUNNING:
            self.failed(MoveKind.PAUSE, event.detail, event.time_s, less=True)
        else:
            self.failed(MoveKind.RESIZE, event.detail, event.time_s, less=self.wish_cores < self.cores)

    def abandon(self, why: str, now_s: float, *, stopped: bool) -> None:
        """The run ends before the job does; `stopped` says whether the job does, too."""
        if self.state in ENDED:
            return
        if self._logged:
            self._say(Entry("custom", self.name, comment=why))
        if stopped:
            self._enter(JobState.STOPPED, now_s)

    def _enter(self, state: JobState, now_s: float) -> None:
        if state not in NEXT[self.state]:
            raise ValueError(f"{self.name} cannot go from {self.state} to {state}")
        if self.state is JobState.RUNNING and self._since_s is not None:
            self._run_s += max(0.0, now_s - self._since_s)
        self.state = state
        self._since_s = now_s if state is JobState.RUNNING else None

    def _started(self, now_s: float) -> None:
        if self.state is not JobState.STARTING:
            return
        self._enter(JobState.RUNNING, now_s)
        if self._logged:
            self._say(Entry("custom", self.name, comment=f"started again, try {self.failures + 1}"))
            self._say(Entry("update_cores", self.name, self.cores))
        else:
            self._logged = True
            self._say(Entry("start", self.name, self.cores, self.threads))
        if self._starts_paused:
            self.took_effect(MoveKind.PAUSE, frozenset(), max(now_s, self._known_s["paused"]))

    def _exited(self, event: JobEvent) -> None:
        self._started(event.time_s)  # it may be over before its start was seen
        if self.stopping:
            self._over(JobState.STOPPED, "stopped", event.time_s)
        elif event.code == 0:
            self._close_pause(event.time_s)
            self._enter(JobState.FINISHED, event.time_s)
            self._say(Entry("end", self.name))
        else:
            hint = _HINTS.get(event.code or 0, "")
            self._unsuccessful(f"failed with exit code {event.code}{hint}", event.time_s)

    def _unsuccessful(self, why: str, now_s: float) -> None:
        self.failures += 1
        if self.state is JobState.WAITING:
            self.asked_for = self.created = False
        if self.failures > self._retries:
            self._over(JobState.FAILED, why, now_s)
            return
        self._close_pause(now_s)
        self._say(Entry("custom", self.name, comment=f"{why}, retry {self.failures} of {self._retries}"))
        if self.state is not JobState.WAITING:
            self._enter(JobState.WAITING, now_s)
        self._cpu_s = self._cpu_cores = None  # what it used is lost: all of its work is left
        self._not_before_s = now_s + _RETRY_S

    def _over(self, state: JobState, why: str, now_s: float) -> None:
        self._close_pause(now_s)
        self._say(Entry("custom", self.name, comment=why))
        self._enter(state, now_s)

    def _close_pause(self, now_s: float) -> None:
        if self.state is JobState.PAUSED:
            self._enter(JobState.RUNNING, now_s)
            self._say(Entry("unpause", self.name))
