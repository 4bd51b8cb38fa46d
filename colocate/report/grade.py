"""Grading: makespan, SLO violations and run times of one run, by stated rules.

The makespan is from the first batch job's start to the last one's end. The violation ratio is taken over the load
generator's intervals that overlap that window; other denominators in use are given beside it. A run counts only if
every batch job both starts and ends; the violation ratio of one that does not is taken until its last event.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from itertools import pairwise

from colocate import mcperf
from colocate.cores import CoreSet
from colocate.errors import UserError
from colocate.eventlog import SERVICE, Event, Log, check
from colocate.report.suspicions import runs, suspicions, told

HOUR_S = 3600.0
_GAP_S = HOUR_S  # a tick that is later than that after the one before has a damaged time
MOST_OFFSET_H = 26  # between two zones


@dataclass(frozen=True, slots=True)
class Interval:
    """One stretch of time (seconds since the epoch), the SLO's percentile and the load in it; None where unmeasured."""

    start_s: float
    end_s: float
    latency_ms: float | None
    qps: float | None = None


@dataclass(frozen=True, slots=True)
class JobGrade:
    """One batch job: seconds from the first job's start; run time is wall time less the pauses. None: did not end."""

    start_s: float
    wall_s: float | None
    run_s: float | None
    threads: int | None


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
    threads: int | None
    cores: CoreSet = frozenset()
    moves: int = 0
    pauses: int = 0
    end: datetime | None = None
    paused: datetime | None = None
    pause_s: float = 0.0


def grade(log: Log, intervals: Sequence[Interval] = (), slo_ms: float = 0.8) -> Grade:
    """Grade one run; never divides by zero, never raises on an odd log."""
    run = graded_run(log, intervals)
    missing = check(run)
    warnings = [*missing, *told(run.deviations), *told(suspicions(run)), *which_run(log, run)]
    offset_h, _ = _overlap(run.events, intervals)
    if offset_h:
        warnings.append(f"the log's clock is {offset_h:+d} h from the load generator's")
    jobs = window(run.events, offset_h)
    measured = [interval for interval in intervals if interval.latency_ms is not None]
    if len(measured) < len(intervals):
        warnings.append(f"{len(intervals) - len(measured)} intervals are unmeasured (or the generator itself was late)")
    overlap = [i for i in measured if jobs and i.start_s < jobs[1] and i.end_s > jobs[0]]
    inside = [i for i in overlap if jobs and i.start_s >= jobs[0] and i.end_s <= jobs[1]]
    coverage = _coverage(jobs, overlap)
    if intervals and jobs and coverage < 0.999:
        warnings.append(f"only {coverage:.1%} of the jobs' time is measured")
    lives = _lives(run.events)
    first = min((life.start for life in lives.values()), default=None)
    ends = [life.end for life in lives.values() if life.end is not None]
    return Grade(
        complete=not missing,
        makespan_s=max(0.0, (max(ends) - first).total_seconds()) if first and ends else None,
        jobs={name: _job(life, first) for name, life in lives.items() if first},
        overlap=_ratio(overlap, slo_ms),
        inside=_ratio(inside, slo_ms),
        whole=_ratio(measured, slo_ms),
        coverage=coverage,
        latencies_ms=tuple(i.latency_ms for i in overlap if i.latency_ms is not None),
        offset_h=offset_h,
        core_moves=_service_moves(run.events) + sum(life.moves for life in lives.values()),
        pauses=sum(life.pauses for life in lives.values()),
        warnings=tuple(warnings),
    )


def graded_run(log: Log, intervals: Sequence[Interval] = ()) -> Log:
    """Of several runs in one file the one that the intervals cover best; without intervals, the one with most jobs."""
    return max(reversed(runs(log)), key=lambda part: (_overlap(part.events, intervals)[1], len(_lives(part.events))))


def which_run(log: Log, run: Log) -> list[str]:
    """Which of several runs in one file this one is; nothing where there is but one."""
    parts = runs(log)
    return [f"{len(parts)} runs in one file, number {parts.index(run) + 1} is graded"] if len(parts) > 1 else []


def reported_intervals(output: mcperf.Output, percentile: float = 95.0) -> list[Interval]:
    """A load generator's intervals; one in which it was late itself is unmeasured.

    Raises:
        UserError: mcperf does not report that percentile.
    """
    column = f"p{percentile:g}_us".replace(".", "")
    if column not in {f.name for f in fields(mcperf.Row)} or (percentile < 99 and percentile % 1):  # 9.5 is no p95
        raise UserError(f"mcperf does not report p{percentile:g}", "give --percentile 90, 95 or 99")
    found: list[Interval] = []
    for start_s, end_s, row in mcperf.intervals(output):
        latency_ms: float = getattr(row, column) / 1e3
        known_ms = None if row.late or not math.isfinite(latency_ms) else latency_ms
        found.append(Interval(start_s, end_s, known_ms, row.qps))
    return found


