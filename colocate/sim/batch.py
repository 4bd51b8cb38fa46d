"""How fast batch jobs run: threads on cores, what neighbours cost them, what memcached leaves them.

A job's whole work is what it takes one thread alone, in seconds of an undisturbed core. At first one thread works
(input is read), then all of them (Amdahl 1967, AFIPS 30). A core is slower while its SMT sibling works; all cores are
slower while other jobs use the memory system; threads that outnumber the cores cost those that wait for each other at
barriers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from colocate.cores import CoreSet
from colocate.errors import UserError
from colocate.sim.figures import figure
from colocate.topology import Topology

_NONE: CoreSet = frozenset()
_KEPT = 500  # answers that are remembered; a run comes back to a few dozen situations
_RANGES = {
    "alone_s": (1e-3, 1e7),
    "serial": (0.0, 0.99),
    "sibling": (0.5, 1.0),
    "crowding": (0.0, 10.0),
    "memory": (0.0, 10.0),
    "sensitivity": (0.0, 10.0),
    "spread": (0.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class JobFigures:
    """What is known of one job on one type of machine; what was not measured has no effect.

    Attributes:
        alone_s: run time with one thread on an undisturbed core.
        serial: share of it that one thread does before the others join in.
        sibling: speed of a core while its SMT sibling works; from 0.5, since two are never slower than one.
        crowding: by how much of its time the job is longer for each thread a core above one (barriers).
        memory: load on the memory system for each busy core; about 1 for a core that streams.
        sensitivity: by how much of its time it is longer for each unit of that load by others.
        spread: log standard deviation of its run time under equal conditions.
    """

    alone_s: float
    serial: float = 0.0
    sibling: float = 1.0
    crowding: float = 0.0
    memory: float = 0.0
    sensitivity: float = 0.0
    spread: float = 0.0

    @classmethod
    def from_table(cls, table: Mapping[str, object], where: str) -> JobFigures:
        """Check `{figure = { value, low, high, source }}`; all but `alone_s` may be missing.

        Raises:
            UserError: names `where` and the figure.
        """
        if unknown := sorted(set(table) - set(_RANGES)):
            raise UserError(f"{where}: unknown figure {unknown[0]!r}", f"known are {', '.join(_RANGES)}")
        if "alone_s" not in table:
            raise UserError(f"{where}: alone_s is missing", "give the seconds of one thread alone")
        return cls(**{name: _value(table, name, where) for name in table})


@dataclass(frozen=True, slots=True)
class Running:
    """One job that runs now (a paused one does not).

    Attributes:
        done: share of its work that is done, 0 to 1.
        shared: those of its cores that memcached has too, where the job has only idle priority.
    """

    cores: CoreSet
    threads: int
    done: float = 0.0
    shared: CoreSet = _NONE


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a job runs.

    Attributes:
        per_s: share of the whole job done a second.
        until: value of `done` at which the rate changes although nothing else does; 1.0 in the last phase.
        cpu_cores: CPU it uses.
        busy: by core, the share of the core that it uses.
        memory: its load on the memory system.
    """

    per_s: float
    until: float
    cpu_cores: float
    busy: Mapping[int, float]
    memory: float


@dataclass(frozen=True, slots=True)
class _Job:
    """A running job in its present phase: how many threads are active."""

    name: str
    cores: CoreSet
    threads: int
    shared: CoreSet
    serial: bool

    @property
    def active(self) -> int:
        return 1 if self.serial else self.threads

    def demand(self) -> float:
        """Share of each of its cores that it would use if all were alike."""
        return min(1.0, self.active / len(self.cores))


_Key = tuple[tuple[_Job, ...], CoreSet, float]


