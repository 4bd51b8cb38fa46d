"""What the service manager is told, read from a datagram socket as systemd has one."""

from __future__ import annotations

import secrets
import signal
import socket
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from colocate.host.notify import ALIVE_S, Notifier
from tests.live import catalogue, running
from tests.memcached_fixture import DEADLINE_S, running_memcached

pytestmark = pytest.mark.live


@pytest.fixture(params=["a path", "an abstract name"])
def manager(request, tmp_path):
    """The manager's end, and what stands in the environment."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        if request.param == "a path":
            told = str(tmp_path / "notify")
            made.bind(told)
        else:
            told = f"@colocate-test-{secrets.token_hex(8)}"
            made.bind(f"\0{told[1:]}")
        made.settimeout(DEADLINE_S)
        yield made, told


def said(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().splitlines()


def test_ready_once_then_alive_at_most_once_a_second(manager):
    listener, address = manager
    with closing(Notifier({"NOTIFY_SOCKET": address})) as notifier:
        for tick in range(101):
            notifier.alive(7.0 + tick * ALIVE_S / 50, lambda: "two\nlines")
        notifier.stopping()
        notifier.stopping()
    alive = ["WATCHDOG=1", "STATUS=two lines"]
    assert [said(listener) for _ in range(4)] == [
        ["READY=1", *alive], alive, alive, ["STOPPING=1", "STATUS=jobs and cores are being put back"]
    ]  # fmt: skip
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        said(listener)


@pytest.mark.parametrize("address", ["", "nonsense", "/nowhere/at/all", "@nobody-listens"])
def test_nobody_who_listens_is_no_error(address):
    with closing(Notifier({"NOTIFY_SOCKET": address})) as notifier:
        notifier.alive(1.0, lambda: "well")
        notifier.stopping()


def test_a_manager_that_does_not_read_holds_nobody_up(manager):
    _, address = manager
    with closing(Notifier({"NOTIFY_SOCKET": address})) as notifier:
        for tick in range(2000):  # more than a socket's queue takes (unix(7), max_dgram_qlen)
            notifier.alive(tick * ALIVE_S, lambda: "well")


@pytest.fixture
def managed(manager, tmp_path: Path, behave_binary: Path, monkeypatch):
    """Begins a run of one job under that manager."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager[1])

    @contextmanager
    def begin(name: str, behaviour: str):
        file = catalogue(tmp_path / "jobs.toml", "none", {name: f"./behave {behaviour}"}, behave_binary.parent)
        arguments = ("--jobs", str(file), "--runtime", "process", "--no-share")
        with running_memcached() as server, running(tmp_path, server, *arguments) as run:
            yield run

    return begin


def test_a_run_tells_its_manager_all_of_it(manager, managed):
    listener, _ = manager
    with managed("spin", "spin 1") as run:
        first = said(listener)
        assert first[:2] == ["READY=1", "WATCHDOG=1"]
        run.until("start spin")
        while "1 jobs run" not in (told := said(listener))[-1]:
            assert told[0] == "WATCHDOG=1"
        assert told[-1].startswith("STATUS=share: memcached on cores ")
        run.process.send_signal(signal.SIGTERM)
        while (told := said(listener))[0] == "WATCHDOG=1":
            pass
        assert told[0] == "STOPPING=1"
        assert run.end() == 143


def test_a_run_that_ends_by_itself_says_so_before_it_puts_everything_back(manager, managed):
    listener, _ = manager
    with managed("one", "exit 0 10") as run:
        assert run.end() == 0
        assert said(listener)[0] == "READY=1"
        while (told := said(listener))[0] == "WATCHDOG=1":
            pass
        assert told[0] == "STOPPING=1"
