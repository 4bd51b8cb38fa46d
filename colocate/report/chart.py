"""The figures of a run as Plotly takes them, for pages on which they can be zoomed: the same pictures as in `figures`.

Each function gives `{"data": [...], "layout": {...}}`, plain JSON (https://plotly.com/javascript/reference/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from colocate.cores import format_list
from colocate.eventlog import SERVICE
from colocate.report.colours import FREE_COLOUR, LOAD_COLOUR, SERVICE_COLOUR, VIOLATION_COLOUR, job_colours
from colocate.report.record import Record
from colocate.report.timeline import Change, Stretch, Timeline, holders, listed

Chart = dict[str, Any]
_MOST_SHADES = 400  # rectangles that a browser bears
_FEW = 300
_INK = "#444444"


def figure_a(record: Record, wished: Mapping[str, str] | None = None) -> Chart:
    """Latency and load over time with the SLO and its violations; below, a bar a job, as thick as it has cores."""
    line, slo = record.timeline, record.slo
    colours = job_colours(line.jobs, wished)
    names = list(line.jobs)
    most = max([1, *(len(s.cores) for stretches in line.jobs.values() for s in stretches if not s.paused)])
    data = [_load(line, "y2"), *_latency(record)]
    for row, (name, stretches) in enumerate(line.jobs.items()):
        active = [stretch for stretch in stretches if not stretch.paused]
        widths = [0.2 + 0.65 * len(stretch.cores) / most for stretch in active]
        data.append(_bars(name, row, active, widths, {"color": colours[name]}))
        if paused := [stretch for stretch in stretches if stretch.paused]:
            pattern = {"shape": "/", "fgcolor": colours[name], "bgcolor": "rgba(0,0,0,0)", "size": 5}
            look = {"color": "rgba(0,0,0,0)", "line": {"color": colours[name], "width": 1}, "pattern": pattern}
            data.append(_bars(name, row, paused, [0.18] * len(paused), look))
    ended = [name for name in names if name in record.grade.jobs and record.grade.jobs[name].wall_s is not None]
    data.append(_marks("start", "triangle-right", [(line.jobs[n][0].begin_s, names.index(n)) for n in names]))
    data.append(_marks("end", "square", [(line.jobs[n][-1].end_s, names.index(n)) for n in ended]))
    late = [i for i in line.intervals if i.latency_ms is not None and i.latency_ms > slo.latency_ms]
    shades = [
        {"type": "rect", "xref": "x", "yref": "y domain", "x0": _r(i.start_s), "x1": _r(i.end_s), "y0": 0, "y1": 1,
         "fillcolor": VIOLATION_COLOUR, "opacity": 0.16, "line": {"width": 0}, "layer": "below"}
        for i in late[:_MOST_SHADES]
    ]  # fmt: skip
    promise = {
        "type": "line", "xref": "x domain", "yref": "y", "x0": 0, "x1": 1, "y0": slo.latency_ms, "y1": slo.latency_ms,
        "line": {"color": VIOLATION_COLOUR, "width": 1.5, "dash": "dash"},
        "label": {"text": f"SLO {slo.latency_ms:g} ms", "textposition": "end", "font": {"color": VIOLATION_COLOUR}},
    }  # fmt: skip
    split = 0.42 if names else 0.0
    layout = _layout(record, 330 + 34 * len(names), "y3") | {
        "barmode": "overlay",
        "shapes": [*shades, promise],
        "yaxis": {"domain": [split, 1], "rangemode": "tozero", "title": {"text": f"p{slo.percentile:g} latency (ms)"}},
        "yaxis2": _right("load (requests/s)") | {"overlaying": "y"},
        "yaxis3": {
            "domain": [0, max(0.0, split - 0.06)],
            "tickvals": list(range(len(names))),
            "ticktext": names,
            "range": [len(names) - 0.4, -0.6],
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
    }
    return {"data": data, "layout": layout}


def figure_b(record: Record) -> Chart:
    """Memcached's cores and its load over time."""
    line = record.timeline
    xs, ys = list[float](), list[int]()
    for stretch in line.service:
        xs += [_r(stretch.begin_s), _r(stretch.end_s)]
        ys += [len(stretch.cores)] * 2
    cores = {
        "type": "scatter", "mode": "lines", "name": "memcached's cores", "x": xs, "y": ys,
        "line": {"color": SERVICE_COLOUR, "width": 2.5}, "hovertemplate": "%{y} cores<extra></extra>",
    }  # fmt: skip
    layout = _layout(record, 280, "y") | {
        "yaxis": {
            "range": [0, max(1, len(line.cores)) + 0.3],
            "dtick": 1 if len(line.cores) <= 8 else None,
            "title": {"text": "memcached's cores"},
        },
        "yaxis2": _right("load (requests/s)") | {"overlaying": "y"},
    }
    return {"data": [_load(line, "y2"), cores], "layout": layout}


