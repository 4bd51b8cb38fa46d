"""Loads that step, spike and saw at the threshold, a kernel that refuses, a pause that does not come, bad settings."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from colocate.host.cgroup import JobCgroup
from colocate.host.control import ask
from tests.faults import policies
from tests.faults.press import pressing
from tests.faults.stage import Stage
from tests.faults.watchman import times
from tests.live import Run, colocate, masks
from tests.memcached_fixture import Memcached, eventually

pytestmark = pytest.mark.live

ALL = set(os.sched_getaffinity(0))
FOLLOW = ("--policy", f"{policies.__file__}:Follow", "--set", "high=0.15", "--set", "low=0.05")
SWAY = ("--policy", f"{policies.__file__}:Sway")
LEAST_S = 0.5  # between two shrinkings of memcached, by the regulator


def held(server: Memcached) -> set[int]:
    return os.sched_getaffinity(server.pid)


def moves(run: Run) -> list[tuple[datetime, int]]:
    """When memcached was given how many cores."""
    lines = re.findall(r"^(\S+) update_cores memcached \[([\d,]+)\]", run.log, re.MULTILINE)
    return [(datetime.fromisoformat(moment), len(cores.split(","))) for moment, cores in lines]


def unhurried(run: Run) -> None:
    """It was never narrowed sooner than it may be after it was last moved."""
    found = moves(run)
    for (before, wide), (after, narrow) in pairwise(found):
        assert narrow > wide or (after - before).total_seconds() > 0.9 * LEAST_S


def test_a_step_in_the_load_is_followed_up_and_down(stage: Stage) -> None:
    server = stage.server
    with pressing(server.port) as press, stage.begin({"spin": "spin 1"}, *FOLLOW) as run:
        run.until("start spin")
        for _ in range(times(2, 6)):
            with stage.injected(25) as fault:
                press.put(1.0)
                fault.over()
                eventually(lambda: held(server) == ALL, "memcached has all cores")
                fault.recovered()
                press.put(0.0)
                eventually(lambda: held(server) != ALL, "it has one again")
        unhurried(run)
        assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []


def spike(put: Callable[[float], object]) -> None:
    put(1.0)
    time.sleep(0.2)
    put(0.0)


def sawtooth(put: Callable[[float], object]) -> None:
    for share in [0.03, 0.3] * times(10, 20):
        put(share)
        time.sleep(0.1)
    put(0.0)


@pytest.mark.parametrize("shape", [spike, sawtooth])
def test_no_load_makes_the_cores_flap(process_stage: Stage, shape: Callable[[Callable[[float], object]], None]) -> None:
    """Not even with a policy that would go to and fro at every tick."""
    stage, server = process_stage, process_stage.server
    with pressing(server.port) as press, stage.begin({"spin": "spin 1"}, *FOLLOW, "--set", "hold_s=0") as run:
        run.until("start spin")
        for _ in range(times(1, 3)):
            eventually(lambda: held(server) != ALL, "it has one core")
            with stage.injected(25):
                before, begin_s = len(moves(run)), time.monotonic()
                shape(press.put)
                eventually(lambda: [w for _, w in moves(run)[before:]][-1:] == [1], "up and down again")  # noqa: B023
                made, took_s = len(moves(run)) - before, time.monotonic() - begin_s
                assert 2 <= made <= 2 * (1 + took_s / LEAST_S)
        unhurried(run)
        assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []


def test_memcached_needs_the_whole_machine_and_gives_it_back_once(stage: Stage) -> None:
    server = stage.server
    with pressing(server.port) as press, stage.begin({"spin": "spin 1"}, *FOLLOW) as run:
        run.until("start spin")
        eventually(lambda: all(mask != ALL for mask in masks(server.pid).values()), "memcached has one core")
        before, paused = len(moves(run)), run.log.count(" pause spin\n")
        with stage.injected(26) as fault:
            press.put(1.0)
            eventually(lambda: run.log.count(" pause spin\n") > paused, "the job is paused")
            time.sleep(2.0)
            press.put(0.0)
            fault.over()
            eventually(lambda: run.log.count(" unpause spin\n") > paused, "and goes on")
            fault.recovered()
            time.sleep(2.0)
            widths = [width for _, width in moves(run)[before:]]
            assert widths == [len(ALL), 1], "no oscillation"
            assert run.log.count(" pause spin\n") == run.log.count(" unpause spin\n") == paused + 1
        assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []


def test_memcached_is_not_there_for_a_while(process_stage: Stage) -> None:
    """The probe is refused, and there is nothing to pin; the jobs go on, and nothing moves."""
    stage, server = process_stage, process_stage.server
    with stage.begin({"spin": "spin 1"}, *FOLLOW) as run:
        run.until("start spin")
        job = stage.process()
        for _ in range(times(1, 4)):
            with stage.injected(1) as fault:
                before = moves(run)
                server.stop()
                time.sleep(1.5)
                assert stage.watchman.jobs() == [job]
                assert moves(run) == before
                with stage.watchman.excused():
                    server.restart()
                    fault.over()
                    eventually(lambda: all(mask != ALL for mask in masks(server.pid).values()), "the new one is pinned")
                fault.recovered()
        assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []


def test_a_cpuset_around_memcached_is_narrowed_while_it_is_to_have_more(process_stage: Stage) -> None:
    """The kernel gives less than it was asked for, or nothing: the jobs get nothing of it either."""
    stage, server = process_stage, process_stage.server
    with stage.group() as group:
        group.set_cores(frozenset(ALL))
        group.add(server.pid)
        with stage.begin({"spin": "spin 1"}, *SWAY) as run:
            run.until("start spin")
            for _ in range(times(1, 3)):
                with stage.injected(9) as fault:
                    assert group.set_cores(frozenset({min(ALL)}))
                    failed = errors(stage)
                    eventually(lambda: errors(stage) > failed, "the kernel refuses")  # noqa: B023
                    assert group.set_cores(frozenset(ALL))
                    fault.over()
                    eventually(lambda: held(server) == ALL, "it has all cores")
                    fault.recovered()
            assert run.end(signal.SIGTERM) == 143
        assert stage.watchman.left() == []


def errors(stage: Stage) -> int:
    """How many of the run's pins have failed."""
    told = ask(stage.directory / "state", {"request": "figures"})["meter"]
    return int(told["errors"].get("pin", 0))  # type: ignore[index, call-overload]  # JSON


