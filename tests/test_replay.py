"""`colocate replay`: a run that the model itself recorded must come out of the model as it went in."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from colocate.cli.main import main
from colocate.eventlog import parse
from colocate.sim.reenact import recorded_moves
from tests.calibrations import JOBS, small_text
from tests.live import colocate


@pytest.fixture
def recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The arguments that name a recorded run of `reactive` and its scenario."""
    (tmp_path / "jobs.toml").write_text(JOBS)
    path = tmp_path / "small.toml"
    path.write_text(small_text(str(tmp_path / "jobs.toml"), noise=False))
    main(["simulate", "--scenario", str(path), "--log-dir", str(tmp_path / "logs"), "--json"])
    summary = json.loads(capsys.readouterr().out)
    return [summary["log"], "--mcperf", summary["mcperf"], "--scenario", str(path)]


def replayed(recorded: list[str], capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, object]:
    assert main(["replay", *recorded, "--json", *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


def test_the_models_own_run_is_reenacted_without_error(recorded, capsys):
    (run,) = replayed(recorded, capsys, "--check-model")["runs"]
    assert set(run["jobs"]) == {"one", "two"}
    for pair in (*run["jobs"].values(), run["makespan_s"]):
        assert pair["model"] == pytest.approx(pair["recorded"], rel=0.01)
    assert run["p95_relative_error_median"] < 0.01
    assert run["slo_class_agreement"] == 1.0
    assert run["slo_violation_ratio"]["model"] == run["slo_violation_ratio"]["recorded"]


def test_another_policy_meets_the_recorded_load_and_jobs(recorded, tmp_path, capsys):
    told = replayed(
        recorded, capsys, "--policy", "static", "--set", "service_cores=3", "--log-dir", str(tmp_path / "again")
    )
    assert told["policy"] == "static"
    assert told["complete"] is True
    assert told["makespan_s"] > 60  # 60 core-seconds of work on one core
    assert told["core_moves"] <= told["recorded"]["core_moves"]
    assert told["recorded_on_model"]["makespan_s"] == pytest.approx(told["recorded"]["makespan_s"], rel=0.01)
    targets = [
        Path(path).read_text().split("intervals = ")[1].split("(")[1][:30] for path in (told["mcperf"], recorded[2])
    ]
    assert targets[0] == targets[1]


def test_a_log_whose_clock_is_two_hours_ahead_is_the_same_run(recorded, tmp_path, capsys):
    shifted = tmp_path / "shifted.txt"
    lines = []
    for line in Path(recorded[0]).read_text().splitlines():
        stamp, rest = line.split(" ", 1)
        lines.append(
            f"{(datetime.fromisoformat(stamp) + timedelta(hours=2)).isoformat(timespec='microseconds')} {rest}"
        )
    shifted.write_text("\n".join(lines) + "\n")
    (run,) = replayed([str(shifted), *recorded[1:]], capsys, "--check-model")["runs"]
    assert run["makespan_s"]["model"] == pytest.approx(run["makespan_s"]["recorded"], rel=0.01)
    assert run["slo_class_agreement"] == 1.0


def test_a_move_right_after_a_jobs_end_follows_that_end_and_not_the_clock():
    log = parse(
        "2026-01-01T00:00:00.000000 start scheduler\n"
        "2026-01-01T00:00:00.100000 start memcached [0] 2\n"
        "2026-01-01T00:00:01.000000 start one [1] 1\n"
        "2026-01-01T00:00:09.000000 end one\n"
        "2026-01-01T00:00:09.500000 start two [1] 1\n"
        "2026-01-01T00:00:15.000000 pause two\n"
        "2026-01-01T00:00:16.000000 unpause two\n"
        "2026-01-01T00:00:20.000000 end two\n"
        "2026-01-01T00:00:20.000000 end scheduler\n"
    )
    moves = recorded_moves(log.events, log.events[0].time.timestamp())
    assert [(m.kind, m.target, m.after) for m in moves] == [
        ("start", "memcached", ""), ("start", "one", ""), ("start", "two", "one"), ("pause", "two", ""),
        ("unpause", "two", ""),
    ]  # fmt: skip
    assert moves[2].lag_s == pytest.approx(0.5)
    assert moves[3].time_s == pytest.approx(15.0)


def test_for_people_model_and_record_stand_side_by_side(recorded, capsys):
    assert main(["replay", *recorded, "--check-model"]) == 0
    told = capsys.readouterr().out
    assert "makespan" in told
    assert "rightly above or below 0.8 ms" in told
    assert main(["replay", *recorded, "--policy", "static", "--log-dir", str(Path(recorded[0]).parent)]) == 0
    assert "the same moves on the model" in capsys.readouterr().out


def test_a_simulated_log_names_its_scenario(recorded, tmp_path):
    """Its date does not: all simulated runs begin in 2026."""
    done = colocate("simulate", "--scenario", "cca-2025", "--duration", "20s", "--log-dir", "logs", cwd=tmp_path)
    assert done.returncode == 3
    log = next(tmp_path.glob("logs/log*[0-9].txt"))
    done = colocate("replay", str(log), "--check-model", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = colocate("replay", str(log), "--check-model", "--scenario", "cca-2026", cwd=tmp_path)
    assert (done.returncode, "has no figures for the job" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: ["no-such.txt", *a[1:], "--check-model"], "no-such.txt: No such file"),
        (lambda a: [a[3 + 1], *a[1:], "--check-model"], "no batch job starts in it"),
        (lambda a: [a[0], "--mcperf", a[0], *a[3:], "--check-model"], "no load interval with a time in it"),
        (lambda a: [a[0], *a[3:], "--policy", "static"], "replay --policy: no load"),
        (lambda a: [*a, "--policy", "static", "--jobs", "demo"], "is not in demo"),
        (lambda a: a, "one of the arguments"),
        (lambda a: [*a, "--check-model", "--set", "x=1"], "--set and --jobs are a policy's"),
    ],
)
def test_bad_input_is_one_line(recorded, tmp_path, change, words):
    done = colocate("replay", *change(recorded), cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert words in line
