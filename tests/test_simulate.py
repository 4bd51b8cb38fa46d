"""`colocate simulate`: the loop of a live run in virtual time, and what it writes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from colocate import mcperf
from colocate.cli.main import main
from colocate.eventlog import parse, violations
from colocate.metrics import read_run
from tests.calibrations import JOBS, small_text
from tests.live import colocate
from tests.memcached_fixture import DEADLINE_S, eventually

RAISING = """\
from colocate.policy import Plan, Policy, View

class Broken(Policy):
    def decide(self, view: View) -> Plan:
        raise RuntimeError("out of ideas")
"""

GROWING = """\
from colocate.policy import Plan, Policy, View

class Growing(Policy):
    def decide(self, view: View) -> Plan:
        return Plan(1, {"two": 1 if view.jobs["two"].state == "waiting" else 2})
"""


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    (tmp_path / "jobs.toml").write_text(JOBS)
    path = tmp_path / "small.toml"
    path.write_text(small_text(str(tmp_path / "jobs.toml")))
    return str(path)


def simulated(scenario: str, directory: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, object]:
    code = main(["simulate", "--scenario", scenario, "--log-dir", str(directory), "--json", *options])
    summary = json.loads(capsys.readouterr().out)
    assert summary["exit_code"] == code
    assert isinstance(summary, dict)
    return summary


def written(directory: Path) -> dict[str, bytes]:
    here = str(directory).encode()  # a summary names its files
    return {path.name: path.read_bytes().replace(here, b"") for path in directory.iterdir()}


def test_a_run_ends_and_its_log_obeys_every_rule(scenario, tmp_path, capsys):
    summary = simulated(scenario, tmp_path / "logs", capsys)
    log = Path(str(summary["log"]))
    assert violations(log.read_text()) == []
    assert (summary["source"], summary["scenario"], summary["seed"]) == ("simulated", "small", 1)
    assert summary["complete"] is True
    assert summary["exit_code"] == 0
    assert {name: job["state"] for name, job in summary["jobs"].items()} == {"one": "finished", "two": "finished"}
    assert 20 < summary["makespan_s"] < 60  # 60 core-seconds of work on two to three cores


def test_the_load_file_is_mcperfs_and_covers_the_run(scenario, tmp_path, capsys):
    summary = simulated(scenario, tmp_path / "logs", capsys)
    output = mcperf.parse(Path(str(summary["mcperf"])).read_text())
    assert output.warnings == ()
    assert output.complete
    assert output.interval_s == 2.0
    assert list(output.targets) == mcperf.waveform(1, 5000, 100_000, len(output.rows))
    assert summary["coverage"] == 1.0
    assert summary["intervals"] == len(output.rows)


def test_one_seed_gives_the_same_bytes_and_two_give_different_ones(scenario, tmp_path, capsys):
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        simulated(scenario, tmp_path / name, capsys, "--seed", seed)
    a, b, c = (written(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert all(a[name] != c[name] for name in a)


def test_a_policy_that_raises_shows_in_a_simulated_run_as_in_a_live_one(scenario, tmp_path, capsys):
    policy = tmp_path / "broken.py"
    policy.write_text(RAISING)
    summary = simulated(scenario, tmp_path / "logs", capsys, "--policy", f"{policy}:Broken")
    log = Path(str(summary["log"])).read_text()
    assert "RuntimeError%3A+out+of+ideas" in log
    assert "strike" in log
    assert summary["complete"] is True  # the safe policy took over
    assert summary["warnings"] == [
        "the policy failed 3 times, then the safe policy took over; at first: RuntimeError: out of ideas"
    ]


def test_a_job_that_grows_while_it_starts_is_confirmed_and_nobody_elses_doing(scenario, tmp_path, capsys):
    policy = tmp_path / "growing.py"
    policy.write_text(GROWING)
    summary = simulated(scenario, tmp_path / "logs", capsys, "--policy", f"{policy}:Growing", "--duration", "5s")
    log = parse(Path(str(summary["log"])).read_text())
    start, update = [event for event in log.events if event.job == "two"][:2]
    assert (start.event, len(start.cores)) == ("start", 1)
    assert (update.event, len(update.cores), update.time) == ("update_cores", 2, start.time)
    assert not [event.comment for event in log.events if "confirmed" in event.comment]


def test_duration_ends_a_run_before_its_jobs(scenario, tmp_path, capsys):
    summary = simulated(scenario, tmp_path / "logs", capsys, "--duration", "5s")
    assert summary["exit_code"] == 3
    assert summary["complete"] is False


def test_more_memcached_cores_mean_fewer_violations_and_a_longer_run(scenario, tmp_path, capsys):
    few, many = (
        simulated(scenario, tmp_path / n, capsys, "--policy", "static", "--set", f"service_cores={n}", "--typical")
        for n in "12"
    )
    assert few["slo_violation_ratio"] > many["slo_violation_ratio"]
    assert few["makespan_s"] < many["makespan_s"]


def test_the_options_of_the_load_are_followed(scenario, tmp_path, capsys):
    summary = simulated(
        scenario, tmp_path / "logs", capsys, "--load", "step:1000,2000,10", "--qps-interval", "5", "--cores", "0-2"
    )
    output = mcperf.parse(Path(str(summary["mcperf"])).read_text())
    assert output.targets[:4] == (1000, 1000, 2000, 2000)
    assert summary["cores"] == [0, 1, 2]


def test_the_percentile_alone_leaves_the_scenarios_latency_and_the_other_way_round(scenario, tmp_path, capsys):
    path = Path(scenario)
    path.write_text(
        path.read_text().replace("slo_ms = 0.8", "slo_ms = 1.5").replace("percentile = 95", "percentile = 90")
    )
    for options, promise in ((("--percentile", "99"), (1.5, 99)), (("--slo", "2ms"), (2.0, 90))):
        summary = simulated(scenario, tmp_path / "logs", capsys, *options)
        assert (summary["slo_ms"], summary["percentile"]) == promise


def test_targets_are_those_of_their_interval_however_short_it_is(scenario, tmp_path, capsys):
    targets = [1000 * n for n in range(1, 31)]
    options = [word for target in targets for word in ("--qps-target", str(target))]
    summary = simulated(scenario, tmp_path / "logs", capsys, "--qps-interval", "100ms", "--duration", "3s", *options)
    assert list(mcperf.parse(Path(str(summary["mcperf"])).read_text()).targets[:30]) == targets


def test_load_that_is_not_served_is_told(scenario, tmp_path, capsys):
    summary = simulated(scenario, tmp_path / "logs", capsys, "--qps-target", "5000000", "--duration", "10s")
    assert any("served less than was asked" in warning for warning in summary["warnings"])


def test_the_last_interval_is_whole(scenario, tmp_path, capsys):
    summary = simulated(
        scenario, tmp_path / "logs", capsys, "--duration", "15s", "--qps-interval", "10", "--qps-target", "10000"
    )
    rows = mcperf.parse(Path(str(summary["mcperf"])).read_text()).rows
    assert [row.qps for row in rows] == pytest.approx([10_000, 10_000], rel=1e-3)


def test_a_signal_ends_a_run_in_order(scenario, tmp_path):
    command = [
        sys.executable, "-m", "colocate", "simulate", "--scenario", scenario, "--speed", "1", "--json",
        "--log-dir", str(tmp_path / "logs"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def log() -> str:
        return "".join(path.read_text() for path in (tmp_path / "logs").glob("log*[0-9].txt"))

    eventually(lambda: "start one" in log(), "a job starts")
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert json.loads(told)["exit_code"] == 130
    assert "run+interrupted" in log()
    assert violations(log()) == []


def test_metrics_are_written_as_by_a_live_run(scenario, tmp_path, capsys):
    summary = simulated(scenario, tmp_path / "logs", capsys)
    records = read_run(Path(str(summary["metrics"]))).ticks
    assert {"t", "cores", "qps", "plan", "reason", "moves"} <= records[0].keys()
    assert records[-1]["t"] > summary["makespan_s"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--scenario", "no-such"), "scenario 'no-such': unknown; give one of"),
        (("--policy", "no-such"), "policy 'no-such': unknown"),
        (("--cores", "0"), "one core cannot be shared out"),
        (("--cores", "0-9"), "core 4 is not on this machine"),
        (("--load", "hill:1,2"), "no such shape or file"),
        (("--jobs", "demo"), "has no figures for the job"),
        (("--speed", "0"), "no factor"),
        (("--set", "nonsense=1"), "no option 'nonsense'"),
        (("--memcached-threads", "0"), "0 is too few"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(scenario, tmp_path, arguments, words):
    before = set(tmp_path.iterdir())
    done = colocate("simulate", "--scenario", scenario, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert words in line
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("cores = 4", "cores = 1", "cores: 1 is no core count"),
        ("[[0, 1], [2, 3]]", "[[0, 7]]", "siblings: [0, 7] are no cores of it"),
        ("pin_s = 0.0002", "pin_s = -1", "moves: pin_s: -1 is no figure"),
        ("slo_ms = 0.8", "", "scenario: slo_ms: None is no figure"),
        ("cpu_us = { value = 12.0 }", "", "service: cpu_us: missing"),
        ("[jobs.one]", "[jobs.one]\nhaste = { value = 1 }", "jobs.one: unknown figure 'haste'"),
        ("[moves]", "[moves", "not TOML"),
        ("[[0, 1], [2, 3]]", "[[[1], 1]]", "are no cores of it"),
        ("[[0, 1], [2, 3]]", "[[0, 1], [1, 2]]", "core 1 stands in two groups"),
        ("qps_interval_s = 2.0", "qps_interval_s = 0", "qps_interval_s: 0 is no figure"),
    ],
)
def test_a_bad_calibration_names_the_file_and_the_figure(scenario, tmp_path, old, new, words):
    path = Path(scenario)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    done = colocate("simulate", "--scenario", scenario, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "small.toml" in line
    assert words in line


@pytest.fixture(scope="module")
def shared_and_not(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """One load of `cca-2025` under `share`, where the host can share and where it cannot."""
    summaries = {}
    for name, options in (("shared", ()), ("not", ("--no-share",))):
        directory = tmp_path_factory.mktemp(name)
        command = ("simulate", "--scenario", "cca-2025", "--policy", "share", "--json", "--log-dir", str(directory))
        done = colocate(*command, *options, cwd=directory)
        assert done.returncode == 0, done.stderr
        summaries[name] = json.loads(done.stdout)
    return summaries


@pytest.mark.parametrize("name", ["shared", "not"])
def test_share_ends_its_jobs_with_and_without_sharing_and_leaves_the_regulator_nothing_to_do(shared_and_not, name):
    summary = shared_and_not[name]
    assert summary["complete"] is True
    assert summary["slo_violation_ratio"] <= 0.02
    assert summary["warnings"] == []
    log = Path(str(summary["log"])).read_text()
    assert violations(log) == []
    assert "regulator" not in log
    records = read_run(Path(str(summary["metrics"]))).ticks
    assert not any(record.get("rules") for record in records)
    on_memcacheds = [
        job for record in records for job, (_, cores) in record["jobs"].items() if set(cores) & set(record["cores"])
    ]
    assert bool(on_memcacheds) == (name == "shared")


def test_sharing_shortens_the_run(shared_and_not):
    assert shared_and_not["shared"]["makespan_s"] < shared_and_not["not"]["makespan_s"]
