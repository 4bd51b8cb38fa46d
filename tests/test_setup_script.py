"""The script itself, run: on this machine where it changes nothing, and on a machine of shims where it would.

The shims record how they were called. The fake apt-get brings a shim for each package, so that the script goes all the
way; bash, coreutils, the Python that asks for the engine, and the socket it asks at are real.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
SCRIPT = Path("scripts/setup_scheduler.sh")
PATIENCE_S = 240  # also on an emulated machine

DEBIAN_12 = 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'
UBUNTU_22 = 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nVERSION_ID="22.04"\nID=ubuntu\nID_LIKE=debian\n'
UBUNTU_24 = 'PRETTY_NAME="Ubuntu 24.04.1 LTS"\nVERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n'

TOOLS = (
    "bash", "cat", "cp", "cut", "dirname", "env", "grep", "mkdir", "mktemp", "nohup", "rm", "setsid", "sh",
    "sha256sum", "sleep", "tail", "touch",
)  # fmt: skip

SHIMS = {
    "apt-get": """
        case $* in
          *install*) ;;
          *download*) if [[ ! -e $STATE/lists ]]; then exit 100; fi; touch prometheus_2.42_amd64.deb; exit ;;
          *) touch "$STATE/lists"; exit 0 ;;
        esac
        if [[ -e $STATE/apt-fails ]]; then echo 'E: no space left'; exit 100; fi
        for package; do
          case $package in
            gcc | memcached | chromium) cp "$STATE/shim" "$BIN/$package" ;;
            chromium-driver) cp "$STATE/shim" "$BIN/chromedriver" ;;
            python*-venv) touch "$STATE/venv" ;;
            docker.io) cp "$STATE/dockerd" "$COLOCATE_ROOT/usr/sbin/dockerd" && touch "$STATE/group" ;;
          esac
        done""",
    "dpkg": 'mkdir -p "$3/usr/bin" && cp "$STATE/shim" "$3/usr/bin/promtool"',
    # Asked whether it can make a venv, it says no until the package is there. An engine that refuses answers the
    # children of sg only.
    "python3": """
        case $* in
          *ensurepip*) [[ -e $STATE/venv ]] ;;
          *_ping*) if [[ -e $STATE/refuses && -z ${IN_GROUP:-} ]]; then exit 2; fi; exec "$PYTHON" "$@" ;;
          '-m venv'*) mkdir -p "$4/bin"; echo "$4/bin/python" >"$4/bin/pip"
            for name in python colocate ruff mypy lint-imports pytest; do cp "$STATE/shim" "$4/bin/$name"; done ;;
        esac""",
    "id": """
        case $* in
          -u) echo "$WHO" ;;
          -un) if [[ $WHO = 0 ]]; then echo root; else echo ann; fi ;;
          *) if [[ -e $STATE/joined ]]; then echo "$2 docker"; else echo "$2"; fi ;;
        esac""",
    "getent": "[[ -e $STATE/group ]]",
    "sudo": 'if [[ $1 != -n ]]; then exec "$@"; fi',
    "sg": 'export IN_GROUP=yes; exec sh -c "$3"',
    "usermod": 'touch "$STATE/joined"',
    "systemctl": '("$COLOCATE_ROOT/usr/sbin/dockerd" >/dev/null 2>&1 </dev/null &)',
    "mypy": "echo 'mypy speaks'; [[ ! -e $STATE/mypy-fails ]]",
    "pytest": """echo '3 passed in 0.01s'; [[ "$*" != *"${PYTEST_FAILS:-none}" ]] || exit 1; exit ${PYTEST_CODE:-0}""",
    "colocate": "exit 7",
}
SHIM = f"""#!{shutil.which("bash")}
name=${{0##*/}}
printf '%s\\n' "$name$(printf ' %q' "$@")" >>"$STATE/calls"
if [[ -e $STATE/do-$name ]]; then . "$STATE/do-$name"; fi
"""
DOCKERD = f"""#!{sys.executable}
import os, pathlib, socket, sys
state, run = pathlib.Path(os.environ["STATE"]), pathlib.Path(os.environ["COLOCATE_ROOT"]) / "var/run"
with (state / "calls").open("a") as calls:
    calls.write("dockerd\\n")
if (state / "dockerd-fails").exists():
    sys.exit("failed to start daemon: Devices cgroup isn't mounted")
if (run / "docker.pid").exists():
    sys.exit("failed to start daemon: pid file found")
for path in (run / "docker.pid", state / "engine.pid"):
    path.write_text(str(os.getpid()))
with socket.socket(socket.AF_UNIX) as link:
    link.bind(str(run / "docker.sock"))
    link.listen()
    while True:
        client, _ = link.accept()
        client.recv(1000)
        client.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nOK")
        client.close()
"""


class Machine:
    """A root directory, a PATH of shims, and a copy of the project, below one short path (a socket's has a limit)."""

    def __init__(self, top: Path, release: str) -> None:
        self.top, self.state, self.root, self.bin = top, top / "state", top / "root", top / "bin"
        self.project = top / "pro ject's"
        for directory in ("etc", "var/run", "var/log", "usr/sbin"):
            (self.root / directory).mkdir(parents=True)
        (self.root / "etc/os-release").write_text(release)
        copy_project(self.project)
        self.state.mkdir()
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        for name, text in (("shim", SHIM), ("dockerd", DOCKERD)):
            (self.state / name).write_text(text)
            (self.state / name).chmod(0o755)
        for name, body in SHIMS.items():
            (self.state / f"do-{name}").write_text(body)
        for name in ("apt-get", "dpkg", "python3", "id", "getent", "sg", "usermod", "systemctl"):
            self.add(name)

    def add(self, name: str) -> None:
        shutil.copy(self.state / "shim", self.bin / name)

    def with_all(self) -> Machine:
        """Install what the packages would bring; no engine runs yet."""
        self.add("gcc")
        self.add("memcached")
        shutil.copy(self.state / "dockerd", self.root / "usr/sbin/dockerd")
        for name in ("venv", "group"):
            (self.state / name).touch()
        return self

    def run(self, *arguments: str, uid: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        (self.state / "calls").unlink(missing_ok=True)
        environment = {
            "PATH": str(self.bin), "BIN": str(self.bin), "STATE": str(self.state), "COLOCATE_ROOT": str(self.root),
            "PYTHON": sys.executable, "WHO": str(uid), "TMPDIR": str(self.top), **more,
        }  # fmt: skip
        return run([str(self.project / SCRIPT), *arguments], environment)

    def calls(self, name: str = "") -> list[str]:
        """How the shims were called, in order; those of `name` only where it is given."""
        path = self.state / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if not name or line.split()[0] == name]

    def stop(self) -> None:
        pid = self.state / "engine.pid"
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGKILL)
        shutil.rmtree(self.top)


def copy_project(target: Path) -> None:
    (target / SCRIPT.parent).mkdir(parents=True)
    shutil.copy(PROJECT / SCRIPT, target / SCRIPT)
    shutil.copy(PROJECT / "pyproject.toml", target)


def run(command: Sequence[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *command], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=PATIENCE_S,
    )  # fmt: skip


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    made: list[Machine] = []
    yield made
    for machine in made:
        machine.stop()


@pytest.fixture
def machine(machines: list[Machine]) -> Machine:
    return make(machines, DEBIAN_12)


def make(machines: list[Machine], release: str) -> Machine:
    machines.append(Machine(Path(tempfile.mkdtemp(prefix="su-")), release))
    return machines[-1]


def test_bash_can_read_it() -> None:
    assert run(["-n", str(PROJECT / SCRIPT)]).returncode == 0


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(flag: str) -> None:
    done = run([str(PROJECT / SCRIPT), flag])
    assert done.returncode == 0
    for word in ("--check", "--no-docker", "demo", "test", "Debian 12", "22.04", "24.04"):
        assert word in done.stdout


@pytest.mark.parametrize("arguments", [["--chekc"], ["install"], ["--check", "-x"]])
def test_what_it_does_not_know_is_refused(machine: Machine, arguments: list[str]) -> None:
    done = machine.run(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert arguments[-1] in done.stderr
    assert machine.calls("apt-get") == []


def test_check_on_this_machine_reports_and_changes_nothing(tmp_path: Path) -> None:
    copy_project(tmp_path / "project")
    before = sorted(tmp_path.rglob("*"))
    done = run([str(tmp_path / "project" / SCRIPT), "--check"])
    states = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines()}
    assert set(states) == {"system", "python", "compiler", "memcached", "package", "docker", "group", "image"}
    assert states["package"] == "missing"
    assert set(states.values()) <= {"ok", "missing"}
    assert done.returncode == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_check_on_an_empty_machine_says_what_would_be_done(machine: Machine) -> None:
    before = sorted(machine.top.rglob("*"))
    done = machine.run("--check")
    assert done.returncode == 1
    for would in ("python3-venv", "gcc and libc6-dev", "install memcached", "docker.io", ".venv", "image"):
        assert re.search(rf"^missing .*would .*{would}", done.stdout, re.MULTILINE)
    assert {call.split()[0] for call in machine.calls()} <= {"id", "python3"}
    assert [path for path in sorted(machine.top.rglob("*")) if path.name != "calls"] == before


def test_check_says_yes_after_the_setup(machine: Machine) -> None:
    assert machine.run().returncode == 0
    done = machine.run("--check")
    assert "missing" not in done.stdout
    assert done.returncode == 0
    assert machine.run("--check", "test").returncode == 1  # the tools for tests are not there yet


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ('ID=fedora\nVERSION_ID=41\nPRETTY_NAME="Fedora Linux 41"\n', "Fedora Linux 41"),
        ('ID=debian\nVERSION_ID="11"\nPRETTY_NAME="Debian 11"\n', "Debian 11"),
        ('ID=ubuntu\nVERSION_ID="20.04"\nPRETTY_NAME="Ubuntu 20.04"\n', "Ubuntu 20.04"),
        ("", "without os-release"),
    ],
)
@pytest.mark.parametrize("arguments", [[], ["--check"], ["demo"]])
def test_another_system_gets_one_line(machines: list[Machine], release: str, name: str, arguments: list[str]) -> None:
    machine = make(machines, release)
    done = machine.run(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert name in done.stderr
    assert "Debian 12, Ubuntu 22.04 and Ubuntu 24.04" in done.stderr
    assert {call.split()[0] for call in machine.calls()} <= {"id"}
    assert not (machine.project / ".venv").exists()


@pytest.mark.parametrize(
    "release",
    [
        'ID=debian\nVERSION_ID="13"\n',
        'ID=debian\nPRETTY_NAME="Debian GNU/Linux forky/sid"\n',
        'ID=ubuntu\nVERSION_ID="25.10"\n',
    ],
)
def test_a_newer_system_goes_on_with_a_note(machines: list[Machine], release: str) -> None:
    done = make(machines, release).run()
    assert "newer than" in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("release", "python"),
    [(DEBIAN_12, "python3-venv"), (UBUNTU_24, "python3-venv"), (UBUNTU_22, "python3.11 python3.11-venv")],
)
def test_packages_of_each_system(machines: list[Machine], release: str, python: str) -> None:
    machine = make(machines, release)
    done = machine.run()
    assert done.returncode == 0, done.stderr
    update, install = machine.calls("apt-get")
    assert update.endswith("update")
    options, _, packages = install.partition(" --no-remove ")
    assert "--no-install-recommends" in options
    assert "DPkg::Lock::Timeout=300" in options
    wanted = f"{python} gcc libc6-dev memcached docker.io"
    assert packages.removesuffix(" apparmor").removesuffix(" ca-certificates") == wanted
    assert "11211" in done.stderr
    assert machine.calls("pip") == []
    assert "python -m pip install -e .\\[all\\]" in machine.calls("python")


