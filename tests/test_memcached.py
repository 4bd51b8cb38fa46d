from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from colocate.cores import format_ranges
from colocate.errors import UserError
from colocate.host import procfs
from colocate.host.find import ServiceProcess, find, find_again, local_address
from colocate.host.memcached import PinError, ServiceAffinity, restore_from
from tests.memcached_fixture import DEADLINE_S, Memcached, eventually, free_port, running_memcached

pytestmark = pytest.mark.live

ALL = frozenset(os.sched_getaffinity(0))
ONE = frozenset({min(ALL)})
OTHER = frozenset({max(ALL)})


@pytest.fixture
def server() -> Iterator[Memcached]:
    with running_memcached() as memcached:
        yield memcached


@pytest.fixture
def threaded() -> Iterator[subprocess.Popen[bytes]]:
    """A process that starts one more thread for each line that it reads, and says so."""
    program = (
        "import sys, threading, time\n"
        "for line in sys.stdin:\n"
        "    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n"
        "    print(flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def add_thread(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    process.stdout.readline()


def known(pid: int) -> ServiceProcess:
    start_ticks = procfs.start_ticks(pid)
    assert start_ticks is not None
    return ServiceProcess(pid, start_ticks, "test")


def mask(tid: int) -> frozenset[int]:
    return frozenset(os.sched_getaffinity(tid))


def complaint(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert error.value.cure
    return text


@pytest.mark.parametrize("text", ["127.0.0.1", "localhost", " 127.0.0.1 ", "::ffff:127.0.0.1"])
def test_loopback_is_local(text: str) -> None:
    assert local_address(text) == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("192.0.2.7", "192.0.2.7 is not an address of this machine"),  # reserved for documentation (RFC 5737)
        ("2001:db8::7", "2001:db8::7 is not an address of this machine"),
        ("0.0.0.0", "0.0.0.0 means every address"),  # noqa: S104  # refused
        ("::", ":: means every address"),
        ("memcached.example", "'memcached.example' is not an IP address"),
        ("127.0.0.1:11211", "'127.0.0.1:11211' is not an IP address"),
        ("10.0.0.0/8", "'10.0.0.0/8' is not an IP address"),
        ("", "'' is not an IP address"),
    ],
)
def test_other_addresses_are_refused_with_this_machines(text: str, what: str) -> None:
    with pytest.raises(UserError) as error:
        local_address(text)
    assert complaint(error).startswith(what)
    assert "127.0.0.1" in error.value.cure


def test_found_by_who_listens(server: Memcached) -> None:
    process = find(server.ip, server.port)
    assert process == ServiceProcess(server.pid, procfs.start_ticks(server.pid) or 0, "memcached")
    assert find(server.ip, server.port, pid=server.pid) == process


def test_found_behind_a_wildcard() -> None:
    with running_memcached("-l", "0.0.0.0") as server:  # noqa: S104  # the test's own, and not for long
        assert find("127.0.0.1", server.port).pid == server.pid


