"""memcached's model: capacity, CPU, run-queue delay and the whole latency distribution under constant conditions.

Measured curves give the 95th percentile by load, one curve a number of threads and cores. The load is a share of the
capacity, so that a machine that is faster by a factor has the same curve over a wider range. What runs beside makes
every request cost more by a factor: the percentile rises by it, and the capacity falls by it. Batch threads at full
weight on memcached's own cores make it wait for whole slices, but only where no core of its own is free.

In saturation the clients are closed-loop: as many requests are in flight as they have, so that the latency levels off.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from colocate.errors import UserError
from colocate.sim.figures import CurveFigure, Figure, ascending, curve_figure, figure
from colocate.sim.latency import PROBABILITIES, Latency, Mixture, Shape

LOADS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)  # shares of the capacity

_LIGHT_LOAD, _BUSY_LOAD, _KNEE = 0.1, 0.5, 0.85  # one shape goes over into the next between the first two, and above
_SPEED_EXPONENT = 0.4  # two scans of one type of machine, capacities 1.4 apart, differ by 1.4^0.43 in p95 at half load
_BATCH_SCALE = 2.0
_CACHED = 500  # a load lasts some seconds, then another comes


@dataclass(frozen=True, slots=True)
class Curve:
    """What was measured with so many threads on so many cores.

    Attributes:
        capacity_qps: most requests a second.
        p95_us: at the shares `LOADS` of the capacity, with nothing beside; ascending.
        saturated_p95_us: when more is offered than can be served.
    """

    threads: int
    cores: int
    capacity_qps: Figure
    p95_us: CurveFigure
    saturated_p95_us: Figure


@dataclass(frozen=True, slots=True)
class ServiceFigures:
    """The figures of memcached on a type of machine.

    Attributes:
        curves: by threads and cores.
        core_scaling: exponent by which the capacity grows with the cores beyond those measured.
        light, busy, saturated: quantiles over the 95th percentile, at `latency.PROBABILITIES`, by load.
        cpu_idle_cores: CPU that it uses without load.
        cpu_us: CPU that a request costs.
        beside_batch: by what share requests get slower when much batch work runs anywhere on the machine.
        beside_sibling: the same for batch work on all SMT siblings of its cores.
        beside_memory: the same for each streaming core.
        shared_idle: the same for batch work at idle priority on all its cores.
        shared_full_p95_us: the percentile when all its cores are shared at full weight.
        shared_full_capacity: what is left of the capacity then, as a share.
        wait_alone_us: run-queue delay a slice with a core for each thread.
        wait_queued_us: how much more for each further thread a core.
        interval_sd: log standard deviation of an interval's 95th percentile around the curve.
        machine_sd: log standard deviation of the capacity between machines of the type.
    """

    curves: tuple[Curve, ...]
    core_scaling: Figure
    light: CurveFigure
    busy: CurveFigure
    saturated: CurveFigure
    cpu_idle_cores: Figure
    cpu_us: Figure
    beside_batch: Figure
    beside_sibling: Figure
    beside_memory: Figure
    shared_idle: Figure
    shared_full_p95_us: Figure
    shared_full_capacity: Figure
    wait_alone_us: Figure
    wait_queued_us: Figure
    interval_sd: Figure
    machine_sd: Figure

    @classmethod
    def from_table(cls, table: Mapping[str, object], where: str) -> ServiceFigures:
        """Check a `[service]` section; `where` is for messages.

        Raises:
            UserError: a figure is missing, unknown, or impossible; names it.
        """
        shapes = ("light", "busy", "saturated")
        single = [name for name in cls.__dataclass_fields__ if name not in {"curves", *shapes}]
        if unknown := sorted(set(table) - {"curves", *shapes, *single}):
            raise UserError(f"{where}: unknown figure {unknown[0]!r}", "delete it")
        curves = table.get("curves")
        if not isinstance(curves, list) or not curves:
            raise UserError(f"{where}: no curves", f"write at least one [[{where.rpartition(' ')[2]}.curves]]")
        lists = {name: curve_figure(table, name, where, length=len(PROBABILITIES)) for name in shapes}
        for name, shape in lists.items():
            if not ascending(shape.value):
                raise UserError(f"{where}: {name}: the quantiles are not ascending", "mend that figure")
        positive = {"cpu_us", "shared_full_p95_us", "shared_full_capacity"}
        figures = {name: figure(table, name, where, least=1e-6 if name in positive else 0.0) for name in single}
        measured = tuple(_curve(curve, f"{where}: curves[{index}]") for index, curve in enumerate(curves))
        return cls(curves=measured, **lists, **figures)  # type: ignore[arg-type]  # each name has its kind of figure


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What else runs while memcached serves.

    Attributes:
        siblings_busy: mean busy share (0 to 1) of the SMT siblings of its cores, by batch work.
        batch_cores: cores busy with batch work, machine-wide.
        memory: the running jobs' memory intensity, about 1 for each streaming core.
        shared_idle: share of its cores on which batch threads run at idle priority.
        shared_full: the same at full weight.
    """

    siblings_busy: float = 0.0
    batch_cores: float = 0.0
    memory: float = 0.0
    shared_idle: float = 0.0
    shared_full: float = 0.0


