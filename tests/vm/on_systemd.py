"""What only a machine with systemd shows: services that come and go, our own unit, a CPU that is unplugged.

Started by `tests/vm/inside` in the machine that `tests/vm/run` boots; memcached is the distribution's own service.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import docker
import psutil
import pytest

from colocate.cores import parse_ranges
from colocate.eventlog import violations
from colocate.host.cgroup import JobCgroup
from colocate.host.control import ask
from tests.live import Run, catalogue, colocate, masks, one_mask, running

ROOT = Path(__file__).parents[2]
UNIT = "colocate.service"
STATE = Path("/run/colocate")
CPUS = Path("/sys/devices/system/cpu")
ALL = {0, 1, 2, 3}
PATIENCE_S = 300.0
SPLIT = ("--policy", "static", "--set", "service_cores=1", "--no-share")


def in_time(condition: Callable[[], object], what: str) -> None:
    """As `eventually`, with the patience for a machine that is emulated beside other work."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, f"never came true: {what}\n{journal()}"
        time.sleep(0.1)


class Service:
    """memcached as the distribution runs it, with what `tests.live` needs to know of one."""

    ip, port = "127.0.0.1", 11211

    @property
    def pid(self) -> int:
        return int(systemctl("show", "memcached", "-p", "MainPID", "--value"))


def systemctl(*arguments: str) -> str:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr, journal())
    return done.stdout.strip()


def journal() -> str:
    argv = ["journalctl", "--no-pager", "-n", "30", "-u", UNIT]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def shown(name: str, unit: str = UNIT) -> str:
    return systemctl("show", unit, "-p", name, "--value")


@pytest.fixture
def service() -> Iterator[Service]:
    systemctl("reset-failed")
    systemctl("start", "memcached")
    made = Service()
    in_time(lambda: made.pid and psutil.Process(made.pid).name() == "memcached", "memcached runs")
    assert set(map(frozenset, masks(made.pid).values())) == {frozenset(ALL)}
    yield made
    assert set(map(frozenset, masks(made.pid).values())) == {frozenset(ALL)}, "given back"


@pytest.fixture
def jobs(tmp_path: Path, behave_image: str) -> Path:
    return catalogue(tmp_path / "jobs.toml", behave_image, {"spin": "/behave spin 1", "other": "/behave spin 1"})


def containers(client: docker.DockerClient) -> list:
    return client.containers.list(all=True, filters={"label": "colocate.run"})


def pids(client: docker.DockerClient) -> set[int]:
    """The first processes of what runs of ours."""
    running_now = client.containers.list(filters={"label": "colocate.run"})
    return {container.attrs["State"]["Pid"] for container in running_now}


def container_of(client: docker.DockerClient, job: str):
    (found,) = client.containers.list(filters={"label": f"colocate.job={job}"})
    return found


def right(run: Run, tmp_path: Path, client: docker.DockerClient, service: Service) -> bool:
    """Whether the kernel shows what the run says: memcached's cores, each job's, nothing empty."""
    told = ask(tmp_path / "state", {"request": "status"})
    if set(told["service"]["cores"]) != masks(service.pid).get(service.pid) or not told["can_share"]:
        return False
    for name, job in told["jobs"].items():
        if job["state"] != "running":
            return False
        pid = container_of(client, name).attrs["State"]["Pid"]
        group = Path("/sys/fs/cgroup") / Path(f"/proc/{pid}/cgroup").read_text().strip().split(":", 2)[2].lstrip("/")
        if set(job["cores"]) != one_mask(pid) or (group / "cpu.idle").read_text().strip() != "1":
            return False
    return True


