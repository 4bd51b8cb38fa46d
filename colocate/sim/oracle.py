"""The oracle: how good a schedule could be if the whole load were known in advance.

Two bounds on the time from the beginning of a run to the end of its last job. The lower one is rigorous
(`sim/bound.py`). The upper one is the best schedule found offline: it is played on the simulated machine itself, with
the same noise as every policy meets, but its moves take no time. It is searched like this:

- Memcached's cores are chosen part by part of the load (a part lies between two changes of load or interval): at first
  the fewest that hold the SLO undisturbed, one of each pair of SMT siblings, since that leaves the jobs most; wherever
  an interval then breaks the SLO on the machine, whole pairs, then one core more, and so on. Where nobody can hold it,
  the fewest that serve most.
- The jobs share the other cores as in list scheduling, the one with most work left first (LPT; Graham 1969, SIAM J.
  Appl. Math. 17), with one core while only one of its threads works. Spare cores widen them in the same order.
- Order, widths, thread counts and whether a job may be paused for another are improved by a seeded local search.
- With sharing, jobs that are left over get memcached's cores at idle priority.

It is a heuristic: a policy may happen to do better, by meeting a load late within what the SLO allows. Then its own
schedule is the best that is known; `report/comparison.py` takes the better of the two.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from colocate.cores import CoreSet
from colocate.placement import Assignment, place
from colocate.sim.bound import LowerBound
from colocate.sim.machine import Machine
from colocate.sim.run import Setup
from colocate.sim.service import ServiceModel, Surroundings

_CALM = Surroundings()
_EFFORT = 4000  # parts of the load that the search may play
_FEWEST = 8  # schedules that it tries
_WIDENED = 0.4  # of the changes are of width and threads, the others of urgency
_REPAIRS = 8  # times that one schedule is played to find out where memcached needs more


@dataclass(frozen=True, slots=True)
class Step:
    """From `time_s` on: who has which cores; where a job has one of memcached's, it is at idle priority."""

    time_s: float
    service: CoreSet
    jobs: Mapping[str, CoreSet]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Times from the beginning of the run to the end of the last job, seconds.

    Attributes:
        lower_bound_s: nobody who holds the SLO is earlier.
        best_s: the schedule found ends.
        violations: intervals in which the schedule found breaks the SLO: no core count holds it there, or what was left
            undone in such an interval is served.
        schedule: what was found.
    """

    lower_bound_s: float
    best_s: float
    violations: int
    schedule: tuple[Step, ...]


def bounds(setup: Setup, *, share: bool = False, floor_cores: int = 1, tries: int = 24) -> Bounds:
    """Both bounds for one scenario and seed; the same setup gives the same bounds.

    Args:
        setup: the machine, the jobs, the load.
        share: whether jobs may also use memcached's idle cycles, at idle priority.
        floor_cores: memcached never gets fewer.
        tries: at most so many schedules are tried; fewer where the load has many parts.

    Raises:
        UserError: a job has no figures.
    """
    setup.machine()  # tells which job has no figures
    service = setup.service()
    lower = LowerBound(setup, service, share=share, floor_cores=floor_cores)
    found = _search(_Stage(setup, service, lower, share=share, floor_cores=floor_cores), tries)
    return Bounds(lower.end_s(), found.end_s, found.violations, found.steps)


@dataclass(frozen=True, slots=True)
class _Rule:
    """How the jobs share the cores.

    Attributes:
        urgency: by job; times the work that is left it says who comes first.
        widths: cores by job before there are spare ones.
        threads: by job.
        swap: whether a job may be paused for a more urgent one.
    """

    urgency: Mapping[str, float]
    widths: Mapping[str, int]
    threads: Mapping[str, int]
    swap: bool


@dataclass(frozen=True, slots=True)
class _Play:
    """What came of a rule."""

    violations: int
    end_s: float
    steps: tuple[Step, ...]

    @property
    def rank(self) -> tuple[int, float]:
        return self.violations, self.end_s


def _search(stage: _Stage, tries: int) -> _Play:
    jobs = stage.setup.jobs
    draw = random.Random(f"{stage.setup.seed}/oracle")  # noqa: S311 -- a search, no secret
    even = {job.name: 1.0 for job in jobs}
    one, given = {job.name: 1 for job in jobs}, {job.name: job.threads for job in jobs}
    kinds = ((one, one), (one, given), (given, given))
    starts = [_Rule(even, widths, threads, swap) for widths, threads in kinds for swap in (False, True)]
    best_rule, best = min(((rule, stage.play(rule)) for rule in starts), key=lambda pair: pair[1].rank)
    for _ in range(min(tries, max(_FEWEST, _EFFORT // max(1, len(best.steps)))) - len(starts)):
        rule = _neighbour(best_rule, stage, draw)
        play = stage.play(rule)
        if play.rank < best.rank:
            best_rule, best = rule, play
    return best


def _neighbour(rule: _Rule, stage: _Stage, draw: random.Random) -> _Rule:
    """The same with one job more or less urgent, or of other width and threads."""
    job = draw.choice(stage.setup.jobs)
    counts = sorted({1, job.threads, *(n for n in job.runtime_s if n <= len(stage.setup.topology.cores))})
    if len(counts) > 1 and draw.random() < _WIDENED:
        threads = draw.choice(counts)
        return replace(
            rule,
            threads={**rule.threads, job.name: threads},
            widths={**rule.widths, job.name: draw.randint(1, threads)},
        )
    return replace(rule, urgency={**rule.urgency, job.name: rule.urgency[job.name] * draw.lognormvariate(0.0, 0.7)})


class _Stage:
    """Plays rules on the simulated machine."""

    def __init__(
        self, setup: Setup, service: ServiceModel, lower: LowerBound, *, share: bool, floor_cores: int
    ) -> None:
        self.setup = setup
        self._service = service
        self._lower = lower
        self._batch = setup.batch()
        self._noise = setup.noise()
        self._share = share
        self._floor_cores = min(floor_cores, len(setup.topology.cores) - 1)
        self._work_s = {
            job.name: setup.calibration.jobs[job.name].alone_s * self._noise.work(job.name) for job in setup.jobs
        }
        self._choices: dict[float, list[tuple[CoreSet, bool]]] = {}
        self._level: dict[float, int] = {}

    def play(self, rule: _Rule) -> _Play:
        """Play until every interval holds the SLO or cannot; what one play teaches of memcached's need is kept."""
        for turn in range(_REPAIRS):
            play, broken = self._once(rule)
            raised = False
            for part_s in broken:
                top = len(self._choices[part_s]) - 1
                if self._level[part_s] < top:
                    self._level[part_s] = self._level[part_s] + 1 if turn < _REPAIRS // 2 else top
                    raised = True
            if not raised:
                break
        return play

    def _once(self, rule: _Rule) -> tuple[_Play, list[float]]:
        """One play, and the parts of the load that belong to intervals which break the SLO."""
        setup, names = self.setup, {job.name for job in self.setup.jobs}
        machine = Machine(
            setup.trace, self._service, self._batch, setup.topology, self._noise,
            open_loop=setup.calibration.scenario.open_loop,
        )  # fmt: skip
        machine.share(frozenset(names if self._share else ()))
        length_s = setup.trace.interval_s
        parts: list[list[float]] = []
        steps: list[Step] = []
        next_s = 0.0
        exclusive: dict[str, CoreSet] = {}
        while names and machine.time_s < setup.trace.duration_s:
            if machine.time_s >= next_s:
                part_s = next_s
                index = int(part_s / length_s + 1e-9)
                next_s = min((index + 1) * length_s, setup.trace.next_change_s(part_s))
                parts.extend([] for _ in range(index + 1 - len(parts)))
                parts[index].append(part_s)
            service, shared = self._choice(part_s, index)
            exclusive = self._assign(machine, rule, names, service, exclusive, shared=shared)
            held = {name: job.cores for name, job in machine.jobs.items() if not job.paused}
            steps.append(Step(machine.time_s, machine.cores, held))
            names.difference_update(machine.advance(min(next_s, machine.next_change_s())))
        end_s = machine.time_s
        machine.pin(setup.topology.cores)
        machine.advance(len(parts) * length_s + 1e-6)
        column = f"p{setup.slo.percentile:g}_us".replace(".", "")
        late = [
            i for i, row in enumerate(machine.rows[: len(parts)]) if getattr(row, column) > 1e3 * setup.slo.latency_ms
        ]
        return _Play(len(late), end_s if not names else math.inf, tuple(steps)), [s for i in late for s in parts[i]]

    def _choice(self, part_s: float, index: int) -> tuple[CoreSet, bool]:
        """Memcached's cores in a part of the load, and whether jobs share them."""
        if part_s not in self._choices:
            setup, total = self.setup, len(self.setup.topology.cores)
            qps, limit_us = setup.trace.qps(part_s), 1e3 * setup.slo.latency_ms / self._noise.interval(index)

            def enough(count: int) -> bool:
                state = self._service.state(qps, count, _CALM)
                return qps <= state.capacity_qps and state.latency.quantile(setup.slo.percentile / 100) <= limit_us

            if self._lower.hopeless(index):  # what serves most
                counts = [
                    max(
                        range(self._floor_cores, total + 1),
                        key=lambda count: self._service.state(qps, count, _CALM).capacity_qps,
                    )
                ]
            else:
                least = next((count for count in range(self._floor_cores, total) if enough(count)), total)
                counts = [*range(least, total + 1)]
            sets = [self._apart(count, first=first) for count in counts for first in (True, False)]
            ways = (True, False) if self._share else (False,)
            self._choices[part_s] = [(cores, shared) for shared in ways for cores in dict.fromkeys(sets)]
            self._level[part_s] = 0
        return self._choices[part_s][self._level[part_s]]

    def _apart(self, count: int, *, first: bool) -> CoreSet:
        """So many cores, at first one of each pair of SMT siblings, or whole pairs."""
        siblings = self.setup.topology.siblings

        def rank(core: int) -> tuple[int, int, int]:
            return sorted(siblings[core]).index(core) * first, min(siblings[core]), core

        return frozenset(sorted(siblings, key=rank)[:count])

    def _assign(
        self,
        machine: Machine,
        rule: _Rule,
        names: Collection[str],
        service: CoreSet,
        held: Mapping[str, CoreSet],
        *,
        shared: bool,
    ) -> dict[str, CoreSet]:
        """Give memcached these cores and the jobs the others; the cores that each job has to itself."""
        topology, figures = self.setup.topology, self.setup.calibration.jobs
        done = {name: machine.jobs[name].done if name in machine.jobs else 0.0 for name in names}

        def rank(name: str) -> tuple[bool, float]:
            urgency = rule.urgency[name] * (1.0 - done[name]) * self._work_s[name]
            return not rule.swap and name not in machine.jobs, -urgency

        order = sorted((job.name for job in self.setup.jobs if job.name in names), key=rank)
        useful = {name: 1 if done[name] < figures[name].serial else rule.threads[name] for name in order}
        first = {name: min(width, rule.widths[name]) for name, width in useful.items()}
        widths = _dealt(len(topology.cores - service), dict.fromkeys(useful, 0), first, useful)
        target = place(len(service), widths, Assignment(service, held), topology)
        if service != machine.cores:
            machine.pin(service)
        cores = {name: target.jobs.get(name, _NOWHERE) for name in useful}
        if shared:
            wider = _dealt(len(service), widths, first, useful)
            free = sorted(service)
            for name, width in wider.items():
                extra, free = free[: width - widths[name]], free[width - widths[name] :]
                cores[name] |= frozenset(extra)
        for name in order:
            _give(machine, name, rule.threads[name], cores[name])
        return dict(target.jobs)


def _dealt(cores: int, has: Mapping[str, int], first: Mapping[str, int], most: Mapping[str, int]) -> dict[str, int]:
    """Deal cores in the jobs' order on top of what they have: up to the first width each, then up to the most."""
    widths = dict(has)
    for limit in (first, most):
        for name in widths:
            more = max(0, min(cores, limit[name] - widths[name]))
            widths[name] += more
            cores -= more
    return widths


def _give(machine: Machine, job: str, threads: int, cores: CoreSet) -> None:
    """Bring a job to these cores: start, resize, pause or resume it."""
    if job not in machine.jobs:
        if cores:
            machine.start(job, threads, cores)
        return
    now = machine.jobs[job]
    if cores and cores != now.cores:
        machine.resize(job, cores)
    if now.paused == bool(cores):
        machine.pause(job, paused=not cores)


_NOWHERE: CoreSet = frozenset()
