import textwrap
from dataclasses import replace

import pytest
from colocate_policies.share import too_heavy
from hypothesis import given
from hypothesis import strategies as st

from colocate.errors import UserError
from colocate.jobs import JobState
from colocate.policy import Packing, Plan, load_policy, options, policy_names
from colocate.view import History
from tests.builders import Played, job_view, profile, service_sample, view

JOBS = {name: job_view(name) for name in "abc"}


def at(policy, time_s, cpu_cores, cores=1, total=4, waited_us=None, **sample):
    """One decision; `waited_us` is the run-queue delay of the last half second."""
    seen = service_sample(cpu_cores, **sample)
    history = History()
    for tick in range(10):
        history.add("wait_us", time_s - 0.05 * (10 - tick), waited_us)
    return policy.decide(
        view(
            time_s=time_s, total=total, service_cores=frozenset(range(cores)), sample=seen, jobs=JOBS,
            series=history.series(),
        )
    )  # fmt: skip


@pytest.mark.parametrize("name", policy_names())
@pytest.mark.parametrize("total", [1, 2, 4, 64])
def test_every_policy_gives_a_plan_that_fits(name, total):
    policy = load_policy(name)
    for tick, cpu_cores in enumerate((None, 0.0, 0.5, 0.99, 1.7, 100.0)):
        plan = at(policy, tick, cpu_cores, cores=min(2, total), total=total)
        assert plan.service >= 1
        assert plan.service + sum(plan.jobs.values()) <= total
        assert plan.reason


@pytest.mark.parametrize("name", policy_names())
def test_every_policy_goes_on_when_cores_are_unplugged_and_come_back(name):
    policy = load_policy(name)
    for tick, total in enumerate([4] * 5 + [3] * 5 + [1] * 5 + [2] * 5 + [4] * 5):
        plan = at(policy, 0.7 * tick, 0.3 * (tick % 4), cores=min(2, total), total=total)
        assert 1 <= plan.service <= plan.service + sum(plan.jobs.values()) <= total


def test_the_shipped_names():
    assert {"reactive", "static", "random"} <= set(policy_names())


def test_static_never_changes_its_mind():
    policy = load_policy("static")
    assert {at(policy, t, cpu).service for t, cpu in enumerate((0.0, 0.9, 2.0))} == {2}
    assert at(load_policy("static", ["service_cores=3"]), 0, 0.1).service == 3


