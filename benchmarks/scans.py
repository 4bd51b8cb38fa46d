"""Scans of memcached alone, and the curves of its model made of them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from colocate.sim.service import LOADS

PAIRS = ((1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3))  # threads and cores that are measured
P95 = "memcached_p95.csv"
FEWEST = 3  # intervals that make a figure
IN_FLIGHT = 67  # of mcperf's clients: QPS times the mean latency in saturation, alike in every scan
SCALING = 0.6

Table = dict[str, object]
Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan of memcached alone: (QPS reached, p95) in the order of the targets, and how far it could be driven."""

    group: str
    label: str
    key: Key
    points: tuple[tuple[float, float], ...]
    capacity_qps: float | None
    saturated_us: float | None


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one group says of a curve: its p95 at `LOADS`, None where it did not measure."""

    group: str
    p95_us: tuple[float | None, ...]


def scans(folder: Path, groups: Iterable[str]) -> list[Scan]:
    """The scans of memcached alone by these groups."""
    wanted, points = set(groups), dict[tuple[str, str, Key], list[tuple[float, float, float]]]()
    for row in read_rows(folder / P95):
        key = (int(row["threads"]), int(row["cores"]))
        if row["group"] in wanted and key in PAIRS:
            entry = (float(row["target_qps"]), float(row["qps_mean"]), float(row["p95_us_mean"]))
            points.setdefault((row["group"], row["set"], key), []).append(entry)
    found = []
    for (group, label, key), entries in points.items():
        over = [(qps, p95) for target, qps, p95 in entries if target > 1.03 * qps and target > 20_000]
        found.append(
            Scan(
                group,
                label,
                key,
                tuple((qps, p95) for target, qps, p95 in entries if target <= 1.03 * qps or target <= 20_000),
                median(qps for qps, _ in over) if over else None,
                median(p95 for _, p95 in over) if over else None,
            )
        )
    return found


def capacities(found: Sequence[Scan]) -> dict[Key, list[float]]:
    """By threads and cores: the capacity of each scan; one that ends before it is scaled from one core's."""
    known: dict[Key, list[float]] = {}
    for scan in found:
        if scan.capacity_qps:
            known.setdefault(scan.key, []).append(scan.capacity_qps)
    for scan in found:
        if scan.key not in known:
            threads, cores = scan.key
            one = median(known[threads, 1])
            reached = max(qps for s in found if s.key == scan.key for qps, _ in s.points)
            known[scan.key] = [max(1.05 * reached, one * cores**SCALING)]
    return known


def at_loads(points: Sequence[tuple[float, float]], capacity_qps: float) -> tuple[float | None, ...]:
    """The p95 at `LOADS` between measured points, None outside of them."""
    return tuple(between(points, load * capacity_qps) for load in LOADS)


def between(points: Sequence[tuple[float, float]], qps: float) -> float | None:
    """The p95 at a QPS between measured points, None outside of them."""
    ordered = sorted(points)
    below = [p for p in ordered if p[0] <= qps * 1.03]
    above = [p for p in ordered if p[0] >= qps * 0.97]
    if not below or not above:
        return None
    (q0, p0), (q1, p1) = below[-1], above[0]
    return math.sqrt(p0 * p1) if q1 <= q0 else p0 + (p1 - p0) * (qps - q0) / (q1 - q0)


def monotone(values: Sequence[float]) -> list[float]:
    """The closest ascending list (pool adjacent violators; Barlow et al. 1972)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return [value for value, count in pools for _ in range(count)]


def curve(
    key: Key, found: Sequence[Scan], all_qps: Mapping[Key, Sequence[float]], measured: Sequence[Measurement] = ()
) -> Table | None:
    """One curve's table from its scans, every capacity known of it, and what runs say; None without a scan."""
    own = [scan for scan in found if scan.key == key]
    if not own:
        return None
    capacity_qps = median(all_qps[key])
    each = [Measurement(s.group, at_loads(s.points, s.capacity_qps or capacity_qps)) for s in own] + list(measured)
    groups = " ".join(sorted({m.group for m in each}))
    crowd = key[0] / min(key)
    sated = [scan.saturated_us for scan in own if scan.saturated_us]
    closed_us = 1.6 * 1e6 * IN_FLIGHT / capacity_qps * crowd  # 1.6 is p95 over mean with one thread a core
    sated = [max(us, closed_us) if key[1] > 1 else us for us in sated] or [closed_us]
    columns = [[us for m in each if (us := m.p95_us[i]) is not None] for i in range(len(LOADS))]
    values, lows, highs = (
        _filled([how(c) if c else None for c in columns], median(sated)) for how in (median, min, max)
    )
    return {
        "threads": key[0],
        "cores": key[1],
        "capacity_qps": entry(capacity_qps, all_qps[key], f"{P95}, {groups}", 0),
        "p95_us": {
            "value": [round(v, 1) for v in monotone(values)],
            "low": [round(v, 1) for v in lows],
            "high": [round(v, 1) for v in highs],
            "source": f"{P95} and runs, {groups}",
        },
        "saturated_p95_us": entry(median(sated), sated, f"{P95}, {groups}", 0),
    }


def _filled(values: Sequence[float | None], saturated_us: float) -> list[float]:
    """Without gaps: ends repeat, up to the full capacity, where latency is half way (in logs) to the saturated."""
    known = [(load, value) for load, value in zip(LOADS, values, strict=True) if value is not None]
    filled = []
    for load, value in zip(LOADS, values, strict=True):
        if value is not None:
            filled.append(value)
            continue
        below = [v for at, v in known if at < load]
        above = [v for at, v in known if at > load]
        if below and above:
            filled.append((below[-1] + above[0]) / 2)
        elif above:
            filled.append(above[0])
        else:
            reach = max(0.0, (load - max(0.85, known[-1][0])) / (1.0 - max(0.85, known[-1][0]))) if load > 0.85 else 0.0
            filled.append(below[-1] * math.exp(0.5 * reach * max(0.0, math.log(saturated_us / below[-1]))))
    return filled


def entry(value: float, all_values: Iterable[float], source: str, digits: int = 3) -> Table:
    """A figure with its spread."""
    every = [value, *all_values]
    return {
        "value": round(value, digits),
        "low": round(min(every), digits),
        "high": round(max(every), digits),
        "source": source,
    }


def read_rows(table: Path) -> list[dict[str, str]]:
    """A table's rows, by column."""
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
