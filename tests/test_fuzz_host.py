"""What comes from outside and is no log: catalogues, options, figures, saved state, memcached's answers, /proc.

Whatever stands there, the answer is a value or what the docstring names, in one line without control characters.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import socket
import string
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from colocate.cli import run as run_cli
from colocate.cli.main import Parser
from colocate.cli.options import parse_with_config
from colocate.errors import UserError
from colocate.host import find, procfs, proctree
from colocate.host.cgroup import JobCgroup, find_place, hierarchies, may_weigh
from colocate.host.memcached import ServiceAffinity
from colocate.host.monitor import ResourceMonitor
from colocate.host.state import VERSION, Saved, StateFile, boot_id
from colocate.host.statistics import Statistics
from colocate.jobs import JobSpec, load_catalogue
from colocate.sim.calibration import load_calibration
from colocate.topology import read_topology
from tests.memcached_fixture import eventually

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
DEEP = 3000 * "["
DIGITS = 5000 * "1"  # more than Python converts
PROJECT = Path(__file__).parents[1]


def told(error: UserError) -> None:
    text = str(error)
    assert text
    assert not set(text) & set(map(chr, [*range(32), 127])), repr(text)


def damaged(texts: list[str], noise: list[str]) -> st.SearchStrategy[bytes]:
    """Real texts: cut anywhere, a piece left out, doubled or replaced, a bit flipped."""

    @st.composite
    def one(draw: st.DrawFn) -> bytes:
        data = draw(st.sampled_from(texts)).encode()
        for _ in range(draw(st.integers(0, 3))):
            first, last = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
            kind = draw(st.sampled_from(["cut", "drop", "double", "replace", "flip"]))
            if kind == "cut":
                data = data[:last]
            elif kind == "drop":
                data = data[:first] + data[last:]
            elif kind == "double":
                data = data[:last] + data[first:]
            elif kind == "replace":
                data = data[:first] + draw(st.sampled_from(noise)).encode("utf-8", "surrogateescape") + data[last:]
            elif data:
                place = min(first, len(data) - 1)
                data = data[:place] + bytes([data[place] ^ 1 << draw(st.integers(0, 7))]) + data[place + 1 :]
        return data

    return one()


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from([10**400, -1, 0, 1025, "x", "a\nb", "\x1b[31m", "²", "../..", "-v", "$(id)", "a\0b", "x" * 400]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6), v, max_size=3), max_leaves=8
)


def toml(value: object) -> str:
    """Enough of TOML to write what `VALUES` makes; None is left out by who calls."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(k))} = {toml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(v) for v in value if v is not None) + "]"
    if isinstance(value, str):
        plain = set(string.printable) - set('"\\\n\r\t\x0b\x0c')
        return (
            '"' + "".join(c if c in plain else f"\\U{ord(c):08x}" for c in value if not 0xD800 <= ord(c) < 0xE000) + '"'
        )
    return repr(value)


def table(known: dict[str, object]) -> st.SearchStrategy[str]:
    """A TOML table: good, with some of its values replaced, some keys more or fewer."""

    @st.composite
    def one(draw: st.DrawFn) -> str:
        made = dict(known)
        for key in draw(st.lists(st.sampled_from([*known, "colour", "a\nb", "\x1b"]), max_size=3)):
            made[key] = draw(VALUES)
        return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in made.items() if value is not None)

    return one()


TOML_NOISE = ["[[job]]", "[", "=", '"', "\x00", "\udcff", DEEP, f"a = {DIGITS}", "9999-99-99", "'''", "\r", "{", "nan"]
JOB = {
    "name": "sum-up", "image": "registry.example:5000/team/sum@sha256:0f", "command": "./sum -n {threads}",
    "threads": 3, "network": "none", "directory": "here", "runtime_s": {"1": 20.5, "2": 11},
    "sensitivity": {"llc": 1.5},
}  # fmt: skip
CATALOGUES = [path.read_text() for path in sorted((PROJECT / "colocate/catalogues").glob("*.toml"))]


def catalogue_holds(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "jobs.toml").write_bytes(data)
    try:
        jobs = load_catalogue(str(tmp_path / "jobs.toml"))
    except UserError as error:
        return told(error)
    for job in jobs:
        assert isinstance(job, JobSpec)
        assert job.argv(2)
        words = (job.name, job.image, job.network, str(job.directory), *job.command, *job.sensitivity)
        assert not any("\0" in word for word in words), "no program and no engine takes it"
        assert len(job.name) <= 64
    return None