def test_random_draws_the_same_for_one_seed_and_other_for_another():
    def draws(seed):
        policy = load_policy("random", [f"seed={seed}"])
        return [at(policy, 2.5 * t, 0.1, total=8).service for t in range(40)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert set(draws(1)) == set(range(1, 8))


def cores(plans):
    return [plan.service for plan in plans]


def for_jobs(plans):
    return [sum(plan.jobs.values()) for plan in plans]


@pytest.mark.parametrize("known", [None, profile()])
def test_reactive_grows_at_the_very_tick_at_which_a_load_shows(known):
    played = Played(load_policy("reactive"), cores=2, profile=known)
    assert cores(played.play(4, 10_000, latency_ms=0.3))[-1] == 1
    assert played.tick(46_000).service == 2
    played = Played(load_policy("reactive"), cores=1, threads=3, total=8, profile=known)
    played.play(2, 10_000)
    assert played.tick(500_000).service == 3, "its need is hidden: a core a thread"


@pytest.mark.parametrize("known", [None, profile()])
def test_reactive_shrinks_when_less_has_sufficed_for_a_while(known):
    played = Played(load_policy("reactive", ["hold_s=1.0"]), cores=2, profile=known)
    played.play(2, 70_000)
    less = cores(played.play(2, 5_000))
    assert less == [2] * less.index(1) + [1] * (len(less) - less.index(1))
    assert less.index(1) * 0.05 == pytest.approx(1.0, abs=0.051)


loads = st.lists(st.tuples(st.sampled_from([0, 500, 20_000, 45_000, 90_000, 400_000]), st.integers(1, 25)), max_size=12)


@given(loads, st.sampled_from([None, profile(), profile(machine_sd=0.2)]), st.integers(0, 6), st.integers(2, 8))
def test_reactive_leaves_the_regulator_nothing_to_do(story, known, threads, total):
    played = Played(load_policy("reactive"), cores=1, threads=threads, total=total, profile=known, regulated=True)
    for qps, ticks in story:
        for _ in range(ticks):
            played.tick(qps, latency_ms=0.3 if qps < 100_000 else 3.0)
    assert not played.regulator.counts


def test_reactive_takes_a_long_run_queue_delay_for_trouble_as_soon_as_it_is_no_chance():
    played = Played(load_policy("reactive"), cores=1, profile=profile())
    assert set(cores(played.play(4, 20_000, latency_ms=0.3, wait_us=15.0))) == {1}
    assert cores([played.tick(20_000, wait_us=150.0), played.tick(20_000, wait_us=15.0)]) == [1, 1], "one tick is none"
    waits = [played.tick(20_000, latency_ms=0.3, wait_us=250.0) for _ in range(6) if played.cores == 1]
    assert cores(waits) == [1] * (len(waits) - 1) + [2]
    assert waits[-1].reason.startswith("waits ")
    assert set(cores(played.play(10, 20_000, latency_ms=0.3, wait_us=15.0))) == {2}, "that load is too much for one"
    assert cores(played.play(2, 8_000, latency_ms=0.3, wait_us=15.0))[-1] == 1, "but less is not"


@pytest.mark.parametrize("wait_us", [90.0, None])
@pytest.mark.parametrize("known", [None, profile()])
def test_reactive_takes_a_latency_that_stays_too_long_for_trouble(known, wait_us):
    played = Played(load_policy("reactive", ["settle_s=3"]), cores=1, profile=known)
    calm_us = wait_us and 10.0
    assert set(cores(played.play(6, 20_000, latency_ms=0.3, wait_us=calm_us))[-40:]) == {1}
    assert set(cores(played.play(2.9, 20_000, latency_ms=1.5, wait_us=wait_us and 20.0))) == {1}, "it may be chance"
    late = played.play(0.3, 20_000, latency_ms=1.5, wait_us=wait_us and 20.0)
    assert cores(late)[-1] == 2
    assert any(plan.reason == "p95 is 1.50 ms" for plan in late)


@pytest.mark.parametrize("known", [None, profile()])
def test_reactive_does_not_blame_new_cores_for_old_latency(known):
    played = Played(load_policy("reactive", ["settle_s=3"]), cores=2, profile=known)
    assert cores(played.play(6, 60_000, latency_ms=0.3))[-1] == 2
    assert cores(played.play(6, 10_000, latency_ms=0.3))[-1] == 1
    assert set(for_jobs(played.play(2.9, 60_000, latency_ms=2.0, wait_us=30.0))) == {2}
    assert for_jobs(played.play(1, 60_000, latency_ms=2.0, wait_us=30.0))[-1] == 1, "but in the end it is their own"


def test_reactive_does_not_listen_to_a_latency_that_is_not_told_any_more():
    played = Played(load_policy("reactive"), cores=1)
    played.play(6, 20_000, latency_ms=0.3, wait_us=None)
    old = replace(service_sample(latency_ms=1.5).latency_ms, age_s=5.0)
    assert set(cores(played.play(8, 20_000, signals={"latency_ms": old}))) == {1}


def test_reactive_gives_no_more_than_a_core_a_thread_unless_the_slo_breaks():
    played = Played(load_policy("reactive"), cores=4, threads=2, profile=profile())
    assert cores(played.play(3, 500_000))[-1] == 2, "more cores do not help two threads"
    assert set(for_jobs(played.play(2, 70_000, latency_ms=0.4))) == {2}
    late = played.play(8, 70_000, latency_ms=1.5, wait_us=60.0)
    assert set(cores(late)) == {2}
    assert min(for_jobs(late)) < 2, "less beside it does"
    played = Played(load_policy("reactive"), cores=2, threads=2, profile=profile())
    assert for_jobs(played.play(60, 70_000, latency_ms=1.5, wait_us=60.0))[-1] == 2, "where nothing helps, none is idle"


def test_reactive_knows_nothing_of_a_memcached_that_says_nothing():
    played = Played(load_policy("reactive"), cores=1, threads=0, total=4)
    assert played.tick(0, cpu_cores=None, told=False).service == 3, "its threads are not known: all but one"
    assert Played(load_policy("reactive"), cores=1, total=1).tick(1e6).service == 1


def test_reactive_stays_at_or_above_the_floor():
    played = Played(load_policy("reactive"), cores=4, total=4, min_cores=2)
    assert cores(played.play(3, 100, latency_ms=0.2))[-1] == 2


@pytest.mark.parametrize("known", [None, profile()])
def test_share_shares_all_while_the_load_is_small_and_less_when_it_hurts(known):
    played = Played(load_policy("share"), cores=2, can_share=True, profile=known)
    played.facts["jobs"] = {name: job_view(name) for name in "abcde"}
    calm = played.play(4, 10_000, latency_ms=0.3, wait_us=10.0)
    assert (calm[-1].service, len(calm[-1].share)) == (2, 2)
    assert sum(calm[-1].jobs.values()) == 2
    full = played.tick(500_000)
    assert (full.service, full.share) == (2, frozenset()), "at once"
    assert len(played.play(4, 10_000, latency_ms=0.3, wait_us=10.0)[-1].share) == 2
    hurt = played.play(12, 10_000, latency_ms=1.5, wait_us=200.0)
    assert {len(plan.share) for plan in hurt} == {0, 1, 2}
    assert {plan.service for plan in hurt} <= {2, 3, 4}


def test_share_goes_by_whole_cores_where_the_host_cannot_share():
    played = Played(load_policy("share"), cores=2, regulated=True)
    plans = played.play(3, 5_000, latency_ms=0.3)
    assert plans[-1].service == 1
    assert not any(plan.share for plan in plans)
    assert not played.regulator.counts


def test_share_gives_up_sharing_at_once_when_the_host_cannot_any_more():
    played = Played(load_policy("share"), cores=2, can_share=True, regulated=True)
    assert played.play(3, 5_000, latency_ms=0.3)[-1].share
    played.facts["can_share"] = False
    assert not played.tick(5_000).share
    assert not played.regulator.counts, "without being told"


def test_share_that_finds_memcached_on_fewer_cores_takes_them_at_once():
    played = Played(load_policy("share"), cores=1, threads=3, total=8, can_share=True, profile=profile(8))
    assert played.tick(400_000).service == 3


def test_share_keeps_the_heaviest_away_and_does_not_change_its_mind_about_whom():
    heavy, light = {"membw": 2.0, "llc": 2.5}, {"membw": 1.1}
    packing = Packing({"a": 0, "b": 0, "c": 1}, frozenset("ab"))

    def seen(a, b):
        return view(jobs={"a": a, "b": b, "c": job_view("c")})

    ran = {"run_s": 10.0, "cpu_cores": 0.5}
    a = replace(job_view("a", JobState.RUNNING, frozenset({0}), sensitivity=heavy, cpu_s=5.0), **ran)
    b = replace(job_view("b", JobState.RUNNING, frozenset({1}), sensitivity=light, cpu_s=5.0), **ran)
    assert too_heavy(seen(a, b), packing, 1) == {"a"}
    kept_away = replace(a, state=JobState.PAUSED, cores=frozenset(), cpu_cores=None)
    assert too_heavy(seen(kept_away, b), packing, 1) == {"a"}
    assert too_heavy(seen(a, b), packing, 2) == frozenset()
    wide = replace(b, threads=3)
    assert too_heavy(seen(a, wide), packing, 2) == {"a", "b"}, "its threads do not fit"


MINE = """
    from colocate.policy import Plan, Policy, View, share_out

    class Mine(Policy):
        cores: int = 2
        eager: bool = False

        def decide(self, view: View) -> Plan:
            return Plan(self.cores, share_out(view.jobs.values(), view.total_cores - self.cores), reason="mine")

    class Broken(Policy):
        def __init__(self, must: int) -> None: ...
        def decide(self, view): ...

    class Other: pass
"""


def test_a_policy_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(MINE))
    policy = load_policy(f"{file}:Mine", ["cores=3", "eager=true"])
    assert at(policy, 0, 0.1) == Plan(3, {"a": 1, "b": 0, "c": 0}, reason="mine")
    assert options(policy) == {"cores": 3, "eager": True}


