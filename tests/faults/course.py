"""A whole run on which a schedule of faults happens, the same on every machine: controller, policy, log, metrics."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from colocate.eventlog import SchedulerLogger
from colocate.jobs import JobSpec
from colocate.loop import end, perform, run
from colocate.metrics import metrics_path, read
from colocate.move import Host, OnExit
from colocate.policy import load_policy
from colocate.regulator import Deadline, Limits
from colocate.testing.chaos import ChaosHost, Killed
from colocate.testing.failing import ChaosLog, ChaosMetrics, Erratic
from colocate.testing.invariants import BrokenError, Invariants, Situation, Watched, replay
from colocate.testing.others import Others
from colocate.testing.schedule import Kind, Schedule
from colocate.topology import Topology
from colocate.view import Profile, Slo

PERIOD_S = 0.05
_NO_LIMIT: Deadline = nullcontext


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run stands on.

    Attributes:
        others: do what somebody else does to it.
        look: how it really is.
        clock: the wall clock.
        slow: see `ChaosHost`.
        limit_s: a run that is not over by then has lost a job.
    """

    host: Host
    others: Others
    look: Callable[[], Situation]
    jobs: tuple[JobSpec, ...]
    topology: Topology
    clock: Callable[[], datetime]
    limit_s: float
    slo: Slo = field(default_factory=Slo)
    profile: Profile | None = None
    slow: float = 1.0


@dataclass(slots=True)
class Course:
    """One run to be; who derives from it says on which machine, by `begin`.

    Attributes:
        floor: memcached never gets fewer cores.
        killed: whether the controller has been.
    """

    seed: int
    schedule: Schedule
    directory: Path
    policy_name: str = "share"
    retries: int = field(default=1, kw_only=True)
    floor: int = field(default=1, kw_only=True)
    on_exit: OnExit = field(default="stop", kw_only=True)
    killed: bool = field(default=False, init=False)
    machine: Machine = field(init=False)
    chaos: ChaosHost = field(init=False)
    policy: Erratic = field(init=False)
    controller: Watched = field(init=False)
    log: SchedulerLogger = field(init=False)
    invariants: Invariants = field(init=False)

    def begin(self, machine: Machine) -> None:
        """Put a run on a machine."""
        self.machine = machine
        cores = machine.topology.cores
        self.chaos = chaos = ChaosHost(machine.host, self.schedule, cores, machine.others, slow=machine.slow)
        self.policy = Erratic(load_policy(self.policy_name), lambda: (chaos.on(Kind.POLICY), chaos.tick))
        self.controller = self._controller(self.policy, lambda seconds: chaos.deadline(20 * seconds))
        self.log = ChaosLog(self.directory, machine.clock, chaos)
        self.invariants = Invariants(self.controller, chaos, machine.look, self.log.path)

    def _controller(self, policy: Erratic, deadline: Deadline) -> Watched:
        machine = self.machine
        return Watched(
            machine.jobs, policy, machine.topology, deadline, slo=machine.slo, limits=Limits(floor_cores=self.floor),
            retries=self.retries, profile=machine.profile, label=self.policy_name,
        )  # fmt: skip

    def tick(self) -> None:
        """One turn of the loop, for who wants to inject faults between two."""
        perform(self.chaos, self.controller, self.log, self.controller.step(self.chaos.observe()))
        self.chaos.wait(self.machine.host.now() + PERIOD_S)

    def finish(self, *, interrupted: bool = False) -> None:
        """End the run in order, and look whether all is put back."""
        end(self.chaos, self.controller, self.log, self.on_exit, "run over")
        self.put_back()
        self.invariants.told(interrupted=interrupted, lost_lines=self.log.lost_lines, on_exit=self.on_exit)

    def run(self) -> None:
        """The whole run, by the real loop, and what must hold after it."""
        metrics = ChaosMetrics(metrics_path(self.log.path), self.chaos)
        try:
            ending = run(
                self.chaos, self.controller, self.log, period_s=PERIOD_S, metrics=metrics,
                duration_s=self.machine.limit_s, interrupted=self.chaos.interrupted, on_exit=self.on_exit,
                before=self.between,
            )  # fmt: skip
        except Killed:
            self.killed = True
            self.invariants.killed()
            self.on_exit = "stop"
            self.machine.host.close("stop")  # what the guard does
            self.put_back()
            return
        self.put_back()
        self.invariants.told(
            interrupted=ending.why == "interrupted", lost_lines=self.log.lost_lines, on_exit=self.on_exit
        )
        if ending.why not in ("done", "interrupted"):
            states = {name: str(job.state) for name, job in self.controller.jobs.items()}
            raise BrokenError(f"6: the run ended because {ending.why}, the jobs are {states}")
        self._measured(metrics)

    def between(self) -> None:
        """Called before each tick."""

    def put_back(self) -> None:
        """Everything is as it was, and stays so."""
        raise NotImplementedError

    def replayed(self) -> str:
        """Where a fresh controller and a fresh policy decide otherwise on what this one was told; empty if nowhere."""
        policy = Erratic(load_policy(self.policy_name), iter(self.policy.met).__next__)
        fresh = self._controller(policy, _NO_LIMIT)
        fresh.recording = []
        fresh.stepping, fresh.settled = lambda _: None, lambda _move, _error: None
        return replay(self.controller.recording, fresh)

    def _measured(self, metrics: ChaosMetrics) -> None:
        """The metrics file has each record whole, or the disk was full and it is counted as lost."""
        found = sum(1 for _ in read(metrics.path))
        if found + metrics.lost != metrics.taken:
            raise BrokenError(f"7: of {metrics.taken} records {metrics.lost} were lost, and {found} are there")
        if metrics.lost and not self.chaos.injected[Kind.DISK]:
            raise BrokenError(f"7: {metrics.lost} records are lost, and the disk has room")
