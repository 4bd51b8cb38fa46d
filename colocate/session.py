"""One run on this machine, from checked settings to its ending: puts host, controller and log together.

Everything that can be wrong with the settings is found before anything is touched.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from colocate import mcperf
from colocate.controller import Controller
from colocate.cores import CoreSet, format_ranges
from colocate.errors import UserError
from colocate.eventlog import SchedulerLogger, parse
from colocate.host.cgroup import JobCgroup
from colocate.host.find import find, local_address
from colocate.host.guard import LOG as GUARD_LOG
from colocate.host.guard import Guard, is_guard
from colocate.host.latency import LatencySource, Probe, Reported
from colocate.host.live import Doorbell, LiveHost, Service
from colocate.host.lock import Lock, lock_for
from colocate.host.memcached import ServiceAffinity
from colocate.host.monitor import ResourceMonitor
from colocate.host.notify import Notifier
from colocate.host.pretend import PretendRuntime
from colocate.host.processes import ProcessRuntime
from colocate.host.restore import restore
from colocate.host.runtime import Progress, Runtime
from colocate.host.sharing import Sharing
from colocate.host.sharing_proof import Verdict, arrange
from colocate.host.state import Saved, StateFile, boot_id, default_directory
from colocate.host.statistics import Statistics
from colocate.jobs import JobState, load_catalogue
from colocate.loop import Ending, run
from colocate.metrics import MetricsWriter, first_record, metrics_path, read
from colocate.move import OnExit
from colocate.policy import choose
from colocate.regulator import Limits
from colocate.report.grade import Interval, grade, probed_intervals, reported_intervals
from colocate.report.summary import Summary, deciders, policy_faults, summarize
from colocate.signals import signals
from colocate.status import Watch
from colocate.swap import controlled
from colocate.topology import Topology, read_topology
from colocate.view import Slo

if TYPE_CHECKING:
    from colocate.sim.calibration import Calibration

_MEASURED = Path("this-machine.toml")  # what `colocate calibrate` has written in the working directory
_GUARD_S = 10.0  # a guard takes a second or two, longer where the engine is slow
_FIRST_S = 2.0  # memcached answers within that, or it is asked again by and by

RuntimeName = Literal["docker", "process"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a user can choose for a run; the defaults are those of `colocate run`."""

    memcached_ip: str
    port: int = 11211
    memcached_pid: int | None = None
    policy: str = "share"
    options: tuple[str, ...] = ()
    jobs: str = "demo"
    cores: CoreSet | None = None
    period_s: float = 0.05
    slo: Slo = field(default_factory=Slo)
    duration_s: float | None = None
    log_dir: Path = Path("logs")
    runtime: RuntimeName = "docker"
    dry_run: bool = False
    on_exit: OnExit = "stop"
    once: bool = False
    retries: int = 1
    latency_from: Path | None = None
    probe_hz: float | None = None
    state_dir: Path | None = None
    shadow: str | None = None
    shadow_options: tuple[str, ...] = ()
    share: bool = True
    guard: bool = True


