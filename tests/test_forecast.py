"""What is forecast of a load, and that nothing is where nothing can be."""

import math
import random

import pytest

from colocate.forecast import ChangeClock, Levels, LoadForecast
from colocate.sim.traces import load_trace


def test_a_clock_is_learned_although_changes_are_missed_late_and_false():
    clock = ChangeClock()
    draw = random.Random(3)  # noqa: S311 -- no secret
    for number in (0, 1, 3, 4, 7, 8, 9, 11):
        clock.changed(5.0 + 10.0 * number + draw.uniform(0.0, 0.2))
    assert clock.interval_s == pytest.approx(10.0, abs=0.05)
    assert clock.next_s(119.0) == pytest.approx(125.1, abs=0.2)
    assert clock.late_s < 0.2
    clock.changed(118.7)
    clock.changed(125.1)
    assert clock.next_s(126.0) == pytest.approx(135.1, abs=0.3), "one that does not fit is noise"


def test_no_clock_is_found_in_chance():
    clock, now_s, found = ChangeClock(), 0.0, 0
    draw = random.Random(5)  # noqa: S311 -- no secret
    for _ in range(200):
        now_s += draw.expovariate(0.1)
        clock.changed(now_s)
        found += clock.known
    assert found < 20
    assert clock.next_s(now_s) == math.inf or clock.known


def test_levels_take_the_method_that_erred_least():
    ramp, saw, chance = Levels(), Levels(), Levels()
    draw = random.Random(1)  # noqa: S311 -- no secret
    for number in range(40):
        ramp.add(0.1 + 0.02 * number)
        saw.add(0.1 * (number % 6))
        chance.add(draw.random())
    level, error, method = ramp.forecast()
    assert (method, level) == ("trend", pytest.approx(0.1 + 0.02 * 40))
    assert error < 1e-9
    level, error, method = saw.forecast()
    assert method.startswith("season")
    assert level == pytest.approx(0.1 * (40 % 6))
    assert chance.forecast() is None


def test_levels_say_nothing_before_they_were_tried():
    levels = Levels()
    for number in range(9):
        assert levels.forecast() is None
        levels.add(float(number))


def played(load, interval_s, duration_s, seed=1):
    """A forecaster that has seen a load with the noise of its sensors, and the load."""
    trace = load_trace(load, qps_min=5000, qps_max=180_000, interval_s=interval_s, seed=seed, duration_s=2000.0)
    seen, now_s = LoadForecast(), 0.0
    draw = random.Random(seed)  # noqa: S311 -- no secret
    while now_s < duration_s:
        now_s += 0.05
        seen.add(now_s, cpu(trace, now_s) * (1 + draw.gauss(0.0, 0.03)))
    return seen.forecast(now_s), trace, now_s


def cpu(trace, time_s):
    return 0.02 + 9.4e-6 * trace.qps(time_s)


@pytest.mark.parametrize("interval_s", [2.0, 10.0])
def test_of_a_random_waveform_the_time_is_forecast_and_no_level(interval_s):
    for seed in range(1, 6):
        forecast, _, now_s = played("waveform", interval_s, 30.4 * interval_s, seed)
        assert forecast.interval_s == pytest.approx(interval_s, rel=0.02)
        assert forecast.change_s - now_s == pytest.approx(0.6 * interval_s, abs=0.3)
        assert forecast.level is None


@pytest.mark.parametrize("load", ["sine:5000,180000,60", "sawtooth:5000,180000,60"])
def test_of_a_season_the_level_is_forecast(load):
    for turn in range(6):
        forecast, trace, _ = played(load, 10.0, 364.0 + 10.0 * turn)
        assert forecast.level == pytest.approx(cpu(trace, forecast.change_s + 1.0), abs=0.05)
        assert forecast.error < 0.05


def test_of_a_load_that_climbs_without_steps_the_trend_is():
    forecast, trace, now_s = played("ramp:5000,180000,300", 0.25, 120.0)
    assert forecast.method == "trend"
    assert forecast.level == pytest.approx(cpu(trace, now_s + 1.0), abs=0.05)
    assert forecast.change_s == math.inf