def test_the_second_run_installs_nothing(machine: Machine) -> None:
    machine.run()
    done = machine.run()
    assert done.returncode == 0
    assert not [call for call in machine.calls() if re.match(r"apt-get|dockerd|python3 -m venv|python -m pip", call)]
    assert machine.calls("python")[-2:] == ["python -m colocate_workloads", "python -m colocate_workloads --image"]


def test_a_changed_pyproject_or_a_moved_tree_is_installed_anew(machine: Machine) -> None:
    machine.run("--no-docker")
    with (machine.project / "pyproject.toml").open("a") as file:
        file.write("# new\n")
    machine.run("--no-docker")
    assert "python -m pip install -e .\\[all\\]" in machine.calls()
    assert not [call for call in machine.calls() if "-m venv" in call]
    machine.project = machine.project.rename(machine.top / "moved")
    machine.run("--no-docker")
    assert [call for call in machine.calls("python3") if "-m venv --clear" in call]


def test_a_plain_user_without_sudo_is_told_so(machine: Machine) -> None:
    done = machine.run(uid=1000)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "sudo" in done.stderr
    assert machine.calls("apt-get") == []
    assert not (machine.project / ".venv").exists()


def test_a_plain_user_needs_no_sudo_where_everything_is_there(machine: Machine) -> None:
    done = machine.with_all().run("--no-docker", uid=1000)
    assert done.returncode == 0, done.stderr
    assert machine.calls("apt-get") == []


