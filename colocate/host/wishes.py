"""One batch job as one Docker container: what is wished of it, and what is known of it.

The caller utters wishes. Where the container's own cgroup files can be written they come true on the caller's thread.
What is left to do is the worker's, in `container.py`.
"""

from __future__ import annotations

import enum
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from docker import APIClient

from colocate.cores import CoreSet
from colocate.host.engine import init_of
from colocate.host.grip import Grip
from colocate.host.record import Record
from colocate.host.sharing import Sharing
from colocate.host.watcher import Watcher
from colocate.jobs import JobEvent, JobEventKind, JobSpec
from colocate.move import OnExit
from colocate.view import JobSample

_KILLED = 128 + signal.SIGKILL
_EVENT_S = 0.025  # the engine takes 20 ms to notice an end; asking earlier only delays it
_SEIZE_S = 0.5  # a start takes a third of that
_UNKNOWN = 255  # the engine's code for an end of which it knows no more


class Phase(enum.Enum):
    """Where a container stands, as far as we know."""

    NEW = enum.auto()  # to be created
    CREATED = enum.auto()
    STARTING = enum.auto()
    RUNNING = enum.auto()  # paused or not
    ENDED = enum.auto()  # its end has been reported; may be started again
    GONE = enum.auto()  # no such container (any more)


@dataclass(frozen=True, slots=True)
class Engine:
    """What every container of a run shares.

    Attributes:
        run_id: stands in names and labels.
        quick: a client with a short time-out, for ordinary calls.
        patient: one with a long time-out, for what waits for disks or processes.
        watcher: tells when an init process has ended.
        emit: takes each event; may be called from any thread, must not call back.
        root: where /proc lies.
        sharing: gives containers idle priority where they meet memcached; None where they need none.
    """

    run_id: str
    quick: APIClient
    patient: APIClient
    watcher: Watcher
    emit: Callable[[JobEvent], None]
    root: Path
    sharing: Sharing | None = None


