"""What happened in a run, laid on one time axis: who held which cores, the load, every move with reason and effect.

Times are seconds from the first batch job's start, as graded reports count them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise

from colocate.cores import CoreSet, format_list
from colocate.eventlog import SERVICE, Event, Log
from colocate.metrics import Metrics
from colocate.report.grade import HOUR_S, Interval, epoch_s

_MOVES = {"start": "start", "update_cores": "resize", "pause": "pause", "unpause": "resume"}  # a job's event: its move
_ON_ITS_WAY_S = 10.0  # so long after its decision a move may take effect
_SLACK_S = 0.1  # a decision is stamped when its tick began, and rounded
EFFECT_S = 1.0  # the effect of a move is what the latency is so long after it


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time in which somebody held the same cores (those it had are kept while it is paused)."""

    begin_s: float
    end_s: float
    cores: CoreSet
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One event of memcached or of a job.

    Attributes:
        kind: the event's name.
        before: its cores until then; empty before its start.
        cores: its cores from then on; empty after its end.
        reason: the policy's, from the metrics; empty where there are none.
        latency_ms: the SLO's percentile when it happened, and a second later (or in this load interval and the next).
    """

    time_s: float
    kind: str
    target: str
    before: CoreSet
    cores: CoreSet
    reason: str = ""
    latency_ms: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True, slots=True)
class Remark:
    """A custom event."""

    time_s: float
    target: str
    text: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """One run on one time axis.

    Attributes:
        zero: the first batch job's start (the first event, where none starts) on the log's clock; None without events.
        begin_s: the first event.
        end_s: the last event.
        service: memcached's cores.
        jobs: each job's, in the order of their starts.
        intervals: the load; times as everywhere here.
        changes: in the order in which they happened.
        remarks: what else the log says.
    """

    zero: datetime | None = None
    begin_s: float = 0.0
    end_s: float = 0.0
    service: tuple[Stretch, ...] = ()
    jobs: Mapping[str, tuple[Stretch, ...]] = field(default_factory=dict)
    intervals: tuple[Interval, ...] = ()
    changes: tuple[Change, ...] = ()
    remarks: tuple[Remark, ...] = ()

    @property
    def cores(self) -> CoreSet:
        """Every core that anybody held."""
        held = [self.service, *self.jobs.values()]
        return frozenset().union(*(stretch.cores for stretches in held for stretch in stretches))

    def moment(self, time_s: float) -> datetime | None:
        """The log's clock at that time."""
        try:
            return None if self.zero is None else self.zero + timedelta(seconds=time_s)
        except (OverflowError, ValueError):  # before all eras, after them, or no number
            return None


def timeline(
    log: Log, intervals: Sequence[Interval] = (), metrics: Metrics | None = None, offset_h: int = 0
) -> Timeline:
    """Lay one run (see `graded_run`) on one axis; never raises on an odd log.

    Args:
        log: the run.
        intervals: the load, on the load generator's clock.
        metrics: the run's own, for reasons and effects.
        offset_h: whole hours by which the log's clock is ahead of the load generator's.
    """
    events = log.events
    if not events:
        return Timeline()
    zero = min((e.time for e in events if e.batch and e.event == "start"), default=events[0].time)
    zero_s = epoch_s(zero) - offset_h * HOUR_S
    laid = tuple(Interval(i.start_s - zero_s, i.end_s - zero_s, i.latency_ms, i.qps) for i in intervals)
    told = _Told(metrics or Metrics(), zero, laid)
    begin_s, end_s = ((at.time - zero).total_seconds() for at in (events[0], events[-1]))
    lives: dict[str, _Life] = {}
    changes: list[Change] = []
    for event in events:
        if event.job == "scheduler" or event.event == "custom":
            continue
        life = lives.setdefault(event.job, _Life())
        time_s = (event.time - zero).total_seconds()
        before = life.cores
        if life.take(event, time_s):
            changes.append(told.change(event, time_s, before, life.cores))
    for life in lives.values():
        life.close(end_s)
    return Timeline(
        zero,
        begin_s,
        end_s,
        tuple(lives[SERVICE].stretches) if SERVICE in lives else (),
        {name: tuple(life.stretches) for name, life in lives.items() if name != SERVICE and life.stretches},
        laid,
        tuple(changes),
        tuple(
            Remark((e.time - zero).total_seconds(), e.job, e.comment)
            for e in events
            if e.event == "custom" and e.comment
        ),
    )


def listed(cores: CoreSet) -> str:
    """Cores as the log writes them; a start whose list cannot be read tells of none."""
    return format_list(cores) if cores else "cores unknown"


