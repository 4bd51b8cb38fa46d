"""Fit the `[service]` section of the calibrations that ship: memcached's latency, capacity and CPU on graded machines.

    python benchmarks/fit_service.py --calibration DIR --runs DIR --year 2025

Both folders hold tables and recorded runs gathered from public repositories of groups that measured on the same type of
machine. Half of the groups are fitted (`FIT`), the other half is for validation.

The method. A *measurement* of a curve is a group's scan of memcached alone, or a group's recorded runs, of which the
intervals count in which memcached held one set of cores throughout, not shared; their percentiles are divided by the
surcharge for the batch work beside. Each measurement gives the percentile at fixed shares of its capacity; a curve is
the median over the measurements, made monotone by pooling adjacent violators. The surcharge is the median over the
groups that have both a scan and runs of run over scan. The capacity is what a scan reached at most; where a scan ends
before that, it is scaled from one core's. Shapes of distributions are medians over recorded intervals.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median, stdev

from recorded import Recorded, predicted_p95_us, recorded_intervals
from scans import FEWEST, P95, PAIRS, Key, Measurement, Scan, Table, between, capacities, curve, entry, read_rows, scans

from colocate.sim.service import LOADS, ServiceFigures, ServiceModel, Surroundings, batch_effect

FIT: Mapping[int, tuple[str, ...]] = {
    2023: ("g06", "g07"),
    2024: ("g09",),
    2025: ("g11",),
    2026: ("g15", "g17", "g19"),
}
MACHINES = {2023: "n2d", 2024: "n2d", 2025: "n2", 2026: "n2d"}
EARLIER = ("g04", "g05")  # of 2022, on the n2d machine
UNUSABLE_RUNS = frozenset({"g14", "g19"})  # memcached was not pinned where the log says
SPEEDS = tuple(0.8 + 0.05 * step for step in range(17))
NEAR, SHORT = 0.8, 0.02  # a load near the capacity; a share of an interval that matters
CPU, INTERFERENCE = "memcached_cpu.csv", "memcached_interference.csv"
QUANTILES = ("min_us", *(f"p{p}_us" for p in (5, 10, 50, 67, 75, 80, 85, 90, 95, 99, 999, 9999)))


def fit(
    calibration: Path, recorded: Sequence[Recorded], groups: Sequence[str], year: int, *, with_runs: bool = True
) -> Table:
    """The `[service]` section as a table: curves from these groups, what is common to all machines from `FIT`.

    Args:
        calibration: the folder of the tables.
        recorded: intervals of recorded runs, of which only those of `FIT` are used.
        groups: whose scans (and, unless `with_runs` is false, runs) give the curves.
        year: of the CPU figures and shapes.
        with_runs: whether runs of these groups count for the curves, too.
    """
    fitted = [r for r in recorded if r.group in FIT[r.year] and r.group not in UNUSABLE_RUNS]
    everyone = [group for members in FIT.values() for group in members]
    beside_batch, beside_sibling = surcharges(scans(calibration, everyone), fitted)
    own = scans(calibration, groups)
    table: Table = {"core_scaling": core_scaling(scans(calibration, everyone))}
    shapes_of = [r for r in fitted if r.year == year] or fitted
    table |= {
        "light": shape([r for r in shapes_of if r.row.qps < 15_000]),
        "busy": shape([r for r in shapes_of if r.row.qps > 45_000 and r.row.p95_us < r.slo_us]),
        "saturated": shape([r for r in fitted if r.row.p95_us > 1300 and (c := r.steady()) and c.cores == 1]),
    }
    table |= {"beside_batch": beside_batch, "beside_sibling": beside_sibling}
    table |= {"beside_memory": entry(0.0, [], "not told apart from beside_batch by the runs")}
    table |= {"shared_idle": entry(0.1, [0.0, 0.2], "measured on a 2-vCPU machine, cpu.idle 1, 2k to 45k QPS")}
    table |= shared_full(calibration, FIT[year])
    table |= {
        "wait_alone_us": entry(5.0, [2.0, 9.0], "schedstat on a 2-vCPU machine, one thread on a core"),
        "wait_queued_us": entry(36.0, [20.0, 55.0], "schedstat on a 2-vCPU machine, two threads on a core"),
    }
    table |= cpu(calibration, year)
    table["interval_sd"] = interval_sd(shapes_of)
    table["machine_sd"] = machine_sd(calibration)
    batch, sibling = (float(str(figure["value"])) for figure in (beside_batch, beside_sibling))

    def factor(around: Surroundings) -> float:
        return 1.0 + batch * batch_effect(around.batch_cores) + sibling * around.siblings_busy

    sizes = capacities(own)
    table["curves"] = [made for key in PAIRS if (made := curve(key, own, sizes))]
    if not with_runs:
        return table
    model = ServiceFigures.from_table(table, "the scans' figures")
    speeds = {group: speed for group in groups if (speed := run_speed(model, fitted, group, year))}
    all_sizes = {key: [*qps, *(speed * median(qps) for speed in speeds.values())] for key, qps in sizes.items()}
    curves = []
    for key in PAIRS:
        if key in sizes:
            each = [
                from_runs(fitted, group, year, key, speeds.get(group, 1.0) * median(sizes[key]), factor)
                for group in groups
            ]
            curves.append(curve(key, own, all_sizes, [one for one in each if one]))
    table["curves"] = [made for made in curves if made]
    return table


def run_speed(figures: ServiceFigures, recorded: Sequence[Recorded], group: str, year: int) -> float | None:
    """The capacity of the machine of a group's runs over that of the scans: the one that explains its latencies best.

    Only intervals count in which some stretch came near the capacity; None where there are too few.
    """
    models: dict[int, ServiceModel] = {}
    near = list[Recorded]()
    for interval in recorded:
        if interval.group == group and interval.year == year:
            threads = interval.stretches[0].threads
            model = models.setdefault(threads, ServiceModel(figures, threads))
            states = [model.state(interval.row.qps, s.cores, s.around) for s in interval.stretches if s.share > SHORT]
            shared = any(s.around.shared_full for s in interval.stretches)
            if not shared and any(interval.row.qps > NEAR * state.capacity_qps for state in states):
                near.append(interval)
    if len(near) < 10 * FEWEST:
        return None

    def error(speed: float) -> float:
        each = {threads: ServiceModel(figures, threads, speed) for threads in models}
        misses = [math.log(predicted_p95_us(each[i.stretches[0].threads], i) / i.row.p95_us) for i in near]
        return sum(min(abs(miss), 0.5) for miss in misses)

    return min(SPEEDS, key=error)


def from_runs(
    recorded: Sequence[Recorded],
    group: str,
    year: int,
    key: Key,
    capacity_qps: float,
    factor: Callable[[Surroundings], float],
) -> Measurement | None:
    """What a group's runs say of a curve; cores beyond the threads count as the threads."""
    near: dict[int, list[float]] = {}
    for interval in recorded:
        held = interval.steady() if interval.group == group and interval.year == year else None
        if held and (held.threads, min(held.cores, held.threads)) == key:
            slower = factor(held.around)
            load = interval.row.qps * slower / capacity_qps
            index = min(range(len(LOADS)), key=lambda i: abs(LOADS[i] - load))
            near.setdefault(index, []).append(interval.row.p95_us / slower)
    values = tuple(median(near[i]) if len(near.get(i, ())) >= FEWEST else None for i in range(len(LOADS)))
    return Measurement(group, values) if any(values) else None


