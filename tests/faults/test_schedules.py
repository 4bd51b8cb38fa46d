"""Schedules of faults on the simulated machine: a sweep over seeds, and Hypothesis, which shrinks what it finds.

SCHEDULES=5000 .venv/bin/pytest tests/faults/test_schedules.py    # so many seeds
SCHEDULE_SEED=17 .venv/bin/pytest tests/faults/test_schedules.py  # this one alone
"""

import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from colocate.testing.schedule import Fault, Kind, Schedule, draw
from tests.faults.ledger import FAULTS, Injection
from tests.faults.live_world import LiveWorld
from tests.faults.watchman import times
from tests.faults.world import POLICIES, TICKS, World, try_seed, world_of

SEEDS = (
    [int(os.environ["SCHEDULE_SEED"])]
    if "SCHEDULE_SEED" in os.environ
    else range(int(os.environ.get("SCHEDULES", "300")))
)
SWEEPS = [SEEDS[first : first + 300] for first in range(0, len(SEEDS), 300)]  # many enough for every kind of fault
NUMBER = {  # a kind of fault to its row
    Kind.UNKNOWN: 1, Kind.STALE: 1, Kind.NONSENSE: 2, Kind.BACKWARDS: 2, Kind.EMPTY: 2, Kind.UNLOADED: 3, Kind.GONE: 4,
    Kind.THREADS: 5, Kind.FREEZE: 6, Kind.VANISH: 7, Kind.IGNORED: 8, Kind.REFUSED: 9, Kind.ON_ITS_WAY: 10,
    Kind.UNPLUGGED: 9, Kind.FOREIGN: 11, Kind.PARTIAL: 12, Kind.ENGINE: 13, Kind.EVENTS: 14,
    Kind.INTERRUPT: 15, Kind.DISK: 18, Kind.POLICY: 21, Kind.LATE_TICKS: 22, Kind.EXIT: 27,
}  # fmt: skip
KILL = 16


def injected(world: World | LiveWorld) -> Counter[int]:
    """How often each fault of the list has happened in a run."""
    faults: Counter[int] = Counter()
    for kind, count in world.chaos.injected.items():
        faults[NUMBER[kind]] += count
    faults[KILL] += world.killed
    faults[world.load] += world.load > 0
    return +faults


