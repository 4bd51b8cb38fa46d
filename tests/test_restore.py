"""What a killed run has left is removed, by an engine that is slow, too."""

from __future__ import annotations

import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from colocate.host.engine import CALL_TIMEOUT_S, RUN_LABEL
from colocate.host.restore import remove_containers


class SlowRemoval(socketserver.BaseRequestHandler):
    """Passes everything on to the real engine, a removal later than an ordinary call may take."""

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect("/var/run/docker.sock")
            threading.Thread(target=self.answer, args=(engine,), daemon=True).start()
            while data := self.request.recv(65536):
                if data.startswith(b"DELETE "):
                    time.sleep(CALL_TIMEOUT_S + 0.5)
                engine.sendall(data)

    def answer(self, engine: socket.socket) -> None:
        while data := engine.recv(65536):
            self.request.sendall(data)


@pytest.fixture
def slow_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path = tmp_path / "engine.sock"
    with socketserver.ThreadingUnixStreamServer(str(path), SlowRemoval) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        yield
        server.shutdown()


@pytest.mark.usefixtures("slow_engine")
def test_a_slow_removal_is_waited_for(docker_client: docker.DockerClient, behave_image: str) -> None:
    run_id = f"test-{secrets.token_hex(4)}"
    name = f"colocate-{run_id}-job"
    labels = {RUN_LABEL: run_id, "colocate.job": "job"}
    made = docker_client.api.create_container(behave_image, ["/behave", "exit", "0", "0"], name=name, labels=labels)
    try:
        assert remove_containers(run_id) == ([f"container {name} removed"], [])
    finally:
        left = docker_client.api.containers(all=True, filters={"id": made["Id"]})
        if left:
            docker_client.api.remove_container(made["Id"], force=True)
    assert left == []
