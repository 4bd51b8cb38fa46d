"""A real memcached of a test's own, on a free port of the loopback interface."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DEADLINE_S = 60.0  # an emulated machine is slow; a condition that holds ends the wait at once


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; fail when it has not come true after a generous while."""
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, f"never came true: {what}"
        time.sleep(0.01)


def free_port(ip: str = "127.0.0.1") -> int:
    with socket.create_server((ip, 0)) as server:
        return server.getsockname()[1]


class Memcached:
    """One server process, which a test may stop, continue and restart on the same port."""

    def __init__(self, port: int, *options: str) -> None:
        self.ip = "127.0.0.1"
        self.port = port
        self._options = options or ("-l", self.ip)
        self.process = self._start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def tids(self) -> set[int]:
        return {int(task.name) for task in Path(f"/proc/{self.pid}/task").iterdir()}

    def suspend(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def use(self, *options: str) -> None:
        """Start with these options the next time."""
        self._options = options

    def restart(self) -> None:
        self.stop()
        self.process = self._start()

    def ask(self, line: bytes = b"version\r\n") -> bytes:
        with socket.create_connection((self.ip, self.port), timeout=DEADLINE_S) as connection:
            connection.sendall(line)
            return connection.recv(4096)

    def _start(self) -> subprocess.Popen[bytes]:
        # Run by root, memcached becomes another user: as on a real server, its owner is not ours.
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        process = subprocess.Popen(
            ["memcached", *user, "-p", str(self.port), "-U", "0", "-t", "2", "-m", "16", *self._options]
        )

        def answers() -> bool:
            assert process.poll() is None, "memcached did not start"
            try:
                return self.ask().startswith(b"VERSION")
            except ConnectionRefusedError:
                return False

        try:
            eventually(answers, "memcached answers")
        except BaseException:
            process.kill()
            raise
        return process


@contextmanager
def running_memcached(*options: str) -> Iterator[Memcached]:
    server = Memcached(free_port(), *options)
    try:
        yield server
    finally:
        server.stop()
