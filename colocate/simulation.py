"""Simulated runs as a user asks for them: from a scenario's name to a summary, by the graders of live runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from colocate import mcperf
from colocate.cores import CoreSet
from colocate.errors import UserError
from colocate.eventlog import parse
from colocate.jobs import JobState, load_catalogue
from colocate.metrics import metrics_path
from colocate.report.grade import Grade, grade, reported_intervals
from colocate.report.summary import Summary, deciders, policy_faults, summarize
from colocate.sim.calibration import load_calibration
from colocate.sim.run import Setup, Simulated
from colocate.sim.traces import load_trace
from colocate.view import Slo

LONGEST_S = 7200.0
_SERVED = 0.95  # of what was asked for


@dataclass(frozen=True, slots=True)
class SimSettings:
    """What a user can choose for a simulated run; None is the scenario's own.

    Attributes:
        scenario: a calibration's name or file.
        load: what the load looks like, as `--load` takes it.
        seed: of the load and of all that is random on the machine.
        qps_seed: of the load alone.
        typical: a machine without chance.
        share: whether jobs can be given idle priority on memcached's cores.
    """

    scenario: str = "cca-2025"
    jobs: str | None = None
    slo_ms: float | None = None
    percentile: float | None = None
    threads: int | None = None
    cores: CoreSet | None = None
    load: str = "waveform"
    qps_min: int | None = None
    qps_max: int | None = None
    qps_interval_s: float | None = None
    qps_seed: int | None = None
    qps_targets: Sequence[int] = ()
    seed: int | None = None
    typical: bool = False
    share: bool = True
    period_s: float = 0.05
    duration_s: float | None = None


def setup(settings: SimSettings) -> Setup:
    """The machine, the jobs and the load that the settings name.

    Raises:
        UserError: one of them is not there, or they do not fit together.
    """
    calibration = load_calibration(settings.scenario)
    usual = calibration.scenario
    topology = calibration.topology if settings.cores is None else calibration.topology.only(settings.cores)
    if len(topology.cores) < 2:
        raise UserError("one core cannot be shared out", "give --cores two or more")
    seed = settings.seed if settings.seed is not None else usual.qps_seed
    duration_s = settings.duration_s or LONGEST_S
    interval_s = settings.qps_interval_s or usual.qps_interval_s
    trace = load_trace(
        settings.load,
        qps_min=_or(settings.qps_min, usual.qps_min),
        qps_max=_or(settings.qps_max, usual.qps_max),
        interval_s=interval_s,
        seed=_or(settings.qps_seed, seed),
        targets=tuple(settings.qps_targets),
        duration_s=(duration_s // interval_s + 2) * interval_s,  # the last interval is reported whole
    )
    return Setup(
        calibration,
        calibration.informed(load_catalogue(settings.jobs or usual.jobs)),
        trace,
        Slo(settings.slo_ms or usual.slo.latency_ms, settings.percentile or usual.slo.percentile),
        topology,
        _or(settings.threads, usual.memcached_threads),
        None if settings.typical else seed,
        settings.period_s,
        duration_s,
        share=settings.share,
    )


def graded(run: Simulated, slo: Slo) -> Grade:
    """The verdict on a simulated run, by the grader of live ones."""
    log = parse(run.log_path.read_text(encoding="utf-8"))
    return grade(log, reported_intervals(run.load, slo.percentile), slo.latency_ms)


def exit_code(run: Simulated) -> int:
    """As of a live run."""
    if run.ending.why == "interrupted":
        return 128 + run.ending.signal
    if any(job.state is JobState.FAILED for job in run.controller.jobs.values()):
        return 1
    return 3 if run.ending.why == "duration" else 0


def write_load(run: Simulated) -> Path:
    """Write what the load generator would have printed, beside the event log."""
    path = run.log_path.with_name(run.log_path.stem + "-mcperf.txt")
    path.write_text(mcperf.write(run.load), encoding="utf-8")
    return path


def summary(run: Simulated, chosen: Setup, policy: str, load_path: Path | None) -> Summary:
    """The document that `--json` prints, as of a live run."""
    jobs = run.controller.jobs.values()
    return summarize(
        graded(run, chosen.slo),
        {job.name: {"state": str(job.state), "retries": job.retries, "threads": job.threads} for job in jobs},
        log=str(run.log_path),
        mcperf=str(load_path) if load_path else None,
        source="simulated",
        dry_run=False,
        policy=policy,
        scenario=chosen.calibration.name,
        seed=chosen.seed,
        cores=sorted(chosen.topology.cores),
        slo_ms=chosen.slo.latency_ms,
        percentile=chosen.slo.percentile,
        exit_code=exit_code(run),
        metrics=str(metrics_path(run.log_path)),
        latency_source="the model",
        warnings=(*chosen.trace.warnings, *policy_faults(run.controller), *_unserved(run)),
        **deciders(run.controller),
    )


def _unserved(run: Simulated) -> list[str]:
    """A closed loop's percentile stays low while it is not served: that must be said."""
    rows = run.load.rows
    short = sum(row.qps < _SERVED * row.target for row in rows)
    return [f"memcached served less than was asked of it in {short} of {len(rows)} intervals"] if short else []


def _or(given: int | None, usual: int) -> int:
    return usual if given is None else given