def probed_intervals(records: Iterable[Mapping[str, object]], start_s: float) -> list[Interval]:
    """Intervals of one second from a run's metrics: the latency over the last second, at each full second.

    Args:
        records: the ticks, with `t`, `latency_ms`, `latency_age_s` and `qps`.
        start_s: the epoch time at which `t` was 0.
    """
    found: list[Interval] = []
    for record in records:
        t, latency_ms, age_s = record.get("t"), record.get("latency_ms"), record.get("latency_age_s")
        qps = record.get("qps")
        if not isinstance(t, int | float) or not len(found) + 1 <= t < len(found) + _GAP_S:
            continue
        fresh = isinstance(latency_ms, int | float) and isinstance(age_s, int | float) and age_s < 1
        while len(found) < int(t):  # a late tick stands for the seconds that it missed
            begin_s = start_s + len(found)
            value = float(latency_ms) if fresh and isinstance(latency_ms, int | float) else None
            found.append(Interval(begin_s, begin_s + 1, value, qps if isinstance(qps, int | float) else None))
    return found


def epoch_s(moment: datetime) -> float:
    """Seconds since the epoch of a log's time, which is local."""
    try:
        return moment.timestamp()
    except (ValueError, OverflowError, OSError):  # not in this era
        return moment.replace(tzinfo=UTC).timestamp()


def _ratio(intervals: Sequence[Interval], slo_ms: float) -> Ratio:
    late = sum(interval.latency_ms is not None and interval.latency_ms > slo_ms for interval in intervals)
    return Ratio(late, len(intervals))


def _lives(events: Iterable[Event]) -> dict[str, _Life]:
    lives: dict[str, _Life] = {}
    for event in events:
        if not event.batch:
            continue
        if event.event == "start":
            lives.setdefault(event.job, _Life(event.time, event.threads, event.cores))
        life = lives.get(event.job)
        if life is None or life.end is not None:
            continue
        if event.event == "update_cores" and event.cores != life.cores:
            life.cores, life.moves = event.cores, life.moves + 1
        elif event.event == "pause" and life.paused is None:
            life.paused, life.pauses = event.time, life.pauses + 1
        elif event.event in {"unpause", "end"} and life.paused is not None:
            life.pause_s += max(0.0, (event.time - life.paused).total_seconds())
            life.paused = None
        if event.event == "end":
            life.end = event.time
    return lives


def _service_moves(events: Iterable[Event]) -> int:
    sets = [e.cores for e in events if e.job == SERVICE and e.event in {"start", "update_cores"}]
    return sum(before != after for before, after in pairwise(sets))


def _job(life: _Life, first: datetime) -> JobGrade:
    wall_s = max(0.0, (life.end - life.start).total_seconds()) if life.end else None  # a log's time may go back
    run_s = max(0.0, wall_s - life.pause_s) if wall_s is not None else None
    return JobGrade((life.start - first).total_seconds(), wall_s, run_s, life.threads)


def window(events: Sequence[Event], offset_h: int = 0) -> tuple[float, float] | None:
    """From the first batch job's start to the last one's end (the last event, if one never ends), since the epoch."""
    lives = _lives(events).values()
    if not lives:
        return None
    first = min(life.start for life in lives)
    ends = [life.end for life in lives if life.end is not None]
    last = max(ends) if len(ends) == len(lives) else events[-1].time
    begin_s = epoch_s(first) - offset_h * HOUR_S
    return begin_s, begin_s + max(0.0, (last - first).total_seconds())


def _overlap(events: Sequence[Event], intervals: Sequence[Interval]) -> tuple[int, float]:
    """The hours by which the log's clock is ahead (0 where the intervals fit as they are), and seconds of overlap."""
    jobs = window(events)
    if jobs is None or not intervals:
        return 0, 0.0
    begin_s, end_s = intervals[0].start_s, intervals[-1].end_s

    def overlap_s(hours: int) -> float:
        return min(jobs[1] - hours * HOUR_S, end_s) - max(jobs[0] - hours * HOUR_S, begin_s)

    best = max(range(-MOST_OFFSET_H, MOST_OFFSET_H + 1), key=lambda hours: (overlap_s(hours), -abs(hours)))
    if overlap_s(0) > 0 or overlap_s(best) <= 0:
        best = 0
    return best, max(0.0, overlap_s(best))


def _coverage(jobs: tuple[float, float] | None, overlap: Sequence[Interval]) -> float:
    if jobs is None or jobs[1] <= jobs[0]:
        return float(bool(overlap))
    covered_s = sum(min(i.end_s, jobs[1]) - max(i.start_s, jobs[0]) for i in overlap)
    return min(1.0, covered_s / (jobs[1] - jobs[0]))


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Median and maximum; None without values."""
    return {"median": statistics.median(values), "max": max(values)} if values else {"median": None, "max": None}