def test_a_daemon_reload_in_the_middle_leaves_everything_right(
    tmp_path: Path, service: Service, jobs: Path, docker_client: docker.DockerClient
) -> None:
    with running(tmp_path, service, "--jobs", str(jobs)) as run:
        run.until("start other")
        in_time(lambda: right(run, tmp_path, docker_client, service), "all is right")
        systemctl("daemon-reload")
        systemctl("set-property", "--runtime", "memcached.service", "MemoryHigh=1G")  # systemd writes its groups anew
        in_time(lambda: right(run, tmp_path, docker_client, service), "all is right again")
        assert run.end(signal.SIGTERM) == 143, run.errors
    assert violations(run.log) == []
    assert containers(docker_client) == []


def test_an_update_by_docker_takes_idle_priority_and_it_is_given_again(
    tmp_path: Path, service: Service, jobs: Path, docker_client: docker.DockerClient
) -> None:
    with running(tmp_path, service, "--jobs", str(jobs)) as run:
        run.until("start other")
        in_time(lambda: right(run, tmp_path, docker_client, service), "all is right")
        container_of(docker_client, "spin").update(cpuset_cpus="3")
        container_of(docker_client, "other").update(cpuset_cpus="0-3")
        in_time(lambda: right(run, tmp_path, docker_client, service), "all is right again")
        assert run.end(signal.SIGTERM) == 143, run.errors
    assert "foreign_changes" in run.log


def test_memcached_restarted_by_systemd_is_pinned_again(tmp_path: Path, service: Service, jobs: Path) -> None:
    with running(tmp_path, service, "--jobs", str(jobs), "--policy", "static") as run:
        run.until("start spin")
        pinned, before = one_mask(service.pid), service.pid
        assert pinned < ALL
        systemctl("restart", "memcached")
        assert service.pid != before
        run.until("restarted")
        in_time(lambda: all(mask == pinned for mask in masks(service.pid).values()), "pinned again")
        assert run.end(signal.SIGTERM) == 143, run.errors
    assert violations(run.log) == []


def test_an_engine_restarted_by_systemd_loses_no_job(
    tmp_path: Path, service: Service, jobs: Path, docker_client: docker.DockerClient
) -> None:
    with running(tmp_path, service, "--jobs", str(jobs), "--retries", "5") as run:
        run.until("start other")
        in_time(lambda: right(run, tmp_path, docker_client, service), "all is right")
        before = pids(docker_client)
        systemctl("restart", "docker")

        def both_run() -> bool:
            told = ask(tmp_path / "state", {"request": "status"})
            return {job["state"] for job in told["jobs"].values()} == {"running"} and len(
                pids(docker_client) - before
            ) == 2

        try:
            in_time(both_run, "both jobs run again")
        except AssertionError as error:
            pytest.fail(f"{error}\n{run.log}\n{run.errors}")
        assert one_mask(service.pid) == set(ask(tmp_path / "state", {"request": "status"})["service"]["cores"])
        assert run.end(signal.SIGTERM) == 143, run.errors
    assert violations(run.log) == []
    assert {job["state"] for job in run.summary["jobs"].values()} == {"stopped"}
    assert containers(docker_client) == []


def plugged(cpu: int, *, into: bool) -> None:
    (CPUS / f"cpu{cpu}/online").write_text("1" if into else "0")


def apart(held: list[set[int]]) -> bool:
    """Whether memcached, which comes first, shares no core with a job."""
    return not held[0] & set().union(*held[1:])


def held(client: docker.DockerClient, service: Service) -> list[set[int]]:
    """memcached's cores, and those of each job that is not paused."""
    found = [one_mask(service.pid)]
    for pid in pids(client):
        with closing(JobCgroup.of(pid)) as group:
            found += [] if group.frozen() else [one_mask(pid)]
    return found


