"""What a host observes, and what a policy sees of it.

An `Observation` holds the bare facts of one instant, as a host reports them. A `View` is the immutable picture that
a policy gets: the facts, the life of each job as the controller knows it, and short history.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from operator import mul

from colocate.cores import CoreSet
from colocate.jobs import JobEvent, JobSpec, JobState
from colocate.topology import Topology

_RISE, _RISE_CORES = 1.2, 0.1  # less is the noise of one tick


@dataclass(frozen=True, slots=True)
class Slo:
    """The promise: the `percentile` of the latency stays at or under `latency_ms`."""

    latency_ms: float = 0.8
    percentile: float = 95.0

    @property
    def least_samples(self) -> int:
        """How many samples the percentile needs before one of them may lie above it: 20 for the 95th."""
        return max(1, math.ceil(100 / max(100 - self.percentile, 0.001) - 1e-6))


@dataclass(frozen=True, slots=True)
class Signal:
    """A measured value with its age and, where it is a statistic, the number of samples behind it.

    `value` is None while it is not known; then the age is infinite.
    """

    value: float | None = None
    age_s: float = math.inf
    samples: int = 0

    def fresh(self, max_age_s: float) -> bool:
        """Whether there is a value no older than that."""
        return self.value is not None and self.age_s <= max_age_s


@dataclass(frozen=True, slots=True)
class CoreUse:
    """What one core did of late, as shares between 0 and 1 (`/proc/stat`, proc(5))."""

    busy: float
    softirq: float
    steal: float


@dataclass(frozen=True, slots=True)
class ServiceSample:
    """memcached as the kernel and its own statistics show it.

    Attributes:
        alive: whether the process that we know is still there.
        pid: its process id; None while it is not found.
        threads: its worker threads (`stats`), 0 while unknown.
        affinity: the distinct affinity masks of all its threads; one element when all agree, none when not asked.
        cpu_cores: CPU it used since the last observation, in cores (from every thread's schedstat).
        wait_us: run-queue delay a time slice, microseconds (Linux Documentation/scheduler/sched-stats.rst).
        wait_cores: run-queue wait of all its threads together, seconds a second.
        qps: requests a second (`cmd_get` + `cmd_set`).
        latency_ms: the SLO's percentile of the latency, with its sample count.
        latency_source: `probe` or `reported`.
        connections: open connections.
    """

    alive: bool = True
    pid: int | None = None
    threads: int = 0
    affinity: frozenset[CoreSet] = frozenset()
    cpu_cores: Signal = Signal()
    wait_us: Signal = Signal()
    wait_cores: Signal = Signal()
    qps: Signal = Signal()
    latency_ms: Signal = Signal()
    latency_source: str = "probe"
    connections: int | None = None


@dataclass(frozen=True, slots=True)
class JobSample:
    """What the kernel says of a running job; None where it does not say.

    Attributes:
        cores: the effective cpuset or affinity.
        paused: whether it is frozen.
        cpu_s: CPU seconds used since its start.
        idle: whether it has only idle priority where it meets memcached; None where it need not, or for a moment.
    """

    cores: CoreSet | None = None
    paused: bool | None = None
    cpu_s: float | None = None
    idle: bool | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """The facts of one instant.

    Attributes:
        time_s: monotonic.
        cores: use of each managed core.
        service: memcached.
        jobs: what the kernel says of jobs; empty when it was not asked this time.
        events: what has happened since the last observation, in order.
        can_share: whether jobs on memcached's cores have only idle priority there (proved on this machine).
        memory_available_bytes: `MemAvailable`; None if unknown.
        cpu_pressure: share of the last 10 s in which some task waited for a core; None without PSI.
        offline: managed cores that are unplugged; the kernel has let everybody who had no other core onto all of them.
        remarks: what the host has to say for the log.
    """

    time_s: float
    cores: Mapping[int, CoreUse]
    service: ServiceSample
    jobs: Mapping[str, JobSample] = field(default_factory=dict)
    events: tuple[JobEvent, ...] = ()
    can_share: bool = False
    memory_available_bytes: int | None = None
    cpu_pressure: float | None = None
    offline: CoreSet = frozenset()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """What memcached did under one constant load: the SLO's percentile, and its run-queue delay a slice."""

    qps: float
    latency_ms: float
    wait_us: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What a calibration knows beforehand of memcached on a machine of this type; this very one may be otherwise.

    Attributes:
        curves: by its core count, from 1 without a gap, with nothing beside; ascending loads, the last is the most that
            it serves.
        cpu_us: CPU that a request costs.
        machine_sd: log standard deviation of the capacity between machines of the type.
        beside_batch: by what share requests get slower when the other cores are full of batch work.
        beside_sibling: the same for batch work on all SMT siblings of its cores.
        shared_idle: the same for batch work at idle priority on all its own cores.
    """

    curves: Mapping[int, tuple[LoadPoint, ...]]
    cpu_us: float
    machine_sd: float = 0.0
    beside_batch: float = 0.0
    beside_sibling: float = 0.0
    shared_idle: float = 0.0

    def curve(self, cores: int) -> tuple[LoadPoint, ...]:
        """Of so many cores; where they were not measured, of the nearest count that was."""
        return self.curves[min(max(cores, min(self.curves)), max(self.curves))]

    def edge(self, cores: int, limit_ms: float) -> LoadPoint:
        """The highest load at which the latency is within a limit, between the points; the lowest if none is."""
        curve = self.curve(cores)
        for below, above in pairwise(curve):
            if above.latency_ms > limit_ms:
                if below.latency_ms >= limit_ms:
                    return below
                share = (limit_ms - below.latency_ms) / (above.latency_ms - below.latency_ms)
                return LoadPoint(
                    below.qps + share * (above.qps - below.qps),
                    below.latency_ms + share * (above.latency_ms - below.latency_ms),
                    below.wait_us + share * (above.wait_us - below.wait_us),
                )
        return curve[-1]


@dataclass(frozen=True, slots=True)
class Window:
    """Statistics of one series over a stretch of time; `slope` is the change a second. NaN without samples."""

    mean: float = math.nan
    std: float = math.nan
    slope: float = math.nan
    minimum: float = math.nan
    maximum: float = math.nan
    samples: int = 0


@dataclass(frozen=True, slots=True)
class Series:
    """An immutable prefix of a growing series: what comes later does not show."""

    times_s: list[float]
    values: list[float]
    length: int

    def recent(self, seconds: float) -> list[float]:
        """The values of the last `seconds` before the newest sample, that one last."""
        if not self.length:
            return []
        first = bisect_left(self.times_s, self.times_s[self.length - 1] - seconds, 0, self.length)
        return self.values[first : self.length]

    def window(self, seconds: float) -> Window:
        """Statistics of the last `seconds` before the newest sample (a least-squares slope)."""
        if not self.length:
            return Window()
        end_s = self.times_s[self.length - 1]
        first = bisect_left(self.times_s, end_s - seconds, 0, self.length)
        xs = self.values[first : self.length]
        ts = [t - end_s for t in self.times_s[first : self.length]]
        n = len(xs)
        mean, mean_t = math.fsum(xs) / n, math.fsum(ts) / n
        dx, dt = [x - mean for x in xs], [t - mean_t for t in ts]
        spread_t = math.fsum(map(mul, dt, dt))
        slope = math.fsum(map(mul, dt, dx)) / spread_t if spread_t else 0.0
        std = math.sqrt(math.fsum(map(mul, dx, dx)) / n)
        return Window(mean, std, slope, min(xs), max(xs), n)


class History:
    """The growing series behind a view; keeps a little more than `keep_s` seconds."""

    def __init__(self, keep_s: float = 60.0) -> None:
        self._keep_s = keep_s
        self._kept: dict[str, tuple[list[float], list[float]]] = {}  # when, what

    def add(self, name: str, time_s: float, value: float | None) -> None:
        """Append a sample; None and non-finite values are dropped."""
        if value is None or not math.isfinite(value):
            return
        kept = self._kept.get(name)
        if kept is None:
            kept = self._kept[name] = ([], [])
        times, values = kept
        times.append(time_s)
        values.append(value)
        if time_s - times[0] > 2 * self._keep_s:  # new lists, so that series handed out stay as they are
            first = bisect_left(times, time_s - self._keep_s)
            self._kept[name] = (times[first:], values[first:])

    def series(self) -> dict[str, Series]:
        """Each series as it stands now."""
        return {name: Series(times, values, len(times)) for name, (times, values) in self._kept.items()}


@dataclass(frozen=True, slots=True)
class ServiceView:
    """memcached as a policy sees it; the signals are those of `ServiceSample`.

    Attributes:
        cores: the cores it has.
        min_cores: the floor that the regulator keeps.
    """

    cores: CoreSet
    min_cores: int
    threads: int
    cpu_cores: Signal
    wait_us: Signal
    wait_cores: Signal
    qps: Signal
    latency_ms: Signal
    connections: int | None


@dataclass(frozen=True, slots=True)
class JobView:
    """A batch job as a policy sees it.

    Attributes:
        spec: its description, with the measured facts there are.
        state: where it stands in its life.
        cores: the cores it holds; empty unless it is starting or running.
        threads: its thread count.
        cpu_cores: CPU it used since the last observation, in cores.
        run_s: seconds it has run, pauses left out.
        failures: how often it has failed.
        cpu_s: CPU seconds used since its start; None while unknown.
    """

    spec: JobSpec
    state: JobState
    cores: CoreSet
    threads: int
    cpu_cores: float | None
    run_s: float
    failures: int = 0
    cpu_s: float | None = None

    @property
    def name(self) -> str:
        """The job's name."""
        return self.spec.name


@dataclass(frozen=True, slots=True)
class View:
    """An immutable picture of one instant, with short history.

    Attributes:
        time_s: the run's clock, monotonic.
        slo: what was promised.
        topology: the managed cores that are online, and how they share caches and pipelines.
        cores: use of each managed core since the last view.
        service: memcached.
        jobs: every job of the run, in the order of its catalogue.
        series: history by name: `cpu_cores`, `wait_us`, `wait_cores`, `qps`, `latency_ms`.
        can_share: whether a plan may name jobs in `share`; where it is False they get exclusive cores only.
        profile: what a calibration knows of memcached here; None without one.
        memory_available_bytes: `MemAvailable`; None if unknown.
        cpu_pressure: share of time in which some task waited for a core, 10 s average; None without PSI.
    """

    time_s: float
    slo: Slo
    topology: Topology
    cores: Mapping[int, CoreUse]
    service: ServiceView
    jobs: Mapping[str, JobView]
    series: Mapping[str, Series] = field(default_factory=dict)
    can_share: bool = False
    profile: Profile | None = None
    memory_available_bytes: int | None = None
    cpu_pressure: float | None = None

    @property
    def total_cores(self) -> int:
        """How many cores there are to share out."""
        return len(self.topology.cores)

    def window(self, name: str, seconds: float) -> Window:
        """Statistics of one series over the last `seconds` (1, 6 and 60 are usual; 60 is the most that is kept)."""
        series = self.series.get(name)
        return series.window(seconds) if series else Window()

    def rising(self, seconds: float = 0.5) -> bool:
        """Whether memcached uses a fifth more CPU, and a tenth of a core, than at some time in the last `seconds`."""
        uses = self.recent("cpu_cores", seconds)
        if len(uses) == 1:  # ticks are further apart than that: since the one before
            series = self.series["cpu_cores"]
            uses = series.values[max(0, series.length - 2) : series.length]
        return bool(uses) and uses[-1] > max(_RISE * (least := min(uses)), least + _RISE_CORES)

    def recent(self, name: str, seconds: float) -> list[float]:
        """The values of one series over the last `seconds`, the newest last; cheaper than a window of them."""
        series = self.series.get(name)
        return series.recent(seconds) if series else []
