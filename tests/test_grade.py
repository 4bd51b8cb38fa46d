import json
import math
from datetime import datetime

import pytest
from rich.console import Console

from colocate import mcperf
from colocate.errors import UserError
from colocate.eventlog import parse
from colocate.report.grade import Interval, grade, probed_intervals, reported_intervals
from colocate.report.summary import print_summary, summarize, to_json
from colocate.report.suspicions import runs, same_runs, suspicions

START = datetime(2026, 4, 12, 11, 0, 0).timestamp()


def text(*lines):
    def stamp(second):
        return datetime.fromtimestamp(START + second).isoformat(timespec="microseconds")

    return "".join(f"{stamp(second)} {rest}\n" for second, rest in lines)


def log(*lines):
    return parse(text(*lines))


HEAD = ((0, "start scheduler"), (0, "start memcached [0] 2"))
STORY = (
    *HEAD,
    (10, "start a [1] 1"),
    (12, "start b [2,3] 2"),
    (20, "pause a"),
    (30, "unpause a"),
    (40, "update_cores memcached [0,1]"),
    (45, "update_cores b [3]"),
    (50, "end a"),
    (70, "end b"),
    (75, "end scheduler"),
)
RUN = log(*STORY)


def every(seconds, *latencies_ms, begin=0.0):
    return [
        Interval(START + begin + i * seconds, START + begin + (i + 1) * seconds, latency)
        for i, latency in enumerate(latencies_ms)
    ]


def test_a_run_is_graded_by_the_rules():
    # Intervals of 20 s from 0: the window is 10 to 70.
    verdict = grade(RUN, every(20, 0.9, 0.5, 0.8, 0.81, 9.0), 0.8)
    assert verdict.makespan_s == pytest.approx(60)
    assert (verdict.overlap.violations, verdict.overlap.intervals) == (2, 4), "0.8 is no violation of 0.8"
    assert verdict.overlap.value == 0.5
    assert (verdict.inside.violations, verdict.inside.intervals) == (0, 2)
    assert (verdict.whole.violations, verdict.whole.intervals) == (3, 5)
    assert verdict.coverage == pytest.approx(1.0)
    assert verdict.latencies_ms == (0.9, 0.5, 0.8, 0.81)
    assert verdict.complete
    assert (verdict.core_moves, verdict.pauses) == (2, 1)
    assert verdict.jobs["a"].run_s == pytest.approx(30)
    assert verdict.jobs["a"].wall_s == pytest.approx(40)
    assert (verdict.jobs["b"].start_s, verdict.jobs["b"].threads) == (pytest.approx(2), 2)
    assert verdict.warnings == ()


def test_memcached_and_the_scheduler_do_not_lengthen_the_makespan():
    verdict = grade(log(*STORY[:-1], (900, "end memcached"), (999, "end scheduler")))
    assert verdict.makespan_s == pytest.approx(60)
    assert [w.split(":")[1] for w in verdict.warnings] == [" not-for-memcached", " late-end"]


def test_an_end_while_paused_closes_the_pause():
    verdict = grade(log(*HEAD, (0, "start a [1] 1"), (5, "pause a"), (6, "pause a"), (9, "end a")))
    assert verdict.jobs["a"].run_s == pytest.approx(5)
    assert verdict.pauses == 1


def test_what_happens_to_a_job_that_has_ended_does_not_count():
    verdict = grade(log(*HEAD, (0, "start a [1] 1"), (5, "end a"), (6, "update_cores a [2]"), (7, "pause a")))
    assert (verdict.core_moves, verdict.pauses, verdict.makespan_s) == (0, 0, 5)


def test_a_set_told_again_and_again_is_no_move():
    polls = [(t, "update_cores a [1]") for t in range(1, 9)]
    assert grade(log(*HEAD, (0, "start a [1] 1"), *polls, (9, "update_cores a [2]"))).core_moves == 1


def test_what_is_not_measured_is_said():
    verdict = grade(RUN, every(20, 0.1, 0.1, None), 0.8)
    assert verdict.coverage == pytest.approx(0.5)
    assert any("unmeasured" in warning for warning in verdict.warnings)
    assert any("50.0%" in warning for warning in verdict.warnings)


