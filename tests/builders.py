"""Small builders of values for tests."""

from collections.abc import Mapping
from contextlib import contextmanager

from colocate.controller import Controller
from colocate.jobs import JobEvent, JobEventKind, JobSpec, JobState
from colocate.move import Move, MoveKind
from colocate.policy import Plan, Policy
from colocate.topology import Topology
from colocate.view import (
    CoreUse,
    JobSample,
    JobView,
    Observation,
    Series,
    ServiceSample,
    ServiceView,
    Signal,
    Slo,
    View,
)


def spec(name: str, threads: int = 1, **facts: object) -> JobSpec:
    return JobSpec(name, "image", ("./run", "-n", "{threads}"), threads, **facts)


def signal(value: float | None, age_s: float = 0.0, samples: int = 100) -> Signal:
    return Signal(value, age_s, samples) if value is not None else Signal()


def service_sample(
    cpu_cores: float | None = 0.2,
    *,
    pid: int = 1,
    alive: bool = True,
    affinity: frozenset[frozenset[int]] = frozenset(),
    age_s: float = 0.0,
    wait_us: float = 5.0,
    latency_ms: float | None = None,
    threads: int = 2,
    qps: float | None = 1000.0,
) -> ServiceSample:
    return ServiceSample(
        alive=alive,
        pid=pid,
        threads=threads,
        affinity=affinity,
        cpu_cores=signal(cpu_cores, age_s),
        wait_us=signal(wait_us, age_s),
        wait_cores=signal(0.0, age_s),
        qps=signal(qps, age_s),
        latency_ms=signal(latency_ms),
    )


def observation(
    time_s: float,
    cores: int = 4,
    *,
    service: ServiceSample | None = None,
    events: tuple[JobEvent, ...] = (),
    jobs: Mapping[str, JobSample] | None = None,
) -> Observation:
    use = {core: CoreUse(0.1, 0.0, 0.0) for core in range(cores)}
    return Observation(time_s, use, service or service_sample(), jobs or {}, events)


def view(
    *,
    time_s: float = 0.0,
    total: int = 4,
    service_cores: frozenset[int] = frozenset({0}),
    sample: ServiceSample | None = None,
    jobs: Mapping[str, JobView] | None = None,
    series: Mapping[str, Series] | None = None,
) -> View:
    seen = sample or service_sample()
    return View(
        time_s=time_s,
        slo=Slo(),
        topology=Topology.flat(total),
        cores={},
        service=ServiceView(
            service_cores, 1, seen.threads, seen.cpu_cores, seen.wait_us, seen.wait_cores, seen.qps, seen.latency_ms, 4
        ),
        jobs=jobs or {},
        series=series or {},
    )


def job_view(
    name: str, state: JobState = JobState.WAITING, cores: frozenset[int] = frozenset(), **facts: object
) -> JobView:
    job = spec(name, **facts)
    return JobView(job, state, cores, job.threads, None, 0.0)


@contextmanager
def no_deadline(_seconds: float):
    yield


class Fixed(Policy):
    """Says what it is told to say."""

    def __init__(self, *plans: object) -> None:
        self.plans = list(plans)

    def decide(self, view: View) -> Plan:
        plan = self.plans.pop(0) if len(self.plans) > 1 else self.plans[0]
        if isinstance(plan, Exception):
            raise plan
        return plan


class Machine:
    """Performs moves at once and checks, after each, what must hold at every instant."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.service: frozenset[int] = frozenset()
        self.jobs: dict[str, frozenset[int]] = {}
        self.paused: set[str] = set()
        self.events: list[JobEvent] = []
        self.log: list[str] = []
        self.time_s = 0.0

    def tick(self, step_s: float = 1.0, **seen: object) -> list[Move]:
        self.time_s += step_s
        events, self.events = tuple(self.events), []
        facts = {name: JobSample(cores, name in self.paused) for name, cores in self.jobs.items()}
        total = len(self.controller.topology.cores)
        moves = self.controller.step(observation(self.time_s, total, events=events, jobs=facts, **seen))
        for move in moves:
            self.perform(move)
        self.drain()
        return moves

    def drain(self) -> None:
        for entry in self.controller.entries:
            self.log.append(f"{entry.event} {entry.target} {sorted(entry.cores)}")
        self.controller.entries.clear()

    def tell(self, job: str, kind: JobEventKind, **more: object) -> None:
        self.events.append(JobEvent(job, kind, self.time_s, **more))

    def perform(self, move: Move) -> None:
        done = False
        match move.kind:
            case MoveKind.PIN:
                assert move.cores, "an empty set for memcached"
                self.service, done = move.cores, True
            case MoveKind.CREATE:
                self.tell(move.target, JobEventKind.CREATED)
            case MoveKind.START | MoveKind.RESIZE:
                assert move.cores, "an empty set for a job"
                gained = move.cores - self.jobs.get(move.target, frozenset())
                assert not gained & self.service, f"{move} takes a core that memcached has"
                self.jobs[move.target] = move.cores
                done = move.kind is MoveKind.RESIZE
                if not done:
                    self.tell(move.target, JobEventKind.STARTED)
            case MoveKind.PAUSE:
                assert move.target not in self.paused, "paused twice"
                self.paused.add(move.target)
                done = True
            case MoveKind.RESUME:
                assert not self.jobs[move.target] & self.service, "resumed on a core that memcached has"
                self.paused.discard(move.target)
                done = True
            case MoveKind.STOP:
                self.end(move.target, 143)
        self.controller.settle(move, done=done, now_s=self.time_s)

    def end(self, job: str, code: int) -> None:
        self.jobs.pop(job)
        self.paused.discard(job)
        self.tell(job, JobEventKind.EXITED, code=code)

    def check(self) -> None:
        """Between two ticks: nobody who runs shares a core with anybody."""
        running = {name: cores for name, cores in self.jobs.items() if name not in self.paused}
        taken: set[int] = set(self.service)
        for name, cores in running.items():
            assert not taken & cores, f"{name} on {sorted(cores)}, taken are {sorted(taken)}"
            taken |= cores
        assert taken <= self.controller.topology.cores
        assert self.service
