"""The oracle: its lower bound holds for whoever holds the SLO, and what it finds can be carried out."""

import math
import random
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from colocate.errors import UserError
from colocate.eventlog import parse
from colocate.policy import load_policy
from colocate.sim.batch import JobFigures
from colocate.sim.bound import LowerBound, best_mix
from colocate.sim.oracle import bounds
from colocate.sim.run import BEGIN, Setup, simulate
from colocate.sim.traces import Trace, load_trace
from colocate.simulation import graded
from colocate.topology import Topology
from colocate.view import Slo
from tests.builders import spec
from tests.calibrations import small

UNHURRIED = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
QUIET = Trace((0.0,), (0.0,), 2.0, 7200.0)
JOB = st.builds(
    JobFigures,
    alone_s=st.floats(2.0, 12.0),
    serial=st.sampled_from([0.0, 0.3]),
    sibling=st.floats(0.5, 1.0),
    crowding=st.floats(0.0, 0.3),
    memory=st.floats(0.0, 1.0),
    sensitivity=st.floats(0.0, 0.5),
    spread=st.just(0.05),
)


@pytest.fixture(scope="session")
def calibration(tmp_path_factory):
    return small(tmp_path_factory.mktemp("small"))


def scenario(calibration, figures, threads, trace, seed=None, flat=False, slo=None):
    names = [f"job{index}" for index in range(len(figures))]
    topology = Topology.flat(4) if flat else calibration.topology
    return Setup(
        replace(calibration, jobs=dict(zip(names, figures, strict=True)), topology=topology),
        tuple(spec(name, count) for name, count in zip(names, threads, strict=True)),
        trace,
        slo or Slo(),
        topology,
        2,
        seed,
    )


@st.composite
def scenarios(draw, calibration, highest=100_000):
    figures = draw(st.lists(JOB, min_size=1, max_size=4))
    threads = draw(st.lists(st.integers(1, 3), min_size=len(figures), max_size=len(figures)))
    seed = draw(st.integers(1, 999))
    interval_s = draw(st.sampled_from([1.0, 3.0]))
    trace = load_trace("waveform", qps_min=2000, qps_max=highest, interval_s=interval_s, seed=seed, duration_s=7200.0)
    return scenario(calibration, figures, threads, trace, seed, draw(st.booleans()))


