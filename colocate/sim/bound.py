"""A lower bound on the time by which any policy that holds the SLO can have done the jobs, whatever it knows.

A fluid relaxation. In each load interval memcached may have every core count for a share of the time, with no cost of
changing and at any fraction; the SLO is held if the share of slow requests in the interval is small enough. Which
shares leave the jobs most is a linear program with one constraint. It is solved by its dual (Boyd & Vandenberghe,
Convex Optimization, ch. 5): any multiplier gives a bound, the best one the exact value.

What the jobs make of a core is never more than what the model can give: one unit of work a second, less what SMT
siblings must cost. (The others' memory traffic need not cost anything: one job may have threads for all cores.) The
jobs' works are added up at several prices a unit (the dual again: any prices give a bound). It relies on two properties
of the models: what runs beside memcached never makes it faster, and no neighbour helps a job.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from colocate.sim.run import Setup
from colocate.sim.service import ServiceModel, ServiceState, Surroundings
from colocate.view import Slo

_TOLERANCE = 1e-4  # percentiles of mixtures are found by bisection
_BUSY_STEP = 0.005  # the batch model rounds memcached's busy share by at most this
_PRICES = (0.0, 1.0)  # of a unit of work, as powers of what it gains where the sibling rests
_CALM = Surroundings()


@dataclass(frozen=True, slots=True)
class _Option:
    """Memcached on some cores under one load: what that leaves to jobs.

    Attributes:
        excess: slow requests a second above what the SLO allows, at least; below 0 it makes up for others.
        count: its cores.
        busy: the share of each that it uses, at least.
    """

    excess: float
    count: int
    busy: float


Piece = tuple[float, Sequence[tuple[float, float]]]


class LowerBound:
    """No schedule that holds the SLO ends all jobs before `end_s()`, counted from the beginning of the run.

    An interval in which nobody can hold the SLO sets no limit.

    Args:
        setup: the machine, the jobs, the load, all known in advance.
        service: memcached on this very machine.
        share: whether jobs may also use memcached's idle cycles, at idle priority.
        floor_cores: memcached never gets fewer.
    """

    def __init__(self, setup: Setup, service: ServiceModel, *, share: bool = False, floor_cores: int = 1) -> None:
        self._setup = setup
        self._service = service
        self._share = share
        self._cores = len(setup.topology.cores)
        self._counts = range(min(floor_cores, self._cores), self._cores + 1)
        self._paired = setup.topology.cores and all(len(group) == 2 for group in setup.topology.siblings.values())
        self._noise = setup.noise()
        self._figures = {job.name: setup.calibration.jobs[job.name] for job in setup.jobs}
        self._work_s = {name: job.alone_s * self._noise.work(name) for name, job in self._figures.items()}
        self._sibling = {name: job.sibling if self._paired else 1.0 for name, job in self._figures.items()}
        self._crowd = Surroundings(
            siblings_busy=1.0,
            batch_cores=float(self._cores),
            memory=sum(self._figures[job.name].memory * self._cores for job in setup.jobs),
            shared_idle=float(share),
        )
        self._options: dict[tuple[float, int], list[_Option]] = {}

    def end_s(self) -> float:
        """The latest of: all work done by all cores; each job done, were it alone."""
        if not self._setup.jobs:
            return 0.0
        ends_s = [self._together_s(exponent) for exponent in (_PRICES if self._paired else (0.0,))]
        for job in self._setup.jobs:
            figures, work_s = self._figures[job.name], self._work_s[job.name]
            # First one thread works, then all, as many as are best.
            ends_s.append(self._end_s(work_s * (1 - figures.serial), self._fastest, work_s * figures.serial))
        return max(ends_s)

    def hopeless(self, index: int) -> bool:
        """Whether nobody can hold the SLO in that load interval."""
        least = (
            (to_s - from_s) * min(option.excess for option in self._by_count(qps, index))
            for from_s, to_s, qps in self._loads(index)
        )
        return sum(least) > 0

    def _together_s(self, exponent: float) -> float:
        """When all work can be done, at a price of sibling ** -exponent a unit."""
        prices = {name: sibling**-exponent for name, sibling in self._sibling.items()}
        work = sum(prices[name] * work_s for name, work_s in self._work_s.items())
        return self._end_s(work, lambda option: self._room(option, prices), 0.0)

    def _end_s(self, work: float, gain: Callable[[_Option], float], from_s: float) -> float:
        """The first time by which `work` can be done at `gain` a second, begun at `from_s`."""
        length_s = self._setup.trace.interval_s
        index = int(from_s // length_s)
        while True:
            begin_s, end_s = max(from_s, index * length_s), (index + 1) * length_s
            most = self._most(index, gain, begin_s, end_s)
            if most >= work:
                low_s, high_s = begin_s, end_s
                while high_s - low_s > 1e-4:
                    middle_s = (low_s + high_s) / 2
                    if self._most(index, gain, begin_s, middle_s) >= work:
                        high_s = middle_s
                    else:
                        low_s = middle_s
                return low_s
            if most <= 0 and begin_s >= self._setup.trace.duration_s:  # not even without any load
                return math.inf
            work -= most
            index += 1

    def _most(self, index: int, gain: Callable[[_Option], float], begin_s: float, end_s: float) -> float:
        """The most that can be done between two times of a load interval; the rest of it makes up for slow requests."""
        pieces: list[Piece] = []
        for from_s, to_s, qps in self._loads(index):
            options = self._by_count(qps, index)
            used_s = max(0.0, min(to_s, end_s) - max(from_s, begin_s))
            pieces.append((used_s, [(gain(option), option.excess) for option in options]))
            pieces.append((to_s - from_s - used_s, [(0.0, min(option.excess for option in options))]))
        return best_mix(pieces)

    def _loads(self, index: int) -> Iterator[tuple[float, float, float]]:
        """Begin, end and load of each part of a load interval."""
        trace = self._setup.trace
        time_s, end_s = index * trace.interval_s, (index + 1) * trace.interval_s
        while time_s < end_s:
            next_s = min(end_s, trace.next_change_s(time_s))
            yield time_s, next_s, trace.qps(time_s)
            time_s = next_s

    def _by_count(self, qps: float, index: int) -> list[_Option]:
        factor = self._noise.interval(index)
        key = (qps, index)
        if key not in self._options:
            self._options[key] = [self._option(qps, count, factor) for count in self._counts]
        return self._options[key]

    def _option(self, qps: float, count: int, factor: float) -> _Option:
        calm, crowded = (self._service.state(qps, count, around) for around in (_CALM, self._crowd))
        busy = max(0.0, min(1.0, qps / calm.capacity_qps) - _BUSY_STEP)
        return _Option(_excess(qps, calm, crowded, self._setup.slo, factor), count, busy)

    def _room(self, option: _Option, prices: Mapping[str, float]) -> float:
        """What cores are worth that memcached leaves, if it takes those that suit the jobs best.

        A pair of SMT siblings is worth most when both work, since neither is slowed to less than half.
        """
        both = max(prices[name] * sibling for name, sibling in self._sibling.items())
        if self._share:
            return both * (self._cores - option.count * option.busy)
        if not self._paired:
            return both * (self._cores - option.count)
        pairs = self._cores // 2
        beside = max(prices[name] * (1 - (1 - sibling) * option.busy) for name, sibling in self._sibling.items())
        splits = range(max(0, option.count - pairs), option.count // 2 + 1)  # pairs that it has wholly
        return max((option.count - 2 * whole) * beside + 2 * (pairs - option.count + whole) * both for whole in splits)

    def _fastest(self, option: _Option) -> float:
        """Work a second of one job that has everything which memcached leaves, and a thread for each core of it."""
        return self._cores - option.count * (option.busy if self._share else 1.0)


def _excess(qps: float, calm: ServiceState, crowded: ServiceState, slo: Slo, factor: float) -> float:
    """The least number of slow requests a second above the allowed share, whatever runs beside.

    Of a state that breaks the SLO only what a crowded memcached serves is counted, since that dilutes most.
    """
    limit_us = 1e3 * slo.latency_ms / factor * (1.0 + _TOLERANCE)
    allowed = 1.0 - slo.percentile / 100.0
    found: list[float] = []
    if qps <= calm.capacity_qps:
        slow = min(calm.latency.exceeding(limit_us), crowded.latency.exceeding(limit_us)) - allowed
        found.append(slow * (qps if slow < 0 else min(qps, crowded.capacity_qps)))
    # A backlog may also be left of an earlier load.
    slow = min(calm.saturated.exceeding(limit_us), crowded.saturated.exceeding(limit_us)) - allowed
    found.append(slow * (calm.capacity_qps if slow < 0 else crowded.capacity_qps))
    return min(found)


def best_mix(pieces: Sequence[Piece]) -> float:
    """The greatest gain of any mix of options in each piece whose excess is 0 in all; where there is none, of any mix.

    Args:
        pieces: (seconds, options) each; an option is (gain a second, excess a second).
    """
    if sum(seconds * min(excess for _, excess in options) for seconds, options in pieces) > 0:
        return sum(seconds * max(gain for gain, _ in options) for seconds, options in pieces)
    prices = {0.0}
    for _, options in pieces:
        for (gain, excess), (other_gain, other_excess) in combinations(options, 2):
            if excess != other_excess and (price := (gain - other_gain) / (excess - other_excess)) > 0:
                prices.add(price)
    return min(
        sum(seconds * max(gain - price * excess for gain, excess in options) for seconds, options in pieces)
        for price in prices
    )
