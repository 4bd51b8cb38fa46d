"""Fit the calibrations that ship from tables and runs that others recorded.

    .venv/bin/python benchmarks/fit_calibration.py --calibration DIR --runs DIR [--output colocate/sim/calibrations]

The tables' form is that of a public collection of course groups' measurements: `memcached_p95.csv`,
`memcached_cpu.csv`, `parsec_runtime_by_threads.csv`, `parsec_runtime_colocated.csv` and others in the first folder,
`gNN/MM-jobs.txt` with `gNN/MM-mcperf.txt` and `graded.csv` in the second. The method stands in `fit_service.py` and
`fit_jobs.py`. Only half of the groups is fitted; the other half is for `validate_model.py`.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path

from fit_jobs import jobs_section
from fit_service import service_section

from colocate.sim.calibration import parse_calibration

# year: machine, jobs, SLO ms, least and most QPS, interval s, seed of the graded runs, which all had two threads
YEARS: dict[int, tuple[str, str, float, int, int, float, int]] = {
    2023: ("n2d-highmem-4", "cca-2023", 1.0, 5_000, 100_000, 10.0, 3274),
    2024: ("n2d-highmem-4", "cca-2023", 1.0, 5_000, 100_000, 10.0, 3274),
    2025: ("n2-highmem-4", "cca-2023", 0.8, 5_000, 180_000, 10.0, 2333),
    2026: ("n2d-highmem-4", "cca-2026", 0.8, 5_000, 110_000, 15.0, 2345),
}
_MOVES = """\
# Medians and log standard deviations, by hand from public measurements of such moves and our own benchmarks: cgroup
# files 0.02 to 2.6 ms, `docker run` split into a create ahead of time and a start of 0.2 to 0.36 s together, a
# container's end noticed after 26 to 30 ms, pinning of all threads by sched_setaffinity(2).
[moves]
pin_s = 0.0002
pin_sd = 0.3
resize_s = 0.0005
resize_sd = 0.5
pause_s = 0.0005
pause_sd = 0.5
resume_s = 0.0005
resume_sd = 0.5
create_s = 0.15
create_sd = 0.2
start_s = 0.2
start_sd = 0.2
notice_s = 0.028
notice_sd = 0.4
"""


def calibration(year: int, tables: Path, runs: Path) -> str:
    """The whole file of one year."""
    machine, jobs, slo_ms, qps_min, qps_max, interval_s, seed = YEARS[year]
    header = f"""\
# Written by benchmarks/fit_calibration.py. low and high span the groups; source names the table and the groups.
description = "The graded machine of {year}: {machine}, 4 vCPUs, the jobs of {jobs}."
machine = "{machine}"
cores = 4
siblings = [[0, 1], [2, 3]]

[scenario]
jobs = "{jobs}"
slo_ms = {slo_ms}
percentile = 95
memcached_threads = 2
qps_min = {qps_min}
qps_max = {qps_max}
qps_interval_s = {interval_s}
qps_seed = {seed}

"""
    return header + _MOVES + "\n" + service_section(tables, runs, year) + "\n" + jobs_section(tables, runs, year)


def main() -> None:
    """Write one file a year."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=Path, required=True, metavar="DIR", help="the tables")
    parser.add_argument("--runs", type=Path, required=True, metavar="DIR", help="the recorded runs")
    parser.add_argument("--output", type=Path, default=Path("colocate/sim/calibrations"), metavar="DIR")
    parser.add_argument("--years", type=int, nargs="*", default=sorted(YEARS))
    args = parser.parse_args()
    for year in args.years:
        text = calibration(year, args.calibration, args.runs)
        path = args.output / f"cca-{year}.toml"
        parse_calibration(tomllib.loads(text), path.stem, str(path))
        path.write_text(text, encoding="utf-8")
        sys.stderr.write(f"{path}\n")


if __name__ == "__main__":
    main()
