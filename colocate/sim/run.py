"""One simulated run: the loop, the controller and the event log of a live run, on a machine on paper."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from colocate import mcperf
from colocate.controller import Controller
from colocate.eventlog import SIMULATED, SchedulerLogger
from colocate.jobs import JobSpec
from colocate.loop import Ending, run
from colocate.metrics import MetricsWriter, first_record, metrics_path
from colocate.policy import Choice, Policy
from colocate.regulator import Limits
from colocate.sim.batch import BatchModel
from colocate.sim.calibration import Calibration
from colocate.sim.host import SimHost
from colocate.sim.machine import Machine, Noise
from colocate.sim.profile import profile
from colocate.sim.service import ServiceModel
from colocate.sim.traces import Trace
from colocate.topology import Topology
from colocate.view import Profile, Slo

BEGIN = datetime(2026, 1, 1)  # every simulated run begins then, so that the same seed gives the same bytes


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that a simulated run is made of but its policy.

    Attributes:
        topology: the managed cores.
        threads: memcached's.
        seed: of all that is random on the machine; None is a machine without chance, typical in all.
        speed: how much more load this very machine carries than the typical one.
        share: whether jobs can be given idle priority on memcached's cores.
        duration_s: the run ends then even if jobs are left.
    """

    calibration: Calibration
    jobs: tuple[JobSpec, ...]
    trace: Trace
    slo: Slo
    topology: Topology
    threads: int
    seed: int | None = None
    period_s: float = 0.05
    duration_s: float = 7200.0
    speed: float = 1.0
    share: bool = True

    def noise(self) -> Noise:
        """What is random in it."""
        if self.seed is None:
            return Noise()
        figures = self.calibration
        return Noise(
            self.seed,
            figures.service.interval_sd.value,
            figures.service.machine_sd.value,
            {name: job.spread for name, job in figures.jobs.items()},
        )

    def service(self) -> ServiceModel:
        """Memcached on this very machine."""
        return ServiceModel(self.calibration.service, self.threads, self.speed * self.noise().speed())

    def profile(self) -> Profile:
        """What a policy is told of memcached beforehand."""
        return profile(self.calibration.service, self.threads, self.slo.percentile, len(self.topology.cores))

    def batch(self) -> BatchModel:
        """The jobs' model."""
        return BatchModel(self.calibration.jobs, self.topology)

    def machine(self) -> Machine:
        """The machine before the run: memcached on all cores, no job.

        Raises:
            UserError: a job has no figures.
        """
        self.calibration.check_jobs(job.name for job in self.jobs)
        return Machine(
            self.trace, self.service(), self.batch(), self.topology, self.noise(),
            open_loop=self.calibration.scenario.open_loop,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of a simulated run.

    Attributes:
        load: what the load generator would have printed.
        busy_ratio: share of the managed cores' time, from the beginning to the ending, in which memcached, interrupts
            that serve it, or a job ran.
        machine: as the run left it, once the load interval in which it ended was over.
    """

    ending: Ending
    controller: Controller
    log_path: Path
    load: mcperf.Output
    busy_ratio: float
    machine: Machine


def simulate(
    setup: Setup,
    policy: Policy,
    log_dir: Path,
    *,
    metrics: bool = False,
    limits: Limits | None = None,
    interrupted: Callable[[], int] = lambda: 0,
    show: Callable[[Controller], None] | None = None,
    pace: Callable[[float], None] | None = None,
    label: str = "",
    shadow: Choice | None = None,
    settings: Mapping[str, object] | None = None,
) -> Simulated:
    """Run until every job has ended; write the event log (and the metrics) into `log_dir`.

    Args:
        setup: the machine, the jobs, the load.
        policy: decides; a fresh one for each run.
        log_dir: where the event log goes.
        metrics: whether to write a metrics file, too.
        limits: the regulator's options.
        interrupted: the number of the signal that asks for the end, or 0.
        show: called after every tick.
        pace: called with the virtual time after each wait.
        label: the policy's, for log and records.
        shadow: a second policy, which is asked as well and never obeyed.
        settings: as the user gave them, for the metrics file.

    Raises:
        UserError: a job has no figures, or the log cannot be written.
    """
    machine = setup.machine()
    random.seed(setup.seed)  # for policies that draw from Python's own stream
    host = SimHost(
        machine, setup.threads, setup.calibration.delays, setup.noise(), setup.slo.percentile, pace, share=setup.share
    )
    controller = Controller(
        setup.jobs, policy, setup.topology, host.deadline,
        slo=setup.slo, limits=limits, profile=setup.profile(), label=label, shadow=shadow,
    )  # fmt: skip
    log = SchedulerLogger(log_dir, clock=lambda: BEGIN, now_s=host.now)
    log.custom_event("scheduler", f"{SIMULATED}{setup.calibration.name}")
    writer = MetricsWriter(metrics_path(log.path)) if metrics else None
    if writer is not None:
        writer.write(first_record(
            "simulated", settings or {}, setup.topology.cores, setup.slo,
            scenario=setup.calibration.name, seed=setup.seed, policy=label,
        ))  # fmt: skip
    ending = run(
        host,
        controller,
        log,
        period_s=setup.period_s,
        metrics=writer,
        duration_s=setup.duration_s,
        interrupted=interrupted,
        show=show,
    )
    busy_ratio = sum(machine.core_busy_s.values()) / machine.time_s / len(machine.topology.cores)
    interval_s = setup.trace.interval_s
    host.run_on((host.now() // interval_s + 1) * interval_s)
    return Simulated(ending, controller, log.path, reported(machine), busy_ratio, machine)


def reported(machine: Machine) -> mcperf.Output:
    """What the load generator would have printed of the load intervals that are over."""
    begin_s, interval_s = BEGIN.timestamp(), machine.trace.interval_s
    return mcperf.Output(
        start_s=begin_s,
        end_s=begin_s + len(machine.rows) * interval_s,
        interval_s=interval_s,
        targets=tuple(row.target for row in machine.rows),
        rows=tuple(machine.rows),
        complete=True,
    )
