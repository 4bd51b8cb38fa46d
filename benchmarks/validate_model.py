"""Is the model true? Recorded runs re-enacted on it: the recorded moves and load, the model's own ends and latencies.

    .venv/bin/python benchmarks/validate_model.py --runs DIR [--calibration DIR] [--json]

`DIR/graded.csv` lists the runs, `gNN/MM-jobs.txt` and `gNN/MM-mcperf.txt` are event log and load. The calibrations that
ship were fitted on half of the groups (FITTED); the verdict is over the other half. A machine of one type carries up to
1.7 times the load of another. So each figure is given for the typical machine of the type, and, with `--calibration`
(the folder of the groups' own scans), for the group's own machine as its scan of memcached alone shows it, which is
what `colocate calibrate` gives its user. No figure of a run goes into the model that is checked on it.

The speed of the same jobs differs from day to day by up to 1.7 times, too, and not by one factor for all jobs (two
generations of processors stand behind one type). What is left once the day is known is shown by the line `given its
day`: each job's error, and each makespan's, against the median of the same in the other runs of that group and day.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from recorded import LOAD_BEGINS_S
from scans import capacities, scans

from colocate.errors import UserError
from colocate.replay import check_model, read_recording
from colocate.report.summary import Summary
from colocate.sim.calibration import Calibration, load_calibration
from colocate.view import Slo

FITTED = frozenset({"g06", "g07", "g09", "g11"})
# memcached was not on the cores that the log names (g14), on all of them (g19), or both its latency and the jobs' run
# times are as if each had been alone on the cores that they are logged to have shared (g09)
UNPINNED = frozenset({"g09", "g14", "g19"})
YEARS = ("2023", "2024", "2025", "2026")
_NEAR = 0.03
_TARGETS = {
    "job_median": 0.08, "job_p90": 0.20, "makespan_median": 0.05, "makespan_p90": 0.12, "p95_median": 0.20,
    "class": 0.95, "ratio_within_3": 0.80,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checked:
    """One run: model against record, relative errors."""

    run: str
    day: str
    interval_s: float
    jobs: dict[str, float]
    makespan: float | None
    ratios: tuple[float, float] | None
    intervals: tuple[tuple[float, float], ...]
    slo_ms: float

    @property
    def group(self) -> str:
        """Whose run it was."""
        return self.run[:3]


def check(row: dict[str, str], folder: Path, speeds: dict[str, float]) -> Checked | None:
    """One row of `graded.csv`; None where the run cannot be read."""
    slo = Slo(float(row["slo_ms"]))
    length_s = float(row["qps_interval_s"]) if row["qps_interval_s"] else None
    try:
        recording = read_recording(
            folder / row["run"], folder / row["mcperf"] if row["mcperf"] else None, length_s, begins_s=LOAD_BEGINS_S
        )
    except UserError as error:
        sys.stderr.write(f"left out: {row['run']}: {error.what}\n")
        return None
    group = row["run"][:3]
    found = check_model(recording, _calibration(row), slo, speed=speeds.get(group, 1.0))
    ratio = found["slo_violation_ratio"]
    makespan = found["makespan_s"]
    return Checked(
        run=row["run"],
        day=f"{group} {recording.log.events[0].time:%m-%d}",
        interval_s=recording.trace.interval_s,
        jobs={name: _error(pair) for name, pair in found["jobs"].items() if pair["recorded"] and pair["model"]},
        makespan=_error(makespan) if makespan["recorded"] and makespan["model"] else None,
        ratios=None if ratio["model"] is None or ratio["recorded"] is None else (ratio["recorded"], ratio["model"]),
        intervals=tuple((pair["recorded_ms"], pair["model_ms"]) for pair in found["intervals"]),
        slo_ms=slo.latency_ms,
    )


def _calibration(row: dict[str, str]) -> Calibration:
    name = f"cca-{row['year']}"
    if name not in _LOADED:
        _LOADED[name] = load_calibration(name)
    return _LOADED[name]


_LOADED: dict[str, Calibration] = {}


def _error(pair: Summary) -> float:
    return float(pair["model"] / pair["recorded"] - 1.0)


def figures(runs: Sequence[Checked]) -> dict[str, float | int | None]:
    """The errors of some runs together."""
    jobs = [abs(error) for run in runs for error in run.jobs.values()]
    makespans = [abs(run.makespan) for run in runs if run.makespan is not None]
    intervals = [(recorded, model, run.slo_ms) for run in runs for recorded, model in run.intervals]
    ratios = [run.ratios for run in runs if run.ratios is not None]
    return {
        "runs": len(runs),
        "intervals": len(intervals),
        "job_median": _quantile(jobs, 0.5),
        "job_p90": _quantile(jobs, 0.9),
        "makespan_median": _quantile(makespans, 0.5),
        "makespan_p90": _quantile(makespans, 0.9),
        "p95_median": _quantile([abs(model / recorded - 1) for recorded, model, _ in intervals], 0.5),
        "class": _share((recorded > slo) == (model > slo) for recorded, model, slo in intervals),
        "late": sum(recorded > slo for recorded, _, slo in intervals),
        "late_caught": sum(recorded > slo < model for recorded, model, slo in intervals),
        "false_alarms": sum(recorded <= slo < model for recorded, model, slo in intervals),
        "ratio_within_3": _share(abs(recorded - model) <= _NEAR for recorded, model in ratios),
    }


def given_day(runs: Sequence[Checked]) -> list[Checked]:
    """The same, each error relative to the median of the other runs of its day; those that stand alone are left out."""
    found: list[Checked] = []
    for run in runs:
        others = [other for other in runs if other.day == run.day and other is not run]
        jobs = {}
        for name, error in run.jobs.items():
            if peers := [1 + other.jobs[name] for other in others if name in other.jobs]:
                jobs[name] = (1 + error) / statistics.median(peers) - 1
        spans = [1 + other.makespan for other in others if other.makespan is not None]
        makespan = (1 + run.makespan) / statistics.median(spans) - 1 if spans and run.makespan is not None else None
        if jobs:
            found.append(replace(run, jobs=jobs, makespan=makespan, ratios=None, intervals=()))
    return found


def own_speeds(folder: Path, groups: Iterable[str], year_of: dict[str, str]) -> dict[str, float]:
    """Each group's capacity over that of its type, from its own scans of memcached alone."""
    found: dict[str, float] = {}
    for group in groups:
        measured = capacities(scans(folder, [group]))
        curves = {
            (c.threads, c.cores): c.capacity_qps.value for c in load_calibration(f"cca-{year_of[group]}").service.curves
        }
        ratios = [
            statistics.median(values) / curves[key] for key, values in measured.items() if key in curves and values
        ]
        if ratios:
            found[group] = statistics.median(ratios)
    return found


