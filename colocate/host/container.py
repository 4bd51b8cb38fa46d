"""One batch job as one Docker container, with a worker thread that does what must wait for the engine.

The worker brings the engine's record in line with what has come true by files, and does everything itself where those
cannot be written. It always works towards the last wish; what was wished in between leaves no trace.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable

from colocate.cores import CoreSet, format_ranges, parse_ranges
from colocate.host.engine import ENGINE_ERRORS, is_absent, is_conflict, is_missing, reason
from colocate.host.proctree import wait_until
from colocate.host.wishes import Engine, Phase, Wishes
from colocate.jobs import JobEventKind, JobSpec

# A daemon call costs 18 ms of CPU on any core, memcached's too: the record waits until a wish has stood this long.
SETTLE_S = 0.5
GRACE_S = 1.0  # from SIGTERM to SIGKILL
# A job that gets no CPU takes long to freeze: the worker waits so long, and lets it have some between two looks.
_FREEZE_S, _FREEZE_AGAIN_S = 30.0, 0.02
_ASK_AGAIN_S = 0.01
_KILL_AGAIN_S, _KILLS = 5.0, 3
_RECORD_BACK_OFF_S, _RECORD_TRIES = 1.0, 5
_ABSENT_S = 0.2  # between two tries to reach an engine that is not there
_UNSURE_S = 60.0  # an engine that hung carries out old calls first

_log = logging.getLogger(__name__)


class Container(Wishes):
    """A container with its worker thread, out of which nothing ever raises.

    Attributes:
        thread: ends after `finish`.
    """

    def __init__(self, engine: Engine, spec: JobSpec, threads: int, cores: CoreSet) -> None:
        super().__init__(engine, spec, threads, cores)
        self._done = False
        self.thread = threading.Thread(target=self._work, name=f"colocate-{spec.name}", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while not self._done:
            with self._cond:
                step, wait_s = self._next()
                if step is None:
                    self._cond.wait(wait_s)
                    continue
            step()

    def _next(self) -> tuple[Callable[[], None] | None, float | None]:
        """The next thing to do, and when."""
        phase = self._phase
        absent_s = self._absent_s - time.monotonic()
        if phase is Phase.NEW and self._on_exit is None:
            return (self._create, None) if absent_s <= 0 else (None, absent_s)
        if self._on_exit is not None and (phase is not Phase.RUNNING or self._on_exit == "stop"):
            return self._remove, None
        if phase is Phase.CREATED and self._stop_wished:
            return self._discard, None
        if phase in (Phase.CREATED, Phase.ENDED) and self._start_wished:
            return (self._start, None) if absent_s <= 0 else (None, absent_s)
        if phase is not Phase.RUNNING:
            return None, None
        due: list[tuple[float, Callable[[], None]]] = []
        if self._suspect:
            due.append((self._inspect_s, self._inspect))
        if self._stop_wished:
            due.append((self._kill_s, self._kill))
        elif self._owed:
            due.append((0.0, self._apply))
        elif self._on_exit is not None:
            due.append((0.0, self._leave))
        elif (self._record.cores, self._record.paused) != (self._cores, self._paused):
            due.append((max(self._wish_s + SETTLE_S, self._record_s), self._update_record))
        if not due:
            return None, None
        due_s, step = min(due, key=lambda entry: entry[0])
        wait_s = due_s - time.monotonic()
        return (step, None) if wait_s <= 0 else (None, wait_s)

    def _create(self) -> None:
        try:
            self._record.create(self._engine.run_id, self._spec, self._threads)
        except ENGINE_ERRORS as error:
            if not self._waits_for(error):
                self._failed(Phase.GONE, error)
            return
        with self._cond:
            self._enter(Phase.CREATED)
            self._emit(JobEventKind.CREATED, cores=self._record.cores)

    def _start(self) -> None:
        with self._cond:
            before, cores = self._phase, self._cores
            self._start_wished = self._suspect = self._killed = False
            self._enter(Phase.STARTING)
        try:
            self._record.move(cores)
            pid = self._record.start()
        except ENGINE_ERRORS as error:
            with self._cond:
                if self._waits_for(error) or (self._record.unseen and not is_missing(error)):
                    self._start_wished = not self._stop_wished
                    self._enter(before)
                    return
            if before is Phase.ENDED:  # an engine that was killed may have lost track of it: once more, with a new one
                self._removed()
                with self._cond:
                    self._start_wished = not self._stop_wished
                    self._enter(Phase.NEW)
                return
            self._failed(before, error)
            return
        with self._cond:
            self._grip.drop()  # it may have been seized
            if pid:
                self._grip.take(pid, self._record.id, self._init_ended)
            self._enter(Phase.RUNNING)
            self._confirm()
            self._emit(JobEventKind.STARTED, cores=cores)
            if not pid or self._suspect:
                self._suspicious()

    def _inspect(self) -> None:
        """Ask the engine what has become of it."""
        try:
            found = self._engine.quick.inspect_container(self._record.id)
        except ENGINE_ERRORS as error:
            with self._cond:
                self._inspect_s = time.monotonic() + _ABSENT_S
                if is_missing(error):
                    self._vanished()
            return
        state = found["State"]
        with self._cond:
            if self._phase is not Phase.RUNNING:
                return
            if state["Running"]:
                known = (self._record.cores, self._record.paused)
                self._record.paused = state["Paused"]
                self._record.cores = parse_ranges(found["HostConfig"]["CpusetCpus"])
                now = (self._record.cores, self._record.paused)
                if known == (self._cores, self._paused) != now and time.monotonic() > self._unsure_s:
                    what = "paused" if self._record.paused else f"moved to {format_ranges(self._record.cores)}"
                    self._emit(JobEventKind.CHANGED, detail=f"{what} by somebody else, put right")
                if self._grip.replaced(state["Pid"]):
                    self._grip.drop()
                    self._grip.take(state["Pid"], self._record.id, self._init_ended)
                    self._confirm()
                    self._emit(JobEventKind.CHANGED, detail="restarted by somebody else, taken over")
                self._suspect = self._grip.ended()  # then the engine only has not noticed yet
                self._inspect_s = time.monotonic() + _ASK_AGAIN_S
            elif state["Status"] in ("removing", "dead") and not self._stop_wished:
                self._vanished()
            else:
                self._end(state["ExitCode"])

    def _apply(self) -> None:
        """Do what the caller's thread could not: again by the files, else by the engine."""
        with self._cond:
            resize = JobEventKind.RESIZED in self._owed
            cores = self._cores
            done = not resize or self._grip.set_cores(cores)
        if not done:
            try:
                self._record.write_cores(cores)
            except ENGINE_ERRORS as error:
                self._refused(error)
                return
        with self._cond:
            self._grip.give_way()  # with systemd the engine's call has taken that back
            if cores == self._cores:
                self._settled(JobEventKind.RESIZED)
            if not self._owed & {JobEventKind.PAUSED, JobEventKind.RESUMED}:
                return
            paused, direct = self._paused, self._grip.writable()
        if direct:
            if not wait_until(self._set_paused, _FREEZE_S, _FREEZE_AGAIN_S):
                self._refused(TimeoutError(f"not {'frozen' if paused else 'thawed'} within {_FREEZE_S:g} s"))
                return
        else:
            try:
                self._record.set_paused(paused=paused)
            except ENGINE_ERRORS as error:
                if not self._record.says_paused(paused=paused):
                    self._refused(error)
                    return
        with self._cond:
            if direct or paused == self._paused:
                self._settled(JobEventKind.PAUSED if self._paused else JobEventKind.RESUMED)

    def _set_paused(self) -> bool:
        with self._cond:
            over = self._phase is not Phase.RUNNING or self._stop_wished or self._on_exit is not None
            return over or self._grip.ended() or self._grip.set_paused(paused=self._paused)

    def _settled(self, kind: JobEventKind) -> None:
        if kind in self._owed and self._phase is Phase.RUNNING:
            self._owed.discard(kind)
            self._emit(kind, cores=self._cores)

    def _refused(self, error: BaseException) -> None:
        """The engine will not: the wish is void, unless the job is over anyhow."""
        with self._cond:
            self._owed.clear()
            if self._phase is not Phase.RUNNING:
                return
            if is_missing(error) or is_conflict(error):
                self._suspicious()
                return
            found = self._grip.sample()
            self._cores = found.cores or self._record.cores
            self._paused = self._record.paused if found.paused is None else found.paused
            self._emit(JobEventKind.FAILED, detail=reason(error))

    def _update_record(self) -> None:
        """Let the engine's record say what is; what its calls undo on the way is written again."""
        with self._cond:
            cores, self._recording = self._cores, True
        try:
            self._record.move(cores)
            with self._cond:
                self._confirm()
                paused = self._paused
                change = paused != self._record.paused
                if change and paused:  # the engine refuses to pause what is frozen, and to resume what is not
                    change = self._grip.hold()
                    if not change:
                        self._record_s = time.monotonic() + 60.0
                elif change:
                    self._grip.set_paused(paused=True)
            if change:
                self._record.set_paused(paused=paused)
        except ENGINE_ERRORS as error:
            self._record_failed(error)
        finally:
            with self._cond:
                confirmed = self._confirm()
                self._grip.release()
                self._recording = False
                if not confirmed and self._phase is Phase.RUNNING:
                    self._suspicious()

    def _record_failed(self, error: BaseException) -> None:
        with self._cond:
            self._record_tries += 1
            self._unsure_s = time.monotonic() + _UNSURE_S
            self._record_s = time.monotonic() + _RECORD_BACK_OFF_S * self._record_tries
            self._suspicious()  # also brings what we believe of the record up to date
            if given_up := self._record_tries >= _RECORD_TRIES:
                self._record_s = time.monotonic() + 60.0
        if given_up:  # said without the lock: a terminal may take no word (Ctrl-S)
            _log.warning("%s: the engine's record is out of date: %s", self._name, reason(error))

    def _kill(self) -> None:
        with self._cond:
            self._kills += 1
            self._kill_s = time.monotonic() + (GRACE_S if self._kills == 1 else _KILL_AGAIN_S)
            how = signal.SIGTERM if self._kills == 1 else signal.SIGKILL
            if self._kills > _KILLS:
                self._stop_wished = False
                self._emit(JobEventKind.FAILED, detail="it does not end, not even by SIGKILL")
                return
            self._owed.clear()
            self._paused = False
            self._grip.set_paused(paused=False)
        try:
            self._engine.patient.kill(self._record.id, int(how))
        except ENGINE_ERRORS as error:
            _log.debug("%s: kill: %s", self._name, reason(error))
            with self._cond:
                self._suspicious()

    def _discard(self) -> None:
        """Remove what was told to stop before it ever started."""
        error = self._removed()
        with self._cond:
            self._stop_wished = False
            if error:
                self._emit(JobEventKind.FAILED, detail=error)
            elif self._phase is Phase.CREATED:
                self._enter(Phase.GONE)
                self._emit(JobEventKind.GONE, detail="removed before it started")

    def _removed(self) -> str:
        with self._cond:
            self._grip.set_paused(paused=False)  # what is frozen behind the engine's back cannot be killed by it
        try:
            self._engine.patient.remove_container(self._record.id, force=True, v=True)
        except ENGINE_ERRORS as error:
            if not (is_missing(error) or is_conflict(error)):
                return reason(error)
        return ""

    def _remove(self) -> None:
        """The run ends, and this container with it."""
        if self._record.id and self._phase is not Phase.GONE:
            self.error = self._removed()
        with self._cond:
            self._over(Phase.GONE)
            self._done = True

    def _leave(self) -> None:
        """The run ends, the container stays: running or paused, in truth and on record."""
        with self._cond:
            self._paused = self._on_exit == "pause"
            direct = self._confirm()
            self._record_tries = 0
        for _ in range(_RECORD_TRIES):
            if (self._record.cores, self._record.paused) == (self._cores, self._paused):
                break
            self._update_record()
        else:
            self.error = "the engine's record could not be brought up to date"
        with self._cond:
            if self._phase is not Phase.RUNNING:
                return  # it has ended meanwhile, and is removed instead
            if direct and not self._confirm():
                self.error = f"could not be {'paused' if self._paused else 'resumed'}"
            self._grip.take_back()
            self._over(Phase.GONE)
            self._done = True

    def _waits_for(self, error: BaseException) -> bool:
        """Whether to try again by and by: an engine that is not there says nothing about the job."""
        self._absent_s = time.monotonic() + _ABSENT_S
        return is_absent(error)

    def _failed(self, phase: Phase, error: BaseException) -> None:
        with self._cond:
            self._owed.clear()
            self._grip.drop()
            self._enter(phase)
            self._emit(JobEventKind.FAILED, detail=reason(error))
