"""Where memcached and the jobs meet, on trees that look like machines of each kind."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from colocate.host.cgroup import JobCgroup
from colocate.host.grip import Grip
from colocate.host.sharing import CannotShareError, Driver, Means, Mechanism, Sharing, choose_here, remove_groups
from colocate.host.watcher import Watcher

V1 = """\
31 22 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
"""
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
V2 = "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_OF = "3:cpuset:/\n2:cpu,cpuacct:{0}\n1:name=systemd:{0}\n"
MOUNTS = {"v1": (V1, V1_OF), "hybrid": (HYBRID, V1_OF + "0::{0}\n"), "v2": (V2, "0::{0}\n")}
CPU = {"v1": "sys/fs/cgroup/cpu,cpuacct", "hybrid": "sys/fs/cgroup/cpu,cpuacct", "v2": "sys/fs/cgroup"}
SERVICE = 42

Machine = Callable[..., Path]


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture(params=["v1", "hybrid", "v2"])
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def machine(tmp_path: Path, version: str) -> Machine:
    """A tree with memcached and ourselves in given groups, and what is handed down to children under version 2."""

    def make(service: str, ourselves: str = "/", handed_down: tuple[str, ...] = ("/",)) -> Path:
        mounts, membership = MOUNTS[version]
        write(tmp_path / "proc/self/mountinfo", mounts)
        write(tmp_path / f"proc/{SERVICE}/cgroup", membership.format(service))
        write(tmp_path / "proc/self/cgroup", membership.format(ourselves))
        for path in (service, ourselves):
            group = tmp_path / CPU[version]
            for part in ("", *path.strip("/").split("/")):
                above, group = group, group / part
                group.mkdir(parents=True, exist_ok=True)
                if version != "v2":
                    write(group / "cpu.shares", "1024\n")
                    continue
                write(group / "cgroup.controllers", "cpu memory\n")
                name = "/" + str(group.relative_to(tmp_path / CPU[version])).removeprefix(".")
                write(group / "cgroup.subtree_control", "cpu memory\n" if name in handed_down else "memory\n")
                if part and "cpu" in (above / "cgroup.subtree_control").read_text():
                    write(group / "cpu.weight", "100\n")
        return tmp_path

    return make


def chosen(root: Path, driver: Driver) -> Mechanism:
    return choose_here(SERVICE, driver, "7f", root)


def test_systemd_puts_containers_beside_the_service(machine: Machine) -> None:
    found = chosen(machine("/system.slice/memcached.service"), "systemd")
    assert (found.means, found.meet, found.cgroup_parent) == (Means.JOB, ("system.slice",), "system.slice")
    assert str(found) == (
        "memcached in /system.slice/memcached.service, jobs in /system.slice/docker-ID.scope,"
        " they part below /system.slice"
    )


def test_an_instance_of_the_service_stands_in_a_slice_beside_the_containers(machine: Machine) -> None:
    found = chosen(machine("/system.slice/system-memcached.slice/memcached@1.service"), "systemd")
    assert (found.means, found.meet) == (Means.JOB, ("system.slice",))


@pytest.mark.parametrize("service", ["/", "/user.slice/user-0.slice/session-1.scope", "/init.scope"])
def test_with_systemd_a_memcached_elsewhere_needs_a_slice_of_our_own(machine: Machine, service: str) -> None:
    found = chosen(machine(service), "systemd")
    assert (found.means, found.meet, found.cgroup_parent) == (Means.RUN, (), "colocate_7f.slice")


@pytest.mark.parametrize("service", ["/", "/system.slice/memcached.service", "/some/where"])
def test_all_containers_below_docker_are_not_ours_to_weigh(machine: Machine, version: str, service: str) -> None:
    root = machine(service)
    found = chosen(root, "cgroupfs")
    assert (found.means, found.meet, found.cgroup_parent) == (Means.RUN, (), "/colocate-7f")
    cpu = root / CPU[version]
    assert {cpu / "colocate-7f", cpu / "colocate-7f-sleeper"} <= set(found.directories(root))
    if version != "v2":
        assert root / "sys/fs/cgroup/cpuset/colocate-7f" in found.directories(root)  # the engine makes it everywhere


def test_a_memcached_in_a_container_meets_each_container(machine: Machine) -> None:
    found = chosen(machine("/docker/abc"), "cgroupfs")
    assert (found.means, found.meet, found.cgroup_parent) == (Means.JOB, ("docker",), "/docker")


@pytest.mark.parametrize("ourselves", ["/", "/here"])
def test_plain_processes_get_a_group_of_the_run_beside_memcached(machine: Machine, ourselves: str) -> None:
    found = chosen(machine(ourselves, ourselves, ("/", "/here")), "process")
    assert found.means is Means.RUN
    assert "/".join(("", *found.parent)) == f"{ourselves.rstrip('/')}/colocate-7f"
    below = chosen(machine(f"{ourselves.rstrip('/')}/mem", ourselves, ("/", "/here")), "process")
    assert (below.means, below.meet) == (Means.RUN, found.meet)


def test_plain_processes_in_a_session_compete_as_that_session(machine: Machine) -> None:
    root = machine("/system.slice/memcached.service", "/user.slice/session-1.scope", ("/", "/user.slice"))
    with pytest.raises(CannotShareError, match=r"competes with /user\.slice, where others stand"):
        chosen(root, "process")


@pytest.mark.parametrize("version", ["v2"], indirect=True)
@pytest.mark.parametrize("handed_down", [("/",), ()])
def test_where_no_group_of_ours_has_a_weight_threads_meet(machine: Machine, handed_down: tuple[str, ...]) -> None:
    found = chosen(machine("/system.slice/job.service", "/system.slice/job.service", handed_down), "process")
    assert (found.means, found.parent) == (Means.THREADS, ("system.slice",) if handed_down else ())


@pytest.mark.parametrize("version", ["v2"], indirect=True)
def test_a_controller_that_ends_above_both_leaves_them_in_one_group(machine: Machine) -> None:
    root = machine("/system.slice/memcached.service", "/system.slice/sshd.service", ("/",))
    found = chosen(root, "process")
    assert (found.means, found.parent) == (Means.THREADS, ("system.slice",))


def test_what_is_not_to_be_seen_here_cannot_be_shared(machine: Machine) -> None:
    root = machine("/")
    with pytest.raises(CannotShareError, match="process 77"):
        choose_here(77, "cgroupfs", "7f", root)


def test_a_memcached_that_comes_back_elsewhere_is_noticed(machine: Machine, version: str) -> None:
    root = machine("/system.slice/memcached.service")
    sharing = Sharing(chosen(root, "systemd"), root)
    membership = MOUNTS[version][1]
    write(root / "proc/43/cgroup", membership.format("/system.slice/memcached.service"))
    write(root / "proc/44/cgroup", membership.format("/user.slice/session-1.scope"))
    assert [sharing.fits(pid) for pid in (43, 44, 45)] == [True, False, False]


def test_a_memcached_that_is_moved_while_it_runs_is_noticed(machine: Machine, version: str) -> None:
    root = machine("/system.slice/memcached.service")
    sharing = Sharing(chosen(root, "systemd"), root)
    assert sharing.fits(SERVICE)
    write(root / f"proc/{SERVICE}/cgroup", MOUNTS[version][1].format("/user.slice/session-1.scope"))
    assert not sharing.fits(SERVICE)


@pytest.mark.parametrize("version", ["v2"], indirect=True)
def test_threads_that_come_to_compete_as_a_group_are_noticed(machine: Machine) -> None:
    root = machine("/system.slice/memcached.service", "/system.slice/job.service", ("/",))
    sharing = Sharing(chosen(root, "process"), root)
    assert sharing.mechanism.means is Means.THREADS
    assert sharing.fits(SERVICE)
    slices = root / CPU["v2"] / "system.slice"
    for service in ("memcached.service", "job.service"):
        write(slices / service / "cpu.weight", "100\n")
    write(slices / "cgroup.subtree_control", "cpu memory\n")
    assert not sharing.fits(SERVICE)


@pytest.mark.parametrize("idle", [True, False])
def test_each_jobs_group_gives_way_and_gets_back(machine: Machine, version: str, idle: bool) -> None:
    root = machine("/system.slice/memcached.service")
    sharing = Sharing(chosen(root, "systemd"), root)
    group = root / CPU[version] / "system.slice/docker-1.scope"
    name, least = ("cpu.weight", "1") if version == "v2" else ("cpu.shares", "2")
    write(group / name, "1024\n")
    if idle:
        write(group / "cpu.idle", "0\n")
    job = JobCgroup(weight=group)
    assert not sharing.holds(job, 1)
    assert sharing.give(job, [1])
    assert sharing.holds(job, 1)
    assert sharing.how(job) == ("cpu.idle 1" if idle else f"{name} {least}")
    assert (group / ("cpu.idle" if idle else name)).read_text() == ("1" if idle else least)
    if idle:
        assert (group / name).read_text() == "1024\n"  # an idle group refuses any weight
        write(group / "cpu.idle", "0\n")  # as the engine's update does with systemd
    else:
        write(group / name, "100\n")
    assert not sharing.holds(job, 1)
    assert sharing.give(job, [1])
    sharing.take_back(job, [1])
    assert (group / name).read_text() == least
    assert not idle or (group / "cpu.idle").read_text() == "0"
    job.close()


def test_a_job_that_stands_elsewhere_has_no_idle_priority(machine: Machine, version: str) -> None:
    root = machine("/system.slice/memcached.service")
    sharing = Sharing(chosen(root, "systemd"), root)
    group = root / CPU[version] / "machine.slice/docker-1.scope"
    write(group / "cpu.idle", "1\n")
    assert not sharing.holds(JobCgroup(weight=group), 1)
    assert not sharing.give(JobCgroup(weight=group), [1])
    assert not sharing.give(JobCgroup(), [1])


def test_a_container_that_is_over_has_not_lost_its_idle_priority(machine: Machine, version: str) -> None:
    root = machine("/system.slice/memcached.service")
    group = root / CPU[version] / "system.slice/docker-7f.scope"
    idle = write(group / "cpu.idle", "1\n")
    watcher = Watcher("test")
    grip = Grip(watcher, root, Sharing(chosen(root, "systemd"), root))
    with subprocess.Popen(["sleep", "600"]) as job:
        try:
            write(root / f"proc/{job.pid}/cgroup", MOUNTS[version][1].format("/system.slice/docker-7f.scope"))
            grip.take(job.pid, "another", lambda: None)
            assert grip.sample().idle is False  # it is not to be seen
            grip.drop()
            assert grip.sample().idle is None
            grip.take(job.pid, "7f", lambda: None)
            assert grip.sample().idle is True
            idle.write_text("0\n")
            assert grip.sample().idle is False
            job.kill()
            job.wait()
            shutil.rmtree(group)  # as it goes before the engine tells of the end
            assert grip.sample().idle is None
            grip.drop()
            grip.take(job.pid, "7f", lambda: None)
            assert grip.sample().idle is None
        finally:
            grip.drop()
            watcher.close()
            job.kill()


def test_a_group_of_the_run_that_cannot_be_made_is_told(machine: Machine, version: str) -> None:
    root = machine("/")
    sharing = Sharing(chosen(root, "cgroupfs"), root)
    with pytest.raises(CannotShareError, match="no CPU weight"):  # an ordinary directory has no such files
        sharing.open()
    assert sharing.close() == []
    assert not (root / CPU[version] / "colocate-7f").exists()
    write(root / CPU[version] / "colocate-7f")
    with pytest.raises(CannotShareError, match="cannot be made"):
        sharing.open()


def test_groups_are_removed_with_what_stands_in_them_unless_that_lives(tmp_path: Path) -> None:
    (tmp_path / "empty/job/deeper").mkdir(parents=True)
    write(tmp_path / "used/job/cgroup.procs", "42\n")
    write(tmp_path / "used/cpu.idle", "1\n")
    write(tmp_path / "used/cpu.shares", "2\n")
    left = remove_groups([tmp_path / "empty", tmp_path / "never", tmp_path / "used"], wait_s=0.0)
    assert left == [f"control group {tmp_path / 'used'} is still in use: it has its weight back"]
    assert not (tmp_path / "empty").exists()
    assert [(tmp_path / "used" / name).read_text() for name in ("cpu.idle", "cpu.shares")] == ["0", "1024"]


def test_groups_may_vanish_while_they_are_looked_through(tmp_path: Path) -> None:
    write(tmp_path / "run.slice/cgroup.procs", "42\n")
    over = threading.Event()

    def come_and_go() -> None:
        scope = tmp_path / "run.slice/docker-1.scope"
        while not over.is_set():
            scope.mkdir()
            scope.rmdir()

    others = threading.Thread(target=come_and_go)
    others.start()
    try:
        for _ in range(300):
            assert len(remove_groups([tmp_path / "run.slice"], wait_s=-1.0)) == 1
    finally:
        over.set()
        others.join()
