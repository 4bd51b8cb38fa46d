"""Latency distributions: quantiles and shares are each other's inverse, mixtures lie between their parts."""

import math
from itertools import pairwise
from statistics import fmean, pstdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate import mcperf
from colocate.sim.latency import PROBABILITIES, Latency, Mixture, Shape

QUANTILES = (0.15, 0.24, 0.27, 0.5, 0.62, 0.7, 0.75, 0.8, 0.88, 1.0, 1.45, 5.0, 17.0)

shapes = st.lists(st.floats(0.01, 3.0), min_size=len(PROBABILITIES), max_size=len(PROBABILITIES)).map(
    lambda steps: Shape([sum(steps[: i + 1]) for i in range(len(steps))])
)
latencies = st.builds(Latency, st.floats(20.0, 50_000.0), shapes)
shares = st.floats(0.0, 0.99999)
mixtures = st.lists(st.tuples(latencies, st.floats(0.5, 1e6)), min_size=1, max_size=6)

few = settings(max_examples=40, deadline=None)


def mixed(parts):
    mixture = Mixture()
    for latency, requests in parts:
        mixture.add(latency, requests)
    return mixture


@few
@given(latencies, shares)
def test_the_share_above_a_quantile_is_what_the_quantile_leaves(latency, p):
    assert latency.exceeding(latency.quantile(p)) == pytest.approx(1.0 - p, rel=1e-4, abs=1e-9)


@few
@given(latencies, shares, shares)
def test_quantiles_ascend(latency, p, q):
    assert (latency.quantile(min(p, q))) <= latency.quantile(max(p, q)) * (1 + 1e-12)


@few
@given(latencies)
def test_a_shape_is_relative_to_the_95th_percentile(latency):
    assert latency.quantile(0.95) == pytest.approx(latency.p95_us)
    assert latency.exceeding(0.0) == 1.0
    assert latency.exceeding(math.inf) == 0.0
    assert latency.quantile(1.0) >= latency.quantile(0.9999)


@few
@given(latencies, st.floats(0.1, 10.0), shares)
def test_a_stretched_latency_is_slower_in_every_quantile(latency, factor, p):
    assert latency.stretched(factor).quantile(p) == pytest.approx(factor * latency.quantile(p))


def test_mean_and_deviation_are_those_of_its_requests():
    latency = Latency(
        500.0, Shape((*QUANTILES[:-3], 1.2, 1.5, 1.7))
    )  # the deviation of a long tail needs more requests
    count = 20_000
    requests = [latency.quantile((i + 0.5) / count) for i in range(count)]
    assert latency.mean_us == pytest.approx(fmean(requests), rel=0.01)
    assert math.sqrt(latency.square_us2 - latency.mean_us**2) == pytest.approx(pstdev(requests), rel=0.1)


@few
@given(latencies, st.floats(1.0, 1e6), shares)
def test_a_mixture_of_one_is_that_one(latency, requests, p):
    assert mixed([(latency, requests)]).quantile(p) == pytest.approx(latency.quantile(p))


@few
@given(mixtures, shares)
def test_a_mixtures_quantile_lies_between_its_parts_and_leaves_the_right_share(parts, p):
    mixture = mixed(parts)
    quantile = mixture.quantile(p)
    ends = [latency.quantile(p) for latency, _ in parts]
    assert min(ends) * (1 - 1e-6) <= quantile <= max(ends) * (1 + 1e-6)
    assert mixture.exceeding(quantile * (1 + 1e-4)) <= (1.0 - p) * (1 + 2e-5)
    assert mixture.exceeding(quantile * (1 - 1e-4)) >= (1.0 - p) * (1 - 2e-5)


def test_a_stall_weighs_as_much_as_the_requests_that_it_hit():
    calm, stall = Latency(400.0, Shape(QUANTILES)), Latency(20_000.0, Shape(QUANTILES))
    assert mixed([(calm, 97.0), (stall, 3.0)]).quantile(0.95) < 800.0  # 300 ms of 10 s
    assert mixed([(calm, 85.0), (stall, 15.0)]).quantile(0.95) > 800.0  # the same of 2 s


@few
@given(mixtures, st.floats(1.0, 1e6), st.integers(1, 10**6))
def test_a_row_has_ascending_latencies_and_reads_back(parts, qps, target):
    row = mixed(parts).row(qps, target)
    quantiles = [row.min_us, row.p5_us, row.p10_us, row.p50_us, row.p67_us, row.p75_us, row.p80_us, row.p85_us]
    quantiles += [row.p90_us, row.p95_us, row.p99_us, row.p999_us, row.p9999_us]
    assert all(a <= b * (1 + 1e-4) for a, b in pairwise(quantiles))
    assert row.min_us <= row.avg_us
    assert (row.qps, row.target) == (qps, target)
    assert mcperf.parse_row(mcperf.format_row(row)) is not None


def test_an_empty_mixture_is_a_row_of_zeros():
    row = Mixture().row(0.0, 5000)
    assert (row.avg_us, row.std_us, row.p95_us, row.qps) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("quantiles", [QUANTILES[:-1], (0.0, *QUANTILES[1:]), (*QUANTILES[:-1], 1.0)])
def test_what_is_no_list_of_quantiles_is_refused(quantiles):
    with pytest.raises(ValueError, match="ascending"):
        Shape(quantiles)