@UNHURRIED
@given(damaged(CATALOGUES, TOML_NOISE))
@example(f"a = {DEEP}".encode())
@example(f"a = {DIGITS}".encode())
@example(b"\xff")
def test_a_damaged_catalogue(tmp_path: Path, data: bytes) -> None:
    catalogue_holds(tmp_path, data)


@UNHURRIED
@given(st.lists(table(JOB), min_size=1, max_size=2).map(lambda jobs: "".join(f"[[job]]\n{job}" for job in jobs)))
@example(f'[[job]]\nname = "a"\nimage = "x"\ncommand = "x"\nruntime_s = {{ 1 = {10**400} }}')
@example('[[job]]\nname = "a"\nimage = "x"\ncommand = "x"\nruntime_s = { "\u00b2" = 1 }')
@example('[[job]]\nname = "a\\nb"\nimage = "x"\ncommand = "x"')
@example('[[job]]\nname = "a"\nimage = "x"\ncommand = "x"\n"a\\u001b[31m" = 1')
@example('[[job]]\nname = "a"\nimage = "x"\ncommand = ["x", "\\u0000"]')
@example('[[job]]\nname = "a"\nimage = "x"\ncommand = "x"\ndirectory = "\\u0000"')
@example('[[job]]\nname = "a"\nimage = "x"\ncommand = "x"\nsensitivity = { "a\\nb" = 0 }')
def test_a_catalogue_of_odd_values(tmp_path: Path, text: str) -> None:
    catalogue_holds(tmp_path, text.encode())


OPTIONS = {
    "memcached-ip": "127.0.0.1", "port": 11211, "policy": "share", "set": ["caution=2"], "cores": "0-3", "slo": "0.8ms",
    "interval": "50ms", "duration": "15m", "dry-run": True, "log-dir": "logs", "on-exit": "stop", "probe-hz": 16.0,
    "state-dir": "/run/x",
}  # fmt: skip


def configuration_holds(tmp_path: Path, data: bytes) -> None:
    parser = Parser(prog="colocate", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    run_cli.add_parser(commands)
    (tmp_path / "some.toml").write_bytes(data)
    configurable = commands.choices["run"]
    assert isinstance(configurable, argparse.ArgumentParser)
    try:
        args = parse_with_config(configurable, ["--config", str(tmp_path / "some.toml")])
    except UserError as error:
        return told(error)
    assert not any("\0" in str(value) for value in vars(args).values())
    return None


@UNHURRIED
@given(
    table(OPTIONS).map(str.encode) | damaged(["".join(f"{k} = {toml(v)}\n" for k, v in OPTIONS.items())], TOML_NOISE)
)
@example(f"a = {DEEP}".encode())
@example(f"port = {DIGITS}".encode())
@example(b'log-dir = "a\\u0000b"')
@example(b'on-exit = "a\\nb"')
@example(b'port = "a\\nb"')
@example(b'memcached-ip = "a\\u001b[31mb"\nslo = "a\\u001b[31mb"')
def test_odd_options(tmp_path: Path, data: bytes) -> None:
    configuration_holds(tmp_path, data)


CALIBRATION = (PROJECT / "colocate/sim/calibrations/cca-2025.toml").read_text()


@UNHURRIED
@given(damaged([CALIBRATION], [*TOML_NOISE, str(10**400), "-1", "0", "nan", "[]", "true", "1e308", '"x"']))
@example(f"a = {DEEP}".encode())
@example(CALIBRATION.replace("cores = ", f"cores = {DIGITS}", 1).encode())
@example(CALIBRATION.replace("qps_min = ", f"qps_min = {10**400} #", 1).encode())
@example(CALIBRATION.replace("light = { value = [0.2211", f"light = {{ value = [{10**400}", 1).encode())
@example(CALIBRATION.replace("core_scaling = { value = ", f"core_scaling = {{ value = {10**400} #", 1).encode())
@example(CALIBRATION.replace("core_scaling = { value = ", f"core_scaling = {{ low = {10**400}, value = ", 1).encode())
def test_odd_figures(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "some.toml").write_bytes(data)
    try:
        load_calibration(str(tmp_path / "some.toml"))
    except UserError as error:
        told(error)


SAVED = {
    "version": VERSION, "run": "run1", "boot_id": boot_id(), "runtime": "docker", "log": "logs/log1.txt",
    "service": {"pid": 999999, "start_ticks": 9, "name": "memcached", "masks": {"999999": "0-3"}},
    "groups": ["/sys/fs/cgroup/cpu/colocate-run1"], "keeps_jobs": False, "port": 11211,
}  # fmt: skip


def summed(data: dict[str, object]) -> bytes:
    """As it lies on the disk, with a checksum that is right whatever it says."""
    text = json.dumps(data, sort_keys=True)
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), **data}).encode()