def surcharges(found: Sequence[Scan], recorded: Sequence[Recorded]) -> tuple[Table, Table]:
    """By what share batch work beside makes requests slower: anywhere on the machine, and more on SMT siblings."""
    anywhere, siblings = dict[str, float](), dict[str, float]()
    for cores, beside in ((2, anywhere), (1, siblings)):
        for group in sorted({scan.group for scan in found}):
            all_own = [scan for scan in found if scan.group == group]
            own = [scan for scan in all_own if scan.key == (2, cores)]
            limit_qps = 0.7 * min(capacities(all_own)[2, cores]) if own else 0.0
            batch, values = median(anywhere.values()) if cores == 1 else 0.0, list[float]()
            for interval in recorded:
                held = interval.steady() if interval.group == group else None
                if not held or min(held.threads, held.cores) != cores or interval.row.qps > limit_qps:
                    continue
                known = [us for scan in own if (us := between(scan.points, interval.row.qps))]
                effect, busy = batch_effect(held.around.batch_cores), held.around.siblings_busy
                if known and cores == 2 and effect > 0.3:
                    values.append((interval.row.p95_us / median(known) - 1.0) / effect)
                elif known and cores == 1 and busy > 0.5:
                    values.append((interval.row.p95_us / median(known) - 1.0 - batch * effect) / busy)
            if len(values) >= 10 * FEWEST:
                beside[group] = median(values)
    return (
        entry(
            max(0.0, median(anywhere.values())), anywhere.values(), f"runs over scans, 2 cores, {' '.join(anywhere)}"
        ),
        entry(max(0.0, median(siblings.values())), siblings.values(), f"runs over scans, 1 core, {' '.join(siblings)}"),
    )


