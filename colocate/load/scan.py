"""What memcached does on so many cores under so much load: points measured by the open-loop generator.

The generator has a core of its own at real-time priority where that is permitted. Where memcached is given every core
of the machine, the two share that one, which the points of such a scan cannot tell apart from memcached itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from colocate.host.monitor import ResourceMonitor
from colocate.load.generator import Generator, Interval, Load
from colocate.load.output import late_reason
from colocate.topology import read_topology

KEPT_UP_US = 5_000.0  # a 95th percentile above this is a queue that grows
STEP_S, STEPS = 1.0, 14  # of the climb to the capacity
_STEP = 1.18


@dataclass(frozen=True, slots=True)
class Point:
    """One load on one core count.

    Attributes:
        target_qps: what was offered.
        qps: what was answered, a second.
        latency_us: quantiles from the intended time of each request, named as mcperf's columns are.
        cpu_cores: CPU that memcached used.
        wait_us: its run-queue delay a slice; None if there was no slice.
        generator_cores: CPU that the generator used.
        late: why the generator was too late for the latencies to be memcached's; empty if it was not.
        others_cores: CPU that neither of the two used.
    """

    target_qps: int
    qps: float
    latency_us: Mapping[str, float]
    cpu_cores: float
    wait_us: float | None
    generator_cores: float
    late: str
    lost: int
    others_cores: float = 0.0

    @property
    def kept_up(self) -> bool:
        """Whether memcached served this load without a queue that grows."""
        return not self.lost and self.latency_us["p95"] < KEPT_UP_US


@dataclass(frozen=True, slots=True)
class Target:
    """The memcached that is measured: its address, its process, and the core of the generator."""

    ip: str
    port: int
    pid: int
    threads: int
    generator_core: int


def measure(
    target: Target, loads_qps: Sequence[int], interval_s: float, done: Callable[[float], None], seed: int = 1
) -> list[Point]:
    """One point a load, in turn; `done` is called with the seconds that each has taken.

    Raises:
        UserError: nobody listens there.
        FailedError: the generator came to a bad end.
    """
    load = Load(
        target.ip, target.port, (loads_qps[0], *loads_qps), interval_s, connections=max(4, target.threads), seed=seed,
        realtime=True, cpu=target.generator_core,
    )  # fmt: skip
    points: list[Point] = []
    monitor, own = ResourceMonitor(read_topology().cores), ResourceMonitor(())
    try:
        with Generator(load) as generator:
            monitor.service(target.pid)
            own.service(generator.pid)
            monitor.cores()
            for interval in generator:
                cpu, wait, _ = monitor.service(target.pid)
                used, _, _ = own.service(generator.pid)
                busy = sum(use.busy for use in monitor.cores().values())
                if interval.interval > 0:  # the first one warms up
                    points.append(_point(interval, cpu.value or 0.0, wait.value, used.value or 0.0, busy))
                done(interval_s)
    finally:
        monitor.close()
        own.close()
    return points


def climb(target: Target, from_qps: float, done: Callable[[float], None]) -> tuple[list[Point], bool]:
    """Raise the load until memcached does not keep up: the points, and whether the generator was at its end first."""
    points: list[Point] = []
    qps = from_qps
    for _ in range(STEPS):
        (point,) = measure(target, [round(qps)], STEP_S / 2, done)
        points.append(point)
        if point.late:
            return points, True
        if not point.kept_up:
            break
        qps *= _STEP
    return points, False


def _point(interval: Interval, cpu_cores: float, wait_us: float | None, generator_cores: float, busy: float) -> Point:
    return Point(
        target_qps=interval.target_qps,
        qps=interval.qps,
        latency_us=interval.latency_us,
        cpu_cores=cpu_cores,
        wait_us=wait_us,
        generator_cores=generator_cores,
        late=late_reason(interval),
        lost=interval.lost,
        others_cores=max(0.0, busy - cpu_cores - generator_cores),
    )
