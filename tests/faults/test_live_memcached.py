"""Real memcacheds that are killed, stopped, moved and replaced while a run goes on beside them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from colocate.host.cgroup import directory
from tests.faults import policies
from tests.faults.press import pressing
from tests.faults.stage import Stage
from tests.faults.watchman import FULL, OFTEN, times
from tests.live import colocate
from tests.memcached_fixture import Memcached, eventually, free_port

pytestmark = pytest.mark.live

ALL = set(os.sched_getaffinity(0))
FOLLOW = ("--policy", f"{policies.__file__}:Follow", "--set", "high=0.15", "--set", "low=0.05")


def pinned(server: Memcached, cores: set[int]) -> bool:
    """Whether every thread has these cores now."""
    found = []
    for task in os.scandir(f"/proc/{server.pid}/task"):
        with suppress(ProcessLookupError):
            found.append(os.sched_getaffinity(int(task.name)))
    return all(mask == cores for mask in found)


def pidfds(pid: int) -> int:
    """How many processes it watches."""
    return sum(str(fd.readlink()) == "anon_inode:[pidfd]" for fd in Path(f"/proc/{pid}/fd").iterdir())


def test_memcached_is_killed_and_restarted_under_load(stage: Stage) -> None:
    server = stage.server
    with pressing(server.port, 0.2), stage.begin({"spin": "spin 1"}) as run:
        run.until("start spin")
        (held,) = {frozenset(os.sched_getaffinity(tid)) for tid in server.tids()}
        watched = pidfds(run.process.pid)
        for _ in range(times(2, 6)):
            with stage.injected(4) as fault:
                with stage.watchman.excused():
                    server.restart()
                    fault.over()
                    eventually(lambda: pinned(server, held), "the new one is pinned")
                fault.recovered()
        eventually(lambda: pidfds(run.process.pid) == watched, "those that have died are watched no longer")
        assert run.end(signal.SIGTERM) == 143
    assert f"restarted, now pid {server.pid}".replace(" ", "+").replace(",", "%2C") in run.log
    assert stage.watchman.left() == []


def test_on_a_memcached_that_is_stopped_nothing_is_taken_from_it(process_stage: Stage) -> None:
    stage, server = process_stage, process_stage.server
    with pressing(server.port, 1.0) as press, stage.begin({"spin": "spin 1"}, *FOLLOW, "--set", "hold_s=4") as run:
        run.until("start memcached")
        eventually(lambda: pinned(server, ALL), "memcached has all cores")
        with stage.injected(1) as fault:
            server.suspend()
            time.sleep(10.0 if FULL else 6.0)  # it would shrink after four
            held = pinned(server, ALL)
            server.resume()
            fault.over()
            assert held, "no fresh signal, and a core was taken"
            press.put(0.0)
            eventually(lambda: pinned(server, {min(ALL)}) or pinned(server, {max(ALL)}), "it shrinks again")
            fault.recovered()
        assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []


def test_memcached_comes_back_with_more_threads(process_stage: Stage) -> None:
    stage, server = process_stage, process_stage.server
    with stage.begin({"spin": "spin 1"}) as run:
        run.until("start spin")
        (held,) = {frozenset(os.sched_getaffinity(tid)) for tid in server.tids()}
        before = len(server.tids())
        server.use("-l", server.ip, "-t", "8")
        with stage.injected(5) as fault:
            with stage.watchman.excused():
                server.restart()
                fault.over()
                eventually(lambda: len(server.tids()) >= before + 6 and pinned(server, held), "all of them are pinned")
            fault.recovered()
        assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []


class Fickle:
    """A process whose threads come and go, in memcached's place."""

    ip = "127.0.0.1"

    def __init__(self, program: Path) -> None:
        self.port = free_port()
        self.process = subprocess.Popen([program, str(self.port)])
        self.pid = self.process.pid


@pytest.fixture
def fickle(tmp_path: Path) -> Iterator[Fickle]:
    program, source = tmp_path / "memcached-fickle", Path(__file__).parent.parent / "programs/fickle.c"
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-pthread", "-o", program, source], check=True)
    made = Fickle(program)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


def test_threads_that_come_and_go_are_pinned_and_given_back(process_stage: Stage, fickle: Fickle) -> None:
    stage = process_stage
    stage.server = fickle  # type: ignore[assignment]  # as far as anybody asks, it is one
    sway = ("--policy", f"{policies.__file__}:Sway")
    with stage.begin({"spin": "spin 1"}, *sway) as run:
        run.until("start spin")
        with stage.injected(5) as fault:
            lines = run.log.count("update_cores memcached")
            eventually(lambda: run.log.count("update_cores memcached") >= lines + times(3, 20), "it was moved")
            run.process.send_signal(signal.SIGTERM)
            fault.over()
            assert run.end() == 143
            assert stage.watchman.left() == []
            fault.recovered()