def shape(recorded: Sequence[Recorded]) -> Table:
    """Quantiles over the 95th percentile, medians over the intervals in which nothing moved."""
    rows = [r.row for r in recorded if r.steady()]
    columns = [[getattr(row, name) / row.p95_us for row in rows] for name in QUANTILES]
    middle = [round(median(c), 4) for c in columns]
    low, high = ([round(sorted(c)[int(q * (len(c) - 1))], 4) for c in columns] for q in (0.1, 0.9))
    groups = " ".join(sorted({r.group for r in recorded}))
    return {"value": middle, "low": low, "high": high, "source": f"{len(rows)} recorded intervals, {groups}"}


def core_scaling(found: Sequence[Scan]) -> Table:
    """The exponent by which the capacity grows with the cores, from scans that reached it on one and on more."""
    exponents, groups = list[float](), set[str]()
    for scan in found:
        if scan.capacity_qps and 1 < scan.key[1] <= scan.key[0]:
            same = [s for s in found if (s.group, s.label, s.key[1]) == (scan.group, scan.label, 1)]
            ones = [s.capacity_qps for s in same if s.key[0] == scan.key[0]]
            known = [qps for qps in ones if qps]
            exponents += [math.log(scan.capacity_qps / qps) / math.log(scan.key[1]) for qps in known]
            groups.add(scan.group)
    return entry(median(exponents), exponents, f"{P95}, {' '.join(sorted(groups))}")


def shared_full(calibration: Path, groups: Sequence[str]) -> Table:
    """A memcached with one thread beside a spinning thread on its only core: p95, and what is left of the capacity."""
    lows, shares, named = list[float](), list[float](), list[str]()
    rows = read_rows(calibration / INTERFERENCE)
    for group in groups:
        reached = {
            kind: [float(r["qps_mean"]) for r in rows if r["group"] == group and r["interference"] == kind]
            for kind in ("cpu", "none")
        }
        alone_us = [float(r["p95_us_mean"]) for r in rows if r["group"] == group and r["interference"] == "cpu"]
        if all(reached.values()):
            named.append(group)
            lows.append(min(alone_us))
            shares.append(max(reached["cpu"]) / max(reached["none"]))
    source = f"{INTERFERENCE}, cpu, {' '.join(named)}"
    return {
        "shared_full_p95_us": entry(median(lows), lows, source, 0),
        "shared_full_capacity": entry(median(shares), shares, source),
    }


