"""What holds for every runtime: Docker containers, processes with and without cgroups, and the public fake.

Containers and processes are tried with idle priority, too, as a run gives it to them to share memcached's cores.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import docker.errors
import psutil
import pytest

from colocate.cores import CoreSet, format_ranges, parse_ranges
from colocate.errors import UserError
from colocate.host.cgroup import JobCgroup
from colocate.host.containers import ContainerRuntime, leftover_runs, remove_leftovers
from colocate.host.processes import ProcessRuntime
from colocate.host.proctree import MARK, kill_leftovers, marked
from colocate.host.runtime import Runtime
from colocate.host.sharing import Driver, Sharing, choose_here
from colocate.host.sharing_proof import driver
from colocate.jobs import JobEvent, JobEventKind, JobSpec
from colocate.testing import JobScript, ScriptedRuntime

pytestmark = pytest.mark.live

PATIENCE_S = 60.0  # an emulated machine is ten times slower than a real one
ALL = frozenset(sorted(os.sched_getaffinity(0))[:8])
A, B = frozenset({min(ALL)}), frozenset({max(ALL)})
KINDS = JobEventKind


class Rig:
    """A runtime, with what a test needs to know about it from outside."""

    kind = ""

    def __init__(self, runtime: Runtime, bell: threading.Event, program: str, image: str) -> None:
        self.runtime, self.bell, self.program, self.image = runtime, bell, program, image
        self.seen: list[JobEvent] = []

    def spec(self, *behaviour: str, name: str = "job") -> JobSpec:
        return JobSpec(name, self.image, (self.program, *behaviour))

    def run(self, *behaviour: str, name: str = "job", cores: CoreSet = A) -> None:
        self.runtime.create(self.spec(*behaviour, name=name), 1, ALL)
        self.wait(name, KINDS.CREATED)
        self.runtime.start(name, cores)
        self.wait(name, KINDS.STARTED)

    def wait(self, job: str, *kinds: JobEventKind) -> JobEvent:
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            self.seen += self.runtime.events()
            for place, event in enumerate(self.seen):
                if event.job == job and event.kind in kinds:
                    return self.seen.pop(place)
            self.bell.wait(0.02)
            self.bell.clear()
        raise TimeoutError(f"{job}: no {kinds} but {self.seen}")

    def nothing_more(self) -> list[JobEvent]:
        time.sleep(0.05)
        self.seen += self.runtime.events()
        return self.seen

    def until(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline_s
            self.seen += self.runtime.events()
            time.sleep(0.005)

    def wished(self, answer: bool, kind: JobEventKind, job: str = "job") -> None:
        """A wish is fulfilled at once, or an event tells of it."""
        if not answer:
            self.wait(job, kind)

    def pids(self, job: str = "job") -> list[int]:
        main = psutil.Process(self.pid(job))
        return [main.pid, *(child.pid for child in main.children(recursive=True))]

    def cores(self, job: str = "job") -> set[CoreSet]:
        """The cores that the kernel allows to every thread of every process."""
        found = set()
        for pid in self.pids(job):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    status = (task / "status").read_text()
                    found.add(parse_ranges(status.split("Cpus_allowed_list:")[1].split()[0]))
        return found

    def kill(self, job: str = "job") -> None:
        os.kill(self.pid(job), signal.SIGKILL)

    def pid(self, job: str) -> int:
        raise NotImplementedError

    def left(self) -> dict[str, str]:
        """What is there now of the run, by job: `created`, `running`, `paused`, `exited`."""
        raise NotImplementedError

    def clean(self) -> None:
        raise NotImplementedError


class DockerRig(Rig):
    kind = "docker"

    def __init__(self, client: docker.DockerClient, image: str, *, idle: bool = False) -> None:
        bell = threading.Event()
        self.run_id = f"test-{secrets.token_hex(4)}"
        self.client = client
        self.sharing = idle_beside_us(driver("docker"), self.run_id) if idle else None
        super().__init__(ContainerRuntime(self.run_id, bell.set, sharing=self.sharing), bell, "/behave", image)

    def inspect(self, job: str = "job") -> dict:
        return self.client.api.inspect_container(f"colocate-{self.run_id}-{job}")

    def pid(self, job: str) -> int:
        return self.inspect(job)["State"]["Pid"]

    def left(self) -> dict[str, str]:
        found = self.client.api.containers(all=True, filters={"label": f"colocate.run={self.run_id}"})
        return {one["Labels"]["colocate.job"]: one["State"] for one in found}

    def clean(self) -> None:
        assert remove_leftovers(self.client, self.run_id) == []
        assert self.sharing is None or self.sharing.close() == []


def idle_beside_us(kind: Driver, run_id: str) -> Sharing:
    """Idle priority where jobs meet this very process."""
    sharing = Sharing(choose_here(os.getpid(), kind, run_id))
    sharing.open()
    return sharing


class ProcessRig(Rig):
    kind = "process"

    def __init__(self, program: Path, *, cgroups: bool, idle: bool = False) -> None:
        bell = threading.Event()
        self.run_id = f"test-{secrets.token_hex(4)}"
        self.sharing = idle_beside_us("process", self.run_id) if idle else None
        self.process_runtime = ProcessRuntime(
            self.run_id, bell.set, workdir=program.parent, cgroups=cgroups, sharing=self.sharing
        )
        super().__init__(self.process_runtime, bell, str(program), "none")

    def pid(self, job: str) -> int:
        """The first of its processes, which leads the session."""
        found: list[int] = []

        def seen() -> bool:  # not while it becomes another program: then it has no environment
            found[:] = [pid for pid, of in marked(self.run_id).items() if of == job and os.getsid(pid) == pid]
            return bool(found)

        self.until(seen)
        return found[0]

    def left(self) -> dict[str, str]:
        found = {}
        for pid, job in marked(self.run_id).items():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    group = JobCgroup.of(pid)
                    paused = process.status() == psutil.STATUS_STOPPED or bool(group.frozen())
                    group.close()
                    found[job] = "paused" if paused else "running"
        return found

    def clean(self) -> None:
        kill_leftovers(self.run_id)
        assert not self.left()
        assert self.sharing is None or self.sharing.close() == []
        for base in Path("/sys/fs/cgroup").glob(f"**/colocate-{self.run_id}"):
            raise AssertionError(f"{base} is still there")


class FakeRig(Rig):
    kind = "fake"

    def __init__(self) -> None:
        bell = threading.Event()
        self.fake = ScriptedRuntime(notify=bell.set)
        super().__init__(self.fake, bell, "behave", "none")

    def spec(self, *behaviour: str, name: str = "job") -> JobSpec:
        script = JobScript()
        if behaviour[0] == "exit":
            script = JobScript(ends_after=2, code=int(behaviour[1]))
        if behaviour[0] == "stubborn":
            script = JobScript(ignores_term=5)
        self.fake.script(name, script)
        return super().spec(*behaviour, name=name)

    def cores(self, job: str = "job") -> set[CoreSet]:
        return {self.fake.look()[job].cores or frozenset()}

    def pids(self, job: str = "job") -> list[int]:
        return []

    def kill(self, job: str = "job") -> None:
        self.fake.end(job, 137)

    def left(self) -> dict[str, str]:
        return {name: "paused" if sample.paused else "running" for name, sample in self.fake.left.items()}

    def clean(self) -> None:
        pass


@pytest.fixture(params=["docker", "docker, idle", "process", "process, idle", "process without cgroups", "fake"])
def rig(request: pytest.FixtureRequest, behave_binary: Path) -> Iterator[Rig]:
    made: Rig
    match request.param:
        case "docker" | "docker, idle" as kind:
            client, image = request.getfixturevalue("docker_client"), request.getfixturevalue("behave_image")
            made = DockerRig(client, image, idle=kind.endswith("idle"))
        case "fake":
            made = FakeRig()
        case kind:
            made = ProcessRig(behave_binary, cgroups="without" not in kind, idle=kind.endswith("idle"))
    try:
        made.runtime.prepare([made.spec("spin", "1")], lambda what, share: None)
        yield made
    finally:
        made.runtime.close("stop", PATIENCE_S)
        made.clean()


@pytest.fixture
def docker_rig(docker_client: docker.DockerClient, behave_image: str) -> Iterator[DockerRig]:
    made = DockerRig(docker_client, behave_image)
    try:
        made.runtime.prepare([made.spec("spin", "1")], lambda what, share: None)
        yield made
    finally:
        made.runtime.close("stop", PATIENCE_S)
        made.clean()


def test_a_job_runs_on_its_cores_and_moves(rig: Rig) -> None:
    rig.run("spin", "3", cores=A)
    rig.until(lambda: rig.kind == "fake" or len(psutil.Process(rig.pids()[0]).threads()) == 3)
    assert rig.cores() == {A}
    assert rig.runtime.look()["job"].cores == A
    rig.wished(rig.runtime.resize("job", B), KINDS.RESIZED)
    assert rig.cores() == {B}
    rig.wished(rig.runtime.resize("job", A | B), KINDS.RESIZED)
    assert rig.cores() == {A | B}
    assert rig.runtime.look()["job"].cores == A | B


def test_idle_priority_is_told_where_it_is_asked_for(rig: Rig) -> None:
    rig.run("spin", "1")
    asked_for = getattr(rig, "sharing", None) is not None
    assert rig.runtime.look()["job"].idle is (True if asked_for else None)


def test_its_children_move_and_end_with_it(rig: Rig) -> None:
    rig.run("fork", cores=A | B)
    rig.until(lambda: rig.kind == "fake" or len(rig.pids()) == 3)
    pids = rig.pids()
    rig.wished(rig.runtime.resize("job", B), KINDS.RESIZED)
    assert rig.cores() == {B}
    rig.kill()
    rig.wait("job", KINDS.EXITED)
    rig.until(lambda: not any(map(psutil.pid_exists, pids)))


def test_nothing_of_it_outlives_the_run(rig: Rig) -> None:
    rig.run("escape")
    if rig.kind != "fake":  # a script of the fake's has no grandchildren
        rig.wait("job", KINDS.EXITED)
    assert rig.runtime.close("stop", PATIENCE_S) == []
    assert rig.left() == {}


def test_a_paused_job_stands_still_until_it_is_resumed(rig: Rig) -> None:
    rig.run("spin", "2", cores=A)
    rig.until(lambda: (rig.runtime.look()["job"].cpu_s or 0) > 0.02)
    rig.wished(rig.runtime.pause("job"), KINDS.PAUSED)
    before = rig.runtime.look()["job"]
    assert before.paused

    def stands_still() -> bool:  # but for the moment in which the engine's record is told
        nonlocal before
        last, before = before, rig.runtime.look()["job"]
        time.sleep(0.1)
        rig.runtime.events()
        return rig.runtime.look()["job"] == before == last

    rig.until(stands_still)
    rig.wished(rig.runtime.pause("job"), KINDS.PAUSED)
    rig.wished(rig.runtime.resize("job", B), KINDS.RESIZED)
    assert rig.runtime.look()["job"].paused
    rig.wished(rig.runtime.resume("job"), KINDS.RESUMED)
    assert rig.runtime.look()["job"].paused is False
    assert rig.cores() == {B}
    rig.until(lambda: (rig.runtime.look()["job"].cpu_s or 0) > (before.cpu_s or 0))


def test_after_many_quick_pauses_the_last_wish_holds(rig: Rig) -> None:
    rig.run("spin", "2")
    for _ in range(20):
        rig.runtime.pause("job")
        answer = rig.runtime.resume("job")
    rig.wished(answer, KINDS.RESUMED)
    before_s = rig.runtime.look()["job"].cpu_s or 0
    rig.until(lambda: (rig.runtime.look()["job"].cpu_s or 0) > before_s + 0.05)
    assert rig.runtime.look()["job"].paused is False


def test_a_job_that_waits_for_its_start_is_made_once_and_told_again(rig: Rig) -> None:
    for _ in range(3):
        rig.runtime.create(rig.spec("spin", "1"), 1, ALL)
        rig.wait("job", KINDS.CREATED)
    rig.runtime.start("job", A)
    rig.wait("job", KINDS.STARTED)
    assert rig.nothing_more() == []
    assert rig.cores() == {A}


def test_a_job_that_waits_with_other_threads_is_made_anew(rig: Rig) -> None:
    rig.runtime.create(rig.spec("spin", "1"), 1, ALL)
    rig.wait("job", KINDS.CREATED)
    rig.runtime.create(rig.spec("spin", "1"), 2, ALL)
    if rig.wait("job", KINDS.CREATED, KINDS.GONE).kind is KINDS.GONE:
        rig.runtime.create(rig.spec("spin", "1"), 2, ALL)
        rig.wait("job", KINDS.CREATED)
    rig.runtime.start("job", A)
    rig.wait("job", KINDS.STARTED)
    assert rig.nothing_more() == []


def test_a_wish_during_the_start_comes_true(rig: Rig) -> None:
    rig.runtime.create(rig.spec("spin", "1"), 1, ALL)
    rig.wait("job", KINDS.CREATED)
    rig.runtime.start("job", A)
    resized, paused = rig.runtime.resize("job", B), rig.runtime.pause("job")
    rig.wait("job", KINDS.STARTED)
    rig.wished(resized, KINDS.RESIZED)
    rig.wished(paused, KINDS.PAUSED)
    assert rig.runtime.look()["job"].paused
    assert rig.cores() == {B}


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_code_is_reported_once(rig: Rig, code: int) -> None:
    rig.run("exit", str(code), "30")
    event = rig.wait("job", KINDS.EXITED)
    assert event.code == code
    assert rig.runtime.look() == {}
    assert rig.nothing_more() == []


def test_an_end_at_once_comes_after_the_start(rig: Rig) -> None:
    rig.run("exit", "3", "0")
    assert rig.wait("job", KINDS.EXITED, KINDS.GONE).code == 3


def test_killed_from_outside(rig: Rig) -> None:
    rig.run("spin", "1")
    rig.kill()
    assert rig.wait("job", KINDS.EXITED).code == 137
    assert rig.nothing_more() == []


def test_started_again_after_its_end(rig: Rig) -> None:
    rig.run("exit", "3", "10")
    rig.wait("job", KINDS.EXITED)
    rig.runtime.start("job", B)
    rig.wait("job", KINDS.STARTED)
    assert rig.wait("job", KINDS.EXITED).code == 3
    assert rig.nothing_more() == []


def test_wishes_for_an_ended_job_do_no_harm(rig: Rig) -> None:
    rig.run("exit", "0", "0")
    rig.wait("job", KINDS.EXITED)
    assert not rig.runtime.resize("job", B)
    assert not rig.runtime.pause("job")
    assert not rig.runtime.resume("job")
    rig.runtime.stop("job")
    assert rig.nothing_more() == []


def test_a_paused_job_is_stopped(rig: Rig) -> None:
    rig.run("spin", "1")
    rig.wished(rig.runtime.pause("job"), KINDS.PAUSED)
    rig.runtime.stop("job")
    assert rig.wait("job", KINDS.EXITED, KINDS.GONE).code in {137, 143}
    assert rig.nothing_more() == []


def test_a_job_that_ignores_sigterm_is_stopped(rig: Rig) -> None:
    rig.run("stubborn")
    rig.until(lambda: (rig.runtime.look()["job"].cpu_s or 0) > 0.02)
    rig.runtime.stop("job")
    assert rig.wait("job", KINDS.EXITED, KINDS.GONE).code in {137, 143}


def test_a_job_stopped_before_its_start_is_gone(rig: Rig) -> None:
    rig.runtime.create(rig.spec("spin", "1"), 1, ALL)
    rig.wait("job", KINDS.CREATED)
    rig.runtime.stop("job")
    rig.wait("job", KINDS.GONE)
    assert rig.nothing_more() == []


def test_an_end_is_noticed_soon(rig: Rig) -> None:
    rig.run("spin", "1")
    before_s = time.monotonic()
    rig.kill()
    event = rig.wait("job", KINDS.EXITED)
    assert event.time_s - before_s < 30  # 5 to 30 ms on a real machine; the benchmark says how much


@pytest.mark.parametrize("on_exit", ["stop", "leave", "pause"])
def test_what_the_end_of_a_run_leaves(rig: Rig, on_exit: str) -> None:
    threads_before = set(threading.enumerate())
    rig.run("spin", "1", name="one")
    rig.run("spin", "1", name="two", cores=B)
    rig.wished(rig.runtime.pause("two"), KINDS.PAUSED, "two")
    rig.run("exit", "0", "0", name="over")
    rig.wait("over", KINDS.EXITED)
    rig.runtime.create(rig.spec("spin", "1", name="waiting"), 1, ALL)
    rig.wait("waiting", KINDS.CREATED)
    assert rig.runtime.close(on_exit, PATIENCE_S) == []
    expected = {"stop": {}, "leave": dict.fromkeys(("one", "two"), "running")}
    assert rig.left() == expected.get(on_exit, dict.fromkeys(("one", "two"), "paused"))
    assert rig.runtime.close("stop", 1.0) == []
    assert rig.left() == expected.get(on_exit, dict.fromkeys(("one", "two"), "paused"))
    new = {thread for thread in threading.enumerate() if thread not in threads_before}
    assert not {thread.name for thread in new if thread.name.startswith("colocate")}


def test_neither_threads_nor_files_are_left(behave_binary: Path, behave_image: str) -> None:
    def cycle() -> None:
        client = docker.from_env()  # the session's own keeps as many connections as it once needed at a time
        for rig in (DockerRig(client, behave_image), ProcessRig(behave_binary, cgroups=True)):
            rig.runtime.prepare([rig.spec("spin", "1")], lambda what, share: None)
            rig.run("spin", "1")
            rig.runtime.look()
            assert rig.runtime.close("stop", PATIENCE_S) == []
            rig.clean()
        client.close()

    cycle()
    fds, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    cycle()
    assert len(list(Path("/proc/self/fd").iterdir())) <= fds
    assert threading.active_count() <= threads


def test_a_program_that_is_not_there(rig: Rig) -> None:
    if rig.kind == "fake":
        rig.fake.script("bad", JobScript(start_errors=1))
    spec = JobSpec("bad", rig.image, ("/no/such/program",))
    rig.runtime.create(spec, 1, ALL)
    if rig.wait("bad", KINDS.CREATED, KINDS.FAILED).kind is KINDS.CREATED:
        rig.runtime.start("bad", A)
        assert rig.wait("bad", KINDS.FAILED).detail
    assert rig.runtime.look() == {}


def test_docker_records_what_is_after_many_quick_moves(docker_rig: DockerRig) -> None:
    docker_rig.run("spin", "2")
    for turn in range(50):
        docker_rig.runtime.resize("job", (A, B, A | B)[turn % 3])
    docker_rig.runtime.pause("job")
    last = (A, B, A | B)[49 % 3]

    def agreed() -> bool:
        found = docker_rig.inspect()
        return found["HostConfig"]["CpusetCpus"] == format_ranges(last) and found["State"]["Paused"]

    docker_rig.until(agreed)
    docker_rig.until(lambda: docker_rig.runtime.look()["job"].paused is True)
    assert docker_rig.cores() == {last}
    docker_rig.runtime.resume("job")
    docker_rig.until(lambda: not docker_rig.inspect()["State"]["Paused"])
    docker_rig.until(lambda: docker_rig.runtime.look()["job"].paused is False)
    before_s = docker_rig.runtime.look()["job"].cpu_s or 0
    docker_rig.until(lambda: (docker_rig.runtime.look()["job"].cpu_s or 0) > before_s)  # nothing is left stopped


def test_a_job_does_not_run_while_docker_records_its_pause(docker_rig: DockerRig) -> None:
    docker_rig.run("spin", "2")
    docker_rig.wished(docker_rig.runtime.pause("job"), KINDS.PAUSED)
    before_s = docker_rig.runtime.look()["job"].cpu_s or 0
    docker_rig.until(lambda: docker_rig.inspect()["State"]["Paused"])
    assert (docker_rig.runtime.look()["job"].cpu_s or 0) - before_s < 0.005


def test_a_container_removed_by_somebody_is_gone(docker_rig: DockerRig) -> None:
    docker_rig.run("spin", "1")
    docker_rig.client.api.remove_container(f"colocate-{docker_rig.run_id}-job", force=True)
    docker_rig.wait("job", KINDS.GONE)
    assert docker_rig.nothing_more() == []
    docker_rig.runtime.start("job", A)
    assert "gone" in docker_rig.wait("job", KINDS.FAILED).detail
    docker_rig.run("exit", "0", "0")
    assert docker_rig.wait("job", KINDS.EXITED).code == 0


def test_a_created_container_removed_by_somebody_is_gone(docker_rig: DockerRig) -> None:
    docker_rig.runtime.create(docker_rig.spec("spin", "1"), 1, ALL)
    docker_rig.wait("job", KINDS.CREATED)
    docker_rig.client.api.remove_container(f"colocate-{docker_rig.run_id}-job", force=True)
    docker_rig.wait("job", KINDS.GONE)


def test_containers_are_made_as_promised(docker_rig: DockerRig) -> None:
    docker_rig.runtime.create(docker_rig.spec("spin", "1"), 1, ALL)
    docker_rig.wait("job", KINDS.CREATED)
    host = docker_rig.inspect()["HostConfig"]
    assert host["CpusetCpus"] == format_ranges(ALL)
    assert (host["NetworkMode"], host["CpuShares"]) == ("none", 2)
    assert (host["Privileged"], host["AutoRemove"]) == (False, False)
    assert host["LogConfig"]["Config"]["max-size"] == "1m"


def test_cores_that_docker_refuses(docker_rig: DockerRig) -> None:
    docker_rig.run("spin", "1")
    absent = frozenset({4095})
    assert not docker_rig.runtime.resize("job", absent)
    assert docker_rig.wait("job", KINDS.FAILED).detail
    assert docker_rig.runtime.look()["job"].cores == A
    docker_rig.wished(docker_rig.runtime.resize("job", B), KINDS.RESIZED)


def test_leftovers_are_found_and_removed_frozen_or_not(docker_rig: DockerRig) -> None:
    docker_rig.run("spin", "1")
    docker_rig.runtime.pause("job")
    assert leftover_runs(docker_rig.client)[docker_rig.run_id] == [f"colocate-{docker_rig.run_id}-job"]
    assert remove_leftovers(docker_rig.client, docker_rig.run_id) == []
    assert docker_rig.run_id not in leftover_runs(docker_rig.client)


def test_an_image_that_cannot_be_had_is_named(docker_rig: DockerRig) -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/no/image of job lost .*pull") as caught:
        docker_rig.runtime.prepare([JobSpec("lost", "127.0.0.1:9/no/image", ("x",))], lambda what, share: None)
    assert caught.value.cure


def test_an_engine_that_is_not_there() -> None:
    def nowhere(timeout_s: float) -> docker.DockerClient:
        return docker.DockerClient(base_url="unix:///nonexistent.sock", timeout=1)

    runtime = ContainerRuntime("none", lambda: None, factory=nowhere)
    with pytest.raises(UserError, match="--runtime process"):
        runtime.prepare([], lambda what, share: None)
    assert runtime.close("stop", 1.0) == []


def test_only_what_carries_the_runs_mark_is_killed(behave_binary: Path) -> None:
    others = {**os.environ, MARK: "another-run/job"}
    bystanders = [psutil.Popen([str(behave_binary), "spin", "1"], env=env) for env in (None, others)]
    try:
        assert kill_leftovers("nobody") == ([], [])
        assert [bystander.poll() for bystander in bystanders] == [None, None]
    finally:
        for bystander in bystanders:
            bystander.kill()
            bystander.wait()


@pytest.mark.parametrize("cgroups", [True, False])
def test_what_a_killed_controller_left_is_removed(behave_binary: Path, cgroups: bool) -> None:
    rig = ProcessRig(behave_binary, cgroups=cgroups)
    try:
        jobs = ["running", "orphaned"]
        for job in jobs:
            rig.run("fork", name=job)
        rig.until(lambda: sorted(marked(rig.run_id).values()) == sorted(3 * jobs))  # each has forked twice
        children = [pid for job in jobs for pid in rig.pids(job)[1:]]
        rig.process_runtime._watcher.close()  # a dead controller sees and does nothing any more
        rig.runtime.pause("running")
        rig.kill("orphaned")
        assert [len(lines) for lines in kill_leftovers(rig.run_id)] == [2, 0]
        rig.until(lambda: not any(map(psutil.pid_exists, children)))
        assert kill_leftovers(rig.run_id) == ([], [])
    finally:
        rig.runtime.close("stop", PATIENCE_S)
        rig.clean()


def test_a_container_that_somebody_removes_before_it_is_started_again_is_made_anew(docker_rig: DockerRig) -> None:
    docker_rig.run("exit", "1", "10")
    docker_rig.wait("job", KINDS.EXITED)
    docker_rig.client.api.remove_container(docker_rig.inspect()["Id"])
    docker_rig.wait("job", KINDS.GONE)
    docker_rig.runtime.create(docker_rig.spec("exit", "0", "10"), 1, A)
    docker_rig.wait("job", KINDS.CREATED)


def test_a_container_restarted_by_somebody_is_taken_over(docker_rig: DockerRig) -> None:
    docker_rig.run("spin", "1", cores=A)
    docker_rig.client.api.restart(docker_rig.inspect()["Id"], timeout=0)
    event = docker_rig.wait("job", KINDS.CHANGED, KINDS.EXITED)
    if event.kind is KINDS.EXITED:  # it was over for long enough to be seen, and is told to start again
        docker_rig.runtime.start("job", A)
        docker_rig.wait("job", KINDS.STARTED)
    docker_rig.wished(docker_rig.runtime.pause("job"), KINDS.PAUSED)
    docker_rig.until(lambda: docker_rig.inspect()["State"]["Paused"])  # its record is right, too
    used_s = docker_rig.runtime.look()["job"].cpu_s
    time.sleep(0.1)
    assert docker_rig.runtime.look()["job"].cpu_s == used_s
