"""The figures of a run for a paper: latency, load, jobs (A); memcached's cores (B); who held what and why (moves)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import shorten
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from colocate.errors import UserError
from colocate.eventlog import SERVICE
from colocate.meter import cause
from colocate.report.colours import (
    FREE_COLOUR,
    LOAD_COLOUR,
    SERVICE_COLOUR,
    VIOLATION_COLOUR,
    job_colours,
)  # fmt: skip
from colocate.report.record import Record, headline
from colocate.report.timeline import Change, Timeline, holders

_FORMATS = (".png", ".svg", ".pdf")
_WIDTH_IN = 10.0
_MOST_IN = 60.0  # for rows; beyond 300 no picture can be written
_MOST_CAUSES = 10
_LABEL = 40  # characters
_FEW = 150  # so many points may have a marker each
_STYLE: dict[Any, Any] = {
    "font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.6,
    "svg.hashsalt": "colocate", "text.parse_math": False, "svg.fonttype": "none", "pdf.fonttype": 42,
}  # fmt: skip
_MOST_LABELS = 200  # of cores
_Box = tuple[float, float, float, float]  # from the left, from above, width, height
_MARKS = {"start": ">", "end": "s", "pause": "|", "unpause": ">", "grow": "^", "shrink": "v"}
_MARK_NAMES = {"grow": "more cores", "shrink": "fewer (or other) cores", "pause": "pause", "unpause": "start, unpause"}


def check_figure(path: Path) -> None:
    """Whether it is a figure's name.

    Raises:
        UserError: it is none of PNG, SVG and PDF.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"{path}: no kind of figure that is known", "give a name that ends in .png, .svg or .pdf")


def draw(kind: str, record: Record, path: Path, colours: Mapping[str, str] | None = None) -> None:
    """Write one figure (`a`, `b` or `moves`) of a run; the same run gives the same bytes.

    Raises:
        UserError: there is nothing to draw, or the file cannot be written.
    """
    check_figure(path)
    if record.timeline.zero is None:
        raise UserError(f"{record.path}: no event in it", "give an event log")
    with mpl.rc_context(_STYLE):
        figure = {"a": _figure_a, "b": _figure_b, "moves": _figure_moves}[kind](record, colours or {})
        empty = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        try:
            figure.savefig(path, dpi=200, metadata=empty.get(path.suffix.lower()))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}", "give a file that can be written") from error


def _figure_a(record: Record, wished: Mapping[str, str]) -> Figure:
    line = record.timeline
    rows = len(line.jobs)
    bars_in = min(max(0.6, 0.32 * rows), _MOST_IN)
    figure = Figure(figsize=(_WIDTH_IN, 3.2 + bars_in), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, bars_in])
    _load(above.twinx(), line)
    _latency(above, record)
    _bars(below, record, wished)
    _time_axis(below, record)
    _title(figure, record)
    return figure


def _figure_b(record: Record, _wished: Mapping[str, str]) -> Figure:
    figure = Figure(figsize=(_WIDTH_IN, 3.2), layout="constrained")
    axes = figure.subplots()
    _load(axes.twinx(), record.timeline)
    _service_cores(axes, record.timeline)
    _time_axis(axes, record)
    _title(figure, record)
    return figure


