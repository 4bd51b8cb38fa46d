"""One batch job as one Docker container, with a worker thread that does what must wait for the engine.

The caller utters wishes. Where the container's own cgroup files can be written they come true on the caller's thread;
the worker brings the engine's record in line afterwards, and does everything itself where they cannot.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from docker import APIClient
from docker.types import LogConfig

from colocate.cores import CoreSet, format_ranges, parse_ranges
from colocate.host.cgroup import JobCgroup
from colocate.host.engine import ENGINE_ERRORS, JOB_LABEL, RUN_LABEL, cgroup_of, is_conflict, is_missing, reason
from colocate.host.watcher import Watcher
from colocate.jobs import JobEvent, JobEventKind, JobSpec
from colocate.move import OnExit
from colocate.view import JobSample

# A daemon call costs 18 ms of CPU on any core, memcached's too: the record waits until a wish has stood this long.
SETTLE_S = 0.5
GRACE_S = 1.0  # from SIGTERM to SIGKILL
_FREEZE_S = 1.0  # what a worker waits for a freeze that the caller could not wait for
_KILL_AGAIN_S, _KILLS = 5.0, 3
_RECORD_BACK_OFF_S, _RECORD_TRIES = 1.0, 5
_KILLED = 128 + signal.SIGKILL

_log = logging.getLogger(__name__)


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
    """

    run_id: str
    quick: APIClient
    patient: APIClient
    watcher: Watcher
    emit: Callable[[JobEvent], None]
    root: Path


