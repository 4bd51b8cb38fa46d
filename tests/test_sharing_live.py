"""Memcached's cores shared for real: a memcached in a control group of its own, real containers and processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from colocate.cores import format_ranges
from colocate.eventlog import violations
from colocate.host.cgroup import JobCgroup, find_place
from colocate.host.containers import ContainerRuntime
from colocate.host.engine import cgroup_driver
from colocate.host.find import find
from colocate.host.latency import Probe as LatencyProbe
from colocate.host.live import Doorbell, LiveHost, Service
from colocate.host.memcached import ServiceAffinity
from colocate.host.monitor import ResourceMonitor
from colocate.host.processes import ProcessRuntime
from colocate.host.sharing import Means, Sharing, choose_here
from colocate.host.sharing_probe import Probe
from colocate.host.sharing_proof import Verdict, arrange, driver
from colocate.host.statistics import Statistics
from colocate.jobs import JobEventKind, JobSpec
from colocate.move import Move, MoveKind
from colocate.view import Observation
from tests.live import catalogue, colocate, masks, running
from tests.memcached_fixture import Memcached, eventually, running_memcached
from tests.test_runtime_contract import ALL, PATIENCE_S, A, B, DockerRig, ProcessRig

pytestmark = pytest.mark.live

KINDS = JobEventKind
SHARES = """\
from colocate.policy import Plan, Policy


class Shares(Policy):
    def decide(self, view):
        jobs = dict.fromkeys(view.jobs, 0)
        return Plan(1, jobs, share=frozenset(jobs) if view.can_share else frozenset())
