from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.errors import UserError
from colocate.sim.batch import BatchModel, JobFigures, Rate, Running
from colocate.topology import Topology

SMT = replace(
    Topology.flat(4), siblings={0: frozenset({0, 1}), 1: frozenset({0, 1}), 2: frozenset({2, 3}), 3: frozenset({2, 3})}
)
NAMES = ("barrier", "plain", "reader", "stream")
FIGURES = {
    "plain": JobFigures(alone_s=100.0),
    "reader": JobFigures(alone_s=100.0, serial=0.2, sibling=0.6),
    "barrier": JobFigures(alone_s=100.0, crowding=0.3),
    "stream": JobFigures(alone_s=100.0, memory=1.0, sensitivity=0.2),
}

some_cores = st.frozensets(st.integers(0, 3), min_size=1)


@st.composite
def placements(draw: st.DrawFn) -> tuple[dict[str, Running], frozenset[int], float]:
    service = draw(st.frozensets(st.integers(0, 3), max_size=4))
    running = {}
    for name in draw(st.sets(st.sampled_from(NAMES), min_size=1)):
        cores = draw(some_cores)
        shared = cores & service if draw(st.booleans()) else frozenset[int]()
        running[name] = Running(cores, draw(st.integers(1, 6)), draw(st.sampled_from([0.0, 0.5])), shared)
    return running, service, draw(st.floats(0.0, 1.0)) if service else 0.0


def rates(*, service: set[int] | None = None, busy: float = 0.0, **running: Running) -> dict[str, Rate]:
    return dict(BatchModel(FIGURES, SMT).rates(running, frozenset(service or ()), busy))


def on(*cores: int, threads: int = 1, done: float = 0.9, shared: tuple[int, ...] = ()) -> Running:
    return Running(frozenset(cores), threads, done, frozenset(shared))


@given(placements())
def test_no_core_gives_more_than_a_core(placement):
    running, service, busy = placement
    given_rates = BatchModel(FIGURES, SMT).rates(running, service, busy)
    for core in range(4):
        shares = {name: rate.busy.get(core, 0.0) for name, rate in given_rates.items()}
        assert sum(shares.values()) <= 1.0 + 1e-9
        if all(core in running[name].shared for name, share in shares.items() if share):
            assert sum(shares.values()) <= max(0.0, 1.0 - round(busy, 2)) + 1e-9 or core not in service


@given(placements())
def test_a_job_uses_its_own_cores_and_no_more_of_them_than_it_has_threads(placement):
    running, service, busy = placement
    for name, rate in BatchModel(FIGURES, SMT).rates(running, service, busy).items():
        assert set(rate.busy) <= running[name].cores
        assert rate.cpu_cores == pytest.approx(sum(rate.busy.values()))
        assert rate.cpu_cores <= running[name].threads + 1e-9
        assert 0 <= rate.per_s * FIGURES[name].alone_s <= rate.cpu_cores + 1e-9


@given(
    some_cores, some_cores, st.integers(1, 6), st.sampled_from(NAMES), st.sampled_from([0.0, 0.5]), st.floats(0.0, 1.0)
)
def test_more_cores_are_never_slower(some, more, threads, name, done, busy):
    """Beside memcached on cores 0 and 1 at idle priority, and nobody else."""

    def speed(cores: frozenset[int]) -> float:
        job = Running(cores, threads, done, cores & {0, 1})
        return BatchModel(FIGURES, SMT).rates({name: job}, frozenset({0, 1}), busy)[name].per_s

    assert speed(some | more) >= speed(some) - 1e-12


def test_as_many_threads_as_cores_share_the_work():
    assert rates(plain=on(0, 1, 2, 3, threads=4))["plain"].per_s == pytest.approx(0.04)


def test_a_thread_cannot_be_on_two_cores():
    assert rates(plain=on(0, 1, 2, 3))["plain"].per_s == pytest.approx(0.01)