def test_a_foreign_taskset_is_put_right(stage: Stage) -> None:
    server, wide = stage.server, ",".join(map(str, sorted(ALL)))
    with pressing(server.port, 0.2), stage.begin({"spin": "spin 1"}, watch=OFTEN) as run:
        run.until("start spin")
        (held,) = {frozenset(os.sched_getaffinity(tid)) for tid in server.tids()}
        elsewhere = ",".join(map(str, sorted(ALL - held)))
        for turn in range(times(3, 12)):
            with stage.injected(11) as fault:
                whom = [["-acp", wide, server.pid], ["-acp", elsewhere, server.pid], ["-cp", wide, max(server.tids())]]
                subprocess.run(["taskset", *map(str, whom[turn % 3])], check=True, capture_output=True)
                fault.over()
                eventually(lambda: pinned(server, set(held)), "pinned again")
                fault.recovered()
        assert run.end(signal.SIGTERM) == 143
    assert "foreign_changes" in run.log
    assert stage.watchman.left() == []


@pytest.mark.skipif(not Path("/sys/fs/cgroup/cpuset/tasks").exists(), reason="version 2: its threads have one cpuset")
def test_one_thread_cannot_have_the_cores_that_the_others_get(process_stage: Stage) -> None:
    """Pinning succeeds for some threads and not for one: the others are, and it goes with them again once it can."""
    stage, server = process_stage, process_stage.server
    base = directory(server.pid, "cpuset")
    assert base is not None
    with stage.group() as narrow:
        assert narrow.cpuset is not None
        assert narrow.set_cores(frozenset({min(ALL)}))
        with pressing(server.port) as press, stage.begin({"spin": "spin 1"}, *FOLLOW) as run:
            run.until("start spin")
            for thread in sorted(server.tids())[1 : 1 + times(3, 6)]:
                with stage.injected(12) as fault:
                    (narrow.cpuset / "tasks").write_text(f"{thread}")
                    press.put(1.0)
                    eventually(lambda: os.sched_getaffinity(server.pid) == ALL, "the others are pinned")
                    time.sleep(1.3)  # the watchman sees it if the job runs on beside those
                    assert os.sched_getaffinity(thread) == {min(ALL)}, "the kernel has refused"
                    (base / "tasks").write_text(f"{thread}")
                    fault.over()
                    eventually(lambda: pinned(server, ALL), "all are pinned")
                    fault.recovered()
                    press.put(0.0)
                    eventually(lambda: pinned(server, {min(ALL)}), "memcached has one core again")
            assert run.end(signal.SIGTERM) == 143
        assert stage.watchman.left() == []


@contextmanager
def stranger(pid: int) -> Iterator[subprocess.Popen[bytes]]:
    """Another program under that very pid, which must be free."""
    found = None
    for _ in range(500):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))  # the next process gets the number after that
        found = subprocess.Popen(["sleep", "600"])
        if found.pid == pid:
            break
        found.kill()
        found.wait()
    assert found is not None
    assert found.pid == pid, "the pid could not be had"
    try:
        yield found
    finally:
        found.kill()
        found.wait()


def test_the_pid_of_memcached_is_another_programs_now(process_stage: Stage) -> None:
    stage, server = process_stage, process_stage.server
    with stage.begin({"spin": "spin 1"}) as run:
        run.until("start spin")
        for _ in range(times(1, 3)):
            with stage.injected(4) as fault:
                run.process.send_signal(signal.SIGSTOP)  # it, too, makes a thread at once, which takes a number
                eventually(lambda: psutil.Process(run.process.pid).status() == psutil.STATUS_STOPPED, "it stands still")
                server.stop()
                with stage.watchman.excused(), stranger(server.pid) as other:
                    run.process.send_signal(signal.SIGCONT)
                    own = os.sched_getaffinity(other.pid)
                    time.sleep(0.5)
                    assert os.sched_getaffinity(other.pid) == own
                with stage.watchman.excused():
                    server.restart()
                    fault.over()
                    eventually(lambda: pinned(server, {min(ALL)}), "memcached is pinned again")
                fault.recovered()
        assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []


def test_what_is_put_back_is_not_put_on_a_stranger(process_stage: Stage) -> None:
    stage, server = process_stage, process_stage.server
    with stage.begin({"spin": "spin 1"}, "--no-guard") as run:
        run.until("start spin")
        with stage.injected(4):
            run.process.kill()
            run.process.wait()
            server.stop()
            with stage.watchman.excused(), stranger(server.pid) as other:
                os.sched_setaffinity(other.pid, {max(ALL)})
                done = colocate("restore", "--state-dir", str(stage.directory / "state"), cwd=stage.directory)
                assert done.returncode == 0, done.stderr
                assert os.sched_getaffinity(other.pid) == {max(ALL)}
            server.restart()
            eventually(lambda: stage.watchman.left() == [], "nothing is left")
