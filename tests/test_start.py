"""What the command line loads before it speaks: nothing that only an extra brings, and no module of another command."""

from __future__ import annotations

import subprocess
import sys

import pytest

from colocate.cli.main import COMMANDS, build_parser

EXTRAS = {"matplotlib", "plotly", "textual", "starlette", "sse_starlette", "uvicorn", "prometheus_client"}
CALL = "import sys\nfrom colocate.cli.main import main\ntry: main({words!r})\nfinally: print('LOADED', *sys.modules)"


def loaded(*words: str) -> set[str]:
    """The modules in a Python that has told the help of a command."""
    argv = [sys.executable, "-c", CALL.format(words=[*words, "--help"])]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: colocate")
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_the_help_loads_no_extra_no_science_and_no_command():
    modules = loaded()
    assert not modules & (EXTRAS | {"scipy", "numpy", "simpy", "docker", "rich"})
    assert not {f"colocate.cli.{name}" for name in COMMANDS} & modules


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_loads_an_extra_or_scipy_to_begin_with(name):
    modules = loaded(name)
    assert f"colocate.cli.{name}" in modules
    assert not modules & (EXTRAS | {"scipy"})


def test_a_run_loads_neither_docker_nor_the_model_nor_reports_before_it_knows_what_it_needs():
    modules = loaded("run")
    assert not {"docker", "simpy", "colocate.report.record"} & modules
    assert not [name for name in modules if name.startswith("colocate.sim.")]


@pytest.mark.parametrize("words", [["--help", "run"], ["run", "--set", "demo"], ["--no-such-option", "run"]])
def test_the_command_that_is_asked_for_is_found_among_the_words(words):
    parser = build_parser(words)
    commands = parser._subparsers._group_actions[0].choices
    assert [name for name, command in commands.items() if command.get_default("run")] == ["run"]
