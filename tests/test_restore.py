"""What a killed run has left is removed, by an engine that is slow, too."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import docker
import pytest

from colocate.host.engine import CALL_TIMEOUT_S, RUN_LABEL
from colocate.host.restore import remove_containers
from tests.faults.engine import proxied


@pytest.fixture
def slow_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's engine, which takes longer over a removal than an ordinary call may take."""
    with proxied() as engine:
        engine.slow, engine.delay_s = b"DELETE ", CALL_TIMEOUT_S + 0.5
        monkeypatch.setenv("DOCKER_HOST", engine.url)
        yield


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