@dataclass(slots=True)
class Session:
    """A run that is ready to begin.

    Attributes:
        host: this machine.
        controller: decides.
        log: the event log, its first line written.
        metrics: one record a tick, beside the log.
        sharing: whether jobs may share memcached's cores at idle priority, and how that was proved.
        run_id: as it stands in the labels of the run's containers.
        until_end: closed once everything is put back, the guard has ended and the lock is free.
        guard: puts everything back if this process is killed.
        begin_s: when it began, seconds since the epoch.
    """

    settings: Settings
    host: LiveHost
    controller: Controller
    log: SchedulerLogger
    metrics: MetricsWriter
    doorbell: Doorbell
    sharing: Verdict
    run_id: str
    until_end: ExitStack
    guard: Guard | None = None
    begin_s: float = 0.0

    def run(self, show: Callable[[Controller], None] | None = None) -> Ending:
        """Run to the end; SIGINT, SIGTERM and SIGHUP end it in order."""
        self.begin_s = time.time()
        settings, ring = self.settings, self.doorbell.ring
        state_dir = None if settings.dry_run else settings.state_dir or default_directory()
        watch = Watch(self.controller, {
            "run": self.run_id,
            "log": str(self.log.path.absolute()),
            "since": self.log.now().isoformat(timespec="seconds"),
            "guard": lambda: self.guard.pid if self.guard else None,
        })  # fmt: skip

        def shown(controller: Controller) -> None:
            watch.show(controller)
            manager.alive(self.host.now(), watch.line)
            if self.guard is not None and (said := self.guard.keep()):
                sys.stderr.write(f"colocate: warning: {said}\n")
            if show is not None:
                show(controller)

        interrupted = self.until_end.enter_context(signals(ring))
        with (
            closing(Notifier()) as manager,
            controlled(state_dir, self.controller, ring, watch.handlers()) as take,
        ):
            return run(
                self.host,
                self.controller,
                self.log,
                period_s=settings.period_s,
                metrics=self.metrics,
                duration_s=settings.duration_s,
                once=settings.once,
                on_exit=settings.on_exit,
                interrupted=interrupted,
                show=shown,
                before=take,
                ending=manager.stopping,
            )

    def summary(self, ending: Ending, load: Path | None = None) -> Summary:
        """What came of a run that has ended; `load` is the load generator's output, where there is one."""
        settings, slo = self.settings, self.settings.slo
        load = load or settings.latency_from
        intervals, source = self._intervals(load)
        log = parse(self.log.path.read_text(encoding="utf-8"))
        jobs = self.controller.jobs.values()
        return summarize(
            grade(log, intervals, slo.latency_ms),
            {j.name: {"state": str(j.state), "retries": j.retries, "threads": j.threads} for j in jobs},
            log=str(self.log.path),
            mcperf=str(load) if load else None,
            source="live",
            dry_run=settings.dry_run,
            policy=settings.policy,
            cores=sorted(self.controller.managed.cores),
            slo_ms=slo.latency_ms,
            percentile=slo.percentile,
            exit_code=self._exit_code(ending),
            metrics=str(self.metrics.path),
            latency_source=source,
            warnings=(*ending.problems, *policy_faults(self.controller)),
            **deciders(self.controller),
        )

    def _intervals(self, load: Path | None) -> tuple[list[Interval], str | None]:
        if load is not None and load.is_file():
            reported = reported_intervals(mcperf.parse(load.read_text(errors="replace")), self.settings.slo.percentile)
            if any(interval.latency_ms is not None for interval in reported):
                return reported, "mcperf"
        probed = probed_intervals(read(self.metrics.path), self.begin_s) if self.metrics.path.exists() else []
        return probed, "probe" if probed else None

    def _exit_code(self, ending: Ending) -> int:
        if ending.why == "interrupted" and not ending.problems:
            return 128 + ending.signal
        if ending.problems or any(job.state is JobState.FAILED for job in self.controller.jobs.values()):
            return 1
        if ending.why == "duration":
            return 3
        stopped = any(job.state is JobState.STOPPED for job in self.controller.jobs.values())
        return 1 if stopped and ending.why == "done" else 0