def test_a_socket_for_both_families_hears_ipv4() -> None:
    both = socket.has_dualstack_ipv6()
    other = socket.create_server(("", 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)
    with other, pytest.raises(UserError) as error:
        find("127.0.0.1", other.getsockname()[1])
    assert f"process {os.getpid()} (" in complaint(error)


def test_the_exact_listener_goes_before_a_wildcard(server: Memcached) -> None:
    with pytest.raises(UserError) as error:
        find("127.0.0.9", server.port)  # loopback, too, but nobody listens there
    assert f"port {server.port} is open on 127.0.0.1 only" in complaint(error)


def test_nobody_listens() -> None:
    port = free_port()
    with pytest.raises(UserError) as error:
        find("127.0.0.1", port)
    assert complaint(error).startswith(f"memcached is not running on 127.0.0.1:{port}; start it")


def test_something_else_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(UserError) as error:
        find("127.0.0.1", other.getsockname()[1])
    assert f"process {os.getpid()} (" in complaint(error)
    assert "is not memcached" in str(error.value)


def test_the_name_alone_proves_nothing(tmp_path: Path) -> None:
    impostor = tmp_path / "memcached"
    impostor.symlink_to(sys.executable)
    program = (
        "import socket, sys\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "print(server.getsockname()[1], flush=True)\n"
        "while True:\n"
        "    connection = server.accept()[0]\n"
        "    connection.recv(99); connection.send(b'HTTP/1.1 400 no'); connection.close()\n"
    )
    with subprocess.Popen([impostor, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            with pytest.raises(UserError) as error:
                find("127.0.0.1", port)
        finally:
            process.kill()
    assert f"process {process.pid} (memcached)" in complaint(error)
    assert "does not answer `version` as memcached does" in str(error.value)


def test_a_stopped_memcached_is_named(server: Memcached) -> None:
    server.suspend()
    with pytest.raises(UserError) as error:
        find(server.ip, server.port)
    assert "(memcached)" in complaint(error)
    assert "does not answer; see whether it is stopped" in str(error.value)


def test_a_given_pid_must_be_the_one(server: Memcached) -> None:
    with running_memcached() as second:
        with pytest.raises(UserError, match="does not listen") as error:
            find(server.ip, server.port, pid=second.pid)
        complaint(error)
    with pytest.raises(UserError, match=f"there is no process {second.pid}") as error:
        find(server.ip, server.port, pid=second.pid)
    complaint(error)
    with pytest.raises(UserError, match="is not memcached") as error:
        find(server.ip, server.port, pid=os.getpid())
    complaint(error)


def test_every_thread_is_pinned_and_gets_its_own_mask_back(server: Memcached) -> None:
    last = max(server.tids())
    os.sched_setaffinity(last, OTHER)
    affinity = ServiceAffinity(find(server.ip, server.port))
    affinity.may_pin()
    assert {mask(tid) for tid in server.tids()} == {ALL, OTHER}  # asking has changed nothing
    assert affinity.pin(ONE) == len(server.tids()) > 2
    assert {mask(tid) for tid in server.tids()} == {ONE}
    assert affinity.masks() == {ONE}
    assert affinity.restore() == len(server.tids())
    assert {tid: mask(tid) for tid in server.tids()} == {t: OTHER if t == last else ALL for t in server.tids()}


def test_threads_that_appear_are_pinned_and_restored(threaded: subprocess.Popen[bytes]) -> None:
    add_thread(threaded)
    affinity = ServiceAffinity(known(threaded.pid))
    assert affinity.pin(ONE) == 2
    add_thread(threaded)  # inherits the mask of the thread that starts it
    newest = max(procfs.threads(threaded.pid))
    assert newest not in affinity.original
    os.sched_setaffinity(newest, ALL)
    assert affinity.masks() == {ONE, ALL}
    assert affinity.pin(ONE) == 3
    assert affinity.masks() == {ONE}
    affinity.restore()
    assert affinity.masks() == {ALL}


def test_a_process_that_is_gone_is_no_error(threaded: subprocess.Popen[bytes]) -> None:
    affinity = ServiceAffinity(known(threaded.pid))
    assert affinity.alive()
    threaded.kill()
    threaded.wait()
    assert not affinity.alive()
    assert affinity.pin(ONE) == 0
    assert affinity.restore() == 0
    assert affinity.masks() == frozenset()
    with pytest.raises(UserError, match="has just ended"):
        affinity.may_pin()


def test_a_zombie_is_not_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        affinity = ServiceAffinity(known(process.pid))
        eventually(lambda: not affinity.alive(), "it has ended, and nobody has waited for it")


def test_another_process_with_the_same_pid_is_left_alone(threaded: subprocess.Popen[bytes]) -> None:
    process = known(threaded.pid)
    earlier = ServiceAffinity(replace(process, start_ticks=process.start_ticks - 1), {process.pid: ONE})
    assert not earlier.alive()
    assert earlier.pin(ONE) == 0
    assert restore_from(earlier.to_json()) == 0
    assert mask(threaded.pid) == ALL


def test_a_record_restores(threaded: subprocess.Popen[bytes]) -> None:
    add_thread(threaded)
    os.sched_setaffinity(max(procfs.threads(threaded.pid)), OTHER)
    affinity = ServiceAffinity(known(threaded.pid))
    before = {tid: mask(tid) for tid in procfs.threads(threaded.pid)}
    record = affinity.to_json()
    affinity.pin(ONE)
    assert restore_from(record) == 2
    assert {tid: mask(tid) for tid in procfs.threads(threaded.pid)} == before


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"pid": 1, "start_ticks": 2},
        {"pid": "1", "start_ticks": 2, "masks": {}},
        {"pid": 1, "start_ticks": 2, "masks": {"x": "0"}},
        {"pid": 1, "start_ticks": 2, "masks": {"1": "0-"}},
        {"pid": 1, "start_ticks": 2, "masks": {"1": ""}},
        {"pid": 1, "start_ticks": 2, "masks": {"1": 7}},
    ],
)
def test_a_record_that_makes_no_sense_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no record of memcached's affinity"):
        ServiceAffinity.from_json(record)


