"""The policy `mixed`: bands, budget, order of victims, forecasts."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.jobs import JobState
from colocate.policy import load_policy
from colocate.sim.run import simulate
from colocate.simulation import SimSettings, graded, setup
from colocate.view import History, LoadPoint, Profile
from tests.builders import job_view, service_sample, view


def running(name, core, cpu_cores=1.0, **facts):
    return replace(job_view(name, JobState.RUNNING, frozenset({core}), **facts), cpu_cores=cpu_cores)


JOBS = {name: running(name, core) for core, name in enumerate("abc", 1)}
EDGE = {1: 80_000.0, 2: 160_000.0, 3: 160_000.0, 4: 160_000.0}
CURVES = {
    cores: (LoadPoint(0.0, 0.2, 5.0), LoadPoint(qps, 0.8, 9.0), LoadPoint(2 * qps, 2.0, 99.0))
    for cores, qps in EDGE.items()
}
PROFILE = Profile(CURVES, cpu_us=10.0, machine_sd=0.15)


def at(policy, time_s, cpu_cores, cores=1, *, total=4, jobs=JOBS, profile=None, waited_us=None, **sample):
    history = History()
    for tick in range(10):
        history.add("wait_us", time_s - 0.05 * (10 - tick), waited_us)
        history.add("cpu_cores", time_s - 0.05 * (10 - tick), cpu_cores)
        history.add("latency_ms", time_s - 0.05 * (10 - tick), sample.get("latency_ms"))
    seen = view(
        time_s=time_s, total=total, service_cores=frozenset(range(cores)),
        sample=service_sample(cpu_cores, **sample), jobs=jobs, series=history.series(),
    )  # fmt: skip
    return policy.decide(replace(seen, profile=profile))


def mixed(*options):
    return load_policy("mixed", ["tune=0", *options])


def broke(*options):
    policy = mixed("period_s=1e9", *options)
    policy.tokens.spend(8)
    assert policy.tokens.balance == 0
    return policy


def test_calm_moves_nothing():
    policy = mixed()
    plans = [at(policy, 0.05 * tick, 0.7) for tick in range(100)]
    assert {plan.service for plan in plans} == {1}
    assert policy.tokens.balance == 8


def test_in_the_band_a_move_needs_a_token_and_in_an_emergency_none():
    assert at(mixed(), 0.0, 0.8).service == 2
    poor = broke()
    plan = at(poor, 0.0, 0.8)
    assert (plan.service, poor.tokens.balance) == (1, 0)
    assert "no token" in plan.reason
    assert at(poor, 0.05, 0.96).service == 2
    assert poor.tokens.balance == pytest.approx(-1, abs=1e-6), "it acts, and is charged"


def test_an_emergency_at_the_limit_acts_and_the_charge_is_remitted():
    policy = broke("borrow=8")
    policy.tokens.spend(8)
    at(policy, 0.0, 0.1)
    assert at(policy, 0.05, 0.96).service == 2
    assert policy.tokens.balance == pytest.approx(-8, abs=1e-6)


def test_the_bands_follow_a_calibration():
    calm = 0.8 * 0.74  # what the slow machine carries: two standard deviations
    assert at(mixed(), 0.0, calm - 0.02, profile=PROFILE).service == 1
    assert at(mixed(), 0.0, calm + 0.02, profile=PROFILE).service == 2
    poor = broke()
    assert at(poor, 0.0, calm + 0.02, profile=PROFILE).service == 1
    assert at(poor, 0.05, 0.82, profile=PROFILE).service == 2, "here the typical machine breaks the SLO"


def test_wait_and_latency_are_emergencies_while_there_is_work():
    for trouble in ({"waited_us": 400.0}, {"latency_ms": 1.5}):
        policy = broke()
        assert at(policy, 0.0, 0.5).service == 1
        assert at(policy, 5.0, 0.5, **trouble).service == 2
        assert at(broke(), 5.0, 0.02, **trouble).service == 1


def gives_back(policy, **sample):
    """After how many seconds of little load it gives its second core back; None if it does not within ten."""
    at(policy, -0.05, 0.2)
    at(policy, 0.0, 0.8)
    for tick in range(1, 200):
        if at(policy, 0.05 * tick, 0.2, cores=2, **sample).service == 1:
            return 0.05 * tick
    return None


def test_a_core_is_given_back_slowly_for_a_token_and_not_while_the_slo_breaks():
    assert gives_back(mixed("settle_s=0.1", "hold_s=1")) == pytest.approx(1.0, abs=0.11)
    assert gives_back(mixed("settle_s=4", "hold_s=1")) == pytest.approx(4.0, abs=0.11), "it may have fallen behind"
    assert gives_back(mixed("hold_s=1"), latency_ms=0.9) is None
    spent = mixed("hold_s=1", "period_s=1e9")
    spent.tokens.spend(7)
    assert gives_back(spent) is None


def test_a_good_latency_widens_the_calm():
    policy = broke()
    for tick in range(200):
        at(policy, 0.05 * tick, 0.7, latency_ms=0.4)
    assert at(policy, 10.05, 0.76).service == 1
    policy.tokens.balance = 1.0
    assert at(policy, 10.1, 0.76).service == 1, "it proved that it carries 0.7, and a tenth more is tried"
    assert at(policy, 10.15, 0.8).service == 2


def test_the_hot_and_steady_job_loses_its_core_first():
    policy = mixed()
    for tick in range(1200):
        swings = 1.0 if tick % 2 else 0.6
        jobs = {"a": running("a", 1, 1.0), "b": running("b", 2, swings), "c": running("c", 3, 0.3)}
        at(policy, 0.05 * tick, 0.2, jobs=jobs)
    assert policy.loads.score("a") == pytest.approx(0.7)
    assert policy.loads.score("b") == pytest.approx(0.7 * 0.8 - 0.3 * 0.2, abs=0.02)
    assert policy.loads.score("c") == pytest.approx(0.7 * 0.3)
    plan = at(policy, 60.0, 0.96, jobs=jobs)
    assert (plan.service, plan.jobs) == (2, {"a": 0, "b": 1, "c": 1})


def test_what_follows_from_a_job_s_end_is_free_and_other_changes_are_not():
    policy = mixed("period_s=1e9")
    wide = {"a": running("a", 1, threads=2), "b": running("b", 2), "c": running("c", 3)}
    at(policy, 0.0, 0.2, jobs=wide)
    wide["c"] = replace(wide["c"], state=JobState.FINISHED, cores=frozenset())
    assert at(policy, 0.05, 0.2, jobs=wide).jobs == {"a": 2, "b": 1}
    assert policy.tokens.balance == 8
    at(policy, 0.1, 0.8, jobs=wide)
    assert policy.tokens.balance == pytest.approx(7), "memcached's move costs one, the jobs' follow from it"


def test_a_load_known_to_stay_gives_its_core_back_sooner():
    def shrinks_after(*options):
        policy, cores, fell_s = mixed("sure_s=0.5", *options), 1, None
        for tick in range(20 * 64):
            time_s = 0.05 * tick
            used = (0.2, 0.9, 0.3, 1.2, 0.25, 0.8)[int(time_s // 10) % 6]
            plan = at(policy, time_s, used, cores=cores, profile=None)
            if time_s >= 60.0 and plan.service < cores:
                return time_s - 60.0
            cores = plan.service
        return fell_s

    assert shrinks_after("ahead=0") == pytest.approx(1.5, abs=0.1)
    assert shrinks_after() < 1.2


def test_cores_are_there_before_a_rise_that_would_be_answered_too_late():
    policy, cores, early = mixed(), 1, 0
    for tick in range(20 * 100):
        time_s = 0.05 * tick
        used = (0.2, 0.9)[int(time_s // 3.5) % 2]
        plan = at(policy, time_s, used, cores=cores)
        early += plan.service == 2 and used == 0.2 and "due in" in plan.reason
        cores = plan.service
    assert early > 5


facts = st.tuples(
    st.floats(0.0, 0.6),  # time since the last view
    st.one_of(st.none(), st.floats(0.0, 4.0)),
    st.integers(1, 4),
    st.one_of(st.none(), st.floats(0.0, 3.0)),
    st.floats(0.0, 500.0),
    st.lists(st.sampled_from(sorted(JobState)), min_size=3, max_size=3),
)


@settings(max_examples=60)
@given(st.lists(facts, min_size=1, max_size=40), st.sampled_from([0.3, 2.0, 50.0]), st.booleans())
def test_on_any_views_the_balance_is_never_below_its_limit_and_the_plan_fits(story, period_s, calibrated):
    policy = load_policy("mixed", [f"period_s={period_s}", "window_s=2"])
    time_s = 0.0
    for passed_s, used, cores, latency_ms, waited_us, states in story:
        time_s += passed_s
        jobs = {n: replace(job_view(n, s, threads=2), cpu_cores=0.5) for n, s in zip("abc", states, strict=True)}
        plan = at(
            policy, time_s, used, cores, jobs=jobs, waited_us=waited_us, latency_ms=latency_ms,
            profile=PROFILE if calibrated else None,
        )  # fmt: skip
        assert -policy.borrow <= policy.tokens.balance <= policy.borrow
        assert plan.service >= 1
        assert plan.service + sum(plan.jobs.values()) <= 4


def test_a_simulated_run_ends_within_the_budget(tmp_path):
    chosen, policy, balances = setup(SimSettings("cca-2025", seed=1)), load_policy("mixed"), []
    run = simulate(chosen, policy, tmp_path, show=lambda _: balances.append(policy.tokens.balance))
    verdict = graded(run, chosen.slo)
    assert verdict.complete
    assert (verdict.overlap.value or 0.0) <= 0.02
    assert min(balances) >= -policy.borrow
    assert not run.controller.regulator.strikes