def noise_floor(rows: Sequence[dict[str, str]]) -> list[tuple[str, float, float]]:
    """How far the records themselves disagree: job, spread within a group (p90), largest over smallest group median.

    Over complete runs of one job set, the run time of a job that had the same thread count all along is not in the
    table; so this holds what placement and neighbours did to it, too.
    """
    table: list[tuple[str, float, float]] = []
    for job in sorted({key.removeprefix("run_") for row in rows for key in row if key.startswith("run_")}):
        by_group: dict[str, list[float]] = {}
        for row in rows:
            if row.get(f"run_{job}"):
                by_group.setdefault(row["run"][:3], []).append(float(row[f"run_{job}"]))
        medians = {group: statistics.median(values) for group, values in by_group.items() if len(values) >= 3}
        inside = [abs(v / medians[g] - 1) for g, values in by_group.items() if g in medians for v in values]
        if len(medians) >= 2:
            table.append((job, _quantile(inside, 0.9) or 0.0, max(medians.values()) / min(medians.values())))
    return table


def _quantile(values: Sequence[float], q: float) -> float | None:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(q * len(ranked)))] if ranked else None


def _share(truths: Iterable[bool]) -> float | None:
    found = list(truths)
    return sum(found) / len(found) if found else None


def _line(name: str, row: dict[str, float | int | None]) -> str:
    cells = [f"{name:<28}{row['runs']:>5}{row['intervals']:>7}"]
    for key in _TARGETS:
        value = row[key]
        cells.append("        -" if value is None else f"{value:>8.1%}{' ' if _met(key, value) else '!'}")
    if row["intervals"]:
        cells.append(f"  {row['late_caught']} of {row['late']} late caught, {row['false_alarms']} false alarms")
    return "".join(cells)