@contextmanager
def insisting(act: Callable[[], object]) -> Iterator[None]:
    """Somebody does it hundreds of times a second."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.001):
            act()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_job_that_somebody_keeps_thawing_is_paused_in_the_end(stage: Stage) -> None:
    server = stage.server
    with pressing(server.port) as press, stage.begin({"spin": "spin 1"}, *FOLLOW) as run:
        run.until("start spin")
        job = stage.process()
        group = JobCgroup.of(job)
        for _ in range(times(1, 4)):
            with stage.injected(10) as fault:
                with insisting(group.thaw), stage.watchman.excused():
                    press.put(1.0)
                    eventually(lambda: held(server) == ALL, "memcached has all cores")
                    time.sleep(1.0)
                fault.over()
                eventually(lambda: group.frozen(), "it is paused")
                fault.recovered()
                press.put(0.0)
                eventually(lambda: held(server) != ALL and not group.frozen(), "it goes on")
        group.close()
        assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []


def test_a_job_that_somebody_keeps_on_memcacheds_cores_is_paused_until_it_can_be_moved(stage: Stage) -> None:
    with stage.begin({"spin": "spin 1"}) as run:
        run.until("start spin")
        job = stage.process()
        group, own = JobCgroup.of(job), os.sched_getaffinity(job)
        for stuck in [ALL - own, ALL] * times(1, 2):
            with stage.injected(8) as fault:
                with insisting(partial(group.set_cores, frozenset(stuck))), stage.watchman.excused():
                    eventually(group.frozen, "it is paused")
                fault.over()
                eventually(lambda: os.sched_getaffinity(job) == own and not group.frozen(), "it goes on in its place")
                fault.recovered()
        group.close()
        assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []


def test_settings_that_others_can_write_or_that_make_no_sense_begin_nothing(process_stage: Stage) -> None:
    stage, server = process_stage, process_stage.server
    stage.directory.chmod(0o755)
    arguments = stage.arguments({"spin": "spin 1"})
    jobs, good = Path(arguments[1]), Path(arguments[1]).read_text()
    config, policy = stage.directory / "colocate.toml", stage.directory / "mine.py"

    def begin(*more: str) -> str:
        before = masks(server.pid)
        with stage.watched(), stage.injected(20):
            where = ["--memcached-ip", server.ip, "--port", str(server.port), "--state-dir", str(jobs.parent / "state")]
            done = colocate("run", *where, *arguments, *more, cwd=stage.directory)
            assert done.returncode == 2, done.stderr
            (line,) = done.stderr.splitlines()
            assert masks(server.pid) == before
            assert not (stage.directory / "logs").exists()
        return line

    config.write_text('slo = "1ms"\n')
    config.chmod(0o666)
    assert "everybody can write it" in begin()
    config.unlink()
    jobs.chmod(0o666)
    assert "everybody can write it" in begin()
    jobs.chmod(0o644)
    policy.write_text(Path(policies.__file__).read_text())
    policy.chmod(0o666)
    assert "everybody can write it" in begin("--policy", "mine.py:Follow")
    jobs.write_text("")
    assert "no jobs" in begin()
    jobs.write_text("[" * 100_000)
    assert str(jobs) in begin()
    jobs.write_text(good)
    assert "--slo" in begin("--slo=-1ms")


def test_jobs_end_one_after_another_and_the_last_one_ends_the_run(stage: Stage) -> None:
    jobs = {f"job{number}": f"exit 0 {100 * number}" for number in range(times(3, 8))}
    with stage.begin(jobs, *SWAY) as run, stage.injected(27):
        assert run.end() == 0, run.errors
    assert {job["state"] for job in run.summary["jobs"].values()} == {"finished"}
    assert stage.watchman.left() == []