def figure_moves(record: Record, wished: Mapping[str, str] | None = None) -> Chart:
    """Who held each core; below, every change, with its reason and its effect where one points at it."""
    line = record.timeline
    colours = {SERVICE: SERVICE_COLOUR, **job_colours(line.jobs, wished)}
    cores = sorted(line.cores)
    laid = holders(line)
    bars: dict[str, dict[str, list[Any]]] = {
        n: {"x": [], "base": [], "y": [], "width": [], "text": []} for n in colours
    }
    for row, core in enumerate(cores):
        for begin_s, end_s, names in laid[core]:
            height = 0.86 / len(names)
            for index, name in enumerate(names):
                bar = bars[name]
                bar["x"].append(_r(end_s - begin_s))
                bar["base"].append(_r(begin_s))
                bar["y"].append(row - 0.43 + (index + 0.5) * height)
                bar["width"].append(height)
                bar["text"].append(f"core {core}: {escape(', '.join(names))}<br>{begin_s:.1f} to {end_s:.1f} s")
    data: list[Chart] = [
        {"type": "bar", "orientation": "h", "name": name, "marker": {"color": colours[name], "line": {"width": 0}},
         "hovertemplate": "%{text}<extra></extra>", "textposition": "none", **bar}
        for name, bar in bars.items() if bar["x"]
    ]  # fmt: skip
    moves = [change for change in line.changes if change.kind != "end"]
    targets = [SERVICE, *line.jobs]
    known = [change for change in moves if change.target in targets]
    data.append({
        "type": "scatter", "mode": "markers", "name": "moves", "yaxis": "y2", "showlegend": False,
        "x": [_r(change.time_s) for change in known],
        "y": [targets.index(change.target) for change in known],
        "text": [told(change) for change in known],
        "marker": {"symbol": [_symbol(change) for change in known], "size": 8,
                   "color": [colours[change.target] for change in known], "line": {"color": _INK, "width": 0.6}},
        "hovertemplate": "%{text}<extra></extra>",
    })  # fmt: skip
    rows = len(cores) + len(targets)
    split = len(targets) / max(1, rows)
    layout = _layout(record, 150 + 30 * rows, "y2") | {
        "barmode": "overlay",
        "yaxis": _rows([f"core {core}" for core in cores], [split + 0.04, 1]),
        "yaxis2": _rows(targets, [0, max(0.0, split - 0.04)]),
    }
    return {"data": data, "layout": layout}


def told(change: Change) -> str:
    """A change in a few lines of HTML, for who points at it."""
    cores = (
        f" {format_list(change.before)} &rarr; {format_list(change.cores)}" if change.before and change.cores else ""
    )
    first = f"{change.time_s:.2f} s: {change.kind} {escape(change.target)}"
    lines = [first + (cores or (f" {format_list(change.cores)}" if change.cores else ""))]
    lines += [escape(change.reason)] if change.reason else []
    before, after = change.latency_ms
    if before is not None and after is not None:
        lines.append(f"latency {before:.2f} &rarr; {after:.2f} ms")
    return "<br>".join(lines)


