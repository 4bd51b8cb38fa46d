"""A small calibration by hand, for tests of the simulated host: two threads, four cores, jobs of some seconds."""

from __future__ import annotations

import tomllib
from pathlib import Path

from colocate.sim.calibration import Calibration, parse_calibration

_QUANTILES = "[0.3, 0.4, 0.45, 0.65, 0.73, 0.78, 0.82, 0.87, 0.92, 1.0, 1.6, 4.0, 8.0]"
_CURVE = "[200, 210, 220, 230, 240, 260, 280, 320, 400, 550, 700, 900, 1200, 1500]"
_MOVES = {
    "pin": 0.0002,
    "resize": 0.0005,
    "pause": 0.0005,
    "resume": 0.0005,
    "create": 0.1,
    "start": 0.2,
    "notice": 0.02,
}
JOBS = """\
[[job]]
name = "one"
image = "nothing:1"
command = "./one"
threads = 1

[[job]]
name = "two"
image = "nothing:1"
command = "./two"
threads = 2
"""


def small_text(jobs: str = "jobs.toml", *, noise: bool = True) -> str:
    """The TOML of the calibration; `jobs` is its scenario's catalogue."""
    figures = {
        "core_scaling": 0.9, "cpu_idle_cores": 0.01, "cpu_us": 12.0, "beside_batch": 0.05, "beside_sibling": 0.1,
        "beside_memory": 0.02, "shared_idle": 0.05, "shared_full_p95_us": 3000.0, "shared_full_capacity": 0.5,
        "wait_alone_us": 5.0, "wait_queued_us": 30.0, "interval_sd": 0.05 * noise, "machine_sd": 0.05 * noise,
    }  # fmt: skip
    lines = [
        'machine = "on paper"', "cores = 4", "siblings = [[0, 1], [2, 3]]", "[scenario]", f'jobs = "{jobs}"',
        "slo_ms = 0.8", "percentile = 95", "memcached_threads = 2", "qps_min = 5000", "qps_max = 100000",
        "qps_interval_s = 2.0", "qps_seed = 1", "[moves]",
    ]  # fmt: skip
    for move, seconds in _MOVES.items():
        lines += [f"{move}_s = {seconds}", f"{move}_sd = {0.2 * noise}"]
    lines.append("[service]")
    lines += [f"{name} = {{ value = {value} }}" for name, value in figures.items()]
    lines += [f"{name} = {{ value = {_QUANTILES} }}" for name in ("light", "busy", "saturated")]
    for cores, capacity_qps in ((1, 65_000), (2, 125_000)):
        lines += [
            "[[service.curves]]",
            "threads = 2",
            f"cores = {cores}",
            f"capacity_qps = {{ value = {capacity_qps} }}",
        ]
        lines += [f"p95_us = {{ value = {_CURVE} }}", "saturated_p95_us = { value = 2500 }"]
    for job, seconds in (("one", 20.0), ("two", 40.0)):
        lines += [f"[jobs.{job}]", f"alone_s = {{ value = {seconds} }}", f"spread = {{ value = {0.03 * noise} }}"]
        lines += ["sibling = { value = 0.7 }", "serial = { value = 0.05 }"]
    return "\n".join(lines) + "\n"


def small(directory: Path, *, noise: bool = True) -> Calibration:
    """The calibration; its catalogue is written into the directory."""
    jobs = directory / "jobs.toml"
    jobs.write_text(JOBS)
    return parse_calibration(tomllib.loads(small_text(str(jobs), noise=noise)), "small", "small.toml")
