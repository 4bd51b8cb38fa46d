"""A run on one time axis: who held what, and of every change the reason and the effect."""

from __future__ import annotations

from datetime import timedelta

import pytest

from colocate.eventlog import parse
from colocate.metrics import Metrics
from colocate.report.grade import Interval
from colocate.report.timeline import Stretch, Timeline, holders, timeline
from tests.logs import BEGIN, HEAD, STORY, log_text, tick

STORY_LINE = timeline(parse(log_text(STORY)))


def laid(*lines, **facts):
    return timeline(parse(log_text(lines)), **facts)


def stretch(begin_s, end_s, *cores, paused=False):
    return Stretch(begin_s, end_s, frozenset(cores), paused)


def told(*ticks):
    return Metrics(begin=BEGIN, ticks=tuple(ticks))


def test_zero_is_the_first_jobs_start_and_stretches_follow_the_events():
    assert STORY_LINE.zero == BEGIN + timedelta(seconds=10)
    assert (STORY_LINE.begin_s, STORY_LINE.end_s) == (-10, 65)
    assert STORY_LINE.service == (stretch(-10, 30, 0), stretch(30, 65, 0, 1))
    assert STORY_LINE.jobs == {
        "canneal": (stretch(0, 10, 1), stretch(10, 20, 1, paused=True), stretch(20, 40, 1)),
        "my_job": (stretch(2, 35, 2, 3), stretch(35, 60, 3)),
    }
    assert STORY_LINE.cores == {0, 1, 2, 3}
    assert STORY_LINE.moment(2.5) == BEGIN + timedelta(seconds=12.5)


def test_every_event_that_changes_something_is_a_change_with_its_cores_before_and_after():
    assert [(c.time_s, c.kind, c.target, sorted(c.before), sorted(c.cores)) for c in STORY_LINE.changes] == [
        (-10, "start", "memcached", [], [0]),
        (0, "start", "canneal", [], [1]),
        (2, "start", "my_job", [], [2, 3]),
        (10, "pause", "canneal", [1], []),
        (20, "unpause", "canneal", [], [1]),
        (30, "update_cores", "memcached", [0], [0, 1]),
        (35, "update_cores", "my_job", [2, 3], [3]),
        (40, "end", "canneal", [1], []),
        (60, "end", "my_job", [3], []),
    ]


def test_a_core_is_held_by_whoever_has_it_and_by_no_paused_job():
    held = holders(STORY_LINE)
    assert held[1] == [
        (0, 10, ("canneal",)), (20, 30, ("canneal",)), (30, 40, ("memcached", "canneal")), (40, 65, ("memcached",)),
    ]  # fmt: skip
    assert held[2] == [(2, 35, ("my_job",))]


@pytest.mark.parametrize(
    ("lines", "stretches"),
    [
        ([(0, "start a [1] 1"), (3, "pause a"), (5, "end a")], [stretch(0, 3, 1), stretch(3, 5, 1, paused=True)]),
        ([(0, "start a [1] 1"), (3, "pause a"), (4, "update_cores a [2]"), (5, "unpause a"), (6, "end a")],
         [stretch(0, 3, 1), stretch(3, 4, 1, paused=True), stretch(4, 5, 2, paused=True), stretch(5, 6, 2)]),
        ([(0, "start a [1] 1"), (3, "end a"), (4, "update_cores a [2]"), (5, "pause a")], [stretch(0, 3, 1)]),
        ([(0, "start a [1] 1"), (1, "unpause a"), (2, "update_cores a [1]"), (3, "end a")], [stretch(0, 3, 1)]),
        ([(0, "start a [1] 1"), (1, "pause a"), (2, "pause a"), (3, "unpause a"), (4, "end a")],
         [stretch(0, 1, 1), stretch(1, 3, 1, paused=True), stretch(3, 4, 1)]),
        ([(0, "start a [1] 1"), (2, "update_cores a nonsense"), (3, "end a")], [stretch(0, 3, 1)]),
        ([(0, "start a [1] 1"), (9, "custom scheduler bye")], [stretch(0, 9, 1)]),
    ],
    ids=["end while paused", "moved while paused", "update after the end", "nothing new", "paused twice", "bad list",
         "no end"],
)  # fmt: skip
def test_odd_lives_of_a_job(lines, stretches):
    assert list(laid(*HEAD, *lines).jobs["a"]) == stretches


