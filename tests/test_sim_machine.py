"""The machine on paper: nothing is lost, nothing hangs, and an interval is a mixture of what happened in it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.sim.calibration import Calibration
from colocate.sim.machine import Machine, Noise
from colocate.sim.run import Setup
from colocate.sim.traces import Trace, repeated
from tests.calibrations import small

CORES = [
    frozenset({0}),
    frozenset({1}),
    frozenset({0, 1}),
    frozenset({2, 3}),
    frozenset({1, 2, 3}),
    frozenset(range(4)),
]


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return small(tmp_path_factory.mktemp("calibration"), noise=False)


def machine(calibration: Calibration, trace: Trace) -> Machine:
    return Setup(calibration, (), trace, calibration.scenario.slo, calibration.topology, 2).machine()


def advance(made: Machine, until_s: float) -> list[str]:
    ended: list[str] = []
    while made.time_s < until_s:
        ended += made.advance(until_s)
    return ended


moves = st.lists(
    st.tuples(
        st.sampled_from(["pin", "start", "resize", "pause", "resume", "stop"]),
        st.sampled_from(["one", "two"]),
        st.sampled_from(CORES),
        st.floats(0.0, 3.0),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(moves=moves, loads=st.lists(st.integers(0, 200_000), min_size=1, max_size=6))
def test_whatever_is_done_time_goes_on_and_no_request_is_lost(calibration, moves, loads):
    made = machine(calibration, repeated(loads, 1.7, 1000.0))
    ended: list[str] = []
    for kind, job, cores, wait_s in moves:
        if kind == "pin":
            made.pin(cores)
        elif kind == "start" and job not in made.jobs and job not in ended:
            made.start(job, 2, cores)
        elif job in made.jobs:
            if kind == "resize":
                made.resize(job, cores)
            elif kind in {"pause", "resume"}:
                made.pause(job, paused=kind == "pause")
            elif kind == "stop":
                made.stop(job)
        until_s = made.time_s + wait_s
        ended += advance(made, until_s)
        assert made.time_s == pytest.approx(until_s)
    offered = sum(loads[i % len(loads)] * max(0.0, min(1.7, made.time_s - 1.7 * i)) for i in range(60))
    assert made.service_requests + made.backlog == pytest.approx(offered, rel=1e-6, abs=1e-3)
    assert made.backlog >= 0
    assert all(0 <= busy <= made.time_s + 1e-6 for busy in made.core_busy_s.values())
    assert len(made.rows) == math.floor(made.time_s / 1.7 + 1e-9)


def test_a_job_alone_takes_the_time_that_was_measured(calibration):
    made = machine(calibration, repeated([0], 10.0, 1000.0))
    made.pin(frozenset({0}))
    made.start("one", 1, frozenset({2}))
    assert advance(made, 19.9) == []
    assert advance(made, 20.1) == ["one"]


def test_a_pause_costs_its_length_and_nothing_else(calibration):
    made = machine(calibration, repeated([0], 10.0, 1000.0))
    made.pin(frozenset({0}))
    made.start("one", 1, frozenset({2}))
    advance(made, 5.0)
    made.pause("one", paused=True)
    advance(made, 8.0)
    made.pause("one", paused=False)
    assert advance(made, 22.9) == []
    assert advance(made, 23.1) == ["one"]


@pytest.mark.parametrize(("interval_s", "violated"), [(10.0, False), (2.0, True)])
def test_a_stall_of_300_ms_breaks_the_slo_of_a_short_interval_only(calibration, interval_s, violated):
    """3 % of the requests of one of 10 s, 15 % of one of 2 s; the percentile is the 95th."""
    made = machine(calibration, repeated([70_000], interval_s, 1000.0))
    made.pin(frozenset({0, 1}))
    advance(made, 0.5)
    made.pin(frozenset({0}))  # which cannot carry it
    advance(made, 0.75)
    made.pin(frozenset({0, 1}))
    advance(made, interval_s)
    (row,) = made.rows
    assert (row.p95_us > 800) is violated
    assert row.p99_us > 800


def test_what_was_missed_is_made_up_for(calibration):
    made = machine(calibration, repeated([100_000, 20_000], 2.0, 1000.0))
    made.pin(frozenset({0}))
    advance(made, 4.0)
    assert made.rows[0].qps < 70_000
    assert made.rows[1].qps > 20_000
    assert made.latency().p95_us == pytest.approx(made.state.saturated.p95_us)
    advance(made, 10.0)
    assert made.rows[-1].qps == pytest.approx(20_000, rel=1e-3) or made.backlog > 0


def test_an_open_loop_waits_ever_longer_a_closed_one_does_not(calibration):
    setup = Setup(calibration, (), repeated([100_000], 1.0, 100.0), calibration.scenario.slo, calibration.topology, 2)
    rows = {}
    for open_loop in (False, True):
        made = Machine(setup.trace, setup.service(), setup.batch(), setup.topology, open_loop=open_loop)
        made.pin(frozenset({0}))
        advance(made, 3.0)
        rows[open_loop] = [row.p95_us for row in made.rows]
    assert rows[False][0] == pytest.approx(rows[False][2])
    assert rows[True][0] < rows[True][1] < rows[True][2]
    assert rows[True][2] > 500_000  # seconds, after three seconds of half as much again as it can serve


def test_noise_is_drawn_by_what_it_is_of_not_by_when_it_is_asked_for():
    noise = Noise(7, interval_sd=0.1, machine_sd=0.1, job_sd={"a": 0.1, "b": 0.1})
    assert [noise.interval(3), noise.work("b"), noise.speed()] == [noise.interval(3), noise.work("b"), noise.speed()]
    assert len({noise.interval(1), noise.interval(2), noise.work("a"), noise.work("b"), noise.speed()}) == 5
    assert noise.work("unknown") == 1.0
    assert Noise(8, interval_sd=0.1).interval(1) != Noise(7, interval_sd=0.1).interval(1)


def test_a_small_calibration_is_what_it_says(tmp_path: Path):
    made = small(tmp_path)
    assert (made.machine, sorted(made.jobs), len(made.topology.cores)) == ("on paper", ["one", "two"], 4)
    assert made.topology.siblings[0] == {0, 1}
    assert made.scenario.slo.latency_ms == 0.8
