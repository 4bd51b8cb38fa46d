"""A Docker Engine of a test's own, beside the machine's, that may be stopped, killed and started again."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import docker

from colocate.host.cgroup import JobCgroup
from tests.memcached_fixture import DEADLINE_S, eventually

IMAGE = "colocate/faults:own"


class Engine:
    """`dockerd` with directories, a socket, and a containerd of its own, no network, and one image: `/behave`.

    In a network namespace of its own, since with `--bridge=none` it would remove the other engine's bridge. As on a
    real server, containerd is a service apart, which outlives `dockerd`.

    Args:
        directory: a short path, for the sockets'.
        behave: the program that the image holds.
        live_restore: containers outlive it.
    """

    def __init__(self, directory: Path, behave: Path, *, live_restore: bool) -> None:
        self._directory = directory
        self.socket = directory / "docker.sock"
        self._log = (directory / "log").open("w")
        config = directory / "daemon.json"
        config.write_text(json.dumps({"live-restore": live_restore}))
        containerd = directory / "containerd.toml"
        containerd.write_text(
            f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{directory}/containerd.sock"\n'
        )
        self._containerd = self._spawn("containerd", "--config", str(containerd))
        eventually((directory / "containerd.sock").exists, "the test's own containerd listens")
        self._argv = [
            "unshare", "--net", "dockerd", "--config-file", str(config), "--data-root", str(directory / "data"),
            "--exec-root", str(directory / "exec"), "--pidfile", str(directory / "pid"), "--host", self.url,
            "--containerd", str(directory / "containerd.sock"),
            "--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=vfs",
        ]  # fmt: skip
        self.process = self._begin()
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(behave, "behave")
        repository, tag = IMAGE.split(":")
        with self.client() as client:
            client.api.import_image_from_data(archive.getvalue(), repository=repository, tag=tag)

    @property
    def url(self) -> str:
        """For DOCKER_HOST."""
        return f"unix://{self.socket}"

    @contextlib.contextmanager
    def client(self) -> Iterator[docker.DockerClient]:
        """A client, closed at the end."""
        client = docker.DockerClient(base_url=self.url, timeout=int(DEADLINE_S))
        try:
            yield client
        finally:
            client.close()

    def stop(self) -> None:
        """As its service is stopped: it ends in order."""
        self.process.terminate()
        self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        """As if it had crashed."""
        self.process.kill()
        self.process.wait(DEADLINE_S)
        (self._directory / "pid").unlink(missing_ok=True)

    def start(self) -> None:
        """Again, until it answers."""
        self.process = self._begin()

    def close(self) -> None:
        """End it with its containers, its containerd and its mounts; containers first, lest one outlive it."""
        with contextlib.suppress(Exception), self.client() as client:  # whatever it is in no state to do
            for one in client.containers.list(all=True):
                one.remove(force=True)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(DEADLINE_S)
        for process in (self.process, self._containerd):
            process.kill()
            process.wait()

        def gone() -> bool:
            left = self._below()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    group = JobCgroup.of(pid)
                    group.thaw()
                    group.close()
            return not left

        eventually(gone, "its containerd, its shims and its containers have ended")
        for one in self._containers():
            for place in Path("/sys/fs/cgroup").glob(f"**/docker/{one}"):
                with contextlib.suppress(OSError):
                    place.rmdir()
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            place = line.split()[1]
            if place.startswith(f"{self._directory}/"):
                subprocess.run(["umount", "-l", place], check=False)
        self._log.close()

    def _spawn(self, *argv: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True
        )

    def _begin(self) -> subprocess.Popen[bytes]:
        process = self._spawn(*self._argv)

        def answers() -> bool:
            assert process.poll() is None, f"dockerd has ended: {(self._directory / 'log').read_text()[-2000:]}"
            try:
                with self.client() as client:
                    return bool(client.ping())
            except (docker.errors.DockerException, OSError):
                return False

        eventually(answers, "the test's own Docker Engine answers")
        return process

    def _containers(self) -> list[str]:
        return [place.name for place in (self._directory / "data/containers").glob("*")]

    def _below(self) -> list[int]:
        """Its containerd and shims, which name its directory, and what is in its containers' control groups."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                named = f"{self._directory}/".encode() in (place / "cmdline").read_bytes()
                groups = (place / "cgroup").read_text()
                if named or any(one in groups for one in self._containers()):
                    found.append(int(place.name))
        return found


@contextlib.contextmanager
def own_engine(behave: Path, *, live_restore: bool = False) -> Iterator[Engine]:
    """An engine, gone with all that is its when the block is left."""
    directory = Path(tempfile.mkdtemp(prefix="engine-", dir="/tmp"))
    engine = Engine(directory, behave, live_restore=live_restore)
    try:
        yield engine
    finally:
        engine.close()
        shutil.rmtree(directory, ignore_errors=True)


class Proxy:
    """A unix socket before an engine's, which passes everything on, or does to it what a test says.

    Attributes:
        delay_s: so long every request waits that begins with `slow`: a method, or nothing for all.
        broken: every request is answered by 500.
        unanswered: in the first line of requests that are passed on and not answered as long as this stands.
        deaf: what the engine says on connections that follow its events is swallowed, and they stay open.
    """

    def __init__(self, path: Path, engine: Path) -> None:
        self.delay_s, self.slow = 0.0, b""
        self.broken = self.deaf = False
        self.unanswered = b""
        self._path, self._engine = path, engine
        self._closing = False
        self._listen()

    @property
    def url(self) -> str:
        """For DOCKER_HOST."""
        return f"unix://{self._path}"

    def remove(self) -> None:
        """The socket goes, as when the engine's directory is made anew; what is connected stays."""
        self._closing = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self._path.unlink()

    def put_back(self) -> None:
        """The socket is there again."""
        self._closing = False
        self._listen()

    def _listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while not self._closing:
            with contextlib.suppress(OSError):
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        engine = socket.socket(socket.AF_UNIX)
        events, mute = threading.Event(), threading.Event()
        with client, engine, contextlib.suppress(OSError):
            engine.connect(str(self._engine))
            threading.Thread(target=self._answers, args=(engine, client, events, mute), daemon=True).start()
            while data := client.recv(65536):
                if b"/events?" in data.split(b"\r\n", 1)[0]:
                    events.set()
                elif self.broken and data.split(b" ", 1)[0] in (b"GET", b"POST", b"DELETE", b"HEAD"):
                    body = b'{"message":"broken by a test"}\n'
                    head = f"HTTP/1.1 500 Internal Server Error\r\nContent-Length: {len(body)}\r\n"
                    client.sendall(
                        head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + body
                    )
                    return
                if self.unanswered and self.unanswered in data.split(b"\r\n", 1)[0]:
                    mute.set()
                if data.startswith(self.slow):
                    time.sleep(self.delay_s)
                engine.sendall(data)

    def _answers(
        self, engine: socket.socket, client: socket.socket, events: threading.Event, mute: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := engine.recv(65536):
                while mute.is_set() and self.unanswered:
                    time.sleep(0.01)
                if not (self.deaf and events.is_set()):
                    client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxied(engine: Path = Path("/var/run/docker.sock")) -> Iterator[Proxy]:
    """A proxy before an engine: the machine's own, which it does not disturb."""
    directory = Path(tempfile.mkdtemp(prefix="proxy-", dir="/tmp"))
    proxy = Proxy(directory / "docker.sock", engine)
    try:
        yield proxy
    finally:
        proxy.broken, proxy.delay_s, proxy.unanswered = False, 0.0, b""
        with contextlib.suppress(OSError):
            proxy.remove()
        shutil.rmtree(directory, ignore_errors=True)
