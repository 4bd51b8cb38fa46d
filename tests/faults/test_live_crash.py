"""The controller is killed at every boundary between two steps: its guard puts everything back, each time."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import policies
from tests.faults.stage import Stage
from tests.faults.watchman import FULL, in_time, times
from tests.live import Run
from tests.memcached_fixture import eventually

pytestmark = pytest.mark.live

WHOLE = ("--policy", f"{policies.__file__}:Sway", "--duration", "1s")
SHARED = ("--share", "--policy", f"{policies.__file__}:Swap")  # until it is killed, or told to end
JOBS = {"one": "spin 1", "two": "exit 0 200"}
CRASHING = ("-m", "tests.faults.crashing")
ROOT = str(Path(__file__).parent.parent.parent)


@contextmanager
def crashing(stage: Stage, at: int, directory: Path, *how: str, named: str = "") -> Iterator[Run]:
    """A short run with a life of everything in it, which dies at that boundary of those so named."""
    directory.mkdir()
    stage.directory = directory
    env = {"CRASH_AT": str(at), "CRASH_NAMED": named, "CRASH_PASSED": str(directory / "passed"), "PYTHONPATH": ROOT}
    watch = {"sharing": "--share" in how}
    with stage.begin(JOBS, *how, watch=watch, program=CRASHING, env=env) as run:
        yield run


def passed(stage: Stage, directory: Path, *how: str, named: str = "") -> list[str]:
    """The boundaries so named that a run passes which nobody kills; one that shares has really shared."""
    with crashing(stage, 0, directory, *how, named=named) as run:
        if "--share" in how:
            shares(run)
            assert run.end(signal.SIGTERM) == 143, run.errors
            assert not moved(run.log, "memcached"), "it has kept core 0"
        else:
            assert run.end() == 3, run.errors
    return (directory / "passed").read_text().splitlines()


def shares(run: Run) -> None:
    """Wait until a job has been on memcached's core."""
    eventually(lambda: "[0]" in moved(run.log, "one") | moved(run.log, "two"), "a job is on memcached's core")


def moved(log: str, whom: str) -> set[str]:
    """The cores to which the log says that it was moved."""
    return set(re.findall(rf" update_cores {whom} (\[[\d,]+\])", log))


@pytest.mark.parametrize("how", [WHOLE, SHARED], ids=["whole cores", "shared"])
def test_killed_at_every_boundary_everything_is_put_back(stage: Stage, tmp_path: Path, how: tuple[str, ...]) -> None:
    sharing, count = how is SHARED, len(passed(stage, tmp_path / "whole", *how))
    assert count > 50
    step = count if sharing else count // 3
    if FULL:  # every one, where a run takes a second; every other one, or a few, where it takes longer
        step = count // 12 if sharing else {"process": 1, "docker": 2}[stage.runtime]
    killed = 0
    for at in range(1 + int(stage.token[-4:], 16) % step, count + 1, step):
        killed += bool(died(stage, at, tmp_path / str(at), *how))
    assert killed >= (0.8 * len(range(0, count, step)) if FULL else 1)
    assert stage.watchman.left() == []  # nor has anything come after that


def test_killed_at_a_resize_everything_is_put_back(stage: Stage, tmp_path: Path) -> None:
    runtime = {"process": "ProcessRuntime", "docker": "ContainerRuntime"}[stage.runtime]
    told = [f"{when} {runtime}.resize" for when in ("before", "after")]
    found = passed(stage, tmp_path / "whole", *SHARED, named=".resize")
    assert set(found) == set(told)
    names = {died(stage, at, tmp_path / str(at), *SHARED, named=".resize") for at in range(1, 1 + times(2, 4))}
    assert names >= set(told)
    assert stage.watchman.left() == []


def test_killed_while_the_sharing_ends_everything_is_put_back(stage: Stage, tmp_path: Path) -> None:
    for at in (1, 2):
        assert died(stage, at, tmp_path / str(at), *SHARED, named="Sharing.close", ended=True)
    assert stage.watchman.left() == []


def closed(log: str) -> bool:
    """Whether a log has its last line, or was not known to anybody yet."""
    return log.endswith(" end scheduler\n") or "start memcached" not in log


def died(stage: Stage, at: int, directory: Path, *how: str, named: str = "", ended: bool = False) -> str:
    """The boundary at which it died, `ended` by a signal; empty if it did not: fewer may be passed than before."""
    with crashing(stage, at, directory, *how, named=named) as run:
        if ended:
            shares(run)
        code = run.end(signal.SIGTERM if ended else None)
        died_s = time.monotonic()
        if code != -signal.SIGKILL:
            assert code == 3, run.errors
            return ""
        where = (directory / "passed").read_text()
        with stage.injected(16) as fault:
            fault.recovery_s = stage.watchman.back_after(died_s)
            assert in_time(fault.recovery_s), f"{fault.recovery_s:.2f} s, killed {where}"
            eventually(lambda: closed(run.log), "the log has its last line")
    return where
