"""Latency distributions: one of constant conditions, and the mixture that a load interval sees.

A distribution is a shape (quantiles relative to the 95th percentile) times a scale. Between the quantiles that mcperf
reports, the logarithm of the share of slower requests is linear in the logarithm of the latency: the tail of a service
that queues is close to a power law there, and both directions of reading are exact inverses of each other.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from colocate.mcperf import Row

PROBABILITIES = (
    0.0,
    0.05,
    0.1,
    0.5,
    0.67,
    0.75,
    0.8,
    0.85,
    0.9,
    0.95,
    0.99,
    0.999,
    0.9999,
)  # mcperf's columns, min first
_P95 = PROBABILITIES.index(0.95)
_WORST = 1e-6  # nobody is slower than this share's quantile, by the slope of the last segment
_LOG_SHARES = (*(math.log1p(-p) for p in PROBABILITIES), math.log(_WORST))
_RISING = tuple(-log_share for log_share in _LOG_SHARES)
_STEPS = 60
_CLOSE = 1e-9
_EXACT = 1e-5


class Shape:
    """Quantiles relative to the 95th percentile, at `PROBABILITIES`; immutable.

    Args:
        quantiles: ascending and above 0; they are divided by the one at 0.95.

    Raises:
        ValueError: they are not, or not as many as `PROBABILITIES`.
    """

    __slots__ = ("logs", "mean", "quantiles", "square")

    def __init__(self, quantiles: Sequence[float]) -> None:
        if len(quantiles) != len(PROBABILITIES) or quantiles[0] <= 0 or list(quantiles) != sorted(quantiles):
            raise ValueError(f"{len(PROBABILITIES)} ascending quantiles above 0 are wanted, not {quantiles}")
        logs = [math.log(q / quantiles[_P95]) for q in quantiles]
        for index in range(1, len(logs)):  # strictly ascending, so that the share is a function of the latency
            logs[index] = max(logs[index], logs[index - 1] + _CLOSE)
        steepness = (logs[-1] - logs[-2]) / (_LOG_SHARES[-2] - _LOG_SHARES[-3])
        logs.append(logs[-1] + steepness * (_LOG_SHARES[-1] - _LOG_SHARES[-2]))
        self.logs = tuple(logs)
        self.quantiles = tuple(math.exp(log) for log in logs[:-1])
        self.mean, self.square = self._moment(1), self._moment(2)

    def toward(self, other: Shape, share: float) -> Shape:
        """The shape between this one (share 0) and another (1)."""
        if share <= 0 or share >= 1:
            return self if share <= 0 else other
        return Shape([a ** (1 - share) * b**share for a, b in zip(self.quantiles, other.quantiles, strict=True)])

    def _moment(self, order: int) -> float:
        """The integral of order * x^(order - 1) * share slower than x, which is a power law in each segment."""
        total = math.exp(order * self.logs[0])
        for index in range(len(self.logs) - 1):
            width = self.logs[index + 1] - self.logs[index]
            start = order * self.logs[index] + _LOG_SHARES[index]
            slope = order + (_LOG_SHARES[index + 1] - _LOG_SHARES[index]) / width
            total += order * math.exp(start) * (math.expm1(slope * width) / slope if slope else width)
        return total


class Latency:
    """One latency distribution of constant conditions, microseconds; immutable.

    Args:
        p95_us: its 95th percentile.
        shape: all others relative to it.
    """

    __slots__ = ("_log_p95", "p95_us", "shape")

    def __init__(self, p95_us: float, shape: Shape) -> None:
        self.p95_us = p95_us
        self.shape = shape
        self._log_p95 = math.log(p95_us)

    @property
    def mean_us(self) -> float:
        """The mean."""
        return self.p95_us * self.shape.mean

    @property
    def square_us2(self) -> float:
        """The mean of the squares."""
        return self.p95_us**2 * self.shape.square

    def stretched(self, factor: float) -> Latency:
        """The same distribution, every request slower by a factor."""
        return Latency(self.p95_us * factor, self.shape)

    def quantile(self, p: float) -> float:
        """The latency in microseconds that a share `p` (0 to 1) of the requests does not exceed."""
        log_share = math.log1p(-p) if p < 1.0 - _WORST else _LOG_SHARES[-1]
        logs = self.shape.logs
        index = min(bisect_right(_RISING, -log_share), len(_RISING) - 1) - 1
        low, high = _LOG_SHARES[index], _LOG_SHARES[index + 1]
        log = logs[index] + (logs[index + 1] - logs[index]) * (log_share - low) / (high - low)
        return math.exp(self._log_p95 + log)

    def exceeding(self, us: float) -> float:
        """The share of requests (0 to 1) that take longer than `us` microseconds."""
        logs = self.shape.logs
        log = math.log(us) - self._log_p95 if us > 0 else -math.inf
        if log <= logs[0]:
            return 1.0
        if log >= logs[-1]:
            return 0.0
        index = bisect_right(logs, log) - 1
        low, high = _LOG_SHARES[index], _LOG_SHARES[index + 1]
        return math.exp(low + (high - low) * (log - logs[index]) / (logs[index + 1] - logs[index]))


class Mixture:
    """What a load interval saw: latency distributions, each weighted by its requests.

    Attributes:
        requests: how many in all.
    """

    __slots__ = ("_parts", "requests")

    def __init__(self) -> None:
        self._parts: dict[Latency, float] = {}
        self.requests = 0.0

    def add(self, latency: Latency, requests: float) -> None:
        """So many more requests met this latency."""
        self._parts[latency] = self._parts.get(latency, 0.0) + requests
        self.requests += requests

    def exceeding(self, us: float) -> float:
        """The share of requests (0 to 1) that took longer than `us` microseconds; 0 without requests."""
        if not self.requests:
            return 0.0
        return sum(weight * part.exceeding(us) for part, weight in self._parts.items()) / self.requests

    def quantile(self, p: float) -> float:
        """The latency in microseconds that a share `p` (0 to 1) of the requests did not exceed; 0 without requests."""
        ends = [part.quantile(p) for part, weight in self._parts.items() if weight > 0]
        if not ends:
            return 0.0
        low, high = min(ends), max(ends)
        if p <= 0 or high - low <= _EXACT * high:
            return low
        goal = math.log(max(1.0 - p, _WORST))
        low_log, high_log = math.log(low), math.log(high)
        low_gap, high_gap = self._gap(low, goal), self._gap(high, goal)
        for step in range(_STEPS):
            if high_log - low_log <= _EXACT:
                break
            # The share is nearly a power law between two quantiles; every third step halves, whatever it looks like.
            place = low_gap / (low_gap - high_gap) if step % 3 < 2 and low_gap > high_gap else 0.5
            middle_log = low_log + min(0.99, max(0.01, place)) * (high_log - low_log)
            gap = self._gap(math.exp(middle_log), goal)
            if abs(gap) <= _EXACT:
                return math.exp(middle_log)
            if gap > 0:
                low_log, low_gap = middle_log, gap
            else:
                high_log, high_gap = middle_log, gap
        return min(high, math.exp(high_log))

    def _gap(self, us: float, goal: float) -> float:
        share = self.exceeding(us)
        return (math.log(share) if share > 0 else 2 * _LOG_SHARES[-1]) - goal

    def row(self, qps: float, target: int) -> Row:
        """All columns of mcperf's row; 0 where there were no requests."""
        total = self.requests or 1.0
        mean = sum(weight * part.mean_us for part, weight in self._parts.items()) / total
        square = sum(weight * part.square_us2 for part, weight in self._parts.items()) / total
        deviation = math.sqrt(max(0.0, square - mean * mean))
        quantiles = [self.quantile(p) for p in PROBABILITIES]
        return Row(mean, deviation, *quantiles, qps, target)  # type: ignore[call-arg,arg-type]  # 13 quantiles
