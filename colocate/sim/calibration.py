"""Calibrations: the figures of one machine type and one set of jobs, with the scenario that they were measured for.

A calibration is a TOML file. Each figure is a table `{ value, low, high, source }`: the figure, its spread between
those who measured it, and where it comes from. `[scenario]` names what a run there is by default.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from colocate.cores import CoreSet
from colocate.errors import UserError
from colocate.jobs import JobSpec
from colocate.sim.batch import JobFigures
from colocate.sim.host import Delay, Delays
from colocate.sim.service import ServiceFigures
from colocate.topology import Topology
from colocate.trust import read_trusted
from colocate.view import Slo

_MOST = 1e15  # of any figure
_KEYS = {"description", "machine", "cores", "siblings", "scenario", "service", "jobs", "moves"}


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a run is by default: jobs, promise, memcached's threads, load.

    Attributes:
        jobs: a catalogue's name.
        qps_interval_s: length of a load interval.
        open_loop: whether the clients send at their own pace, as `colocate load` does and mcperf does not.
    """

    jobs: str
    slo: Slo
    memcached_threads: int
    qps_min: int
    qps_max: int
    qps_interval_s: float
    qps_seed: int
    open_loop: bool = False


@dataclass(frozen=True, slots=True)
class Calibration:
    """A machine's figures.

    Attributes:
        name: as in `--scenario`.
        machine: its type.
    """

    name: str
    description: str
    machine: str
    topology: Topology
    scenario: Scenario
    service: ServiceFigures
    jobs: Mapping[str, JobFigures]
    delays: Delays

    def check_jobs(self, names: Iterable[str]) -> None:
        """Whether there are figures for these jobs.

        Raises:
            UserError: there are none for one of them.
        """
        for name in names:
            if name not in self.jobs:
                raise UserError(
                    f"{self.name} has no figures for the job {name!r}",
                    f"it knows {', '.join(sorted(self.jobs))}; name another, or `colocate calibrate` them",
                )

    def informed(self, jobs: Iterable[JobSpec]) -> tuple[JobSpec, ...]:
        """The jobs with this machine's typical run times and sensitivity, where it has figures, for what is decided."""
        return tuple(_informed(job, self.jobs[job.name]) if job.name in self.jobs else job for job in jobs)


def _informed(job: JobSpec, figures: JobFigures) -> JobSpec:
    """Run times at the thread counts that the catalogue has been measured at: others the program may not take."""
    return replace(
        job,
        runtime_s={
            count: figures.alone_s * (figures.serial + (1.0 - figures.serial) / count)
            for count in sorted({1, *job.runtime_s})
        },
        sensitivity={**job.sensitivity, "cpu": 1.0 / figures.sibling},
    )


def calibration_names() -> list[str]:
    """The calibrations that ship."""
    files = resources.files("colocate.sim.calibrations").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_calibration(name_or_path: str) -> Calibration:
    """Load a file of that path, else `NAME.toml` of this directory, else one that ships.

    Raises:
        UserError: there is none, or it is bad; names the file and the figure.
    """
    here = Path(f"{name_or_path}.toml")
    try:
        if name_or_path.endswith(".toml") or here.is_file():
            path = Path(name_or_path) if name_or_path.endswith(".toml") else here
            text, where = read_trusted(path).decode("utf-8"), str(path)
        elif name_or_path in calibration_names():
            where = here.name
            text = (resources.files("colocate.sim.calibrations") / where).read_text(encoding="utf-8")
        else:
            names = ", ".join(calibration_names())
            raise UserError(f"scenario {name_or_path!r}: unknown", f"give one of {names}, or a file of `calibrate`")
        table = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "is not UTF-8 text"
        raise UserError(f"scenario {name_or_path}: {reason}", "give a file that `colocate calibrate` wrote") from error
    except (ValueError, RecursionError) as error:  # tomllib lets both through: a number of 5,000 digits, brackets
        raise UserError(f"{where}: not TOML: {error}", "mend that line") from error
    return parse_calibration(table, Path(where).stem, where)