def test_one_thread_works_until_the_serial_phase_is_over():
    reading, working = on(0, 2, threads=2, done=0.1), on(0, 2, threads=2, done=0.2)
    first, then = rates(reader=reading)["reader"], rates(reader=working)["reader"]
    assert (first.until, first.per_s, first.cpu_cores) == (0.2, pytest.approx(0.01), pytest.approx(1.0))
    assert (then.until, then.per_s, then.cpu_cores) == (1.0, pytest.approx(0.02), pytest.approx(2.0))


def test_siblings_slow_each_other_and_two_threads_avoid_that_where_they_can():
    assert rates(reader=on(0, 1, threads=2))["reader"].per_s == pytest.approx(0.012)
    assert rates(reader=on(0, 1, 2, threads=2))["reader"].per_s == pytest.approx(0.02)
    assert rates(reader=on(0), plain=on(1))["reader"].per_s == pytest.approx(0.006)


def test_memcached_slows_the_sibling_by_its_own_load():
    assert rates(reader=on(1), service={0}, busy=0.5)["reader"].per_s == pytest.approx(0.008)


def test_barriers_make_surplus_threads_dear():
    assert rates(barrier=on(0, threads=2))["barrier"].per_s == pytest.approx(0.01 / 1.3)
    assert rates(plain=on(0, threads=2))["plain"].per_s == pytest.approx(0.01)


def test_the_memory_load_of_others_slows_a_sensitive_job():
    both = rates(stream=on(0), plain=on(2))
    assert both["stream"].per_s == pytest.approx(0.01)
    assert both["stream"].memory == pytest.approx(1.0)
    model = BatchModel({**FIGURES, "other": FIGURES["stream"]}, SMT)
    assert model.rates({"stream": on(0), "other": on(2)}, frozenset(), 0.0)["stream"].per_s == pytest.approx(0.01 / 1.2)


def test_at_equal_weight_memcached_evades_a_disputed_core_while_it_has_another():
    both = rates(plain=on(1), service={0, 1}, busy=0.4)
    assert both["plain"].cpu_cores == pytest.approx(1.0)
    assert rates(plain=on(1), service={0, 1}, busy=0.7)["plain"].cpu_cores == pytest.approx(0.6)


def test_jobs_on_one_core_share_it_alike():
    both = rates(plain=on(0), barrier=on(0))
    assert both["plain"].busy == both["barrier"].busy == {0: pytest.approx(0.5)}


def test_at_idle_priority_a_job_gets_what_memcached_leaves_and_at_equal_weight_its_half():
    assert rates(plain=on(0, shared=(0,)), service={0}, busy=0.7)["plain"].cpu_cores == pytest.approx(0.3)
    assert rates(plain=on(0), service={0}, busy=0.7)["plain"].cpu_cores == pytest.approx(0.5)
    assert rates(plain=on(0), service={0}, busy=0.2)["plain"].cpu_cores == pytest.approx(0.8)


def test_figures_that_were_not_measured_have_no_effect():
    table = {"alone_s": {"value": 12.5, "low": 12.0, "high": 13.0, "source": "a table"}}
    assert JobFigures.from_table(table, "jobs.x") == JobFigures(alone_s=12.5)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({}, "jobs.x: alone_s is missing"),
        ({"alone_s": {"value": 0}}, "jobs.x: alone_s: "),
        ({"alone_s": {"low": 1}}, "jobs.x: alone_s: "),
        ({"alone_s": {"value": 9}, "sibling": {"value": 0.4}}, "jobs.x: sibling: "),
        ({"alone_s": {"value": 9}, "serial": {"value": 1}}, "jobs.x: serial: value 1.0 is above 0.99"),
        ({"alone_s": {"value": 9}, "memory": {"value": float("nan")}}, "jobs.x: memory: "),
        ({"alone_s": 9}, "jobs.x: alone_s: "),
        ({"alone_s": {"value": 9}, "speed": {"value": 1}}, "jobs.x: unknown figure 'speed'"),
    ],
)
def test_a_bad_figure_is_named(table, told):
    with pytest.raises(UserError) as error:
        JobFigures.from_table(table, "jobs.x")
    assert str(error.value).startswith(told)
