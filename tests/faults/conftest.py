"""Stages for live faults; what each test injected it notes in `ledger`, of `tests/conftest.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.ledger import Injection
from tests.faults.stage import Stage, make_stage
from tests.memcached_fixture import Memcached, running_memcached


@pytest.fixture
def server() -> Iterator[Memcached]:
    with running_memcached() as made:
        yield made


@pytest.fixture(params=["docker", "process"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, server: Memcached, ledger: list[Injection]) -> Stage:
    """A stage for live faults, once with containers and once with plain processes."""
    return make_stage(request, tmp_path, server, ledger, request.param)


@pytest.fixture
def process_stage(request: pytest.FixtureRequest, tmp_path: Path, server: Memcached, ledger: list[Injection]) -> Stage:
    """A stage for what has nothing to do with how jobs run: with plain processes, which begin at once."""
    return make_stage(request, tmp_path, server, ledger, "process")


@pytest.fixture
def docker_stage(request: pytest.FixtureRequest, tmp_path: Path, server: Memcached, ledger: list[Injection]) -> Stage:
    """A stage for what happens to containers."""
    return make_stage(request, tmp_path, server, ledger, "docker")
