"""A run as it lies on disk: its event log, its load, its metrics and its summary, graded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from colocate import mcperf
from colocate.errors import UserError
from colocate.eventlog import SIMULATED, Log, parse
from colocate.metrics import Metrics, fits, metrics_path, read_run
from colocate.report.grade import (
    Grade,
    Interval,
    epoch_s,
    grade,
    graded_run,
    probed_intervals,
    reported_intervals,
    which_run,
)
from colocate.report.summary import Summary, summarize, summary_path
from colocate.report.timeline import Timeline, timeline
from colocate.shadow import Difference
from colocate.view import Slo


@dataclass(frozen=True)
class Record:
    """Everything that is known of one run.

    Attributes:
        path: the event log.
        log: the run that is graded, of several in the file.
        slo: the promise that it is held to.
        intervals: the load.
        load_path: where the load is from; None where the run's own probe tells of it, or nothing does.
        metrics: what the run wrote of itself; empty for a foreign log.
        told: the summary that the run left; empty where there is none.
    """

    path: Path
    log: Log
    slo: Slo
    intervals: tuple[Interval, ...] = ()
    load_path: Path | None = None
    load_warnings: tuple[str, ...] = ()
    metrics: Metrics = field(default_factory=Metrics)
    told: Summary | None = None

    @cached_property
    def grade(self) -> Grade:
        """The verdict."""
        return grade(self.log, self.intervals, self.slo.latency_ms)

    @cached_property
    def timeline(self) -> Timeline:
        """The run on one time axis."""
        return timeline(self.log, self.intervals, self.metrics, self.grade.offset_h)

    @property
    def settings(self) -> Mapping[str, object]:
        """What the run was asked to do, where it wrote that down."""
        found = self.metrics.head.get("settings")
        return found if isinstance(found, Mapping) else {}

    @property
    def source(self) -> str:
        """`live`, `simulated`, or `recorded`: by somebody else's program, or without metrics."""
        told = (self.told or {}).get("source") or self.metrics.head.get("source")
        if told:
            return str(told)
        simulated = any(e.event == "custom" and e.comment.startswith(SIMULATED) for e in self.log.events)
        return "simulated" if simulated else "recorded"

    @property
    def policy(self) -> str | None:
        """Who decided first, as the run tells it."""
        told = (self.told or {}).get("policy") or next((tick.get("policy") for tick in self.metrics.ticks), None)
        return str(told) if told else None

    @cached_property
    def summary(self) -> Summary:
        """The document of a run's summary, graded anew by this record's promise and load."""
        told, head = self.told or {}, self.metrics.head
        known = told.get("jobs", {})
        return summarize(
            self.grade,
            {name: _state(self.grade, name, known.get(name)) for name in dict.fromkeys((*self.grade.jobs, *known))},
            log=str(self.path),
            mcperf=str(self.load_path) if self.load_path else None,
            source=self.source,
            policy=self.policy,
            policies=told.get("policies", []),
            shadow=_shadow(told),
            scenario=told.get("scenario", head.get("scenario")),
            seed=told.get("seed", head.get("seed")),
            cores=told.get("cores") or head.get("cores") or sorted(self.timeline.cores),
            slo_ms=self.slo.latency_ms,
            percentile=self.slo.percentile,
            exit_code=told.get("exit_code"),
            latency_source=self.latency_source,
            warnings=(*self.load_warnings, *_own_warnings(told, self.grade)),
        )

    @property
    def latency_source(self) -> str | None:
        """Who measured the latency."""
        if self.load_path is None:
            return "probe" if self.intervals else None
        return "the model" if self.source == "simulated" else "mcperf"


def load_record(
    path: Path,
    load_path: Path | None = None,
    *,
    slo_ms: float | None = None,
    percentile: float | None = None,
    interval_s: float | None = None,
) -> Record:
    """Read a run.

    Args:
        path: the event log.
        load_path: the load generator's output; where it is None, the one that the run itself names, else the
            latency that its own probe saw.
        slo_ms: the promise; None is the run's own, 0.8 ms where it does not tell.
        percentile: of the promise, likewise.
        interval_s: the length of a load interval, where it is known.

    Raises:
        UserError: a file cannot be read, or the percentile is none of mcperf's.
    """
    log = parse(read_text(path))
    metrics, told = _metrics(path), _told(path)
    slo = Slo(
        slo_ms or _number(metrics.head.get("slo_ms")) or _number((told or {}).get("slo_ms")) or Slo().latency_ms,
        percentile or _number(metrics.head.get("percentile")) or Slo().percentile,
    )
    if load_path is None:
        load_path = own_load(path, told, metrics)
    if load_path is None:
        begin_s = epoch_s(metrics.begin) if metrics.begin else 0.0
        probed = tuple(probed_intervals(metrics.ticks, begin_s))
        run = graded_run(log, probed)
        return Record(path, run, slo, probed, None, tuple(which_run(log, run)), metrics, told)
    outputs = mcperf.parse_all(read_text(load_path), interval_s=interval_s) or [mcperf.parse("")]
    intervals, output = _best(log, outputs, slo.percentile)
    warnings = tuple(f"{load_path.name}: {warning}" for warning in output.warnings)
    if not intervals:
        warnings += (f"{load_path.name}: no load interval with a time in it",)
    run = graded_run(log, intervals)
    warnings += tuple(which_run(log, run))
    return Record(path, run, slo, intervals, load_path, warnings, metrics, told)


