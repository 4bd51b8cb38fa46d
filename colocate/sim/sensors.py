"""What the sensors of a live host would say of a simulated machine: as rarely, as late and as noisily as they do.

The counters of the kernel are exact, but what comes in a tick is Poisson; `stats` is asked five times a second; the
probe sends sixteen requests a second and so knows a percentile only roughly.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping

from colocate.cores import CoreSet
from colocate.jobs import JobEvent
from colocate.sim.machine import Machine, Noise
from colocate.view import CoreUse, JobSample, Observation, ServiceSample, Signal

_LOOK_S = 0.19  # per-core use, affinities and the jobs' cpusets
_STATISTICS_S = 0.2
_PROBE_S = 1 / 16
_UNKNOWN = Signal()
_NO_MASKS: frozenset[CoreSet] = frozenset()
_NO_JOBS: Mapping[str, JobSample] = {}


class Sensors:
    """Looks at a machine.

    Args:
        machine: what is looked at.
        threads: memcached's worker threads.
        noise: its seed feeds the samples.
        percentile: of the latency that the probe tells.
        can_share: what is said of sharing.
    """

    def __init__(
        self, machine: Machine, threads: int, noise: Noise, percentile: float, *, can_share: bool = True
    ) -> None:
        self._can_share = can_share
        self._machine = machine
        self._threads = threads
        self._draw = noise.stream("samples")
        self._probe = Probe(noise.stream("probe"), percentile)
        self._seen = (0.0, 0.0, 0.0)  # at the last observation: time, memcached's CPU, its wait
        self._look_s = -math.inf
        self._looked: tuple[float, dict[int, float]] = (0.0, dict(machine.core_busy_s))
        self._cores: Mapping[int, CoreUse] = dict.fromkeys(machine.topology.cores, CoreUse(0.0, 0.0, 0.0))
        self._polled: tuple[float, float] = (0.0, 0.0)  # when `stats` was asked last, and its requests
        self._qps: float | None = None

    def observe(self, now_s: float, events: tuple[JobEvent, ...]) -> Observation:
        """The facts of this instant."""
        machine, (seen_s, used_s, waited_s) = self._machine, self._seen
        cpu_cores = wait_us = wait_cores = _UNKNOWN
        if (dt_s := now_s - seen_s) > 0:
            requests = max(1.0, machine.qps * dt_s)
            stray = max(0.0, 1.0 + self._draw.gauss(0.0, 1.0) / math.sqrt(requests))
            cpu_cores = Signal(min(len(machine.cores), (machine.service_cpu_s - used_s) / dt_s * stray), 0.0, 1)
            wait_cores = Signal((machine.service_wait_s - waited_s) / dt_s * stray, 0.0, 1)
            wait_us = Signal(machine.state.wait_us * stray, 0.0, 1)
            self._seen = (now_s, machine.service_cpu_s, machine.service_wait_s)
        jobs, masks = _NO_JOBS, _NO_MASKS
        if now_s >= self._look_s:
            self._look_s = now_s + _LOOK_S
            self._look(now_s)
            masks = frozenset({machine.cores})
            jobs = {name: JobSample(job.cores, job.paused, job.cpu_s) for name, job in machine.jobs.items()}
        self._poll(now_s)
        self._probe.ask(machine, now_s)
        return Observation(
            now_s,
            self._cores,
            ServiceSample(
                True,  # noqa: FBT003 -- alive; by position, since this is made at every tick
                1,
                self._threads,
                masks,
                cpu_cores,
                wait_us,
                wait_cores,
                _UNKNOWN if self._qps is None else Signal(self._qps, now_s - self._polled[0], 1),
                self._probe.signal(now_s),
            ),
            jobs,
            events,
            self._can_share,
        )

    def _look(self, now_s: float) -> None:
        looked_s, before = self._looked
        if now_s > looked_s:
            after = dict(self._machine.core_busy_s)
            span_s = now_s - looked_s
            self._cores = {core: CoreUse((busy - before[core]) / span_s, 0.0, 0.0) for core, busy in after.items()}
            self._looked = (now_s, after)

    def _poll(self, now_s: float) -> None:
        polled_s, requests = self._polled
        if (span_s := now_s - polled_s) >= _STATISTICS_S:
            served = self._machine.service_requests - requests
            stray = self._draw.gauss(0.0, 1.0) * math.sqrt(max(0.0, served))
            self._qps = max(0.0, served + stray) / span_s
            self._polled = (now_s, self._machine.service_requests)


class Probe:
    """Sixteen requests a second, and the percentile of those of the last seconds (as the live probe).

    Args:
        stream: draws the latencies.
        percentile: which one.
    """

    def __init__(self, stream: random.Random, percentile: float) -> None:
        self._draw = stream
        self._percentile = percentile
        self._needed = max(1, math.ceil(100 / max(100 - percentile, 0.001) - 1e-6))
        self._window_s = max(1.0, 2 * self._needed * _PROBE_S)
        self._asked: deque[tuple[float, float]] = deque()
        self._ranked: list[float] = []
        self._next_s = 0.0

    def ask(self, machine: Machine, now_s: float) -> None:
        """Send the requests that were due since the last time."""
        if now_s < self._next_s:
            return
        latency, factor = machine.latency(), machine.latency_factor
        while self._next_s <= now_s:
            latency_us = latency.quantile(self._draw.random()) * factor
            self._asked.append((self._next_s, latency_us))
            insort(self._ranked, latency_us)
            self._next_s += _PROBE_S
        while self._asked[0][0] < now_s - self._window_s:
            _, old_us = self._asked.popleft()
            del self._ranked[bisect_left(self._ranked, old_us)]

    def signal(self, now_s: float) -> Signal:
        """The percentile in milliseconds; unknown while there are too few samples."""
        count = len(self._ranked)
        if count < self._needed:
            return Signal(None, math.inf, count)
        rank = max(0, math.ceil(self._percentile / 100 * count - 1e-9) - 1)
        return Signal(self._ranked[rank] / 1e3, max(0.0, now_s - self._asked[-1][0]), count)