"""


def into(group: Path, pid: int) -> None:
    """A process with all its threads; under version 1 `cgroup.procs` does that, too."""
    (group / "cgroup.procs").write_text(str(pid))


@contextlib.contextmanager
def standing(server: Memcached, *above: str) -> Iterator[None]:
    """The server in a group of the test's own at that place of the CPU controller's hierarchy."""
    before = find_place(server.pid, "cpu")
    assert before
    group = before.mount.joinpath(*above, f"test-{secrets.token_hex(4)}")
    group.mkdir(parents=True)
    try:
        into(group, server.pid)
        yield
    finally:
        into(before.path, server.pid)
        eventually(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        group.rmdir()


@pytest.fixture(params=["as it is", "a group of its own", "beside the containers"])
def server(request: pytest.FixtureRequest) -> Iterator[Memcached]:
    beside = {"cgroupfs": ["docker"], "systemd": ["system.slice"]}[cgroup_driver()]
    with running_memcached() as made, contextlib.ExitStack() as stack:
        if request.param != "as it is":
            stack.enter_context(standing(made, *(beside if request.param == "beside the containers" else [])))
        yield made


def ours(run_id: str) -> list[Path]:
    """The control groups of a run that are there."""
    names = tuple(f"colocate{dash}{name}" for dash, name in (("-", run_id), ("_", run_id.replace("-", "_"))))
    groups = (Path(group) for group, _, _ in os.walk("/sys/fs/cgroup"))  # others' may vanish meanwhile
    return [group for group in groups if group.name.startswith(names)]


def arranged(server: Memcached, runtime: str, run_id: str) -> tuple[Sharing, Verdict, list[str]]:
    groups: list[str] = []
    sharing, verdict = arrange(server.pid, (server.ip, server.port), runtime, run_id, ALL, groups.extend)
    assert sharing is not None, verdict
    return sharing, verdict, groups


def apart(server: Memcached) -> bool:
    """Whether plain processes meet it as part of a group in which we stand ourselves, so that nothing can be done."""
    us, them = find_place("self", "cpu"), find_place(server.pid, "cpu")
    assert us
    assert them
    return them.parts[: len(us.parts)] != us.parts


@pytest.mark.parametrize("runtime", ["docker", "process"])
def test_it_is_proved_here_and_leaves_nothing(server: Memcached, runtime: str) -> None:
    run_id = f"test-{secrets.token_hex(4)}"
    before = masks(server.pid)
    if runtime == "process" and apart(server):
        sharing, verdict = arrange(server.pid, (server.ip, server.port), runtime, run_id, ALL, lambda groups: None)
        assert sharing is None
        assert "competes with /" in str(verdict)
        return
    sharing, verdict, groups = arranged(server, runtime, run_id)
    assert verdict.works
    assert verdict.sleeper
    assert verdict.sleeper.well
    assert verdict.sleeper.alone_us > 0
    assert verdict.service
    assert verdict.service.well
    assert str(verdict).startswith("can share memcached's cores: ")
    assert {str(path) for path in ours(run_id)} <= set(groups)  # as a killed run would leave them
    assert sharing.close() == []
    assert ours(run_id) == []
    assert masks(server.pid) == before


def test_without_idle_priority_the_proof_fails(server: Memcached) -> None:
    run_id = f"test-{secrets.token_hex(4)}"
    sharing = Sharing(choose_here(server.pid, driver("docker"), run_id))
    try:
        sharing.open()
        with Probe(sharing) as probe:
            assert probe.sleeper(ALL).well
            group = JobCgroup.of(probe._spinner.pid)
            competes = JobCgroup(weight=group.weight if sharing.mechanism.means is Means.JOB else group.weight.parent)
            competes.take_back(lowest=False)
            eventually(lambda: not probe.sleeper(ALL).well, "at equal weight it shows")
            for one in (group, competes):
                one.close()
    finally:
        assert sharing.close() == []
    assert ours(run_id) == []


@pytest.fixture
def docker_rig(
    server: Memcached, docker_client: docker.DockerClient, behave_image: str
) -> Iterator[tuple[DockerRig, Sharing]]:
    made = DockerRig(docker_client, behave_image)
    sharing, _, _ = arranged(server, "docker", made.run_id)
    made.runtime = ContainerRuntime(made.run_id, made.bell.set, sharing=sharing)
    try:
        made.runtime.prepare([made.spec("spin", "1")], lambda what, share: None)
        yield made, sharing
    finally:
        made.runtime.close("stop", PATIENCE_S)
        made.clean()
        assert sharing.close() == []
        assert ours(made.run_id) == []


def idle_group(rig: DockerRig, sharing: Sharing) -> Path:
    """The group whose weight counts."""
    place = find_place(rig.pid("job"), "cpu")
    assert place
    assert place.path.parent == sharing.mechanism.mount.joinpath(*sharing.mechanism.parent)
    return place.path if sharing.mechanism.means is Means.JOB else place.path.parent


def test_a_container_keeps_its_idle_priority_whatever_docker_does(docker_rig: tuple[DockerRig, Sharing]) -> None:
    rig, sharing = docker_rig
    rig.run("spin", "2", cores=A | B)
    idle = idle_group(rig, sharing) / "cpu.idle"
    assert idle.read_text().strip() == "1"
    for cores in (A, B):  # each until Docker has recorded it, too
        rig.wished(rig.runtime.resize("job", cores), KINDS.RESIZED)
        recorded = format_ranges(cores)
        rig.until(lambda recorded=recorded: rig.inspect()["HostConfig"]["CpusetCpus"] == recorded)
        rig.until(lambda: rig.runtime.look()["job"].idle is True)
        assert idle.read_text().strip() == "1"
    rig.wished(rig.runtime.pause("job"), KINDS.PAUSED)
    rig.until(lambda: rig.inspect()["State"]["Paused"])
    rig.wished(rig.runtime.resume("job"), KINDS.RESUMED)
    rig.until(lambda: not rig.inspect()["State"]["Paused"])
    rig.until(lambda: rig.runtime.look()["job"].idle is True)
    assert idle.read_text().strip() == "1"


def test_what_somebody_takes_is_given_again_and_told(docker_rig: tuple[DockerRig, Sharing]) -> None:
    rig, sharing = docker_rig
    rig.run("spin", "1")
    idle = idle_group(rig, sharing) / "cpu.idle"
    rig.until(lambda: rig.runtime.look()["job"].idle is True)
    idle.write_text("0")
    rig.until(lambda: rig.runtime.look()["job"].idle is True)
    assert idle.read_text().strip() == "1"
    assert "idle priority" in rig.wait("job", KINDS.CHANGED).detail
    rig.client.api.update_container(f"colocate-{rig.run_id}-job", cpuset_cpus=format_ranges(B))
    rig.until(lambda: rig.runtime.look()["job"].idle is True)
    assert idle.read_text().strip() == "1"


def test_a_container_that_is_left_has_its_weight_back(docker_rig: tuple[DockerRig, Sharing]) -> None:
    rig, sharing = docker_rig
    rig.run("spin", "1")
    group = idle_group(rig, sharing)
    assert rig.runtime.close("leave", PATIENCE_S) == []
    left = sharing.close(wait_s=0.0)
    assert any(str(group) in line for line in left) == (sharing.mechanism.means is Means.RUN)
    assert (group / "cpu.idle").read_text().strip() == "0"
    assert rig.left() == {"job": "running"}


@pytest.mark.parametrize("cgroups", [True, False])
def test_plain_processes_give_way_too(behave_binary: Path, cgroups: bool) -> None:
    with running_memcached() as server:
        rig = ProcessRig(behave_binary, cgroups=cgroups)
        mechanism = choose_here(server.pid, "process", rig.run_id)
        if not cgroups:
            ourselves = find_place("self", "cpu")
            assert ourselves
            mechanism = type(mechanism)(
                Means.THREADS, "process", ourselves.mount, ourselves.parts, ourselves.parts, ourselves.parts, "x"
            )
        sharing = Sharing(mechanism)
        runtime = ProcessRuntime(
            rig.run_id, rig.bell.set, workdir=behave_binary.parent, cgroups=cgroups, sharing=sharing
        )
        rig.runtime = runtime
        try:
            sharing.open()
            rig.run("fork", cores=A)
            rig.until(lambda: len(rig.pids()) == 3)
            assert rig.runtime.look()["job"].idle is True
            if mechanism.means is Means.RUN:
                idle = mechanism.mount.joinpath(*mechanism.parent) / "cpu.idle"
                assert idle.read_text().strip() == "1"
                idle.write_text("0")
            else:
                assert {os.sched_getscheduler(pid) for pid in rig.pids()} == {os.SCHED_IDLE}
                for pid in rig.pids():
                    os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
            assert rig.runtime.look()["job"].idle is True
            assert "idle priority" in rig.wait("job", KINDS.CHANGED).detail
            if mechanism.means is Means.THREADS:
                assert {os.sched_getscheduler(pid) for pid in rig.pids()} == {os.SCHED_IDLE}
                assert runtime.close("leave", PATIENCE_S) == []
                assert {os.sched_getscheduler(pid) for pid in rig.pids()} == {os.SCHED_OTHER}
        finally:
            rig.runtime.close("stop", PATIENCE_S)
            rig.clean()
            assert sharing.close() == []


@contextlib.contextmanager
def live_host(server: Memcached, directory: Path, run_id: str, sharing: Sharing) -> Iterator[LiveHost]:
    """This computer, with one job as a plain process that runs."""
    doorbell = Doorbell()
    runtime = ProcessRuntime(run_id, doorbell.ring, workdir=directory, sharing=sharing)
    jobs = {"one": JobSpec("one", "none", ("sleep", "600"), directory=directory)}
    service = Service(
        server.ip, server.port, ServiceAffinity(find(server.ip, server.port)), Statistics(server.ip, server.port),
        LatencyProbe(server.ip, server.port),
    )  # fmt: skip
    host = LiveHost(service, runtime, jobs, ResourceMonitor(ALL), doorbell, remember=lambda _: None, sharing=sharing)
    try:
        assert host.observe().can_share
        host.act(Move(MoveKind.CREATE, "one", A, 1))
        host.act(Move(MoveKind.START, "one", A, 1))
        yield host
    finally:
        assert host.close("stop") == []


def observed(host: LiveHost, wanted: Callable[[Observation], object]) -> list[Observation]:
    """What is seen until it is so, and the two looks after that."""
    seen: list[Observation] = []

    def look() -> object:
        seen.append(host.observe())
        return wanted(seen[-1])

    for _ in range(3):
        eventually(look, "it is seen")
    return seen


def told(seen: list[Observation]) -> list[str]:
    return [remark for one in seen for remark in one.remarks]


def test_a_host_shares_until_idle_priority_is_lost_for_good(tmp_path: Path) -> None:
    run_id = f"test-{secrets.token_hex(4)}"
    with running_memcached() as server:
        right = Sharing(choose_here(server.pid, "process", run_id))
        right.open()
        with live_host(server, tmp_path, run_id, right) as host:
            seen = observed(host, lambda one: "one" in one.jobs)
            assert seen[-1].can_share
            assert told(seen) == []
        # This one looks for the jobs where they do not stand: it can neither find nor give what they should have.
        wrong = Sharing(replace(right.mechanism, means=Means.JOB, parent=("elsewhere",)))
        with live_host(server, tmp_path, run_id, wrong) as host:
            seen = observed(host, lambda one: "one" in one.jobs)
            assert not seen[-1].can_share
            assert told(seen) == ["memcached's cores are not shared any more: one has not kept its idle priority"]
    assert ours(run_id) == []


def test_a_memcached_that_comes_back_elsewhere_ends_the_sharing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = f"test-{secrets.token_hex(4)}"
    with running_memcached() as server:
        sharing = Sharing(choose_here(server.pid, "process", run_id))
        sharing.open()
        before = server.pid
        monkeypatch.setattr(sharing, "fits", lambda pid: pid == before)
        with live_host(server, tmp_path, run_id, sharing) as host:
            server.restart()
            seen = observed(host, lambda one: one.service.alive and one.service.pid != before)
            assert not seen[-1].can_share
            assert told(seen) == [
                "memcached's cores are not shared any more: memcached or the jobs stand in another control group now"
            ]


def idle_priority(pid: int, memcached: int) -> bool:
    """Whether a process has idle priority where it and memcached compete, read from the kernel's files alone."""
    one, other = find_place(pid, "cpu"), find_place(memcached, "cpu")
    assert one
    assert other
    apart = next((n for n, part in enumerate(one.parts) if other.parts[n : n + 1] != (part,)), None)
    if os.sched_getscheduler(pid) == os.SCHED_IDLE:
        return True
    assert apart is not None
    return (one.mount.joinpath(*one.parts[: apart + 1]) / "cpu.idle").read_text().strip() == "1"


