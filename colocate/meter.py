"""What a run has done so far, as figures that only grow: counts, and histograms of durations."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

BOUNDS_S = (
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
_MOST_REASONS = 60  # so many lines of each kind a time series data base can bear
_LONGEST_REASON = 80
_NUMBER = re.compile(r"(?<![A-Za-z\d.])\d+(?:\.\d+)?")  # a figure, not the end of a name such as p95


@dataclass(slots=True)
class Histogram:
    """Durations by size: `counts[i]` holds those up to `BOUNDS_S[i]` and above the bound before; the last, the rest."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        """One more; what is negative counts as none."""
        seconds = max(0.0, seconds)
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


class Meter:
    """The tallies of one run. Written by the loop's thread; another thread may read a figure that is a tick old.

    Attributes:
        work: what a tick took.
        late: how late it began.
        actuators: by a move's kind, from the decision until it had taken effect.
        moves: by kind and `cause`.
        errors: moves that failed, by kind.
        judged_s: how long there was a fresh latency to hold against the SLO.
        broken_s: for how much of that it was over the SLO.
    """

    def __init__(self) -> None:
        self.work = Histogram()
        self.late = Histogram()
        self.actuators: dict[str, Histogram] = {}
        self.moves: Counter[tuple[str, str]] = Counter()
        self.errors: Counter[str] = Counter()
        self.judged_s = 0.0
        self.broken_s = 0.0

    def tick(self, work_s: float, late_s: float) -> None:
        """A tick is over."""
        self.work.add(work_s)
        self.late.add(late_s)

    def moved(self, kind: str, reason: str) -> None:
        """A move was asked for."""
        key = (kind, cause(reason))
        self.moves[key if key in self.moves or len(self.moves) < _MOST_REASONS else (kind, "other")] += 1

    def took(self, kind: str, seconds: float) -> None:
        """A move took effect so long after it was asked for."""
        self.actuators.setdefault(kind, Histogram()).add(seconds)

    def judged(self, seconds: float, *, broken: bool) -> None:
        """A fresh latency was held against the SLO for so long."""
        self.judged_s += seconds
        if broken:
            self.broken_s += seconds

    def document(self) -> dict[str, object]:
        """The figures as JSON can hold them."""
        return {
            "bounds_s": BOUNDS_S,
            "work": _told(self.work),
            "late": _told(self.late),
            "actuators": {kind: _told(found) for kind, found in self.actuators.copy().items()},
            "moves": [[kind, why, count] for (kind, why), count in self.moves.copy().items()],
            "errors": dict(self.errors.copy()),
            "judged_s": self.judged_s,
            "broken_s": self.broken_s,
        }


def cause(reason: str) -> str:
    """A reason without its figures, of which there are few, and short: `needs 3 cores` becomes `needs N cores`."""
    return _NUMBER.sub("N", reason).strip()[:_LONGEST_REASON] or "unknown"


def _told(histogram: Histogram) -> dict[str, object]:
    return {"counts": list(histogram.counts), "sum_s": histogram.sum_s}