def wander(setup, seed, *, share):
    """A policy without sense: other cores for everybody every second or so; the end, and how often the SLO broke."""
    draw, machine, waiting = random.Random(seed), setup.machine(), {job.name: job.threads for job in setup.jobs}  # noqa: S311
    bias = draw.randint(0, 3)
    machine.share(frozenset(waiting) if share else ())
    while waiting or machine.jobs:
        cores = draw.sample(sorted(setup.topology.cores), 4)
        count = min(4, draw.randint(1, 4) + draw.randint(0, bias))
        machine.pin(frozenset(cores[:count]))
        free = cores if share else cores[count:]
        owners = {core: draw.choice(sorted({*waiting, *machine.jobs})) for core in free}
        for name in {*waiting, *machine.jobs}:
            if not (own := frozenset(core for core, owner in owners.items() if owner == name)):
                if name in machine.jobs:
                    machine.pause(name, paused=True)
                continue
            if name in waiting:
                machine.start(name, waiting.pop(name), own)
            machine.resize(name, own)
            machine.pause(name, paused=False)
        machine.advance(machine.time_s + draw.choice([0.1, 1.0, 3.0]))
    end_s, length_s = machine.time_s, setup.trace.interval_s
    machine.pin(setup.topology.cores)
    machine.advance((end_s // length_s + 1) * length_s + 1e-3)
    return end_s, sum(row.p95_us > 1e3 * setup.slo.latency_ms for row in machine.rows)


@UNHURRIED
@given(data=st.data(), share=st.booleans())
def test_nobody_who_holds_the_slo_is_earlier_than_the_lower_bound(calibration, data, share):
    setup = data.draw(scenarios(calibration, data.draw(st.sampled_from([5000, 40_000, 100_000]))))
    end_s, broken = wander(setup, data.draw(st.integers(0, 999)), share=share)
    assume(not broken)
    assert LowerBound(setup, setup.service(), share=share).end_s() <= end_s


@settings(UNHURRIED, max_examples=12)
@given(data=st.data())
def test_the_bounds_are_in_order_and_sharing_only_helps(calibration, data):
    setup = data.draw(scenarios(calibration))
    alone, sharing = (bounds(setup, share=share, tries=1) for share in (False, True))
    assert alone.lower_bound_s <= alone.best_s
    assert sharing.lower_bound_s <= sharing.best_s
    assert sharing.lower_bound_s <= alone.lower_bound_s + 1e-3
    for found in (alone, sharing):
        for step in found.schedule:
            held = [core for cores in step.jobs.values() for core in cores]
            assert step.service
            assert len(held) == len(set(held))
            assert found is sharing or not step.service & set(held)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_policy_that_holds_the_slo_lies_above_both_bounds(calibration, tmp_path, seed):
    jobs = [JobFigures(alone_s, 0.05, 0.7, 0.1, 0.5, 0.1, 0.05) for alone_s in (20.0, 12.0, 8.0, 5.0)]
    trace = load_trace("waveform", qps_min=2000, qps_max=60_000, interval_s=4.0, seed=seed, duration_s=7200.0)
    setup = scenario(calibration, jobs, (2, 1, 3, 2), trace, seed)
    found = bounds(setup)
    held = 0
    for name, options in (("static", ["service_cores=2"]), ("reactive", []), ("random", [])):
        run = simulate(setup, load_policy(name, options), tmp_path)
        verdict = graded(run, setup.slo)
        ends = [event.time for event in parse(run.log_path.read_text()).events if event.batch and event.event == "end"]
        assert len(ends) == 4
        if not verdict.overlap.violations:
            held += 1
            end_s = (max(ends) - BEGIN).total_seconds()
            assert found.lower_bound_s <= found.best_s <= end_s
    assert held


@pytest.mark.parametrize(
    ("alone_s", "threads", "expected_s"),
    [
        ([20.0], [4], 20.0 / 3),  # as wide as memcached's floor leaves room for
        ([10.0] * 6, [1] * 6, 20.0),  # two rounds on three cores
        ([30.0, 5.0, 5.0, 5.0], [3, 1, 1, 1], 15.0),  # the longest as wide as it can be, then the others
    ],
)
def test_without_load_both_bounds_are_what_one_works_out_by_hand(calibration, alone_s, threads, expected_s):
    setup = scenario(calibration, [JobFigures(s) for s in alone_s], threads, QUIET, flat=True)
    found = bounds(setup)
    assert found.lower_bound_s == pytest.approx(expected_s, rel=0.01)
    assert found.best_s == pytest.approx(expected_s, rel=0.01)
    assert found.violations == 0


def test_a_serial_start_and_busy_siblings_are_in_the_lower_bound(calibration):
    serial = scenario(calibration, [JobFigures(20.0, serial=0.5)], (3,), QUIET, flat=True)
    assert bounds(serial).lower_bound_s == pytest.approx(10.0 + 10.0 / 3, rel=0.01)
    # Two pairs of siblings, one core memcached's: 1 + 2 * 0.5 work a second of 40.
    paired = scenario(calibration, [JobFigures(10.0, sibling=0.5)] * 4, (1,) * 4, QUIET)
    assert bounds(paired).lower_bound_s == pytest.approx(20.0, rel=0.02)


def test_the_lower_bound_lets_a_job_have_any_number_of_threads(calibration):
    one_thread = scenario(calibration, [JobFigures(20.0)], (1,), QUIET, flat=True)
    found = bounds(one_thread)
    assert found.lower_bound_s == pytest.approx(20.0 / 3, rel=0.01)
    assert found.best_s == pytest.approx(20.0, rel=0.01), "its catalogue names no other count"


def test_sharing_gains_the_idle_cycles_of_memcacheds_core(calibration):
    setup = scenario(calibration, [JobFigures(10.0)] * 8, (1,) * 8, QUIET, flat=True)
    alone, sharing = bounds(setup), bounds(setup, share=True)
    assert alone.lower_bound_s == pytest.approx(80.0 / 3, rel=0.01)
    assert sharing.lower_bound_s == pytest.approx(20.0, rel=0.01)
    assert sharing.best_s == pytest.approx(20.0, rel=0.05)


def test_where_no_core_count_holds_the_slo_the_oracle_says_so(calibration):
    trace = Trace((0.0, 4.0, 6.0), (5000.0, 900_000.0, 5000.0), 2.0, 7200.0)
    setup = scenario(calibration, [JobFigures(30.0)], (3,), trace)
    assert [LowerBound(setup, setup.service()).hopeless(index) for index in range(4)] == [False, False, True, False]
    found = bounds(setup)
    assert found.violations >= 1
    assert found.lower_bound_s <= found.best_s < math.inf


def test_the_same_seed_gives_the_same_bounds_and_another_seed_others(calibration):
    def found(seed):
        trace = load_trace("waveform", qps_min=2000, qps_max=90_000, interval_s=2.0, seed=seed, duration_s=7200.0)
        return bounds(
            scenario(calibration, [JobFigures(9.0), JobFigures(7.0)] * 2, (2, 1, 1, 3), trace, seed), tries=12
        )

    assert found(5) == found(5)
    assert found(5) != found(6)


def test_a_job_without_figures_is_named(calibration):
    setup = scenario(calibration, [JobFigures(10.0)], (1,), QUIET)
    with pytest.raises(UserError, match="no figures for the job 'other'"):
        bounds(replace(setup, jobs=(spec("other"),)))


OPTIONS = st.lists(st.tuples(st.floats(0, 4), st.floats(-10, 90)), min_size=1, max_size=3)


@given(st.floats(0.1, 10), st.floats(0.1, 10), OPTIONS, OPTIONS)
def test_no_mix_that_keeps_the_slo_beats_the_best_mix(first_s, second_s, first, second):
    best = best_mix([(first_s, first), (second_s, second)])
    shares = [(i / 4, j / 4, 1 - (i + j) / 4) for i, j in product(range(5), repeat=2) if i + j <= 4]

    def mixes(seconds, options):
        padded = [*options, *[options[0]] * (3 - len(options))]
        return [
            tuple(seconds * sum(s * option[k] for s, option in zip(mix, padded, strict=True)) for k in (0, 1))
            for mix in shares
        ]

    for (gain, excess), (other_gain, other_excess) in product(mixes(first_s, first), mixes(second_s, second)):
        if excess + other_excess <= 0:
            assert gain + other_gain <= best + 1e-6


def test_the_best_mix_uses_up_what_the_slo_allows():
    # Too few cores make 95 slow requests a second too many, enough cores leave room for 5: a twentieth of the time.
    assert best_mix([(10.0, [(1.0, 95.0), (0.0, -5.0)])]) == pytest.approx(0.5)