@dataclass(frozen=True, slots=True)
class ServiceState:
    """memcached under constant conditions.

    Attributes:
        capacity_qps: most it can serve.
        cpu_cores: CPU it uses at this load.
        wait_us: run-queue delay a slice.
        wait_cores: run-queue wait, seconds a second.
        latency: of requests while there is no backlog.
        saturated: of requests while it works off a backlog of closed-loop clients.
    """

    capacity_qps: float
    cpu_cores: float
    wait_us: float
    wait_cores: float
    latency: Latency
    saturated: Latency


class ServiceModel:
    """memcached with so many worker threads on one machine.

    Args:
        figures: of the machine's type.
        threads: its worker threads.
        speed: this machine's capacity over the typical one's.
    """

    def __init__(self, figures: ServiceFigures, threads: int, speed: float = 1.0) -> None:
        self._figures = figures
        self._threads = threads
        self._speed = speed
        self._light, self._busy, self._saturated = (
            Shape(shape.value) for shape in (figures.light, figures.busy, figures.saturated)
        )
        self._ladders: dict[int, tuple[_Step, ...]] = {}
        self._states: dict[tuple[float, int, Surroundings], ServiceState] = {}

    def state(self, qps: float, cores: int, around: Surroundings) -> ServiceState:
        """Latency, capacity and CPU at a load on `cores` cores; cores beyond its threads are no gain."""
        key = (qps, cores, around)
        state = self._states.get(key)
        if state is None:
            if len(self._states) >= _CACHED:
                self._states.clear()
            state = self._states[key] = self._state(qps, cores, around)
        return state

    def backlogged(self, state: ServiceState, requests: float) -> Latency:
        """The latency while an open loop's backlog of so many requests is worked off: they wait for one another."""
        latency = state.saturated
        return latency.stretched(max(1.0, 1e6 * requests / state.capacity_qps / latency.mean_us))

    def _state(self, qps: float, cores: int, around: Surroundings) -> ServiceState:
        figures, used = self._figures, min(cores, self._threads)
        steps = self._ladders.get(used) or self._ladders.setdefault(used, self._ladder(used))
        slower = (
            1.0
            + figures.beside_batch.value * batch_effect(around.batch_cores)
            + figures.beside_sibling.value * around.siblings_busy
            + figures.beside_memory.value * around.memory
            + figures.shared_idle.value * around.shared_idle
        )
        alone_qps = steps[-1].capacity_qps / slower
        lost = 1.0 - min(1.0, figures.shared_full_capacity.value)
        capacity_qps = alone_qps * (1.0 - lost * _waiting(used, cores, around.shared_full))
        waiting = _waiting(min(1.0, qps / alone_qps) * used, cores, around.shared_full)
        load = min(1.0, qps / capacity_qps)
        p95_us = slower * min(step.p95_us(qps * slower) for step in steps)
        saturated_us = max(p95_us, slower * min(step.saturated_us for step in steps))
        shape = self._shape(load)
        latency, saturated = Latency(p95_us, shape), Latency(saturated_us, self._saturated)
        if waiting > 0:
            behind = Latency(max(saturated_us, figures.shared_full_p95_us.value), self._saturated)
            latency, saturated = _blend(latency, behind, waiting), _blend(saturated, behind, waiting)
        cpu_cores = figures.cpu_idle_cores.value + 1e-6 * figures.cpu_us.value * slower * min(qps, capacity_qps)
        crowd = max(0.0, self._threads / used - 1.0)
        calm_us = figures.wait_alone_us.value + figures.wait_queued_us.value * crowd
        wait_us = calm_us * max(1.0, p95_us / (slower * steps[-1].calm_us)) + waiting * figures.shared_full_p95_us.value
        slices = qps * (1.0 - load)  # a thread that always finds work is not woken for it
        wait_cores = 1e-6 * wait_us * slices + load**4 * max(0.0, self._threads - used)
        return ServiceState(
            capacity_qps=capacity_qps,
            cpu_cores=min(float(used), cpu_cores),
            wait_us=wait_us,
            wait_cores=min(float(self._threads), wait_cores),
            latency=latency,
            saturated=saturated,
        )

    def _shape(self, load: float) -> Shape:
        if load > _KNEE:
            return self._busy.toward(self._saturated, (load - _KNEE) / (1.0 - _KNEE))
        return self._light.toward(self._busy, (load - _LIGHT_LOAD) / (_BUSY_LOAD - _LIGHT_LOAD))

    def _ladder(self, used: int) -> tuple[_Step, ...]:
        """What is known of 1 to `used` cores; more cores never do worse than fewer."""
        steps: list[_Step] = []
        for cores in range(1, used + 1):
            curve = min(self._figures.curves, key=lambda curve: _distance(curve, self._threads, cores))
            held = min(curve.threads, curve.cores)
            wider = (cores / held) ** self._figures.core_scaling.value
            crowd = (self._threads / cores) / (curve.threads / held)
            capacity_qps = self._speed * wider * curve.capacity_qps.value
            step = _Step(
                capacity_qps=max(capacity_qps, steps[-1].capacity_qps if steps else 0.0),
                curve_us=tuple(us / self._speed**_SPEED_EXPONENT for us in curve.p95_us.value),
                saturated_us=curve.saturated_p95_us.value / self._speed / wider * max(1.0, crowd),
            )
            # Of equal curves only the widest matters: it is the lowest everywhere.
            steps = [s for s in steps if s.curve_us != step.curve_us] + [step]
        return tuple(steps)


