"""The controller itself is frozen, starved, told to end, doubled, or given a policy that fails."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest

from colocate.host.control import ask
from tests.faults import policies
from tests.faults.press import pressing
from tests.faults.stage import Stage
from tests.faults.watchman import FULL, OFTEN, in_time, times
from tests.live import Run, colocate, masks
from tests.memcached_fixture import DEADLINE_S, Memcached, eventually

pytestmark = pytest.mark.live

ALL = set(os.sched_getaffinity(0))
ENDING = "colocate: already ending"
PROGRAMS = Path(__file__).parent.parent / "programs"
FOLLOW = ("--policy", f"{policies.__file__}:Follow", "--set", "high=0.15", "--set", "low=0.05")
SWAY = ("--policy", f"{policies.__file__}:Sway")


def held(server: Memcached) -> set[int]:
    return os.sched_getaffinity(server.pid)


@pytest.mark.parametrize(
    "numbers",
    [
        [signal.SIGINT],
        [signal.SIGTERM],
        [signal.SIGHUP],
        [signal.SIGINT] * 2,
        [signal.SIGTERM, signal.SIGHUP, signal.SIGINT],
    ],
)
def test_a_signal_ends_it_in_order(stage: Stage, numbers: list[int]) -> None:
    with stage.begin({"spin": "spin 1", "stubborn": "stubborn"}, *SWAY) as run:
        run.until("start spin")
        with stage.injected(15) as fault:
            run.process.send_signal(numbers[0])
            for number in numbers[1:]:
                again(run, number)
            fault.over()
            assert run.end() in {128 + number for number in numbers}, (
                run.errors
            )  # the kernel may tell a later one first
            assert stage.watchman.left() == []
            fault.recovered()
        assert run.log.endswith(" end scheduler\n")
        assert {job["state"] for job in run.summary["jobs"].values()} == {"stopped"}


def again(run: Run, number: int) -> None:
    """A further signal, sent until the run has said that it has come: one that comes too soon is one with the last."""
    said = run.errors.count(ENDING)

    def heard() -> bool:
        if run.errors.count(ENDING) > said:
            return True
        if run.process.poll() is not None:  # it was quicker than we; its exit code tells
            return True
        run.process.send_signal(number)
        return False

    eventually(heard, "the further signal has come")


def test_a_frozen_controller_wakes_to_a_changed_world(stage: Stage) -> None:
    """Nobody puts anything back meanwhile; what it saw before is no reason to shrink; and jobs that ended are seen."""
    server, freeze_s = stage.server, 30.0 if FULL else 3.0
    jobs = {"short": "exit 0 1500", "spin": "spin 1"}
    with pressing(server.port) as press, stage.begin(jobs, *FOLLOW, "--set", "hold_s=0.5") as run:
        run.until("start short")
        guard = psutil.Process(int(ask(stage.directory / "state", {"request": "status"})["guard"]))
        with stage.injected(6) as fault:
            run.process.send_signal(signal.SIGSTOP)
            before = held(server)
            press.put(1.0)
            with stage.watchman.excused():
                time.sleep(freeze_s)
                assert held(server) == before
                assert guard.is_running()
                run.process.send_signal(signal.SIGCONT)
            fault.over()
            eventually(lambda: held(server) == ALL, "it follows the load again")
            fault.recovered()
            assert in_time(fault.recovery_s or 0.0)
        run.until("end short")
        press.put(0.0)
        run.until("start spin")
        assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []


@contextmanager
def spinners(count: int) -> Iterator[None]:
    """Batch work at normal priority on every core, not ours."""
    running = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


@pytest.mark.parametrize("niceness", [-15, 0, 19])
def test_a_starved_controller_is_late_and_nothing_worse(process_stage: Stage, niceness: int) -> None:
    stage = process_stage
    watch = OFTEN if niceness == 19 else None  # who gets no core keeps none apart, for longer than usual
    with stage.begin({"spin": "spin 1"}, *SWAY, watch=watch) as run:
        run.until("start spin")
        for thread in Path(f"/proc/{run.process.pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)  # it goes before all others by itself
        for _ in range(times(1, 4)):
            with stage.injected(22), spinners(4 * len(ALL)):
                moved, late_s = run.log.count("update_cores memcached"), lateness_s(stage)
                if niceness == 19:  # it may shrink memcached no more: its figures get old
                    eventually(lambda: lateness_s(stage) > late_s + 0.05, "it is late")  # noqa: B023
                else:
                    eventually(lambda: run.log.count("update_cores memcached") > moved + 1, "it moves on")  # noqa: B023
        with stage.injected(22), spinners(4 * len(ALL)):
            assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []
    assert "the safe policy took over" not in " ".join(run.summary["warnings"]), "waiting for a core is no fault"


def lateness_s(stage: Stage) -> float:
    """By how much the ticks of the run in progress were late, all together."""
    told = ask(stage.directory / "state", {"request": "figures"}, patience_s=2 * DEADLINE_S)["meter"]
    return float(told["late"]["sum_s"])  # type: ignore[index, call-overload]  # JSON


def test_a_second_controller_changes_nothing(process_stage: Stage) -> None:
    stage, server = process_stage, process_stage.server
    with stage.begin({"spin": "spin 1"}) as run:
        run.until("start spin")
        state = str(stage.directory / "state")
        for command in [
            ["run", "--memcached-ip", server.ip, "--port", str(server.port), *stage.arguments({"spin": "spin 1"})],
            ["restore"],
        ]:
            with stage.injected(19):
                before = masks(server.pid)
                done = colocate(*command, "--state-dir", state, cwd=stage.directory)
                assert done.returncode == 2
                assert f"another colocate runs here (pid {run.process.pid})" in done.stderr
                assert masks(server.pid) == before
                assert run.process.poll() is None
        assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []


@pytest.mark.parametrize("policy", ["Raises", "Nonsense", "Sleeps"])
def test_a_policy_that_fails_costs_strikes(process_stage: Stage, policy: str) -> None:
    stage, server = process_stage, process_stage.server
    with stage.begin({"one": "spin 1"}, "--policy", f"{policies.__file__}:{policy}") as run, stage.injected(21):
        run.until("safe+policy+takes+over")
        run.until("start one")
        assert held(server)
        status = ask(stage.directory / "state", {"request": "status"})
        assert status["policy"] == "safe"
        assert run.end(signal.SIGTERM) == 143
    assert any("the safe policy took over" in line for line in run.summary["warnings"])
    assert stage.watchman.left() == []


def test_a_policy_that_leaks_until_there_is_no_memory_is_put_away(process_stage: Stage) -> None:
    """With as much address space as it has and 64 MB more, as where a limit of its unit says so."""
    stage = process_stage
    with stage.begin({"one": "spin 1"}, "--policy", f"{policies.__file__}:Leaks") as run, stage.injected(21):
        run.until("start one")
        now = psutil.Process(run.process.pid).memory_info().vms
        psutil.Process(run.process.pid).rlimit(psutil.RLIMIT_AS, (now + (64 << 20), now + (64 << 20)))
        run.until("safe+policy+takes+over")
        assert "MemoryError" in run.log
        assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []


def test_a_slow_client_of_the_control_socket_holds_nothing_up(process_stage: Stage) -> None:
    stage, server = process_stage, process_stage.server
    talk = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(b'{'); "
    talk += "time.sleep(600)"
    control = stage.directory / "state/control"
    with pressing(server.port) as press, stage.begin({"spin": "spin 1"}, *FOLLOW) as run:
        run.until("start spin")
        clients = [subprocess.Popen(["python3", "-c", talk, control]) for _ in range(3)]
        try:
            with stage.injected(23) as fault:
                press.put(1.0)
                fault.over()
                eventually(lambda: held(server) == ALL, "memcached has all cores")
                fault.recovered()
                assert (fault.recovery_s or 0.0) < 1.9, "sooner than one silent client is given up"
                assert ask(stage.directory / "state", {"request": "status"})["running"] is True
        finally:
            for client in clients:
                client.kill()
                client.wait()
        assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []


def test_a_job_that_floods_its_output_fills_no_disk(stage: Stage) -> None:
    with stage.begin({"flood": "flood"}) as run:
        run.until("start flood")
        with stage.injected(23):
            time.sleep(1.0)
            if stage.client is not None:
                limits = stage.container("flood").attrs["HostConfig"]["LogConfig"]["Config"]
                assert limits == {"max-size": "1m", "max-file": "1"}
            assert run.end(signal.SIGTERM) == 143
            assert stage.watchman.left() == []


@pytest.fixture(scope="module")
def wallclock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that shifts the wall clock of one program."""
    library, source = tmp_path_factory.mktemp("clock") / "wallclock.so", PROGRAMS / "wallclock.c"
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def test_the_wall_clock_jumps_by_an_hour(process_stage: Stage, wallclock: Path) -> None:
    stage, offset = process_stage, process_stage.directory / "offset"
    offset.write_bytes(struct.pack("l", 0))
    env = {"LD_PRELOAD": str(wallclock), "WALLCLOCK": str(offset)}
    with pressing(stage.server.port) as press, stage.begin({"spin": "spin 1"}, *FOLLOW, env=env) as run:
        run.until("start spin")
        for jump_s in (-3600, 3600):
            with stage.injected(6) as fault, offset.open("r+b") as file:
                file.write(struct.pack("l", jump_s))
                file.flush()
                clock = [sys.executable, "-c", "import datetime; print(datetime.datetime.now().timestamp())"]
                shown_s = subprocess.check_output(clock, env={**os.environ, **env}, text=True)
                assert abs(float(shown_s) - time.time() - jump_s) < 60, "Python sees it"
                fault.over()
                press.put(1.0)
                eventually(lambda: held(stage.server) == ALL, "it follows the load")
                fault.recovered()
                press.put(0.0)
                eventually(lambda: held(stage.server) != ALL, "down, too")
        assert run.end(signal.SIGTERM) == 143
    moments = [datetime.fromisoformat(line.split()[0]) for line in run.log.splitlines()]
    assert moments[-1] - moments[0] < timedelta(minutes=50), "no jump shows in the log"
    assert stage.watchman.left() == []


def test_a_port_that_is_taken_shows_nothing_and_begins_nothing(process_stage: Stage) -> None:
    stage, server = process_stage, process_stage.server
    with socket.create_server(("127.0.0.1", 0)) as taken, stage.watched(), stage.injected(23):
        where = ["--memcached-ip", server.ip, "--port", str(server.port), "--state-dir", str(stage.directory / "state")]
        web = f"127.0.0.1:{taken.getsockname()[1]}"
        done = colocate("run", *where, *stage.arguments({"spin": "spin 1"}), "--web", web, cwd=stage.directory)
        assert done.returncode == 2, done.stderr
        assert web in done.stderr.splitlines()[-1]
        assert stage.watchman.left() == []
