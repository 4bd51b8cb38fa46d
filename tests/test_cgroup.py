"""The real code on temporary trees of both versions, and on this machine's own groups."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from pathlib import Path

import pytest

from colocate.host.cgroup import JobCgroup, directory, make

pytestmark = pytest.mark.live

V1 = """\
22 1 0:20 / /proc rw,relatime - proc proc rw
31 22 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
37 31 0:34 /docker /sys/fs/cgroup/my\\040freezer rw,relatime - cgroup cgroup rw,freezer
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
"""
V1_OF_JOB = "4:freezer:/docker/ab:c\n3:cpuset:/docker/ab:c\n2:cpu,cpuacct:/docker/ab:c\n1:name=systemd:/x\n0::/u\n"
V2 = "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    write(tmp_path / "proc/self/mountinfo", V1)
    write(tmp_path / "proc/42/cgroup", V1_OF_JOB)
    base = tmp_path / "sys/fs/cgroup"
    write(base / "cpuset/docker/ab:c/cpuset.cpus", "0-3\n")
    write(base / "cpuset/docker/ab:c/cpuset.effective_cpus", "0-3\n")
    write(base / "my freezer/ab:c/freezer.state", "THAWED\n")
    write(base / "cpu,cpuacct/docker/ab:c/cpuacct.usage", "2500000000\n")
    write(base / "cpu,cpuacct/docker/ab:c/cpu.shares", "1024\n")
    write(base / "cpu,cpuacct/docker/ab:c/cgroup.procs", "42\n43\n")
    return tmp_path


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    write(tmp_path / "proc/self/mountinfo", V2)
    write(tmp_path / "proc/42/cgroup", "0::/system.slice/docker-abc.scope\n")
    base = tmp_path / "sys/fs/cgroup/system.slice/docker-abc.scope"
    write(base / "cpuset.cpus", "\n")
    write(base / "cpuset.cpus.effective", "0-1,3\n")
    write(base / "cgroup.freeze", "0\n")
    write(base / "cgroup.events", "populated 1\nfrozen 0\n")
    write(base / "cpu.stat", "usage_usec 1250000\nuser_usec 5\nsystem_usec 6\n")
    write(base / "cpu.weight", "100\n")
    write(base / "cgroup.procs", "42\n")
    return tmp_path


def test_version_1_reads_and_writes(v1: Path) -> None:
    group = JobCgroup.of(42, v1)
    base = v1 / "sys/fs/cgroup"
    assert group.cpuset == base / "cpuset/docker/ab:c"
    assert group.freezer == base / "my freezer/ab:c"
    assert group.usage == group.weight == base / "cpu,cpuacct/docker/ab:c"
    assert (group.cores(), group.frozen(), group.cpu_s()) == ({0, 1, 2, 3}, False, 2.5)
    assert group.writable()
    assert not group.set_cores(frozenset({1, 2}))  # written, but not seen to be in effect
    assert (base / "cpuset/docker/ab:c/cpuset.cpus").read_text() == "1-2"
    write(base / "cpuset/docker/ab:c/cpuset.effective_cpus", "1-2\n")
    assert group.set_cores(frozenset({1, 2}))
    assert group.freeze()
    assert (group.freezer / "freezer.state").read_text() == "FROZEN"
    write(group.freezer / "freezer.state", "FREEZING\n")
    assert group.frozen() is False
    assert group.thaw()
    assert group.lowest_weight()
    assert (group.weight / "cpu.shares").read_text() == "2"
    assert group.directories() == [group.cpuset, group.freezer, group.usage]
    group.close()


def test_version_2_reads_and_writes(v2: Path) -> None:
    group = JobCgroup.of(42, v2)
    base = v2 / "sys/fs/cgroup/system.slice/docker-abc.scope"
    assert group.directories() == [base]
    assert (group.cores(), group.frozen(), group.cpu_s(), group.pids()) == ({0, 1, 3}, False, 1.25, [42])
    assert group.writable()
    assert not group.freeze(0)
    assert (base / "cgroup.freeze").read_text() == "1"
    write(base / "cgroup.events", "populated 1\nfrozen 1\n")
    assert group.freeze(0)
    assert group.frozen()
    assert group.lowest_weight()
    assert (base / "cpu.weight").read_text() == "1"
    group.close()


def test_what_is_gone_or_absent_is_no_error(v2: Path) -> None:
    for group in (JobCgroup.of(77, v2), JobCgroup(v2 / "not", v2 / "there", v2 / "at", v2 / "all")):
        assert (group.cores(), group.frozen(), group.cpu_s(), group.pids()) == (None, None, None, [])
        assert not group.set_cores(frozenset({0}))
        assert not group.freeze()
        assert not group.lowest_weight()
        assert not group.writable()
        group.close()


@pytest.mark.parametrize("where", ["0::/../elsewhere\n", "0::/gone (deleted)\n", "", "1:name=systemd:/\n"])
def test_groups_out_of_reach_have_no_directory(v2: Path, where: str) -> None:
    write(v2 / "proc/43/cgroup", where)
    assert directory(43, "cpuset", v2) is None


def test_groups_outside_of_a_partial_mount_have_no_directory(v1: Path) -> None:
    write(v1 / "proc/43/cgroup", "4:freezer:/dockerish/x\n")
    assert directory(43, "freezer", v1) is None


def test_an_empty_set_is_never_written(v1: Path) -> None:
    group = JobCgroup.of(42, v1)
    with pytest.raises(ValueError, match="empty"):
        group.set_cores(frozenset())
    assert (group.cpuset / "cpuset.cpus").read_text() == "0-3\n"


def test_version_2_controllers_are_never_enabled_around_us(v2: Path) -> None:
    own = v2 / "sys/fs/cgroup/user.slice/me"
    write(v2 / "proc/self/cgroup", "0::/user.slice/me\n")
    for name in ("cgroup.controllers", "cgroup.subtree_control"):
        write(own / name, "cpuset cpu\n" if name == "cgroup.controllers" else "memory\n")
    group = make("colocate-run/job", v2)
    assert (group.cpuset, group.weight) == (None, None)
    assert group.freezer == group.usage == own / "colocate-run/job"
    assert (own / "cgroup.subtree_control").read_text() == "memory\n"
    assert group.remove()
    assert not (own / "colocate-run").exists()


def test_version_2_controllers_are_used_where_they_are_handed_down(v2: Path) -> None:
    own = v2 / "sys/fs/cgroup"
    write(v2 / "proc/self/cgroup", "0::/\n")
    write(own / "cgroup.controllers", "cpuset cpu\n")
    write(own / "cgroup.subtree_control", "cpuset cpu\n")
    group = make("colocate-run/job", v2)
    assert group.cpuset == group.weight == own / "colocate-run/job"
    assert (own / "colocate-run/cgroup.subtree_control").read_text() in {"+cpu", "+cpuset"}


def test_on_this_machine(behave_binary: Path) -> None:
    name = f"colocate-test-{secrets.token_hex(4)}/job"
    group = make(name)
    if not group.directories():
        assert os.getuid() != 0 or not os.access("/sys/fs/cgroup", os.W_OK)  # the only good reasons
        return
    with subprocess.Popen([behave_binary, "spin", "2"]) as process:
        try:
            group.add(process.pid)
            assert group.pids() == [process.pid]
            if group.cpuset is not None:
                last = frozenset({max(os.sched_getaffinity(0))})
                assert group.set_cores(last)
                assert os.sched_getaffinity(process.pid) == last
            assert group.freeze(60)
            before_s = group.cpu_s()
            time.sleep(0.05)
            assert group.frozen()
            assert group.cpu_s() == before_s
            assert group.thaw(60)
        finally:
            process.kill()
    deadline_s = time.monotonic() + 60
    while not group.remove():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    assert not any(path.parent.exists() for path in group.directories())
    assert group.cores() is None or group.cpuset is None
