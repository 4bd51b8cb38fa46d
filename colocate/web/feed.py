"""What a browser is sent of one run: the messages, made once for everybody who watches it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from colocate.errors import UserError
from colocate.eventlog import SERVICE
from colocate.metrics import finite
from colocate.report.chart import figure_a
from colocate.report.colours import FREE_COLOUR, SERVICE_COLOUR, job_colours
from colocate.report.grade import spread
from colocate.report.record import Record
from colocate.report.timeline import Timeline
from colocate.web.follow import Follower, Line
from colocate.web.runs import Run

_PICTURE_S = 1.0
_PICTURE_SHARE = 0.02  # of one core that making the picture may take


@dataclass(slots=True)
class Message:
    """The last of its kind; `version` grows when it has become another."""

    version: int = 0
    data: str = ""

    def set(self, document: object) -> None:
        """Take a document; the same one again is no news."""
        data = _json(document)
        if data != self.data:
            self.version, self.data = self.version + 1, data


@dataclass(slots=True)
class Feed:
    """The messages of one run. `refresh` is for threads other than the server's own.

    Attributes:
        latest: `picture`, `verdict` and `status`: of each only the last counts.
        changes: one for each line of the event log: its number, and what is told.
        complete: whether nothing more is to come.
    """

    run: Run
    latest: Mapping[str, Message] = field(
        default_factory=lambda: {name: Message() for name in ("picture", "verdict", "status")}
    )
    changes: list[tuple[int, str]] = field(default_factory=list)
    complete: bool = False
    _follower: Follower = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _drawn: int = 0
    _due_s: float = 0.0

    def __post_init__(self) -> None:
        self._follower = Follower(self.run.path)

    def refresh(self, status: Mapping[str, Any] | None) -> None:
        """Take in what has come since; `status` is the run's own answer, where it gives one."""
        with self._lock:
            if self.complete:
                return
            follower = self._follower
            try:
                follower.refresh(self.run.path.absolute() if status else None)
            except UserError as error:
                self.latest["verdict"].set({"state": "broken", "fault": str(error)})
                self.complete = True
                return
            self.changes += [_change(line) for line in follower.lines[len(self.changes) :]]
            if follower.version != self._drawn and (follower.complete or time.monotonic() >= self._due_s):
                begin_s, cpu_s = time.monotonic(), time.thread_time()
                self._draw(follower.record)
                cpu_s = time.thread_time() - cpu_s
                self._drawn, self._due_s = follower.version, begin_s + max(_PICTURE_S, cpu_s / _PICTURE_SHARE)
            if follower.state == "in progress":
                self.latest["status"].set(status or _status(follower))
            if follower.complete:
                self.complete, self._follower = True, Follower(self.run.path)  # what it held is not needed any more

    def _draw(self, record: Record) -> None:
        colours = job_colours(
            [*record.timeline.jobs, *_mapping(self._follower.tick.get("jobs")), *record.summary["jobs"]]
        )
        self.latest["picture"].set(figure_a(record, colours))
        self.latest["verdict"].set(_verdict(record, self._follower, colours))


def _json(document: object) -> str:
    try:
        return json.dumps(document, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError):  # a number that is not finite, a set
        return json.dumps(finite(document), allow_nan=False, separators=(",", ":"))


def _verdict(record: Record, follower: Follower, colours: Mapping[str, str]) -> dict[str, object]:
    """The totals: the result file's where there is one, else those of the run so far."""
    final = follower.complete and record.told is not None
    summary = record.told if final else record.summary
    assert summary is not None  # noqa: S101 -- by what `final` means
    names = (
        "policy", "policies", "source", "scenario", "slo_ms", "percentile", "makespan_s", "intervals", "violations",
        "slo_violation_ratio", "p95_ms", "core_moves", "pauses", "complete", "latency_source", "jobs", "warnings",
    )  # fmt: skip
    begin = record.timeline.moment(record.timeline.begin_s)
    return {
        **{name: summary.get(name) for name in names},
        "final": final,
        "state": follower.state,
        "begin": begin.isoformat(timespec="seconds") if begin else None,
        "elapsed_s": record.timeline.end_s,
        "qps": spread([interval.qps for interval in record.intervals if interval.qps is not None]),
        "owners": _owners(record.timeline),
        "colours": {SERVICE: SERVICE_COLOUR, "": FREE_COLOUR, **colours},
    }


def _owners(timeline: Timeline) -> dict[str, list[tuple[str, float]]]:
    """For how many seconds each holder had each core; a pause does not count."""
    held: dict[int, dict[str, float]] = {core: {} for core in sorted(timeline.cores)}
    for name, stretches in [(SERVICE, timeline.service), *timeline.jobs.items()]:
        for stretch in stretches:
            for core in () if stretch.paused else stretch.cores:
                held[core][name] = held[core].get(name, 0.0) + stretch.end_s - stretch.begin_s
    return {str(core): list(times_s.items()) for core, times_s in held.items()}


def _change(line: Line) -> tuple[int, str]:
    event, change = line.event, line.change
    return event.line_number, json.dumps({
        "n": event.line_number,
        "time": event.time.isoformat(timespec="milliseconds"),
        "kind": event.event,
        "target": event.job,
        "cores": sorted(event.cores),
        "before": sorted(change.before) if change else [],
        "threads": event.threads,
        "comment": event.comment,
        "reason": change.reason if change else "",
        "latency_ms": change.latency_ms if change else [None, None],
    })  # fmt: skip


def _status(follower: Follower) -> dict[str, object]:
    """What the files tell of a run that does not answer, in the shape of its own answer."""
    tick = follower.tick
    jobs = {
        name: (told[0], told[1])
        for name, told in _mapping(tick.get("jobs")).items()
        if isinstance(told, list) and len(told) == 2 and isinstance(told[1], list)
    }
    service = tick.get("cores")
    holders = {
        SERVICE: service if isinstance(service, list) else [],
        **{name: held for name, (_, held) in jobs.items()},
    }
    return {
        "elapsed_s": tick.get("t"),
        "policy": tick.get("policy"),
        "reason": tick.get("reason"),
        "cores": {
            core: {"busy": busy, "holders": [name for name, held in holders.items() if int(core) in held]}
            for core, busy in _mapping(tick.get("busy")).items()
            if core.isdigit()
        },
        "service": {
            "cores": holders[SERVICE],
            "cpu_cores": tick.get("cpu_cores"),
            "qps": tick.get("qps"),
            "p95_ms": tick.get("latency_ms"),
        },
        "jobs": {name: {"state": state, "cores": held} for name, (state, held) in jobs.items()},
    }


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
