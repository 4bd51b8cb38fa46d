"""This computer as a host: the sensors and the actuators put together."""

from __future__ import annotations

import os
import resource
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from colocate.cores import CoreSet
from colocate.errors import UserError
from colocate.host import procfs
from colocate.host.find import ServiceProcess, find_again
from colocate.host.latency import LatencySource
from colocate.host.memcached import PinError, ServiceAffinity
from colocate.host.monitor import ResourceMonitor
from colocate.host.runtime import Runtime
from colocate.host.sharing import Sharing
from colocate.host.statistics import Statistics
from colocate.jobs import JobSpec
from colocate.move import SERVICE, Move, MoveError, MoveKind, OnExit
from colocate.regulator import OverrunError
from colocate.view import CoreUse, JobSample, Observation, ServiceSample

# It takes a quarter of a second. On a slow machine, or where jobs at idle priority get no CPU even to end, better late
# than a container left behind.
_CLOSE_S = 30.0
_LOOK_S = 0.19  # the kernel's per-core counters tick every 10 ms, and a job's cpuset rarely changes behind our back


class Doorbell:
    """Ends a wait from another thread or a signal handler (an eventfd(2))."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def ring(self) -> None:
        """End the wait in progress, or the next one."""
        os.eventfd_write(self._fd, 1)

    def wait(self, seconds: float) -> None:
        """Return after that time, or when rung."""
        ready, _, _ = select.select([self._fd], [], [], max(0.0, seconds))
        if ready:
            os.eventfd_read(self._fd)


@dataclass(slots=True)
class Service:
    """Everything there is to one memcached: where it listens, who it is, how it is pinned and watched."""

    ip: str
    port: int
    affinity: ServiceAffinity
    statistics: Statistics
    latency: LatencySource


class LiveHost:
    """This computer.

    Args:
        service: memcached.
        runtime: runs the jobs.
        jobs: what each job is, by name.
        monitor: reads the kernel's figures.
        doorbell: rung by the runtime when something happens to a job.
        remember: called, on a worker thread, with the affinity of a memcached that was found anew, before it is
            changed. None is a dry run: look for real, but leave memcached alone (with a runtime that only pretends).
        sharing: gives jobs idle priority where they meet memcached, as proved; None where they must not meet.
    """

    def __init__(
        self,
        service: Service,
        runtime: Runtime,
        jobs: dict[str, JobSpec],
        monitor: ResourceMonitor,
        doorbell: Doorbell,
        *,
        remember: Callable[[ServiceAffinity], None] | None,
        sharing: Sharing | None = None,
    ) -> None:
        self._service = service
        self._runtime = runtime
        self._jobs = jobs
        self._monitor = monitor
        self._doorbell = doorbell
        self._remember = remember
        self._sharing = self._shared = sharing  # what is so now, what was made
        self._remarks: tuple[str, ...] = ()
        self._pretended: CoreSet = frozenset()
        self._cores: Mapping[int, CoreUse] = {}
        self._offline: CoreSet = frozenset()
        self._look_s = float("-inf")
        self._searching: threading.Thread | None = None
        self._closed = threading.Event()
        self.problems: list[str] = []
        self._unsaved, self._unsaved_why = False, ""  # whether what memcached had before us is not on disk
        self._timed = False
        self._limit_s, self._begin = 0.0, (0, 0.0, 0.0)
        self._main = threading.current_thread() is threading.main_thread()
        self._own = procfs.KeptFile("/proc/thread-self/schedstat")  # of the thread that decides
        if self._main:
            signal.signal(signal.SIGALRM, self._overrun)
        self._niceness = os.getpriority(os.PRIO_PROCESS, 0)
        _with_priority()

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    def observe(self) -> Observation:
        """One sample of everything; no call here waits for memcached, a daemon or a disk."""
        service = self._service
        alive = service.affinity.alive()
        if not alive:
            self._search()
        now_s = self.now()
        cpu_cores, wait_us, wait_cores = self._monitor.service(service.affinity.process.pid)
        statistics = service.statistics.sample()
        masks: frozenset[CoreSet] = frozenset()
        jobs: Mapping[str, JobSample] = {}
        if now_s >= self._look_s:  # what need not be seen at every tick
            self._look_s = now_s + _LOOK_S
            self._cores, self._offline = self._monitor.cores(), self._monitor.offline()
            jobs = self._runtime.look()
            if alive and self._remember is not None:
                masks = service.affinity.masks()
            self._still_shares(jobs, service.affinity)
            if self._unsaved:
                self._aside(self._save, "save-state")
        remarks, self._remarks = self._remarks, ()
        return Observation(
            time_s=now_s,
            cores=self._cores,
            service=ServiceSample(
                alive=alive,
                pid=service.affinity.process.pid,
                threads=statistics.threads,
                affinity=masks,
                cpu_cores=cpu_cores,
                wait_us=wait_us,
                wait_cores=wait_cores,
                qps=statistics.qps,
                latency_ms=service.latency.signal(),
                latency_source=service.latency.source,
                connections=statistics.connections,
            ),
            jobs=jobs,
            events=tuple(self._runtime.events()),
            remarks=remarks,
            can_share=self._sharing is not None,
            memory_available_bytes=self._monitor.memory_available_bytes(),
            cpu_pressure=self._monitor.cpu_pressure(),
            offline=self._offline,
        )

    def act(self, move: Move) -> bool:
        """Pin memcached, or hand the move to the runtime."""
        if move.target == SERVICE:
            self._pin(move.cores)
            return True
        match move.kind:
            case MoveKind.CREATE:
                self._runtime.create(self._jobs[move.target], move.threads, move.cores)
            case MoveKind.START:
                self._runtime.start(move.target, move.cores)
            case MoveKind.STOP:
                self._runtime.stop(move.target)
            case MoveKind.RESIZE:
                return self._runtime.resize(move.target, move.cores)
            case MoveKind.PAUSE:
                return self._runtime.pause(move.target)
            case MoveKind.RESUME:
                return self._runtime.resume(move.target)
            case _:
                raise MoveError(f"no job can {move.kind}")
        return False

    def wait(self, until_s: float) -> None:
        """Sleep until then, or until the doorbell rings."""
        self._doorbell.wait(until_s - self.now())

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Interrupt what it encloses by SIGALRM, again and again; outside the main thread, only find out afterwards.

        Time in which this thread waited for a core, or a hypervisor had taken the core away, does not count: a
        controller that is starved of CPU is no fault of the policy's. Asleep is not waiting.
        """
        self._limit_s, self._begin = seconds, self._progress()
        if self._main:
            self._timed = True
            signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
        try:
            yield
        finally:
            try:
                self._timed = False
            finally:  # also where the alarm went off at the very end
                if self._main:
                    signal.setitimer(signal.ITIMER_REAL, 0)
        if (took_s := self._took_s()) > seconds:  # it has caught what the alarm raises
            raise OverrunError(f"the decision took {took_s:.3f} s")

    def _overrun(self, _signal: int, _frame: FrameType | None) -> None:
        if not self._timed:
            return
        if (left_s := self._limit_s - self._took_s()) <= 0:
            raise OverrunError("the decision took longer than its deadline")
        signal.setitimer(signal.ITIMER_REAL, max(left_s, 1e-3), self._limit_s)

    def _progress(self) -> tuple[int, float, float]:
        """How often this thread has slept, its CPU time, and a clock that stands still while it waits for a core."""
        delay = procfs.run_delay(self._own.read())
        slept = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        return slept, time.thread_time(), self.now() - (delay[1] / 1e9 if delay else 0.0)

    def _took_s(self) -> float:
        """How long the decision has taken; of one that has never slept, its CPU time is the truth."""
        now = self._progress()
        by = 1 if now[0] == self._begin[0] else 2
        return now[by] - self._begin[by]

    def close(self, on_exit: OnExit) -> list[str]:
        """Memcached gets its cores back first, then the jobs end; idempotent."""
        if self._closed.is_set():
            return self.problems
        self._closed.set()
        try:
            self._put_back(on_exit)
        except BaseException as error:
            self.problems.append(f"not everything is put back: {error!r}")
            raise
        finally:
            with suppress(PermissionError):  # somebody may have made it nicer meanwhile
                os.setpriority(os.PRIO_PROCESS, 0, self._niceness)
        self.problems += [self._unsaved_why] if self._unsaved_why else []
        self._service.statistics.stop()
        self._service.latency.stop()
        self._monitor.close()
        self._own.close()
        if self._searching is not None:
            self._searching.join(timeout=1.0)
        return self.problems

    def _put_back(self, on_exit: OnExit) -> None:
        if self._remember is not None:
            try:
                self._service.affinity.restore()
            except PinError as error:
                self.problems.append(f"memcached's affinity is not restored: {error}")
        self.problems += self._runtime.close(on_exit, _CLOSE_S)
        if self._shared is not None:
            left = self._shared.close(wait_s=_CLOSE_S if on_exit == "stop" else 0.0)
            self.problems += left if on_exit == "stop" else []

    def _still_shares(self, jobs: Mapping[str, JobSample], service: ServiceAffinity) -> None:
        """Share no more where a job has lost its idle priority for good, or it has no effect any more."""
        if self._sharing is None:
            return
        lost = [name for name, sample in jobs.items() if sample.idle is False]
        if lost:
            self._share_no_more(f"{lost[0]} has not kept its idle priority")
        elif service.alive() and not self._sharing.fits(service.process.pid) and service.alive():
            self._share_no_more("memcached or the jobs stand in another control group now")

    def _share_no_more(self, why: str) -> None:
        self._sharing = None
        self._remarks += (f"memcached's cores are not shared any more: {why}",)

    def _pin(self, cores: CoreSet) -> None:
        if self._remember is None:
            self._pretended = cores
            return
        try:
            self._service.affinity.pin(cores)
        except PinError as error:
            raise MoveError(str(error)) from error

    def _search(self) -> None:
        """Look for a restarted memcached on a thread of its own."""
        self._aside(self._find_again, "find-memcached")

    def _aside(self, what: Callable[[], None], name: str) -> None:
        """Do what may wait for a disk or for others on a thread of its own, one at a time."""
        if self._searching is not None and self._searching.is_alive():
            return
        thread = threading.Thread(target=what, name=name, daemon=True)
        with suppress(RuntimeError):  # no thread can be had now: at a later tick
            thread.start()
            self._searching = thread

    def _find_again(self) -> None:
        found: ServiceProcess | None = find_again(self._service.ip, self._service.port, self._closed)
        if found is None or self._closed.is_set():
            return
        affinity = ServiceAffinity(found)
        if not affinity.original:  # it has ended again, or cannot be looked at now: what was before must be known
            return
        self._service.affinity = affinity
        self._unsaved = self._remember is not None
        self._save()
        self._look_s = float("-inf")  # whether sharing still has an effect, at the next tick
        self._doorbell.ring()

    def _save(self) -> None:
        """Have on disk what memcached had before us; where the disk takes nothing, it is pinned all the same."""
        if self._unsaved and self._remember is not None:
            try:
                self._remember(self._service.affinity)
            except UserError as error:
                self._unsaved_why = str(error)
            else:
                self._unsaved, self._unsaved_why = False, ""


def _with_priority() -> None:
    """Go before the batch jobs where that is permitted: a controller that waits for a core reacts late."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