@pytest.mark.parametrize("hours", [-9, 2, 11])
def test_a_load_generator_in_another_time_zone(hours):
    verdict = grade(RUN, every(20, 0.9, 0.5, 0.8, 0.81, begin=-3600.0 * hours))
    assert verdict.offset_h == hours
    assert verdict.overlap.intervals == 4
    assert verdict.coverage == pytest.approx(1.0)
    assert f"{hours:+d} h" in verdict.warnings[0]


def test_the_load_of_another_day_measures_nothing():
    verdict = grade(RUN, every(20, 0.9, 0.9, begin=-7 * 86400.0))
    assert (verdict.offset_h, verdict.overlap.value, verdict.coverage) == (0, None, 0.0)
    assert any("0.0%" in warning for warning in verdict.warnings)


def test_a_run_that_is_not_complete_is_measured_until_its_last_event():
    lines = (*HEAD, (0, "start a [1] 1"), (0, "start b [2] 1"), (10, "end a"), (40, "end scheduler"))
    verdict = grade(log(*lines), every(10, 0.9, 0.9, 0.9, 0.9))
    assert not verdict.complete
    assert verdict.makespan_s == pytest.approx(10)
    assert verdict.overlap.intervals == 4
    assert verdict.jobs["b"].run_s is None
    assert "b starts and never ends" in verdict.warnings[0]


@pytest.mark.parametrize(
    ("lines", "complete", "makespan"),
    [
        ([], False, None),
        ([(0, "start scheduler"), (1, "end scheduler")], False, None),
        ([(0, "start a [1] 1")], False, None),
        ([(0, "start a [1] 1"), (3, "end a"), (3, "start b [1] 1")], False, 3),
        ([(0, "start a [1] 1"), (0, "end a")], True, 0),
        ([(0, "end a")], False, None),
    ],
)
def test_odd_runs(lines, complete, makespan):
    verdict = grade(log(*lines), every(1, 0.5, 0.5))
    assert verdict.complete is complete
    assert verdict.makespan_s == (makespan if makespan is None else pytest.approx(makespan))
    assert verdict.warnings != ()


def test_a_log_from_outside_all_eras():
    line = "0001-01-01T00:00:00.000000"
    verdict = grade(parse(f"{line} start a [1] 1\n9999-12-31T23:59:59.999999 end a\n"), every(1, 0.5))
    assert verdict.makespan_s > 3e11


def test_of_two_runs_in_one_file_the_measured_one_is_graded():
    second = [(2000 + t, line) for t, line in (*HEAD, (1, "start a [1] 1"), (31, "end a"))]
    both = parse(text(*STORY) + text(*second))
    assert [len(part.events) for part in runs(both)] == [len(STORY), 4]
    assert [len(part.deviations) for part in runs(both)] == [0, 1]
    assert grade(both).makespan_s == pytest.approx(60), "the one with more jobs"
    verdict = grade(both, every(10, 0.5, 0.5, 0.5, 0.5, begin=2000.0))
    assert verdict.makespan_s == pytest.approx(30)
    assert "2 runs in one file, number 2 is graded" in verdict.warnings


def test_oddities_that_no_rule_forbids():
    def codes(*lines):
        return [found.code for found in suspicions(log(*lines))]

    one_based = [(t, f"update_cores a [{cores}]") for t, cores in enumerate(["1,2", "3,4"])]
    assert codes(*one_based) == ["one-based"]
    assert codes(*one_based, (5, "start memcached [0] 1")) == []
    told = (1, "custom scheduler Pausing+jobs")
    assert codes(told) == ["pause-as-custom"]
    assert codes((0, "pause a"), told) == []
    assert codes((0, "end a"), (1000, "end scheduler")) == ["late-end"]


def test_one_run_under_two_names():
    other = log(*STORY[:-1], (76, "end scheduler"))
    assert same_runs({"x": RUN, "y": other, "z": parse(text(*STORY))}) == [("x", "z")]


ROW = (100.0,) * 11