def test_without_a_start_memcached_has_its_cores_from_the_first_update_on():
    line = laid((0, "start a [1] 1"), (5, "update_cores memcached [0]"), (9, "end a"))
    assert line.service == (stretch(5, 9, 0),)
    assert laid((0, "start a [1] 1"), (9, "end a")).service == ()


def test_an_empty_log_is_an_empty_line():
    assert laid() == Timeline()
    assert Timeline().moment(1.0) is None
    assert holders(Timeline()) == {}
    assert laid((0, "start scheduler"), (2, "end scheduler")).jobs == {}


def test_a_log_that_ends_in_the_last_moment_of_all_eras_is_laid_out():
    line = timeline(parse("0001-01-01T00:00:00.000000 start a [1] 1\n9999-12-31T23:59:59.999999 end a\n"))
    assert line.end_s > 3e11
    assert line.moment(line.end_s + 10) is None


def test_the_load_is_moved_by_the_offset_of_the_clocks():
    start_s = BEGIN.timestamp()
    line = laid(*STORY, intervals=[Interval(start_s + 20 - 7200, start_s + 30 - 7200, 0.5, 100.0)], offset_h=2)
    assert [(i.start_s, i.end_s, i.latency_ms, i.qps) for i in line.intervals] == [(10, 20, 0.5, 100.0)]


def test_the_reason_is_that_of_the_decision_before_even_if_the_move_takes_effect_late():
    ticks = [
        tick(9.0, moves=[["start", "canneal", [1]]], reason="first"),
        tick(39.95, moves=[["pin", "memcached", [0, 1]]], reason="needs 2 cores"),
        tick(43.0, moves=[["resize", "my_job", [3]]], reason="make room"),
        tick(46.0, moves=[["resize", "my_job", [2]]], reason="too late to be the cause"),
    ]
    reasons = {(c.kind, c.target): c.reason for c in laid(*STORY, metrics=told(*ticks)).changes}
    assert reasons["start", "canneal"] == "first"
    assert reasons["update_cores", "memcached"] == "needs 2 cores"
    assert reasons["update_cores", "my_job"] == "make room"
    assert reasons["pause", "canneal"] == "", "nothing tells of it"


def test_a_decision_of_long_ago_is_not_the_reason():
    ticks = [tick(1.0, moves=[["pin", "memcached", [0, 1]]], reason="of another time")]
    reasons = {c.target: c.reason for c in laid(*STORY, metrics=told(*ticks)).changes if c.kind == "update_cores"}
    assert reasons["memcached"] == ""


def test_the_effect_is_the_latency_a_second_later_by_the_runs_own_eyes():
    ticks = [tick(39.8, latency_ms=0.9), tick(40.5, latency_ms=5.0), tick(41.1, latency_ms=0.3)]
    (change,) = (c for c in laid(*STORY, metrics=told(*ticks)).changes if c.time_s == 30)
    assert change.latency_ms == (0.9, 0.3)
    stale = [tick(39.8, latency_ms=0.9, latency_age_s=5.0), tick(41.1, latency_ms=0.3, latency_age_s=1.5)]
    (change,) = (c for c in laid(*STORY, metrics=told(*stale)).changes if c.time_s == 30)
    assert change.latency_ms == (None, None)


def test_without_metrics_the_effect_is_that_of_the_load_interval_and_the_next():
    start_s = BEGIN.timestamp()
    load = [Interval(start_s + at, start_s + at + 10, ms) for at, ms in ((30, 0.9), (40, 0.4), (50, 0.2))]
    effects = {c.time_s: c.latency_ms for c in laid(*STORY, intervals=load).changes}
    assert effects[30] == (0.4, 0.2)
    assert effects[60] == (None, None)
