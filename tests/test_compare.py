"""Policies side by side, for real: on a small calibration, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from colocate.cli.main import main
from colocate.compare import Contender, compare, parse_contenders, parse_seeds, play
from colocate.errors import UserError
from colocate.simulation import SimSettings, setup
from tests.calibrations import JOBS, small_text

STATIC = Contender("static", "static")
POLICY = """\
from colocate.policy import Plan, Policy, share_out

class Mine(Policy):
    def decide(self, view):
        {body}
        return Plan(2, share_out(view.jobs.values(), 2))
"""


@pytest.fixture
def settings(tmp_path: Path) -> SimSettings:
    (tmp_path / "jobs.toml").write_text(JOBS)
    text = small_text(str(tmp_path / "jobs.toml"))
    (tmp_path / "small.toml").write_text(
        text.replace("value = 20.0", "value = 4.0").replace("value = 40.0", "value = 8.0")
    )
    return SimSettings(scenario=str(tmp_path / "small.toml"), period_s=0.1)


def written(tmp_path: Path, body: str) -> Contender:
    path = tmp_path / "mine.py"
    path.write_text(POLICY.format(body=body))
    return Contender("mine", f"{path}:Mine")


def test_options_stand_in_brackets() -> None:
    found = parse_contenders("static, reactive[high=0.8,low=0.2],my.py:Mine[]")
    assert [(one.policy, one.options) for one in found] == [
        ("static", ()),
        ("reactive", ("high=0.8", "low=0.2")),
        ("my.py:Mine", ()),
    ]
    assert found[1].name == "reactive[high=0.8,low=0.2]"


@pytest.mark.parametrize("text", ["", "static,", "static[a=1", "static]", "[a=1]", "static[a=1]b", "static,static"])
def test_a_list_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--policies"):
        parse_contenders(text)


def test_seeds_are_a_number_or_a_range() -> None:
    assert parse_seeds("3") == (1, 2, 3)
    assert parse_seeds("7-9") == (7, 8, 9)
    for text in ("0", "9-7", "x", "", "1-2-3", "99999999"):
        with pytest.raises(UserError, match="--seeds"):
            parse_seeds(text)


def test_a_run_is_the_same_twice_and_another_with_another_option(settings: SimSettings, tmp_path: Path) -> None:
    seeded = replace(settings, seed=4)
    first = play(seeded, STATIC, tmp_path)
    assert first == play(seeded, STATIC, tmp_path)
    three = play(seeded, Contender("static", "static", ("service_cores=3",)), tmp_path)
    assert first.complete
    assert three.makespan_s > first.makespan_s
    assert 0 < three.useful_cycles_ratio < first.useful_cycles_ratio < 1


def test_an_unseeded_policy_draws_the_same_in_each_run(settings: SimSettings, tmp_path: Path) -> None:
    mine = written(
        tmp_path, "import random; return Plan(n := random.choice((1, 2)), share_out(view.jobs.values(), 4 - n))"
    )
    seeded = replace(settings, seed=4)
    assert play(seeded, mine, tmp_path) == play(seeded, mine, tmp_path)


def test_the_result_does_not_depend_on_the_number_of_workers(settings: SimSettings, tmp_path: Path) -> None:
    contenders = [STATIC, Contender("random", "random"), written(tmp_path, "print('hello')")]
    done: list[tuple[int, int]] = []
    one = compare(settings, contenders, [2, 1], workers=1)
    two = compare(settings, contenders, [2, 1], workers=2, done=lambda number, total: done.append((number, total)))
    assert one == two
    assert [run.seed for run in two.outcomes["static"]] == [2, 1]
    assert list(two.outcomes) == ["static", "random", "mine"]
    assert done[-1] == (10, 10)


def test_a_policy_that_raises_has_a_row_like_any_other(settings: SimSettings, tmp_path: Path) -> None:
    found = compare(settings, [written(tmp_path, "1 / 0")], [1])
    row = found.rows()[0]
    assert row.runs_of_the_safe_policy == 1
    assert row.fault.startswith("ZeroDivisionError")
    assert row.makespan_s.mean > 0
    oracle = found.oracles[0]["exclusive"]
    assert oracle.lower_bound_s <= oracle.best_s


def test_runs_that_are_not_done_in_time_count_with_the_whole_time(settings: SimSettings, tmp_path: Path) -> None:
    idle = written(tmp_path, "return Plan(4)")
    run = play(replace(settings, seed=1, duration_s=3.0), idle, tmp_path)
    assert (run.complete, run.makespan_s, run.slo_violation_ratio) == (False, 3.0, 0.0)


def changed(settings: SimSettings, figure: str, value: float) -> None:
    """Write another value of a figure into the scenario."""
    path = Path(settings.scenario)
    text, count = re.subn(rf"(?m)^{figure} = .*$", f"{figure} = {{ value = {value} }}", path.read_text())
    assert count == 1
    path.write_text(text)


def test_no_machine_is_busy_for_more_than_all_of_its_time(settings: SimSettings, tmp_path: Path) -> None:
    changed(settings, "cpu_us", 20.0)  # two cores serve 125,000 a second: a request is worth 16 us of them
    body = "return Plan(2, share_out(view.jobs.values(), 2), share=frozenset(view.jobs))"
    full = replace(settings, seed=1, qps_targets=(90_000,))
    sharing, alone = play(full, written(tmp_path, body), tmp_path), play(full, STATIC, tmp_path)
    assert sharing.share
    assert 0.5 < alone.useful_cycles_ratio < sharing.useful_cycles_ratio <= 1


def test_violations_that_the_drawn_machine_has_in_any_case_are_told_apart(settings: SimSettings) -> None:
    changed(settings, "machine_sd", 1.0)
    constant = replace(settings, qps_targets=(110_000,))
    seeds = [1, 2]
    fast, slow = (setup(replace(constant, seed=seed)).noise().speed() * 125_000 for seed in seeds)
    assert slow < 110_000 < fast / 2, "what the two machines serve with two cores"
    found = compare(constant, [STATIC, Contender("one", "static", ("service_cores=1",))], seeds)
    for runs in found.outcomes.values():
        assert [run.unavoidable_ratio for run in runs] == [0.0, 1.0]
        assert runs[1].slo_violation_ratio == 1.0
    assert found.unwinnable_seeds() == 1
    assert [row.unavoidable_ratio for row in found.rows()] == [0.5, 0.5]


def test_violations_that_a_policy_makes_are_not_unavoidable(settings: SimSettings) -> None:
    heavy = replace(settings, qps_targets=(20_000, 90_000), typical=True)  # one core serves 65,000 a second
    found = compare(heavy, [Contender("one", "static", ("service_cores=1",)), STATIC], [1], ask_oracle=False)
    one, two = found.rows()
    assert one.slo_violation_ratio.mean > two.slo_violation_ratio.mean == 0.0
    assert (one.unavoidable_ratio, two.unavoidable_ratio) == (0.0, 0.0)


def test_only_the_intervals_of_the_jobs_time_can_be_unavoidable(settings: SimSettings) -> None:
    targets = (5_000, 5_000, 119_000, 5_000, *[119_000] * 96)  # 2 s each; 119,000 is too much for two cores
    brief = replace(settings, qps_targets=targets, typical=True, duration_s=7.0)
    assert compare(brief, [STATIC], [1], ask_oracle=False).rows()[0].unavoidable_ratio == 0.25


COMPARE = ("compare", "--policies", "static,static[service_cores=3]", "--seeds", "2", "--workers", "1")


def test_the_oracle_is_told_where_it_was_asked(settings: SimSettings, capsys: pytest.CaptureFixture[str]) -> None:
    asked = (*COMPARE, "--scenario", settings.scenario, "--json")
    assert main([*asked]) == 0
    with_it = json.loads(capsys.readouterr().out)
    assert main([*asked, "--no-oracle"]) == 0
    without = json.loads(capsys.readouterr().out)
    assert set(with_it["oracle"]) == {"exclusive", "sharing"}
    assert all(row["over_oracle"] >= 1 for row in with_it["rows"])
    assert without["oracle"] == {}
    assert [row["over_oracle"] for row in without["rows"]] == [None, None]
    for document in (with_it, without):  # all else is the same
        del document["oracle"], document["unwinnable_seeds"]
        for row in document["rows"]:
            del row["over_oracle"]
    assert with_it == without


def test_the_table_has_no_oracle_where_none_was_asked(
    settings: SimSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (*COMPARE, "--scenario", settings.scenario, "--csv", str(tmp_path / "runs.csv"))
    assert main([*asked]) == 0
    told, header = capsys.readouterr().out, (tmp_path / "runs.csv").read_text().splitlines()[0]
    assert main([*asked, "--no-oracle"]) == 0
    untold, columns = capsys.readouterr().out, (tmp_path / "runs.csv").read_text().splitlines()[0]
    assert "oracle, whole cores" in told
    assert header.endswith("exclusive_lower_bound_s,exclusive_best_s,sharing_lower_bound_s,sharing_best_s")
    assert "oracle, " not in untold
    assert "best" not in columns
    assert "static[service_cores=3]" in untold


def test_a_bad_policy_is_told_before_anything_runs(settings: SimSettings) -> None:
    done: list[int] = []
    with pytest.raises(UserError, match="nobody"):
        compare(settings, [STATIC, Contender("nobody", "nobody")], [1], done=lambda number, _: done.append(number))
    assert not done


def test_a_policy_that_ends_its_process_is_the_users_to_mend(settings: SimSettings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ended the process"):
        compare(settings, [written(tmp_path, "import os; os._exit(3)")], [1, 2], workers=1)


def test_a_policy_that_leaves_while_it_is_loaded_is_named(settings: SimSettings, tmp_path: Path) -> None:
    contender = written(tmp_path, "pass")
    (tmp_path / "mine.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(UserError, match="mine"):
        play(settings, contender, tmp_path)


def test_a_policy_that_wants_to_leave_in_the_middle_is_replaced(settings: SimSettings, tmp_path: Path) -> None:
    assert play(settings, written(tmp_path, "raise SystemExit(3)"), tmp_path).fell_back


def test_ctrl_c_ends_all_at_once_and_in_silence(settings: SimSettings, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    written(tmp_path, f"open({str(begun)!r}, 'w').close()\n        while True: pass")
    script = (
        "import argparse, sys\n"
        "from colocate.cli.compare import add_parser\n"
        "parser = argparse.ArgumentParser()\n"
        "add_parser(parser.add_subparsers())\n"
        "args = parser.parse_args(sys.argv[1:])\n"
        "try: args.run(args)\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    policy = f"{tmp_path / 'mine.py'}:Mine"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "compare", "--policies", policy, "--scenario", settings.scenario, "--seeds=1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        give_up_s = time.monotonic() + 60
        while not begun.exists() and time.monotonic() < give_up_s:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        with_group_gone = _kill_group(process.pid)
    assert (process.returncode, out, err) == (130, b"", b"")
    assert with_group_gone, "a process of it was left"
    assert not list(tmp_path.glob("colocate-*"))


def _kill_group(group: int) -> bool:
    """Whether nobody of the group is left after a moment; whoever is, is killed."""
    give_up_s = time.monotonic() + 10
    while time.monotonic() < give_up_s:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    os.killpg(group, signal.SIGKILL)
    return False