@contextmanager
def session(settings: Settings, progress: Progress = lambda _what, _share: None) -> Iterator[Session]:
    """Check everything, make images ready, and hold the machine's lock until the end.

    Raises:
        UserError: something is wrong; then nothing has been touched.
    """
    calibration = _measured()
    jobs = load_catalogue(settings.jobs)
    if calibration is not None:
        jobs = calibration.informed(jobs)
    policy = choose(settings.policy, settings.options)
    shadow = choose(settings.shadow, settings.shadow_options) if settings.shadow else None
    ip = local_address(settings.memcached_ip)
    affinity = ServiceAffinity(find(ip, settings.port, pid=settings.memcached_pid))
    topology = _managed(settings.cores, affinity.process.pid)
    if not settings.dry_run:
        affinity.may_pin()
    _check_writable(settings.log_dir)
    _check_latency_file(settings.latency_from)

    state = StateFile(settings.state_dir or default_directory())
    lock = lock_for(settings.state_dir, settings.port)
    guard: Guard | None = None
    until_end = ExitStack()
    if not settings.dry_run:
        _take(lock)
    try:
        if not settings.dry_run and (left := state.read()) is not None:
            if left.port not in (None, settings.port):
                lock.claim_port(left.port)
            done, failed = restore(left)
            for line in done:
                sys.stderr.write(f"colocate: left by an earlier run: {line}\n")
            if failed:
                raise UserError(f"an earlier run is not put back: {failed[0]}", "mend that, or see `colocate restore`")
            state.clear()
        affinity = ServiceAffinity(affinity.process)  # as it is now that nobody else is at it
        doorbell = Doorbell()
        saved = Saved(secrets.token_hex(4), boot_id(), settings.runtime, "", affinity.to_json(), port=settings.port)
        if not settings.dry_run:
            lock.claim_run(saved.run)
        guard = _guard(settings, state.path.parent, lock.path, saved.run)

        def save(changed: Saved) -> None:
            nonlocal saved
            saved = changed
            state.write(saved)

        def remember(of: ServiceAffinity) -> None:
            save(replace(saved, service=of.to_json()))

        def remember_groups(groups: tuple[str, ...]) -> None:
            save(replace(saved, groups=groups))

        sharing = None
        try:
            sharing, verdict = _sharing(settings, (ip, settings.port), affinity, saved.run, topology, remember_groups)
            runtime = _runtime(settings, saved.run, doorbell, sharing)
            runtime.prepare(jobs, progress)
            statistics = Statistics(ip, settings.port)
            statistics.first(_FIRST_S)
            host = LiveHost(
                Service(ip, settings.port, affinity, statistics, _latency_source(settings, ip)),
                runtime,
                {spec.name: spec for spec in jobs},
                ResourceMonitor(topology.cores),
                doorbell,
                remember=None if settings.dry_run else remember,
                sharing=sharing,
            )
        except BaseException:
            if sharing is not None:
                sharing.close()
            if not settings.dry_run:
                state.clear()
            raise
        log: SchedulerLogger | None = None
        try:
            known = None
            if calibration is not None:
                from colocate.sim.profile import profile

                threads = statistics.sample().threads or calibration.scenario.memcached_threads
                known = profile(calibration.service, threads, settings.slo.percentile, len(topology.cores))
            controller = Controller(
                jobs, policy.policy, topology, host.deadline, slo=settings.slo, limits=Limits(),
                retries=settings.retries, profile=known, label=policy.label, shadow=shadow,
            )  # fmt: skip
            log = SchedulerLogger(settings.log_dir)
            log.custom_event("scheduler", str(verdict))
            if not settings.dry_run:
                save(replace(saved, log=str(log.path.absolute())))
            metrics = MetricsWriter(metrics_path(log.path))
            metrics.write(first_record("live", asdict(settings), topology.cores, settings.slo, sharing=asdict(verdict)))
            if guard is not None and guard.pid is None:
                sys.stderr.write(f"colocate: warning: no guard: it has died; see {state.path.parent / GUARD_LOG}\n")
            yield Session(settings, host, controller, log, metrics, doorbell, verdict, saved.run, until_end, guard)
        finally:
            problems = host.close(settings.on_exit)
            if log is not None and not log.ended:  # interrupted before it began
                log.end()
            if not settings.dry_run:
                if not problems:
                    state.clear()
                elif settings.on_exit != "stop":  # what is still to be put back is not the jobs
                    save(replace(saved, keeps_jobs=True))
    finally:
        if guard is not None:
            guard.end(all_is_back=not state.path.exists())
        lock.release()
        until_end.close()