def _latency(record: Record) -> list[Chart]:
    slo = record.slo
    laid = [i for i in record.timeline.intervals if i.latency_ms is not None]
    late = [i for i in laid if (i.latency_ms or 0.0) > slo.latency_ms]
    percentile = f"p{slo.percentile:g}"
    line = {
        "type": "scatter", "mode": "lines+markers" if len(laid) <= _FEW else "lines", "name": percentile,
        "x": [_r((i.start_s + i.end_s) / 2) for i in laid], "y": [_r(i.latency_ms or 0.0) for i in laid],
        "line": {"color": SERVICE_COLOUR, "width": 1.6}, "marker": {"size": 4},
        "hovertemplate": f"%{{x:.1f}} s: {percentile} %{{y:.3f}} ms<extra></extra>",
    }  # fmt: skip
    crosses = {
        "type": "scatter", "mode": "markers", "name": f"over {slo.latency_ms:g} ms",
        "x": [_r((i.start_s + i.end_s) / 2) for i in late], "y": [_r(i.latency_ms or 0.0) for i in late],
        "marker": {"symbol": "x", "size": 7, "color": VIOLATION_COLOUR}, "hoverinfo": "skip",
    }  # fmt: skip
    return [line, crosses]


def _load(line: Timeline, axis: str) -> Chart:
    known = [i for i in line.intervals if i.qps is not None]
    xs = [_r(i.start_s) for i in known] + [_r(known[-1].end_s)] if known else []
    ys = [_r(i.qps or 0.0, 0) for i in known] + [_r(known[-1].qps or 0.0, 0)] if known else []
    return {
        "type": "scatter", "mode": "lines", "name": "load", "yaxis": axis, "x": xs, "y": ys, "fill": "tozeroy",
        "line": {"shape": "hv", "color": LOAD_COLOUR, "width": 1}, "fillcolor": "rgba(154,165,177,0.25)",
        "hovertemplate": "%{x:.1f} s: %{y:,.0f} requests/s<extra></extra>",
    }  # fmt: skip


def _bars(name: str, row: int, stretches: Sequence[Stretch], widths: Sequence[float], look: Chart) -> Chart:
    return {
        "type": "bar", "orientation": "h", "name": name, "yaxis": "y3", "showlegend": False, "marker": look,
        "x": [_r(s.end_s - s.begin_s) for s in stretches], "base": [_r(s.begin_s) for s in stretches],
        "y": [row] * len(stretches), "width": widths, "textposition": "none",
        "text": [
            f"{escape(name)}: {'paused' if s.paused else listed(s.cores)}<br>{s.begin_s:.1f} to {s.end_s:.1f} s"
            for s in stretches
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _marks(name: str, symbol: str, at: Sequence[tuple[float, int]]) -> Chart:
    return {
        "type": "scatter", "mode": "markers", "name": name, "yaxis": "y3", "cliponaxis": False,
        "x": [_r(time_s) for time_s, _ in at], "y": [row for _, row in at],
        "marker": {"symbol": symbol, "size": 8, "color": _INK},
        "hovertemplate": f"{name} at %{{x:.1f}} s<extra></extra>",
    }  # fmt: skip


def _symbol(change: Change) -> str:
    if change.kind == "pause":
        return "line-ns-open"
    if change.kind in {"start", "unpause"}:
        return "triangle-right"
    return "triangle-up" if len(change.cores) > len(change.before) else "triangle-down"


def _rows(names: Sequence[str], domain: Sequence[float]) -> Chart:
    return {
        "domain": list(domain), "tickvals": list(range(len(names))), "ticktext": list(names), "fixedrange": True,
        "range": [len(names) - 0.5, -0.5], "showgrid": False, "zeroline": False,
    }  # fmt: skip


def _right(title: str) -> Chart:
    return {
        "side": "right", "rangemode": "tozero", "showgrid": False, "zeroline": False, "tickmode": "auto",
        "title": {"text": title},
    }  # fmt: skip


def _layout(record: Record, height_px: int, lowest: str) -> Chart:
    line = record.timeline
    ends = [stretches[-1].end_s for stretches in line.jobs.values()]
    end_s = max([record.grade.makespan_s or 0.0, *ends]) or line.end_s
    return {
        "height": height_px,
        "margin": {"l": 110, "r": 70, "t": 10, "b": 45},
        "hovermode": "closest",
        "dragmode": "zoom",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#B0B8C0", "activecolor": _INK},
        "uirevision": str(record.path),
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "plot_bgcolor": "rgba(0,0,0,0)" if line.jobs else FREE_COLOUR,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {
            "title": {"text": "time since the first job's start (s)"},
            "range": [_r(-0.01 * end_s), _r(1.01 * end_s)],
            "anchor": lowest,
            "zeroline": False,
        },
    }


def _r(value: float, digits: int = 3) -> float:
    """Rounded, so that a page stays small."""
    return round(value, digits)
