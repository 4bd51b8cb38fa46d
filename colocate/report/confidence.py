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

    def document(self) -> dict[str, object]:
        """As `--json` prints it."""
        return {"mean": self.mean, "ci95": [self.low, self.high]}


def estimate(values: Sequence[float], least: float = -math.inf, most: float = math.inf) -> Estimate:
    """The mean of independent values that are between `least` and `most`, and its interval within these."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Estimate(mean, math.nan, math.nan)
    half = t_quantile(0.5 + CONFIDENCE / 2, count - 1) * statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean, max(least, mean - half), min(most, mean + half))


def t_quantile(p: float, freedom: int) -> float:
    """Student's t: the value below which a share `p` (0.5 to 1) lies, with `freedom` degrees of freedom.

    By bisection of the distribution function, which is a finite sum for whole degrees of freedom (Abramowitz and
    Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 + _within(middle, freedom) / 2 < p else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """The probability of |t| < sqrt(freedom) tan(angle)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(odd, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (k + 1) / (k + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