def test_sudo_is_used_for_packages_engine_and_group_only(machine: Machine) -> None:
    machine.add("sudo")
    done = machine.run(uid=1000)
    assert done.returncode == 0, done.stderr
    used = [call.split()[1] for call in machine.calls("sudo") if call != "sudo -n true"]
    assert used == ["env", "env", "usermod", "sh"]  # apt-get update, apt-get install, group, engine
    assert "usermod -aG docker ann" in machine.calls()
    assert "as good as root" in done.stderr
    assert "newgrp docker" in done.stderr


def test_who_runs_it_by_sudo_joins_the_group(machine: Machine) -> None:
    assert machine.with_all().run(SUDO_USER="ann").returncode == 0
    assert machine.calls("usermod") == ["usermod -aG docker ann"]


def test_the_engine_is_started_by_hand_and_stays(machine: Machine) -> None:
    (machine.root / "var/run/docker.pid").write_text("1")  # of an earlier life of the machine
    done = machine.with_all().run()
    assert done.returncode == 0, done.stderr
    assert machine.calls("dockerd") == ["dockerd"]
    assert machine.calls("systemctl") == []
    assert str(machine.root / "var/log/colocate-dockerd.log") in done.stderr
    assert "ok       docker" in machine.run("--check").stdout


def test_systemd_starts_the_engine(machine: Machine) -> None:
    (machine.root / "run/systemd/system").mkdir(parents=True)
    assert machine.with_all().run().returncode == 0
    assert machine.calls("systemctl") == ["systemctl start docker"]
    assert "python -m colocate_workloads --image" in machine.calls()