class Container:
    """One job's container. All public methods return at once; nothing ever raises out of the worker.

    Attributes:
        error: what went wrong at the end, for whoever closes the run; empty if nothing.
    """

    def __init__(self, engine: Engine, spec: JobSpec, threads: int, cores: CoreSet) -> None:
        self.error = ""
        self._engine = engine
        self._spec = spec
        self._name = f"colocate-{engine.run_id}-{spec.name}"
        self._id = ""
        self._cond = threading.Condition()  # guards everything below; never held during a call to the engine
        self._phase, self._phase_s = Phase.NEW, time.monotonic()
        self._threads = threads
        self._group: JobCgroup | None = None
        self._pidfd: int | None = None
        self._cores, self._paused = cores, False  # the wish
        self._record_cores, self._record_paused = cores, False  # what the engine has on record
        self._wish_s = self._record_s = 0.0  # when it changed; when the record may be touched again
        self._record_tries = 0
        self._owed: set[JobEventKind] = set()  # wishes that were answered by False
        self._start_wished = self._stop_wished = False
        self._kills, self._kill_s = 0, 0.0
        self._suspect, self._inspect_s = False, 0.0  # is it over? when to ask
        self._recording = False  # a call is on its way that may upset the files for a moment
        self._held: list[int] = []
        self._on_exit: OnExit | None = None
        self._done = False
        self.thread = threading.Thread(target=self._work, name=f"colocate-{spec.name}", daemon=True)
        self.thread.start()

    def create(self, threads: int, cores: CoreSet) -> None:
        """Create it anew, after a creation that failed or a removal."""
        with self._cond:
            if self._phase is Phase.GONE:
                self._threads, self._cores, self._record_cores = threads, cores, cores
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
            done = self._group is not None and self._group.set_cores(cores)
            return self._answer(JobEventKind.RESIZED, done=done)

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
                return None
            if self._group is None:
                return JobSample()
            if self._recording:  # what shows now is our own doing and passes within milliseconds
                return JobSample(self._cores, self._paused, self._group.cpu_s())
            return JobSample(self._group.cores(), self._group.frozen(), self._group.cpu_s())

    def hint(self, action: str, code: int | None) -> None:
        """The engine's event stream tells of it (`die`, `destroy`, `pause`, `unpause`, `update`)."""
        with self._cond:
            if self._phase is not Phase.RUNNING:
                self._suspect |= self._phase is Phase.STARTING
                if action == "destroy":
                    self._vanished()
            elif action == "die" and code is not None and self._init_ended() and not self._maybe_removed(code):
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
            elif state != ("paused" if self._record_paused else "running") and not self._recording:
                self._suspicious()

    def finish(self, on_exit: OnExit) -> None:
        """End the worker, and with it the container where that is wished; join `thread` to wait for it."""
        with self._cond:
            self._on_exit = on_exit
            self._cond.notify_all()

    def _under_way(self) -> bool:
        return (self._phase in (Phase.STARTING, Phase.RUNNING) or self._start_wished) and not self._stop_wished

    def _wish_paused(self, *, wanted: bool) -> bool:
        kind = JobEventKind.PAUSED if wanted else JobEventKind.RESUMED
        with self._cond:
            if not self._under_way():
                return False
            self._paused = wanted
            self._owed -= {JobEventKind.PAUSED, JobEventKind.RESUMED}
            return self._answer(kind, done=self._set_frozen())

    def _answer(self, kind: JobEventKind, *, done: bool) -> bool:
        self._wish_s = time.monotonic()
        self._record_tries = 0
        if done:
            self._owed.discard(kind)
        else:
            self._owed.add(kind)
        self._cond.notify_all()
        return done

    def _set_frozen(self) -> bool:
        if self._group is None:
            return False
        if self._paused:
            return self._group.freeze()
        thawed = self._group.thaw()
        self._release()
        return thawed

    def _assert(self) -> bool:
        """Write the wish into the files and read it back."""
        if self._group is None or self._phase is not Phase.RUNNING:
            return False
        cores = self._group.cores() == self._cores or self._group.set_cores(self._cores)
        frozen = self._group.frozen() is self._paused or self._set_frozen()
        return cores and frozen

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
        if phase is Phase.NEW and self._on_exit is None:
            return self._create, None
        if self._on_exit is not None and (phase is not Phase.RUNNING or self._on_exit == "stop"):
            return self._remove, None
        if phase is Phase.CREATED and self._stop_wished:
            return self._discard, None
        if phase in (Phase.CREATED, Phase.ENDED) and self._start_wished:
            return self._start, None
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
        elif (self._record_cores, self._record_paused) != (self._cores, self._paused):
            due.append((max(self._wish_s + SETTLE_S, self._record_s), self._update_record))
        if not due:
            return None, None
        due_s, step = min(due, key=lambda entry: entry[0])
        wait_s = due_s - time.monotonic()
        return (step, None) if wait_s <= 0 else (None, wait_s)

    def _create(self) -> None:
        api = self._engine.patient
        try:
            host = api.create_host_config(
                cpuset_cpus=format_ranges(self._cores),  # explicit, because one can never be unset later
                network_mode=self._spec.network,
                # The lowest there is: all else on the machine goes first (memcached's helpers, this controller, the
                # engine itself), and a batch job only ever takes what is left.
                cpu_shares=2,
                log_config=LogConfig(type="json-file", config={"max-size": "1m", "max-file": "1"}),
            )
            made = api.create_container(
                self._spec.image, self._spec.argv(self._threads), name=self._name, host_config=host,
                labels={RUN_LABEL: self._engine.run_id, JOB_LABEL: self._spec.name},
            )  # fmt: skip
        except ENGINE_ERRORS as error:
            self._failed(Phase.GONE, error)
            return
        with self._cond:
            self._id = made["Id"]
            self._enter(Phase.CREATED)
            self._emit(JobEventKind.CREATED, cores=self._record_cores)

    def _start(self) -> None:
        api = self._engine.patient
        with self._cond:
            before, cores = self._phase, self._cores
            self._start_wished = self._suspect = False
            self._enter(Phase.STARTING)
        try:
            if self._record_cores != cores:
                api.update_container(self._id, cpuset_cpus=format_ranges(cores))
                self._record_cores = cores
            api.start(self._id)
            pid = api.inspect_container(self._id)["State"]["Pid"]
        except ENGINE_ERRORS as error:
            self._failed(before, error)
            return
        with self._cond:
            self._record_paused = False
            self._bind(pid)
            self._enter(Phase.RUNNING)
            self._assert()
            self._emit(JobEventKind.STARTED, cores=cores)
            if not pid or self._suspect:
                self._suspicious()

    def _bind(self, pid: int) -> None:
        """Find the files of the container's init, and watch for its end."""
        if not pid:
            return
        with contextlib.suppress(OSError):  # it has ended already: the engine will tell how
            fd = os.pidfd_open(pid)
            self._group = cgroup_of(pid, self._id, self._engine.root)
            if self._group is None:
                os.close(fd)
                return
            self._pidfd = fd
            self._engine.watcher.watch(fd, self._init_end_seen)

    def _init_end_seen(self) -> None:
        with self._cond:
            if self._init_ended():
                self._suspicious()

    def _init_ended(self) -> bool:
        if self._pidfd is None:
            return False
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def _maybe_removed(self, code: int) -> bool:
        """A forced removal begins with a SIGKILL; whether it was one, only the engine's record tells."""
        return code == _KILLED and not self._stop_wished

    def _suspicious(self) -> None:
        self._suspect, self._inspect_s = True, 0.0
        self._cond.notify_all()

    def _inspect(self) -> None:
        """Ask the engine what has become of it."""
        try:
            found = self._engine.quick.inspect_container(self._id)
        except ENGINE_ERRORS as error:
            with self._cond:
                self._inspect_s = time.monotonic() + 0.2
                if is_missing(error):
                    self._vanished()
            return
        state = found["State"]
        with self._cond:
            if self._phase is not Phase.RUNNING:
                return
            if state["Running"]:
                self._record_paused = state["Paused"]
                self._record_cores = parse_ranges(found["HostConfig"]["CpusetCpus"])
                self._suspect = self._init_ended()  # then the engine only has not noticed yet
                self._inspect_s = time.monotonic() + 0.005
            elif state["Status"] in ("removing", "dead") and self._maybe_removed(state["ExitCode"]):
                self._vanished()
            else:
                self._end(state["ExitCode"])

    def _apply(self) -> None:
        """Do what the caller's thread could not: again by the files, else by the engine."""
        with self._cond:
            resize = JobEventKind.RESIZED in self._owed
            cores = self._cores
            done = not resize or (self._group is not None and self._group.set_cores(cores))
        if not done:
            try:
                self._engine.quick.update_container(self._id, cpuset_cpus=format_ranges(cores))
                self._record_cores = cores
            except ENGINE_ERRORS as error:
                self._refused(error)
                return
        with self._cond:
            if resize and cores == self._cores:
                self._settled(JobEventKind.RESIZED)
            if not self._owed & {JobEventKind.PAUSED, JobEventKind.RESUMED}:
                return
        self._apply_paused()

    def _apply_paused(self) -> None:
        with self._cond:
            paused = self._paused
            direct = self._group is not None and self._group.writable()
        if direct:
            deadline_s = time.monotonic() + _FREEZE_S
            while time.monotonic() < deadline_s:
                with self._cond:
                    done = self._set_frozen()
                    if self._phase is not Phase.RUNNING or done:
                        break
                time.sleep(0.002)
            else:
                self._refused(TimeoutError(f"not {'frozen' if paused else 'thawed'} within {_FREEZE_S:g} s"))
                return
        else:
            try:
                (self._engine.quick.pause if paused else self._engine.quick.unpause)(self._id)
            except ENGINE_ERRORS as error:
                if not self._already(paused=paused):
                    self._refused(error)
                    return
            self._record_paused = paused
        with self._cond:
            if direct or paused == self._paused:
                self._settled(JobEventKind.PAUSED if self._paused else JobEventKind.RESUMED)

    def _already(self, *, paused: bool) -> bool:
        try:
            state = self._engine.quick.inspect_container(self._id)["State"]
        except ENGINE_ERRORS:
            return False
        return bool(state["Running"] and state["Paused"] == paused)

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
            frozen = self._group.frozen() if self._group else None
            self._cores = (self._group.cores() if self._group else None) or self._record_cores
            self._paused = self._record_paused if frozen is None else frozen
            self._emit(JobEventKind.FAILED, detail=reason(error))

    def _update_record(self) -> None:
        """Let the engine's record say what is; what its calls undo on the way is written again."""
        quick = self._engine.quick
        with self._cond:
            cores, self._recording = self._cores, True
        try:
            if self._record_cores != cores:
                quick.update_container(self._id, cpuset_cpus=format_ranges(cores))
                self._record_cores = cores
                with self._cond:
                    self._assert()
            with self._cond:
                paused = self._paused
                change = paused != self._record_paused
                if change and self._group is not None:
                    # The engine refuses to pause what is frozen, and to resume what is not.
                    if paused:
                        self._hold()
                    else:
                        self._group.freeze()
            if change:
                (quick.pause if paused else quick.unpause)(self._id)
                self._record_paused = paused
        except ENGINE_ERRORS as error:
            self._record_failed(error)
        finally:
            with self._cond:
                settled = self._assert()
                self._release()
                self._recording = False
                if not settled and self._phase is Phase.RUNNING:
                    self._suspicious()

    def _record_failed(self, error: BaseException) -> None:
        with self._cond:
            self._record_tries += 1
            self._record_s = time.monotonic() + _RECORD_BACK_OFF_S * self._record_tries
            self._suspicious()  # also brings what we believe of the record up to date
            if self._record_tries >= _RECORD_TRIES:
                self._record_s = time.monotonic() + 60.0
                _log.warning("%s: the engine's record is out of date: %s", self._name, reason(error))

    def _hold(self) -> None:
        """Thaw without letting it run: every process is stopped by a signal first, which it meets before its next
        instruction. Otherwise it would run, maybe on memcached's cores, until the engine has frozen it again.
        """  # noqa: D205 -- the summary needs two lines
        if self._group is None:
            return
        for pid in self._group.pids():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGSTOP)
                self._held.append(pid)
        self._group.thaw()

    def _release(self) -> None:
        for pid in self._held:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
        self._held.clear()

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
            self._set_frozen()
        try:
            self._engine.patient.kill(self._id, int(how))
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
            self._paused = False
            self._set_frozen()  # what is frozen behind the engine's back cannot be killed by it
        try:
            self._engine.patient.remove_container(self._id, force=True, v=True)
        except ENGINE_ERRORS as error:
            if not (is_missing(error) or is_conflict(error)):
                return reason(error)
        return ""

    def _remove(self) -> None:
        """The run ends, and this container with it."""
        if self._id and self._phase is not Phase.GONE:
            self.error = self._removed()
        with self._cond:
            self._over(Phase.GONE)
            self._done = True

    def _leave(self) -> None:
        """The run ends, the container stays: running or paused, in truth and on record."""
        with self._cond:
            self._paused = self._on_exit == "pause"
            direct = self._assert()
            self._record_tries = 0
        for _ in range(_RECORD_TRIES):
            if (self._record_cores, self._record_paused) == (self._cores, self._paused):
                break
            self._update_record()
        else:
            self.error = "the engine's record could not be brought up to date"
        with self._cond:
            if self._phase is not Phase.RUNNING:
                return  # it has ended meanwhile, and is removed instead
            if direct and not self._assert():
                self.error = f"could not be {'paused' if self._paused else 'resumed'}"
            self._over(Phase.GONE)
            self._done = True

    def _failed(self, phase: Phase, error: BaseException) -> None:
        with self._cond:
            self._owed.clear()
            self._enter(phase)
            self._emit(JobEventKind.FAILED, detail=reason(error))

    def _end(self, code: int) -> None:
        self._over(Phase.ENDED)
        self._emit(JobEventKind.EXITED, code=code)

    def _vanished(self) -> None:
        # An end that was reported is not reported again, and our own removal is not news.
        if self._phase in (Phase.CREATED, Phase.RUNNING) and self._on_exit is None:
            self._emit(JobEventKind.GONE, detail="its container was removed")
        if self._phase in (Phase.CREATED, Phase.RUNNING, Phase.ENDED):
            self._over(Phase.GONE)

    def _over(self, phase: Phase) -> None:
        self._enter(phase)
        self._owed.clear()
        self._stop_wished = self._suspect = self._paused = False
        if self._group is not None:
            self._group.close()
            self._group = None
        if self._pidfd is not None:
            self._engine.watcher.forget(self._pidfd)
            self._pidfd = None

    def _enter(self, phase: Phase) -> None:
        self._phase, self._phase_s = phase, time.monotonic()
        self._cond.notify_all()

    def _emit(
        self, kind: JobEventKind, *, code: int | None = None, detail: str = "", cores: CoreSet = frozenset()
    ) -> None:
        self._engine.emit(JobEvent(self._spec.name, kind, time.monotonic(), code, detail, cores))
