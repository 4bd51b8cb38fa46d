from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import docker
import pytest
from hypothesis import HealthCheck, settings

from tests.faults.ledger import Injection, table

# No test fails for slowness alone: an emulated machine is slow.
# `make faults` explores; the gate tries the same examples each time, so that a change fails for what it changes.
settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="FAULTS" not in os.environ
)
settings.load_profile("unhurried")

_LEDGER = pytest.StashKey[list[Injection]]()
_NOTES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LEDGER], config.stash[_NOTES] = [], []


@pytest.fixture
def ledger(pytestconfig: pytest.Config) -> list[Injection]:
    """Append an `Injection` for each fault injected; one that did not hold is appended, too, before the test fails."""
    return pytestconfig.stash[_LEDGER]


@pytest.fixture
def notes(pytestconfig: pytest.Config) -> list[str]:
    """Lines for below the table: what else was measured."""
    return pytestconfig.stash[_NOTES]


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if hasattr(config, "workeroutput"):  # one of several processes (pytest-xdist), which tell by plain values
        config.workeroutput["faults"] = [astuple(one) for one in config.stash[_LEDGER]], config.stash[_NOTES]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    injected, notes = getattr(node, "workeroutput", {}).get("faults", ((), ()))
    node.config.stash[_LEDGER] += [Injection(*one) for one in injected]
    node.config.stash[_NOTES] += notes


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if hasattr(config, "workeroutput"):
        return  # it has been told
    injected, notes = config.stash[_LEDGER], config.stash[_NOTES]
    if place := os.environ.get("FAULTS_LEDGER"):  # of several sessions; `python -m tests.faults.ledger` tells of all
        (Path(place) / f"{os.getpid()}.json").write_text(json.dumps([[astuple(one) for one in injected], notes]))
    elif injected:
        terminalreporter.section("faults")
        terminalreporter.write_line(table(injected))
        for line in notes:
            terminalreporter.write_line(line)


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
