import math
from dataclasses import replace

import pytest

from colocate.vetting import vetted
from colocate.view import Signal
from tests.builders import observation, service_sample

GOOD = observation(10.0, service=service_sample(0.5, latency_ms=0.3))
NAMES = ("cpu_cores", "wait_us", "wait_cores", "qps", "latency_ms")


def test_what_can_be_is_handed_on_as_it_is():
    assert vetted(GOOD, 9.95, 0.05) == (GOOD, [])
    assert vetted(GOOD, None, 0.0) == (GOOD, [])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, -1e-9])
def test_no_number_counts_as_unknown(name, value):
    seen = replace(GOOD, service=replace(GOOD.service, **{name: Signal(value, 0.0, 100)}))
    clean, remarks = vetted(seen, 9.95, 0.05)
    assert remarks == [f"{name} is no measurement, ignored"]
    assert clean == replace(seen, service=replace(seen.service, **{name: Signal()}))


@pytest.mark.parametrize("latency_ms", [0.0, 0.0003])
def test_no_answer_comes_in_less_than_a_microsecond(latency_ms):
    seen = replace(GOOD, service=replace(GOOD.service, latency_ms=Signal(latency_ms, 0.0, 100)))
    assert vetted(seen, 9.95, 0.05)[0].service.latency_ms == Signal()


@pytest.mark.parametrize("age_s", [-1.0, math.nan])
def test_what_was_measured_in_the_future_counts_as_unknown(age_s):
    seen = replace(GOOD, service=replace(GOOD.service, qps=Signal(1000.0, age_s, 1)))
    assert vetted(seen, 9.95, 0.05)[0].service.qps == Signal()


@pytest.mark.parametrize("before_s", [10.0, 10.5, 3610.0])
def test_time_never_goes_back_and_what_is_not_newer_tells_nothing(before_s):
    clean, remarks = vetted(GOOD, before_s, 0.05)
    assert len(remarks) == 1
    assert clean.time_s == before_s
    assert all(getattr(clean.service, name) == Signal() for name in NAMES)
    assert (clean.service.alive, clean.service.pid) == (True, 1), "facts stay facts"


def test_a_second_look_at_the_same_instant_that_measures_nothing_is_no_fault():
    seen = observation(10.0, service=service_sample(None))
    assert vetted(seen, 10.0, 0.05) == (seen, [])


def test_an_average_over_a_time_in_which_nobody_looked_is_old():
    clean, remarks = vetted(GOOD, -20.0, 0.05)
    assert len(remarks) == 1
    assert not clean.service.cpu_cores.fresh(1.0)
    assert clean.service.qps.fresh(1.0), "that has a clock of its own"
    assert vetted(GOOD, 8.0, 2.0) == (GOOD, []), "with a period of two seconds it is usual"
