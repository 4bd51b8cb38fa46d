"""memcached's model: more load or neighbours never help, more cores never hurt; its figures are checked."""

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.errors import UserError
from colocate.sim.service import ServiceFigures, ServiceModel, Surroundings
from tests.calibrations import small_text

SERVICE = tomllib.loads(small_text())["service"]
FIGURES = ServiceFigures.from_table(SERVICE, "x.toml: service")
ALONE = Surroundings(0.0, 0.0, 0.0, 0.0, 0.0)

loads = st.floats(0.0, 400_000.0)
core_counts = st.integers(1, 64)
thread_counts = st.integers(1, 64)
around = st.builds(
    Surroundings,
    st.floats(0.0, 1.0),
    st.floats(0.0, 64.0),
    st.floats(0.0, 8.0),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
)

few = settings(max_examples=40, deadline=None)


def changed(**figures):
    return ServiceFigures.from_table({**SERVICE, **figures}, "x.toml: service")


@few
@given(thread_counts, core_counts, around, loads, loads)
def test_more_load_is_never_better(threads, cores, beside, one, other):
    model = ServiceModel(FIGURES, threads)
    light, heavy = model.state(min(one, other), cores, beside), model.state(max(one, other), cores, beside)
    assert light.latency.quantile(0.95) <= heavy.latency.quantile(0.95) * (1 + 1e-4)
    assert light.cpu_cores <= heavy.cpu_cores
    assert light.capacity_qps == heavy.capacity_qps


@few
@given(thread_counts, core_counts, around, loads)
def test_more_cores_are_never_worse(threads, cores, beside, qps):
    model = ServiceModel(FIGURES, threads)
    few, many = model.state(qps, cores, beside), model.state(qps, cores + 1, beside)
    assert many.latency.quantile(0.95) <= few.latency.quantile(0.95) * (1 + 1e-4)
    assert many.capacity_qps >= few.capacity_qps * (1 - 1e-9)


@few
@given(thread_counts, core_counts, around, loads)
def test_a_backlog_is_never_faster_than_none(threads, cores, beside, qps):
    model = ServiceModel(FIGURES, threads)
    state = model.state(qps, cores, beside)
    assert state.saturated.quantile(0.95) >= state.latency.quantile(0.95) * (1 - 1e-4)
    assert model.backlogged(state, 0.0).p95_us == state.saturated.p95_us
    assert model.backlogged(state, 1e7).mean_us == pytest.approx(1e13 / state.capacity_qps, rel=0.01)


@few
@given(thread_counts, core_counts, loads, around)
def test_neighbours_never_help(threads, cores, qps, beside):
    model = ServiceModel(FIGURES, threads)
    alone, disturbed = model.state(qps, cores, ALONE), model.state(qps, cores, beside)
    assert alone.latency.quantile(0.95) <= disturbed.latency.quantile(0.95) * (1 + 1e-4)
    assert alone.capacity_qps >= disturbed.capacity_qps


@few
@given(st.integers(1, 8), loads)
def test_cores_beyond_the_threads_are_no_gain(threads, qps):
    model = ServiceModel(FIGURES, threads)
    enough, more = model.state(qps, threads, ALONE), model.state(qps, threads + 3, ALONE)
    assert (enough.capacity_qps, enough.cpu_cores) == (more.capacity_qps, more.cpu_cores)
    assert enough.latency.p95_us == more.latency.p95_us


def test_what_was_measured_is_what_comes_out():
    model = ServiceModel(FIGURES, 2)
    state = model.state(32_500.0, 1, ALONE)  # half of the capacity
    assert state.capacity_qps == 65_000.0
    assert state.latency.p95_us == pytest.approx(280.0)
    assert state.cpu_cores == pytest.approx(0.01 + 0.39)
    assert model.state(130_000.0, 2, ALONE).saturated.p95_us == 2500.0


def test_more_cores_than_were_measured_follow_the_scaling():
    wide = ServiceModel(FIGURES, 8).state(1000.0, 8, ALONE)
    assert wide.capacity_qps == pytest.approx(125_000.0 * 4**0.9)


