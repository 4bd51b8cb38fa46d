"""Measures this machine for the simulated host: memcached under load, each job alone, moves as they really take.

What will be done is planned first, so that its time is known before anything is touched. Whatever happens, memcached's
affinity, its data and the containers are put back.
"""

from __future__ import annotations

import secrets
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pymemcache.client.base import Client  # type: ignore[import-untyped]  # it ships no types

from colocate.calibration_text import Measured, calibration_text
from colocate.cores import CoreSet, format_ranges
from colocate.errors import UserError
from colocate.host.containers import ContainerRuntime
from colocate.host.find import find, local_address
from colocate.host.lock import lock_for
from colocate.host.memcached import ServiceAffinity
from colocate.host.monitor import ResourceMonitor
from colocate.host.processes import ProcessRuntime
from colocate.host.runtime import Progress, Runtime
from colocate.host.state import Saved, StateFile, boot_id, default_directory
from colocate.host.statistics import Statistics
from colocate.host.trial import Trials
from colocate.jobs import JobSpec, load_catalogue
from colocate.load.curves import Beside, Scan
from colocate.load.generator import Load, capacity_qps, load_records
from colocate.load.scan import STEP_S, Point, Target, climb, measure
from colocate.session import RuntimeName
from colocate.sim.service import LOADS
from colocate.topology import Topology, read_topology