def test_intervals_from_a_generator_that_was_late_are_unmeasured():
    rows = [
        mcperf.Row(*ROW, 500.0, *(900.0,) * 3, 1000.0, 1000),
        mcperf.Row(*ROW, 500.0, *(900.0,) * 3, 1000.0, 1000, late=True),
        mcperf.Row(*ROW, math.nan, *(900.0,) * 3, 0.0, 1000),
    ]
    output = mcperf.Output(START, START + 30, 10.0, (1000,) * 3, tuple(rows), complete=True)
    assert [i.latency_ms for i in reported_intervals(output)] == [0.5, None, None]
    assert [i.start_s - START for i in reported_intervals(output)] == [0, 10, 20]
    assert reported_intervals(output, 99)[0].latency_ms == 0.9
    assert reported_intervals(output, 99.9)[0].latency_ms == 0.9
    for percentile in (42, 9.5, 9.99):
        with pytest.raises(UserError, match=f"p{percentile}"):
            reported_intervals(output, percentile)


def test_intervals_from_the_probe():
    def tick(t, latency_ms, age_s=0.1):
        return {"t": t, "latency_ms": latency_ms, "latency_age_s": age_s}

    records = [tick(0.5, 9.0), tick(1.01, 0.3), tick(1.5, 9.0), tick(2.02, 0.4, 5.0), tick(4.0, 0.6), {"t": None}]
    assert [i.latency_ms for i in probed_intervals(records, 100.0)] == [0.3, None, 0.6, 0.6]
    assert [i.start_s for i in probed_intervals(records, 100.0)] == [100, 101, 102, 103]


FACTS = {
    "log": "logs/x.txt", "cores": [0, 1], "slo_ms": 0.8, "percentile": 95.0, "exit_code": 0, "latency_source": "probe",
}  # fmt: skip


def states(state, **more):
    return {name: {"state": state, "retries": 0, "threads": 1, **more} for name in "ab"}


def shown(made):
    console = Console(record=True, width=100)
    print_summary(made, console)
    return console.export_text()


def test_the_summary_has_every_key_of_the_contract():
    made = json.loads(to_json(summarize(grade(RUN, every(20, 0.9, 0.5, 0.8, 0.81)), states("finished"), **FACTS)))
    assert set(made) >= {
        "log", "mcperf", "source", "policy", "scenario", "seed", "cores", "slo_ms", "percentile", "complete",
        "exit_code", "makespan_s", "intervals", "violations", "slo_violation_ratio", "coverage", "p95_ms",
        "core_moves", "pauses", "jobs", "warnings", "latency_source", "other_denominators", "clock_offset_h",
    }  # fmt: skip
    assert set(made["jobs"]["a"]) == {"state", "start_s", "run_s", "wall_s", "threads", "retries"}
    assert made["p95_ms"] == {"median": pytest.approx(0.805), "max": 0.9}
    assert made["other_denominators"]["fully_inside"] == {"violations": 0, "intervals": 2, "slo_violation_ratio": 0.0}
    assert made["complete"] is True


def test_people_are_told_the_same():
    said = shown(summarize(grade(RUN, every(20, 0.9, 0.5, 0.8, 0.81)), states("finished"), **FACTS))
    for fact in ("60.0 s", "50.00%", "2 of 4 intervals", "by probe", "2 core sets, 1 pauses", "logs/x.txt", "finished"):
        assert fact in said


def test_a_job_that_never_started_makes_the_run_incomplete():
    made = summarize(grade(RUN), {**states("finished"), "c": {"state": "failed", "retries": 1, "threads": 4}}, **FACTS)
    assert made["complete"] is False
    assert made["jobs"]["c"] == {
        "state": "failed", "start_s": None, "run_s": None, "wall_s": None, "threads": 4, "retries": 1,
    }  # fmt: skip


def test_a_summary_without_anything_is_json_and_can_be_read():
    made = summarize(grade(parse("")), states("waiting"), **FACTS)
    assert json.loads(to_json({**made, "x": [math.nan, math.inf]}))["x"] == [None, None]
    said = shown(made)
    assert "no job has finished" in said
    assert "no latency was measured" in said


def test_odd_signs_in_a_warning_are_shown_as_they_are():
    made = summarize(grade(parse("[red]x[/] [link\n")), states("waiting"), **FACTS)
    assert "[red]x[/] [link" in shown(made)