def resaid(before: str, after: str) -> bytes:
    """The state with other words in it, and the checksum of those."""
    made = json.dumps(SAVED).replace(before, after)
    assert made != json.dumps(SAVED)
    return summed(json.loads(made))


@st.composite
def states(draw: st.DrawFn) -> bytes:
    made = json.loads(json.dumps(SAVED))
    for key in draw(st.lists(st.sampled_from([*SAVED, "more"]), max_size=2)):
        made[key] = draw(VALUES)
    for key in draw(st.lists(st.sampled_from([*SAVED["service"], "more"]), max_size=2)):
        if isinstance(made["service"], dict):
            made["service"][key] = draw(VALUES)
    return summed(made)


@UNHURRIED
@given(states() | damaged([summed(SAVED).decode()], [DEEP, DIGITS, "null", "{", '"', "\udcff", "-", "1e999", "NaN"]))
@example(DEEP.encode())
@example(json.dumps(SAVED).replace('"pid": 999999', f'"pid": {DIGITS}').encode())
@example(resaid('"pid": 999999', f'"pid": {10**30}'))
@example(resaid('"pid": 999999', '"pid": -1'))
@example(resaid('"pid": 999999', '"pid": true'))
@example(resaid('"run1"', '"../../x"'))
@example(resaid('"run1"', '""'))
@example(resaid("log1", "\\u0000"))
@example(resaid("/sys/fs/cgroup/cpu", "/etc"))
@example(resaid('"port": 11211', '"port": [1]'))
def test_an_odd_state_file(tmp_path: Path, data: bytes) -> None:
    state = StateFile(tmp_path)
    state.path.write_bytes(data)
    saved = state.read()
    if saved is None:
        assert not state.path.exists(), "set aside, or of an earlier boot"
        return
    assert isinstance(saved, Saved)
    assert saved.run.replace("-", "").replace("_", "").isalnum()
    assert all(path.startswith("/sys/fs/cgroup/") and ".." not in path for path in saved.groups)
    assert "\0" not in saved.log
    try:
        affinity = ServiceAffinity.from_json(saved.service)
    except ValueError:
        return
    assert affinity.process.pid > 0
    assert affinity.restore() == 0, "that process is not there"


def test_what_the_fuzzer_begins_with_is_a_state_file(tmp_path: Path) -> None:
    state = StateFile(tmp_path)
    state.path.write_bytes(summed(SAVED))
    saved = state.read()
    assert saved is not None
    assert saved.run == "run1"
    assert ServiceAffinity.from_json(saved.service).process.pid == 999999


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Something that gives one answer to whatever it is asked, and hangs up; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(4096)
                        connection.sendall(answer)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


ANSWER = (
    "STAT pid 4242\r\nSTAT uptime 77\r\nSTAT version 1.6.18\r\nSTAT pointer_size 64\r\nSTAT rusage_user 0.5\r\n"
    "STAT curr_connections 2\r\nSTAT cmd_get 10\r\nSTAT cmd_set 5\r\nSTAT accepting_conns 1\r\nSTAT threads 2\r\n"
    "STAT hash_is_expanding 0\r\nSTAT evictions 0\r\nEND\r\n"
)  # fmt: skip
ANSWER_NOISE = [
    "STAT", "STAT ", "STAT pid", "STAT pid \r\n", f"STAT pid {DIGITS}\r\n", "ERROR\r\n", "CLIENT_ERROR bad\r\n",
    "SERVER_ERROR\r\n", "\r\n", "END\r\n", "\udcff", "-1", "nan", "VALUE a 0 1\r\nx\r\n", "HTTP/1.0 400 Bad\r\n\r\n",
    "\x00",
]  # fmt: skip
ANSWERS = damaged([ANSWER], ANSWER_NOISE)


