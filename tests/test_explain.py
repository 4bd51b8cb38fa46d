"""`colocate explain`: what it says is what the log and the metrics file say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime, timedelta

import pytest

from colocate.cli.main import main
from colocate.errors import UserError
from colocate.eventlog import SERVICE, parse
from colocate.metrics import metrics_path, read_run
from colocate.report.explain import explain, parse_moment, story
from colocate.report.record import load_record
from tests.logs import STORY, load_text, log_text, simulate, tick, write, write_metrics


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A simulated run in which `reactive` moves memcached's cores to and fro."""
    return simulate(tmp_path_factory.mktemp("simulated"), "--policy", "reactive")


def told(capsys, *arguments, code=0):
    assert main(["explain", *map(str, arguments)]) == code
    return capsys.readouterr()


def service_events(log):
    return [e for e in parse(log.read_text()).events if e.job == SERVICE and e.cores]


def test_every_change_of_memcacheds_cores_is_a_line_with_its_reason(recorded, capsys):
    lines = told(capsys, recorded).out.splitlines()
    events, metrics = service_events(recorded), read_run(metrics_path(recorded))
    pins = [t for t in metrics.ticks for kind, target, _ in t["moves"] if (kind, target) == ("pin", SERVICE)]
    assert len(lines) == len(events) == len(pins) > 5
    for line, event, pin in zip(lines, events, pins, strict=True):
        assert line.startswith(f"{event.time:%H:%M:%S}.")
        assert f"[{','.join(map(str, sorted(event.cores)))}], because {pin['reason']}" in line
    assert " [0,2] -> [0], because " in lines[1]


def test_a_moment_after_a_change_is_told_from_view_to_effect(recorded, capsys):
    metrics = read_run(metrics_path(recorded))
    event = next(e for e in service_events(recorded) if len(e.cores) == 2 and (e.time - metrics.begin).seconds > 2)
    at_s = (event.time - metrics.begin).total_seconds()
    (decided,) = (t for t in metrics.ticks if any(m[1] == SERVICE for m in t["moves"]) and 0 <= at_s - t["t"] < 0.05)
    text = told(capsys, recorded, "--at", f"{event.time + timedelta(seconds=0.2):%H:%M:%S.%f}").out
    first, since, jobs, _, led, seen, planned, rules, done, effect, *_ = text.splitlines()
    assert "memcached had 2 cores, [0,2]." in first
    assert f"since {event.time:%H:%M:%S}." in since
    assert "(until then 1 core, [0])" in since
    assert f"The reason given was: {decided['reason']}." in since
    assert jobs == "Jobs that ran: two [1], one [3]."
    assert led.startswith("What led to it, at ")
    assert f"{decided['qps']:,.0f} requests a second" in seen
    assert f"memcached used {decided['cpu_cores']:.2f} cores of CPU" in seen
    assert f"p95 {decided['latency_ms']:.2f} ms (the promise is 0.8 ms)" in seen
    assert f"Planned by reactive: {decided['plan'][0]} cores to memcached, " in planned
    assert all(f"{name} {count}" in planned for name, count in decided["plan"][1].items())
    assert f"because {decided['reason']}." in planned
    assert rules == "  The regulator changed: nothing."
    assert done == "  Done: memcached was pinned to [0,2]."
    after = [
        t["latency_ms"] for t in metrics.ticks
        if at_s <= t["t"] <= at_s + 1 and t["latency_ms"] is not None and t["latency_age_s"] < 1
    ]  # fmt: skip
    assert f"to {after[-1]:.2f} ms, at most {max(after):.2f} ms: within the promise." in effect


def test_what_the_regulator_changed_is_told_and_an_old_latency_is_none_of_the_second_after(tmp_path):
    log = write(tmp_path / "x.txt", log_text(STORY))
    rules, moves = [["lend", "a core is lent"]], [["pin", SERVICE, [0, 1]], ["pause", "canneal", []]]
    decided = tick(
        39.95, plan=[2, {"canneal": 0, "my_job": 2}], reason="busy", rules=rules, moves=moves, share=["my_job"]
    )
    write_metrics(log, [decided, tick(40.5, latency_ms=9.0, latency_age_s=8.0), tick(60, latency_ms=0.5)])
    lines = "\n".join(explain(load_record(log), 30.5))
    assert (
        "Planned by share: 2 cores to memcached, my_job 2, and let my_job use memcached's, too, because busy." in lines
    )
    assert "The regulator changed: lend: a core is lent." in lines
    assert "Done: memcached was pinned to [0,1]; canneal was paused." in lines
    assert "In the second after, p95 was not measured." in lines
    write_metrics(log, [decided, tick(40.5, latency_ms=0.9), tick(40.9, latency_ms=0.7), tick(41.2, latency_ms=5.0)])
    effect = "In the second after, p95 went to 0.70 ms, at most 0.90 ms: over the promise."
    assert effect in "\n".join(explain(load_record(log), 30.5))


