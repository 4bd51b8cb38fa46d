"""A calibration file's text from what `colocate calibrate` has measured; see `sim/calibration.py` for its form."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from colocate.load.curves import (
    Beside,
    Scan,
    beside_figure,
    cpu_figures,
    curve_figures,
    interval_sd,
    shape_figures,
    shared_figure,
    spread,
    wait_figures,
)
from colocate.sim.figures import CurveFigure, Figure
from colocate.topology import Topology

_LOW, _HIGH = 0.04, 0.3  # of what memcached answers at most with one request open a connection, as `colocate demo` has
_MOVES = ("pin", "resize", "pause", "resume", "create", "start", "notice")


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything that was measured.

    Attributes:
        catalogue: the jobs'.
        closed_qps: answers a second with one request open on each connection.
        scans: memcached alone, by cores.
        shared_with_generator: whether the widest scan shared its last core with the load generator.
        runs: seconds by job, then threads and cores.
        moves: seconds by kind.
    """

    catalogue: str
    host: str
    begun: datetime
    quick: bool
    topology: Topology
    threads: int
    closed_qps: float
    scans: Mapping[int, Scan]
    shared_with_generator: bool
    beside: Sequence[Beside]
    shared_idle: Sequence[Beside]
    shared_full: Sequence[Beside]
    shared_full_capacity: float
    runs: Mapping[str, Mapping[tuple[int, int], Sequence[float]]]
    moves: Mapping[str, Sequence[float]]
    warnings: tuple[str, ...] = ()


def calibration_text(measured: Measured) -> str:
    """The whole file."""
    source = f"colocate calibrate, {measured.host}, {measured.begun:%Y-%m-%d}"
    qps_min = max(100, round(_LOW * measured.closed_qps, -2))
    qps_max = max(500, round(_HIGH * measured.closed_qps, -2))
    cores = sorted(measured.topology.cores)
    number = {core: index for index, core in enumerate(cores)}
    siblings = {tuple(sorted(number[c] for c in measured.topology.siblings[core])) for core in cores}
    lines = [
        f"# Written by `colocate calibrate` on {measured.begun:%Y-%m-%d}. low and high span the repetitions.",
        f"description = {_quoted(_description(measured))}",
        f"machine = {_quoted(measured.host)}",
        f"cores = {len(cores)}",
        f"siblings = {sorted(list(group) for group in siblings if len(group) > 1)}",
        "",
        "[scenario]",
        f"jobs = {_quoted(measured.catalogue)}",
        "slo_ms = 0.8",
        "percentile = 95",
        f"memcached_threads = {measured.threads}",
        f"qps_min = {qps_min:.0f}",
        f"qps_max = {qps_max:.0f}",
        "qps_interval_s = 5.0",
        "qps_seed = 3274",
        "open_loop = true",
        "",
        "[moves]",
        *(line for kind in _MOVES for line in _move(kind, measured.moves[kind], source)),
        "",
        "[service]",
        *(_line(name, figure) for name, figure in _service(measured, qps_min, qps_max, source).items()),
    ]
    for width, scan in measured.scans.items():
        lines += ["", "[[service.curves]]", f"threads = {measured.threads}", f"cores = {width}"]
        lines += [_line(name, figure) for name, figure in curve_figures(scan, source).items()]
    for job, runs in measured.runs.items():
        lines += ["", f"[jobs.{job}]"]
        lines += [_line(name, figure) for name, figure in job_figures(runs, measured.topology, source).items()]
    return "\n".join(lines) + "\n"


def job_figures(runs: Mapping[tuple[int, int], Sequence[float]], topology: Topology, source: str) -> dict[str, Figure]:
    """A job's figures from its run times alone: Amdahl's law over the cores, and threads above cores."""
    alone = spread(runs[1, 1], f"{source}, 1 thread on 1 core")
    paired = all(len(group) == 2 for group in topology.siblings.values())
    physical = len(topology.cores) // 2 if paired else len(topology.cores)
    wide = {cores: seconds for (threads, cores), seconds in runs.items() if threads == cores and cores > 1}
    figures = {"alone_s": alone}
    apart = {cores: seconds for cores, seconds in wide.items() if cores <= physical}
    serial = 0.0
    if apart:
        found = [
            min(0.99, max(0.0, (one / alone.value - 1 / cores) / (1 - 1 / cores)))
            for cores, seconds in apart.items()
            for one in seconds
        ]
        figures["serial"] = spread(found, f"{source}, a thread a core on 2 to {max(apart)} cores")
        serial = figures["serial"].value
    if paired and (full := wide.get(len(topology.cores))):
        cores = len(topology.cores)
        speeds = [(1 - serial) * alone.value / max(1e-6, one - serial * alone.value) / cores for one in full]
        figures["sibling"] = spread([min(1.0, max(0.5, s)) for s in speeds], f"{source}, a thread on every sibling")
    crowded = next(((threads, seconds) for (threads, cores), seconds in runs.items() if threads > cores), None)
    if crowded:
        threads, seconds = crowded
        longer = [max(0.0, one / alone.value - 1.0) / (threads - 1) for one in seconds]
        figures["crowding"] = spread(longer, f"{source}, {threads} threads on 1 core")
    figures["spread"] = _log_spread(list(runs.values()), source)
    return figures


