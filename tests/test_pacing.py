"""The budget of moves, Adam, and the tuner on a host whose best pace is known."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.controller import Controller
from colocate.eventlog import SchedulerLogger
from colocate.loop import run
from colocate.pacing import Adam, Tokens, Tuner
from colocate.policy import load_policy
from colocate.testing import UShapedHost
from colocate.topology import Topology
from tests.builders import spec


def test_tokens_come_one_a_period_up_to_the_most():
    tokens = Tokens(2.0, limit=8.0, most=3.0)
    tokens.earn(100.0)
    assert tokens.balance == 3.0
    tokens.spend(3)
    tokens.earn(103.0)
    assert tokens.balance == pytest.approx(1.5)
    tokens.period_s = 1.0
    tokens.earn(104.0)
    assert tokens.balance == pytest.approx(2.5)
    tokens.earn(1000.0)
    assert tokens.balance == 3.0


def test_a_debt_ends_at_the_limit():
    tokens = Tokens(1.0, limit=8.0, most=8.0)
    tokens.spend(15)
    assert tokens.balance == -7.0
    tokens.spend(3)
    assert tokens.balance == -8.0, "what goes beyond is remitted"
    tokens.earn(0.0)
    tokens.earn(9.0)
    assert tokens.balance == 1.0


@given(st.lists(st.tuples(st.floats(-1.0, 100.0), st.integers(0, 20), st.floats(0.1, 60.0)), max_size=50))
def test_the_balance_stays_within_its_limits(story):
    tokens, now_s = Tokens(2.0, limit=8.0, most=5.0), 0.0
    for passed_s, moves, period_s in story:
        now_s += passed_s
        tokens.period_s = period_s
        tokens.earn(now_s)
        tokens.spend(moves)
        assert -8.0 <= tokens.balance <= 5.0


def test_adam_against_its_first_steps_by_hand():
    adam = Adam(0.1, noise=0.5)
    assert adam.step(1.0) == pytest.approx(-0.1 * 1.0 / (1.0 + 0.5))  # bias-corrected, both moments are the slope's
    mean = (0.9 * 0.1 * 1.0 + 0.1 * -1.0) / (1 - 0.9**2)
    assert adam.step(-1.0) == pytest.approx(-0.1 * mean / (1.0 + 0.5))


def test_adam_finds_the_bottom_of_a_bowl_and_ignores_noise():
    adam, x = Adam(0.1), 3.0
    for _ in range(200):
        x += adam.step(2 * (x - 1.0))
    assert x == pytest.approx(1.0, abs=0.05)
    noisy, y = Adam(0.1), 0.0
    draw = random.Random(1)  # noqa: S311 -- no secret
    for _ in range(100):
        y += noisy.step(draw.gauss(0.0, 0.01))
    assert abs(y) < 0.1


def windows(tuner, seen, length_s=40.0):
    """Play windows with so many moves and such a latency each; the centre after each."""
    now_s, centres = 0.0, []
    for moves, latency_ms, held in seen:
        closed = tuner.windows
        tuner.tick(now_s, moves, latency_ms, held=held)
        while tuner.windows == closed:
            now_s += 1.0
            tuner.tick(now_s, 0, latency_ms, held=held)
        centres.append(tuner.centre_s)
    return centres


def test_the_first_window_halves_the_period_or_doubles_it_where_nothing_was_held_back():
    assert windows(Tuner(4.0, (0.1, 60.0), 40.0), [(9, 1.0, True)]) == [2.0]
    assert windows(Tuner(4.0, (0.1, 60.0), 40.0), [(9, 1.0, False)]) == [8.0]
    assert windows(Tuner(4.0, (3.0, 60.0), 40.0), [(9, 1.0, True)]) == [3.0]


def test_the_period_follows_the_slope():
    worse_with_more = windows(Tuner(4.0, (0.1, 60.0), 40.0), [(10, 1.0, True), (20, 1.5, True)])
    assert worse_with_more[1] > worse_with_more[0]
    better_with_more = windows(Tuner(4.0, (0.1, 60.0), 40.0), [(10, 1.0, True), (20, 0.7, True)])
    assert better_with_more[1] < better_with_more[0]


@pytest.mark.parametrize(
    "second",
    [(10, 2.0, True), (20, None, True), (20, math.nan, True), (20, 0.0, True), (0, None, True)],
    ids=["equal rates", "no latency", "not a number", "zero", "no moves"],
)
def test_what_shows_no_slope_makes_no_step(second):
    first, then = windows(Tuner(4.0, (0.1, 60.0), 40.0), [(10, 1.0, True), second])
    assert then == first


def test_a_latency_that_is_good_enough_brings_the_period_back():
    tuner = Tuner(4.0, (0.1, 60.0), 40.0, good_ms=0.6)
    away = windows(tuner, [(10, 1.0, True), (20, 2.0, True)])[-1]
    back = windows(tuner, [(10, 0.5, True), (20, 0.3, True), (10, 0.5, True)])
    assert [abs(math.log(c / 4.0)) for c in back] == pytest.approx([abs(math.log(away / 4.0)) / n for n in (2, 4, 8)])


def test_a_period_that_holds_nothing_back_grows_to_the_pace_of_what_is_wanted():
    centres = windows(Tuner(0.1, (0.05, 60.0), 40.0, probe=1.4), [(20, 1.0, False)] * 20)
    assert centres[-1] == pytest.approx(1.4 * 40.0 / 20, rel=0.05)
    assert centres == sorted(centres)


BEST_S = 4.0


@pytest.mark.parametrize("start_s", [0.5, 32.0], ids=["eight times too often", "eight times too seldom"])
def test_the_period_ends_at_the_bottom_of_a_known_u(start_s, tmp_path):
    host = UShapedHost(much=0.5 * BEST_S, little=0.5 / BEST_S, noise=0.05)
    assert 1 / host.best_rate == pytest.approx(BEST_S)
    assert host.latency_ms(host.best_rate) < min(host.latency_ms(0.9 / BEST_S), host.latency_ms(1.1 / BEST_S))
    policy = load_policy("mixed", [f"period_s={start_s}", "concern=0", "hold_s=0.25", "reach=16"])
    controller = Controller([spec(name) for name in "abc"], policy, Topology.flat(4), host.deadline)
    balances, centres = [], {}

    def show(_: Controller) -> None:
        balances.append(policy.tokens.balance)
        centres[policy.tuner.windows] = policy.tuner.centre_s

    run(host, controller, SchedulerLogger(tmp_path, now_s=host.now), period_s=0.5, duration_s=2700.0, show=show)
    last = list(centres.values())[-10:]
    assert all(abs(centre_s / BEST_S - 1) < 0.2 for centre_s in last), [round(c, 2) for c in centres.values()]
    assert min(balances) >= -policy.borrow
    assert not controller.regulator.counts, "nothing that a regulator has to mend"
