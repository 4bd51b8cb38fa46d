"""A machine on paper: memcached, jobs and load as fluids in virtual time.

Between two changes (a move, a new load, the end of a phase of a job, a backlog worked off) every rate is constant, so
time advances from change to change and nothing is integrated in small steps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from colocate import mcperf
from colocate.cores import CoreSet
from colocate.sim.batch import BatchModel, Rate, Running
from colocate.sim.latency import Latency, Mixture
from colocate.sim.service import ServiceModel, ServiceState, Surroundings
from colocate.sim.traces import Trace
from colocate.topology import Topology

_EPSILON = 1e-9
_QUEUE_STEP_S = 0.02  # the latency behind a growing queue is followed in steps of this length
_TICK_S = 1e-7  # a change is looked at a little after it, so that rounding cannot hold time still before it


@dataclass(frozen=True, slots=True)
class Noise:
    """How reality strays from its typical course.

    Each thing draws from a stream of its own, so that a policy's acts do not change what another policy meets with the
    same seed.

    Attributes:
        seed: of every stream.
        interval_sd: log standard deviation of an interval's latencies around the curve.
        machine_sd: the same of a machine's capacity around that of its type.
        job_sd: the same of a job's run time, by job.
    """

    seed: int = 0
    interval_sd: float = 0.0
    machine_sd: float = 0.0
    job_sd: Mapping[str, float] = field(default_factory=dict)

    def stream(self, of: str) -> random.Random:
        """The random stream of one thing."""
        return random.Random(f"{self.seed}/{of}")  # noqa: S311 -- a model, no secret

    def speed(self) -> float:
        """How much more load this machine carries than others of its type, as a factor."""
        return self._factor("machine", self.machine_sd)

    def interval(self, index: int) -> float:
        """By how much the latencies of a load interval are above the typical, as a factor."""
        return self._factor(f"interval/{index}", self.interval_sd)

    def work(self, job: str) -> float:
        """How much more work a job is than typically, as a factor."""
        return self._factor(f"job/{job}", self.job_sd.get(job, 0.0))

    def _factor(self, of: str, sd: float) -> float:
        return math.exp(self.stream(of).gauss(0.0, sd)) if sd else 1.0


@dataclass(slots=True)
class Job:
    """A job on the machine: what it holds, how far it is, what it has used."""

    threads: int
    cores: CoreSet
    work: float
    paused: bool = False
    done: float = 0.0
    cpu_s: float = 0.0
    rate: Rate | None = None


class Machine:
    """The physics. Moves take effect at once here; who models their delays calls later.

    Args:
        trace: the offered load.
        service: memcached's model.
        batch: the jobs' model.
        topology: all cores.
        noise: what is random.
        open_loop: whether clients send at their own pace however late the answers are, so that a backlog has no end.
            Those of mcperf wait for answers: their latency levels off.

    Attributes:
        time_s: virtual time, from 0.
        cores: memcached's cores.
        shared: jobs that have only idle priority on memcached's cores.
        jobs: those that run or are paused, by name.
        qps: the load that is offered now.
        state: memcached now; rates hold until `next_change_s`.
        latency_factor: by how much this interval's latencies are above the typical.
        backlog: requests that wait because memcached could not serve them when they came.
        rows: the load intervals that are over, as the load generator reports them.
        service_cpu_s: CPU that memcached has used.
        service_requests: requests that it has served.
        core_busy_s: busy time by core.
    """

    def __init__(
        self,
        trace: Trace,
        service: ServiceModel,
        batch: BatchModel,
        topology: Topology,
        noise: Noise | None = None,
        *,
        open_loop: bool = False,
    ) -> None:
        self.trace = trace
        self._open_loop = open_loop
        self.topology = topology
        self.time_s = 0.0
        self.cores: CoreSet = topology.cores
        self.shared: frozenset[str] = frozenset()
        self.jobs: dict[str, Job] = {}
        self.backlog = 0.0
        self.rows: list[mcperf.Row] = []
        self.service_cpu_s = 0.0
        self.service_requests = 0.0
        self.service_wait_s = 0.0
        self.core_busy_s = dict.fromkeys(topology.cores, 0.0)
        self._service = service
        self._batch = batch
        self._noise = noise or Noise()
        self._mixture = Mixture()
        self._offered = 0.0  # requests of this interval
        self._interval_end_s = trace.interval_s
        self.latency_factor = self._noise.interval(0)
        self._busy: dict[int, float] = {}
        self._stale = True
        self._next_s = 0.0
        self.qps: float
        self.state: ServiceState
        self._refresh()

    def pin(self, cores: CoreSet) -> None:
        """Give memcached these cores."""
        self.cores, self._stale = cores, True

    def share(self, jobs: frozenset[str]) -> None:
        """These jobs have only idle priority where they meet memcached."""
        self.shared, self._stale = jobs, True

    def start(self, name: str, threads: int, cores: CoreSet) -> None:
        """A job begins."""
        self.jobs[name] = Job(threads, cores, self._noise.work(name))
        self._stale = True

    def resize(self, name: str, cores: CoreSet) -> None:
        """A job gets other cores."""
        self.jobs[name].cores, self._stale = cores, True

    def pause(self, name: str, *, paused: bool) -> None:
        """A job is frozen or thawed."""
        self.jobs[name].paused, self._stale = paused, True

    def stop(self, name: str) -> None:
        """A job is gone."""
        del self.jobs[name]
        self._stale = True

    def latency(self) -> Latency:
        """The latency of the requests that are served now."""
        self._fresh()
        return self._behind() if self.backlog > _EPSILON else self.state.latency

    def next_change_s(self) -> float:
        """When a rate changes next if nobody moves anything; infinite if never."""
        self._fresh()
        return self._next_s

    def advance(self, until_s: float) -> list[str]:
        """Go to `until_s`, or to the end of the first job that ends before; the names of those that ended then."""
        ended: list[str] = []
        while self.time_s < until_s and not ended:
            self._fresh()
            at_s = min(until_s, self._next_s)
            self._flow(at_s - self.time_s)
            self.time_s = at_s
            if at_s >= self._next_s:
                self._stale = True
                if at_s >= self._interval_end_s - _EPSILON:
                    self._report()
                for name, job in self.jobs.items():
                    if job.done >= 1.0 - _EPSILON:
                        ended.append(name)
                for name in ended:
                    self.stop(name)
        return ended

    def _fresh(self) -> None:
        if self._stale:
            self._refresh()

    def _refresh(self) -> None:
        """Work out the rates that hold now and until when they do."""
        self._stale = False
        qps, count = self.trace.qps(self.time_s), len(self.cores)
        calm = self._service.state(qps, count, _CALM)
        offered = qps if self.backlog <= _EPSILON else max(qps, calm.capacity_qps)
        # Not the process's CPU: interrupts that serve it are no job's time either.
        busy_share = min(1.0, offered / calm.capacity_qps)
        running = {
            name: Running(job.cores, job.threads, job.done, job.cores & self.cores if name in self.shared else _NOWHERE)
            for name, job in self.jobs.items()
            if not job.paused
        }
        rates = self._batch.rates(running, self.cores, busy_share) if running else {}
        batch_busy: dict[int, float] = {}
        for rate in rates.values():
            for core, share in rate.busy.items():
                batch_busy[core] = batch_busy.get(core, 0.0) + share
        self.state = state = self._service.state(qps, count, self._around(running, rates, batch_busy))
        self.qps = qps
        self._busy = {
            core: min(1.0, batch_busy.get(core, 0.0) + (busy_share if core in self.cores else 0.0))
            for core in self.topology.cores
        }
        next_s = min(self.trace.next_change_s(self.time_s), self._interval_end_s)
        if self._open_loop and (self.backlog > _EPSILON or qps > state.capacity_qps):
            next_s = min(next_s, self.time_s + _QUEUE_STEP_S)
        if self.backlog > _EPSILON and qps < state.capacity_qps:
            next_s = min(next_s, self.time_s + self.backlog / (state.capacity_qps - qps) + _TICK_S)
        for name, job in self.jobs.items():
            job.rate = rates.get(name)
            if job.rate is not None and job.rate.per_s > 0:
                left_s = max(0.0, job.rate.until - job.done) * job.work / job.rate.per_s
                next_s = min(next_s, self.time_s + left_s + _TICK_S)
        self._next_s = next_s

    def _around(
        self, running: Mapping[str, Running], rates: Mapping[str, Rate], batch_busy: Mapping[int, float]
    ) -> Surroundings:
        if not running:
            return _CALM
        siblings = idle = full = 0.0
        for core in self.cores:
            others = self.topology.siblings[core] - self.cores
            siblings += max((min(1.0, batch_busy.get(other, 0.0)) for other in others), default=0.0)
            if core in batch_busy:
                here = [name for name, job in running.items() if core in job.cores]
                if all(core in running[name].shared for name in here):
                    idle += min(1.0, batch_busy[core])
                else:
                    full += min(1.0, batch_busy[core])
        count = len(self.cores)
        return Surroundings(
            siblings_busy=round(siblings / count, 3),
            batch_cores=round(sum(rate.cpu_cores for rate in rates.values()), 3),
            memory=round(sum(rate.memory for rate in rates.values()), 3),
            shared_idle=round(idle / count, 3),
            shared_full=round(full / count, 3),
        )

    def _behind(self) -> Latency:
        """The latency of requests that are served while there is a backlog."""
        return self._service.backlogged(self.state, self.backlog) if self._open_loop else self.state.saturated

    def _flow(self, dt_s: float) -> None:
        """Let the constant rates act for a while."""
        if dt_s <= 0:
            return
        state, qps = self.state, self.qps
        backlogged = self.backlog > _EPSILON or qps > state.capacity_qps
        served = (state.capacity_qps if backlogged else qps) * dt_s
        if served:
            self._mixture.add(self._behind() if backlogged else state.latency, served)
        if backlogged:
            self.backlog = max(0.0, self.backlog + qps * dt_s - served)
        self._offered += qps * dt_s
        self.service_requests += served
        self.service_cpu_s += state.cpu_cores * dt_s
        self.service_wait_s += state.wait_cores * dt_s
        busy = self.core_busy_s
        for core, share in self._busy.items():
            busy[core] += share * dt_s
        for job in self.jobs.values():
            if (rate := job.rate) is not None:
                job.done = min(1.0, job.done + rate.per_s / job.work * dt_s)
                if rate.until - job.done < _EPSILON:  # a boundary missed by rounding would never be reached
                    job.done = max(job.done, rate.until)
                job.cpu_s += rate.cpu_cores * dt_s

    def _report(self) -> None:
        """A load interval is over."""
        target = round(self._offered / self.trace.interval_s)
        achieved = self._mixture.requests / self.trace.interval_s
        self.rows.append(_scaled(self._mixture.row(achieved, target), self.latency_factor))
        self.latency_factor = self._noise.interval(len(self.rows))
        self._mixture, self._offered = Mixture(), 0.0
        self._interval_end_s = (len(self.rows) + 1) * self.trace.interval_s  # a sum would drift from the trace's times


def _scaled(row: mcperf.Row, factor: float) -> mcperf.Row:
    latencies = {f.name: factor * getattr(row, f.name) for f in fields(row) if f.name.endswith("_us")}
    return replace(row, **latencies) if factor != 1.0 else row


_CALM = Surroundings(0.0, 0.0, 0.0, 0.0, 0.0)
_NOWHERE: CoreSet = frozenset()
