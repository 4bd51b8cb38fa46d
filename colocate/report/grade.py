"""Grading: makespan, SLO violations and run times of one run, by stated rules.

The makespan is from the first batch job's start to the last one's end. The violation ratio is taken over the load
generator's intervals that overlap that window; other denominators in use are given beside it. A run counts only if
every batch job both starts and ends.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from colocate import mcperf
from colocate.eventlog import SCHEDULER, SERVICE, Event, Log

_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Interval:
    """One stretch of time (seconds since the epoch) with the SLO's percentile in it; None where it is unmeasured."""

    start_s: float
    end_s: float
    latency_ms: float | None


@dataclass(frozen=True, slots=True)
class JobGrade:
    """One batch job: seconds from the first job's start; run time is wall time less the pauses. None: did not end."""

    start_s: float
    wall_s: float | None
    run_s: float | None
    threads: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """Violations among measured intervals."""

    violations: int = 0
    intervals: int = 0

    @property
    def value(self) -> float | None:
        """The share; None without intervals."""
        return self.violations / self.intervals if self.intervals else None


@dataclass(frozen=True, slots=True)
class Grade:
    """The verdict on one run.

    Attributes:
        complete: every batch job started and ended, and there is one.
        makespan_s: None if no job ended.
        overlap: violations over the intervals that overlap the jobs' window; the ratio that counts.
        inside: over the intervals fully inside it.
        whole: over all intervals of the file.
        coverage: share of the window that measured intervals cover.
        latencies_ms: of the intervals that overlap the window.
        offset_h: whole hours by which the log's clock is ahead of the intervals'.
        core_moves: changes of a core set.
        warnings: what was odd, one line each.
    """

    complete: bool
    makespan_s: float | None
    jobs: Mapping[str, JobGrade]
    overlap: Ratio = Ratio()
    inside: Ratio = Ratio()
    whole: Ratio = Ratio()
    coverage: float = 0.0
    latencies_ms: tuple[float, ...] = ()
    offset_h: int = 0
    core_moves: int = 0
    pauses: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Life:
    start: datetime
    threads: int
    end: datetime | None = None
    paused: datetime | None = None
    pause_s: float = 0.0


def grade(log: Log, intervals: Sequence[Interval] = (), slo_ms: float = 0.8) -> Grade:
    """Grade one run; never divides by zero, never raises on an odd log."""
    warnings: list[str] = []
    events = _one_run(log.events, warnings)
    lives = _lives(events)
    ends = [life.end for life in lives.values() if life.end is not None]
    first = min((life.start for life in lives.values()), default=None)
    complete = bool(lives) and len(ends) == len(lives)
    if not lives:
        warnings.append("no batch job has started")
    jobs = {name: _job(life, first) for name, life in lives.items() if first is not None}
    moves = sum(event.event == "update_cores" for event in events)
    pauses = sum(event.event == "pause" for event in events)
    if first is None or not ends:
        return Grade(complete, None, jobs, core_moves=moves, pauses=pauses, warnings=tuple(warnings))
    window = (first.timestamp(), max(ends).timestamp())
    offset_h = _offset_h(window, intervals)
    if offset_h:
        warnings.append(f"the log's clock is {offset_h:+d} h from the load generator's")
        window = (window[0] - offset_h * _HOUR_S, window[1] - offset_h * _HOUR_S)
    measured = [interval for interval in intervals if interval.latency_ms is not None]
    if len(measured) < len(intervals):
        warnings.append(f"{len(intervals) - len(measured)} intervals are unmeasured (the generator itself was late)")
    overlap = [i for i in measured if i.start_s < window[1] and i.end_s > window[0]]
    inside = [i for i in overlap if i.start_s >= window[0] and i.end_s <= window[1]]
    covered_s = sum(min(i.end_s, window[1]) - max(i.start_s, window[0]) for i in overlap)
    coverage = min(1.0, covered_s / (window[1] - window[0])) if window[1] > window[0] else float(bool(overlap))
    if intervals and coverage < 0.999:
        warnings.append(f"only {coverage:.1%} of the jobs' time is measured")
    return Grade(
        complete=complete,
        makespan_s=window[1] - window[0],
        jobs=jobs,
        overlap=_ratio(overlap, slo_ms),
        inside=_ratio(inside, slo_ms),
        whole=_ratio(measured, slo_ms),
        coverage=coverage,
        latencies_ms=tuple(i.latency_ms for i in overlap if i.latency_ms is not None),
        offset_h=offset_h,
        core_moves=moves,
        pauses=pauses,
        warnings=tuple(warnings),
    )