JOB = f"spin{secrets.token_hex(4)}"  # nobody else's job has this name


def job_pids(client: docker.DockerClient) -> list[int]:
    """The first process of the job, in whichever runtime."""
    found = [c.attrs["State"]["Pid"] for c in client.containers.list(filters={"label": f"colocate.job={JOB}"})]
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"/{JOB}\0" in (entry / "environ").read_bytes().decode(errors="replace"):
                found.append(int(entry.name))
    return found


@pytest.fixture(params=["docker", "process"])
def shared_run(request: pytest.FixtureRequest, tmp_path: Path, behave_binary: Path, behave_image: str) -> list[str]:
    """Arguments of a run whose policy shares."""
    (tmp_path / "shares.py").write_text(SHARES)
    program = "/behave" if request.param == "docker" else "./behave"
    directory = behave_binary.parent if request.param == "process" else None
    file = catalogue(tmp_path / "jobs.toml", behave_image, {JOB: f"{program} spin 2"}, directory)
    return ["--jobs", str(file), "--runtime", request.param, "--policy", "shares.py:Shares"]


@pytest.fixture
def own_server() -> Iterator[Memcached]:
    with running_memcached() as made:
        yield made


def test_a_policy_that_shares_has_the_job_on_memcacheds_cores(
    tmp_path: Path, own_server: Memcached, shared_run: list[str], docker_client: docker.DockerClient
) -> None:
    with running(tmp_path, own_server, *shared_run) as run:
        run.until(f"start {JOB}")
        service = {int(core) for core in re.search(r"start memcached \[([\d,]+)\]", run.log)[1].split(",")}
        started = {int(core) for core in re.search(rf"start {JOB} \[([\d,]+)\]", run.log)[1].split(",")}
        assert started <= service
        (pid,) = job_pids(docker_client)
        assert os.sched_getaffinity(pid) == started
        assert all(mask == service for mask in masks(own_server.pid).values())
        assert idle_priority(pid, own_server.pid)
        assert run.end(signal.SIGTERM) == 143
    assert run.log.count("can+share+memcached") == 1
    assert violations(run.log) == []
    (metrics,) = run.logs.glob("*.jsonl")
    first = json.loads(metrics.read_text().splitlines()[0])
    assert first["sharing"]["works"] is True
    assert first["sharing"]["sleeper"]["alone_us"] > 0
    eventually(lambda: not job_pids(docker_client), "it is gone")


