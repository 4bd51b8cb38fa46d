"""Recorded runs on the model: how true the model is, and what another policy would have done with that load."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from colocate import mcperf
from colocate.errors import UserError
from colocate.eventlog import SERVICE, SIMULATED, Log, parse
from colocate.jobs import JobSpec, load_catalogue
from colocate.report.grade import HOUR_S, Grade, Interval, grade, graded_run, reported_intervals
from colocate.report.summary import Summary
from colocate.report.suspicions import suspicions
from colocate.sim.calibration import Calibration, calibration_names, load_calibration
from colocate.sim.reenact import recorded_moves, reenact
from colocate.sim.run import Setup
from colocate.sim.traces import Trace
from colocate.view import Slo

_TAIL_S = 7200.0  # jobs may outlast the recorded load; its last interval then goes on


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded run and the load over the same time.

    Attributes:
        path: the event log.
        load_path: the load generator's output; None where there is none.
        log: the run, core ids from 0.
        output: the load generator's.
        offset_h: whole hours by which the log's clock is ahead of the load generator's.
        zero_s: the machine's zero on the load generator's clock; a load interval begins there.
        trace: the load from there on.
    """

    path: Path
    load_path: Path | None
    log: Log
    output: mcperf.Output
    offset_h: int
    zero_s: float
    trace: Trace

    @property
    def log_zero_s(self) -> float:
        """The machine's zero on the log's clock."""
        return self.zero_s + self.offset_h * HOUR_S

    @property
    def threads(self) -> int:
        """Memcached's worker threads, as the log tells them."""
        return next((e.threads for e in self.log.events if e.job == SERVICE and e.threads), 2)

    def graded(self, slo: Slo) -> Grade:
        """What really happened, against this promise."""
        return grade(self.log, reported_intervals(self.output, slo.percentile), slo.latency_ms)


def read_recording(
    path: Path, load_path: Path | None, interval_s: float | None = None, *, begins_s: float = 0.0
) -> Recording:
    """Read an event log and the load generator's output over the same time.

    Args:
        path: the event log.
        load_path: the load generator's output.
        interval_s: the length of a load interval, where it is known.
        begins_s: how long after its `Timestamp start` the load began; mcperf's agents need a moment.

    Raises:
        UserError: a file cannot be read, or there is no run in it.
    """
    log, output = parse(_read(path)), mcperf.Output()
    if load_path is not None:
        output = mcperf.parse(_read(load_path), interval_s=interval_s)
        if output.start_s is not None:
            output = replace(output, start_s=output.start_s + begins_s)
        if not mcperf.intervals(output):
            raise UserError(f"{load_path}: no load interval with a time in it", "give mcperf's output of that run")
    intervals = reported_intervals(output)
    run = _from_zero(graded_run(log, intervals))
    if not any(event.batch and event.event == "start" for event in run.events):
        raise UserError(f"{path}: no batch job starts in it", "give an event log of `colocate run`")
    offset_h = grade(run, intervals).offset_h
    first_s = min(e.time.timestamp() for e in run.events if e.event != "custom") - offset_h * HOUR_S
    return Recording(path, load_path, run, output, offset_h, *_trace(output, first_s))


def calibration_of(recording: Recording, name: str | None) -> Calibration:
    """The calibration asked for, else the one that a simulated run's log names, else that of the recording's year.

    Raises:
        UserError: there is none.
    """
    if name is None:
        events = recording.log.events
        told = (e.comment for e in events if e.event == "custom" and e.comment.startswith(SIMULATED))
        year = events[0].time.year
        name = next(told, f"{SIMULATED}cca-{year}").removeprefix(SIMULATED)
        if name.startswith("cca-") and name not in calibration_names():
            raise UserError(f"{recording.path}: there is no calibration for {year}", "name one by --scenario")
    return load_calibration(name)


