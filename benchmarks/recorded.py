"""Recorded runs as load intervals, each with what ran meanwhile: what the model is fitted on and checked against."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from colocate import mcperf
from colocate.cores import CoreSet
from colocate.eventlog import SERVICE, Event, parse
from colocate.report.grade import grade, reported_intervals
from colocate.report.suspicions import runs
from colocate.sim.latency import Mixture
from colocate.sim.service import ServiceModel, Surroundings

SIBLINGS = {0: 1, 1: 0, 2: 3, 3: 2}
# After mcperf's `Timestamp start`; of -0.6 to 1.3 s this explains best the runs of g06, one of the fitted groups.
LOAD_BEGINS_S = 0.4
# Batch stood on memcached's cores nearly always, p95 0.58 ms even where that was its only core; at equal weight the
# same group measured 3.9 ms beside a spinning thread.
LOW_WEIGHT = frozenset({"g09"})
HELD = 0.995  # a share of an interval that stands for all of it


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a load interval in which nothing moved.

    Attributes:
        share: of the interval.
        cores: memcached's.
    """

    share: float
    threads: int
    cores: int
    around: Surroundings

    def crowded(self) -> bool:
        """Whether batch work stands on cores that memcached's threads need."""
        shared = self.around.shared_full
        return shared > 0 and (1.0 - shared) * self.cores < self.threads


@dataclass(frozen=True, slots=True)
class Recorded:
    """One recorded load interval, overlapping the jobs' time."""

    run: str
    year: int
    slo_us: float
    row: mcperf.Row
    interval_s: float
    stretches: tuple[Stretch, ...]

    @property
    def group(self) -> str:
        """Whose run it was."""
        return self.run.partition("/")[0]

    def steady(self) -> Stretch | None:
        """The conditions, if they did not change and batch work left memcached the cores that it needs."""
        key = {(s.threads, s.cores) for s in self.stretches if s.share > 1 - HELD}
        held = sum(s.share for s in self.stretches)
        if len(key) != 1 or held < HELD or any(s.crowded() for s in self.stretches):
            return None
        mean = [
            sum(s.share * getattr(s.around, name) for s in self.stretches) / held
            for name in ("siblings_busy", "batch_cores")
        ]
        return Stretch(1.0, *key.pop(), Surroundings(*mean))


def recorded_intervals(folder: Path, years: Iterable[int]) -> list[Recorded]:
    """Every load interval of the graded runs of these years, with what ran meanwhile."""
    wanted, found = set(years), list[Recorded]()
    with (folder / "graded.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(row["year"]) in wanted and row["mcperf"]]
    for row in rows:
        log = parse((folder / row["run"]).read_text(encoding="utf-8", errors="replace"))
        output = mcperf.parse((folder / row["mcperf"]).read_text(encoding="utf-8", errors="replace"))
        offset_s = 3600.0 * grade(log, reported_intervals(output)).offset_h
        parts = runs(log)
        spans = [(since + LOAD_BEGINS_S, until + LOAD_BEGINS_S, row) for since, until, row in mcperf.intervals(output)]
        events = max(reversed(parts), key=lambda p: _overlap_s(p.events, offset_s, spans)).events
        batch_s = [event.time.timestamp() - offset_s for event in events if event.batch]
        pieces = _pieces(events, offset_s, idle=row["run"].partition("/")[0] in LOW_WEIGHT)
        for start_s, end_s, reported in spans:
            if not batch_s or end_s <= batch_s[0] or start_s >= batch_s[-1] or not math.isfinite(reported.p95_us):
                continue
            stretches = tuple(
                Stretch((min(end_s, until) - max(start_s, since)) / (end_s - start_s), *conditions)
                for since, until, conditions in pieces
                if since < end_s and until > start_s and conditions
            )
            if stretches:
                slo_us = 1e3 * float(row["slo_ms"])
                found.append(Recorded(row["run"], int(row["year"]), slo_us, reported, end_s - start_s, stretches))
    return found


def predicted_p95_us(model: ServiceModel, interval: Recorded) -> float:
    """The model's percentile for the QPS and the cores that were recorded; a backlog lasts at most to the end."""
    qps, backlog, mixture = interval.row.qps, 0.0, Mixture()
    for stretch in interval.stretches:
        state = model.state(qps, stretch.cores, stretch.around)
        duration_s, spare_qps = stretch.share * interval.interval_s, state.capacity_qps - qps
        late_s = duration_s if spare_qps <= 0 else min(duration_s, backlog / spare_qps)
        backlog -= spare_qps * late_s
        mixture.add(state.saturated, state.capacity_qps * late_s)
        mixture.add(state.latency, qps * (duration_s - late_s))
    return mixture.quantile(0.95)


def _overlap_s(events: Sequence[Event], offset_s: float, spans: Sequence[tuple[float, float, mcperf.Row]]) -> float:
    times = [event.time.timestamp() - offset_s for event in events if event.batch]
    return min(times[-1], spans[-1][1]) - max(times[0], spans[0][0]) if times and spans else -math.inf


def _pieces(
    events: Sequence[Event], offset_s: float, *, idle: bool
) -> list[tuple[float, float, tuple[int, int, Surroundings] | None]]:
    """(since, until, (threads, cores, surroundings)) between any two events."""
    cores: CoreSet = frozenset()
    threads, since, found = 2, -math.inf, []
    jobs: dict[str, tuple[CoreSet, int]] = {}
    paused: set[str] = set()
    for event in events:
        now = event.time.timestamp() - offset_s
        if now > since:
            running = [job for name, job in jobs.items() if name not in paused]
            found.append(
                (since, now, (threads, len(cores), surroundings(cores, running, idle=idle)) if cores else None)
            )
            since = now
        if event.job == SERVICE:
            cores = event.cores or cores
            threads = event.threads or threads
        elif event.batch:
            if event.event == "start":
                jobs[event.job] = (event.cores, event.threads or 1)
            elif event.event == "update_cores" and event.job in jobs:
                jobs[event.job] = (event.cores, jobs[event.job][1])
            elif event.event == "pause":
                paused.add(event.job)
            elif event.event in {"unpause", "end"}:
                paused.discard(event.job)
            if event.event == "end":
                jobs.pop(event.job, None)
    return found


def surroundings(cores: CoreSet, jobs: Iterable[tuple[CoreSet, int]], *, idle: bool = False) -> Surroundings:
    """What runs beside memcached, from the cores and threads of the jobs: a thread keeps a core busy.

    `idle` says that batch work has a low weight on memcached's cores.
    """
    busy: dict[int, float] = {}
    for held, threads in jobs:
        for core in held:
            busy[core] = min(1.0, busy.get(core, 0.0) + threads / len(held))
    siblings = sum(busy.get(SIBLINGS[c], 0.0) for c in cores if c in SIBLINGS and SIBLINGS[c] not in cores)
    shared = sum(busy.get(core, 0.0) for core in cores) / len(cores)
    return Surroundings(
        siblings_busy=siblings / len(cores),
        batch_cores=sum(busy.values()),
        shared_idle=shared if idle else 0.0,
        shared_full=0.0 if idle else shared,
    )