def test_a_machine_that_can_run_no_engine_goes_on_without(machine: Machine) -> None:
    (machine.state / "dockerd-fails").touch()
    done = machine.with_all().run()
    assert done.returncode == 0
    assert re.search(r"no engine can run here \(failed to start daemon: .*plain processes", done.stderr)
    assert "python -m colocate_workloads" in machine.calls()
    assert "python -m colocate_workloads --image" not in machine.calls()


def test_an_engine_elsewhere_that_does_not_answer_is_left_alone(machine: Machine) -> None:
    done = machine.with_all().run(DOCKER_HOST=f"unix://{machine.top}/nothing")
    assert done.returncode == 0
    assert "DOCKER_HOST=" in done.stderr
    assert machine.calls("dockerd") == []


def test_a_docker_client_is_no_engine(machine: Machine) -> None:
    machine.add("docker")
    machine.run()
    assert "docker.io" in machine.calls("apt-get")[1]


def test_no_docker_leaves_docker_alone(machine: Machine) -> None:
    done = machine.run("--no-docker")
    assert done.returncode == 0
    assert "docker.io" not in " ".join(machine.calls("apt-get"))
    assert machine.calls("dockerd") == []


def test_a_failed_step_shows_the_end_of_its_output(machine: Machine) -> None:
    (machine.state / "apt-fails").touch()
    done = machine.run()
    assert done.returncode == 1
    assert "E: no space left" in done.stderr
    assert re.search(rf"failed: apt-get install .* in {machine.top}/colocate-setup\.\w+\.log$", done.stderr.strip())


@pytest.mark.parametrize("refuses", [True, False])
def test_demo_gets_its_arguments_and_its_exit_code_counts(machine: Machine, refuses: bool) -> None:
    machine.with_all().add("sudo")
    if refuses:
        (machine.state / "refuses").touch()
    done = machine.run("demo", "--slo", "0.8 ms", "it's\n$HOME", "", uid=1000)
    assert done.returncode == 7, done.stderr
    assert machine.calls("colocate") == [r"colocate demo --slo 0.8\ ms $'it\'s\n$HOME' ''"]
    assert bool(machine.calls("sg")) == refuses  # this shell is not in the group yet, so sg is asked
    assert "python -m colocate_workloads --image" in machine.calls()