class Wishes:
    """The caller's half of a container. Every method returns at once.

    Attributes:
        error: what went wrong at the end, for whoever closes the run; empty if nothing.
    """

    def __init__(self, engine: Engine, spec: JobSpec, threads: int, cores: CoreSet) -> None:
        self.error = ""
        self._engine = engine
        self._spec = spec
        self._name = f"colocate-{engine.run_id}-{spec.name}"
        self._record = self._new_record(cores)
        self._cond = threading.Condition()  # guards everything below; never held during a call to the engine
        self._phase, self._phase_s = Phase.NEW, time.monotonic()
        self._threads = threads
        self._grip = Grip(engine.watcher, engine.root, engine.sharing)
        self._cores, self._paused = cores, False  # the wish
        self._wish_s = self._record_s = 0.0  # when it changed; when the record may be touched again
        self._record_tries = 0
        self._absent_s = 0.0  # until then there is no use in asking an engine that was not there
        self._unsure_s = 0.0  # until then a call that we gave up may still be carried out
        self._owed: set[JobEventKind] = set()  # wishes that were answered by False
        self._start_wished = self._stop_wished = False
        self._kills, self._kill_s = 0, 0.0
        self._suspect, self._inspect_s = False, 0.0  # is it over? when to ask
        self._killed = False  # by the engine
        self._recording = False  # a call is on its way that may upset the files for a moment
        self._on_exit: OnExit | None = None

    def create(self, spec: JobSpec, threads: int, cores: CoreSet) -> None:
        """Create it anew, after a creation that failed or a removal; say it again where it waits for its start."""
        with self._cond:
            if self._phase in (Phase.CREATED, Phase.ENDED) and not (self._start_wished or self._stop_wished):
                if self._phase is Phase.ENDED or threads == self._threads:
                    self._emit(JobEventKind.CREATED, cores=cores)
                else:  # it has been made for another number; once it is gone, it is asked for again
                    self._stop_wished = True
                    self._cond.notify_all()
            if self._phase is Phase.GONE:
                self._spec = spec
                self._threads, self._cores = threads, cores
                self._record = self._new_record(cores)
                self._enter(Phase.NEW)

    def start(self, cores: CoreSet) -> None:
        """See `Runtime.start`."""
        with self._cond:
            if self._phase in (Phase.STARTING, Phase.RUNNING):
                return
            if self._phase is Phase.GONE:
                self._emit(JobEventKind.FAILED, detail="its container is gone")
                return
            self._cores, self._paused = cores, False
            self._start_wished, self._stop_wished = True, False
            self._owed.clear()
            self._cond.notify_all()

    def resize(self, cores: CoreSet) -> bool:
        """See `Runtime.resize`."""
        with self._cond:
            if not self._under_way():
                return False
            self._cores = cores
            self._seize()
            return self._answer(JobEventKind.RESIZED, done=self._grip.set_cores(cores))

    def pause(self) -> bool:
        """See `Runtime.pause`."""
        return self._wish_paused(wanted=True)

    def resume(self) -> bool:
        """See `Runtime.resume`."""
        return self._wish_paused(wanted=False)

    def stop(self) -> None:
        """See `Runtime.stop`."""
        with self._cond:
            if self._phase not in (Phase.ENDED, Phase.GONE):
                self._stop_wished, self._start_wished = True, self._start_wished and self._phase is Phase.STARTING
                self._kills, self._kill_s = 0, 0.0
                self._cond.notify_all()

    def sample(self) -> JobSample | None:
        """What the files say now; None unless it runs or is paused."""
        with self._cond:
            if self._phase is not Phase.RUNNING:
                self._seize()
                return None
            sample = self._grip.sample()
            if self._recording:  # what shows during a call is our own doing and passes within milliseconds
                return replace(sample, cores=None, paused=self._paused, idle=None)
            if sample.idle is False and self._grip.give_way():
                self._emit(JobEventKind.CHANGED, detail="its idle priority was taken by somebody else, put right")
                return replace(sample, idle=True)
            return sample

    def hint(self, container_id: str, action: str, code: int | None) -> None:
        """The engine's event stream tells of it (`kill`, `die`, `destroy`, `pause`, `unpause`, `update`)."""
        with self._cond:
            if container_id != self._record.id:  # an earlier one of the same name
                return
            if action == "kill":
                self._killed = True
            elif self._phase is not Phase.RUNNING:
                self._suspect |= self._phase is Phase.STARTING
                if action == "destroy":
                    self._vanished()
            elif action == "die" and code is not None and self._grip.ended() and not self._maybe_removed(code):
                self._end(code)
            elif action in ("die", "destroy") or not self._recording:
                self._suspicious()

    def listed(self, state: str | None, asked_s: float) -> None:
        """The engine's list, asked for at `asked_s`, has it in this state, or not at all."""
        with self._cond:
            if self._phase_s >= asked_s:
                return
            if self._phase is not Phase.RUNNING:
                if state is None:
                    self._vanished()
            elif state != ("paused" if self._record.paused else "running") and not self._recording:
                self._suspicious()

    def engine_is_back(self) -> None:
        """The engine answers again: what was put off because it did not is due now."""
        with self._cond:
            self._record_s = self._absent_s = 0.0
            self._record_tries = 0
            if self._phase is Phase.RUNNING:
                self._suspicious()

    def finish(self, on_exit: OnExit) -> None:
        """End the worker, and with it the container where that is wished; join `thread` to wait for it."""
        with self._cond:
            self._on_exit = on_exit
            self._cond.notify_all()

    def _new_record(self, cores: CoreSet) -> Record:
        engine = self._engine
        parent = engine.sharing.mechanism.cgroup_parent if engine.sharing else None
        return Record(engine.quick, engine.patient, cores, parent)

    def _under_way(self) -> bool:
        return (self._phase in (Phase.STARTING, Phase.RUNNING) or self._start_wished) and not self._stop_wished

    def _wish_paused(self, *, wanted: bool) -> bool:
        kind = JobEventKind.PAUSED if wanted else JobEventKind.RESUMED
        with self._cond:
            if not self._under_way():
                return False
            self._paused = wanted
            self._seize()
            self._owed -= {JobEventKind.PAUSED, JobEventKind.RESUMED}
            return self._answer(kind, done=self._grip.set_paused(paused=wanted))

    def _answer(self, kind: JobEventKind, *, done: bool) -> bool:
        self._wish_s = time.monotonic()
        self._record_tries = 0
        if done:
            self._owed.discard(kind)
        else:
            self._owed.add(kind)
        self._cond.notify_all()
        return done

    def _seize(self) -> None:
        """Take hold of what an engine has started without telling: nobody else keeps it off memcached's cores."""
        asked_s = self._record.asked_s
        if self._phase is Phase.RUNNING or asked_s is None or time.monotonic() < asked_s + _SEIZE_S:
            return
        if not self._grip.writable() and (pid := init_of(self._record.id, self._engine.root)):
            self._grip.drop()
            self._grip.take(pid, self._record.id, self._init_ended)
        if self._grip.writable():
            self._grip.confirm(self._cores, paused=self._paused)

    def _init_ended(self) -> None:
        with self._cond:
            if self._grip.ended():  # and it is not an earlier one's
                self._grip.set_paused(paused=False)
                self._suspicious(_EVENT_S)

    def _confirm(self) -> bool:
        """Have the files say what is wished, and read them back."""
        return self._phase is Phase.RUNNING and self._grip.confirm(self._cores, paused=self._paused)

    def _maybe_removed(self, code: int) -> bool:
        """A forced removal begins with the engine's SIGKILL; whether this is one, only its record tells."""
        return self._killed and code in (_KILLED, _UNKNOWN) and not self._stop_wished

    def _suspicious(self, wait_s: float = 0.0) -> None:
        due_s = time.monotonic() + wait_s
        self._suspect, self._inspect_s = True, min(due_s, self._inspect_s) if self._suspect else due_s
        self._cond.notify_all()

    def _end(self, code: int) -> None:
        self._over(Phase.ENDED)
        self._emit(JobEventKind.EXITED, code=code)

    def _vanished(self) -> None:
        # Our own removal is not news. One that has ended is told, too: it may be waiting to be started again.
        if self._phase in (Phase.CREATED, Phase.RUNNING, Phase.ENDED):
            if self._on_exit is None:
                self._emit(JobEventKind.GONE, detail="its container was removed")
            self._over(Phase.GONE)

    def _over(self, phase: Phase) -> None:
        self._enter(phase)
        self._owed.clear()
        self._stop_wished = self._suspect = self._paused = False
        self._grip.drop()

    def _enter(self, phase: Phase) -> None:
        self._phase, self._phase_s = phase, time.monotonic()
        self._cond.notify_all()

    def _emit(
        self, kind: JobEventKind, *, code: int | None = None, detail: str = "", cores: CoreSet = frozenset()
    ) -> None:
        self._engine.emit(JobEvent(self._spec.name, kind, time.monotonic(), code, detail, cores))
