"""Bad input gets one clear line that names the culprit and the cure, exit code 2, and changes nothing."""

import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from tests.live import colocate, masks
from tests.memcached_fixture import free_port, running_memcached


@pytest.fixture(scope="module")
def server():
    with running_memcached() as made:
        yield made


@pytest.fixture
def listener():
    """Something that listens and is not memcached."""
    with closing(socket.create_server(("127.0.0.1", 0))) as made:

        def answer():
            while True:
                try:
                    connection, _ = made.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(64)
                    connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield made.getsockname()[1]


def refused(tmp_path, *arguments):
    """The one line of a refusal, after a look at what must not have changed."""
    before = sorted(tmp_path.iterdir())
    done = colocate(*arguments, cwd=tmp_path)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert sorted(tmp_path.iterdir()) == before, "no log, no state"
    (line,) = done.stderr.splitlines()
    assert line.startswith("colocate: ")
    assert "; " in line, "the cure comes after the culprit"
    return line


BAD = [
    (["--slo", "0.8"], "--slo.*write it like 0.8ms"),
    (["--slo", "0ms"], "--slo"),
    (["--interval", "fast"], "--interval"),
    (["--percentile", "101"], "--percentile"),
    (["--cores", "3-1"], "--cores.*3-1"),
    (["--cores", "0,999"], "core 999 is not on this machine"),
    (["--cores", "0"], "one core, 0, cannot be shared out"),
    (["--jobs", "nosuch"], "'nosuch'.*cca-2023, cca-2026, demo"),
    (["--jobs", "bad.toml"], "bad.toml: job one: threads: 0"),
    (["--policy", "nosuch"], "'nosuch'.*reactive"),
    (["--policy", "nosuch.py:Mine"], "nosuch.py"),
    (["--set", "speed=3"], "no option 'speed'.*caution"),
    (["--set", "caution=much"], "caution='much'"),
    (["--runtime", "podman"], "--runtime.*podman"),
    (["--on-exit", "forget"], "--on-exit"),
    (["--retries", "-1"], "--retries"),
    (["--probe-hz", "0"], "--probe-hz"),
    (["--config", "none.toml"], "none.toml: No such file"),
    (["--config", "odd.toml"], "odd.toml: unknown key 'colour'"),
    (["--log-dir", "bad.toml/logs"], "--log-dir bad.toml/logs"),
    (["--latency-from", "no/such/file"], "--latency-from no/such/file"),
    (["--memcached-pid", "999999999"], "999999999"),
    (["--wrong"], "--wrong"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_options(tmp_path, server, arguments, message):
    (tmp_path / "bad.toml").write_text('[[job]]\nname = "one"\nimage = "x"\ncommand = "x"\nthreads = 0\n')
    (tmp_path / "odd.toml").write_text('colour = "red"\n')
    before = masks(server.pid)
    line = refused(tmp_path, "run", "--memcached-ip", server.ip, "--port", str(server.port), *arguments)
    assert re.search(message, line), line
    assert masks(server.pid) == before


def test_not_running(tmp_path):
    port = str(free_port())
    assert f"memcached is not running on 127.0.0.1:{port}" in refused(
        tmp_path, "run", "--memcached-ip", "127.0.0.1", "--port", port
    )


@pytest.mark.parametrize(
    ("address", "words"),
    [("192.0.2.1", "not an address of this machine"), ("0.0.0.0", "every address"), ("my-server", "not an IP address")],  # noqa: S104
)
def test_not_local(tmp_path, address, words):
    assert words in refused(tmp_path, "run", "--memcached-ip", address)


def test_not_memcached(tmp_path, listener):
    assert "not memcached" in refused(tmp_path, "run", "--memcached-ip", "127.0.0.1", "--port", str(listener))


def test_no_address(tmp_path):
    assert "--memcached-ip is missing" in refused(tmp_path, "run")


def test_not_permitted(tmp_path, server):
    """By a user who may not pin another user's process: the line names the capability that would cure it."""
    without = ["setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice"] if os.geteuid() == 0 else []
    before = masks(server.pid)
    where = ["--memcached-ip", server.ip, "--port", str(server.port)]
    done = subprocess.run(
        [*without, sys.executable, "-m", "colocate", "run", *where, "--once"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "not permitted" in line
    assert "CAP_SYS_NICE" in line
    assert masks(server.pid) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.live
def test_an_image_that_is_not_there_and_cannot_be_pulled(tmp_path, server):
    (tmp_path / "jobs.toml").write_text('[[job]]\nname = "one"\nimage = "colocate.invalid/none:1"\ncommand = "x"\n')
    before = masks(server.pid)
    done = colocate(
        "run", "--memcached-ip", server.ip, "--port", str(server.port), "--jobs", "jobs.toml",
        "--state-dir", str(tmp_path / "state"), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "colocate.invalid/none:1" in done.stderr.splitlines()[-1]
    assert masks(server.pid) == before
    assert not (tmp_path / "logs").exists()