_BUSY_QPS = 20.0
_ANSWER_S = 10.0
_QUIET_CORES = 0.15  # what a machine may do beside and still count as quiet
_UNKNOWN_S = 60.0  # a job whose catalogue tells no run time
_FEW_LOADS = (0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 1.0)
_LIGHT, _HALF = 0.15, 0.5  # shares of the capacity at which neighbours are tried
_START_S, _CLIMB_S, _MOVES_S = 0.6, 8 * STEP_S, 14.0
_MOVES, _NOTICES = 20, 5
_CLOSE_S = 30.0


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """What a user can choose."""

    memcached_ip: str
    port: int = 11211
    memcached_pid: int | None = None
    jobs: str = "demo"
    runtime: RuntimeName = "docker"
    quick: bool = False
    repeat: int | None = None
    busy_anyway: bool = False
    state_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be measured, and how long that takes in seconds.

    Attributes:
        widths: memcached's core counts.
        loads: shares of its capacity.
        repetitions: of each load and each job.
        runs: each job's (threads, cores).
        unknown: jobs whose catalogue tells no run time; they are taken as a minute a run.
    """

    widths: tuple[int, ...]
    loads: tuple[float, ...]
    repetitions: int
    interval_s: float
    runs: Mapping[str, tuple[tuple[int, int], ...]]
    service_s: float
    jobs_s: float
    unknown: tuple[str, ...]

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.service_s + self.jobs_s + _MOVES_S

    def told(self) -> str:
        """One line for whoever waits."""
        count = sum(map(len, self.runs.values())) * self.repetitions
        unknown = f" (run time unknown, taken as {_UNKNOWN_S:g} s: {', '.join(self.unknown)})" if self.unknown else ""
        return (
            f"about {max(1, round(self.total_s / 60))} min: memcached on {format_ranges(frozenset(self.widths))} cores "
            f"under {len(self.loads)} loads {self.service_s:.0f} s, {count} runs of jobs {self.jobs_s:.0f} s{unknown}, "
            f"moves {_MOVES_S:.0f} s"
        )


def plan(jobs: Sequence[JobSpec], cores: int, threads: int, *, quick: bool, repeat: int | None = None) -> Plan:
    """What to measure on a machine of so many cores with so many threads of memcached."""
    repetitions, interval_s = (1, 1.0) if quick else (2, 2.0)
    repetitions = repeat or repetitions
    loads = _FEW_LOADS if quick else LOADS
    widths = tuple(range(1, min(threads, cores) + 1))
    runs = {job.name: _runs(job, cores, quick=quick) for job in jobs}
    known = {job.name: sum(_expected_s(job, *run) for run in runs[job.name]) for job in jobs}
    neighbours_s = (len(jobs) + 2) * (3 * interval_s + 2 * _START_S)
    return Plan(
        widths=widths,
        loads=loads,
        repetitions=repetitions,
        interval_s=interval_s,
        runs=runs,
        service_s=len(widths) * (_CLIMB_S + (len(loads) * repetitions + 1) * interval_s) + neighbours_s + _CLIMB_S,
        jobs_s=repetitions * sum(known.values()) + repetitions * _START_S * sum(map(len, runs.values())),
        unknown=tuple(job.name for job in jobs if not job.runtime_s),
    )


def _runs(job: JobSpec, cores: int, *, quick: bool) -> tuple[tuple[int, int], ...]:
    """(threads, cores): one thread alone, a thread a core, and all its threads on one core."""
    widths = (1, cores) if quick else range(1, cores + 1)
    crowded = ((job.threads, 1),) if job.threads > 1 else ()
    return (*((width, width) for width in widths), *crowded)


def _expected_s(job: JobSpec, threads: int, cores: int) -> float:
    if not job.runtime_s:
        return _UNKNOWN_S
    width = min(threads, cores)
    return job.runtime_s.get(width) or job.runtime_s[min(job.runtime_s)] * min(job.runtime_s) / width


@dataclass(slots=True)
class Calibrator:
    """A calibration that is ready to begin; from `calibrator`.

    Attributes:
        plan: what it will do.
        warnings: what was odd so far, one line each.
    """

    plan: Plan
    warnings: list[str]
    settings: CalibrationSettings
    jobs: tuple[JobSpec, ...]
    topology: Topology
    service: ServiceAffinity
    target: Target
    trials: Trials
    monitor: ResourceMonitor
    _done_s: float = field(default=0.0)
    _report: Progress = field(default=lambda _what, _share: None)

    def run(self, report: Progress) -> str:
        """Measure all of it; the calibration file's text.

        Raises:
            UserError, FailedError, PinError, TrialError: it could not be measured to the end.
        """
        self._report = report
        begun = datetime.now(UTC)
        load_records(Load(self.target.ip, self.target.port))
        try:
            closed_qps = capacity_qps(self.target.ip, self.target.port)
            scans = {width: self._scan(width, closed_qps) for width in self.plan.widths}
            beside, idle, full, full_capacity = self._neighbours(scans[1])
        finally:
            self.service.restore()
            _forget_records(self.target)
        runs = self._time_jobs()
        self._time_moves()
        return calibration_text(
            Measured(
                catalogue=self.settings.jobs,
                host=socket.gethostname(),
                begun=begun,
                quick=self.settings.quick,
                topology=self.topology,
                threads=self.target.threads,
                closed_qps=closed_qps,
                scans=scans,
                shared_with_generator=max(scans) == len(self.topology.cores),
                beside=beside,
                shared_idle=idle,
                shared_full=full,
                shared_full_capacity=full_capacity,
                runs=runs,
                moves=self.trials.moves,
                warnings=tuple(self.warnings),
            )
        )

    def _tick(self, seconds: float) -> None:
        self._done_s += seconds
        self._report("calibrating", min(0.99, self._done_s / self.plan.total_s))

    @contextmanager
    def _watching(self, what: str) -> Iterator[list[float]]:
        """Warn where other programs ran meanwhile; the block appends how many cores were busy for its own sake."""
        explained: list[float] = []
        self.monitor.cores()
        yield explained
        others = sum(use.busy + use.steal for use in self.monitor.cores().values()) - sum(explained)
        if others > _QUIET_CORES:
            self.warnings.append(f"{what}: other programs kept {others:.1f} cores busy meanwhile")

    def _narrow(self, width: int) -> CoreSet:
        """Memcached's cores: the lowest, so that the generator's is the last to be shared."""
        return frozenset(sorted(self.topology.cores)[:width])

    def _scan(self, width: int, closed_qps: float) -> Scan:
        self.service.pin(self._narrow(width))
        capacities: list[float] = []
        for _ in range(self.plan.repetitions):
            tried, at_its_end = climb(self.target, 0.7 * closed_qps * width**0.5, self._tick)
            kept = [point.qps for point in tried if point.kept_up and not point.late]
            capacities.append(max(kept, default=0.5 * closed_qps))
            if at_its_end or not kept:
                self.warnings.append(
                    f"{width} cores: the load generator was at its end at {tried[-1].target_qps:,} QPS: memcached may "
                    "carry more"
                )
        capacity = statistics.median(capacities)
        targets = [round(share * capacity) for share in self.plan.loads]
        points: list[Point] = []
        with self._watching(f"memcached on {width} cores") as explained:
            for _ in range(self.plan.repetitions):  # clients of its own each: the last load's backlog goes with them
                points += measure(self.target, targets, self.plan.interval_s, self._tick)
            explained.append(statistics.fmean(point.cpu_cores + point.generator_cores for point in points))
        good = [point for point in points if not point.late and point.others_cores < _QUIET_CORES]
        if late := len(points) - len(good):
            self.warnings.append(
                f"{width} cores: {late} of {len(points)} points dropped: the generator was late, or others were busy"
            )
        if len({point.target_qps for point in good}) < 2:
            raise UserError(
                f"memcached on {width} cores: the load generator was late, or others were busy, at nearly every load",
                "is the machine busy with other things? run it where nothing else does",
            )
        return Scan(self.target.threads, width, capacities, good, late)

    def _neighbours(self, scan: Scan) -> tuple[list[Beside], list[Beside], list[Beside], float]:
        """Memcached on one core beside jobs on the others; with a job, and with full weight, on its own."""
        self.service.pin(self._narrow(1))
        capacity = statistics.median(scan.capacity_qps)
        targets = [round(_LIGHT * capacity), round(_HALF * capacity)]
        others = self.topology.cores - self._narrow(1)

        def pairs() -> list[Beside]:
            after = measure(self.target, targets, self.plan.interval_s, self._tick)
            both = [Beside(a, b, max(0.1, len(others) - b.generator_cores)) for a, b in zip(calm, after, strict=True)]
            return [pair for pair in both if not pair.calm.late and not pair.disturbed.late]

        calm = measure(self.target, targets, self.plan.interval_s, self._tick)
        beside: list[Beside] = []
        for job in self.jobs:
            with self.trials.running(job, job.threads, others):
                beside += pairs()
        with self.trials.running(self.jobs[0], 1, self._narrow(1)):
            idle = pairs()
        with _spinning(self._narrow(1)):
            full = pairs()
            tried, _ = climb(self.target, 0.25 * capacity, self._tick)
        if not beside or not idle or not full:
            raise UserError("the load generator was late beside every job", "run it where nothing else does")
        kept = max((point.qps for point in tried if point.kept_up), default=0.25 * capacity)
        return beside, idle, full, min(1.0, kept / capacity)

    def _time_jobs(self) -> dict[str, dict[tuple[int, int], list[float]]]:
        """Seconds by job, threads and cores."""
        found: dict[str, dict[tuple[int, int], list[float]]] = {}
        for _ in range(self.plan.repetitions):
            for job in self.jobs:
                for threads, width in self.plan.runs[job.name]:
                    with self._watching(f"{job.name} on {width} cores") as explained:
                        seconds = self.trials.run(job, threads, _apart(self.topology, width), self._tick)
                        explained.append(min(threads, width))
                    found.setdefault(job.name, {}).setdefault((threads, width), []).append(seconds)
        return found

    def _time_moves(self) -> None:
        cores = self.topology.cores
        longest = max(self.jobs, key=lambda job: statistics.fmean(job.runtime_s.values() or [_UNKNOWN_S]))
        self.trials.time_moves(longest, cores, frozenset({max(cores)}), _MOVES)
        for _ in range(_NOTICES):
            self.trials.time_notice(longest, frozenset({max(cores)}))
        self.trials.time_pins(self.service, cores, self._narrow(1), 2 * _MOVES)


@contextmanager
def calibrator(settings: CalibrationSettings, progress: Progress = lambda _what, _share: None) -> Iterator[Calibrator]:
    """Check everything, make images ready, hold the machine's lock; put everything back at the end.

    Raises:
        UserError: something is wrong; then nothing has been touched.
    """
    jobs = load_catalogue(settings.jobs)
    ip = local_address(settings.memcached_ip)
    service = ServiceAffinity(find(ip, settings.port, pid=settings.memcached_pid))
    service.may_pin()
    topology = read_topology()
    if len(topology.cores) < 2:
        raise UserError("one core: there is none for the load generator", "calibrate a machine with two or more")
    lock = lock_for(settings.state_dir, settings.port)
    lock.acquire()
    try:
        service = ServiceAffinity(service.process)  # as it is now that nobody else is at it
        state = StateFile(settings.state_dir or default_directory())
        if state.read() is not None:
            raise UserError("an earlier run is not put back", "run `colocate restore` first")
        threads, warnings = _quiet(ip, settings, topology.cores)
        rung = threading.Event()
        run_id = secrets.token_hex(4)
        lock.claim_run(run_id)
        kind: Callable[[str, Callable[[], None]], Runtime]
        kind = ContainerRuntime if settings.runtime == "docker" else ProcessRuntime
        runtime, monitor = kind(run_id, rung.set), ResourceMonitor(topology.cores)
        try:
            runtime.prepare(jobs, progress)
            state.write(Saved(run_id, boot_id(), runtime.name, "", service.to_json(), port=settings.port))
            target = Target(ip, settings.port, service.process.pid, threads, max(topology.cores))
            todo = plan(jobs, len(topology.cores), threads, quick=settings.quick, repeat=settings.repeat)
            yield Calibrator(todo, warnings, settings, jobs, topology, service, target, Trials(runtime, rung), monitor)
        finally:
            monitor.close()
            try:
                service.restore()
            finally:
                problems = runtime.close("stop", _CLOSE_S)
            if not problems:
                state.clear()
    finally:
        lock.release()


def _quiet(ip: str, settings: CalibrationSettings, cores: CoreSet) -> tuple[int, list[str]]:
    """Memcached's threads, and a warning where the machine does other things.

    Raises:
        UserError: it serves a load.
    """
    statistics_, monitor = Statistics(ip, settings.port, period_s=0.4), ResourceMonitor(cores)
    try:
        if not statistics_.first(_ANSWER_S):
            raise UserError(f"{ip}:{settings.port}: no answer to `stats`", "is it memcached, and not stopped?")
        end_s = time.monotonic() + _ANSWER_S
        time.sleep(1.5)
        while (sample := statistics_.sample()).qps.value is None and time.monotonic() < end_s:
            time.sleep(0.1)
        busy = sum(use.busy for use in monitor.cores().values())
    finally:
        statistics_.stop()
        monitor.close()
    qps = sample.qps.value or 0.0
    if qps > _BUSY_QPS and not settings.busy_anyway:
        raise UserError(f"memcached serves {qps:.0f} requests a second", "end that load, or give --busy-anyway")
    warnings = [f"memcached served {qps:.0f} other requests a second"] if qps > _BUSY_QPS else []
    if busy > _QUIET_CORES:
        warnings.append(f"other programs kept {busy:.1f} cores busy at the beginning")
    return max(1, sample.threads), warnings


def _apart(topology: Topology, count: int) -> CoreSet:
    """So many cores, the highest first, on as many SMT cores as possible."""
    ranked = sorted(topology.cores, key=lambda core: (sum(s > core for s in topology.siblings[core]), -core))
    return frozenset(ranked[:count])


def _forget_records(target: Target) -> None:
    """Delete the generator's own keys; a memcached that is gone has forgotten them."""
    load = Load(target.ip, target.port)
    client = Client((target.ip, target.port), timeout=5.0, connect_timeout=5.0)
    try:
        client.delete_many([f"{index:0{load.key_bytes}d}" for index in range(load.records)], noreply=True)
        client.version()  # answered once all the others are
    except OSError:
        pass
    finally:
        client.close()


@contextmanager
def _spinning(cores: CoreSet) -> Iterator[None]:
    """A process at full weight that never rests, on each of these cores."""
    program = f"import os\nos.sched_setaffinity(0, {set(cores)})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-S", "-c", program], start_new_session=True)
    try:
        time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()