@pytest.mark.parametrize(("managed", "cpu"), [("0-3", 1), ("0-3", 3), ("1-3", 1)])
def test_a_cpu_that_goes_and_comes_back(
    tmp_path: Path, service: Service, jobs: Path, docker_client: docker.DockerClient, managed: str, cpu: int
) -> None:
    """A job's, one of a job's two, and memcached's, which is the first that is managed."""
    left = parse_ranges(managed) - {cpu}
    with running(tmp_path, service, "--jobs", str(jobs), "--cores", managed, *SPLIT) as run:
        run.until("start other")
        run.until("start spin")
        assert any(cpu in cores for cores in held(docker_client, service))
        try:
            plugged(cpu, into=False)

            def right_again() -> bool:
                now = held(docker_client, service)
                return len(now) > 1 and apart(now) and all(cores and cores <= left for cores in now)

            in_time(right_again, "memcached and the jobs are apart, on cores that are there")
            assert f"cores+%5B{cpu}%5D+are+offline" in run.log
            for _ in range(20):
                assert right_again()
                assert run.process.poll() is None, run.errors
                time.sleep(0.2)
        finally:
            plugged(cpu, into=True)
        run.until("are+online+again")
        in_time(lambda: cpu in set().union(*held(docker_client, service)[1:]), "a job uses it again")
        in_time(lambda: apart(held(docker_client, service)), "apart")
        assert run.end(signal.SIGTERM) == 143, run.errors
    assert violations(run.log) == []
    assert containers(docker_client) == []


def test_a_run_that_ends_while_a_cpu_is_away_gives_back_what_there_is(
    tmp_path: Path, service: Service, jobs: Path, docker_client: docker.DockerClient
) -> None:
    with running(tmp_path, service, "--jobs", str(jobs), *SPLIT) as run:
        run.until("start other")
        try:
            plugged(3, into=False)
            run.until("are+offline")
            assert run.end(signal.SIGTERM) == 143, run.errors
            assert one_mask(service.pid) == ALL - {3}
        finally:
            plugged(3, into=True)
            systemctl("restart", "memcached")  # a kernel before 6.2 has forgotten that it was on all
    assert violations(run.log) == []
    assert containers(docker_client) == []
    assert not (tmp_path / "state/state.json").exists()


def test_nobody_leaves_the_cores_that_the_run_may_manage(
    tmp_path: Path, service: Service, jobs: Path, docker_client: docker.DockerClient
) -> None:
    with running(tmp_path, service, "--jobs", str(jobs), "--cores", "1-2", *SPLIT) as run:
        run.until("start spin")

        def inside() -> bool:
            assert run.process.poll() is None, run.errors
            return all(one_mask(pid) <= {1, 2} for pid in (service.pid, *pids(docker_client)))

        for _ in range(20):
            assert inside()
            time.sleep(0.1)
        for tid in masks(service.pid):
            os.sched_setaffinity(tid, ALL)
        container_of(docker_client, "spin").update(cpuset_cpus="0-3")
        in_time(inside, "who was moved outside by somebody is back")
        assert "pinned+again" in run.log
        systemctl("restart", "memcached")
        in_time(inside, "a memcached that is started again, too")
        assert run.end(signal.SIGTERM) == 143, run.errors
    assert containers(docker_client) == []


@pytest.fixture
def unit(service: Service, jobs: Path, docker_client: docker.DockerClient) -> Iterator[str]:
    """Our own unit, as the documentation installs it; not started."""
    subprocess.run(["install", "-m", "644", ROOT / "docs/systemd" / UNIT, f"/etc/systemd/system/{UNIT}"], check=True)
    subprocess.run(["install", "-D", "-m", "644", jobs, "/etc/colocate/jobs.toml"], check=True)
    Path("/etc/colocate/colocate.toml").write_text('memcached-ip = "127.0.0.1"\njobs = "/etc/colocate/jobs.toml"\n')
    systemctl("daemon-reload")
    yield UNIT
    subprocess.run(["systemctl", "stop", UNIT], check=False)
    subprocess.run(["rm", "-rf", f"/etc/systemd/system/{UNIT}.d"], check=True)
    systemctl("daemon-reload")
    assert containers(docker_client) == []
    assert not (STATE / "state.json").exists()