@settings(UNHURRIED, max_examples=60)
@given(ANSWERS)
@example(b"STAT pid\r\nEND\r\n")
@example(b"STAT pid \r\nEND\r\n")
@example(f"STAT pid {DIGITS}\r\nEND\r\n".encode())
@example(f"STAT cmd_get {DIGITS}\r\nEND\r\n".encode())
@example(b"STAT cmd_get 1.5\r\nEND\r\n")
@example(b"STAT \r\nEND\r\n")
@example(b"STAT\r\nEND\r\n")
@example(b"\r\n")
@example(b"")
def test_odd_statistics(answer: bytes) -> None:
    with answering(answer) as port:
        statistics = Statistics("127.0.0.1", port, period_s=0.001)
        try:
            statistics.first(0.05)
            sample = statistics.sample()
            assert statistics._thread.is_alive(), "whatever is said, it is asked again"
        finally:
            statistics.stop()
        assert sample.qps.value is None or sample.qps.value >= 0
        assert sample.threads >= 0
        told_pid = find._told_pid("127.0.0.1", port)
        assert told_pid is None or told_pid > 0


def test_an_answer_without_an_end_is_not_waited_for() -> None:
    """Something that never stops talking: neither memory nor time without end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def flood() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    while True:
                        connection.sendall(b"STAT x 1\r\n" * 1000)
                except OSError:
                    return

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        assert find._told_pid("127.0.0.1", listener.getsockname()[1]) is None
        eventually(lambda: not thread.is_alive(), "it has been hung up on")


STAT = (
    "cpu  10132153 290696 3084719 46828483 16683 0 25195 0 175628 0\n"
    "cpu0 1393280 32966 572056 13343292 6130 0 17875 0 23933 0\ncpu1 1335 1 2 3 4 5 6 7 8 9\nintr 1 2 3\nctxt 5\n"
)
PID_STAT = "4242 (mem cached) S) S 1 4242 4242 0 -1 4194624 1 0 0 0 5 6 7 8 20 0 10 0 12345 1 2 3 4 5 6 7 8 9 10\n"
MOUNTS = (
    "24 1 0:22 / /proc rw,nosuid - proc proc rw\n"
    "30 23 0:26 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro,mode=755\n"
    "31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw\n"
    "32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:11 - cgroup cgroup rw,cpu,cpuacct\n"
    "33 30 0:29 /some\\040top /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
)
CGROUP = "5:cpu,cpuacct:/a/b\n4:cpuset:/some top/b\n1:name=systemd:/x\n0::/a/b\n"
PROC_NOISE = ["", " ", "\n", "x", "-1", ":", "::", " - ", "-", "\udcff", "\x00", "\\777", "cpu", "0", "..", "Z", ")"]
READERS: dict[str, tuple[str, Callable[[bytes], object]]] = {
    "core_ticks": (STAT, procfs.core_ticks),
    "core_list": ("0-2,4\n", procfs.core_list),
    "run_delay": ("8432100 2100 77\n", procfs.run_delay),
    "mem_available_bytes": ("MemTotal: 9 kB\nMemFree: 5 kB\nMemAvailable:   7 kB\n", procfs.mem_available_bytes),
    "some_avg10": ("some avg10=1.50 avg60=0.10 avg300=0.00 total=12\nfull avg10=0.00\n", procfs.some_avg10),
}


@pytest.mark.parametrize("what", READERS)
def test_a_text_of_proc_cut_short(what: str) -> None:
    text, read = READERS[what]
    assert read(text.encode())

    @UNHURRIED
    @given(damaged([text], PROC_NOISE))
    def holds(data: bytes) -> None:
        read(data)

    holds()


def put(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


TREE = {
    "proc/stat": STAT, "proc/meminfo": "MemAvailable: 7 kB\n", "proc/pressure/cpu": "some avg10=1.00 avg60=0 total=1\n",
    "proc/7/stat": PID_STAT, "proc/7/comm": "memcached\n", "proc/7/cgroup": CGROUP, "proc/self/cgroup": CGROUP,
    "proc/7/task/7/schedstat": "8432100 2100 77\n", "proc/self/mountinfo": MOUNTS,
    "proc/7/environ": "A=1\x00COLOCATE_JOB=run1/spin\x00", "proc/sys/kernel/random/boot_id": "x-y\n",
    "sys/devices/system/cpu/online": "0-1\n", "sys/devices/system/cpu/cpu0/topology/thread_siblings_list": "0-1\n",
    "sys/devices/system/cpu/cpu0/cache/index3/shared_cpu_list": "0-1\n",
    "sys/fs/cgroup/cpuset/b/cpuset.cpus": "0-1\n", "sys/fs/cgroup/cpuset/b/cpuset.effective_cpus": "0-1\n",
    "sys/fs/cgroup/cpuset/b/cgroup.procs": "7\n8\n", "sys/fs/cgroup/cpu,cpuacct/a/b/cpuacct.usage": "123456\n",
    "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.shares": "1024\n", "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.idle": "0\n",
    "sys/fs/cgroup/unified/a/b/cpu.stat": "usage_usec 77\nuser_usec 1\n",
    "sys/fs/cgroup/unified/a/b/cgroup.events": "populated 1\nfrozen 0\n",
    "sys/fs/cgroup/unified/a/b/cgroup.subtree_control": "cpu memory\n",
}  # fmt: skip


def look_at_everything(root: Path) -> None:
    """Every reader of the kernel's files; none of them knows an error."""
    monitor = ResourceMonitor(frozenset({0, 1}), root=root)
    try:
        for _ in range(2):
            monitor.cores()
            monitor.service(7)
        monitor.memory_available_bytes()
        monitor.cpu_pressure()
    finally:
        monitor.close()
    procfs.start_ticks(7, root)
    procfs.command(7, root)
    procfs.threads(7, root)
    boot_id(root)
    hierarchies(root)
    for controller in ("cpu", "cpuset", "freezer", "cpuacct"):
        find_place(7, controller, root)
    proctree.session_members(4242, root)
    proctree.cpu_s(7, root)
    proctree.stopped(lambda: [7], root)
    proctree.marked("run1", root)
    for group in (JobCgroup.of(7, root), JobCgroup(freezer=root / "sys/fs/cgroup/unified/a/b")):
        for read in (group.cores, group.frozen, group.cpu_s, group.pids, group.yields, group.how_it_yields):
            read()
        group.close()
    may_weigh(root / "sys/fs/cgroup/unified/a/b")
    try:
        assert read_topology(root).cores
    except UserError as error:
        told(error)