def test_a_policy_from_a_module():
    assert at(load_policy("colocate_policies.static:Static"), 0, 0.1).reason == "fixed split"


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("nosuch", (), "unknown.*reactive"),
        ("nosuch.py:Mine", (), "no file"),
        ("{file}:Nobody", (), "no class 'Nobody'"),
        ("{file}:Broken", (), "TypeError"),
        ("{file}:Other", (), "no method decide"),
        ("{bad}:Mine", (), "SyntaxError"),
        ("no.such.module:Mine", (), "ModuleNotFoundError"),
        ("{file}:Mine", ("speed=3",), "no option 'speed'.*cores, eager"),
        ("{file}:Mine", ("cores",), "option=value"),
        ("{file}:Mine", ("cores=many",), "is no int"),
        ("{file}:Mine", ("eager=perhaps",), "is no bool"),
    ],
)
def test_what_cannot_be_loaded_is_named(tmp_path, text, settings, message):
    (tmp_path / "mine.py").write_text(textwrap.dedent(MINE))
    (tmp_path / "bad.py").write_text("class Mine(:")
    with pytest.raises(UserError, match=message) as caught:
        load_policy(text.format(file=tmp_path / "mine.py", bad=tmp_path / "bad.py"), settings)
    assert "\n" not in str(caught.value)


def test_who_must_not_share_does_not_depend_on_the_order_of_a_set():
    names = [f"job{number}" for number in range(12)]
    picture = view(jobs={name: job_view(name, JobState.RUNNING, frozenset({1})) for name in names})
    packing = Packing(dict.fromkeys(names, 0), frozenset(names))
    assert too_heavy(picture, packing, 3) == frozenset(names[3:])