def test_a_moment_long_after_the_change_is_told_for_itself_too(tmp_path):
    log = write(tmp_path / "x.txt", log_text(STORY))
    write_metrics(log, [tick(39.95, moves=[["pin", SERVICE, [0, 1]]]), tick(60, latency_ms=0.5, qps=7000.0)])
    lines = explain(load_record(log), 50.2)
    assert "At 11:01:00.000 itself:" in lines
    assert any("7,000 requests a second" in line for line in lines)


def test_a_foreign_log_says_that_nothing_more_is_known(tmp_path, capsys):
    log = write(tmp_path / "x.txt", log_text([*STORY[:-1], (70, "custom memcached load+is+high"), STORY[-1]]))
    load = write(tmp_path / "y", load_text([0.5] * 8))
    text = told(capsys, log, "--mcperf", load, "--at", "59.5s").out
    assert "memcached had 2 cores, [0,1]." in text
    assert "There is no metrics file beside this log" in text
    assert "The load generator saw p95 0.50 ms at 5,000 requests a second in those 10 s." in text
    assert "The log remarks on memcached: load is high" in text
    assert "Paused: canneal [1]." in told(capsys, log, "--at", "15s").out
    none = write(tmp_path / "z.txt", log_text([line for line in STORY if SERVICE not in line[1]]))
    assert told(capsys, none).out == "memcached's cores are not in this log.\n"
    assert "the log does not say which cores memcached had" in told(capsys, none, "--at", "3").out


@pytest.mark.parametrize(
    ("text", "time_s"),
    [("11:00:45", 35), ("11:00:45.25", 35.25), ("2026-04-12T11:00:45", 35), ("2026-04-12 11:00:45.5", 35.5), ("35", 35),
     ("35s", 35), ("35.5 s", 35.5), ("-10", -10), ("0", 0), ("11:00:00", -10), ("11:01:15", 65)],
)  # fmt: skip
def test_moments_are_written_in_three_ways(tmp_path, text, time_s):
    line = load_record(write(tmp_path / "x.txt", log_text(STORY))).timeline
    assert parse_moment(text, line) == pytest.approx(time_s)


def test_a_run_past_midnight(tmp_path, capsys):
    begin = datetime(2026, 4, 12, 23, 59, 40)
    log = write(tmp_path / "x.txt", log_text(STORY, begin=begin))
    line = load_record(log).timeline
    assert [parse_moment(text, line) for text in ("23:59:59", "00:00:21")] == [9, 31]
    assert told(capsys, log, "--at", "00:00:21").out.startswith("At 00:00:21.000, 31.0 s after the first job's start,")


@pytest.mark.parametrize(
    ("at", "words"),
    [("soon", "is no time; write it like 11:32:07 or 125s"), ("25:00:00", "is no time"), ("", "is no time"),
     ("1e3", "is no time"), ("11:00", "is no time"), ("10:59:00", "outside the run; it went from 11:00:00 to 11:01:15"),
     ("66.5", "outside the run"), ("2026-04-13T11:00:45", "outside the run"), ("999999999", "outside the run")],
)  # fmt: skip
def test_a_bad_moment_is_one_line(tmp_path, capsys, at, words):
    said = told(capsys, write(tmp_path / "x.txt", log_text(STORY)), "--at", at, code=2)
    (line,) = said.err.splitlines()
    assert line.startswith(f"colocate: --at {at!r}")
    assert words in line
    assert said.out == ""


def test_other_bad_input_is_one_line(tmp_path, capsys):
    assert "No such file" in told(capsys, tmp_path / "none", code=2).err
    assert "Is a directory" in told(capsys, tmp_path, code=2).err
    log = write(tmp_path / "x.txt", "no event\n")
    assert "no event of a run in it" in told(capsys, log, "--at", "5", code=2).err
    assert "--slo" in told(capsys, log, "--slo", "1", code=2).err
    with pytest.raises(UserError, match="no event in the log"):
        parse_moment("5", load_record(log).timeline)
    edge = load_record(write(tmp_path / "y.txt", "9999-12-31T23:59:59.000000 start a [1] 1\n")).timeline
    with pytest.raises(UserError, match="--at"):
        parse_moment("00:00:01", edge)


def test_json_has_the_same_sentences(recorded, capsys):
    document = json.loads(told(capsys, recorded, "--at", "5", "--json").out)
    lines = explain(load_record(recorded), 5.0)
    assert document == {"log": str(recorded), "time_s": 5.0, "lines": [line.strip() for line in lines if line]}
    assert json.loads(told(capsys, recorded, "--json").out)["lines"] == story(load_record(recorded))


def test_a_terminal_that_does_not_know_a_sign_gets_another(tmp_path):
    log = write(tmp_path / "x.txt", log_text(STORY))
    write_metrics(log, [tick(39.95, moves=[["pin", SERVICE, [0, 1]]], reason="\ud800 → 2 cores")])
    done = subprocess.run(
        [sys.executable, "-m", "colocate", "explain", str(log)], env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 cores" in done.stdout
