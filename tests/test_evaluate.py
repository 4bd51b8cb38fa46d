"""One score for a policy, whatever its code does; and the page about it."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from colocate.errors import UserError
from colocate.evaluate import FAILED, Limits, evaluate, evaluation, with_class
from colocate.simulation import SimSettings
from tests.calibrations import JOBS, small_text
from tests.test_compare import POLICY

PAGE = Path(__file__).parents[1] / "docs" / "evaluate.md"


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    (tmp_path / "jobs.toml").write_text(JOBS)
    text = small_text(str(tmp_path / "jobs.toml"))
    path = tmp_path / "small.toml"
    path.write_text(text.replace("value = 20.0", "value = 4.0").replace("value = 40.0", "value = 8.0"))
    return str(path)


def written(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(POLICY.format(body=body))
    return path


def test_the_same_file_and_seeds_give_the_same_score(scenario: str, tmp_path: Path) -> None:
    mine = written(tmp_path, "import random; self.x = sorted({'a', 'b', 'c'}, key=hash)[0] + str(random.random())")
    first = evaluate(mine, scenario=scenario, seeds=2)
    assert first == evaluate(mine, scenario=scenario, seeds=(1, 2))
    assert first.keys() == {"score", "makespan_s", "slo_violation_ratio", "over_oracle", "failed"}
    assert first["failed"] == 0.0
    over = max(0.0, first["slo_violation_ratio"] - 0.01)
    assert first["score"] == pytest.approx(math.exp(-25 * over) / first["over_oracle"])


def test_a_worse_split_has_a_lower_score_and_options_reach_the_policy(scenario: str) -> None:
    scores = [evaluate("static", scenario=scenario, seeds=1, options={"service_cores": n})["score"] for n in (2, 3)]
    assert 0 < scores[1] < scores[0] <= 1


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("return None", "safe policy took over"),
        ("raise SystemExit(0)", "safe policy took over"),
        ("import os; os._exit(3)", "exit 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("self.hoard = bytearray(3 << 30)", "MemoryError"),
        ("return Plan(4)", "jobs were left after 3 s"),
        ("(", "not Python"),
    ],
)
def test_whatever_a_policy_does_it_has_a_finite_score(scenario: str, tmp_path: Path, body: str, told: str) -> None:
    settings = SimSettings(scenario=scenario, duration_s=3.0)
    found = evaluation(str(written(tmp_path, body)), (), settings, [1])
    assert found.score == FAILED
    assert found.makespan_s is None
    assert told in (found.error or "")


def test_a_policy_that_hangs_is_killed_with_all_that_it_started(scenario: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    body = f"import subprocess; p = subprocess.Popen(['sleep', '600']); open({str(pids)!r}, 'w').write(str(p.pid))"
    mine = written(tmp_path, f"{body}\n        while True: pass")
    found = evaluation(str(mine), (), SimSettings(scenario=scenario), [1], Limits(time_s=15.0))
    assert "not done after 15 s" in (found.error or "")
    assert gone(int(pids.read_text()))


def test_what_a_finished_policy_leaves_behind_is_killed_too(scenario: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    body = f"import subprocess; p = subprocess.Popen(['sleep', '600']); open({str(pids)!r}, 'w').write(str(p.pid))"
    mine = written(tmp_path, f"if not hasattr(self, 'once'):\n            self.once = 1; {body}")
    assert evaluation(str(mine), (), SimSettings(scenario=scenario), [1]).error is None
    assert gone(int(pids.read_text()))


def test_a_failed_evaluation_has_the_worst_parts_and_all_are_finite(scenario: str, tmp_path: Path) -> None:
    found = evaluate(written(tmp_path, "1 / 0"), scenario=scenario, seeds=1)
    assert (found["score"], found["failed"], found["slo_violation_ratio"]) == (FAILED, 1.0, 1.0)
    assert all(math.isfinite(value) for value in found.values())


def test_the_scenario_and_the_seeds_are_the_callers_to_mend(tmp_path: Path, scenario: str) -> None:
    with pytest.raises(UserError, match="nowhere"):
        evaluate("static", scenario="nowhere")
    with pytest.raises(UserError, match="seeds"):
        evaluate("static", scenario=scenario, seeds=0)


def test_a_file_with_one_policy_needs_no_class_name(tmp_path: Path) -> None:
    mine = written(tmp_path, "pass")
    assert with_class(str(mine)) == f"{mine}:Mine"
    assert with_class("my.py:Mine") == "my.py:Mine"
    mine.write_text(mine.read_text() + "\nclass Other:\n    def decide(self, view): ...\n")
    with pytest.raises(UserError, match="2 classes"):
        with_class(str(mine))
    with pytest.raises(UserError, match="No such file"):
        with_class(str(tmp_path / "none.py"))


def test_what_a_policy_prints_does_not_reach_the_document(scenario: str, tmp_path: Path) -> None:
    mine = written(tmp_path, "print('noise'); import os; os.write(1, b'noise')")
    script = (
        "import argparse, sys\n"
        "from colocate.cli.evaluate import add_parser\n"
        "parser = argparse.ArgumentParser()\n"
        "add_parser(parser.add_subparsers())\n"
        "args = parser.parse_args(sys.argv[1:])\n"
        "sys.exit(args.run(args))\n"
    )
    command = [sys.executable, "-c", script, "evaluate", f"{mine}:Mine", "--scenario", scenario, "--seeds=1", "--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    document = json.loads(done.stdout)
    assert document.keys() == {"score", "makespan_s", "slo_violation_ratio", "over_oracle", "error"}
    assert document["error"] is None
    mine.write_text("raise ValueError('no')\nclass Mine: pass\n")
    failed = subprocess.run(command, capture_output=True, check=False)
    assert failed.returncode == 1
    document = json.loads(failed.stdout)
    assert (document["score"], document["makespan_s"]) == (0.0, None)
    assert "ValueError: no" in document["error"]


def test_the_example_of_the_page_runs_as_it_is_printed(scenario: str) -> None:
    example = code("python", "random search")
    for name, value in {"SCENARIO": repr(scenario), "TRIALS": "2", "TRAIN": "(1,)", "TEST": "(2,)"}.items():
        example, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", example, flags=re.MULTILINE)
        assert count == 1
    said = io.StringIO()
    with redirect_stdout(said):
        exec(compile(example, str(PAGE), "exec"), {"__name__": "__main__"})  # noqa: S102 -- the page's own code
    assert re.search(r"unseen loads: defaults 0\.\d+, found 0\.\d+", said.getvalue())


def test_the_evaluator_of_the_page_gives_what_a_search_tool_wants(scenario: str, tmp_path: Path) -> None:
    example = code("python", "combined_score").replace('"cca-2025"', repr(scenario))
    names: dict[str, object] = {}
    exec(compile(example, str(PAGE), "exec"), names)  # noqa: S102 -- the page's own code
    evaluator = names["evaluate"]
    assert callable(evaluator)
    found = evaluator(str(written(tmp_path, "pass")))
    assert isinstance(found, Mapping)
    assert 0 < found["combined_score"] <= 1


def code(language: str, within: str) -> str:
    """The block of the page that has a certain text in it."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if within in block]
    return found


def gone(pid: int) -> bool:
    """Whether a process ends within a moment."""
    give_up_s = time.monotonic() + 5
    while time.monotonic() < give_up_s:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    os.kill(pid, 9)
    return False
