"""One run as it grows on disk: only what has been appended is read; a run that is over is read as its report is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

from colocate import mcperf
from colocate.errors import UserError
from colocate.eventlog import SCHEDULER, Event, Log, parse
from colocate.metrics import Metrics, decode, metrics_path, sort_out
from colocate.report.grade import Interval, epoch_s, graded_run, probed_intervals, reported_intervals
from colocate.report.record import Record, load_record, own_load, read_text
from colocate.report.timeline import EFFECT_S, Change
from colocate.view import Slo
from colocate.web.runs import State, read_summary, silence_s, state_of
from colocate.web.tail import Tail

_DRAWN = ("t", "policy", "latency_ms", "latency_age_s", "qps", "reason", "moves")  # of a tick; the rest is not kept
_SUMMARY_S = 30.0  # so long after a log's end its summary may still be written
_PATIENCE_S = 5.0  # so long a line waits for the metrics that tell its reason and effect
_LAG = timedelta(seconds=EFFECT_S + 0.5)  # the metrics are to be so far ahead of a line


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the event log, and what moved with it; None where nothing did."""

    event: Event
    change: Change | None


class Follower:
    """A run in progress, or one that is over.

    Args:
        path: the event log.

    Attributes:
        lines: those of the event log of which everything is known, reasons and effects.
        tick: the last one, whole.
        state: of the run.
        complete: whether nothing more is to come.
        version: grows with everything that is taken in.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[Line] = []
        self.tick: Mapping[str, Any] = {}
        self.state: State = "in progress"
        self.complete = False
        self.version = 0
        self._log, self._metrics = Tail(path), Tail(metrics_path(path))
        self._text = ""
        self._run = Log()
        self._head: Mapping[str, Any] = {}
        self._begin: datetime | None = None
        self._ticks: list[Mapping[str, Any]] = []
        self._seconds: list[Mapping[str, Any]] = []
        self._second = 0
        self._untold_s: float | None = None
        self._laid: tuple[int, Record] = (0, Record(path, Log(), Slo()))

    @property
    def record(self) -> Record:
        """The run so far; one in progress as if its last tick were its end. Costs time after something has come."""
        if self._laid[0] != self.version:
            self._laid = (self.version, self._so_far())
        return self._laid[1]

    def refresh(self, live: Path | None = None) -> None:
        """Take in what has come since; `live` is the log of a run that is known to be in progress."""
        if self.complete:
            return
        self.state = state_of(self.path, live)
        if self._is_over():
            record = load_record(self.path)
            self.tick = record.metrics.ticks[-1] if record.metrics.ticks else {}
            self.version, self.complete, self._run = self.version + 1, True, record.log
            self._laid = (self.version, record)
        else:
            self._take()
        self._tell()

    def _is_over(self) -> bool:
        match self.state:
            case "in progress":
                return False
            case "finished":
                return bool(read_summary(self.path)) or silence_s(self.path) > _SUMMARY_S
        return True

    def _take(self) -> None:
        if lines := "".join(chain.from_iterable(iter(self._log.read, []))):
            self._text += lines
            self._run = graded_run(parse(self._text))
            self.version += 1
        for records in iter(self._metrics.read, []):
            found = sort_out(decode(records))
            self._head, self._begin = found.head or self._head, found.begin or self._begin
            for tick in found.ticks:
                self._ticks.append({key: tick.get(key) for key in _DRAWN})
                if int(tick["t"]) > self._second:  # the others tell `probed_intervals` nothing
                    self._second = int(tick["t"])
                    self._seconds.append(self._ticks[-1])
            self.tick = found.ticks[-1] if found.ticks else self.tick
            self.version += 1

    def _so_far(self) -> Record:
        metrics = Metrics(self._head, self._begin, tuple(self._ticks))
        slo = Slo(
            _positive(self._head, "slo_ms", Slo().latency_ms), _positive(self._head, "percentile", Slo().percentile)
        )
        load_path, log = own_load(self.path, None, metrics), self._run
        if (now := self._now()) and log.events and now > log.events[-1].time:
            log = Log((*log.events, Event(now, "custom", SCHEDULER)), log.deviations)
        return Record(self.path, log, slo, self._intervals(load_path, slo), load_path, (), metrics)

    def _now(self) -> datetime | None:
        """The time of the last tick on the log's clock."""
        return self._begin + timedelta(seconds=self._ticks[-1]["t"]) if self._begin and self._ticks else None

    def _intervals(self, load_path: Path | None, slo: Slo) -> tuple[Interval, ...]:
        if load_path is not None:
            try:
                return tuple(reported_intervals(mcperf.parse(read_text(load_path)), slo.percentile))
            except UserError:  # gone, or without that percentile
                return ()
        return tuple(probed_intervals(self._seconds, epoch_s(self._begin))) if self._begin else ()

    def _tell(self) -> None:
        """Add the lines whose reasons and effects have come, and those that have waited for them long enough."""
        untold = self._run.events[len(self.lines) :]
        if not untold:
            self._untold_s = None
            return
        if self._untold_s is None:
            self._untold_s = time.monotonic()
        known = self._now()
        told = self.complete or time.monotonic() - self._untold_s > _PATIENCE_S
        ready = untold if told else list(takewhile(lambda e: known and e.time + _LAG <= known, untold))
        if not ready:
            return
        self._untold_s = None
        changes = {(c.time_s, c.kind, c.target): c for c in self.record.timeline.changes}
        zero = self.record.timeline.zero
        for event in ready:
            time_s = (event.time - zero).total_seconds() if zero else 0.0
            self.lines.append(Line(event, changes.get((time_s, event.event, event.job))))


def _positive(head: Mapping[str, Any], key: str, usual: float) -> float:
    value = head.get(key)
    return float(value) if isinstance(value, int | float) and value > 0 else usual
