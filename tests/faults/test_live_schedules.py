"""The schedules of `test_schedules.py` on this machine: real memcached, real containers and processes, real signals.

Each is drawn once and runs twice: on the simulated machine, then here.

SCHEDULE_SEED=17 .venv/bin/pytest tests/faults/test_live_schedules.py  # this one alone
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from colocate.testing.schedule import Kind, draw
from tests.faults.course import Course
from tests.faults.ledger import Injection
from tests.faults.live_world import LiveWorld
from tests.faults.stage import Stage
from tests.faults.test_schedules import NUMBER, injected
from tests.faults.watchman import times
from tests.faults.world import POLICIES, World

pytestmark = pytest.mark.live

TICKS = 50  # in which faults begin: 2.5 s
STEPS = 800  # of a usual run here
DONE_HERE = {NUMBER[kind] for kind in (Kind.GONE, Kind.VANISH, Kind.EXIT, Kind.FOREIGN)} | {25, 26}
SEEDS = [int(os.environ["SCHEDULE_SEED"])] if "SCHEDULE_SEED" in os.environ else range(times(2, 6))


def worlds(seed: int, stage: Stage, directory: Path) -> tuple[World, LiveWorld]:
    """The same schedule, policy and load for both machines."""
    stream = random.Random(f"{seed}/live")  # noqa: S311 -- no secret
    schedule = draw(seed, TICKS, steps=STEPS)
    policy, load, retries = stream.choice(POLICIES), stream.choice((0, 25, 26)), stream.choice((0, 1, 3))
    jobs, shares = stream.choice((2, 3)), stream.choice((True, False))
    return (
        World(seed, schedule, directory / "simulated", policy, load, jobs, retries=retries),
        LiveWorld(seed, schedule, directory / "logs", policy, retries=retries, stage=stage, load=load, jobs=jobs,
                  shares=shares),
    )  # fmt: skip


def tried(course: Course) -> None:
    course.run()
    assert not course.replayed()


def where(fault: int) -> str:
    """Whether somebody has really done that to this machine."""
    return "live" if fault in DONE_HERE else "told"


@pytest.mark.parametrize("seed", SEEDS)
def test_what_holds_on_the_simulated_machine_holds_here(seed: int, stage: Stage, tmp_path: Path, notes: list[str]):
    simulated, live = worlds(seed, stage, tmp_path)
    tried(simulated)
    with live.open():
        begin_s = time.monotonic()
        try:
            tried(live)
        except BaseException as error:
            for fault in injected(live):
                stage.ledger.append(Injection(fault, where(fault), live.invariants.checks, held=False))
            again = f"SCHEDULE_SEED={seed} .venv/bin/pytest {__file__} -k {stage.runtime}"
            text = f"{type(error).__name__}: {error}\nagain: {again}\n{live.schedule}\n{live.log.path.read_text()}"
            raise AssertionError(text) from error
    assert live.watchman.left() == []
    faults = injected(live)
    for fault in faults.elements():
        stage.ledger.append(Injection(fault, where(fault), live.invariants.checks // faults.total(), held=True))
    notes.append(f"schedule {seed}, {stage.runtime}: {time.monotonic() - begin_s:.1f} s, {live.chaos.tick} ticks")