class BatchModel:
    """The jobs of one machine.

    Args:
        figures: by job.
        topology: which cores are SMT siblings.
    """

    def __init__(self, figures: Mapping[str, JobFigures], topology: Topology) -> None:
        self._figures = figures
        self._siblings = {core: tuple(sorted(topology.siblings[core] - {core})) for core in topology.cores}
        self._known: dict[_Key, Mapping[str, Rate]] = {}

    def rates(self, running: Mapping[str, Running], service: CoreSet, service_busy: float) -> Mapping[str, Rate]:
        """How fast each job runs while nothing changes.

        Jobs that share a core share it fairly with each other and with memcached; at idle priority they get what
        the others leave. No core gives more than one core of CPU in all.

        Args:
            running: jobs by name, each with at least one core.
            service: memcached's cores.
            service_busy: mean busy share of them, 0 to 1.
        """
        jobs = tuple(
            _Job(name, job.cores, job.threads, job.shared, serial=job.done < self._figures[name].serial)
            for name, job in running.items()
        )
        key = jobs, service, round(service_busy, 2)
        if (known := self._known.get(key)) is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            known = self._known[key] = self._work_out(*key)
        return known

    def _work_out(self, jobs: Sequence[_Job], service: CoreSet, service_busy: float) -> Mapping[str, Rate]:
        on: dict[int, list[_Job]] = {}
        for job in jobs:
            for core in job.cores:
                on.setdefault(core, []).append(job)
        served = _served(on, service, service_busy)
        use = {job.name: self._use(job, on, served) for job in jobs}
        busy = _squeeze(use, on, served)
        memory = {job.name: self._figures[job.name].memory * sum(use[job.name].values()) for job in jobs}
        total = sum(memory.values())
        return {job.name: self._rate(job, use[job.name], busy, memory[job.name], total) for job in jobs}

    def _use(self, job: _Job, on: Mapping[int, Sequence[_Job]], served: Mapping[int, float]) -> dict[int, float]:
        """How much of each core it gets. Like the kernel it prefers a core whose sibling is idle."""

        def others(core: int) -> float:
            load = sum(other.demand() for other in on.get(core, ()) if other is not job)
            return min(1.0, load + served.get(core, 0.0))

        slowed = {core: sum(map(others, self._siblings[core])) for core in job.cores}
        left = float(min(job.active, len(job.cores)))
        use: dict[int, float] = {}
        waiting = sorted(job.cores, key=lambda core: (slowed[core], core))
        while waiting and left > 0:
            taken = set[int]()
            for core in waiting:
                if left > 0 and taken.isdisjoint(self._siblings[core]):
                    taken.add(core)
                    use[core] = min(left, _share(job, core, on[core], served.get(core, 0.0)))
                    left -= use[core]
            waiting = [core for core in waiting if core not in taken]
        return use

    def _rate(
        self, job: _Job, use: Mapping[int, float], busy: Mapping[int, float], memory: float, total: float
    ) -> Rate:
        figures = self._figures[job.name]
        work = 0.0
        for core, share in use.items():
            siblings_busy = min(1.0, sum(busy.get(sibling, 0.0) for sibling in self._siblings[core]))
            work += share * (1.0 - (1.0 - figures.sibling) * siblings_busy)
        work /= 1.0 + figures.crowding * max(0.0, job.active / len(job.cores) - 1.0)
        work /= 1.0 + figures.sensitivity * (total - memory)
        until = figures.serial if job.serial else 1.0
        return Rate(work / figures.alone_s, until, sum(use.values()), use, memory)


def _served(on: Mapping[int, Sequence[_Job]], service: CoreSet, busy: float) -> dict[int, float]:
    """Memcached's demand by core. Its threads wake where no job of equal weight runs, as long as there is room."""
    disputed = {core for core in service if any(core not in job.shared for job in on.get(core, ()))}
    free, total = len(service) - len(disputed), busy * len(service)
    there = min(1.0, total / free) if free else 0.0
    rest = max(0.0, total - free) / len(disputed) if disputed else 0.0
    return {core: rest if core in disputed else there for core in service}


def _share(job: _Job, core: int, here: Iterable[_Job], served: float) -> float:
    """What a job gets of a core if it takes all it can."""
    equal = [other.demand() for other in here if other is not job and core not in other.shared]
    if core not in job.shared:
        return _fair(1.0, [*equal, served])
    idle = [other.demand() for other in here if other is not job and core in other.shared]
    return _fair(max(0.0, 1.0 - served - sum(equal)), idle)


def _fair(capacity: float, others: Iterable[float]) -> float:
    """A hungry one's max-min fair share of a capacity beside others with these demands."""
    demands = sorted(others)
    for index, demand in enumerate(demands):
        equal = capacity / (len(demands) - index + 1)
        if demand >= equal:
            return equal
        capacity -= demand
    return capacity


def _squeeze(
    use: Mapping[str, dict[int, float]], on: Mapping[int, Sequence[_Job]], served: Mapping[int, float]
) -> dict[int, float]:
    """Where jobs that each counted on the others' leisure ask for more than a core, cut all alike; the load by core."""
    busy = dict(served)
    for core, here in on.items():
        takers = [use[job.name] for job in here if core in use[job.name]]
        idle = all(core in job.shared for job in here)
        limit = 1.0 - served.get(core, 0.0) if idle else 1.0
        asked = sum(taker[core] for taker in takers)
        if asked > limit:
            for taker in takers:
                taker[core] *= limit / asked
        busy[core] = min(1.0, busy.get(core, 0.0) + min(asked, limit))
    return busy


def _value(table: Mapping[str, object], name: str, where: str) -> float:
    least, most = _RANGES[name]
    value = figure(table, name, where, least=least).value
    if value > most:
        raise UserError(f"{where}: {name}: value {value!r} is above {most:g}", "mend that figure")
    return value
