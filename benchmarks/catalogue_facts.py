"""Derive the measured facts of the catalogues of real jobs: the lines that stand in `colocate/catalogues/cca-*.toml`.

    python benchmarks/catalogue_facts.py --calibration DIR [--check]

DIR holds the tables `parsec_runtime_by_threads.csv` and `parsec_interference.csv`, gathered from public repositories
of groups that measured the same jobs on the same type of machine. A figure is the median over the groups of the
catalogue's years that ran its machine; the spread beside it is the largest over the smallest.

Left out, and named in the comment: a row of the interference table in which a job is more than 8 % faster
beside a neighbour than alone. No neighbour does that; such a row is relative to another run's base. (The ratios
about 0.2 of 2021 are the plainest example.) Single wrong measurements that remain are what the median is for.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

CATALOGUES = Path(__file__).resolve().parents[1] / "colocate" / "catalogues"
YEARS = {"cca-2023": (2023, 2024), "cca-2026": (2026,)}  # on n2d-highmem-4; 2025 ran the jobs of 2023 on n2-highmem-4
THREADS = (1, 2, 4)  # what fits the machine
RESOURCES = ("cpu", "l1d", "l1i", "l2", "llc", "membw")
LEAST_RATIO = 0.92
RUNTIME, INTERFERENCE = "parsec_runtime_by_threads.csv", "parsec_interference.csv"


@dataclass(slots=True)
class Samples:
    """One job's measurements: by thread count or resource, each group's; and who was left out."""

    values: dict[str, list[float]] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)

    def add(self, group: str, key: str, value: float) -> None:
        """Take in one figure of a group."""
        self.groups.add(group)
        self.values.setdefault(key, []).append(value)

    def lines(self, name: str, keys: Sequence[str], digits: int, table: str) -> list[str]:
        """The comment with its source and spread, and the fact, as they stand in a catalogue."""
        found = [key for key in keys if key in self.values]
        facts = ", ".join(f"{key} = {median(self.values[key]):.{digits}f}" for key in found)
        spread = ", ".join(f"{key}: {max(self.values[key]) / min(self.values[key]):.2f}" for key in found)
        left_out = f", without {' '.join(sorted(self.left_out))}" if self.left_out else ""
        return [
            f"# {table}, {len(self.groups)} groups ({' '.join(sorted(self.groups))}){left_out};",
            f"# largest over smallest {spread}",
            f"{name} = {{ {facts} }}",
        ]


def runtimes(folder: Path, years: Sequence[int]) -> dict[str, Samples]:
    """Run time in seconds alone, by job and thread count."""
    jobs: dict[str, Samples] = {}
    for row in _rows(folder / RUNTIME, years):
        threads = float(row["threads"])
        if threads in THREADS:
            jobs.setdefault(row["job"], Samples()).add(row["group"], str(int(threads)), float(row["real"]))
    return jobs


def sensitivities(folder: Path, years: Sequence[int]) -> dict[str, Samples]:
    """Run time beside a load on one resource, as a multiple of the undisturbed, by job and resource."""
    jobs: dict[str, Samples] = {}
    for row in _rows(folder / INTERFERENCE, years):
        samples = jobs.setdefault(row["job"], Samples())
        ratios = {resource: float(row[resource]) for resource in RESOURCES}
        if min(ratios.values()) < LEAST_RATIO:
            samples.left_out.add(row["group"])
            continue
        for resource, ratio in ratios.items():
            samples.add(row["group"], resource, ratio)
    return jobs


def facts(folder: Path, years: Sequence[int]) -> dict[str, list[str]]:
    """By job, in alphabetical order: its lines of a catalogue."""
    times, ratios = runtimes(folder, years), sensitivities(folder, years)
    return {
        job: [
            *times[job].lines("runtime_s", [str(n) for n in THREADS], 1, RUNTIME),
            *ratios[job].lines("sensitivity", RESOURCES, 2, INTERFERENCE),
        ]
        for job in sorted(times.keys() & ratios.keys())
    }


def _rows(table: Path, years: Sequence[int]) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if int(row["year"]) in years]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the facts; with --check, exit code 1 if a catalogue that ships says otherwise."""
    parser = argparse.ArgumentParser(description="Derive the measured facts of the catalogues.")
    parser.add_argument("--calibration", type=Path, required=True, metavar="DIR", help="the folder of the two tables")
    parser.add_argument("--check", action="store_true", help="compare with the catalogues that ship")
    options = parser.parse_args(arguments)
    missing = 0
    for catalogue, years in YEARS.items():
        shipped = (CATALOGUES / f"{catalogue}.toml").read_text(encoding="utf-8").splitlines() if options.check else []
        for job, lines in facts(options.calibration, years).items():
            print(f"[{catalogue} {job}]", *lines, "", sep="\n")
            for line in lines:
                if options.check and line not in shipped:
                    missing += 1
                    print(f"{catalogue}.toml does not have: {line}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