def tried(seed: int) -> World:
    """The world of a seed after its run; AssertionError if an invariant did not hold."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            return try_seed(seed, Path(directory), twice=seed % 10 == 0)
        except BaseException as error:
            raise AssertionError(
                f"{type(error).__name__}: {error}\nagain: SCHEDULE_SEED={seed} .venv/bin/pytest {__file__}\n"
                f"{world_of(seed, Path(directory))}"
            ) from error


@pytest.mark.parametrize("seeds", SWEEPS, ids=lambda seeds: f"{seeds[0]} to {seeds[-1]}")
def test_what_must_hold_holds_after_each_act_under_every_schedule(seeds, ledger):
    happened: Counter[int] = Counter()
    for seed in seeds:
        try:
            world = tried(seed)
        except AssertionError:
            ledger.append(Injection(NUMBER[draw(seed, TICKS).faults[0].kind], "simulated", 0, held=False))
            raise
        faults = injected(world)
        for fault in faults.elements():
            ledger.append(Injection(fault, "simulated", world.invariants.checks // faults.total(), held=True))
        happened += faults
    assert len(seeds) < 300 or {*NUMBER.values()} <= {*happened}, "each kind has really happened to somebody"


@pytest.mark.parametrize("policy", POLICIES)
def test_killed_at_any_step_the_log_is_legal_and_all_can_be_put_back(policy, tmp_path, ledger):
    whole = World(5, Schedule(), tmp_path, policy, 25, jobs=2)
    first = whole.chaos.steps + 1  # before, nothing has been touched
    whole.run()
    assert not whole.killed
    log = whole.log.path.read_bytes()
    every = 1 if "SCHEDULES" in os.environ else 9
    for step in range(first, whole.chaos.steps, every):
        world = World(5, Schedule(kill_at=step), tmp_path, policy, 25, jobs=2)
        world.run()
        assert world.killed
        assert log.startswith(world.log.path.read_bytes()), f"killed at step {step}"
        world.log.path.unlink()
        ledger.append(Injection(KILL, "simulated", world.invariants.checks, held=True))


@pytest.mark.parametrize("on_exit", ["stop", "leave", "pause"])
def test_after_a_signal_the_jobs_are_as_the_user_asked_and_memcached_has_its_cores(on_exit, tmp_path, ledger):
    interrupt = Fault(Kind.INTERRUPT, tick=30)
    world = World(3, Schedule((interrupt,)), tmp_path, "static", on_exit=on_exit)
    before = world.look().service
    world.run()
    after = world.look()
    assert after.service == before
    assert bool(after.jobs) == (on_exit != "stop")
    assert all(paused == (on_exit == "pause") for _, paused in after.jobs.values())
    assert "run+interrupted" in world.log.path.read_text()
    ledger.append(Injection(15, "simulated", world.invariants.checks, held=True))


def test_who_has_shared_memcacheds_cores_stays_there_while_it_cannot_be_moved(tmp_path):
    """Found by Hypothesis: the first move that takes cores from memcached, and gives the sharing job its own, fails."""
    world = World(0, Schedule(), tmp_path, "share", 25, retries=0)
    for _ in range(3):
        world.tick()
    world.chaos.inject(Fault(Kind.STALE, 0, 20))
    while not world.look().jobs:
        world.tick()
    held, (shared,) = world.look().service, world.look().jobs
    world.chaos.inject(Fault(Kind.REFUSED, 0, 1))
    while not world.chaos.injected[Kind.REFUSED]:
        world.tick()
    assert world.look().service == held
    assert world.look().jobs[shared][0] & held
    assert shared not in world.controller.decision.plan.share
    for _ in range(10):
        world.tick()  # which looks at everything
    assert world.look().service < held


def test_a_shipped_policy_meets_each_kind_of_fault_in_this_sweep():
    met = {fault.kind for seed in range(300) for fault in draw(seed, TICKS).faults}
    assert met == {*Kind}
    assert {*NUMBER.values()} < {*FAULTS}


class Faults(RuleBasedStateMachine):
    """Any faults in any order between any two ticks; what must hold is looked at after every act."""

    @initialize(
        seed=st.integers(0, 50),
        policy=st.sampled_from(POLICIES),
        load=st.sampled_from((0, 25, 26)),
        cores=st.sampled_from((2, 4)),
        retries=st.integers(0, 2),
        floor=st.integers(1, 2),
    )
    def begin(self, seed, policy, load, cores, retries, floor):
        self.directory = tempfile.TemporaryDirectory()
        self.world = World(
            seed, Schedule(), Path(self.directory.name), policy, load, cores=cores, retries=retries,
            floor=min(floor, cores // 2),
        )  # fmt: skip
        self.tick(1)

    @rule(
        kind=st.sampled_from([kind for kind in Kind if kind is not Kind.INTERRUPT]),
        ticks=st.sampled_from((1, 2, 5, 20)),
        pick=st.integers(0, (1 << 16) - 1),
    )
    def inject(self, kind, ticks, pick):
        self.world.chaos.inject(Fault(kind, 0, ticks, pick))
        self.tick(1)

    @rule(ticks=st.integers(1, 12))
    @precondition(lambda self: not self.world.controller.done)
    def tick(self, ticks):
        for _ in range(ticks):
            self.world.tick()

    def teardown(self):
        if not hasattr(self, "world"):
            return
        with self.directory:
            end_s = self.world.host.now() + 300.0
            while not self.world.controller.done and self.world.host.now() < end_s:
                self.world.tick()
            assert self.world.controller.done, "no job is lost"
            self.world.finish()
            assert not self.world.replayed()


Faults.TestCase.settings = settings(max_examples=times(30, 300), stateful_step_count=20, deadline=None)
TestFaults = Faults.TestCase