def _figure_moves(record: Record, wished: Mapping[str, str]) -> Figure:
    line = record.timeline
    lanes = _lanes(line)
    count = max(1, len(line.cores))
    heights = [min(0.36 * count, _MOST_IN), max(0.8, 0.3 * len(lanes))]
    figure = Figure(figsize=(_WIDTH_IN, 1.5 + sum(heights)), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    _core_map(above, record, wished)
    for row, (_, changes) in enumerate(lanes):
        for kind, marker in _MARKS.items():
            at = [change.time_s for change in changes if _mark(change) == kind]
            ours = [
                SERVICE_COLOUR if change.target == SERVICE else "#444444" for change in changes if _mark(change) == kind
            ]
            below.scatter(at, [row] * len(at), marker=marker, s=26, c=ours, linewidths=1.0, zorder=3)
    below.set_yticks(
        range(len(lanes)), [f"{shorten(name, _LABEL, placeholder='...')} ({len(changes)})" for name, changes in lanes]
    )
    below.set_ylim(len(lanes) - 0.4, -0.6)
    below.grid(axis="y", color="#E5E5E5", linewidth=0.6)
    below.set_ylabel("reason" if any(change.reason for change in line.changes) else "event")
    handles = [
        Line2D([], [], marker=_MARKS[kind], color="#444444", linestyle="", label=name)
        for kind, name in _MARK_NAMES.items()
    ]
    figure.legend(
        handles=[*handles, Patch(color=SERVICE_COLOUR, label="of memcached")],
        loc="outside lower center",
        ncols=5,
        frameon=False,
        fontsize=8,
    )
    _time_axis(below, record)
    return figure


def _latency(axes: Axes, record: Record) -> None:
    """The percentile as a line, violations marked, the SLO."""
    slo, laid = record.slo, [i for i in record.timeline.intervals if i.latency_ms is not None]
    axes.set_zorder(3)
    axes.patch.set_visible(False)
    times, values = list[float](), list[float]()
    end_s = -math.inf
    for interval in laid:
        if interval.start_s - end_s > interval.end_s - interval.start_s:  # nothing was measured between
            times.append(interval.start_s)
            values.append(math.nan)
        times.append((interval.start_s + interval.end_s) / 2)
        values.append(interval.latency_ms or 0.0)
        end_s = interval.end_s
    few = len(laid) <= _FEW
    axes.plot(
        times,
        values,
        color=SERVICE_COLOUR,
        linewidth=1.2,
        marker="." if few else "",
        markersize=4,
        label=f"p{slo.percentile:g}",
    )
    late = [i for i in laid if (i.latency_ms or 0.0) > slo.latency_ms]
    for interval in late:
        axes.axvspan(interval.start_s, interval.end_s, color=VIOLATION_COLOUR, alpha=0.18, linewidth=0)
    if late:
        at, over = [(i.start_s + i.end_s) / 2 for i in late], [i.latency_ms or 0.0 for i in late]
        name = f"violation ({len(late)})"
        axes.plot(at, over, linestyle="", marker="x", color=VIOLATION_COLOUR, markersize=6, label=name)
    axes.axhline(
        slo.latency_ms, color=VIOLATION_COLOUR, linestyle="--", linewidth=1.2, label=f"SLO {slo.latency_ms:g} ms"
    )
    axes.set_ylim(0, 1.08 * max([slo.latency_ms, *(value for value in values if not math.isnan(value))]))
    axes.set_ylabel(f"p{slo.percentile:g} latency (ms)")
    if not laid:
        axes.text(0.5, 0.5, "no latency was measured", transform=axes.transAxes, ha="center", color="#777777")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=8)


def _load(axes: Axes, line: Timeline) -> None:
    known = [i for i in line.intervals if i.qps is not None]
    axes.set_ylabel("load (1000 requests/s)", color="#66707A")
    axes.tick_params(axis="y", colors="#66707A")
    axes.spines["right"].set_visible(True)
    axes.spines["right"].set_color(LOAD_COLOUR)
    axes.set_ylim(0, 1.08 * max([1.0, *(i.qps / 1e3 for i in known if i.qps)]))
    if known:
        edges = [known[0].start_s, *(i.end_s for i in known)]
        axes.stairs([(i.qps or 0.0) / 1e3 for i in known], edges, fill=True, color=LOAD_COLOUR, alpha=0.35)


def _bars(axes: Axes, record: Record, wished: Mapping[str, str]) -> None:
    """A bar a job: as thick as it has cores; a pause is a thin hatched line."""
    line = record.timeline
    colours = job_colours(line.jobs, wished)
    most = max([1, *(len(s.cores) for stretches in line.jobs.values() for s in stretches if not s.paused)])
    for row, (name, stretches) in enumerate(line.jobs.items()):
        active, paused = list[_Box](), list[_Box]()
        for stretch in stretches:
            height = 0.16 if stretch.paused else 0.2 + 0.65 * len(stretch.cores) / most
            box = (stretch.begin_s, row - height / 2, stretch.end_s - stretch.begin_s, height)
            (paused if stretch.paused else active).append(box)
        _draw_boxes(axes, active, color=colours[name], linewidth=0)
        _draw_boxes(axes, paused, fc="white", ec=colours[name], hatch="/////", linewidth=0.5)
        axes.plot(stretches[0].begin_s, row, marker=">", color="black", markersize=5, zorder=4, clip_on=False)
        if name in record.grade.jobs and record.grade.jobs[name].wall_s is not None:
            axes.plot(stretches[-1].end_s, row, marker="s", color="black", markersize=4, zorder=4)
    axes.set_yticks(range(len(line.jobs)), list(line.jobs))
    axes.set_ylim(len(line.jobs) - 0.4, -0.6)
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    handles = [
        Line2D([], [], marker=">", color="black", linestyle="", markersize=5, label="start"),
        Line2D([], [], marker="s", color="black", linestyle="", markersize=4, label="end"),
        Patch(facecolor="#888888", label=f"thickness: cores (up to {most})"),
        Patch(facecolor="white", edgecolor="#888888", hatch="/////", label="paused"),
    ]
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, 0), ncols=4, frameon=False, fontsize=8, borderaxespad=3.2
    )


