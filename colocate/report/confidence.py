"""Means with their 95 % confidence intervals, by Student's t."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and the interval that holds the true one in 95 % of all cases; NaN bounds where one value is all."""

    mean: float
    low: float
    high: float

    @property
    def is_difference(self) -> bool:
        """Whether zero is outside the interval."""
        return self.low > 0 or self.high < 0

    def told(self, digits: int, times: float = 1.0, sign: str = "") -> str:
        """The mean and half of its interval, where there is one, as people read it."""
        spread = "" if math.isnan(self.high) else f" ± {times * (self.high - self.mean):.{digits}f}"
        return f"{times * self.mean:{sign}.{digits}f}{spread}"

    def document(self) -> dict[str, object]:
        """As `--json` prints it."""
        return {"mean": self.mean, "ci95": [self.low, self.high]}


def estimate(values: Sequence[float], least: float = -math.inf, most: float = math.inf) -> Estimate:
    """The mean of independent values that are between `least` and `most`, and its interval within these."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Estimate(mean, math.nan, math.nan)
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # it ships no types; a third of a second to load

    half = float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2)) * statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean, max(least, mean - half), min(most, mean + half))