def parse_calibration(table: Mapping[str, object], name: str, where: str) -> Calibration:
    """Check a parsed file; `where` is for messages.

    Raises:
        UserError: names the file and the figure.
    """
    if unknown := sorted(set(table) - _KEYS):
        raise UserError(f"{where}: unknown key {unknown[0]!r}", f"known are {', '.join(sorted(_KEYS))}")
    section = _sections(table, where)
    jobs = {job: JobFigures.from_table(_table(part, f"{where}: jobs.{job}"), f"{where}: jobs.{job}")
            for job, part in section("jobs").items()}  # fmt: skip
    return Calibration(
        name=name,
        description=str(table.get("description", "")),
        machine=str(table.get("machine", "")),
        topology=_topology(table, where),
        scenario=_scenario(section("scenario"), where),
        service=ServiceFigures.from_table(section("service"), f"{where}: service"),
        jobs=jobs,
        delays=_delays(section("moves"), where),
    )


def _sections(table: Mapping[str, object], where: str) -> Callable[[str], Mapping[str, object]]:
    return lambda name: _table(table.get(name), f"{where}: {name}")


def _table(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: missing, or no table", "write a calibration as `colocate calibrate` does")
    return value


def _number(table: Mapping[str, object], key: str, where: str, least: float = 0.0) -> float:
    value = table.get(key)
    if isinstance(value, dict):
        value = value.get("value")
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= _MOST:
        raise UserError(f"{where}: {key}: {value!r} is no figure", f"give a number from {least:g}")
    return float(value)


def _topology(table: Mapping[str, object], where: str) -> Topology:
    count, groups = table.get("cores"), table.get("siblings", [])
    if not isinstance(count, int) or isinstance(count, bool) or not 2 <= count <= 4096:
        raise UserError(f"{where}: cores: {count!r} is no core count", "give a whole number from 2")
    flat = Topology.flat(count)
    siblings: dict[int, CoreSet] = dict(flat.siblings)
    if not isinstance(groups, list):
        raise UserError(f"{where}: siblings: {groups!r} is no list", "write it like [[0, 1], [2, 3]]")
    for group in groups:
        if not isinstance(group, list) or not all(isinstance(c, int) and c in flat.cores for c in group):
            raise UserError(f"{where}: siblings: {group!r} are no cores of it", "write it like [[0, 1], [2, 3]]")
        for core in group:
            if len(siblings[core]) > 1:
                raise UserError(f"{where}: siblings: core {core} stands in two groups", "name each core once")
            siblings[core] = frozenset(group)
    return Topology(flat.cores, siblings, flat.cache, flat.node)


def _scenario(table: Mapping[str, object], where: str) -> Scenario:
    where = f"{where}: scenario"
    jobs = table.get("jobs")
    if not isinstance(jobs, str):
        raise UserError(f"{where}: jobs: {jobs!r} is no catalogue", "give its name or path")
    return Scenario(
        jobs=jobs,
        slo=Slo(_number(table, "slo_ms", where, 1e-3), min(99.99, _number(table, "percentile", where, 1.0))),
        memcached_threads=max(1, int(_number(table, "memcached_threads", where))),
        qps_min=int(_number(table, "qps_min", where)),
        qps_max=int(_number(table, "qps_max", where)),
        qps_interval_s=_number(table, "qps_interval_s", where, 0.01),
        qps_seed=int(_number(table, "qps_seed", where)),
        open_loop=table.get("open_loop") is True,
    )


def _delays(table: Mapping[str, object], where: str) -> Delays:
    where = f"{where}: moves"
    known = Delays.__dataclass_fields__
    if unknown := sorted(set(table) - {f"{name}{end}" for name in known for end in ("_s", "_sd")}):
        raise UserError(f"{where}: unknown key {unknown[0]!r}", f"known are {', '.join(f'{name}_s' for name in known)}")
    return Delays(
        **{name: Delay(_number(table, f"{name}_s", where), _number(table, f"{name}_sd", where)) for name in known}
    )