def _service(measured: Measured, qps_min: float, qps_max: float, source: str) -> dict[str, Figure | CurveFigure]:
    one = measured.scans[1]
    apart = len(measured.topology.cores) if measured.shared_with_generator else 0
    scans = {cores: scan for cores, scan in measured.scans.items() if cores != apart}  # cores that are all its own
    full_us = [pair.disturbed.latency_us["p95"] for pair in measured.shared_full]
    full = measured.shared_full_capacity
    not_measured = f"{source}: no SMT siblings, or not told apart from beside_batch"
    return {
        "core_scaling": _core_scaling(scans, source),
        **shape_figures(one, source),
        "beside_batch": beside_figure(measured.beside, f"{source}, each job beside memcached on 1 core"),
        "beside_sibling": Figure(0.0, 0.0, 0.0, not_measured),
        "beside_memory": Figure(0.0, 0.0, 0.0, f"{source}: not told apart from beside_batch"),
        "shared_idle": shared_figure(measured.shared_idle, f"{source}, a job at the lowest weight on its core"),
        "shared_full_p95_us": spread(full_us, f"{source}, a spinning process on its core"),
        "shared_full_capacity": Figure(full, full, full, f"{source}, a spinning process on its core, 1 repetition"),
        **wait_figures(scans, source),
        **cpu_figures(one, qps_min, qps_max, source),
        "interval_sd": interval_sd(one, source),
        "machine_sd": Figure(0.0, 0.0, 0.0, f"{source}: one machine, this one"),
    }


def _core_scaling(scans: Mapping[int, Scan], source: str) -> Figure:
    widest = max(scans)
    if widest == 1:
        return Figure(0.617, 0.514, 0.643, f"{source}: not measured here, cca-2025's")
    one, all_of_them = (statistics.median(scans[cores].capacity_qps) for cores in (1, widest))
    scaling = min(1.0, max(0.0, math.log(all_of_them / one) / math.log(widest)))
    return Figure(scaling, scaling, scaling, f"{source}, capacities on 1 and {widest} cores")


def _description(measured: Measured) -> str:
    cores = len(measured.topology.cores)
    parts = [
        f"{measured.host}, {cores} cores, memcached with {measured.threads} threads, jobs of {measured.catalogue}, "
        f"measured by its owner in {'a quick look' if measured.quick else 'full'}."
    ]
    if measured.shared_with_generator:
        parts.append(
            f"On {max(measured.scans)} cores memcached shared the last one with the load generator, which goes first."
        )
    parts.append("What jobs do to each other's memory traffic was not measured.")
    return " ".join([*parts, *(f"{warning[0].upper()}{warning[1:]}." for warning in measured.warnings)])


def _move(kind: str, seconds: Sequence[float], source: str) -> list[str]:
    logs = [math.log(one) for one in seconds]
    sd = statistics.stdev(logs) if len(logs) > 1 else 0.0
    told = spread(seconds, source)
    return [_line(f"{kind}_s", told), _line(f"{kind}_sd", Figure(sd, sd, sd, told.source))]


def _log_spread(groups: Sequence[Sequence[float]], source: str) -> Figure:
    sds = [statistics.stdev(map(math.log, group)) for group in groups if len(group) > 1]
    if not sds:
        return Figure(0.0, 0.0, 0.0, f"{source}: not repeated, so not known")
    value = math.sqrt(statistics.fmean(sd * sd for sd in sds))
    return Figure(value, min(sds), max(sds), f"{source}, {len(sds)} kinds of run, repeated")


def _line(name: str, figure: Figure | CurveFigure) -> str:
    value, low, high = (_number(part) for part in (figure.value, figure.low, figure.high))
    return f"{name} = {{ value = {value}, low = {low}, high = {high}, source = {_quoted(figure.source)} }}"


def _number(value: float | tuple[float, ...]) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_number, value))}]"
    return f"{float(f'{value:.5g}')!r}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{"".join(char for char in escaped if char.isprintable())}"'
