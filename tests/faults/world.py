"""A small simulated machine on which a schedule of faults happens to a whole run: host, controller, policy, log."""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path

from colocate.eventlog import SchedulerLogger
from colocate.jobs import JobSpec
from colocate.loop import end, perform, run
from colocate.move import OnExit
from colocate.policy import Policy, load_policy
from colocate.sim.calibration import parse_calibration
from colocate.sim.host import SimHost
from colocate.sim.run import BEGIN, Setup
from colocate.sim.traces import Trace, repeated
from colocate.testing.chaos import ChaosHost, Killed
from colocate.testing.failing import ChaosLog, Erratic
from colocate.testing.invariants import BrokenError, Invariants, Situation, Watched, replay
from colocate.testing.schedule import Kind, Schedule, draw
from tests.calibrations import small_text

PERIOD_S = 0.05
TICKS = 160  # in which faults begin
LIMIT_S = 600.0  # a run that is not over by then has lost a job
POLICIES = ("share", "reactive", "mixed", "static")
STEPS = 3000  # of a usual run; a kill hits at one of them
_CALIBRATION = parse_calibration(tomllib.loads(small_text("none")), "small", "small.toml")
_LOADS = {  # by the faults that they are
    0: (30_000,),
    25: (10_000, 90_000, 15_000, 60_000, 62_000, 58_000, 64_000),
    26: (20_000, 240_000, 240_000, 20_000),
}
_HARD_S, _CALM_QPS = 15.0, 12_000.0  # then the load is one that leaves the jobs cores


@dataclass(slots=True)
class World:
    """One run to be.

    Attributes:
        load: the fault that the load is; 0 for none.
        killed: whether the controller has been.
    """

    seed: int
    schedule: Schedule
    directory: Path
    policy_name: str = "share"
    load: int = 0
    jobs: int = 3
    cores: int = 4
    retries: int = 1
    on_exit: OnExit = "stop"
    host: SimHost = field(init=False)
    chaos: ChaosHost = field(init=False)
    controller: Watched = field(init=False)
    log: SchedulerLogger = field(init=False)
    invariants: Invariants = field(init=False)
    setup: Setup = field(init=False)
    killed: bool = False

    def __post_init__(self) -> None:
        stream = random.Random(f"{self.seed}/world")  # noqa: S311 -- no secret
        figures = _CALIBRATION.jobs["two"]
        specs = tuple(JobSpec(name, "nothing:1", ("./run",), stream.choice((1, 2, 3))) for name in "abcd"[: self.jobs])
        work = {spec.name: replace(figures, alone_s=stream.choice((0.3, 1.5, 4.0))) for spec in specs}
        interval_s = stream.choice((0.7, 1.0, 2.0))
        self.setup = Setup(
            replace(_CALIBRATION, jobs=work), specs, _load(self.load, interval_s),
            _CALIBRATION.scenario.slo, _CALIBRATION.topology.only(frozenset(range(self.cores))),
            threads=4 if self.load == 26 else 2, seed=self.seed, period_s=PERIOD_S,
        )  # fmt: skip
        machine = self.setup.machine()
        self.host = SimHost(machine, self.setup.threads, _CALIBRATION.delays, self.setup.noise())
        self.chaos = ChaosHost(self.host, self.schedule, self.setup.topology.cores)
        self.controller = self._controller()
        self.log = ChaosLog(self.directory, lambda: BEGIN, self.chaos)
        self.invariants = Invariants(self.controller, self.chaos, self.look, self.log.path)

    def _controller(self) -> Watched:
        return Watched(
            self.setup.jobs, Erratic(self._policy(), self.chaos), self.setup.topology, self.chaos.deadline,
            slo=self.setup.slo, retries=self.retries, profile=self.setup.profile(), label=self.policy_name,
        )  # fmt: skip

    def _policy(self) -> Policy:
        return load_policy(self.policy_name)

    def look(self) -> Situation:
        """How the machine really is."""
        machine = self.host.machine
        return Situation(machine.cores, {name: (job.cores, job.paused) for name, job in machine.jobs.items()})

    def tick(self) -> None:
        """One turn of the loop, for who wants to inject faults between two."""
        perform(self.chaos, self.controller, self.log, self.controller.step(self.chaos.observe()))
        self.chaos.wait(self.host.now() + PERIOD_S)

    def finish(self, *, interrupted: bool = False) -> None:
        """End the run in order, and look whether all is put back."""
        end(self.chaos, self.controller, self.log, self.on_exit, "run over")
        self.put_back()
        self.invariants.told(interrupted=interrupted, lost_lines=self.log.lost_lines, on_exit=self.on_exit)

    def run(self) -> None:
        """The whole run, by the real loop, and what must hold after it."""
        try:
            ending = run(
                self.chaos, self.controller, self.log, period_s=PERIOD_S, duration_s=LIMIT_S,
                interrupted=self.chaos.interrupted, on_exit=self.on_exit,
            )  # fmt: skip
        except Killed:
            self.killed = True
            self.invariants.killed()
            self.on_exit = "stop"
            self.host.close("stop")  # what the guard does
            self.put_back()
            return
        self.put_back()
        self.invariants.told(
            interrupted=ending.why == "interrupted", lost_lines=self.log.lost_lines, on_exit=self.on_exit
        )
        if ending.why not in ("done", "interrupted"):
            states = {name: str(job.state) for name, job in self.controller.jobs.items()}
            raise BrokenError(f"6: the run ended because {ending.why}, the jobs are {states}")

    def put_back(self) -> None:
        """Everything is as it was, and stays so."""
        self.invariants.ended(self.on_exit)
        until_s = self.host.now() + 5.0
        for _ in range(100):  # each wait ends at the next thing that happens
            if self.host.now() >= until_s:
                break
            self.host.wait(until_s)
            self.host.observe()
        self.invariants.ended(self.on_exit)

    def replayed(self) -> str:
        """Where a fresh controller and a fresh policy decide otherwise on what this one was told; empty if nowhere."""
        recording = self.controller.recording
        if any(fault.kind is Kind.POLICY for fault in self.schedule.faults):
            return ""  # the erratic part goes by the host's tick
        fresh = Watched(
            self.setup.jobs, self._policy(), self.setup.topology, self.host.deadline,
            slo=self.setup.slo, retries=self.retries, profile=self.setup.profile(), label=self.policy_name,
        )  # fmt: skip
        fresh.recording = []
        fresh.stepping, fresh.settled = lambda _: None, lambda _move, _error: None
        return replay(recording, fresh)