def holders(line: Timeline) -> dict[int, list[tuple[float, float, tuple[str, ...]]]]:
    """Of each core: from when to when who held it, memcached first; paused jobs hold none."""
    held: dict[int, list[tuple[Stretch, str]]] = {core: [] for core in sorted(line.cores)}
    for name, stretches in [(SERVICE, line.service), *line.jobs.items()]:
        for stretch in stretches:
            for core in stretch.cores if not stretch.paused else ():
                held[core].append((stretch, name))
    found: dict[int, list[tuple[float, float, tuple[str, ...]]]] = {}
    for core, theirs in held.items():
        edges = sorted({edge for stretch, _ in theirs for edge in (stretch.begin_s, stretch.end_s)})
        found[core] = [
            (begin_s, end_s, names)
            for begin_s, end_s in pairwise(edges)
            if (names := tuple(name for s, name in theirs if s.begin_s <= begin_s and s.end_s >= end_s))
        ]
    return found


class _Life:
    """One job, or memcached, while the events are gone through."""

    def __init__(self) -> None:
        self.stretches: list[Stretch] = []
        self.cores: CoreSet = frozenset()
        self._held: CoreSet = frozenset()
        self._since_s: float | None = None
        self._paused = False

    def take(self, event: Event, time_s: float) -> bool:
        """Whether it changed anything."""
        match event.event:
            case "start" if self._since_s is None:
                self._held, self._since_s, self._paused = event.cores, time_s, False
            case "update_cores" if event.cores and (event.cores != self._held or self._since_s is None):
                self.close(time_s)
                if self._since_s is None and event.batch:
                    return False  # an update before the start, or after the end
                self._held, self._since_s = event.cores, time_s
            case "pause" | "unpause" if self._since_s is not None and self._paused == (event.event == "unpause"):
                self.close(time_s)
                self._paused, self._since_s = not self._paused, time_s
            case "end" if self._since_s is not None:
                self.close(time_s)
                self._held, self._since_s, self._paused = frozenset(), None, False
            case _:
                return False
        self.cores = frozenset() if self._paused else self._held
        return True

    def close(self, time_s: float) -> None:
        """End the stretch in progress, if there is one."""
        if self._since_s is not None and time_s > self._since_s:
            self.stretches.append(Stretch(self._since_s, time_s, self._held, self._paused))
            self._since_s = time_s


class _Told:
    """What the metrics, or the load intervals, tell of an event."""

    def __init__(self, metrics: Metrics, zero: datetime, intervals: Sequence[Interval]) -> None:
        self._intervals = intervals
        shift_s = (metrics.begin - zero).total_seconds() if metrics.begin is not None else 0.0
        ticks = metrics.ticks if metrics.begin is not None else ()
        self._times_s = [shift_s + tick["t"] for tick in ticks]
        self._ticks = ticks
        self._reasons: dict[tuple[str, str], tuple[list[float], list[str]]] = {}
        for time_s, tick in zip(self._times_s, ticks, strict=True):
            for kind, target, _ in tick["moves"]:
                times_s, reasons = self._reasons.setdefault((kind, target), ([], []))
                times_s.append(time_s)
                reasons.append(tick.get("reason", ""))

    def change(self, event: Event, time_s: float, before: CoreSet, cores: CoreSet) -> Change:
        return Change(time_s, event.event, event.job, before, cores, self._reason(event, time_s), self._latency(time_s))

    def _reason(self, event: Event, time_s: float) -> str:
        kind = "pin" if event.job == SERVICE else _MOVES.get(event.event, "")
        times_s, reasons = self._reasons.get((kind, event.job), ([], []))
        index = bisect_right(times_s, time_s + _SLACK_S) - 1
        return reasons[index] if index >= 0 and time_s - times_s[index] < _ON_ITS_WAY_S else ""

    def _latency(self, time_s: float) -> tuple[float | None, float | None]:
        if self._ticks:
            now = bisect_right(self._times_s, time_s) - 1
            then = bisect_left(self._times_s, time_s + EFFECT_S)
            return self._seen(now), self._seen(then)
        index = bisect_right(self._intervals, time_s, key=lambda interval: interval.start_s) - 1
        return self._reported(index, time_s), self._reported(index + 1, time_s)

    def _seen(self, index: int) -> float | None:
        if not 0 <= index < len(self._ticks):
            return None
        value: float | None = self._ticks[index].get("latency_ms")
        age_s = self._ticks[index].get("latency_age_s")
        return value if age_s is not None and age_s < EFFECT_S else None

    def _reported(self, index: int, time_s: float) -> float | None:
        if not 0 <= index < len(self._intervals):
            return None
        interval = self._intervals[index]
        return interval.latency_ms if interval.end_s > time_s else None
