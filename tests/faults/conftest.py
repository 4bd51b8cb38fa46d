"""Every test here notes in `ledger` what it injected; the table stands at the end of the session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.ledger import Injection, table
from tests.faults.stage import Stage, make_stage
from tests.memcached_fixture import Memcached, running_memcached

_LEDGER = pytest.StashKey[list[Injection]]()
_NOTES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash.setdefault(_LEDGER, [])
    config.stash.setdefault(_NOTES, [])


@pytest.fixture
def ledger(pytestconfig: pytest.Config) -> list[Injection]:
    """Append an `Injection` for each fault injected; one that did not hold is appended, too, before the test fails."""
    return pytestconfig.stash.setdefault(_LEDGER, [])


@pytest.fixture
def notes(pytestconfig: pytest.Config) -> list[str]:
    """Lines for below the table: what else was measured."""
    return pytestconfig.stash.setdefault(_NOTES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash.get(_LEDGER, [])
    if found:
        terminalreporter.section("faults")
        terminalreporter.write_line(table(found))
        for line in config.stash.get(_NOTES, []):
            terminalreporter.write_line(line)


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