def drop_in(text: str) -> None:
    Path(f"/etc/systemd/system/{UNIT}.d").mkdir(exist_ok=True)
    Path(f"/etc/systemd/system/{UNIT}.d/test.conf").write_text(f"[Service]\n{text}\n")
    systemctl("daemon-reload")


def started(client: docker.DockerClient) -> None:
    """Our unit, up to where both jobs run."""
    systemctl("start", UNIT)  # returns once it has said that it is ready
    assert shown("ActiveState") == "active"
    in_time(lambda: len(client.containers.list(filters={"label": "colocate.run"})) == 2, "both jobs run")


def test_the_unit_starts_ready_is_alive_and_stops_in_order(
    unit: str, service: Service, docker_client: docker.DockerClient
) -> None:
    started(docker_client)
    in_time(lambda: "2 jobs run" in shown("StatusText"), "its status tells of the jobs")
    told = ask(STATE, {"request": "status"})
    assert told["pid"] == int(shown("MainPID"))
    assert told["can_share"], "nothing of the hardening forbids it"
    assert os.getpriority(os.PRIO_PROCESS, told["pid"]) == -15
    group = Path("/sys/fs/cgroup/system.slice") / f"docker-{container_of(docker_client, 'spin').id}.scope"
    assert (group / "cpu.idle").read_text().strip() == "1"
    systemctl("stop", UNIT)
    assert (shown("ActiveState"), shown("Result")) == ("inactive", "success"), journal()
    log = sorted(Path("/var/log/colocate").glob("log*.txt"))[-1].read_text()
    assert log.endswith(" end scheduler\n")
    assert violations(log) == []


def test_the_unit_killed_is_put_back_by_systemd_and_begins_anew(
    unit: str, service: Service, docker_client: docker.DockerClient
) -> None:
    drop_in("RestartSec=20s")
    started(docker_client)
    before = int(shown("MainPID"))
    os.kill(before, signal.SIGKILL)
    in_time(lambda: shown("SubState") == "auto-restart", "it waits for its restart")
    assert containers(docker_client) == []
    assert one_mask(service.pid) == ALL
    in_time(lambda: shown("ActiveState") == "active" and int(shown("MainPID")) not in {0, before}, "it runs again")
    systemctl("stop", UNIT)


def test_the_unit_that_hangs_is_killed_by_the_watchdog_and_put_back(
    unit: str, service: Service, docker_client: docker.DockerClient
) -> None:
    drop_in("Restart=no")
    started(docker_client)
    os.kill(int(shown("MainPID")), signal.SIGSTOP)
    in_time(lambda: shown("ActiveState") == "failed", "the watchdog has bitten")
    assert shown("Result") == "watchdog"
    assert containers(docker_client) == []
    assert one_mask(service.pid) == ALL


def test_with_its_guard_killed_first_systemd_still_puts_back(
    unit: str, service: Service, docker_client: docker.DockerClient
) -> None:
    command = re.search(r"ExecStart=(.*)", (ROOT / "docs/systemd" / UNIT).read_text())[1]
    drop_in(f"ExecStart=\nExecStart={command.replace(' --no-guard', '')}\nRestart=no")
    started(docker_client)
    told = ask(STATE, {"request": "status"})
    os.kill(told["guard"], signal.SIGKILL)
    assert ask(STATE, {"request": "status"})["pid"] == told["pid"], "the run goes on"
    os.kill(told["pid"], signal.SIGKILL)
    in_time(lambda: shown("ActiveState") == "failed", "systemd has seen its end")
    assert containers(docker_client) == []
    assert one_mask(service.pid) == ALL


