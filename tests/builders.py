"""Small builders of values for tests."""

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace

from colocate.controller import Controller
from colocate.jobs import JobEvent, JobEventKind, JobSpec, JobState
from colocate.move import Move, MoveKind
from colocate.policy import Plan, Policy
from colocate.regulator import Limits, Regulator
from colocate.topology import Topology
from colocate.view import (
    CoreUse,
    History,
    JobSample,
    JobView,
    LoadPoint,
    Observation,
    Profile,
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
    wait_us: float | None = 5.0,
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
    can_share: bool = False,
    offline: frozenset[int] = frozenset(),
) -> Observation:
    use = {core: CoreUse(0.1, 0.0, 0.0) for core in range(cores)}
    return Observation(time_s, use, service or service_sample(), jobs or {}, events, can_share, offline=offline)


def view(
    *,
    time_s: float = 0.0,
    total: int = 4,
    service_cores: frozenset[int] = frozenset({0}),
    sample: ServiceSample | None = None,
    jobs: Mapping[str, JobView] | None = None,
    series: Mapping[str, Series] | None = None,
    can_share: bool = False,
    profile: Profile | None = None,
    topology: Topology | None = None,
    min_cores: int = 1,
) -> View:
    seen = sample or service_sample()
    return View(
        time_s=time_s,
        slo=Slo(),
        topology=topology or Topology.flat(total),
        cores={},
        service=ServiceView(
            service_cores,
            min_cores,
            seen.threads,
            seen.cpu_cores,
            seen.wait_us,
            seen.wait_cores,
            seen.qps,
            seen.latency_ms,
            4,
        ),
        jobs=jobs or {},
        series=series or {},
        can_share=can_share,
        profile=profile,
    )


def job_view(
    name: str,
    state: JobState = JobState.WAITING,
    cores: frozenset[int] = frozenset(),
    *,
    cpu_s: float | None = None,
    **facts: object,
) -> JobView:
    job = spec(name, **facts)
    return JobView(job, state, cores, job.threads, None, 0.0, cpu_s=cpu_s)


@contextmanager
def no_deadline(_seconds: float):
    yield


class Fixed(Policy):
    """Says what it is told to say."""

    def __init__(self, *plans: object) -> None:
        self.plans = list(plans)

    def decide(self, view: View) -> Plan:
        plan = self.plans.pop(0) if len(self.plans) > 1 else self.plans[0]
        if isinstance(plan, BaseException):
            raise plan
        return plan


def profile(cores: int = 4, *, core_qps: float = 50_000.0, machine_sd: float = 0.0) -> Profile:
    """Each core carries as much; the SLO of 0.8 ms breaks beyond 0.8 of it, where the run-queue delay is 80 us."""
    points = ((0.1, 0.2, 10.0), (0.6, 0.4, 40.0), (0.8, 0.8, 80.0), (1.0, 3.0, 300.0))
    curves = {
        count: tuple(LoadPoint(share * count * core_qps, late_ms, wait_us) for share, late_ms, wait_us in points)
        for count in range(1, cores + 1)
    }
    return Profile(curves, cpu_us=1e6 / core_qps, machine_sd=machine_sd)


class Played:
    """A policy beside a memcached that gets what is planned. What a request costs: 20 us, a core has 50,000 a second.

    Args:
        policy: decides.
        cores: memcached's at first.
        regulated: whether the plan goes through a regulator, as in a run.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        cores: int = 1,
        total: int = 4,
        threads: int = 2,
        regulated: bool = False,
        **facts: object,
    ) -> None:
        self.policy, self.cores, self.total, self.threads = policy, cores, total, threads
        self.facts = {"jobs": {name: job_view(name) for name in "abc"}, **facts}
        self.regulator = Regulator(policy, Limits(), no_deadline) if regulated else None
        self.history = History()
        self.time_s = 0.0

    def tick(
        self, qps: float, *, told: bool = True, signals: Mapping[str, Signal] | None = None, **sample: object
    ) -> Plan:
        """One tick of 50 ms under a load; `told`: whether `stats` answers; `signals` stand instead of what is seen."""
        self.time_s += 0.05
        used = min(20e-6 * qps, self.cores, self.threads or self.cores)
        facts = {"cpu_cores": used, "threads": self.threads, "qps": used / 20e-6 if told else None, **sample}
        seen = replace(service_sample(**facts), **(signals or {}))
        for name in ("cpu_cores", "wait_us", "qps", "latency_ms"):
            self.history.add(name, self.time_s, getattr(seen, name).value)
        picture = view(
            time_s=self.time_s, total=self.total, service_cores=frozenset(range(self.cores)), sample=seen,
            series=self.history.series(), **self.facts,
        )  # fmt: skip
        plan = self.regulator.plan(picture)[0] if self.regulator else self.policy.decide(picture)
        self.cores = plan.service
        return plan

    def play(self, seconds: float, qps: float, **sample: object) -> list[Plan]:
        """Many ticks under one load."""
        return [self.tick(qps, **sample) for _ in range(round(seconds / 0.05))]


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
            if self.controller.ready(move, self.time_s):
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
                assert not gained & self.service or self.shares(move.target), f"{move} takes a core that memcached has"
                self.jobs[move.target] = move.cores
                done = move.kind is MoveKind.RESIZE
                if not done:
                    self.tell(move.target, JobEventKind.STARTED)
            case MoveKind.PAUSE:
                assert move.target not in self.paused, "paused twice"
                self.paused.add(move.target)
                done = True
            case MoveKind.RESUME:
                on_service = self.jobs[move.target] & self.service
                assert not on_service or self.shares(move.target), "resumed on a core that memcached has"
                self.paused.discard(move.target)
                done = True
            case MoveKind.STOP:
                self.end(move.target, 143)
        self.controller.settle(move, done=done, now_s=self.time_s)

    def end(self, job: str, code: int) -> None:
        self.jobs.pop(job)
        self.paused.discard(job)
        self.tell(job, JobEventKind.EXITED, code=code)

    def shares(self, job: str) -> bool:
        """Whether the plan that is being carried out lets a job on memcached's cores."""
        decision = self.controller.decision
        assert decision
        return job in decision.plan.share

    def check(self) -> None:
        """Between two ticks: nobody who runs shares a core with anybody, but who may those of memcached."""
        running = {name: cores for name, cores in self.jobs.items() if name not in self.paused}
        taken: set[int] = set(self.service)
        for name, cores in running.items():
            own = cores - self.service if self.shares(name) else cores
            assert not taken & own, f"{name} on {sorted(cores)}, taken are {sorted(taken)}"
            taken |= own
        assert taken <= self.controller.topology.cores
        assert self.service