def _load(fault: int, interval_s: float) -> Trace:
    hard = repeated(_LOADS[fault], interval_s, _HARD_S)
    end_s = hard.times_s[-1] + interval_s
    return Trace((*hard.times_s, end_s), (*hard.targets_qps, _CALM_QPS), interval_s, 3 * LIMIT_S)


def world_of(seed: int, directory: Path, *, killed: bool = True) -> World:
    """The world and the schedule that a seed stands for; `killed`: with the kill, if there is one."""
    stream = random.Random(f"{seed}/choice")  # noqa: S311 -- no secret
    schedule = draw(seed, TICKS, steps=STEPS)
    schedule = schedule if killed else replace(schedule, kill_at=0)
    return World(
        seed, schedule, directory, stream.choice(POLICIES), stream.choice((0, 25, 26)),
        jobs=stream.randint(2, 4), cores=stream.choice((2, 4)), retries=stream.choice((0, 1, 3)),
    )  # fmt: skip


def try_seed(seed: int, directory: Path, *, twice: bool = False) -> World:
    """Run what a seed stands for.

    Args:
        seed: of everything.
        directory: for the logs.
        twice: whether to run it again, which must give the same log. A run that is killed is run again in any case, and
            lived through: the log must go on where it broke off.

    Raises:
        BrokenError: an invariant does not hold.
    """
    world = world_of(seed, directory)
    world.run()
    if difference := world.replayed():
        raise BrokenError(f"7: does not replay: {difference}")
    if twice or world.killed:
        again = world_of(seed, directory, killed=False)
        again.run()
        log, whole = (one.log.path.read_bytes() for one in (world, again))
        if not (whole.startswith(log) if world.killed else whole == log):
            raise BrokenError("7: the same seed and schedule gave another log")
    return world
