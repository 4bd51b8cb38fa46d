"""From measured points to the figures of memcached's model (`colocate.sim.service`)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from colocate.load.scan import Point
from colocate.sim.figures import CurveFigure, Figure
from colocate.sim.latency import PROBABILITIES
from colocate.sim.service import LOADS, batch_effect

_COLUMNS = ("min", "p5", "p10", "p50", "p67", "p75", "p80", "p85", "p90", "p95", "p99", "p999", "p9999")
_LIGHT, _BUSY = (0.0, 0.15), (0.4, 0.6)  # the shares of the capacity from which the shapes are taken
_STEADY = 0.7  # up to this share two intervals of one load are alike
assert len(_COLUMNS) == len(PROBABILITIES)  # noqa: S101 -- the model's columns are the generator's


@dataclass(frozen=True, slots=True)
class Scan:
    """memcached on one core count.

    Attributes:
        capacity_qps: the highest load that it kept up with, once a climb.
        points: at loads up to that; those for which the generator was late are left out.
        dropped: how many were left out.
    """

    threads: int
    cores: int
    capacity_qps: Sequence[float]
    points: Sequence[Point]
    dropped: int

    def share(self, point: Point) -> float:
        """A point's load as a share of the capacity."""
        return point.target_qps / statistics.median(self.capacity_qps)


@dataclass(frozen=True, slots=True)
class Beside:
    """A point with something beside memcached and one of the same load without; `batch_cores` is what ran beside."""

    calm: Point
    disturbed: Point
    batch_cores: float

    @property
    def slower(self) -> float:
        """By what share the 95th percentile was higher."""
        return self.disturbed.latency_us["p95"] / self.calm.latency_us["p95"] - 1.0


def spread(values: Iterable[float], source: str) -> Figure:
    """The median of repetitions and their extremes."""
    known = list(values)
    return Figure(statistics.median(known), min(known), max(known), f"{source}, {_times(len(known))}")


def curve_figures(scan: Scan, source: str) -> dict[str, Figure | CurveFigure]:
    """A `[[service.curves]]` entry but for its threads and cores."""
    by_share: dict[float, list[float]] = {}
    for point in scan.points:
        by_share.setdefault(round(scan.share(point), 3), []).append(point.latency_us["p95"])
    shares = sorted(by_share)
    fewest = min(map(len, by_share.values()))

    def at_loads(of: Callable[[Sequence[float]], float]) -> tuple[float, ...]:
        return tuple(_between(shares, pooled([of(by_share[share]) for share in shares]), load) for load in LOADS)

    p95_us = CurveFigure(
        at_loads(statistics.median), at_loads(min), at_loads(max), f"{source}, at least {_times(fewest)}"
    )
    return {
        "capacity_qps": spread(scan.capacity_qps, f"{source}, last step of a climb with p95 under 5 ms"),
        "p95_us": p95_us,
        "saturated_p95_us": Figure(
            p95_us.value[-1], p95_us.low[-1], p95_us.high[-1], f"{source}, at the capacity; a backlog comes on top"
        ),
    }


def shape_figures(scan: Scan, source: str) -> dict[str, CurveFigure]:
    """The quantiles over the 95th percentile under a light load, a busy one, and at the capacity."""
    top = max(map(scan.share, scan.points))
    near_top = (0.97 * top, math.inf)
    return {
        name: _shape([point for point in scan.points if low <= scan.share(point) <= high] or scan.points, source)
        for name, (low, high) in (("light", _LIGHT), ("busy", _BUSY), ("saturated", near_top))
    }