def test_test_runs_everything_and_ends_with_pytest(machine: Machine) -> None:
    done = machine.with_all().run("test", "-k", "a or b")
    assert done.returncode == 0, done.stderr
    assert "python -m pip install -e .\\[dev\\]" in machine.calls()
    names = [call.split()[0] for call in machine.calls()]
    assert names[-5:] == ["ruff", "mypy", "mypy", "lint-imports", "pytest"]
    assert machine.calls("ruff") == ["ruff check"]
    assert machine.calls("pytest") == [r"pytest -k a\ or\ b"]
    assert done.stdout.splitlines()[-1] == "3 passed in 0.01s"
    machine.run("demo")
    assert not [call for call in machine.calls() if "pip install" in call]  # what tests need is enough for the demo


def test_tests_get_a_browser_and_of_prometheus_nothing_but_promtool(machine: Machine) -> None:
    machine.with_all().add("sudo")
    assert "would take it out of" in machine.run("--check", "test").stdout
    done = machine.run("test")
    assert done.returncode == 0, done.stderr
    _, install, download = machine.calls("apt-get")
    assert install.endswith(" --no-remove chromium chromium-driver")
    assert download == "apt-get -q download prometheus"
    assert machine.calls("dpkg") == ["dpkg -x ./prometheus_2.42_amd64.deb ."]
    assert (machine.project / ".venv/bin/promtool").exists()
    assert not list(machine.top.glob("colocate-promtool.*"))
    machine.run("test")
    assert machine.calls("apt-get") == machine.calls("dpkg") == []
    assert machine.run("--check", "test").stdout.count("missing") == machine.run("--check").stdout.count("missing")


def test_tests_by_root_get_sudo_for_the_users_that_they_make(machine: Machine) -> None:
    for name in ("chromium", "chromedriver", "promtool"):
        machine.with_all().add(name)
    assert machine.run("demo").returncode == 7
    assert machine.calls("apt-get") == []
    assert machine.run("test").returncode == 0
    assert [call.split()[-1] for call in machine.calls("apt-get")] == ["update", "sudo"]


def test_promtool_comes_after_fresh_lists_where_there_are_none(machine: Machine) -> None:
    for name in ("chromium", "chromedriver", "sudo"):
        machine.with_all().add(name)
    assert machine.run("test").returncode == 0
    assert [call.split()[-1] for call in machine.calls("apt-get")] == ["prometheus", "update", "prometheus"]


def test_a_promtool_and_a_browser_that_are_there_are_left_alone(machine: Machine) -> None:
    for name in ("chromium", "chromedriver", "promtool", "sudo"):
        machine.with_all().add(name)
    assert machine.run("test").returncode == 0
    assert machine.calls("apt-get") == machine.calls("dpkg") == []


def test_on_ubuntu_tests_go_on_without_a_browser_and_say_so(machines: list[Machine]) -> None:
    done = make(machines, UBUNTU_24).with_all().run("test")
    assert done.returncode == 0, done.stderr
    assert "note: no chromium" in done.stderr
    assert "chromium" not in " ".join(machines[-1].calls("apt-get"))
    assert (machines[-1].project / ".venv/bin/promtool").exists()


def test_only_tests_want_a_browser_and_promtool(machine: Machine) -> None:
    assert machine.run().returncode == 0
    assert not re.search("chromium|prometheus", " ".join(machine.calls()))
    assert not re.search("browser|promtool", machine.run("--check").stdout)


def test_a_failed_linter_is_remembered_past_pytest(machine: Machine) -> None:
    (machine.state / "mypy-fails").touch()
    done = machine.with_all().run("test")
    assert done.returncode == 1
    assert "failed so far: mypy" in done.stderr
    assert done.stdout.splitlines()[-1] == "3 passed in 0.01s"
    assert machine.run("test", PYTEST_CODE="5").returncode == 5


def test_without_arguments_all_tests_run_in_two_parts_and_each_can_fail(machine: Machine) -> None:
    machine.with_all()
    done = machine.run("test")
    assert done.returncode == 0
    assert done.stdout.count("3 passed") == 2
    assert machine.calls("pytest") == [
        r"pytest -n logical --maxprocesses 8 --dist loadfile -m not\ live", "pytest -m live",
    ]  # fmt: skip
    for part in ("-m not live", "-m live"):
        assert machine.run("test", PYTEST_FAILS=part).returncode == 1, part
        assert len(machine.calls("pytest")) == 2