def own_load(path: Path, told: Summary | None = None, metrics: Metrics | None = None) -> Path | None:
    """The load generator's output that the run with this event log names itself, if it is still there."""
    told, metrics = told or _told(path) or {}, metrics or _metrics(path)
    settings = metrics.head.get("settings")
    named = [told.get("mcperf"), settings.get("latency_from") if isinstance(settings, Mapping) else None]
    for name in named:
        if isinstance(name, str) and Path(name).name:
            for place in (Path(name), path.with_name(Path(name).name)):
                with suppress(OSError):  # a name that is too long
                    if place.is_file():
                        return place
    return None


def headline(record: Record) -> Sequence[str]:
    """A run in a few words: what it was, how long it took, how often it was late."""
    summary = record.summary
    ratio, makespan_s = summary["slo_violation_ratio"], summary["makespan_s"]
    words = [record.path.stem]
    if record.source == "simulated":
        words.append(f"simulated{f' on {name}' if (name := summary['scenario']) else ''}")
    words += [f"policy {record.policy}"] if record.policy else []
    words += ["no job has ended" if makespan_s is None else f"makespan {makespan_s:.1f} s"]
    if ratio is not None:
        words.append(f"{ratio:.1%} of {summary['intervals']} intervals over {record.slo.latency_ms:g} ms")
    return words


def read_log(path: Path) -> Log:
    """A text that has at least one event of a run in it.

    Raises:
        UserError: it cannot be read, or has none.
    """
    log = parse(text := read_text(path))
    if not log.events:
        load = any(output.rows for output in mcperf.parse_all(text))
        cure = "it is a load's: give it to --mcperf" if load else "give an event log, or see `colocate report --check`"
        raise UserError(f"{path}: no event of a run in it", cure)
    return log


def read_text(path: Path) -> str:
    """A text of whoever's making.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8", "replace")  # read_text would hide a CR LF
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "give a file that can be read") from error


def write_text(path: Path, text: str) -> None:
    """Write a table or a page.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8", errors="replace")  # JSON can hold halves of signs
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "give a file that can be written") from error


def _best(log: Log, outputs: Sequence[mcperf.Output], percentile: float) -> tuple[tuple[Interval, ...], mcperf.Output]:
    """Of several outputs in one file the one that covers a run of the log best, the last of equals."""
    laid = [(tuple(reported_intervals(output, percentile)), output) for output in reversed(outputs)]
    return max(laid, key=lambda pair: (grade(graded_run(log, pair[0]), pair[0]).coverage, bool(pair[0])))


def _metrics(path: Path) -> Metrics:
    try:
        return read_run(metrics_path(path))
    except OSError:
        return Metrics()


def _told(path: Path) -> Summary | None:
    try:
        told = json.loads(summary_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(told, dict):
        return None
    return {key: value for key, value in told.items() if value is not None and fits(value, _SUMMARY.get(key, object))}


_SUMMARY = {  # what is read of the summary that a run left; what has another shape is no summary's
    "mcperf": str, "source": str, "policy": str, "policies": [str], "scenario": str, "seed": int, "cores": [int],
    "slo_ms": float, "exit_code": int, "jobs": {"": {"": object}}, "warnings": [str], "shadow": {"": object},
}  # fmt: skip
_SHADOW = {"policy": str, "ticks": int, "disagreements": int, "dropped": str}


def _number(value: object) -> float | None:
    return float(value) if fits(value, float) and value > 0 else None  # type: ignore[arg-type,operator]  # a number


def _state(found: Grade, name: str, known: object) -> dict[str, object]:
    """State and retries of a job: as the run told them, else what the log shows."""
    if isinstance(known, Mapping) and isinstance(known.get("state"), str) and isinstance(known.get("retries"), int):
        return {key: known.get(key) for key in ("state", "retries", "threads")}
    ended = name in found.jobs and found.jobs[name].wall_s is not None
    return {"state": "finished" if ended else "unfinished", "retries": 0, "threads": None}


def _shadow(told: Summary) -> object:
    """What the run's shadow came to, where it is told whole."""
    found = told.get("shadow", {})
    counts = found.get("service")
    whole = all(fits(found.get(key), shape) for key, shape in _SHADOW.items())
    known = fits(counts, {"": float}) and counts.keys() == {part.name for part in fields(Difference)}
    return found if whole and (known or counts is None) else None


def _own_warnings(told: Mapping[str, Any], found: Grade) -> list[str]:
    """What the run warned of and grading does not say anyway."""
    return [warning for warning in told.get("warnings", []) if warning not in found.warnings]
