"""Which load generator's output belongs to which event log: by overlap in time, never by name.

A log's clock is local and has no zone, the load generator's is not: the two may be whole hours apart. One offset that
fits many runs is likelier than many offsets that fit one run each, and a small one than a large one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from colocate import mcperf
from colocate.eventlog import Log
from colocate.report.grade import HOUR_S, MOST_OFFSET_H, window
from colocate.report.suspicions import runs

_TIE = 0.01  # scores that differ by less are equal
_MOSTLY = 0.5
_TOGETHER_S = 120.0


@dataclass(frozen=True, slots=True)
class Pair:
    """A log with the output that was found for it.

    Attributes:
        load: None where none overlaps.
        offset_h: hours by which the log's clock is ahead.
        coverage: share of the jobs' time that the output covers.
        others: outputs that would fit as well.
    """

    log: Path
    load: Path | None = None
    offset_h: int = 0
    coverage: float = 0.0
    others: tuple[Path, ...] = ()

    def __str__(self) -> str:
        """As people read it."""
        if self.load is None:
            return f"{self.log}: no load generator's output overlaps it"
        clock = f", the log's clock {self.offset_h:+d} h" if self.offset_h else ""
        doubt = f"; {', '.join(map(str, self.others))} would fit as well" if self.others else ""
        return f"{self.log} + {self.load} ({self.coverage:.0%} of the jobs' time{clock}){doubt}"


def pair(logs: Mapping[Path, Log], loads: Mapping[Path, Sequence[mcperf.Output]]) -> list[Pair]:
    """For each log the output over the same time, in the order of the logs.

    Each output goes to one log, so that as much as possible is covered in all (an assignment problem). A log that is
    left over may have an output that another one has, where the clocks differ equally: one load can outlast many runs.

    Args:
        logs: parsed, by file; of several runs in one the best covered counts.
        loads: the outputs in each file.
    """
    if not logs or not loads:
        return [Pair(path) for path in logs]
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]  # it ships no types; slow to load

    spans = [_spans(outputs) for outputs in loads.values()]
    jobs = [[times for run in runs(log) if (times := window(run.events))] for log in logs.values()]
    hours = sorted(range(-MOST_OFFSET_H, MOST_OFFSET_H + 1), key=abs)
    shares = [[[_covered(run, span, hour)[0] for hour in hours] for span in spans] for run in jobs]
    support = [sum(max(fit[at] for fit in fits) > _MOSTLY for fits in shares) / len(jobs) for at in range(len(hours))]
    best = [
        [max(_Fit.of(*_covered(run, span, hour), hour, support[at]) for at, hour in enumerate(hours)) for span in spans]
        for run in jobs
    ]
    rows, columns = linear_sum_assignment([[-fit.score * (fit.share > 0) for fit in fits] for fits in best])
    chosen = {row: column for row, column in zip(rows, columns, strict=True) if best[row][column].share > 0}
    used = {column: best[row][column].hours for row, column in chosen.items()}
    files = list(loads)
    found: list[Pair] = []
    for row, path in enumerate(logs):
        column = chosen.get(row)
        if column is None:
            shared = [c for c, hour in used.items() if best[row][c].hours == hour and best[row][c].share > _MOSTLY]
            column = max(shared, key=lambda c: best[row][c].share, default=None)
        if column is None:
            found.append(Pair(path))
            continue
        fit = best[row][column]
        others = tuple(
            files[c] for c, other in enumerate(best[row]) if c not in used and other.score > fit.score - _TIE
        )
        found.append(Pair(path, files[column], fit.hours, fit.share, others))
    return found


@dataclass(frozen=True, slots=True, order=True)
class _Fit:
    """How well an output fits a log at an offset."""

    score: float
    share: float
    hours: int

    @classmethod
    def of(cls, share: float, apart_s: float, hours: int, support: float) -> _Fit:
        """By the share of the jobs' time that is covered, how many logs the offset explains, and how close they begin.

        Who grades a run starts its load and its jobs together.
        """
        apart = min(1.0, apart_s / _TOGETHER_S)
        return cls((share + support / 2 - 0.1 * (hours != 0) - 0.4 * apart) * (share > 0), share, hours)


def _covered(
    windows: Sequence[tuple[float, float]], spans: Sequence[tuple[float, float]], hours: int
) -> tuple[float, float]:
    """The share of the jobs' time that an output covers at an offset, and seconds between the two beginnings."""
    return max(
        ((_share(jobs, span, hours), abs(jobs[0] - hours * HOUR_S - span[0])) for jobs in windows for span in spans),
        default=(0.0, 0.0),
    )


def _share(jobs: tuple[float, float], load: tuple[float, float], hours: int) -> float:
    begin_s, end_s = (moment - hours * HOUR_S for moment in jobs)
    return max(0.0, min(end_s, load[1]) - max(begin_s, load[0])) / max(1.0, end_s - begin_s)


def _spans(outputs: Sequence[mcperf.Output]) -> list[tuple[float, float]]:
    laid = [mcperf.intervals(output) for output in outputs]
    return [(rows[0][0], rows[-1][1]) for rows in laid if rows]