def cpu(calibration: Path, year: int) -> Table:
    """CPU that memcached uses: the process's own clock where a group has read it, else a full core at the capacity."""
    rows = [r for r in read_rows(calibration / CPU) if r["group"] in FIT[2024] and r["kind"] == "process"]
    points = [(float(r["qps_mean"]), float(r["v0"]) / 100) for r in rows if float(r["qps_mean"]) < 80_000]
    mean_qps, mean_cores = (sum(p[i] for p in points) / len(points) for i in (0, 1))
    slope = sum((q - mean_qps) * (c - mean_cores) for q, c in points) / sum((q - mean_qps) ** 2 for q, _ in points)
    idle = entry(max(0.0, mean_cores - slope * mean_qps), [], f"{CPU}, g09")
    if MACHINES[year] == "n2d" and year < 2026:
        each = [1e6 * (c - float(idle["value"])) / q for q, c in points if q > 30_000]  # type: ignore[arg-type]  # a float
        return {"cpu_idle_cores": idle, "cpu_us": entry(1e6 * slope, each, f"{CPU}, g09", 2)}
    each = [1e6 / s.capacity_qps for s in scans(calibration, FIT[year]) if s.capacity_qps and s.key[1] == 1]
    groups = " ".join(FIT[year])
    return {"cpu_idle_cores": idle, "cpu_us": entry(median(each), each, f"{P95}, a full core at capacity, {groups}", 2)}


def interval_sd(recorded: Sequence[Recorded]) -> Table:
    """How far an interval's p95 strays from those of the same run, cores and load: the robust log deviation."""
    alike: dict[tuple[str, int, int], list[float]] = {}
    for interval in recorded:
        if held := interval.steady():
            key = (interval.run, held.cores, int(interval.row.qps // 10_000))
            alike.setdefault(key, []).append(math.log(interval.row.p95_us))
    strays: dict[str, list[float]] = {}
    for (run, *_), logs in alike.items():
        if len(logs) >= FEWEST:
            middle = median(logs)
            strays.setdefault(run.partition("/")[0], []).extend(abs(log - middle) for log in logs)
    each = {group: 1.4826 * median(values) for group, values in strays.items()}
    every = 1.4826 * median(value for values in strays.values() for value in values)
    return entry(every, each.values(), f"steady recorded intervals of one run and load, {' '.join(sorted(each))}")


def machine_sd(calibration: Path) -> Table:
    """How far one core's capacity strays between scans of one year and machine type: the pooled log deviation."""
    each, squares, freedom = list[float](), 0.0, 0
    for groups in (*FIT.values(), EARLIER):
        found = [scan.capacity_qps for scan in scans(calibration, groups) if scan.key == (2, 1)]
        logs = [math.log(qps) for qps in found if qps]
        if len(logs) > 1:
            each.append(stdev(logs))
            squares += (len(logs) - 1) * each[-1] ** 2
            freedom += len(logs) - 1
    return entry(math.sqrt(squares / freedom), each, f"{P95}, 2 threads on 1 core, g04 g05 g11 g19")


def service_section(calibration_dir: Path, runs_dir: Path, year: int) -> str:
    """The section `[service]` of that year's calibration, as TOML."""
    return to_toml(fit(calibration_dir, recorded_intervals(runs_dir, FIT), FIT[year], year))


def to_toml(table: Mapping[str, object]) -> str:
    """The section as text: a figure a line."""
    lines = ["[service]"]
    lines += [f"{name} = {_inline(value)}" for name, value in table.items() if name != "curves"]
    curves = table["curves"]
    assert isinstance(curves, list)  # noqa: S101 -- `fit` made it
    for one in curves:
        lines += ["", "[[service.curves]]", *(f"{name} = {_inline(value)}" for name, value in one.items())]
    return "\n".join(lines) + "\n"


def _inline(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_inline(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a year's section."""
    parser = argparse.ArgumentParser(description="Fit the model of memcached of a calibration that ships.")
    parser.add_argument("--calibration", type=Path, required=True, metavar="DIR", help="the folder of the tables")
    parser.add_argument("--runs", type=Path, required=True, metavar="DIR", help="the folder of the recorded runs")
    parser.add_argument("--year", type=int, required=True, choices=sorted(FIT))
    options = parser.parse_args(arguments)
    print(service_section(options.calibration, options.runs, options.year), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