def _draw_boxes(axes: Axes, boxes: Sequence[_Box], **look: Any) -> None:  # noqa: ANN401 -- as matplotlib takes it
    """Rectangles of one look as one thing: hundreds one by one take seconds."""
    corners = [[(x, y), (x + width, y), (x + width, y + height), (x, y + height)] for x, y, width, height in boxes]
    if corners:
        axes.add_collection(PolyCollection(corners, **look), autolim=False)


def _service_cores(axes: Axes, line: Timeline) -> None:
    axes.set_zorder(3)
    axes.patch.set_visible(False)
    for stretch in line.service:
        span_s, count = [stretch.begin_s, stretch.end_s], len(stretch.cores)
        axes.plot(span_s, [count] * 2, color=SERVICE_COLOUR, linewidth=2.4, solid_capstyle="butt")
    for before, after in pairwise(line.service):
        axes.plot([after.begin_s] * 2, [len(before.cores), len(after.cores)], color=SERVICE_COLOUR, linewidth=1.0)
    axes.set_ylim(0, max(1, len(line.cores)) + 0.3)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("memcached's cores", color=SERVICE_COLOUR)
    axes.tick_params(axis="y", colors=SERVICE_COLOUR)


def _core_map(axes: Axes, record: Record, wished: Mapping[str, str]) -> None:
    """Who holds each core: memcached above, jobs that share it side by side below."""
    line = record.timeline
    colours = job_colours(line.jobs, wished)
    cores = sorted(line.cores)
    rows = {core: row for row, core in enumerate(cores)}
    axes.set_facecolor(FREE_COLOUR)
    boxes: dict[str, list[_Box]] = {}
    for core, pieces in holders(line).items():
        for begin_s, end_s, names in pieces:
            height = 0.86 / len(names)
            for index, name in enumerate(names):
                box = (begin_s, rows[core] - 0.43 + index * height, end_s - begin_s, height)
                boxes.setdefault(name, []).append(box)
    for name, theirs in boxes.items():
        _draw_boxes(axes, theirs, color=SERVICE_COLOUR if name == SERVICE else colours[name], linewidth=0)
    shown = cores[:: 1 + len(cores) // _MOST_LABELS]
    axes.set_yticks([rows[core] for core in shown], [f"core {core}" for core in shown])
    axes.set_ylim(max(1, len(cores)) - 0.5, -0.5)
    handles = [Patch(color=SERVICE_COLOUR, label=SERVICE), *(Patch(color=c, label=n) for n, c in colours.items())]
    figure = axes.get_figure(root=True)
    assert figure is not None  # noqa: S101 -- these axes are in one
    figure.legend(  # its title is the figure's: a title of its own would stand in its way
        handles=handles, loc="outside upper center", ncols=8, frameon=False, fontsize=8,
        title="   ".join(headline(record)), title_fontsize=9.5,
    )  # fmt: skip


def _lanes(line: Timeline) -> list[tuple[str, list[Change]]]:
    """The changes by their causes (by kinds, where no reason is known), the most frequent first."""
    known = any(change.reason for change in line.changes)
    lanes: dict[str, list[Change]] = {}
    for change in line.changes:
        if change.kind == "end":
            continue
        name = cause(change.reason) if known else f"{change.kind} {SERVICE if change.target == SERVICE else 'a job'}"
        lanes.setdefault(name, []).append(change)
    ranked = sorted(lanes.items(), key=lambda lane: -len(lane[1]))
    if len(ranked) > _MOST_CAUSES:
        rest = [change for _, changes in ranked[_MOST_CAUSES - 1 :] for change in changes]
        ranked = [*ranked[: _MOST_CAUSES - 1], ("other reasons", rest)]
    return ranked


def _mark(change: Change) -> str:
    if change.kind in {"pause", "unpause"}:
        return change.kind
    if change.kind == "start":
        return "unpause"
    return "grow" if len(change.cores) > len(change.before) else "shrink"


def _time_axis(axes: Axes, record: Record) -> None:
    line = record.timeline
    begin_s = min(0.0, max(line.begin_s, -30.0))
    end_s = max([record.grade.makespan_s or 0.0, *(s.end_s for stretches in line.jobs.values() for s in stretches)])
    axes.set_xlim(begin_s, 1.01 * (end_s or max(1.0, line.end_s)))
    axes.set_xlabel("time since the first job's start (s)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _title(figure: Figure, record: Record) -> None:
    figure.suptitle("   ".join(headline(record)), fontsize=9.5)
