"""The guard puts the machine back when its controller dies, and only then; `status` tells what is held."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import docker
import psutil
import pytest

from colocate.eventlog import violations
from colocate.host.control import ask
from colocate.host.proctree import marked
from tests.live import Run, catalogue, colocate, masks, over, running
from tests.memcached_fixture import Memcached, eventually, running_memcached

pytestmark = pytest.mark.live

WHOLE_CORES = ("--policy", "static", "--no-share")


@pytest.fixture
def server():
    with running_memcached() as made:
        yield made


@pytest.fixture(params=["docker", "process"])
def spinning(request, tmp_path: Path, behave_binary: Path) -> list[str]:
    """The arguments of a run with one job that never ends."""
    if request.param == "docker":
        image = request.getfixturevalue("behave_image")
        file = catalogue(tmp_path / "jobs.toml", image, {"spin": "/behave spin 1"})
    else:
        file = catalogue(tmp_path / "jobs.toml", "none", {"spin": "./behave spin 1"}, behave_binary.parent)
    return ["--jobs", str(file), "--runtime", request.param, *WHOLE_CORES]


def status(run: Run, tmp_path: Path) -> dict:
    return ask(tmp_path / "state", {"request": "status"})


def containers(client: docker.DockerClient, run_id: str) -> list[str]:
    return [c.name for c in client.containers.list(all=True, filters={"label": f"colocate.run={run_id}"})]


def test_a_killed_controller_is_cleaned_up_after(
    tmp_path: Path, server: Memcached, spinning: list[str], docker_client: docker.DockerClient
) -> None:
    original = masks(server.pid)
    with running(tmp_path, server, *spinning) as run:
        run.until("start spin")
        told = status(run, tmp_path)
        guard = psutil.Process(told["guard"])
        run.process.kill()
        run.process.wait()
        eventually(lambda: over(guard), "the guard has ended")
    assert (containers(docker_client, told["run"]), masks(server.pid)) == ([], original)
    assert not (tmp_path / "state/state.json").exists()
    assert run.log.endswith(" end scheduler\n")
    assert violations(run.log) == []
    said = (tmp_path / "state/guard.log").read_text()
    assert "memcached's affinity restored" in said
    assert "not put back" not in said


def test_a_controller_that_hangs_is_left_alone_and_goes_on(
    tmp_path: Path, server: Memcached, spinning: list[str]
) -> None:
    with running(tmp_path, server, *spinning) as run:
        run.until("start spin")
        guard, held = psutil.Process(status(run, tmp_path)["guard"]), masks(server.pid)
        run.process.send_signal(signal.SIGSTOP)
        with pytest.raises(psutil.TimeoutExpired):
            guard.wait(3.0)  # that nothing happens can only be waited for
        assert masks(server.pid) == held
        assert (tmp_path / "state/guard.log").read_text() == ""
        run.process.send_signal(signal.SIGCONT)
        assert run.end(signal.SIGTERM) == 143
        assert not psutil.pid_exists(guard.pid)


def test_it_waits_for_the_lock_that_somebody_else_has_meanwhile(
    tmp_path: Path, server: Memcached, spinning: list[str], docker_client: docker.DockerClient
) -> None:
    """Another user's run, a `restore` that fails for want of an engine: none of them puts back what is this run's."""
    original = masks(server.pid)
    with running(tmp_path, server, *spinning) as run, ExitStack() as stack:
        run.until("start spin")
        run_id = status(run, tmp_path)["run"]
        lock = stack.enter_context((tmp_path / "state/lock").open())
        queue = threading.Thread(target=fcntl.flock, args=(lock, fcntl.LOCK_EX))
        queue.start()
        run.process.kill()
        run.process.wait()
        queue.join()
        time.sleep(1.5)  # at least once in that time the guard asks for the lock, and may not have it
        assert (tmp_path / "state/state.json").exists() or not containers(docker_client, run_id)
        fcntl.flock(lock, fcntl.LOCK_UN)
        eventually(lambda: not (tmp_path / "state/state.json").exists(), "the guard puts back all the same")
    assert (containers(docker_client, run_id), masks(server.pid)) == ([], original)


@pytest.mark.parametrize("who", ["colocate.host.guard", "somebody"])
def test_a_run_waits_for_a_guard_that_is_putting_back_and_for_nobody_else(
    tmp_path: Path, server: Memcached, spinning: list[str], who: str
) -> None:
    hold = (
        "import fcntl, sys\nlock = open(sys.argv[2])\nfcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print(flush=True)\nsys.stdin.read()"
    )
    lock = tmp_path / "state/lock"
    lock.parent.mkdir()
    lock.touch()
    argv = [sys.executable, "-c", hold, who, lock]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with running(tmp_path, server, *spinning) as run:
            if who == "somebody":
                assert run.end() == 2
                assert "another colocate runs here" in run.errors
            else:
                time.sleep(1.5)
                assert run.process.poll() is None
            holder.communicate()
            if who != "somebody":
                run.until("start spin")
                assert run.end(signal.SIGTERM) == 143


def test_no_code_beside_the_user_is_run_as_the_user(tmp_path: Path, server: Memcached, spinning: list[str]) -> None:
    (tmp_path / "select.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    original = masks(server.pid)
    with running(tmp_path, server, *spinning, program=("-P", "-m", "colocate")) as run:
        run.until("start spin")
        run.process.kill()
        run.process.wait()
        eventually(lambda: not (tmp_path / "state/state.json").exists(), "the guard has put all back")
    assert masks(server.pid) == original
    assert not (tmp_path / "run").exists()


def test_a_run_that_ends_in_order_takes_its_guard_with_it(
    tmp_path: Path, server: Memcached, spinning: list[str]
) -> None:
    with running(tmp_path, server, *spinning) as run:
        run.until("start spin")
        guard = status(run, tmp_path)["guard"]
        assert os.getsid(guard) == guard  # a Ctrl-C on the run's terminal does not reach it
        assert run.end(signal.SIGINT) == 130
        assert not psutil.pid_exists(guard)


def test_a_guard_outlives_what_systemd_sends_to_all_of_a_unit(
    tmp_path: Path, server: Memcached, spinning: list[str]
) -> None:
    original = masks(server.pid)
    with running(tmp_path, server, *spinning) as run:
        run.until("start spin")
        guard = psutil.Process(status(run, tmp_path)["guard"])
        run.process.kill()
        guard.terminate()
        run.process.wait()
        eventually(lambda: not (tmp_path / "state/state.json").exists(), "the guard has put all back")
    assert masks(server.pid) == original


def test_a_guard_that_is_killed_has_a_successor(
    tmp_path: Path, server: Memcached, spinning: list[str], docker_client: docker.DockerClient
) -> None:
    original = masks(server.pid)
    with running(tmp_path, server, *spinning) as run:
        run.until("start spin")
        told = status(run, tmp_path)
        first = told["guard"]
        os.kill(first, signal.SIGKILL)
        eventually(lambda: status(run, tmp_path)["guard"] not in (first, None), "there is another guard")
        assert "the guard has ended (-9); another one is there" in run.errors
        run.process.kill()
        run.process.wait()
        eventually(lambda: not (tmp_path / "state/state.json").exists(), "it has put all back")
    assert (containers(docker_client, told["run"]), masks(server.pid)) == ([], original)


def test_a_state_file_that_makes_no_sense_is_told_and_left_alone_while_its_run_goes_on(
    tmp_path: Path, server: Memcached, spinning: list[str], docker_client: docker.DockerClient
) -> None:
    """Also by a `restore` that is refused; and if the run is killed then, its jobs end all the same."""
    state, original = ("--state-dir", str(tmp_path / "state")), masks(server.pid)
    file = tmp_path / "state/state.json"
    with running(tmp_path, server, *spinning) as run:
        run.until("start spin")
        run_id, good = status(run, tmp_path)["run"], file.read_bytes()
        guard = psutil.Process(status(run, tmp_path)["guard"])
        file.write_bytes(good[:-9])
        refused = colocate("restore", *state, cwd=tmp_path)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "another colocate runs here" in refused.stderr
        run.process.kill()
        run.process.wait()
        eventually(lambda: over(guard), "the guard has ended")
    assert file.read_bytes() == good[:-9]
    assert containers(docker_client, run_id) == []
    assert marked(run_id) == {}
    told = colocate("status", *state, cwd=tmp_path)
    assert (told.returncode, "makes no sense" in told.stdout) == (1, True)
    assert file.exists()
    done = colocate("restore", *state, cwd=tmp_path)
    assert (done.returncode, "is not known" in done.stderr) == (1, True)
    assert file.with_suffix(".corrupt").read_bytes() == good[:-9]
    assert "nothing was left behind" in colocate("restore", *state, cwd=tmp_path).stdout
    file.write_bytes(good)
    assert colocate("restore", *state, cwd=tmp_path).returncode == 0
    assert masks(server.pid) == original


def test_without_a_guard_status_tells_what_is_left_until_it_is_put_back(
    tmp_path: Path, server: Memcached, spinning: list[str]
) -> None:
    state = ("--state-dir", str(tmp_path / "state"))
    (tmp_path / "state").mkdir(mode=0o700)
    idle = colocate("status", *state, cwd=tmp_path)
    assert (idle.returncode, idle.stdout) == (0, "no run in progress, nothing is held\n")
    with running(tmp_path, server, "--no-guard", *spinning) as run:
        run.until("start spin")
        told = json.loads(colocate("status", "--json", *state, cwd=tmp_path).stdout)
        assert told["running"] is True
        assert told["pid"] == run.process.pid
        assert told["guard"] is None
        assert told["service"]["pid"] == server.pid
        assert set(told["service"]["cores"]) == masks(server.pid)[server.pid]
        assert told["jobs"]["spin"]["state"] == "running"
        text = colocate("status", *state, cwd=tmp_path).stdout
        assert f"pid {run.process.pid}" in text
        assert "no guard" in text
        run.process.kill()
        run.process.wait()
    with (tmp_path / "state/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = colocate("status", *state, cwd=tmp_path)
    assert (held.returncode, "does not answer" in held.stdout) == (0, True)
    assert held.stdout.startswith(f"pid {os.getpid()} of {psutil.Process().username()}, since 2")
    left = colocate("status", *state, cwd=tmp_path)
    assert left.returncode == 1
    assert told["run"] in left.stdout
    assert f"memcached  pid {server.pid} had the cores " in left.stdout
    assert "colocate restore" in left.stdout
    assert colocate("restore", *state, cwd=tmp_path).returncode == 0
    assert colocate("status", *state, cwd=tmp_path).returncode == 0


def test_a_demo_that_is_killed_takes_its_memcached_with_it(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom colocate.demo import private_memcached\n"
        "with private_memcached(2) as (port, pid):\n    print(pid, flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        memcached = psutil.Process(int(demo.stdout.readline()))
        assert memcached.name() == "memcached"
        assert os.geteuid() != 0 or memcached.username() == "nobody"
        demo.kill()
    eventually(lambda: over(memcached), "it has ended")