def cpu_figures(scan: Scan, qps_min: float, qps_max: float, source: str) -> dict[str, Figure]:
    """CPU by load, a line through the points in the scenario's range: towards the capacity a request costs less."""
    known = [point for point in scan.points if qps_min / 2 <= point.qps <= 1.5 * qps_max]
    if len({point.target_qps for point in known}) < 2:
        known = sorted(scan.points, key=lambda point: point.qps)[: max(2, len(scan.points) // 3)]
    slope, idle = statistics.linear_regression([p.qps for p in known], [p.cpu_cores for p in known])
    idle = max(0.0, idle)
    ratios = [point.cpu_cores / (idle + slope * point.qps) for point in known]
    told = f"{source}, a line through {len(known)} points from {known[0].qps:.0f} QPS on"
    return {
        "cpu_idle_cores": Figure(idle, idle * min(ratios), idle * max(ratios), told),
        "cpu_us": Figure(1e6 * slope, 1e6 * slope * min(ratios), 1e6 * slope * max(ratios), told),
    }


def wait_figures(scans: Mapping[int, Scan], source: str) -> dict[str, Figure]:
    """Run-queue delay a slice: with as many cores as threads (or the most there are), and what fewer cores add."""
    delays = {
        cores: [point.wait_us for point in scan.points if point.wait_us is not None and scan.share(point) <= _STEADY]
        for cores, scan in scans.items()
    }
    widest, threads = max(scans), scans[1].threads
    alone = spread(delays[widest], f"{source}, {threads} threads on {widest} cores")
    queued = [max(0.0, delay - alone.value) / max(1, threads - 1) for delay in delays[1]]
    if widest == 1:
        queued = [0.0]
    return {
        "wait_alone_us": alone,
        "wait_queued_us": spread(queued, f"{source}, {threads} threads on 1 core"),
    }


def beside_figure(pairs: Sequence[Beside], source: str) -> Figure:
    """By what share requests are slower beside much batch work anywhere on the machine, after the model's own law."""
    found = [pair.slower / batch_effect(pair.batch_cores) for pair in pairs]
    return _from_zero(spread(found, source))


def shared_figure(pairs: Sequence[Beside], source: str) -> Figure:
    """By what share they are slower beside batch work on memcached's own cores."""
    return _from_zero(spread([pair.slower for pair in pairs], source))


def interval_sd(scan: Scan, source: str) -> Figure:
    """How much the 95th percentile of two intervals under one load differs, as a log standard deviation."""
    by_target: dict[int, list[float]] = {}
    for point in scan.points:
        if scan.share(point) <= _STEADY:
            by_target.setdefault(point.target_qps, []).append(math.log(point.latency_us["p95"]))
    sds = [statistics.stdev(logs) for logs in by_target.values() if len(logs) > 1]
    if not sds:
        return Figure(0.0, 0.0, 0.0, f"{source}: not repeated, so not known")
    value = math.sqrt(statistics.fmean(sd * sd for sd in sds))
    return Figure(value, min(sds), max(sds), f"{source}, {len(sds)} loads repeated")


def pooled(values: Sequence[float]) -> list[float]:
    """The closest sequence that never falls, by pooling adjacent violators (Ayer et al. 1955, Ann. Math. Stat. 26)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, count_a), (b, count_b) = blocks[-2:]
            blocks[-2:] = [((a * count_a + b * count_b) / (count_a + count_b), count_a + count_b)]
    return [value for value, count in blocks for _ in range(count)]


def _between(shares: Sequence[float], values: Sequence[float], share: float) -> float:
    """Linear between what was measured, constant beyond."""
    for (s0, v0), (s1, v1) in zip(zip(shares, values, strict=True), zip(shares[1:], values[1:], strict=True),
                                  strict=False):  # fmt: skip
        if share <= s0:
            return v0
        if share <= s1:
            return v0 + (v1 - v0) * (share - s0) / (s1 - s0)
    return values[-1]


def _shape(points: Sequence[Point], source: str) -> CurveFigure:
    columns = [[point.latency_us[name] / point.latency_us["p95"] for point in points] for name in _COLUMNS]

    def quantiles(of: Callable[[Sequence[float]], float]) -> tuple[float, ...]:
        return tuple(pooled([of(column) for column in columns]))

    return CurveFigure(quantiles(statistics.median), quantiles(min), quantiles(max), f"{source}, {_times(len(points))}")


def _from_zero(figure: Figure) -> Figure:
    return Figure(max(0.0, figure.value), figure.low, figure.high, figure.source)


def _times(count: int) -> str:
    return "1 repetition" if count == 1 else f"{count} repetitions"
