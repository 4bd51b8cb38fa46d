from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colocate.host import procfs
from colocate.host.monitor import ResourceMonitor
from colocate.host.statistics import Statistics
from colocate.view import CoreUse, Signal
from tests.memcached_fixture import Memcached, eventually, free_port, running_memcached

pytestmark = pytest.mark.live

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on emulated machines, too

STAT = """\
cpu  400 0 80 1600 20 0 10 5 7 0
cpu0 300 0 40 800 10 0 10 5 7 0
cpu1 100 0 40 800 10 0 0 0 0 0
intr 1146492 0 0
ctxt 5
"""


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Tree:
    """A temporary /proc."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = Clock()
        self.write("stat", STAT)
        self.monitor = ResourceMonitor({0, 1}, root, self.clock)

    def write(self, name: str, text: str | bytes) -> None:
        path = self.root / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    def thread(self, tid: int, run_ns: int, wait_ns: int, slices: int) -> None:
        self.write(f"7/task/{tid}/schedstat", f"{run_ns} {wait_ns} {slices}\n")

    def end_thread(self, tid: int) -> None:
        """In the kernel, an open descriptor of an ended thread reads as an error; here it must read as nothing."""
        self.write(f"7/task/{tid}/schedstat", "")
        (self.root / f"proc/7/task/{tid}/schedstat").unlink()
        (self.root / f"proc/7/task/{tid}").rmdir()

    def after(self, seconds: float) -> tuple[Signal, Signal, Signal]:
        self.clock.now_s += seconds
        return self.monitor.service(7)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path)
    yield made
    made.monitor.close()


@pytest.fixture
def server() -> Iterator[Memcached]:
    with running_memcached() as memcached:
        yield memcached


def test_core_use_is_the_change_and_guest_time_counts_once(tree: Tree) -> None:
    assert tree.monitor.cores() == dict.fromkeys((0, 1), CoreUse(0.0, 0.0, 0.0))
    # core 0: 40 user (10 of them guest), 10 nice, 10 system, 20 idle, 10 softirq, 10 steal
    tree.write("stat", STAT.replace("cpu0 300 0 40 800 10 0 10 5 7 0", "cpu0 340 10 50 820 10 0 20 15 17 0"))
    use = tree.monitor.cores()
    assert use[0] == CoreUse(busy=0.7, softirq=0.1, steal=0.1)
    assert use[1] == CoreUse(0.0, 0.0, 0.0)
    assert tree.monitor.cores() == use  # no tick has passed: the last value stays


def test_idle_time_that_runs_backwards_is_no_use(tree: Tree) -> None:
    tree.write("stat", STAT.replace("cpu1 100 0 40 800", "cpu1 110 0 40 790"))
    assert tree.monitor.cores()[1] == CoreUse(1.0, 0.0, 0.0)


def test_cores_are_offline_by_the_kernels_word_alone(tree: Tree) -> None:
    online = tree.root / "sys/devices/system/cpu/online"
    assert tree.monitor.offline() == set(), "it does not tell"
    online.parent.mkdir(parents=True)
    for text, offline in (("0-1,7\n", set()), ("0,7\n", {1}), ("0-1", {1}), ("", {1}), ("x\n", {1}), ("0-3\n", set())):
        online.write_text(text)
        assert tree.monitor.offline() == offline, text


def test_a_core_that_is_not_told_keeps_its_last_use(tree: Tree) -> None:
    tree.write("stat", STAT.replace("cpu1 100 0 40 800", "cpu1 150 0 40 850"))
    tree.monitor.cores()
    tree.write("stat", STAT.partition("cpu1")[0])
    assert tree.monitor.cores()[1] == CoreUse(0.5, 0.0, 0.0)


def test_schedstat_gives_cpu_wait_and_delay(tree: Tree) -> None:
    tree.thread(7, 1_000_000_000, 500_000_000, 100)
    tree.thread(8, 0, 0, 0)
    assert tree.after(1.0) == (Signal(), Signal(), Signal())
    tree.thread(7, 1_100_000_000, 510_000_000, 150)
    tree.thread(8, 20_000_000, 2_000_000, 50)
    cpu, delay, wait = tree.after(0.5)
    assert (cpu.value, cpu.age_s) == (pytest.approx(0.24), 0.0)
    assert (wait.value, wait.age_s) == (pytest.approx(0.024), 0.0)
    assert (delay.value, delay.age_s, delay.samples) == (pytest.approx(120.0), 0.0, 100)


def test_without_a_slice_the_last_delay_ages(tree: Tree) -> None:
    tree.thread(7, 0, 0, 0)
    tree.after(1.0)
    tree.thread(7, 1000, 50_000, 5)
    tree.after(1.0)
    cpu, delay, _ = tree.after(2.0)
    assert (cpu.value, cpu.age_s) == (0.0, 0.0)
    assert (delay.value, delay.age_s) == (pytest.approx(10.0), 2.0)


def test_threads_come_and_go_without_a_jump(tree: Tree) -> None:
    tree.thread(7, 0, 0, 0)
    tree.thread(8, 9_000_000_000, 9_000_000_000, 9_000)
    tree.after(1.0)
    tree.end_thread(8)
    tree.thread(7, 250_000_000, 0, 10)
    assert tree.after(1.0)[0].value == pytest.approx(0.25)
    tree.thread(9, 5_000_000_000, 0, 10)
    tree.thread(7, 500_000_000, 0, 20)
    assert tree.after(1.0)[0].value == pytest.approx(0.25)
    tree.thread(9, 1_000_000, 0, 1)  # the same id, another thread
    tree.thread(7, 750_000_000, 0, 30)
    assert tree.after(1.0)[0].value == pytest.approx(0.25)


def test_a_thread_that_cannot_be_read_makes_the_figure_old_not_small(tree: Tree) -> None:
    """As where no descriptor is free."""
    for tid in (7, 8):
        tree.thread(tid, 0, 0, 0)
    tree.after(1.0)
    for tid in (7, 8):
        tree.thread(tid, 500_000_000, 0, 10)
    assert tree.after(1.0)[0].value == pytest.approx(1.0)
    hidden = tree.root / "proc/7/task/8/schedstat"
    hidden.write_text("")  # what is open reads as nothing, and cannot be opened anew
    hidden.unlink()
    hidden.mkdir()
    tree.thread(7, 600_000_000, 0, 20)
    assert (tree.after(1.0)[0].value, tree.after(1.0)[0].age_s) == (pytest.approx(1.0), 2.0)
    hidden.rmdir()
    tree.thread(8, 700_000_000, 0, 20)
    assert tree.after(1.0)[0].age_s == 3.0
    tree.thread(7, 700_000_000, 0, 30)
    tree.thread(8, 800_000_000, 0, 30)
    assert tree.after(1.0)[0] == Signal(pytest.approx(0.2), 0.0, 2)


def test_a_process_that_is_gone_leaves_an_ageing_figure(tree: Tree) -> None:
    tree.thread(7, 0, 0, 0)
    tree.after(1.0)
    tree.thread(7, 500_000_000, 0, 1)
    tree.after(1.0)
    tree.end_thread(7)
    cpu, _, wait = tree.after(3.0)
    assert (cpu.value, cpu.age_s) == (pytest.approx(0.5), 3.0)
    assert wait.age_s == 3.0
    assert not cpu.fresh(1.0)


def test_another_pid_starts_anew(tree: Tree) -> None:
    tree.thread(7, 0, 0, 0)
    tree.after(1.0)
    tree.thread(7, 500_000_000, 0, 1)
    tree.after(1.0)
    assert tree.monitor.service(12345) == (Signal(), Signal(), Signal())


def test_memory_and_pressure_once_a_second(tree: Tree) -> None:
    tree.write("meminfo", "MemTotal: 16 kB\nMemFree: 4 kB\nMemAvailable:      8 kB\n")
    tree.write("pressure/cpu", "some avg10=41.42 avg60=20.95 avg300=6.46 total=56330572\nfull avg10=0.00\n")
    assert tree.monitor.memory_available_bytes() == 8192
    assert tree.monitor.cpu_pressure() == pytest.approx(0.4142)
    tree.write("meminfo", "MemAvailable: 1 kB\n")
    assert tree.monitor.memory_available_bytes() == 8192
    tree.clock.now_s += 1.0
    assert tree.monitor.memory_available_bytes() == 1024


def test_a_kernel_that_tells_nothing(tmp_path: Path) -> None:
    monitor = ResourceMonitor({0}, tmp_path)
    assert monitor.cores() == {0: CoreUse(0.0, 0.0, 0.0)}
    assert monitor.service(1) == (Signal(), Signal(), Signal())
    assert monitor.memory_available_bytes() is None
    assert monitor.cpu_pressure() is None


def cut_or_changed(text: str) -> st.SearchStrategy[bytes]:
    data = text.encode()
    cut = st.integers(0, len(data)).map(lambda n: data[:n])
    changed = st.tuples(st.integers(0, len(data)), st.binary(max_size=4)).map(
        lambda c: data[: c[0]] + c[1] + data[c[0] :]
    )
    return st.one_of(cut, changed, st.binary(max_size=80))


@UNHURRIED
@given(cut_or_changed(STAT))
def test_core_ticks_never_raises(text: bytes) -> None:
    assert all(len(ticks) == 8 and min(ticks) >= 0 for ticks in procfs.core_ticks(text).values())


@UNHURRIED
@given(cut_or_changed("236512 1051307 3\n"))
def test_run_delay_never_raises(text: bytes) -> None:
    parsed = procfs.run_delay(text)
    assert parsed is None or min(parsed) >= 0


def test_a_schedstat_that_is_cut_is_not_taken_for_a_small_one() -> None:
    assert procfs.run_delay(b"236512 1051307 3\n") == (236512, 1051307, 3)
    assert procfs.run_delay(b"236512 1051307 3") is None


@UNHURRIED
@given(cut_or_changed("MemFree: 4 kB\nMemAvailable:      8 kB\n"))
def test_memory_never_raises(text: bytes) -> None:
    assert (procfs.mem_available_bytes(text) or 0) >= 0


@UNHURRIED
@given(cut_or_changed("some avg10=41.42 avg60=20.95 avg300=6.46 total=56330572\n"))
def test_pressure_never_raises(text: bytes) -> None:
    assert 0 <= (procfs.some_avg10(text) or 0) <= 1


PID_STAT = "42 (a ) R (b) S 1 42 42 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 987654 1 2"


@UNHURRIED
@given(cut_or_changed(PID_STAT))
def test_start_ticks_never_raises(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    root = tmp_path_factory.getbasetemp() / "stat"
    (root / "proc/42").mkdir(parents=True, exist_ok=True)
    (root / "proc/42/stat").write_bytes(text)
    assert (procfs.start_ticks(42, root) or 0) >= 0


def test_start_ticks_of_a_name_with_parentheses(tree: Tree) -> None:
    tree.write("42/stat", PID_STAT)
    assert procfs.start_ticks(42, tree.root) == 987654
    tree.write("42/stat", PID_STAT.replace(") S 1", ") Z 1"))
    assert procfs.start_ticks(42, tree.root) is None


def test_a_spin_shows_on_its_core_and_in_its_process() -> None:
    core = min(os.sched_getaffinity(0))
    with subprocess.Popen([sys.executable, "-c", "import time\nwhile True: time.sleep(0)"]) as spin:
        try:
            os.sched_setaffinity(spin.pid, {core})
            monitor = ResourceMonitor({core})
            monitor.service(spin.pid)

            def moved() -> bool:
                cpu, delay, wait = monitor.service(spin.pid)
                busy = monitor.cores()[core].busy > 0.3
                told = cpu.value is not None and delay.value is not None and wait.value is not None
                return busy and told and (cpu.value or 0.0) > 0.01 and cpu.age_s == 0.0

            eventually(moved, "the spin is seen")
            assert (monitor.memory_available_bytes() or 0) > 0
        finally:
            spin.kill()
            monitor.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_descriptors_are_given_back() -> None:
    monitor = ResourceMonitor({0})
    before = descriptors()
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(20)]
    for thread in threads:
        thread.start()
    monitor.service(os.getpid())
    monitor.memory_available_bytes()
    assert descriptors() > before + 20
    stop.set()
    for thread in threads:
        thread.join()
    monitor.close()
    assert descriptors() <= before


def requests(server: Memcached, count: int) -> int:
    with socket.create_connection((server.ip, server.port)) as connection:
        connection.sendall(b"get nothing\r\n" * count)
        received = b""
        while received.count(b"END\r\n") < count:
            received += connection.recv(65536)
    return count


def test_statistics_tell_rate_connections_threads_and_pid(server: Memcached) -> None:
    heard = threading.Event()
    statistics = Statistics(server.ip, server.port, heard.set, period_s=0.02)
    try:
        assert statistics.first(30.0)
        assert heard.wait(30.0)
        sample = statistics.sample()
        assert (sample.threads, sample.pid) == (2, server.pid)
        assert (sample.connections or 0) >= 1
        eventually(lambda: statistics.sample().qps.value == 0.0, "nothing is asked")
        eventually(lambda: requests(server, 10) and (statistics.sample().qps.value or 0.0) > 0, "requests are seen")
        eventually(lambda: statistics.sample().qps.value == 0.0, "they have passed")
    finally:
        statistics.stop()


def test_a_stuck_memcached_stalls_nobody(server: Memcached) -> None:
    statistics = Statistics(server.ip, server.port, period_s=0.02, timeout_s=0.2)
    try:
        eventually(lambda: statistics.sample().qps.value is not None, "a rate")
        server.suspend()
        eventually(lambda: statistics.sample().age_s > 1.0, "its answers age")
        stuck = statistics.sample()
        assert stuck.qps.value is not None
        assert stuck.qps.age_s > 1.0
        assert stuck.pid == server.pid
        server.resume()
        eventually(lambda: statistics.sample().qps.age_s < 0.5, "a fresh rate")
    finally:
        statistics.stop()


def test_a_restart_gives_no_negative_rate(server: Memcached) -> None:
    requests(server, 1000)
    rates: list[float] = []
    statistics = Statistics(server.ip, server.port, period_s=0.01, timeout_s=0.5)

    def is_new() -> bool:
        sample = statistics.sample()
        if sample.qps.value is not None:
            rates.append(sample.qps.value)
        return sample.pid == server.pid and sample.qps.age_s < 0.5

    try:
        eventually(is_new, "a rate")
        server.restart()
        eventually(is_new, "a rate of the new process")
        assert min(rates) >= 0
    finally:
        statistics.stop()


def test_before_the_first_answer_nothing_is_known() -> None:
    statistics = Statistics("127.0.0.1", free_port(), period_s=0.01)
    try:
        assert not statistics.first(0.1)
        sample = statistics.sample()
        assert (sample.qps, sample.connections, sample.threads, sample.pid) == (Signal(), None, 0, None)
    finally:
        statistics.stop()


def test_what_is_not_memcached_is_survived() -> None:
    heard: list[bytes] = []

    def answer(other: socket.socket) -> None:
        for text in (b"HTTP/1.1 400 no\r\n\r\nEND\r\n", b"STAT pid x\r\nEND\r\n", b"STAT\r\nEND\r\n", b"\xff\r\n", b""):
            connection, _ = other.accept()
            with connection:
                heard.append(connection.recv(99))
                connection.sendall(text)

    with socket.create_server(("127.0.0.1", 0)) as other:
        server = threading.Thread(target=answer, args=(other,))
        server.start()
        statistics = Statistics("127.0.0.1", other.getsockname()[1], period_s=0.01)
        try:
            server.join(60.0)
            assert heard == [b"stats\r\n"] * 5
            assert statistics.sample().pid is None
        finally:
            statistics.stop()


def test_stop_does_not_wait_for_a_stuck_memcached(server: Memcached) -> None:
    statistics = Statistics(server.ip, server.port, period_s=0.01, timeout_s=300.0)
    statistics.first(30.0)
    server.suspend()
    eventually(lambda: statistics.sample().age_s > 0.3, "it waits")
    start_s = time.monotonic()
    statistics.stop()
    assert time.monotonic() - start_s < 30.0
    assert "memcached-statistics" not in {thread.name for thread in threading.enumerate()}
