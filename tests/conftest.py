from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from hypothesis import HealthCheck, settings

# No test fails for slowness alone: an emulated machine is slow.
# `make faults` explores; the gate tries the same examples each time, so that a change fails for what it changes.
settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="FAULTS" not in os.environ
)
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def docker_client() -> Iterator[docker.DockerClient]:
    client = docker.from_env(timeout=120)
    yield client
    client.close()


@pytest.fixture(scope="session")
def behave_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static program that behaves as a test needs it (see its first lines)."""
    program = tmp_path_factory.mktemp("behave") / "behave"
    source = Path(__file__).parent / "programs" / "behave.c"
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-static", "-pthread", "-o", program, source], check=True)
    return program


@pytest.fixture(scope="session")
def behave_image(docker_client: docker.DockerClient, behave_binary: Path) -> Iterator[str]:
    """An image of this session's own with nothing but `/behave` in it."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(behave_binary, "behave")
    tag = f"session-{os.getpid()}"
    docker_client.api.import_image_from_data(archive.getvalue(), repository="colocate/test", tag=tag)
    yield f"colocate/test:{tag}"
    docker_client.images.remove(f"colocate/test:{tag}", force=True)