def check_model(recording: Recording, calibration: Calibration, slo: Slo, *, speed: float = 1.0) -> Summary:
    """The recorded moves and load on the model: model against record; the shape is that of `replay --check-model`.

    Args:
        recording: what happened.
        calibration: the model's figures.
        slo: what counts as a violation.
        speed: how much more load this very machine carries than the typical one, where that was measured.
    """
    calibration.check_jobs(e.job for e in recording.log.events if e.batch and e.event == "start")
    setup = Setup(calibration, (), recording.trace, slo, calibration.topology, recording.threads, speed=speed)
    machine = setup.machine()
    times = reenact(recorded_moves(recording.log.events, recording.log_zero_s), machine)
    machine.advance((len(machine.rows) + 1) * recording.trace.interval_s)  # the interval in which it ended, whole
    recorded = recording.graded(slo)
    first_s = min((time.start_s for time in times.values()), default=0.0)
    ends = [time.end_s for time in times.values()]
    pairs = [
        (interval.latency_ms, slo_latency_ms(machine.rows[index], slo.percentile))
        for index, interval in _inside(recording, slo)
        if index < len(machine.rows) and interval.latency_ms is not None
    ]
    late = [model > slo.latency_ms for _, model in pairs]
    return {
        "log": str(recording.path),
        "makespan_s": {"recorded": recorded.makespan_s, "model": max(ends) - first_s if ends else None},
        "jobs": {
            name: {"recorded": job.run_s, "model": times[name].run_s if name in times else None}
            for name, job in recorded.jobs.items()
        },
        "slo_violation_ratio": {
            "recorded": recorded.overlap.value,
            "model": sum(late) / len(late) if late else None,
        },
        "p95_relative_error_median": statistics.median(abs(m / r - 1) for r, m in pairs) if pairs else None,
        "slo_class_agreement": (
            sum((r > slo.latency_ms) == m for (r, _), m in zip(pairs, late, strict=True)) / len(pairs)
            if pairs
            else None
        ),
        "intervals": [{"recorded_ms": r, "model_ms": m} for r, m in pairs],
    }


def slo_latency_ms(row: mcperf.Row, percentile: float) -> float:
    """The SLO's percentile of a load interval."""
    value: float = getattr(row, f"p{percentile:g}_us".replace(".", ""))
    return value / 1e3


def setup_of(
    recording: Recording,
    calibration: Calibration,
    slo: Slo,
    catalogue: str | None = None,
    *,
    seed: int | None = None,
    period_s: float = 0.05,
) -> Setup:
    """The recorded jobs (in their order, with their threads) and the recorded load, for another policy.

    The jobs are there from the beginning of the load interval in which the recorded run began.

    Raises:
        UserError: the catalogue lacks a recorded job.
    """
    name = catalogue or calibration.scenario.jobs
    known = {spec.name: spec for spec in load_catalogue(name)}
    jobs: dict[str, JobSpec] = {}
    for event in recording.log.events:
        if event.batch and event.event == "start" and event.job not in jobs:
            if event.job not in known:
                raise UserError(f"{recording.path}: job {event.job!r} is not in {name}", "give its catalogue by --jobs")
            jobs[event.job] = replace(known[event.job], threads=event.threads or known[event.job].threads)
    return Setup(
        calibration,
        tuple(jobs.values()),
        recording.trace,
        slo,
        calibration.topology,
        recording.threads,
        seed,
        period_s,
        recording.trace.duration_s,
    )


def _inside(recording: Recording, slo: Slo) -> list[tuple[int, Interval]]:
    """The intervals that overlap the jobs' time, with their numbers on the machine's clock."""
    begin_s = min(e.time.timestamp() for e in recording.log.events if e.batch) - recording.offset_h * HOUR_S
    end_s = begin_s + (recording.graded(slo).makespan_s or 0.0)
    length_s = recording.trace.interval_s
    return [
        (round((i.start_s - recording.zero_s) / length_s), i)
        for i in reported_intervals(recording.output, slo.percentile)
        if i.start_s < end_s and i.end_s > begin_s
    ]


def _from_zero(log: Log) -> Log:
    """The same with core ids from 0, where somebody counted from 1."""
    if not any(found.code == "one-based" for found in suspicions(log)):
        return log
    return Log(tuple(replace(e, cores=frozenset(c - 1 for c in e.cores)) for e in log.events), log.deviations)


def _trace(output: mcperf.Output, first_s: float) -> tuple[float, Trace]:
    """The recorded load, from a whole number of intervals before its start that covers the first move."""
    if output.start_s is None or output.interval_s is None:
        return first_s, Trace((0.0,), (0.0,), 10.0, _TAIL_S)
    length_s = output.interval_s
    early = max(0, -int((first_s - output.start_s) // length_s))
    loads: Sequence[float] = [float(row.target or row.qps) for row in output.rows]
    qps = [0.0] * early + list(loads)
    return (
        output.start_s - early * length_s,
        Trace(tuple(i * length_s for i in range(len(qps))), tuple(qps), length_s, len(qps) * length_s + _TAIL_S),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "give a file that can be read") from error
