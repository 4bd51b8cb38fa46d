"""A view to moves.

The controller is free of I/O: facts go in by `absorb`, moves come out of `decide`, outcomes go in by `settle`, and
what is to be logged waits in `entries`. `colocate.loop.run` puts it between a host and an event log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from colocate.cores import CoreSet, format_list
from colocate.jobs import ACTIVE, ENDED, JobEventKind, JobSpec, JobState
from colocate.lifecycle import JobLife
from colocate.meter import Meter
from colocate.move import SERVICE, Entry, Move, MoveKind
from colocate.placement import Assignment, place
from colocate.policy import Choice, Plan, Policy
from colocate.regulator import Deadline, Intervention, Limits, Regulator
from colocate.shadow import Shadow
from colocate.topology import Topology
from colocate.vetting import vetted
from colocate.view import History, Observation, Profile, ServiceView, Signal, Slo, View

_MOST_NOTED = 1000
_QUIET_S = 10.0  # the same remark is not logged more often
_DONE = {
    JobEventKind.STARTED: MoveKind.START, JobEventKind.RESIZED: MoveKind.RESIZE,
    JobEventKind.PAUSED: MoveKind.PAUSE, JobEventKind.RESUMED: MoveKind.RESUME,
}  # fmt: skip
_SERIES = ("cpu_cores", "wait_us", "wait_cores", "qps", "latency_ms")


@dataclass(frozen=True, slots=True)
class Decision:
    """What one tick came to, for the metrics file and for whoever watches.

    Attributes:
        policy: the label of the policy that decided.
        shadow: what the shadow would have done; None without one, and while it rests.
    """

    view: View
    plan: Plan
    interventions: tuple[Intervention, ...]
    moves: tuple[Move, ...]
    policy: str = ""
    shadow: Plan | None = None


class Controller:
    """Turns plans into moves, and outcomes into the life of each job.

    Args:
        jobs: the batch jobs, in the order of their catalogue.
        policy: decides the counts.
        topology: the managed cores.
        deadline: the host's time limit for a decision.
        slo: the promise.
        limits: the regulator's options.
        retries: how often a job that failed is started again.
        profile: what a calibration knows of memcached on such a machine.
        label: the policy's, for log and records.
        shadow: a second policy, which is asked as well and never obeyed.

    Attributes:
        topology: the managed cores that are online.
        policies: the labels of the policies that were chosen so far; the last one acts.
        meter: the tallies of what was done.
    """

    def __init__(
        self,
        jobs: Iterable[JobSpec],
        policy: Policy,
        topology: Topology,
        deadline: Deadline,
        *,
        slo: Slo | None = None,
        limits: Limits | None = None,
        retries: int = 1,
        profile: Profile | None = None,
        label: str = "",
        shadow: Choice | None = None,
    ) -> None:
        self.entries: list[Entry] = []
        self.jobs = {spec.name: JobLife(spec, retries, self.entries.append) for spec in jobs}
        self.managed = self.topology = topology
        self.slo = slo or Slo()
        self.profile = profile
        self.regulator = Regulator(policy, limits or Limits(), deadline, label)
        self.policies = [self.regulator.label]
        self.shadow = Shadow(shadow, limits or Limits(), deadline) if shadow else None
        self.service_cores: CoreSet = frozenset()
        self.counts: Counter[str] = Counter()
        self.meter = Meter()
        self.decision: Decision | None = None
        self._history = History()
        self._seen: Observation | None = None
        self._gap_s = 0.0  # between the last two observations
        self._pid: int | None = None
        self._service_logged = False
        self._noted: dict[tuple[str, str], float] = {}

    @property
    def done(self) -> bool:
        """Whether every job has ended."""
        return all(job.state in ENDED for job in self.jobs.values())

    @property
    def seen(self) -> Observation:
        """The latest facts.

        Raises:
            RuntimeError: nothing has been observed yet.
        """
        if self._seen is None:
            raise RuntimeError("nothing has been observed yet")
        return self._seen

    def step(self, observation: Observation) -> list[Move]:
        """Take in the facts of one instant and say what is to be done, in the order in which it must be done."""
        self.absorb(observation)
        return self.decide()

    def absorb(self, observation: Observation) -> None:
        """Take in what has happened and what is measured."""
        before = self._seen
        observation, remarks = vetted(observation, before.time_s if before else None, self._gap_s)
        self._seen = observation
        now_s, service = observation.time_s, observation.service
        for remark in remarks:
            self.note(SERVICE, "bad_signals", remark)
        if before is not None:
            self._gap_s = now_s - before.time_s
            self._judge(service.latency_ms, self._gap_s)
        for event in observation.events:
            if event.job in self.jobs:
                if kind := _DONE.get(event.kind):
                    self.meter.took(kind, event.time_s - self.jobs[event.job].wish_s)
                self.jobs[event.job].happened(event)
                if event.kind is JobEventKind.CHANGED:
                    self.note(event.job, "foreign_changes", event.detail)
        for remark in observation.remarks:
            self.note("scheduler", "remarks", remark)
        if (present := self.managed.cores - observation.offline or self.managed.cores) != self.topology.cores:
            self._plugged(present)
        if service.pid is not None and service.pid != self._pid:
            if self._pid is not None:
                self.counts["service_restarts"] += 1
                self.entries.append(Entry("custom", SERVICE, comment=f"restarted, now pid {service.pid}"))
            self._pid = service.pid
        if not service.alive:
            self.note(SERVICE, "service_gone", "not running, looking for it")
        for name, sample in observation.jobs.items():
            if name in self.jobs:
                self.jobs[name].measured(sample, now_s)
        for name in _SERIES:
            self._history.add(name, now_s, getattr(service, name).value)

    def decide(self) -> list[Move]:
        """Ask the policy, regulate, place, and order the moves."""
        view = self.view()
        plan, interventions = self.regulator.plan(view)
        for change in interventions:
            self.note("scheduler", change.rule, f"regulator: {change.rule}: {change.reason}")
        held = {name: job.wish_cores for name, job in self.jobs.items() if job.state in ACTIVE}
        target = place(
            plan.service,
            plan.jobs,
            Assignment(self.service_cores, held),
            self.topology,
            sharers=self._sharers(plan) if plan.share else None,
            spread=plan.spread,
        )
        moves = self._moves(target, plan)
        self.decision = Decision(view, plan, tuple(interventions), tuple(moves), self.regulator.acting)
        return moves

    def swap(self, choice: Choice) -> str:
        """Let another policy decide from the next decision on; the label of the one that decided until now."""
        before = self.regulator.acting
        self.regulator.swap(choice)
        self.policies.append(choice.label)
        self.entries.append(Entry("custom", "scheduler", comment=f"policy swapped: {before} -> {choice.label}"))
        return before

    def consult(self, now: Callable[[], float]) -> None:
        """Ask the shadow, if there is one, what it would have done; for after the moves, which so never wait for it."""
        if self.shadow is None or self.decision is None:
            return
        plan, dropped = self.shadow.ask(self.decision.view, self.decision.plan, now)
        if plan is not None:
            self.decision = replace(self.decision, shadow=plan)
        if dropped:
            self.entries.append(Entry("custom", "scheduler", comment=dropped))

    def only_less(self, move: Move) -> bool:
        """Whether a move takes something from a job and gives nothing to anybody."""
        if move.kind is MoveKind.RESIZE:
            return move.cores < self.jobs[move.target].wish_cores
        return move.kind is MoveKind.PAUSE

    def ready(self, move: Move, now_s: float) -> bool:
        """Whether a move can still be made: a job goes on only where it was moved to, lest it does beside memcached."""
        if move.kind is not MoveKind.RESUME:
            return True
        job = self.jobs[move.target]
        stuck = job.stuck(now_s) & self.service_cores
        shares = self.decision is not None and move.target in self.decision.plan.share
        return job.open(now_s) and job.there and (shares or not stuck)

    def settle(self, move: Move, *, done: bool, now_s: float, error: str = "", took_s: float | None = None) -> None:
        """Take in what became of a move: done at once (in `took_s`), on its way (an event will tell), or failed."""
        job = self.jobs.get(move.target)
        self.meter.moved(move.kind, move.reason)
        if done and took_s is not None:
            self.meter.took(move.kind, took_s)
        if error:
            self.meter.errors[move.kind] += 1
            self.note(move.target, "failed_moves", f"{move.kind} failed: {error}")
            if job:
                job.failed(move.kind, error, now_s, less=self.only_less(move))
        elif job:
            job.wished(move, now_s, now_s - (took_s or 0.0))
            if done:
                job.took_effect(move.kind, move.cores, now_s)
        else:
            self._pinned(move.cores)

    def view(self) -> View:
        """The picture for the policy."""
        seen, service = self.seen, self.seen.service
        jobs = {name: job.view(seen.time_s) for name, job in self.jobs.items()}
        if self.topology is not self.managed:
            jobs = {name: replace(job, cores=job.cores & self.topology.cores) for name, job in jobs.items()}
        return View(
            time_s=seen.time_s,
            slo=self.slo,
            topology=self.topology,
            cores=seen.cores,
            service=ServiceView(
                cores=self.service_cores,
                min_cores=self.regulator.limits.floor_cores,
                threads=service.threads,
                cpu_cores=service.cpu_cores,
                wait_us=service.wait_us,
                wait_cores=service.wait_cores,
                qps=service.qps,
                latency_ms=service.latency_ms,
                connections=service.connections,
            ),
            jobs=jobs,
            series=self._history.series(),
            can_share=seen.can_share,
            profile=self.profile,
            memory_available_bytes=seen.memory_available_bytes,
            cpu_pressure=seen.cpu_pressure,
        )

    def note(self, target: str, topic: str, text: str) -> None:
        """Count something and log a remark on it, unless the very same was logged a moment ago."""
        self.counts[topic] += 1
        now_s = self._seen.time_s if self._seen else 0.0
        if now_s - self._noted.get((target, text), float("-inf")) >= _QUIET_S:
            if len(self._noted) >= _MOST_NOTED:  # texts with figures are ever new ones
                self._noted = {key: at_s for key, at_s in self._noted.items() if now_s - at_s < _QUIET_S}
            self._noted[target, text] = now_s
            self.entries.append(Entry("custom", target, comment=text))

    def reassert(self) -> list[Move]:
        """What brings memcached's threads back to the cores that it was last given."""
        return self._pins(self.service_cores, "put right")[1] if self.service_cores else []

    def finish(self, why: str, now_s: float, *, stopped: bool) -> None:
        """The run ends; what becomes of the jobs that have not is said in the log."""
        for job in self.jobs.values():
            job.abandon(why, now_s, stopped=stopped)
        if self.shadow is not None:
            self.entries.append(Entry("custom", "scheduler", comment=f"shadow {self.shadow.figures()}"))

    def _plugged(self, present: CoreSet) -> None:
        """Plan with the cores that are there now, from what the kernel has made of everybody's."""
        gone, back = self.topology.cores - present, present - self.topology.cores
        self.topology = self.managed if present == self.managed.cores else self.managed.only(present)
        for cores, what in ((gone, "offline"), (back, "online again")):
            if cores:
                self.note("scheduler", "cores_plugged", f"cores {format_list(cores)} are {what}")
        if self.service_cores & gone:
            self._pinned(self.service_cores & present or present)
        for job in self.jobs.values():
            job.unplugged(present, self.seen.time_s)

    def _judge(self, latency_ms: Signal, since_s: float) -> None:
        """Count the time since the last look for or against the SLO, where there is a fresh latency."""
        if latency_ms.value is not None and latency_ms.fresh(self.regulator.limits.latency_max_age_s):
            self.meter.judged(since_s, broken=latency_ms.value > self.slo.latency_ms)

    def _sharers(self, plan: Plan) -> dict[str, int]:
        """Jobs that may use memcached's cores, each with how many of them it has threads for, in the plan's order."""
        order = [*plan.jobs, *(name for name in self.jobs if name not in plan.jobs)]
        return {
            name: max(1, self._threads(name, plan) - plan.jobs.get(name, 0))
            for name in order
            if name in plan.share and self.jobs[name].state not in ENDED
        }

    def _threads(self, name: str, plan: Plan) -> int:
        job = self.jobs[name]
        return job.threads if job.asked_for else plan.threads.get(name, job.spec.threads)

    def _moves(self, target: Assignment, plan: Plan) -> list[Move]:
        """From here to `target`: memcached's growth, creations, pauses and shrinks, its final set, the rest, starts."""
        seen, now_s, reason = self.seen, self.seen.time_s, plan.reason
        grow, shrink = self._pins(target.service, reason)
        create: list[Move] = []
        less: list[Move] = []
        more: list[Move] = []
        starts: list[Move] = []
        for name, job in self.jobs.items():
            if job.state in ENDED or job.stopping:
                continue
            cores, is_open = target.jobs.get(name), job.open(now_s)
            if job.state is JobState.WAITING:
                if not is_open:
                    continue
                if not job.asked_for:
                    threads = self._threads(name, plan)
                    create.append(Move(MoveKind.CREATE, name, self.topology.cores, threads, "ahead of its start"))
                if cores and job.created and self._service_logged and seen.service.alive:
                    starts.append(Move(MoveKind.START, name, cores, job.threads, reason))
                continue
            if is_open and (found := job.contradiction(seen.jobs.get(name), now_s)):
                self.note(name, "foreign_changes", found)
            pauses = not job.wish_paused and job.may_lose(MoveKind.PAUSE, now_s)
            if not cores:
                if pauses:
                    less.append(Move(MoveKind.PAUSE, name, reason=reason))
                continue
            placed = job.there
            if cores != job.wish_cores:
                narrower = cores < job.wish_cores
                placed = job.may_lose(MoveKind.RESIZE, now_s) and (narrower or is_open)
                if placed:
                    (less if narrower else more).append(Move(MoveKind.RESIZE, name, cores, reason=reason))
                elif pauses and job.cores & target.service and name not in plan.share:
                    less.append(Move(MoveKind.PAUSE, name, reason="it cannot leave memcached's cores"))
            stuck = job.stuck(now_s) & target.service
            if is_open and job.wish_paused and placed and (name in plan.share or not stuck):
                more.append(Move(MoveKind.RESUME, name, reason=reason))
        # What only shrinks waits for nobody; what also grows must wait until the jobs have left.
        return [*grow, *less, *shrink, *more, *starts, *create] if grow else [*shrink, *less, *more, *starts, *create]

    def _pins(self, wanted: CoreSet, reason: str) -> tuple[list[Move], list[Move]]:
        """Memcached's moves: to the union of old and new if it gains a core, and to exactly the new if it loses one."""
        service = self.seen.service
        if not service.alive:
            return [], []
        grown, shrunk = wanted - self.service_cores, self.service_cores - wanted
        astray = self.service_cores and service.affinity and service.affinity != {self.service_cores}
        if astray:
            others = " ".join(format_list(mask) for mask in service.affinity if mask and mask != self.service_cores)
            self.note(SERVICE, "foreign_changes", f"threads found on {others}, pinned again")
        grow = [Move(MoveKind.PIN, SERVICE, wanted | self.service_cores, reason=reason)] if grown else []
        final = [Move(MoveKind.PIN, SERVICE, wanted, reason=reason)] if shrunk or (astray and not grown) else []
        return grow, final

    def _pinned(self, cores: CoreSet) -> None:
        changed, self.service_cores = cores != self.service_cores, cores
        if not self._service_logged:
            self._service_logged = True
            self.entries.append(Entry("start", SERVICE, cores, max(1, self.seen.service.threads)))
        elif changed:
            self.entries.append(Entry("update_cores", SERVICE, cores))
