"""The set-ups of docs/operations.md, each tried by a user who has those rights and no others.

Needs root, or `sudo -n`, to make the users, and sudo itself for the one who has it. They are gone afterwards.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest

from colocate.cores import parse_ranges
from colocate.eventlog import violations
from colocate.host.cgroup import find_place
from tests.live import masks, one_mask
from tests.memcached_fixture import DEADLINE_S, Memcached, eventually, running_memcached
from tests.users import AS_ROOT, User, throw_away_user

pytestmark = pytest.mark.live

PAGE = (Path(__file__).parents[1] / "docs/operations.md").read_text(encoding="utf-8")
SUDO_RULE = re.search(r"NOPASSWD: (/usr/bin/taskset .*)\n", PAGE)[1]


@pytest.fixture
def server() -> Iterator[Memcached]:
    with running_memcached() as made:
        yield made


def at(server: Memcached) -> list[str]:
    return ["--memcached-ip", server.ip, "--port", str(server.port), "--memcached-pid", str(server.pid)]


def told(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, object]]:
    """The component `privileges` of a self-test, by name."""
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (0, True), done.stderr
    return {check["name"]: check for check in report["checks"]}


def notes(checks: Mapping[str, Mapping[str, object]]) -> set[str]:
    """What is not possible."""
    assert all(check["cure"] for check in checks.values() if "not" in str(check["detail"]).split())
    return {name for name, check in checks.items() if check["cure"]}


class UsersRun:
    """A `colocate run` of that user's."""

    def __init__(self, user: User, server: Memcached, *arguments: str, **how: object) -> None:
        self.home = user.home
        argv = [sys.executable, "-m", "colocate", "run", *at(server), "--state-dir", "state", "--policy", "static"]
        self.process = subprocess.Popen(
            user.command(*argv, *arguments, **how), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    @property
    def log(self) -> str:
        logs = sorted(self.home.glob("logs/log*.txt"))
        return logs[-1].read_text() if logs else ""

    @property
    def pid(self) -> int:
        """Its own, even where sudo stands before it."""
        return int(subprocess.check_output([*AS_ROOT, "cat", self.home / "state/lock"]))

    def until(self, words: str) -> None:
        def said() -> bool:
            if self.process.poll() is not None and words not in self.log:
                pytest.fail(f"ended without {words!r}: {self.process.stderr.read()}{self.log}")
            return words in self.log

        eventually(said, words)

    def signal(self, number: int) -> None:
        subprocess.run([*AS_ROOT, "kill", f"-{number}", str(self.pid)], check=True)


@contextmanager
def run_of(user: User, server: Memcached, *arguments: str, **how: object) -> Iterator[UsersRun]:
    run = UsersRun(user, server, *arguments, **how)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.signal(signal.SIGTERM)
        run.process.communicate(timeout=2 * DEADLINE_S)


def jobs(command: str, image: str = "none", more: str = "") -> str:
    return f'[[job]]\nname = "spin"\nimage = "{image}"\ncommand = "{command}"\n{more}'


def test_root_may_do_everything(server: Memcached, tmp_path: Path) -> None:
    argv = [*AS_ROOT, sys.executable, "-m", "colocate", "selftest", *at(server), "--test", "privileges", "--json"]
    checks = told(subprocess.run(argv, capture_output=True, text=True, check=False, cwd=tmp_path))
    assert checks["user"]["detail"] == "root"
    assert notes(checks) == set()


def test_a_user_without_rights_is_told_what_each_would_take(server: Memcached) -> None:
    with throw_away_user() as user:
        checks = told(user.colocate("selftest", *at(server), "--test", "privileges", "--json"))
        assert checks["user"]["detail"] == f"user {user.name}"
        assert notes(checks) == {"memcached", "containers", "fast path", "processes", "priority"}
        text = user.colocate("selftest", *at(server), "--test", "privileges").stdout
        assert "CAP_SYS_NICE" in next(line for line in text.splitlines() if line.startswith("note  privileges memc"))
        done = user.colocate("run", *at(server), "--once")
        assert done.returncode == 2
        assert "not permitted to pin memcached" in done.stderr


@pytest.fixture
def docker_user() -> Iterator[User]:
    """The second set-up: in the group docker, and allowed to pin by sudo."""
    with throw_away_user("docker") as user:
        user.may_sudo(SUDO_RULE)
        yield user


def test_the_docker_group_and_sudo_taskset(
    docker_user: User, server: Memcached, docker_client: docker.DockerClient, behave_image: str
) -> None:
    user, original = docker_user, masks(server.pid)
    checks = told(user.colocate("selftest", *at(server), "--test", "privileges", "--json"))
    assert checks["user"]["detail"] == f"user {user.name}, in the group docker, which is as good as root"
    assert checks["memcached"]["detail"] == "can be pinned by `sudo -n taskset`"
    assert notes(checks) == {"fast path", "processes", "priority"}
    user.write("jobs.toml", jobs("/behave spin 1", behave_image))
    with run_of(user, server, "--jobs", "jobs.toml") as run:
        run.until("start spin")
        eventually(lambda: one_mask(server.pid) != one_mask(os.getpid()), "memcached is pinned")
        (container,) = docker_client.containers.list(filters={"label": "colocate.job=spin"})
        pid = container.attrs["State"]["Pid"]
        assert not one_mask(pid) & one_mask(server.pid)
        assert one_mask(pid) == parse_ranges(container.attrs["HostConfig"]["CpusetCpus"])
        run.signal(signal.SIGKILL)
        run.process.wait(DEADLINE_S)
        eventually(lambda: masks(server.pid) == original, "its guard has put memcached back, by sudo")
        eventually(lambda: not (user.home / "state/state.json").exists(), "and all else")
    assert docker_client.containers.list(all=True, filters={"label": "colocate.job=spin"}) == []
    assert violations(run.log) == []


TRICKS = [
    ["/bin/id"],
    ["1", "/bin/id"],
    ["-c", "0", "/bin/id"],
    ["-acp", "0", "/bin/id", "0"],  # pid 0 is none: the rest is a command
    ["-acp", "0 /bin/id", "0"],
    ["-acp", "0", "0"],
    ["-acp", "0", "1 /bin/id"],
    ["-acp", "0", "1", "/bin/id"],
    ["-acp", "0\n/bin/id", "1"],
    ["--pid", "0", "1"],
]


def test_the_sudo_rule_of_the_documentation_lets_nothing_else_through(docker_user: User, server: Memcached) -> None:
    everywhere = ",".join(map(str, sorted(one_mask(server.pid))))
    for words in (["-acp", everywhere, str(server.pid)], ["-cp", everywhere, str(server.pid)]):
        done = docker_user.run("sudo", "-n", "taskset", *words)
        assert done.returncode == 0, (words, done.stderr)
    for words in TRICKS:
        done = docker_user.run("sudo", "-n", "taskset", *words)
        assert done.returncode != 0, words
        assert "uid=0" not in done.stdout, words
        assert "password is required" in done.stderr, (words, done.stderr)


@contextmanager
def delegated(user: User) -> Iterator[dict[str, str]]:
    """A control group of the user's in each hierarchy of a controller that jobs want: what systemd's Delegate= does."""
    mounts = {str(place.mount) for one in ("cpuset", "freezer", "cpuacct", "cpu") if (place := find_place("self", one))}
    groups = {mount: f"{mount}/test-{secrets.token_hex(4)}" for mount in sorted(mounts)}
    owned = '$1 $1/cgroup.procs $(ls -d "$1"/tasks "$1"/cgroup.subtree_control 2>/dev/null)'
    make = 'mkdir "$1"; for f in mems cpus; do if [ -e "$1/cpuset.$f" ] && [ ! -e "$1/cgroup.controllers" ]; then '
    make += f'cat "$1/../cpuset.$f" > "$1/cpuset.$f"; fi; done; chown "$2" {owned}'
    try:
        for group in groups.values():
            subprocess.run([*AS_ROOT, "sh", "-ec", make, "sh", group, user.name], check=True)
        yield groups
    finally:
        for group in groups.values():
            argv = [*AS_ROOT, "find", group, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"]
            eventually(lambda argv=argv: not subprocess.run(argv, check=False, capture_output=True).returncode, "gone")


def test_one_capability_and_a_delegated_group(
    server: Memcached, behave_binary: Path, docker_client: docker.DockerClient
) -> None:
    original = masks(server.pid)
    with throw_away_user() as user, delegated(user) as groups:
        how = {"capabilities": ["sys_nice"], "inside": groups}
        argv = [sys.executable, "-m", "colocate", "selftest", *at(server), "--test", "privileges", "--json"]
        checks = told(subprocess.run(user.command(*argv, **how), capture_output=True, text=True, check=False))
        assert checks["user"]["detail"] == f"user {user.name}, with CAP_SYS_NICE"
        assert checks["memcached"]["detail"] == "can be pinned directly"
        assert notes(checks) == {"containers", "fast path"}
        program = user.home / "behave"
        subprocess.run([*AS_ROOT, "install", "-m", "755", behave_binary, program], check=True)
        user.write("jobs.toml", jobs("./behave spin 1", more='directory = "."\n'))
        with run_of(user, server, "--jobs", "jobs.toml", "--runtime", "process", **how) as run:
            run.until("start spin")
            eventually(lambda: one_mask(server.pid) != one_mask(os.getpid()), "memcached is pinned")
            assert os.getpriority(os.PRIO_PROCESS, run.pid) == -15
            (members,) = Path(groups[str(find_place("self", "freezer").mount)]).glob("colocate-*/spin/cgroup.procs")
            (spin,) = map(int, members.read_text().split())
            assert not one_mask(spin) & one_mask(server.pid)
            assert Path(f"/proc/{spin}").owner() == user.name
        assert run.process.returncode == 143
        assert masks(server.pid) == original
        assert violations(run.log) == []


CONFIG = 'policy = "static"\nonce = true\n'


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, (done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    return line


def as_root(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [
        "env",
        "-u",
        "SUDO_UID",
        f"--chdir={directory}",
        *(f"{name}={value}" for name, value in environment.items()),
    ]
    argv = [*AS_ROOT, *words, sys.executable, "-m", "colocate", "simulate", "--duration", "1s", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_whose_file_is_obeyed(tmp_path: Path) -> None:
    simulate = ("simulate", "--duration", "1s", "--policy")
    policy = "from colocate.policy import Plan\n\n\nclass Mine:\n    def decide(self, view):\n        return Plan(2)\n"
    with throw_away_user("docker") as user, throw_away_user() as other:
        uid = str(user.home.stat().st_uid)
        mine, private = f"{user.write('mine.py', policy)}:Mine", f"{user.write('private.py', policy, 0o664)}:Mine"
        roots = user.home / "roots.py"
        subprocess.run([*AS_ROOT, "install", "-m", "644", user.home / "mine.py", roots], check=True)
        shared = user.write("shared.py", policy, 0o664)
        subprocess.run([*AS_ROOT, "chgrp", "docker", shared], check=True)
        for accepted in (mine, private, f"{roots}:Mine"):  # private: a umask of 002, as where each has his own group
            assert user.colocate(*simulate, accepted).returncode in {0, 3}, accepted
        assert f"it belongs to {user.name}, so it is not obeyed" in refusal(other.colocate(*simulate, mine))
        assert f"it belongs to {user.name}" in refusal(as_root(tmp_path, "--policy", mine))
        assert "the group docker can write it" in refusal(user.colocate(*simulate, f"{shared}:Mine"))
        # With sudo it is the caller who decides, and root it is whose file he could have written anyway.
        for accepted in (mine, private, f"{roots}:Mine"):
            done = as_root(tmp_path, "--policy", accepted, SUDO_UID=uid)
            assert done.returncode in {0, 3}, done.stderr
        assert "the group docker can write it" in refusal(as_root(tmp_path, "--policy", f"{shared}:Mine", SUDO_UID=uid))


def test_a_configuration_that_somebody_has_left_where_we_are_is_not_obeyed(server: Memcached) -> None:
    with throw_away_user() as user, throw_away_user() as other:
        user.write("colocate.toml", CONFIG)
        argv = ["sh", "-c", f'cd {user.home} && exec "$@"', "sh", sys.executable, "-m", "colocate", "run", *at(server)]
        assert f"colocate.toml: it belongs to {user.name}" in refusal(other.run(*argv))


def test_a_state_directory_of_somebody_else_is_not_used(server: Memcached) -> None:
    """As it could lie in /tmp, made there before us."""
    with throw_away_user() as user, throw_away_user() as other:
        user.write("state.json", "{}")
        for command in (["restore"], ["status"]):
            line = refusal(other.colocate(*command, "--state-dir", str(user.home)))
            assert line.startswith(f"colocate: {user.home}: it belongs to {user.name}; give a directory of your own")