def _take(lock: Lock) -> None:
    """Take the lock; a guard that has it is putting a killed run back, and is waited for.

    Raises:
        UserError: see `Lock.acquire`.
    """
    end_s = time.monotonic() + _GUARD_S
    while True:
        try:
            return lock.acquire()
        except UserError:
            holder = lock.holder()  # None: just gone
            if time.monotonic() > end_s or (holder is not None and not is_guard(holder)):
                raise
        time.sleep(_GUARD_S / 200)


def _measured() -> Calibration | None:
    """What `colocate calibrate` has found of this machine, if it has; without, nothing of the model is loaded."""
    if not _MEASURED.is_file():
        return None
    from colocate.sim.calibration import load_calibration

    return load_calibration(_MEASURED.stem)


def _guard(settings: Settings, directory: Path, lock: Path, run: str) -> Guard | None:
    """What puts everything back if we are killed; a warning where it cannot be."""
    if settings.dry_run or not settings.guard:
        return None
    try:
        return Guard(directory, lock, run, settings.runtime)
    except OSError as error:
        sys.stderr.write(f"colocate: warning: no guard: {error}; after a kill -9, see `colocate restore`\n")
        return None


def _sharing(
    settings: Settings, address: tuple[str, int], service: ServiceAffinity, run_id: str, topology: Topology,
    remember: Callable[[tuple[str, ...]], None],
) -> tuple[Sharing | None, Verdict]:  # fmt: skip
    """What gives jobs idle priority beside memcached, and whether that is proved; one warning where it is not."""
    if not settings.share:
        return None, Verdict(works=False, why="--no-share")
    if settings.dry_run:
        return None, Verdict(works=False, why="a dry run touches nothing, so it is not tried")
    pid, cores = service.process.pid, topology.cores
    sharing, verdict = arrange(pid, address, settings.runtime, run_id, cores, remember)
    if sharing is None:
        sys.stderr.write(f"colocate: warning: {verdict}\n")
    return sharing, verdict


def _managed(wanted: CoreSet | None, pid: int) -> Topology:
    """The cores to share out: those asked for, else all that memcached's cpuset allows.

    Raises:
        UserError: one is not there, or there are fewer than two.
    """
    topology = read_topology()
    if wanted is None:
        group = JobCgroup.of(pid)
        allowed = group.cores()
        group.close()
        wanted = topology.cores & allowed if allowed else topology.cores
    topology = topology.only(wanted)
    if len(topology.cores) < 2:
        raise UserError(f"one core, {format_ranges(topology.cores)}, cannot be shared out", "give --cores two or more")
    return topology


def _runtime(settings: Settings, run_id: str, doorbell: Doorbell, sharing: Sharing | None) -> Runtime:
    if settings.dry_run:
        return PretendRuntime(doorbell.ring)
    if settings.runtime == "docker":
        from colocate.host.containers import ContainerRuntime  # Docker's client takes long to load

        return ContainerRuntime(run_id, doorbell.ring, sharing=sharing)
    return ProcessRuntime(run_id, doorbell.ring, sharing=sharing)


def _latency_source(settings: Settings, ip: str) -> LatencySource:
    if settings.latency_from is not None:
        return Reported(settings.latency_from, settings.slo.percentile)
    if settings.probe_hz is not None:
        return Probe(ip, settings.port, rate_hz=settings.probe_hz, percentile=settings.slo.percentile)
    return Probe(ip, settings.port, percentile=settings.slo.percentile)


def _check_writable(directory: Path) -> None:
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"--log-dir {directory}: cannot be written", "give a directory of your own")


def _check_latency_file(path: Path | None) -> None:
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise UserError(f"--latency-from {path}: no such file", "give the file that mcperf or colocate load writes")
