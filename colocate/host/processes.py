"""Jobs as plain processes, where there is no Docker: each in a session and, where we may make them, cgroups of its own.

Without cgroups a job's cores are the affinity of its whole process tree, and it is paused by SIGSTOP.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import colocate_workloads

from colocate.cores import CoreSet
from colocate.errors import UserError
from colocate.host import proctree
from colocate.host.cgroup import FREEZE_WAIT_S, JobCgroup, make, run_group
from colocate.host.runtime import Progress
from colocate.host.sharing import Sharing
from colocate.host.watcher import Watcher
from colocate.jobs import JobEvent, JobEventKind, JobSpec
from colocate.move import OnExit
from colocate.view import JobSample

GRACE_S = 1.0  # from SIGTERM to SIGKILL
_FREEZE_S, _ASK_AGAIN_S = 30.0, 0.005  # a job that gets no CPU takes long to freeze or to stop

# Constant; the job's words come as arguments. It waits where its cores can be set before its first instruction, and
# when we die it reads the end of the pipe and ends: nothing that has not started outlives us.
_GATE = 'read -r _ || exit 0; exec "$@" </dev/null'


@dataclass(slots=True)
class _Job:
    """One job; `process` is None where none is there (any more)."""

    spec: JobSpec
    threads: int
    cores: CoreSet
    group: JobCgroup
    process: subprocess.Popen[bytes] | None = None
    gate: int | None = None  # write end of the pipe that it waits for; None once it has been let go
    pidfd: int | None = None
    starting: bool = False
    paused: bool = False
    stopping: bool = False
    cpu_before_s: float = 0.0  # used by earlier tries
    owed: set[JobEventKind] = field(default_factory=set)

    @property
    def running(self) -> bool:
        return self.process is not None and self.gate is None


class ProcessRuntime:
    """A `Runtime` on plain processes; their output is thrown away, so that a chatty job cannot fill the disk.

    Args:
        run_id: stands in the cgroups' names.
        notify: called from any thread whenever an event was queued; must not block, must not call back.
        workdir: where jobs run that name no directory; None is where the built kernels lie.
        cgroups: whether to make cgroups where we may; False does without everywhere.
        root: where /proc and the cgroup mounts lie.
        sharing: gives jobs idle priority where they meet memcached; None where they need none.
    """

    name = "process"

    def __init__(
        self, run_id: str, notify: Callable[[], None], *, workdir: Path | None = None, cgroups: bool = True,
        root: Path = Path("/"), sharing: Sharing | None = None,
    ) -> None:  # fmt: skip
        self._run_id = run_id
        self._notify = notify
        self._workdir = workdir
        self._cgroups = cgroups
        self._root = root
        self._sharing = sharing
        self._jobs: dict[str, _Job] = {}
        self._events: deque[JobEvent] = deque()
        self._lock = threading.RLock()
        self._watcher = Watcher("colocate-processes")
        self._closed = False

    def prepare(self, jobs: Sequence[JobSpec], progress: Progress) -> None:
        """See `Runtime.prepare`: builds the kernels if a job needs them.

        Raises:
            UserError: they cannot be built.
        """
        if self._workdir is None and any(job.directory is None for job in jobs):
            progress("kernels", 0.0)
            try:
                self._workdir = colocate_workloads.binaries()
            except colocate_workloads.BuildError as error:
                raise UserError(str(error)) from error
            progress("kernels", 1.0)

    def create(self, job: JobSpec, threads: int, cores: CoreSet) -> None:
        """See `Runtime.create`."""
        with self._lock:
            old = self._jobs.get(job.name)
            if old is None or old.process is None:
                group = old.group if old else self._make_group(job.name)
                self._jobs[job.name] = made = _Job(job, threads, cores, group)
                self._watcher.soon(lambda: self._create(made))
            elif old.gate is not None and not (old.starting or old.stopping):
                if threads == old.threads:
                    self._watcher.soon(lambda: self._emit(old, JobEventKind.CREATED, cores=cores))
                else:
                    self.stop(job.name)

    def start(self, job: str, cores: CoreSet) -> None:
        """See `Runtime.start`."""
        one = self._jobs[job]
        with self._lock:
            if not one.running and not one.starting:
                one.cores, one.paused, one.starting, one.stopping = cores, False, True, False
                self._watcher.soon(lambda: self._start(one))

    def resize(self, job: str, cores: CoreSet) -> bool:
        """See `Runtime.resize`."""
        one = self._jobs[job]
        with self._lock:
            if one.starting:
                one.cores = cores
                one.owed.add(JobEventKind.RESIZED)
            if not one.running:
                return False
            before, one.cores = one.cores, cores
            why = self._set_cores(one)
            if why:
                one.cores = before
                self._emit(one, JobEventKind.FAILED, detail=why)
            return not why

    def pause(self, job: str) -> bool:
        """See `Runtime.pause`."""
        return self._wish_paused(self._jobs[job], wanted=True)

    def resume(self, job: str) -> bool:
        """See `Runtime.resume`."""
        return self._wish_paused(self._jobs[job], wanted=False)

    def stop(self, job: str) -> None:
        """See `Runtime.stop`."""
        one = self._jobs[job]
        with self._lock:
            one.stopping = True
            if one.running:
                self._terminate(one)
            elif not one.starting:
                self._watcher.soon(lambda: self._kill(one, one.process))  # behind its creation

    def look(self) -> Mapping[str, JobSample]:
        """See `Runtime.look`."""
        with self._lock:
            return {
                name: self._look(one, one.process.pid)
                for name, one in self._jobs.items()
                if one.process is not None and one.running
            }

    def events(self) -> list[JobEvent]:
        """See `Runtime.events`."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def close(self, on_exit: OnExit, deadline_s: float) -> list[str]:
        """See `Runtime.close`."""
        if self._closed:
            return []
        end_s = time.monotonic() + deadline_s
        self._closed = True
        self._watcher.close()
        problems = []
        with self._lock:
            for one in self._jobs.values():
                process, kept = one.process, one.running and on_exit != "stop"
                if process is not None and kept and process.poll() is None:
                    one.paused = on_exit == "pause"
                    if not self._set_frozen(one, max(0.1, end_s - time.monotonic())):
                        problems.append(f"{one.spec.name}: could not be {'paused' if one.paused else 'resumed'}")
                    if self._sharing is not None:
                        self._sharing.take_back(one.group, self._members(one))
                    one.group.close()
                    continue
                if process is not None:
                    self._kill(one, process)
                    try:
                        process.wait(max(0.1, end_s - time.monotonic()))
                    except subprocess.TimeoutExpired:
                        problems.append(f"{one.spec.name}: pid {process.pid} has been killed and is still there")
                self._shut_gate(one)
                if not proctree.wait_until(one.group.remove, max(0.1, end_s - time.monotonic())):
                    problems.append(f"{one.spec.name}: its control group has processes that do not end")
        if on_exit == "stop":  # where there are no groups, a process in a session of its own is known by its mark alone
            problems += proctree.kill_leftovers(self._run_id, self._root)[1]
        return problems

    def _make_group(self, job: str) -> JobCgroup:
        return make(f"{run_group(self._run_id)}/{job}", self._root) if self._cgroups else JobCgroup()

    def _create(self, one: _Job) -> None:
        with self._lock:
            why = "" if self._closed else self._spawn(one)
            self._emit(one, JobEventKind.FAILED if why else JobEventKind.CREATED, detail=why, cores=one.cores)

    def _start(self, one: _Job) -> None:
        with self._lock:
            if self._closed:
                return
            cores = one.cores
            why = self._spawn(one) if one.process is None else ""
            why = why or self._set_cores(one)
            if not why and one.paused and one.group.freezer is not None:
                one.group.freeze()  # before it is let go
            if not why and one.gate is not None:
                try:
                    os.write(one.gate, b"\n")
                except OSError as error:
                    why = f"ended before its start: {error.strerror}"
            one.starting = False
            owed, one.owed = one.owed, set()
            if why:
                self._emit(one, JobEventKind.FAILED, detail=why)
                return
            self._shut_gate(one)
            self._emit(one, JobEventKind.STARTED, cores=cores)
            if JobEventKind.RESIZED in owed:
                self._emit(one, JobEventKind.RESIZED, cores=one.cores)
            if owed & {JobEventKind.PAUSED, JobEventKind.RESUMED}:
                one.owed.add(JobEventKind.PAUSED if one.paused else JobEventKind.RESUMED)
                self._confirm(one, one.process, time.monotonic() + _FREEZE_S)
            if one.stopping:
                self._terminate(one)

    def _spawn(self, one: _Job) -> str:
        """Start the process that waits to become the job; says what went wrong."""
        where = one.spec.directory or self._workdir or Path.cwd()
        argv = one.spec.argv(one.threads)
        program = str(where.absolute() / argv[0]) if "/" in argv[0] else argv[0]
        if shutil.which(program) is None:
            return f"{argv[0]}: no such program in {where}"
        try:
            read_end, gate = os.pipe()
        except OSError as error:  # no more descriptors
            return f"{argv[0]}: {error.strerror}"
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _GATE, "sh", *argv], stdin=read_end, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, cwd=where, start_new_session=True,
                env={**os.environ, proctree.MARK: f"{self._run_id}/{one.spec.name}"},
            )  # fmt: skip
        except OSError as error:
            os.close(gate)
            return f"{where}: {error.strerror}"
        finally:
            os.close(read_end)
        try:
            one.pidfd = os.pidfd_open(process.pid)
        except OSError as error:
            os.close(gate)  # it has not begun, and ends
            process.wait()
            return f"{argv[0]}: {error.strerror}"
        one.process, one.gate = process, gate
        self._watcher.watch(one.pidfd, lambda: self._ended(one, process))
        proctree.give_way(process.pid, self._root)
        one.group.thaw()
        try:
            one.group.add(process.pid)
        except OSError:  # another cgroup manager forbids it: do without
            one.group.remove()
            one.group = JobCgroup()
        one.group.lowest_weight()
        self._give_way(one)
        one.cpu_before_s = one.group.cpu_s() or 0.0
        return self._set_cores(one)

    def _set_cores(self, one: _Job) -> str:
        """Move the whole tree to its cores; says what went wrong."""
        if one.group.cpuset is not None:
            return "" if one.group.set_cores(one.cores) else f"{one.group.cpuset} refuses cores {sorted(one.cores)}"
        try:
            moved = proctree.set_affinity(lambda: self._members(one), one.cores, self._root)
        except OSError as error:
            return f"cores {sorted(one.cores)}: {error.strerror}"
        return "" if moved else "its processes multiply faster than they can be moved"

    def _wish_paused(self, one: _Job, *, wanted: bool) -> bool:
        kind = JobEventKind.PAUSED if wanted else JobEventKind.RESUMED
        with self._lock:
            if one.stopping or not (one.running or one.starting):
                return False
            one.paused = wanted
            one.owed -= {JobEventKind.PAUSED, JobEventKind.RESUMED}
            if one.running and self._set_frozen(one):
                return True
            one.owed.add(kind)
            if one.running:
                process, deadline_s = one.process, time.monotonic() + _FREEZE_S
                self._watcher.later(FREEZE_WAIT_S, lambda: self._confirm(one, process, deadline_s))
            return False

    def _set_frozen(self, one: _Job, wait_s: float = FREEZE_WAIT_S) -> bool:
        if one.group.freezer is not None:
            return one.group.freeze(wait_s) if one.paused else one.group.thaw(wait_s)
        # Also where it looks so already: a signal that it has not met yet, for want of CPU, must be taken back.
        proctree.signal_all(lambda: self._members(one), signal.SIGSTOP if one.paused else signal.SIGCONT)
        return proctree.wait_until(lambda: self._frozen(one) is one.paused, wait_s)

    def _frozen(self, one: _Job) -> bool | None:
        if one.group.freezer is not None:
            return one.group.frozen()
        return proctree.stopped(lambda: self._members(one), self._root)

    def _confirm(self, one: _Job, process: subprocess.Popen[bytes] | None, deadline_s: float) -> None:
        """Say that it is paused or resumed once it is."""
        with self._lock:
            kind = JobEventKind.PAUSED if one.paused else JobEventKind.RESUMED
            if one.process is not process or kind not in one.owed:
                return
            if self._set_frozen(one):
                one.owed.discard(kind)
                self._emit(one, kind, cores=one.cores)
            elif time.monotonic() > deadline_s:
                one.owed.discard(kind)
                one.paused = bool(self._frozen(one))
                self._emit(one, JobEventKind.FAILED, detail=f"not {kind} within {_FREEZE_S:g} s")
            else:
                self._watcher.later(_ASK_AGAIN_S, lambda: self._confirm(one, process, deadline_s))

    def _members(self, one: _Job) -> list[int]:
        if one.group.directories():
            return one.group.pids()
        return proctree.session_members(one.process.pid, self._root) if one.process else []

    def _give_way(self, one: _Job) -> bool:
        """Have a job let memcached go first where they meet, if it is to; True when it reads so."""
        return self._sharing is None or self._sharing.give(one.group, self._members(one))

    def _look(self, one: _Job, pid: int) -> JobSample:
        sample = self._sample(one, pid)
        if self._sharing is None:
            return sample
        idle = self._sharing.holds(one.group, pid)
        if not idle and (idle := self._give_way(one)):
            self._emit(one, JobEventKind.CHANGED, detail="its idle priority was taken by somebody else, put right")
        return replace(sample, idle=idle)

    def _sample(self, one: _Job, pid: int) -> JobSample:
        group = one.group
        cores = group.cores() if group.cpuset is not None else proctree.affinity(pid, self._root)
        paused = group.frozen() if group.freezer is not None else proctree.stopped(lambda: [pid], self._root)
        used_s = group.cpu_s() if group.usage is not None else proctree.cpu_s(pid, self._root)
        return JobSample(cores, paused, None if used_s is None else used_s - one.cpu_before_s)

    def _terminate(self, one: _Job) -> None:
        one.owed.clear()
        one.paused = False
        process = one.process
        proctree.signal_all(lambda: self._members(one), signal.SIGTERM)
        self._set_frozen(one)
        self._watcher.later(GRACE_S, lambda: self._kill(one, process))

    def _kill(self, one: _Job, process: subprocess.Popen[bytes] | None) -> None:
        with self._lock:
            if process is not None and one.process is process:
                proctree.kill_all(lambda: self._members(one), one.group, process.pid, 0.0)

    def _ended(self, one: _Job, process: subprocess.Popen[bytes]) -> None:
        """Its first process has ended: whatever that left behind goes with it, as in a container."""
        with self._lock:
            if one.process is not process:
                return
            started = one.running
            proctree.kill_all(lambda: self._members(one), one.group, process.pid, 0.02)
            code = process.wait()
            one.process, one.paused, one.stopping = None, False, False
            one.owed.clear()
            self._shut_gate(one)
            if one.pidfd is not None:
                self._watcher.forget(one.pidfd)
                one.pidfd = None
            if started:
                self._emit(one, JobEventKind.EXITED, code=code if code >= 0 else 128 - code)
            elif not one.starting:
                self._emit(one, JobEventKind.GONE, detail="ended before it was started")

    def _shut_gate(self, one: _Job) -> None:
        if one.gate is not None:
            os.close(one.gate)
            one.gate = None

    def _emit(
        self, one: _Job, kind: JobEventKind, *, code: int | None = None, detail: str = "", cores: CoreSet = frozenset()
    ) -> None:
        self._events.append(JobEvent(one.spec.name, kind, time.monotonic(), code, detail, cores))
        self._notify()