def test_bad_options_fail_the_unit_at_once_and_for_good(unit: str, service: Service) -> None:
    Path("/etc/colocate/colocate.toml").write_text('memcached-ip = "127.0.0.1"\ncolour = "red"\n')
    done = subprocess.run(["systemctl", "start", UNIT], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert (shown("ActiveState"), shown("ExecMainStatus")) == ("failed", "2")
    assert "unknown key 'colour'" in journal()


def test_systemd_finds_little_to_say_about_the_unit(unit: str) -> None:
    argv = ["systemd-analyze", "security", "--json=short", UNIT]
    subprocess.run(["systemd-analyze", "verify", f"/etc/systemd/system/{UNIT}"], check=True)
    rows = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    overall = subprocess.run([*argv[:2], UNIT, "--no-pager"], capture_output=True, text=True, check=True).stdout
    exposure = float(re.search(r"Overall exposure level for colocate.service: ([\d.]+)", overall)[1])
    sys.stderr.write(f"systemd-analyze security: {exposure}, {len(rows)} rows\n")
    assert exposure <= 3.0


def test_a_user_with_one_capability_and_a_delegated_group(
    tmp_path: Path, service: Service, behave_binary: Path
) -> None:
    """The third set-up of docs/operations.md, with version 2 of the control groups."""
    subprocess.run(["useradd", "--system", "--create-home", "plain"], check=True)
    try:
        home = Path("/home/plain")
        for place in (behave_binary.parent, *behave_binary.parents[:3]):
            if place != Path("/tmp"):  # noqa: S108
                place.chmod(place.stat().st_mode | 0o055)
        catalogue(home / "jobs.toml", "none", {"spin": "./behave spin 1"}, behave_binary.parent)
        argv = [
            "systemd-run", "--unit=plain", "--uid=plain", "-p", "AmbientCapabilities=CAP_SYS_NICE",
            "-p", "Delegate=yes", "-p", "RuntimeDirectory=plain", "-p", f"WorkingDirectory={home}",
            "-E", "XDG_RUNTIME_DIR=/run/plain", "/opt/colocate/bin/colocate", "run", "--memcached-ip", "127.0.0.1",
            "--memcached-pid", str(service.pid), "--runtime", "process", "--jobs", "jobs.toml", "--policy", "static",
        ]  # fmt: skip
        for end in ("stop", "kill -9"):
            subprocess.run(argv, check=True, capture_output=True)
            in_time(lambda: one_mask(service.pid) < ALL, "memcached is pinned")
            pid = int(shown("MainPID", "plain"))
            own = Path("/sys/fs/cgroup/system.slice/plain.service")
            in_time(lambda: list(own.glob("colocate-*/spin")), "its job stands in a group of its own")  # noqa: B023
            spin = next(int(one) for one in next(own.glob("colocate-*/spin/cgroup.procs")).read_text().split())
            in_time(lambda: not one_mask(spin) & one_mask(service.pid), "beside memcached")  # noqa: B023
            assert os.getpriority(os.PRIO_PROCESS, pid) == -15
            if end == "stop":
                systemctl("stop", "plain")
            else:
                os.kill(pid, signal.SIGKILL)  # systemd sends SIGTERM to the rest of the unit, the guard among it
                in_time(lambda: shown("ActiveState", "plain") == "failed", "the guard has ended, too")
            assert set(map(frozenset, masks(service.pid).values())) == {frozenset(ALL)}
            assert not psutil.pid_exists(spin)
            subprocess.run(["systemctl", "reset-failed", "plain"], check=False, capture_output=True)
    finally:
        subprocess.run(["systemctl", "stop", "plain"], check=False, capture_output=True)
        subprocess.run(["systemctl", "reset-failed", "plain"], check=False, capture_output=True)
        subprocess.run(["userdel", "--remove", "plain"], check=False, capture_output=True)


def test_status_and_restore_find_nothing_left(tmp_path: Path) -> None:
    assert colocate("status", cwd=tmp_path).stdout == "no run in progress, nothing is held\n"
    assert parse_ranges((CPUS / "online").read_text().strip()) == ALL