def reported_intervals(output: mcperf.Output, percentile: float = 95.0) -> list[Interval]:
    """A load generator's intervals; one in which it was late itself is unmeasured.

    Raises:
        ValueError: mcperf does not report that percentile.
    """
    column = f"p{percentile:g}_us".replace(".", "")
    if not hasattr(mcperf.Row, column):
        raise ValueError(f"mcperf does not report p{percentile:g}")
    return [
        Interval(start_s, end_s, None if row.late else getattr(row, column) / 1e3)
        for start_s, end_s, row in mcperf.intervals(output)
    ]


def probed_intervals(records: Iterable[Mapping[str, object]], start_s: float) -> list[Interval]:
    """Intervals of one second from a run's metrics: the latency over the last second, at each full second.

    Args:
        records: the ticks, with `t`, `latency_ms` and `latency_age_s`.
        start_s: the epoch time at which `t` was 0.
    """
    found: list[Interval] = []
    for record in records:
        t, latency_ms, age_s = record.get("t"), record.get("latency_ms"), record.get("latency_age_s")
        if not isinstance(t, int | float) or t < len(found) + 1:
            continue
        fresh = isinstance(latency_ms, int | float) and isinstance(age_s, int | float) and age_s < 1
        while len(found) < int(t):  # a late tick stands for the seconds that it missed
            begin_s = start_s + len(found)
            value = float(latency_ms) if fresh and isinstance(latency_ms, int | float) else None
            found.append(Interval(begin_s, begin_s + 1, value))
    return found


def _ratio(intervals: Sequence[Interval], slo_ms: float) -> Ratio:
    late = sum(interval.latency_ms is not None and interval.latency_ms > slo_ms for interval in intervals)
    return Ratio(late, len(intervals))


def _one_run(events: Sequence[Event], warnings: list[str]) -> list[Event]:
    """The run with most starts of batch jobs, where a file holds several."""
    runs: list[list[Event]] = [[]]
    for event in events:
        if event.event == "start" and event.job == SCHEDULER and runs[-1]:
            runs.append([])
        runs[-1].append(event)
    if len(runs) > 1:
        warnings.append(f"{len(runs)} runs in one file, the one with most jobs is taken")

    def jobs(run: Sequence[Event]) -> int:
        return sum(event.event == "start" and event.job not in {SCHEDULER, SERVICE} for event in run)

    return max(reversed(runs), key=jobs)


def _lives(events: Iterable[Event]) -> dict[str, _Life]:
    lives: dict[str, _Life] = {}
    for event in events:
        if event.job in {SCHEDULER, SERVICE}:
            continue
        if event.event == "start":
            lives.setdefault(event.job, _Life(event.time, event.threads))
        life = lives.get(event.job)
        if life is None or life.end is not None:
            continue
        if event.event == "pause" and life.paused is None:
            life.paused = event.time
        elif event.event in {"unpause", "end"} and life.paused is not None:
            life.pause_s += (event.time - life.paused).total_seconds()
            life.paused = None
        if event.event == "end":
            life.end = event.time
    return lives


def _job(life: _Life, first: datetime) -> JobGrade:
    wall_s = (life.end - life.start).total_seconds() if life.end else None
    run_s = wall_s - life.pause_s if wall_s is not None else None
    return JobGrade((life.start - first).total_seconds(), wall_s, run_s, life.threads)


def _offset_h(window: tuple[float, float], intervals: Sequence[Interval]) -> int:
    """The whole hours that bring the log onto the intervals; 0 where they overlap already."""
    if not intervals:
        return 0
    begin_s, end_s = intervals[0].start_s, intervals[-1].end_s

    def overlap_s(hours: int) -> float:
        shift_s = hours * _HOUR_S
        return min(window[1] - shift_s, end_s) - max(window[0] - shift_s, begin_s)

    best = max(range(-14, 15), key=lambda hours: (overlap_s(hours), -abs(hours)))
    return best if overlap_s(0) <= 0 < overlap_s(best) else 0


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Median and maximum; None without values."""
    return {"median": statistics.median(values), "max": max(values)} if values else {"median": None, "max": None}
