"""A picture of a comparison: violations of the SLO against the makespan, one point a policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from matplotlib.transforms import Bbox

from colocate.errors import UserError
from colocate.report.comparison import Comparison, Row

# Okabe and Ito's colours, which people with any kind of colour blindness can tell apart; markers differ as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX*"
_TICKS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_LINEAR_BELOW = 0.02  # from there on the scale is logarithmic
_BACK = {"facecolor": "white", "alpha": 0.7, "linewidth": 0.0, "pad": 0.5}  # keeps names readable on lines
_FORMATS = (".png", ".svg")
_PLACES = (
    (7, 5, "left", "bottom"), (7, -5, "left", "top"), (-7, 5, "right", "bottom"), (-7, -5, "right", "top"),
    (7, 17, "left", "bottom"), (7, -17, "left", "top"),
)  # fmt: skip


def check_picture(path: Path) -> None:
    """Whether it is a picture's name.

    Raises:
        UserError: it is neither PNG nor SVG.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"{path}: no kind of picture that is known", "give a name that ends in .png or .svg")


def front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other one beats in both violations and makespan, by makespan."""

    def beaten(row: Row) -> bool:
        here = (row.makespan_s.mean, row.slo_violation_ratio.mean)
        others = ((other.makespan_s.mean, other.slo_violation_ratio.mean) for other in rows)
        return any(s <= here[0] and v <= here[1] and (s, v) != here for s, v in others)

    return sorted((row for row in rows if not beaten(row)), key=lambda row: row.makespan_s.mean)


def draw(comparison: Comparison, path: Path) -> None:
    """Write the picture; the same comparison gives the same bytes.

    Raises:
        UserError: it cannot be written.
    """
    check_picture(path)
    rows = comparison.rows()
    figure = Figure(figsize=(8.0, 5.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    best = front(rows)
    axes.plot(
        [row.makespan_s.mean for row in best], [row.slo_violation_ratio.mean for row in best],
        color="#999999", linewidth=6, marker="o", markersize=18, markeredgewidth=0, alpha=0.4,
        label="Pareto front", zorder=1,
    )  # fmt: skip
    for index, row in enumerate(rows):
        _point(axes, row, _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)])
    _bounds(axes, comparison, sharing=any(row.share for row in rows))
    _scale(axes)
    axes.set_xlabel("makespan (s, simulated), mean and 95 % interval")
    axes.set_ylabel("load intervals that violate the SLO")
    seeds = len(comparison.oracles)
    axes.set_title(f"{comparison.scenario}, load every {comparison.qps_interval_s:g} s, {seeds} seeds", fontsize=11)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False, markerscale=0.6)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    _label(axes, rows)
    try:
        with mpl.rc_context({"svg.hashsalt": "colocate", "svg.fonttype": "none"}):
            figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "give a file that can be written") from error


def _point(axes: Axes, row: Row, colour: str, marker: str) -> None:
    x, y = row.makespan_s, row.slo_violation_ratio
    sides = [
        [[value.mean - value.low], [value.high - value.mean]] if value.low == value.low else None for value in (x, y)
    ]
    axes.errorbar(
        [x.mean], [y.mean], xerr=sides[0], yerr=sides[1],
        fmt=marker, color=colour, markersize=8, capsize=3, markeredgecolor="white", zorder=3,
    )  # fmt: skip


def _bounds(axes: Axes, comparison: Comparison, *, sharing: bool) -> None:
    styles = {"exclusive": "#444444", "sharing": "#8C510A"}
    for kind, bound in comparison.oracle().items():
        if kind == "sharing" and not sharing:
            continue
        told = "oracle" if kind == "exclusive" else "sharing oracle"
        axes.axvline(bound["lower_bound_s"], color=styles[kind], linestyle=":", label=f"{told}: lower bound", zorder=0)
        axes.axvline(bound["best_s"], color=styles[kind], linestyle="--", label=f"{told}: best found", zorder=0)


def _scale(axes: Axes) -> None:
    """From zero, to scale up to 2 % and logarithmic beyond, so that both 0.5 % and 30 % can be read."""
    top = max(axes.get_ylim()[1], _LINEAR_BELOW)
    axes.set_yscale("symlog", linthresh=_LINEAR_BELOW, linscale=1.0)
    axes.set_yticks([tick for tick in _TICKS if tick <= top] or [0.0])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.set_ylim(-0.002, 1.25 * top)
    axes.margins(x=0.08)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def _label(axes: Axes, rows: Sequence[Row]) -> None:
    """Each point's name beside it, where there is room."""
    area = axes.get_window_extent()
    taken: list[Bbox] = []
    for row in rows:
        x, y = axes.transData.transform((row.makespan_s.mean, row.slo_violation_ratio.mean))
        taken.append(Bbox.from_bounds(x - 6, y - 6, 12, 12))
    for index, row in enumerate(rows):
        where = (row.makespan_s.mean, row.slo_violation_ratio.mean)
        for dx, dy, horizontal, vertical in _PLACES:
            text = axes.annotate(
                row.policy, where, (dx, dy), textcoords="offset points", ha=horizontal, va=vertical,
                fontsize=9, color=_COLOURS[index % len(_COLOURS)], zorder=4, bbox=_BACK,
            )  # fmt: skip
            box = text.get_window_extent()
            free = not any(box.overlaps(other) for other in taken)
            if free and area.x0 <= box.x0 and box.x1 <= area.x1 and area.y0 <= box.y0 and box.y1 <= area.y1:
                break
            if (dx, dy, horizontal, vertical) != _PLACES[-1]:
                text.remove()
        taken.append(box)
