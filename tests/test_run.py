"""A whole run, live: real memcached, real containers and real processes, as a user starts it."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import docker
import pytest

from colocate.cores import parse_ranges
from colocate.eventlog import violations
from colocate.session import Settings, session
from tests.live import catalogue, colocate, masks, one_mask
from tests.live import running as running_with
from tests.memcached_fixture import eventually, running_memcached

pytestmark = pytest.mark.live

KERNEL = "./run -a run -S {} -p {} -i test -n {{threads}}"
SUITES = {"blackscholes": "parsec", "canneal": "parsec", "streamcluster": "parsec", "radix": "splash2x"}
FOUR = {name: KERNEL.format(suite, name) for name, suite in SUITES.items()}
ALL = set(os.sched_getaffinity(0))


def running(tmp_path, server, *arguments):
    """A run that gives whole cores: these tests are not about sharing, which `test_sharing_live.py` tries."""
    return running_with(tmp_path, server, "--policy", "reactive", "--no-share", *arguments)


@pytest.fixture
def server():
    with running_memcached() as made:
        yield made


@pytest.fixture(params=["docker", "process"])
def jobs_of(request, tmp_path, behave_binary):
    """Writes a catalogue for one of the two runtimes; the arguments for it."""

    def make(jobs, *, own=True):
        image = request.getfixturevalue("behave_image") if own else "colocate/workloads"
        prefix = "/behave" if request.param == "docker" else "./behave"
        lines = {name: f"{prefix} {line}" if own else line for name, line in jobs.items()}
        file = catalogue(tmp_path / "jobs.toml", image, lines, behave_binary.parent if own else None)
        return ["--jobs", str(file), "--runtime", request.param]

    return make


def ours(client: docker.DockerClient) -> set[str]:
    return {c.name for c in client.containers.list(all=True, filters={"label": "colocate.run"})}


def test_all_jobs_end_and_the_log_obeys_every_rule(tmp_path, server, jobs_of, docker_client):
    before, original = ours(docker_client), masks(server.pid)
    with running(tmp_path, server, *jobs_of(FOUR, own=False)) as run:
        assert run.end() == 0, run.errors
    assert violations(run.log) == []
    assert run.summary["complete"] is True
    assert {name: job["state"] for name, job in run.summary["jobs"].items()} == dict.fromkeys(FOUR, "finished")
    assert run.summary["makespan_s"] > 0
    assert (ours(docker_client), masks(server.pid)) == (before, original)
    assert not (tmp_path / "state/state.json").exists()


def test_while_it_runs_nobody_shares_a_core_with_memcached(tmp_path, server, jobs_of):
    with running(tmp_path, server, *jobs_of({"spin": "spin 2", "other": "spin 2"})) as run:
        run.until("start spin")
        service = {int(c) for c in re.findall(r"\d+", re.search(r"start memcached \[([\d,]+)\]", run.log)[1])}
        eventually(lambda: set().union(*masks(server.pid).values()) == service, "every thread is pinned")
        started = re.search(r"start spin \[([\d,]+)\]", run.log)[1]
        assert not service & {int(c) for c in started.split(",")}
        assert run.end(signal.SIGTERM) == 143


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_puts_everything_back(tmp_path, server, jobs_of, docker_client, number, code):
    before, original = ours(docker_client), masks(server.pid)
    with running(tmp_path, server, *jobs_of({"spin": "spin 2", "stubborn": "stubborn"})) as run:
        run.until("start spin")
        assert run.end(number) == code
    assert (ours(docker_client), masks(server.pid)) == (before, original)
    assert violations(run.log) == []
    assert "custom spin stopped" in run.log
    assert run.log.endswith(" end scheduler\n")
    assert run.summary["exit_code"] == code
    assert not alive("behave spin 2", run.process.pid)


def alive(command: str, parent: int) -> list[int]:
    """Processes of a command that belong to that run or to nobody any more."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            owner = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if command in words and owner in {parent, 1}:
            found.append(int(directory.name))
    return found


