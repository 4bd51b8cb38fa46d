"""A run's summary: the document that `--json` prints, and the same for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from colocate.controller import Controller
from colocate.metrics import finite
from colocate.report.grade import Grade, Ratio, spread
from colocate.shadow import Difference, told

Summary = dict[str, Any]  # keys are fixed: they may be added to, never renamed


def summarize(grade: Grade, jobs: Mapping[str, Mapping[str, object]], **facts: object) -> Summary:
    """The summary of one run.

    Args:
        grade: its verdict.
        jobs: `state` and `retries` of each job, also of those that never started.
        facts: what only the run knows: log, mcperf, source, policy, scenario, seed, cores, slo_ms, percentile,
            exit_code, and more.
    """
    listed: dict[str, dict[str, object]] = {}
    for name, known in jobs.items():
        found = grade.jobs.get(name)
        listed[name] = {
            "state": known["state"],
            "start_s": found.start_s if found else None,
            "run_s": found.run_s if found else None,
            "wall_s": found.wall_s if found else None,
            "threads": found.threads if found else known["threads"],
            "retries": known["retries"],
        }
    finished = all(job["state"] == "finished" for job in listed.values())
    warnings = facts.pop("warnings", ())
    assert isinstance(warnings, tuple)  # noqa: S101 -- the caller's
    return {
        "log": None,
        "mcperf": None,
        "source": "live",
        "policy": None,
        "policies": [],
        "shadow": None,
        "scenario": None,
        "seed": None,
        **facts,
        "complete": grade.complete and finished,
        "makespan_s": grade.makespan_s,
        "intervals": grade.overlap.intervals,
        "violations": grade.overlap.violations,
        "slo_violation_ratio": grade.overlap.value,
        "other_denominators": {"fully_inside": _ratio(grade.inside), "whole_file": _ratio(grade.whole)},
        "coverage": grade.coverage,
        "clock_offset_h": grade.offset_h,
        "p95_ms": spread(grade.latencies_ms),
        "core_moves": grade.core_moves,
        "pauses": grade.pauses,
        "jobs": listed,
        "warnings": [*warnings, *grade.warnings],
    }


def policy_faults(controller: Controller) -> tuple[str, ...]:
    """What must be said of a policy that failed: how often, how it began, and who decided then."""
    regulator = controller.regulator
    return (*regulator.past_faults, *([regulator.fault] if regulator.fault else []))


def deciders(controller: Controller) -> dict[str, object]:
    """Who decided, for the summary: the policies that acted, one after the other, and what their shadow came to."""
    shadow = controller.shadow
    return {"policies": list(controller.policies), "shadow": asdict(shadow.figures()) if shadow else None}


def to_json(summary: object) -> str:
    """One JSON document; non-finite numbers are null."""
    return json.dumps(finite(summary), allow_nan=False)


def summary_path(log_path: Path) -> Path:
    """Where the summary of the run with this event log lies: `log20260412_111346-summary.json`."""
    return log_path.with_name(f"{log_path.stem}-summary.json")


def write_summary(summary: Summary) -> None:
    """Keep the summary beside its event log; where that cannot be written, say so and go on."""
    path = summary_path(Path(summary["log"]))
    try:
        path.write_text(to_json(summary) + "\n", encoding="utf-8")
    except OSError as error:
        sys.stderr.write(f"colocate: warning: {path}: {error.strerror}\n")


def print_summary(summary: Summary, console: Console) -> None:
    """The summary for people."""

    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    table = Table(box=None, pad_edge=False)
    for name in ("job", "state", "started", "run", "wall", "threads", "retries"):
        table.add_column(name, justify="left" if name in {"job", "state"} else "right")
    for name, job in summary["jobs"].items():
        times = (_seconds(job[key]) for key in ("start_s", "run_s", "wall_s"))
        style = "" if job["state"] == "finished" else "bold red"
        words = (name, job["state"], *times, str(job["threads"]), str(job["retries"]))
        table.add_row(*map(Text, words), style=style)  # as text: a name from anybody's log may look like markup
    console.print(table)
    line("")
    makespan_s, ratio = summary["makespan_s"], summary["slo_violation_ratio"]
    line(f"makespan             {_seconds(makespan_s) or 'none: no job has finished'}", "bold")
    promise = f"p{summary['percentile']:g} <= {summary['slo_ms']:g} ms"
    if ratio is None:
        line(f"SLO violation ratio  unknown: no latency was measured ({promise})", "bold")
    else:
        found = f"{ratio:.2%}  ({summary['violations']} of {summary['intervals']} intervals, {promise}"
        line(f"SLO violation ratio  {found}, by {summary.get('latency_source') or 'the load generator'})", "bold")
        for name, other in summary["other_denominators"].items():
            line(f"  {name.replace('_', ' '):<19}{other['violations']} of {other['intervals']} intervals", "dim")
        latency = summary["p95_ms"]
        line(f"latency              median {latency['median']:.3f} ms, max {latency['max']:.3f} ms")
    line(f"moves                {summary['core_moves']} core sets, {summary['pauses']} pauses")
    if len(summary["policies"]) > 1:
        line(f"policies             {', then '.join(summary['policies'])}")
    if shadow := summary["shadow"]:
        share = f"another plan at {shadow['disagreements']} of {shadow['ticks']} ticks"
        line(f"shadow               {shadow['policy']}: {share if shadow['ticks'] else 'no decision'}")
        if shadow["service"] is not None:
            line(f"  memcached's cores  {told(Difference(**shadow['service']))}", "dim")
        if shadow["dropped"]:
            line(f"  {'dropped':<19}{shadow['dropped']}", "yellow")
    for warning in summary["warnings"]:
        line(f"warning              {warning}", "yellow")
    line(f"log                  {summary['log']}")
    if summary["mcperf"]:
        line(f"load                 {summary['mcperf']}")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


def _ratio(ratio: Ratio) -> dict[str, object]:
    return {"violations": ratio.violations, "intervals": ratio.intervals, "slo_violation_ratio": ratio.value}
