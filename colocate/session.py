"""One run on this machine, from checked settings to its ending: puts host, controller and log together.

Everything that can be wrong with the settings is found before anything is touched.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

from colocate.controller import Controller
from colocate.cores import CoreSet
from colocate.errors import UserError
from colocate.eventlog import SchedulerLogger
from colocate.host.containers import ContainerRuntime
from colocate.host.latency import LatencySource, Probe, Reported
from colocate.host.live import Doorbell, LiveHost, Service
from colocate.host.memcached import ServiceAffinity, find, local_address
from colocate.host.monitor import ResourceMonitor
from colocate.host.pretend import PretendRuntime
from colocate.host.processes import ProcessRuntime
from colocate.host.restore import restore
from colocate.host.runtime import Progress, Runtime
from colocate.host.state import Lock, Saved, StateFile, boot_id, default_directory, default_lock
from colocate.host.statistics import Statistics
from colocate.jobs import load_catalogue
from colocate.loop import Ending, run
from colocate.metrics import MetricsWriter, metrics_path
from colocate.move import OnExit
from colocate.policy import load_policy
from colocate.regulator import Limits
from colocate.topology import read_topology
from colocate.view import Slo

_FIRST_S = 2.0  # memcached answers within that, or it is asked again by and by

RuntimeName = Literal["docker", "process"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a user can choose for a run; the defaults are those of `colocate run`."""

    memcached_ip: str
    port: int = 11211
    memcached_pid: int | None = None
    policy: str = "reactive"
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


@dataclass(slots=True)
class Session:
    """A run that is ready to begin.

    Attributes:
        host: this machine.
        controller: decides.
        log: the event log, its first line written.
        metrics: one record a tick, beside the log.
        log_path: where the log lies.
    """

    settings: Settings
    host: LiveHost
    controller: Controller
    log: SchedulerLogger
    metrics: MetricsWriter
    doorbell: Doorbell

    @property
    def log_path(self) -> Path:
        """Where the log lies."""
        return self.log.path

    def run(self, show: Callable[[Controller], None] | None = None) -> Ending:
        """Run to the end; SIGINT, SIGTERM and SIGHUP end it in order."""
        with _signals(self.doorbell) as interrupted:
            return run(
                self.host,
                self.controller,
                self.log,
                period_s=self.settings.period_s,
                metrics=self.metrics,
                duration_s=self.settings.duration_s,
                once=self.settings.once,
                on_exit=self.settings.on_exit,
                interrupted=interrupted,
                show=show,
            )


@contextmanager
def session(settings: Settings, progress: Progress = lambda _what, _share: None) -> Iterator[Session]:
    """Check everything, make images ready, and hold the machine's lock until the end.

    Raises:
        UserError: something is wrong; then nothing has been touched.
    """
    jobs = load_catalogue(settings.jobs)
    policy = load_policy(settings.policy, settings.options)
    topology = read_topology()
    topology = topology.only(settings.cores) if settings.cores else topology
    ip = local_address(settings.memcached_ip)
    affinity = ServiceAffinity(find(ip, settings.port, pid=settings.memcached_pid))
    if not settings.dry_run:
        affinity.may_pin()
    _check_writable(settings.log_dir)
    _check_latency_file(settings.latency_from)

    lock = Lock(settings.state_dir / "lock" if settings.state_dir else default_lock())
    lock.acquire()
    try:
        state = StateFile(settings.state_dir or default_directory())
        if not settings.dry_run and (saved := state.read()) is not None:
            done, failed = restore(saved)
            for line in (*done, *failed):
                sys.stderr.write(f"colocate: left by an earlier run: {line}\n")
            state.clear()
            affinity = ServiceAffinity(affinity.process)  # what was there before us, not what a killed run left
        runtime = _runtime(settings, run_id := secrets.token_hex(4), doorbell := Doorbell())
        runtime.prepare(jobs, progress)

        def remember(of: ServiceAffinity) -> None:
            processes = runtime.processes() if isinstance(runtime, ProcessRuntime) else {}
            state.write(Saved(run_id, boot_id(), runtime.name, of.to_json(), processes))

        statistics = Statistics(ip, settings.port)
        statistics.first(_FIRST_S)
        host = LiveHost(
            Service(ip, settings.port, affinity, statistics, _latency_source(settings, ip)),
            runtime,
            {spec.name: spec for spec in jobs},
            ResourceMonitor(topology.cores),
            doorbell,
            remember=None if settings.dry_run else remember,
        )
        try:
            controller = Controller(
                jobs, policy, topology, host.deadline, slo=settings.slo, limits=Limits(), retries=settings.retries
            )
            log = SchedulerLogger(settings.log_dir)
            if not settings.dry_run:
                remember(affinity)
            yield Session(settings, host, controller, log, MetricsWriter(metrics_path(log.path)), doorbell)
        finally:
            if not host.close(settings.on_exit) and not settings.dry_run:
                state.clear()
    finally:
        lock.release()


def _runtime(settings: Settings, run_id: str, doorbell: Doorbell) -> Runtime:
    if settings.dry_run:
        return PretendRuntime(doorbell.ring)
    if settings.runtime == "docker":
        return ContainerRuntime(run_id, doorbell.ring)
    return ProcessRuntime(run_id, doorbell.ring)


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


@contextmanager
def _signals(doorbell: Doorbell) -> Iterator[Callable[[], int]]:
    """Note the first of SIGINT, SIGTERM, SIGHUP; put the handlers back at the end."""
    got: list[int] = []

    def handler(number: int, _frame: FrameType | None) -> None:
        if got:
            sys.stderr.write("colocate: already ending: jobs and cores are being put back\n")
        got.append(number)
        doorbell.ring()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [(number, signal.signal(number, handler)) for number in numbers]
    try:
        yield lambda: got[0] if got else 0
    finally:
        for number, old in before:
            signal.signal(number, old)
