"""A run as it lies on disk: the same verdict as its own, graded anew on demand, whatever has been damaged."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from colocate.cli.main import main
from colocate.errors import UserError
from colocate.report.chart import figure_a, figure_b, figure_moves
from colocate.report.deviations import checked
from colocate.report.explain import explain, story
from colocate.report.grade import grade
from colocate.report.page import page
from colocate.report.record import headline, load_record, write_text
from colocate.report.summary import print_summary, summary_path, to_json
from tests.logs import BEGIN, HEAD, STORY, load_text, log_text, run_text, simulate, tick, write, write_metrics

VERDICT = (
    "makespan_s", "slo_violation_ratio", "intervals", "violations", "coverage", "jobs", "core_moves", "pauses",
    "complete", "other_denominators", "policy", "scenario", "seed", "source", "cores", "slo_ms", "percentile",
    "exit_code",
)  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("simulated"))


def test_a_runs_verdict_is_the_one_that_it_gave_itself(recorded):
    own = json.loads(summary_path(recorded).read_text())
    record = load_record(recorded)
    assert {key: record.summary[key] for key in VERDICT} == {key: own[key] for key in VERDICT}
    assert record.summary["p95_ms"]["max"] == pytest.approx(own["p95_ms"]["max"], abs=1e-4), "rounded in the file"
    assert own["intervals"] > 10
    assert record.summary.keys() <= own.keys() | {"latency_source"}
    assert grade(record.log, record.intervals, 0.8) == record.grade


def test_the_verdict_of_a_replay_is_its_own(recorded, tmp_path, capsys):
    scenario, load = recorded.parent.parent / "small.toml", recorded.with_name(f"{recorded.stem}-mcperf.txt")
    assert main([
        "replay", str(recorded), "--mcperf", str(load), "--scenario", str(scenario), "--policy", "static",
        "--log-dir", str(tmp_path), "--json",
    ]) == 0  # fmt: skip
    own = json.loads(capsys.readouterr().out)
    summary = load_record(Path(own["log"])).summary
    assert {key: summary[key] for key in VERDICT} == {key: own[key] for key in VERDICT}
    assert summary["policy"] == "static"


def test_another_promise_grades_anew(tmp_path):
    log, load = write(tmp_path / "x.txt", log_text(STORY)), write(tmp_path / "y", load_text([0.9, 0.5, 1.2, 0.7] * 2))
    ratios = [load_record(log, load, slo_ms=slo_ms).summary["slo_violation_ratio"] for slo_ms in (0.4, None, 1.0, 2.0)]
    assert ratios == pytest.approx([1.0, 3 / 6, 2 / 6, 0.0])  # 10 to 70: intervals two to seven
    assert load_record(log, load, percentile=99).summary["p95_ms"]["max"] == 9.0
    with pytest.raises(UserError, match="p42"):
        load_record(log, load, percentile=42)


def test_a_foreign_log_tells_what_it_can(tmp_path):
    summary = load_record(write(tmp_path / "x.txt", log_text(STORY))).summary
    assert (summary["source"], summary["policy"], summary["mcperf"]) == ("recorded", None, None)
    assert (summary["makespan_s"], summary["slo_violation_ratio"], summary["complete"]) == (60, None, True)
    assert summary["cores"] == [0, 1, 2, 3]
    assert summary["jobs"]["canneal"] == {
        "state": "finished", "start_s": 0, "run_s": 30, "wall_s": 40, "threads": 1, "retries": 0,
    }  # fmt: skip


def test_a_job_that_ends_at_once_and_one_that_starts_with_the_last_line_are_jobs_too(tmp_path):
    lines = (*HEAD, (0, "start a [1] 1"), (0, "end a"), (1, "start b [2] 1"))
    summary = load_record(write(tmp_path / "x.txt", log_text(lines))).summary
    assert {name: job["state"] for name, job in summary["jobs"].items()} == {"a": "finished", "b": "unfinished"}


def test_of_an_output_that_stands_twice_in_its_file_the_one_over_the_run_counts(tmp_path):
    log = write(tmp_path / "x.txt", log_text(STORY))
    twice = write(tmp_path / "y", load_text([0.5] * 8) + load_text([9.0] * 8, at_s=4000))
    assert load_record(log, twice).summary["slo_violation_ratio"] == 0
    assert load_record(log, write(tmp_path / "z", load_text([9.0] * 8) * 2)).summary["violations"] == 6


def test_of_two_runs_in_one_file_the_measured_one_is_graded_and_drawn(tmp_path):
    log = write(tmp_path / "x.txt", run_text(0, 50) + run_text(2000, 90, job="vips"))
    record = load_record(log, write(tmp_path / "y", load_text([0.5] * 6)))
    assert list(record.timeline.jobs) == list(record.summary["jobs"]) == ["canneal"]
    assert record.summary["makespan_s"] == 50
    assert "2 runs in one file, number 1 is graded" in record.summary["warnings"]


def test_without_an_output_the_runs_own_probe_tells(tmp_path):
    log = write(tmp_path / "x.txt", log_text(STORY))
    write_metrics(log, [tick(t + 0.01, latency_ms=0.9 if t < 40 else 0.1, qps=100.0) for t in range(80)])
    summary = load_record(log).summary
    assert summary["latency_source"] == "probe"
    assert (summary["violations"], summary["intervals"]) == (29, 60)  # the seconds from 10 to 39


def test_a_run_names_its_load_itself_wherever_the_folder_has_gone(tmp_path):
    log = write(tmp_path / "x.txt", log_text(STORY))
    write(tmp_path / "load.txt", load_text([0.5] * 8))
    summary_path(log).write_text(json.dumps({"mcperf": "/gone/load.txt"}))
    assert load_record(log).load_path == tmp_path / "load.txt"
    for odd in ("", ".", "/", "..", "gone.txt", 7, None, "nul\0", "x" * 5000):
        summary_path(log).write_text(json.dumps({"mcperf": odd}))
        assert load_record(log).load_path is None


# What hands and disks do to files.

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([10**400, -1, 1e300, "[/b]", "$x^$", "\ud800", "</script>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
TICKS = [
    tick(
        9.9 + second,
        busy={"0": 0.5},
        cores=[0],
        cpu_cores=0.5,
        wait_us=5.0,
        qps=100.0,
        latency_ms=0.5,
        latency_samples=9,
        jobs={"canneal": ["running", [1]]},
        plan=[2, {"canneal": 1}],
        reason="needs 2 cores",
        rules=[["lend", "a core is lent"]],
        moves=[["pin", "memcached", [0, 1]], ["resize", "my_job", [3]], ["pause", "canneal", []]],
        share=["canneal"],
    )
    for second in (0, 30, 60)
]
TOLD = {
    "log": "x.txt", "mcperf": None, "source": "live", "policy": "share", "policies": ["share"], "shadow": None,
    "scenario": None, "seed": 1, "cores": [0, 1], "slo_ms": 0.8, "exit_code": 0, "warnings": ["odd"],
    "jobs": {"canneal": {"state": "finished", "threads": 1, "retries": 0}},
}  # fmt: skip


def everything(log: Path, load: Path | None = None) -> None:
    """All that a report and an explanation make of a run, but the pictures for paper."""
    record = load_record(log, load)
    to_json(record.summary)
    print_summary(record.summary, Console(file=io.StringIO()))
    assert headline(record)
    assert checked(log).document()
    for chart in (figure_a(record), figure_b(record), figure_moves(record)):
        json.dumps(chart, allow_nan=False)
    write_text(log.with_suffix(".html"), page([record]))
    assert story(record)
    line = record.timeline
    for time_s in (line.begin_s, 0.0, 30.05, line.end_s):
        assert explain(record, time_s)


@st.composite
def damaged(draw, text):
    """Lines dropped, doubled, cut, exchanged, and signs changed."""
    lines = text.splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["drop", "double", "cut", "swap", "sign", "word"])):
            case "drop":
                del lines[at]
            case "double":
                lines.insert(at, lines[at])
            case "cut":
                lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
            case "swap":
                other = draw(st.integers(0, len(lines) - 1))
                lines[at], lines[other] = lines[other], lines[at]
            case "sign" if lines[at]:
                spot = draw(st.integers(0, len(lines[at]) - 1))
                lines[at] = lines[at][:spot] + draw(st.characters(codec="utf-8")) + lines[at][spot + 1 :]
            case "word":
                words = lines[at].split(" ")
                words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(["[/b]", "[]", "$x^$", "9999", ""]))
                lines[at] = " ".join(words)
        lines = lines or [""]
    return "".join(lines)


@given(damaged(log_text(STORY)), damaged(load_text([0.5, 0.9] * 4)))
@settings(max_examples=60)
@example(log_text(STORY).replace(" [1] 1", "").replace(" [2,3] 2", ""), "")
@example(log_text([(0, "start [/b] [1] 1"), (5, "end [/b]")]), "")
@example(log_text([(0, "start memcached [0-8191] 1"), (5, "start a [1] 1"), (5, "end a")]), "")
@example("0001-01-01T00:00:00.000000 start a [1] 1\n9999-12-31T23:59:59.999999 end a\n", "")
@example("", "")
def test_no_damaged_log_or_load_is_too_much(text, load):
    with tempfile.TemporaryDirectory() as folder:
        log = write(Path(folder) / "x.txt", text)
        everything(log, write(Path(folder) / "y", load))
        write_metrics(log, TICKS)
        everything(log)


@st.composite
def deformed(draw, document):
    """A JSON document in which some values, at any depth, are others."""
    if draw(st.integers(0, 9)) == 0:
        return draw(ANYTHING)
    if isinstance(document, dict):
        return {key: draw(deformed(value)) for key, value in document.items() if draw(st.integers(0, 19))}
    if isinstance(document, list):
        return [draw(deformed(value)) for value in document]
    return document


@given(deformed({"ticks": TICKS, "begin": {"begin": BEGIN.isoformat()}, "head": {"slo_ms": 0.8, "settings": {"a": 1}}}))
@settings(max_examples=100)
@example({"ticks": [TICKS[0] | {"t": 1e300}, TICKS[1] | {"t": 10**400}, TICKS[2] | {"t": float("nan")}]})
@example({"ticks": [TICKS[0] | {"t": 1e9}]})
@example({"ticks": [TICKS[0] | {"rules": None, "busy": {"0": "much"}, "share": [1], "plan": ["x", {}]}]})
@example({"ticks": [TICKS[0] | {"reason": "\ud800", "qps": 10**400, "moves": [["pin", "memcached", ["0", None]]]}]})
@example({"begin": {"begin": "0001-01-01T00:00:00"}, "ticks": TICKS})
@example({"head": {"slo_ms": 10**400, "percentile": float("inf"), "settings": {"latency_from": ""}}, "ticks": TICKS})
def test_no_damaged_metrics_are_too_much(told):
    with tempfile.TemporaryDirectory() as folder:
        log = write(Path(folder) / "x.txt", log_text(STORY))
        parts = told if isinstance(told, dict) else {"ticks": [told]}
        ticks = parts.get("ticks")
        head, begin = (
            {"settings": {}} if name == "head" else {"begin": BEGIN.isoformat()} for name in ("head", "begin")
        )
        records = [parts.get("head", head), parts.get("begin", begin), *(ticks if isinstance(ticks, list) else [ticks])]
        write(log.with_suffix(".jsonl"), "".join(f"{json.dumps(record)}\n" for record in records))
        everything(log)


@given(deformed(TOLD))
@settings(max_examples=100)
@example(TOLD | {"policies": None, "shadow": "x", "jobs": {"[/b]": {"state": 7, "threads": 1, "retries": None}}})
@example(TOLD | {"cores": ["a", 1], "seed": float("nan"), "warnings": [None], "policy": "\ud800"})
def test_no_damaged_summary_is_too_much(told):
    with tempfile.TemporaryDirectory() as folder:
        log = write(Path(folder) / "x.txt", log_text(STORY))
        write(summary_path(log), json.dumps(told))
        everything(log)