def _met(key: str, value: float) -> bool:
    return value >= _TARGETS[key] if key in {"class", "ratio_within_3"} else value <= _TARGETS[key]


def main() -> int:
    """Print the table; exit code 0 whatever it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, metavar="DIR", help="the recorded runs")
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="the groups' own scans")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.runs is None:
        print("validate_model: no recorded runs were given (--runs DIR): nothing is validated")
        return 0
    with (args.runs / "graded.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["year"] in YEARS]
    year_of = {row["run"][:3]: row["year"] for row in rows}
    kinds: dict[str, dict[str, float]] = {"typical machine": {}}
    if args.calibration is not None:
        kinds["own machine (its scan)"] = own_speeds(args.calibration, sorted(year_of), year_of)
    document: dict[str, object] = {}
    for kind, speeds in kinds.items():
        checked = [found for row in rows if (found := check(row, args.runs, speeds)) is not None]
        sets: dict[str, Callable[[Checked], bool]] = {
            "REPORTED half": lambda run: run.group not in FITTED | UNPINNED,
            "fitted half": lambda run: run.group in FITTED - UNPINNED,
            **{g: (lambda run, g=g: run.group == g) for g in sorted(year_of)},  # type: ignore[misc]  # mypy cannot infer it
        }
        table = {name: figures([run for run in checked if belongs(run)]) for name, belongs in sets.items()}
        reported = [run for run in checked if sets["REPORTED half"](run)]
        table = {"REPORTED half": table["REPORTED half"], "  given its day": figures(given_day(reported)), **table}
        document[kind] = {"speeds": speeds, "sets": table}
        if not args.json:
            _print(kind, table, speeds, checked, year_of)
    if args.json:
        print(json.dumps(document))
    else:
        print("\nHow far the records disagree (run time of a job, all placements):")
        for job, inside, between in noise_floor(rows):
            print(f"  {job:<16} within a group, p90: {inside:6.1%}   largest over smallest group median: {between:.2f}")
    return 0


def _print(
    kind: str,
    table: dict[str, dict[str, float | int | None]],
    speeds: dict[str, float],
    checked: Sequence[Checked],
    year_of: dict[str, str],
) -> None:
    print(f"\nModel against record, {kind} (! misses its target)")
    print(f"{'':<28}{'runs':>5}{'ints':>7}" + "".join(f"{head:>9}" for head in _HEADS))
    print(f"{'target':<40}" + "".join(f"{value:>8.0%} " for value in _TARGETS.values()))
    for name, row in table.items():
        about = f"{name} {year_of.get(name, '')}" + (" fitted" if name in FITTED else "")
        about += f" x{speeds[name]:.2f}" if name in speeds else ""
        about += " (pins in doubt)" if name in UNPINNED else ""
        print(_line(about, row))
    reported = [run for run in checked if run.group not in FITTED | UNPINNED and run.makespan is not None]
    print("worst makespans of the reported half:")
    for run in sorted(reported, key=lambda r: -abs(r.makespan or 0))[:3]:
        worst = sorted(run.jobs.items(), key=lambda item: -abs(item[1]))[:3]
        print(f"  {run.run}: makespan {run.makespan:+.1%}; " + ", ".join(f"{job} {e:+.1%}" for job, e in worst))
    print("worst violation ratios of the reported half:")
    rated = [run for run in reported if run.ratios]
    for run in sorted(rated, key=lambda r: -abs(r.ratios[0] - r.ratios[1]) if r.ratios else 0)[:3]:
        if run.ratios:
            print(f"  {run.run} ({run.interval_s:g} s): recorded {run.ratios[0]:.1%}, model {run.ratios[1]:.1%}")


_HEADS = ("job med", "job p90", "mksp med", "mksp p90", "p95 med", "class", "ratio3pp")

if __name__ == "__main__":
    sys.exit(main())