def test_the_tree_of_the_fuzzer_is_one_that_is_read(tmp_path: Path) -> None:
    put(tmp_path, {name: text.encode() for name, text in TREE.items()})
    look_at_everything(tmp_path)
    assert find_place(7, "cpuset", tmp_path) is not None
    assert JobCgroup.of(7, tmp_path).cores() == {0, 1}
    assert JobCgroup.of(7, tmp_path).cpu_s() is not None
    assert read_topology(tmp_path).siblings[0] == {0, 1}


@settings(UNHURRIED, max_examples=300)
@given(st.data())
def test_a_tree_of_damaged_files(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.getbasetemp() / "fuzzed"
    spoilt = data.draw(st.lists(st.sampled_from(sorted(TREE)), min_size=1, max_size=4, unique=True))
    files = {name: text.encode() for name, text in TREE.items()}
    for name in spoilt:
        files[name] = data.draw(damaged([TREE[name]], PROC_NOISE), label=name)
    put(root, files)
    look_at_everything(root)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("proc/7/cgroup", b"5:cpu,cpuacct:/a/b\n4:cpuset:/some top/\x00"),
        ("proc/self/mountinfo", b"1 2 0:3 / /a\x00b rw - cgroup cgroup rw,cpuset\n"),
        ("proc/self/mountinfo", b"1 2 0:3 / /a\\000b rw - cgroup cgroup rw,cpuset\n"),
    ],
)
def test_a_path_with_a_nul_is_no_place(tmp_path: Path, name: str, bad: bytes) -> None:
    put(tmp_path, {each: text.encode() for each, text in TREE.items()} | {name: bad})
    look_at_everything(tmp_path)
    assert find_place(7, "cpuset", tmp_path) is None


@pytest.mark.parametrize("name", sorted(TREE))
@pytest.mark.parametrize("bad", [b"", b"\xff\xfe\n", b"x", b" \n", b":\n", b"-1\n", b"1" * 5000])
def test_a_tree_with_one_file_of_nonsense(tmp_path: Path, name: str, bad: bytes) -> None:
    put(tmp_path, {each: text.encode() for each, text in TREE.items()} | {name: bad})
    look_at_everything(tmp_path)
