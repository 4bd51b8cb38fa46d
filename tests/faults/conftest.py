"""Every test here notes in `ledger` what it injected; the table stands at the end of the session."""

from __future__ import annotations

import pytest

from tests.faults.ledger import Injection, table

_LEDGER = pytest.StashKey[list[Injection]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash.setdefault(_LEDGER, [])


@pytest.fixture
def ledger(pytestconfig: pytest.Config) -> list[Injection]:
    """Append an `Injection` for each fault injected; one that did not hold is appended, too, before the test fails."""
    return pytestconfig.stash.setdefault(_LEDGER, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash.get(_LEDGER, [])
    if found:
        terminalreporter.section("faults")
        terminalreporter.write_line(table(found))
