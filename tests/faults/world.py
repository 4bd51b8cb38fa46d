"""A small simulated machine on which a schedule of faults happens to a whole run: host, controller, policy, log."""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path

from colocate.jobs import JobSpec
from colocate.sim.calibration import parse_calibration
from colocate.sim.host import SimHost
from colocate.sim.run import BEGIN, Setup
from colocate.sim.traces import Trace, repeated
from colocate.testing.invariants import BrokenError, Situation
from colocate.testing.others import Pretended
from colocate.testing.schedule import draw
from tests.calibrations import small_text
from tests.faults.course import PERIOD_S, Course, Machine

TICKS = 160  # in which faults begin
LIMIT_S = 600.0
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
class World(Course):
    """One simulated run to be.

    Attributes:
        load: the fault that the load is; 0 for none.
    """

    load: int = 0
    jobs: int = 3
    cores: int = 4
    host: SimHost = field(init=False)
    setup: Setup = field(init=False)

    def __post_init__(self) -> None:
        stream = random.Random(f"{self.seed}/world")  # noqa: S311 -- no secret
        figures = _CALIBRATION.jobs["two"]
        specs = tuple(JobSpec(name, "nothing:1", ("./run",), stream.choice((1, 2, 3))) for name in "abcd"[: self.jobs])
        work = {spec.name: replace(figures, alone_s=stream.choice((0.3, 1.5, 4.0))) for spec in specs}
        interval_s = stream.choice((0.7, 1.0, 2.0))
        self.setup = setup = Setup(
            replace(_CALIBRATION, jobs=work), specs, _load(self.load, interval_s),
            _CALIBRATION.scenario.slo, _CALIBRATION.topology.only(frozenset(range(self.cores))),
            threads=4 if self.load == 26 else 2, seed=self.seed, period_s=PERIOD_S,
        )  # fmt: skip
        self.host = SimHost(setup.machine(), setup.threads, _CALIBRATION.delays, setup.noise())
        cores = setup.topology.cores
        self.begin(
            Machine(
                self.host, Pretended(self.host, cores, self.look), self.look, setup.jobs, setup.topology,
                lambda: BEGIN, LIMIT_S, setup.slo, setup.profile(),
            )
        )  # fmt: skip

    def look(self) -> Situation:
        """How the machine really is."""
        machine = self.host.machine
        return Situation(machine.cores, {name: (job.cores, job.paused) for name, job in machine.jobs.items()})

    def put_back(self) -> None:
        """See `Course.put_back`."""
        self.invariants.ended(self.on_exit)
        until_s = self.host.now() + 5.0
        for _ in range(100):  # each wait ends at the next thing that happens
            if self.host.now() >= until_s:
                break
            self.host.wait(until_s)
            self.host.observe()
        self.invariants.ended(self.on_exit)


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
        seed, schedule, directory, stream.choice(POLICIES), stream.choice((0, 25, 26)), jobs=stream.randint(2, 4),
        cores=(cores := stream.choice((2, 4))), retries=stream.choice((0, 1, 3)),
        floor=stream.choice((1, 2)) if cores > 2 else 1,
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