@dataclass(frozen=True, slots=True)
class _Step:
    """One curve on this machine."""

    capacity_qps: float
    curve_us: tuple[float, ...]
    saturated_us: float

    @property
    def calm_us(self) -> float:
        """The percentile at half the capacity, where nothing queues yet."""
        return self.curve_us[LOADS.index(0.5)]

    def p95_us(self, qps: float) -> float:
        load = qps / self.capacity_qps
        if load <= LOADS[0]:
            return self.curve_us[0]
        if load > 1.0:
            return max(self.saturated_us, self.curve_us[-1])
        index = min(bisect_right(LOADS, load), len(LOADS) - 1)
        share = (load - LOADS[index - 1]) / (LOADS[index] - LOADS[index - 1])
        return self.curve_us[index - 1] + share * (self.curve_us[index] - self.curve_us[index - 1])


def batch_effect(batch_cores: float) -> float:
    """The share (0 to 1) of its full effect that so many cores' batch work anywhere on the machine has."""
    return -math.expm1(-batch_cores / _BATCH_SCALE)


def _curve(table: object, where: str) -> Curve:
    if not isinstance(table, dict):
        raise UserError(f"{where}: no table", "write it with threads, cores, capacity_qps, p95_us, saturated_p95_us")
    known = set(Curve.__dataclass_fields__)
    if unknown := sorted(set(table) - known):
        raise UserError(f"{where}: unknown figure {unknown[0]!r}", "delete it")
    counts = {}
    for name in ("threads", "cores"):
        count = table.get(name)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(f"{where}: {name}: {count!r} is no count", "give a whole number from 1")
        counts[name] = count
    p95_us = curve_figure(table, "p95_us", where, length=len(LOADS))
    if not ascending(p95_us.value):
        raise UserError(f"{where}: p95_us: falls with the load", "smooth the measurements until it does not")
    return Curve(
        threads=counts["threads"],
        cores=counts["cores"],
        capacity_qps=figure(table, "capacity_qps", where, least=1.0),
        p95_us=p95_us,
        saturated_p95_us=figure(table, "saturated_p95_us", where, least=1.0),
    )


def _distance(curve: Curve, threads: int, cores: int) -> tuple[float, float, float]:
    """How unlike a curve's conditions are: threads a core first, then the width."""
    held = min(curve.threads, curve.cores)
    crowd = math.log(curve.threads / held / (threads / cores))
    return abs(crowd), abs(math.log(held / cores)), curve.cores - held


def _waiting(busy_threads: float, cores: int, shared_full: float) -> float:
    """The share of requests whose thread stands behind a batch thread: those for which no core is free of batch."""
    free = (1.0 - shared_full) * cores
    if shared_full <= 0 or busy_threads <= free:
        return shared_full if shared_full >= 1.0 else 0.0
    return shared_full * (1.0 - free / busy_threads)


def _blend(latency: Latency, other: Latency, share: float) -> Latency:
    """One distribution of two kinds of requests."""
    mixture = Mixture()
    mixture.add(latency, 1.0 - share)
    mixture.add(other, share)
    quantiles = [mixture.quantile(p) for p in PROBABILITIES]
    return Latency(mixture.quantile(0.95), Shape(sorted(quantiles)))