def test_killed_and_restored_nothing_is_left(
    tmp_path: Path, own_server: Memcached, shared_run: list[str], docker_client: docker.DockerClient
) -> None:
    with running(tmp_path, own_server, "--no-guard", *shared_run) as run:
        run.until(f"start {JOB}")
        run.process.kill()
        run.process.wait()
    saved = json.loads((tmp_path / "state/state.json").read_text())
    assert saved["groups"]
    done = colocate("restore", "--state-dir", str(tmp_path / "state"), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["failed"] == []
    assert ours(saved["run"]) == []
    eventually(lambda: not job_pids(docker_client), "it is gone")


@pytest.mark.parametrize(("option", "why"), [("--no-share", "--no-share"), ("--dry-run", "a+dry+run")])
def test_where_it_is_not_wanted_cores_are_exclusive(
    tmp_path: Path, own_server: Memcached, behave_image: str, option: str, why: str
) -> None:
    (tmp_path / "shares.py").write_text(SHARES.replace(" if view.can_share else frozenset()", ""))
    file = catalogue(tmp_path / "jobs.toml", behave_image, {"spin": "/behave spin 2"})
    arguments = ["--jobs", str(file), "--policy", "shares.py:Shares", option]
    with running(tmp_path, own_server, *arguments) as run:
        run.until("exclusive+cores+only")
        assert run.end(signal.SIGTERM) == 143
    assert re.search(rf"cannot\+share\+memcached\S*{re.escape(why)}", run.log), run.log
    assert " start spin " not in run.log
    assert violations(run.log) == []


@pytest.mark.parametrize("state", ["spinning", "stopped"])
def test_the_workers_end_with_whoever_started_them(state: str) -> None:
    program = "import os, sys\nfrom colocate.host import sharing_probe\n"
    program += "stack = sharing_probe.contextlib.ExitStack()\n"
    program += "worker = stack.enter_context(sharing_probe._worker([], 'spin'))\n"
    program += "sharing_probe._tell(worker, 'go')\n"
    if state == "stopped":
        program += "worker.send_signal(sharing_probe.signal.SIGSTOP)\n"
    program += "print(worker.pid, flush=True)\nos.kill(os.getpid(), 9)"
    died = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL
    worker = int(died.stdout)

    def gone() -> bool:
        try:
            return b"sharing_worker" not in Path(f"/proc/{worker}/cmdline").read_bytes()
        except OSError:
            return True

    eventually(gone, "the spinner has ended")