def test_kill_minus_nine_and_restore(tmp_path, server, jobs_of, docker_client):
    before, original = ours(docker_client), masks(server.pid)
    with running(tmp_path, server, "--no-guard", *jobs_of({"spin": "spin 2"})) as run:
        run.until("start spin")
        run.process.kill()
        run.process.wait()
    assert masks(server.pid) != original or len(ALL) == 1
    done = colocate("restore", "--state-dir", str(tmp_path / "state"), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["failed"] == []
    assert run.log.endswith(" end scheduler\n")
    assert violations(run.log) == []
    assert (ours(docker_client), masks(server.pid)) == (before, original)
    eventually(lambda: not alive("behave spin 2", run.process.pid), "the job is gone")
    again = colocate("restore", "--state-dir", str(tmp_path / "state"), cwd=tmp_path)
    assert (again.returncode, again.stdout) == (0, "nothing was left behind\n")


def test_after_kill_minus_nine_the_next_run_puts_back_what_was_there_first(tmp_path, server, jobs_of, docker_client):
    before, original = ours(docker_client), masks(server.pid)
    arguments = ["--no-guard", *jobs_of({"spin": "spin 1"})]
    with running(tmp_path, server, *arguments) as run:
        run.until("start spin")
        run.process.kill()
        run.process.wait()
    with running(tmp_path, server, *arguments, "--once") as run:
        assert run.end() == 0, run.errors
    assert "left by an earlier run" in run.errors
    assert (ours(docker_client), masks(server.pid)) == (before, original)


def test_a_job_that_fails_is_retried_then_reported_and_the_others_go_on(tmp_path, server, jobs_of):
    with running(tmp_path, server, *jobs_of({"bad": "exit 3 10", "good": "exit 0 10"}), "--retries", "1") as run:
        assert run.end() == 1
    assert {name: job["state"] for name, job in run.summary["jobs"].items()} == {"bad": "failed", "good": "finished"}
    assert run.summary["jobs"]["bad"]["retries"] == 1
    assert violations(run.log) == []
    assert "end bad" not in run.log
    assert run.log.count(" start bad ") == 1


def test_when_the_duration_is_over_the_exit_code_says_so(tmp_path, server, jobs_of):
    with running(tmp_path, server, *jobs_of({"spin": "spin 1"}), "--duration", "1s") as run:
        assert run.end() == 3, run.errors
    assert violations(run.log) == []


def test_what_is_left_runs_where_docker_says_it_does(tmp_path, server, behave_image, docker_client):
    file = catalogue(tmp_path / "jobs.toml", behave_image, {"left": "/behave spin 2"})
    try:
        with running(tmp_path, server, "--jobs", str(file), "--on-exit", "leave") as run:
            run.until("start left")
            assert run.end(signal.SIGINT) == 130
        (container,) = docker_client.containers.list(filters={"label": "colocate.job=left"})
        assert container.status == "running"
        recorded = parse_ranges(container.attrs["HostConfig"]["CpusetCpus"])
        assert one_mask(container.attrs["State"]["Pid"]) == recorded
        assert "left running" in run.log.replace("+", " ")
    finally:
        for container in docker_client.containers.list(all=True, filters={"label": "colocate.job=left"}):
            container.remove(force=True)


def test_paused_jobs_stay_only_where_that_was_asked_for(tmp_path, server, behave_image, docker_client):
    file = catalogue(tmp_path / "jobs.toml", behave_image, {"kept": "/behave spin 2"})
    try:
        with running(tmp_path, server, "--jobs", str(file), "--on-exit", "pause") as run:
            run.until("start kept")
            assert run.end(signal.SIGINT) == 130
        (container,) = docker_client.containers.list(all=True, filters={"label": "colocate.job=kept"})
        assert container.status == "paused"
    finally:
        for container in docker_client.containers.list(all=True, filters={"label": "colocate.job=kept"}):
            container.remove(force=True)


def test_memcached_restarted_in_the_middle_is_found_and_pinned_again(tmp_path, server, jobs_of):
    with running(tmp_path, server, *jobs_of({"spin": "spin 1"})) as run:
        run.until("start spin")
        pinned = one_mask(server.pid)
        server.restart()
        run.until("restarted")
        eventually(lambda: all(mask == pinned for mask in masks(server.pid).values()), "pinned again")
        assert run.end(signal.SIGINT) == 130
    assert all(mask == ALL for mask in masks(server.pid).values())
    assert violations(run.log) == []


def test_foreign_changes_are_put_right_and_logged(tmp_path, server, behave_image, docker_client):
    file = catalogue(tmp_path / "jobs.toml", behave_image, {"moved": "/behave spin 1"})
    with running(tmp_path, server, "--jobs", str(file)) as run:
        run.until("start moved")
        pinned = one_mask(server.pid)
        subprocess.run(["taskset", "-acp", ",".join(map(str, ALL)), str(server.pid)], check=True, capture_output=True)
        eventually(lambda: all(mask == pinned for mask in masks(server.pid).values()), "pinned again")
        (container,) = docker_client.containers.list(filters={"label": "colocate.job=moved"})
        pid = container.attrs["State"]["Pid"]
        own = one_mask(pid)
        container.update(cpuset_cpus=",".join(map(str, pinned)))
        eventually(lambda: one_mask(pid) == own, "moved back")
        container.pause()
        run.until("somebody+else")
        eventually(lambda: container.reload() or container.status == "running", "goes on")
        assert run.end(signal.SIGINT) == 130
    assert "foreign_changes" in run.log
    assert violations(run.log) == []


def test_a_container_removed_by_somebody_is_reported_not_finished(tmp_path, server, behave_image, docker_client):
    file = catalogue(tmp_path / "jobs.toml", behave_image, {"victim": "/behave spin 1"})
    with running(tmp_path, server, "--jobs", str(file), "--retries", "0") as run:
        run.until("start victim")
        (container,) = docker_client.containers.list(filters={"label": "colocate.job=victim"})
        container.remove(force=True)
        assert run.end() == 1
    assert run.summary["jobs"]["victim"]["state"] in {"stopped", "failed"}
    assert "end victim" not in run.log


def test_a_dry_run_decides_and_touches_nothing(tmp_path, server, docker_client):
    before, original = ours(docker_client), masks(server.pid)
    with running(tmp_path, server, "--dry-run", "--jobs", "cca-2026") as run:
        run.until("start streamcluster")
        assert (ours(docker_client), masks(server.pid)) == (before, original)
        assert run.end(signal.SIGTERM) == 143
    assert (run.summary["source"], run.summary["dry_run"]) == ("live", True)
    assert violations(run.log) == []
    assert not (tmp_path / "state/state.json").exists()


def test_what_is_refused_late_leaves_nothing_either(tmp_path, server, jobs_of, docker_client):
    before = ours(docker_client), masks(server.pid)
    (tmp_path / "load.txt").write_text("")
    arguments = (*jobs_of({"spin": "spin 1"}), "--latency-from", str(tmp_path / "load.txt"), "--percentile", "94")
    with running(tmp_path, server, *arguments, "--no-guard") as run:
        assert run.end() == 2
    assert "percentile" in run.errors
    assert not (tmp_path / "state/state.json").exists()
    assert (ours(docker_client), masks(server.pid)) == before


def test_a_run_that_is_interrupted_before_it_begins_has_a_last_line(tmp_path, server, jobs_of):
    _, jobs, _, runtime = jobs_of({"spin": "spin 1"})
    state = tmp_path / "state"
    settings = Settings(
        server.ip, server.port, jobs=jobs, runtime=runtime, log_dir=tmp_path, state_dir=state, guard=False
    )

    def interrupted():
        with session(settings):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (log,) = tmp_path.glob("log*.txt")
    assert violations(log.read_text()) == []
    assert not (state / "state.json").exists()


def test_only_the_cores_it_may_manage_are_used(tmp_path, server, jobs_of):
    first, last = min(ALL), max(ALL)
    with running(tmp_path, server, *jobs_of({"spin": "spin 1"}), "--cores", f"{first},{last}") as run:
        run.until("start spin")
        assert run.end(signal.SIGTERM) == 143
    used = {int(core) for cores in re.findall(r"\[([\d,]+)\]", run.log) for core in cores.split(",")}
    assert used <= {first, last}


def test_the_policy_of_the_documentation_works_as_printed(tmp_path, server, jobs_of):
    page = (Path(__file__).parent.parent / "docs/policies.md").read_text()
    (tmp_path / "my.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    command = re.search(r"colocate run --memcached-ip 127.0.0.1 (--policy my.py:Mine.*)\n", page)[1].split()
    with running(tmp_path, server, *jobs_of({"short": "exit 0 50"}), *command) as run:
        assert run.end() == 0, run.errors
    assert run.summary["policy"] == "my.py:Mine"


HANGS = """
import time
from colocate.policy import Policy
class Hangs(Policy):
    def decide(self, view):
        {}
"""
CATCHES = """while True:
            try:
                time.sleep(30)
            except Exception:
                pass"""
HIDES = """try:
            time.sleep(0.4)
        except BaseException:
            pass"""


@pytest.mark.parametrize(
    "body",
    ["time.sleep(30)", CATCHES, HIDES, "raise SystemExit(0)"],
)
def test_a_policy_that_raises_or_hangs_costs_strikes_not_the_run(tmp_path, server, jobs_of, body):
    (tmp_path / "bad.py").write_text(HANGS.format(body))
    with running(tmp_path, server, *jobs_of({"spin": "spin 1"}), "--policy", "bad.py:Hangs") as run:
        run.until("safe+policy+takes+over")
        assert run.end(signal.SIGTERM) == 143
    assert violations(run.log) == []


def test_a_second_controller_is_refused_by_name(tmp_path, server, jobs_of):
    arguments = jobs_of({"spin": "spin 1"})
    with running(tmp_path, server, *arguments) as run:
        run.until("start memcached")
        second = colocate(
            "run", "--memcached-ip", server.ip, "--port", str(server.port), "--state-dir", str(tmp_path / "state"),
            *arguments, cwd=tmp_path,
        )  # fmt: skip
        assert second.returncode == 2
        assert second.stderr == (
            f"colocate: another colocate runs here (pid {run.process.pid}); end it first, or wait for its end\n"
        )
        assert run.end(signal.SIGINT) == 130


def test_options_may_stand_in_a_file(tmp_path, server, jobs_of):
    _, jobs, _, runtime = jobs_of({"short": "exit 0 20"})
    (tmp_path / "colocate.toml").write_text(f'jobs = "{jobs}"\nruntime = "{runtime}"\nslo = "3ms"\n')
    with running(tmp_path, server) as run:
        assert run.end() == 0, run.errors
    assert run.summary["slo_ms"] == pytest.approx(3.0)
