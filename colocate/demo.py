"""A run on built-in defaults: a private memcached, a changing load, the demo jobs, nothing to prepare.

The load is scaled to what this machine's memcached answers, so that the demonstration shows the same on a laptop and
on a large server.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from colocate.errors import UserError
from colocate.host.engine import absence
from colocate.session import RuntimeName

IP = "127.0.0.1"
_LOW, _HIGH = 0.04, 0.3  # shares of what memcached answers at most
_START_S = 30.0


@dataclass(frozen=True, slots=True)
class Load:
    """The demonstration's load: mcperf's random waveform.

    Attributes:
        qps_min: least requests a second of an interval.
        qps_max: most.
        interval_s: length of an interval.
        seed: of the waveform.
        duration_s: after this the load ends by itself.
    """

    qps_min: int
    qps_max: int
    interval_s: int = 5
    seed: int = 3274
    duration_s: int = 175


def scaled_load(capacity_qps: float) -> Load:
    """A load between 4 % and 30 % of what memcached answers at most."""
    return Load(max(100, int(_LOW * capacity_qps)), max(500, int(_HIGH * capacity_qps)))


def choose_runtime() -> tuple[RuntimeName, str]:
    """Docker where its engine answers, else plain processes; and why not Docker."""
    why = absence()
    return "process" if why else "docker", why


@contextmanager
def private_memcached(threads: int) -> Iterator[tuple[int, int]]:
    """A memcached of our own on loopback: its port and pid; ended at the end.

    Raises:
        UserError: there is no memcached, or it does not start.
    """
    binary = shutil.which("memcached")
    if binary is None:
        raise UserError("memcached is not installed", "run scripts/setup_scheduler.sh, or apt-get install memcached")
    with socket.create_server((IP, 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*_bound_to_us(), binary, "-l", IP, "-p", str(port), "-U", "0", "-t", str(threads), "-m", "128"],
        start_new_session=True,  # the terminal's Ctrl-C is ours, not its
    )
    try:
        _wait_for(port, process)
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def background_load(port: int, load: Load, output: Path, *, cpu: int | None) -> Iterator[subprocess.Popen[bytes]]:
    """`colocate load` in the background, its output in a file that has its first line when this returns.

    Raises:
        UserError: it ended at once; says what it said.
    """
    argv = [
        sys.executable, "-P", "-m", "colocate", "load", "-s", f"{IP}:{port}", "-t", str(load.duration_s),
        "--qps-min", str(load.qps_min), "--qps-max", str(load.qps_max), "--qps-interval", str(load.interval_s),
        "--qps-seed", str(load.seed), "--output", str(output), "--realtime",
    ]  # fmt: skip
    if cpu is not None:
        argv += ["--cpu", str(cpu)]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(argv, stdout=said, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            give_up_s = time.monotonic() + _START_S
            while not (output.exists() and output.stat().st_size):
                if process.poll() is not None or time.monotonic() > give_up_s:
                    said.seek(0)
                    words = said.read().decode(errors="replace").strip().splitlines()
                    raise UserError(f"the load generator did not start: {words[-1] if words else 'it said nothing'}")
                time.sleep(0.02)
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _bound_to_us() -> list[str]:
    """What starts a program that ends when we are killed (setpriv(1)); as nobody where we are root."""
    if os.geteuid() != 0:
        return ["setpriv", "--pdeathsig", "TERM", "--"]
    nobody = pwd.getpwnam("nobody")
    who = ["--reuid", str(nobody.pw_uid), "--regid", str(nobody.pw_gid), "--clear-groups"]
    return ["setpriv", *who, "--pdeathsig", "TERM", "--"]


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    give_up_s = time.monotonic() + _START_S
    while time.monotonic() < give_up_s and process.poll() is None:
        try:
            with socket.create_connection((IP, port), timeout=1):
                return
        except OSError:
            time.sleep(0.02)
    raise UserError("memcached did not start", "try it by hand: memcached -l 127.0.0.1 -p 11999 -v")
