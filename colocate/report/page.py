"""The report as one self-contained page: verdict, zoomable figures, moves with reason and effect, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]  # it ships no types

from colocate import __version__
from colocate.cores import format_list
from colocate.report.aggregate import aggregate
from colocate.report.chart import figure_a, figure_b, figure_moves
from colocate.report.colours import job_colours
from colocate.report.record import Record, headline
from colocate.report.timeline import Change, Remark, Timeline

_MOST_ROWS = 5000  # a table longer than that is no use to anybody


def page(records: Sequence[Record], wished: Mapping[str, str] | None = None) -> str:
    """The page; it needs nothing but itself.

    Args:
        records: the runs.
        wished: colours, by job.
    """
    colours = job_colours((name for record in records for name in record.timeline.jobs), wished)
    runs = [_run(record, colours) for record in records]
    return _template().render(
        runs=runs,
        together=aggregate([record.summary for record in records]) if len(records) > 1 else None,
        plotly=get_plotlyjs(),
        version=__version__,
    )


@cache
def _template() -> jinja2.Template:
    text = (resources.files("colocate.report") / "page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["fixed"] = lambda value, digits=1: "" if value is None else f"{value:.{digits}f}"
    environment.filters["percent"] = lambda value: "unknown" if value is None else f"{100 * value:.2f} %"
    return environment.from_string(text)


def _run(record: Record, wished: Mapping[str, str]) -> dict[str, Any]:
    line = record.timeline
    rows = [_row(line, change) for change in line.changes] + [_remark(line, remark) for remark in line.remarks]
    rows.sort(key=lambda row: row["time_s"])
    return {
        "name": record.path.name,
        "headline": headline(record),
        "summary": record.summary,
        "colours": job_colours(line.jobs, wished),
        "charts": {
            name: _script(chart)
            for name, chart in (
                ("a", figure_a(record, wished)), ("b", figure_b(record)), ("moves", figure_moves(record, wished)),
            )
        },
        "rows": rows[:_MOST_ROWS],
        "left_out": max(0, len(rows) - _MOST_ROWS),
        "begin": line.zero,
        "settings": {key: value for key, value in record.settings.items() if value not in (None, [], "")},
        "sharing": record.metrics.head.get("sharing"),
    }  # fmt: skip


def _row(line: Timeline, change: Change) -> dict[str, Any]:
    before, after = change.latency_ms
    return {
        "time_s": change.time_s,
        "clock": line.moment(change.time_s),
        "kind": change.kind,
        "target": change.target,
        "cores": " → ".join(format_list(cores) for cores in (change.before, change.cores) if cores),
        "why": change.reason,
        "effect": f"{before:.2f} → {after:.2f}" if before is not None and after is not None else "",
    }


def _remark(line: Timeline, remark: Remark) -> dict[str, Any]:
    return {
        "time_s": remark.time_s, "clock": line.moment(remark.time_s), "kind": "custom", "target": remark.target,
        "cores": "", "why": remark.text, "effect": "",
    }  # fmt: skip


def _script(chart: object) -> str:
    """JSON that may stand in a script element: nothing in it ends one."""
    return json.dumps(chart, separators=(",", ":")).replace("<", "\\u003c")
