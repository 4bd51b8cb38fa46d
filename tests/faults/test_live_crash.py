"""The controller is killed at every boundary between two steps: its guard puts everything back, each time."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import policies
from tests.faults.stage import Stage
from tests.faults.watchman import FULL, in_time
from tests.live import Run
from tests.memcached_fixture import eventually

SWAY = ("--policy", f"{policies.__file__}:Sway", "--duration", "1s")
JOBS = {"one": "spin 1", "two": "exit 0 200"}
CRASHING = ("-m", "tests.faults.crashing")
ROOT = str(Path(__file__).parent.parent.parent)


@contextmanager
def crashing(stage: Stage, at: int, directory: Path, *more: str) -> Iterator[Run]:
    """A short run with a life of everything in it, which dies at that boundary."""
    directory.mkdir()
    stage.directory = directory
    env = {"CRASH_AT": str(at), "CRASH_COUNT": str(directory / "boundary"), "PYTHONPATH": ROOT}
    with stage.begin(JOBS, *SWAY, *more, program=CRASHING, env=env) as run:
        yield run


@pytest.mark.parametrize("sharing", [False, True], ids=["whole cores", "shared"])
def test_killed_at_every_boundary_everything_is_put_back(stage: Stage, tmp_path: Path, sharing: bool) -> None:
    more = ("--share",) if sharing else ()
    with crashing(stage, 0, tmp_path / "whole", *more) as run:
        assert run.end() == 3, run.errors
    count = int((tmp_path / "whole/boundary").read_text())
    assert count > 50
    step = count if sharing else count // 3
    if FULL:  # every one, where a run takes a second; every other one, or a few, where it takes longer
        step = count // 20 if sharing else {"process": 1, "docker": 2}[stage.runtime]
    killed = 0
    for at in range(1 + int(stage.token[-4:], 16) % step, count + 1, step):
        killed += died(stage, at, tmp_path / str(at), *more)
    assert killed
    assert stage.watchman.left() == []  # nor has anything come after that


def closed(log: str) -> bool:
    """Whether a log has its last line, or was not known to anybody yet."""
    return log.endswith(" end scheduler\n") or "start memcached" not in log


def died(stage: Stage, at: int, directory: Path, *more: str) -> bool:
    """Whether it did, at that boundary; fewer may be passed than the time before."""
    with crashing(stage, at, directory, *more) as run:
        code = run.end()
        died_s = time.monotonic()
        if code != -signal.SIGKILL:
            assert code == 3, run.errors
            return False
        where = (directory / "boundary").read_text()
        with stage.injected(16) as fault:
            fault.recovery_s = stage.watchman.back_after(died_s)
            assert in_time(fault.recovery_s), f"{fault.recovery_s:.2f} s, killed {where}"
            eventually(lambda: closed(run.log), "the log has its last line")
    return True
