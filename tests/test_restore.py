"""What a killed run has left is removed, by an engine that is slow, too."""

from __future__ import annotations

import os
import resource
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest

from colocate.eventlog import SchedulerLogger
from colocate.host.control import ask
from colocate.host.engine import CALL_TIMEOUT_S, RUN_LABEL
from colocate.host.lock import claim
from colocate.host.proctree import MARK, marked_runs
from colocate.host.restore import remove_all, remove_containers, restore
from colocate.host.state import Saved, StateFile, boot_id
from tests.faults.engine import proxied
from tests.live import catalogue, colocate, running
from tests.memcached_fixture import eventually, running_memcached

pytestmark = pytest.mark.live


@pytest.fixture
def slow_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's engine, which takes longer over a removal than an ordinary call may take."""
    with proxied() as engine:
        engine.slow, engine.delay_s = b"DELETE ", CALL_TIMEOUT_S + 0.5
        monkeypatch.setenv("DOCKER_HOST", engine.url)
        yield


@contextmanager
def leftover(client: docker.DockerClient, image: str) -> Iterator[tuple[str, str, Callable[[], bool]]]:
    """A container of a run: the run's id, its name, and whether it is there."""
    run_id = f"test-{secrets.token_hex(4)}"
    name = f"colocate-{run_id}-job"
    labels = {RUN_LABEL: run_id, "colocate.job": "job"}
    made = client.api.create_container(image, ["/behave", "exit", "0", "0"], name=name, labels=labels)

    def there() -> bool:
        return bool(client.api.containers(all=True, filters={"id": made["Id"]}))

    try:
        yield run_id, name, there
    finally:
        if there():
            client.api.remove_container(made["Id"], force=True)


@pytest.mark.usefixtures("slow_engine")
def test_a_slow_removal_is_waited_for(docker_client: docker.DockerClient, behave_image: str) -> None:
    with leftover(docker_client, behave_image) as (run_id, name, there):
        assert remove_containers(run_id) == ([f"container {name} removed"], [])
        assert not there()


@pytest.mark.usefixtures("slow_engine")
def test_of_all_runs_those_that_go_on_elsewhere_keep_their_containers(
    docker_client: docker.DockerClient, behave_image: str
) -> None:
    with leftover(docker_client, behave_image) as (run_id, name, there):
        with claim(f"run-{run_id}"):
            done, _ = remove_containers(None)
            assert there()
            assert not any(name in line for line in done)
        done, _ = remove_containers(None)
        assert f"container {name} removed" in done


def test_of_all_runs_those_that_are_over_lose_their_processes() -> None:
    run_id = secrets.token_hex(4)
    with subprocess.Popen(["sleep", "600"], env={**os.environ, MARK: f"{run_id}/nap"}) as nap:
        try:
            eventually(lambda: run_id in marked_runs(), "it has its mark")
            with claim(f"run-{run_id}"):
                remove_all()
                assert nap.poll() is None
            done, _ = remove_all()
            assert nap.wait() == -signal.SIGKILL
        finally:
            nap.kill()
    assert "nap: its processes killed" in done


@pytest.mark.parametrize("command", ["restore", "status"])
def test_a_state_directory_that_no_run_has_used_is_refused(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("")
    for name, what in (("none", "no such directory"), ("file", "not a directory")):
        done = colocate(command, "--state-dir", str(tmp_path / name), cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(f"colocate: --state-dir {tmp_path / name}: {what}; ")
        assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def saved(run: str, log: Path, *, keeps_jobs: bool = False) -> Saved:
    """State of a run whose memcached has ended."""
    gone = {"pid": os.getpid(), "start_ticks": 1, "masks": {str(os.getpid()): "0"}}
    return Saved(run, boot_id(), "docker", str(log), gone, keeps_jobs=keeps_jobs)


def test_jobs_that_were_to_be_left_are_left(
    docker_client: docker.DockerClient, behave_image: str, tmp_path: Path
) -> None:
    with leftover(docker_client, behave_image) as (run_id, name, there):
        assert restore(saved(run_id, tmp_path / "none", keeps_jobs=True)) == (["that memcached has ended"], [])
        assert there()
        done, failed = restore(saved(run_id, tmp_path / "none"))
        assert f"container {name} removed" in done
        assert (there(), failed) == (False, [])


def test_a_log_is_closed_whatever_its_last_line_is(tmp_path: Path) -> None:
    log = SchedulerLogger(tmp_path)
    log.custom_event("scheduler", "it begins")
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + b"2026-11-26T01:02:03 custom one \xff\xfe")
    done, failed = restore(saved("none", log.path))
    assert (done, failed) == (["that memcached has ended", f"{log.path} closed"], [])
    closed = log.path.read_bytes()
    assert closed.startswith(whole)
    assert closed.endswith(b" end scheduler\n")
    assert b"\xff" not in closed
    assert restore(saved("none", log.path))[0] == ["that memcached has ended"], "once is enough"


def test_a_log_on_a_full_disk_keeps_its_lines_and_holds_nothing_up(tmp_path: Path) -> None:
    log = SchedulerLogger(tmp_path)
    whole = log.path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole), before[1]))
    try:
        done, failed = restore(saved("none", log.path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (done, failed) == (["that memcached has ended", f"{log.path} has no last line: File too large"], [])
    assert log.path.read_bytes() == whole


def test_a_run_that_could_not_put_all_back_leaves_its_jobs_if_it_was_to(
    tmp_path: Path, docker_client: docker.DockerClient, behave_image: str
) -> None:
    jobs = catalogue(tmp_path / "jobs.toml", behave_image, {"spin": "/behave spin 1"})
    with running_memcached() as server, proxied() as engine:
        arguments = ("--jobs", str(jobs), "--policy", "static", "--no-share", "--on-exit", "pause", "--no-guard")
        with running(tmp_path, server, *arguments, env={"DOCKER_HOST": engine.url}) as run:
            run.until("start spin")
            run_id = ask(tmp_path / "state", {"request": "status"})["run"]
            engine.broken = True
            assert run.end(signal.SIGTERM) == 1
    filters = {"label": f"{RUN_LABEL}={run_id}"}
    try:
        left = StateFile(tmp_path / "state").read()
        assert left is None or left.keeps_jobs
        assert colocate("restore", "--state-dir", str(tmp_path / "state"), cwd=tmp_path).returncode == 0
        assert len(docker_client.api.containers(all=True, filters=filters)) == 1
    finally:
        for one in docker_client.api.containers(all=True, filters=filters):
            docker_client.api.remove_container(one["Id"], force=True)