def test_of_a_core_that_is_unplugged_nothing_shows_and_that_is_right(
    threaded: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    (tmp_path / "proc").symlink_to("/proc")
    cpus = tmp_path / "sys/devices/system/cpu"
    cpus.mkdir(parents=True)
    (cpus / "present").write_text(f"{format_ranges(ALL)},8000\n")
    (cpus / "online").write_text(f"{format_ranges(ALL)}\n")
    affinity = ServiceAffinity(known(threaded.pid), {threaded.pid: ALL | {8000}}, root=tmp_path)
    assert affinity.pin(ONE | {8000}) == 1
    assert mask(threaded.pid) == ONE
    assert affinity.restore() == 1
    assert mask(threaded.pid) == ALL
    with pytest.raises(PinError, match="cannot be pinned to 8000"):
        affinity.pin(frozenset({8000}))


def test_a_core_that_is_absent_cannot_be_pinned_to(threaded: subprocess.Popen[bytes]) -> None:
    affinity = ServiceAffinity(known(threaded.pid))
    with pytest.raises(PinError, match="1 threads cannot be pinned to 8000"):
        affinity.pin(frozenset({8000}))
    with pytest.raises(PinError, match="cannot be pinned"):  # the kernel takes what there is of it, and says nothing
        affinity.pin(ONE | {8000})
    with pytest.raises(ValueError, match="empty"):
        affinity.pin(frozenset())


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def without_sys_nice() -> None:
    """Take CAP_SYS_NICE from the calling thread only (capset(2)); a program that root starts has it again."""
    header = _CapabilityHeader(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(ctypes.byref(header), sets) == 0
    sets[0] &= ~(1 << 23)
    assert libc.capset(ctypes.byref(header), sets) == 0


@pytest.fixture
def forbidden(server: Memcached) -> ServiceProcess:
    """A process that the `unprivileged` thread may not pin, be its user root or not."""
    if os.geteuid() == 0:
        return find(server.ip, server.port)
    assert Path("/proc/1").stat().st_uid != os.geteuid()
    return known(1)


@pytest.fixture
def unprivileged() -> Iterator[ThreadPoolExecutor]:
    """A thread that has given CAP_SYS_NICE up, if it had it."""
    with ThreadPoolExecutor(1, initializer=without_sys_nice) as executor:
        yield executor


def test_without_permission_the_cure_is_named(forbidden: ServiceProcess, unprivileged: ThreadPoolExecutor) -> None:
    affinity = ServiceAffinity(forbidden, sudo=("false",))
    with pytest.raises(UserError) as error:
        unprivileged.submit(affinity.may_pin).result(DEADLINE_S)
    assert complaint(error).startswith(f"not permitted to pin memcached (pid {forbidden.pid})")
    assert "sudo -n taskset" in error.value.cure


def test_a_sudo_that_may_only_look_is_no_permission(
    forbidden: ServiceProcess, unprivileged: ThreadPoolExecutor
) -> None:
    by = ("setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice") if os.geteuid() == 0 else ("env",)
    with pytest.raises(UserError, match="not permitted"):
        unprivileged.submit(ServiceAffinity(forbidden, sudo=by).may_pin).result(DEADLINE_S)


@pytest.mark.parametrize("sudo", ["true", "false", "no-such-program"])
def test_neither_a_refusal_nor_a_return_code_passes_for_success(
    sudo: str, forbidden: ServiceProcess, unprivileged: ThreadPoolExecutor
) -> None:
    affinity = ServiceAffinity(forbidden, sudo=(sudo,))
    before = affinity.masks()
    with pytest.raises(PinError, match="cannot be pinned"):
        unprivileged.submit(affinity.pin, ONE).result(DEADLINE_S)
    assert affinity.masks() == before
    if os.geteuid() == 0:
        ServiceAffinity(forbidden).pin(ONE)
        with pytest.raises(PinError, match="cannot be pinned"):
            unprivileged.submit(affinity.restore).result(DEADLINE_S)
        assert affinity.masks() == {ONE}


def test_where_not_permitted_taskset_by_sudo_does_it(server: Memcached, unprivileged: ThreadPoolExecutor) -> None:
    """`env` stands for sudo: run by root, it has the right that the thread that calls it has given up."""
    by = ("env",) if os.geteuid() == 0 else ("sudo", "-n")
    if os.geteuid() != 0 and shutil.which("sudo") is None:
        by = ("env",)  # our own process then: nothing to gain, and nothing forbids it
    last = max(server.tids())
    os.sched_setaffinity(last, OTHER)
    affinity = ServiceAffinity(find(server.ip, server.port), sudo=by)
    unprivileged.submit(affinity.may_pin).result(DEADLINE_S)
    assert {mask(tid) for tid in server.tids()} == {ALL, OTHER}
    assert unprivileged.submit(affinity.pin, ONE).result(DEADLINE_S) == len(server.tids())
    assert {mask(tid) for tid in server.tids()} == {ONE}
    unprivileged.submit(affinity.restore).result(DEADLINE_S)
    assert {tid: mask(tid) for tid in server.tids()} == {t: OTHER if t == last else ALL for t in server.tids()}


def test_one_thread_alone_that_was_elsewhere_gets_its_own_mask_by_sudo(
    server: Memcached, unprivileged: ThreadPoolExecutor
) -> None:
    """As after a `taskset -p`, without -a: then all wrong threads are to have one mask, and others another."""
    by = ("env",) if os.geteuid() == 0 else ("sudo", "-n")
    os.sched_setaffinity(server.pid, ONE)
    before = {tid: mask(tid) for tid in server.tids()}
    assert set(before.values()) == {ONE, ALL}
    affinity = ServiceAffinity(find(server.ip, server.port), sudo=by)
    unprivileged.submit(affinity.pin, ONE).result(DEADLINE_S)
    unprivileged.submit(affinity.restore).result(DEADLINE_S)
    assert {tid: mask(tid) for tid in server.tids()} == before


def test_of_a_mask_that_is_out_of_reach_now_all_that_there_is_is_given_back(threaded: subprocess.Popen[bytes]) -> None:
    affinity = ServiceAffinity(known(threaded.pid), {threaded.pid: ALL | {8000}})
    affinity.pin(ONE)
    assert affinity.restore() == 1
    assert mask(threaded.pid) == ALL


def test_threads_that_cannot_be_listed_are_not_taken_for_none(
    threaded: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """As without a free descriptor: nothing was found wrong, and nothing was done."""
    place = tmp_path / f"proc/{threaded.pid}"
    place.mkdir(parents=True)
    (place / "stat").write_text(Path(f"/proc/{threaded.pid}/stat").read_text())
    affinity = ServiceAffinity(known(threaded.pid), {threaded.pid: ALL}, root=tmp_path)
    for act in (affinity.restore, lambda: affinity.pin(ONE)):
        with pytest.raises(PinError, match="cannot be listed"):
            act()


def test_a_restart_is_found_anew(server: Memcached) -> None:
    before = ServiceAffinity(find(server.ip, server.port))
    before.pin(ONE)
    server.stop()
    assert not before.alive()
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as worker:
        searching = worker.submit(find_again, server.ip, server.port, stopped)
        server.restart()
        found = searching.result(DEADLINE_S)
    assert found is not None
    assert (found.pid, found.name) == (server.pid, "memcached")
    assert found != before.process
    after = ServiceAffinity(found)
    assert after.alive()
    assert after.masks() == {ALL}
    after.pin(ONE)
    assert after.masks() == {ONE}


def test_the_search_ends_when_told_to() -> None:
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as worker:
        searching = worker.submit(find_again, "127.0.0.1", free_port(), stopped)
        stopped.set()
        assert searching.result(DEADLINE_S) is None


def test_what_was_never_known_is_not_taken_for_given_back():
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            ticks = procfs.start_ticks(process.pid)
            record = {"pid": process.pid, "start_ticks": ticks, "name": "memcached", "masks": {}}
            with pytest.raises(PinError, match="is not known"):
                restore_from(record)
        finally:
            process.kill()
