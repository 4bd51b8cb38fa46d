"""What a calibration tells a policy beforehand: of memcached, and of the jobs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.jobs import load_catalogue
from colocate.sim.calibration import calibration_names, load_calibration
from colocate.sim.profile import profile
from colocate.sim.service import LOADS, ServiceModel, Surroundings
from colocate.view import LoadPoint, Profile
from tests.builders import spec
from tests.calibrations import small


@pytest.mark.parametrize("name", calibration_names())
def test_the_curves_of_what_ships_are_those_of_the_model(name):
    calibration = load_calibration(name)
    threads, cores = calibration.scenario.memcached_threads, len(calibration.topology.cores)
    told = profile(calibration.service, threads, 95.0, cores)
    assert list(told.curves) == list(range(1, cores + 1))
    model = ServiceModel(calibration.service, threads)
    for count, curve in told.curves.items():
        assert len(curve) == len(LOADS)
        assert [point.qps for point in curve] == sorted(point.qps for point in curve)
        assert [point.latency_ms for point in curve] == sorted(point.latency_ms for point in curve)
        half = curve[LOADS.index(0.5)]
        state = model.state(half.qps, count, Surroundings())
        assert (half.latency_ms, half.wait_us) == (state.latency.quantile(0.95) / 1e3, state.wait_us)
        assert curve[-1].qps == pytest.approx(state.capacity_qps)
    assert told.cpu_us == calibration.service.cpu_us.value
    assert told.machine_sd == calibration.service.machine_sd.value


def test_another_percentile_is_another_curve(tmp_path):
    figures = small(tmp_path).service
    median, tail = (profile(figures, 2, percentile, 2).curves[1][0].latency_ms for percentile in (50.0, 99.0))
    assert median < tail


@given(st.floats(0.01, 5.0), st.floats(0.01, 5.0), st.integers(0, 9), st.integers(0, 9))
def test_a_wider_setting_and_a_higher_limit_never_bear_less(one_ms, other_ms, one, other):
    calibration = load_calibration("cca-2025")
    told = profile(calibration.service, 2, 95.0, 4)
    low, high = sorted((one_ms, other_ms))
    few, many = sorted((one, other))
    assert told.edge(few, low).qps <= told.edge(few, high).qps
    assert told.edge(few, low).qps <= told.edge(many, low).qps
    assert told.edge(few, low).latency_ms <= max(low, told.edge(few, 0.0).latency_ms) + 1e-9


def curve(*latencies_ms):
    return Profile({1: tuple(LoadPoint(10.0 * n, ms, 100.0 * n) for n, ms in enumerate(latencies_ms, 1))}, 20.0)


@pytest.mark.parametrize(
    ("latencies_ms", "qps"),
    [
        ((0.2, 0.6, 1.0), 25.0),  # between two points
        ((0.2, 0.3, 0.4), 30.0),  # it never breaks: the most that is served
        ((0.9, 1.0, 1.1), 10.0),  # it always does: the least
        ((0.9, 0.9, 0.9), 10.0),
        ((0.8, 0.8, 0.9), 20.0),
        ((0.5,), 10.0),
    ],
)
def test_the_edge_is_the_highest_load_within_the_limit(latencies_ms, qps):
    edge = curve(*latencies_ms).edge(1, 0.8)
    assert edge.qps == pytest.approx(qps)
    assert edge.wait_us == pytest.approx(10.0 * qps)


def test_the_edge_beyond_the_counts_that_there_are_is_that_of_the_nearest():
    told = Profile({1: (LoadPoint(1.0, 0.1, 1.0),), 2: (LoadPoint(2.0, 0.1, 1.0),)}, 20.0)
    assert [told.edge(cores, 0.8).qps for cores in (0, 1, 2, 64)] == [1.0, 1.0, 2.0, 2.0]


def test_jobs_are_told_their_run_times_here_at_the_thread_counts_that_they_take(tmp_path):
    calibration = small(tmp_path)
    known, unknown = calibration.informed(
        [spec("two", 2, runtime_s={2: 1.0}, sensitivity={"llc": 1.3, "cpu": 9.0}), spec("stranger", runtime_s={1: 3.0})]
    )
    assert known.runtime_s == {1: pytest.approx(40.0), 2: pytest.approx(40.0 * (0.05 + 0.95 / 2))}
    assert known.sensitivity == {"llc": 1.3, "cpu": pytest.approx(1 / 0.7)}
    assert unknown == spec("stranger", runtime_s={1: 3.0})


def test_every_job_of_a_course_has_a_run_time_on_one_core():
    for year in ("2023", "2024", "2025", "2026"):
        calibration = load_calibration(f"cca-{year}")
        jobs = calibration.informed(load_catalogue(calibration.scenario.jobs))
        assert all(job.runtime_s[1] > 0 and job.sensitivity["cpu"] >= 1.0 for job in jobs)