def test_a_faster_machine_has_more_capacity_and_less_latency():
    fast, typical = ServiceModel(FIGURES, 2, 1.4), ServiceModel(FIGURES, 2)
    assert fast.state(5e4, 1, ALONE).capacity_qps == pytest.approx(1.4 * typical.state(5e4, 1, ALONE).capacity_qps)
    assert fast.state(5e4, 1, ALONE).latency.p95_us < typical.state(5e4, 1, ALONE).latency.p95_us


def test_batch_at_full_weight_is_a_disaster_on_the_only_core_but_not_beside_a_free_one():
    model = ServiceModel(FIGURES, 2)
    only = model.state(10_000.0, 1, Surroundings(0.0, 1.0, 0.0, 0.0, 1.0))
    assert only.latency.quantile(0.95) >= 2500.0
    assert only.capacity_qps == pytest.approx(model.state(1e4, 1, Surroundings(0.0, 1.0)).capacity_qps / 2)
    assert only.wait_us > 1000.0
    beside = model.state(10_000.0, 2, Surroundings(0.0, 1.0, 0.0, 0.0, 0.5))
    assert beside.latency.quantile(0.95) < 400.0


def test_batch_at_idle_priority_costs_little():
    model = ServiceModel(FIGURES, 2)
    shared = model.state(20_000.0, 1, Surroundings(0.0, 1.0, 0.0, 1.0, 0.0))
    assert shared.latency.p95_us < 1.15 * model.state(20_000.0, 1, ALONE).latency.p95_us


def test_threads_that_share_a_core_queue_behind_each_other():
    one, two = (ServiceModel(FIGURES, threads).state(20_000.0, 1, ALONE) for threads in (1, 2))
    assert 2.0 <= one.wait_us <= 9.0
    assert 25.0 <= two.wait_us <= 61.0
    assert ServiceModel(FIGURES, 2).state(64_000.0, 1, ALONE).wait_us > 84.0


def test_the_same_conditions_are_worked_out_once():
    model = ServiceModel(FIGURES, 2)
    assert model.state(1e4, 2, ALONE) is model.state(1e4, 2, Surroundings())


@pytest.mark.parametrize(
    ("figures", "named"),
    [
        ({"cpu_us": {"value": "much"}}, "cpu_us"),
        ({"cpu_us": {"value": 0.0}}, "cpu_us"),
        ({"machine_sd": {"value": -0.1}}, "machine_sd"),
        ({"machine_sd": {"value": float("nan")}}, "machine_sd"),
        ({"beside_batch": 0.1}, "beside_batch"),
        ({"light": {"value": [1.0, 2.0]}}, "light"),
        ({"light": {"value": [*range(13, 0, -1)]}}, "light"),
        ({"curves": []}, "curves"),
        ({"curves": [7]}, "curves"),
        ({"curves": [{**SERVICE["curves"][0], "threads": 0}]}, "threads"),
        ({"curves": [{**SERVICE["curves"][0], "colour": 0}]}, "colour"),
        ({"curves": [{**SERVICE["curves"][0], "p95_us": {"value": [*range(14, 0, -1)]}}]}, "p95_us"),
        ({"curves": [{**SERVICE["curves"][0], "capacity_qps": {}}]}, "capacity_qps"),
        ({"colour": {"value": 1.0}}, "colour"),
    ],
)
def test_a_bad_figure_is_named(figures, named):
    with pytest.raises(UserError, match=named) as caught:
        changed(**figures)
    assert "x.toml" in caught.value.what


def test_a_missing_figure_is_named():
    with pytest.raises(UserError, match="cpu_us"):
        ServiceFigures.from_table({k: v for k, v in SERVICE.items() if k != "cpu_us"}, "x.toml: service")


def test_a_figure_keeps_its_spread_and_source():
    cpu = changed(cpu_us={"value": 9.0, "low": 7.0, "high": 10.0, "source": "a table"}).cpu_us
    assert (cpu.value, cpu.low, cpu.high, cpu.source) == (9.0, 7.0, 10.0, "a table")
