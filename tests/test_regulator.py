import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.errors import Terminated
from colocate.jobs import MOST_THREADS, JobState
from colocate.policy import Plan
from colocate.regulator import Limits, OverrunError, Regulator, Safe
from colocate.view import Series
from tests.builders import Fixed, job_view, no_deadline, service_sample, view

JOBS = {"a": job_view("a", JobState.RUNNING, frozenset({3})), "b": job_view("b")}


def regulator(*plans, **limits):
    return Regulator(Fixed(*plans), Limits(**limits), no_deadline)


def rules(interventions):
    return [change.rule for change in interventions]


def test_a_good_plan_passes_untouched():
    plan, changes = regulator(Plan(2, {"a": 1, "b": 1}, reason="why")).plan(view(jobs=JOBS))
    assert (plan, changes) == (Plan(2, {"a": 1, "b": 1}, reason="why"), [])


NONSENSE = [None, 3, Plan(-1), Plan(True), Plan(1.5), Plan(1, {"a": -1}), Plan(1, {"a": "2"}), ValueError("boom")]
NONSENSE += [Plan(1, {}, []), Plan(1, {3: 1}), Plan(1, 7), Plan(1, threads=[]), Plan(1, threads={3: 1})]


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_costs_a_strike_and_gives_the_safe_set(nonsense):
    subject = regulator(nonsense)
    plan, changes = subject.plan(view(jobs=JOBS, sample=service_sample(threads=3)))
    assert plan.service == 3
    assert rules(changes) == ["strike"]
    assert subject.strikes == 1


def test_after_the_last_strike_the_safe_policy_stays():
    subject = regulator(RuntimeError("bug"), strikes=2)
    for _ in range(2):
        _, changes = subject.plan(view(jobs=JOBS))
    assert rules(changes) == ["strike", "fallback"]
    assert isinstance(subject.policy, Safe)
    _, changes = subject.plan(view(jobs=JOBS))
    assert changes == []


class UnspeakableError(Exception):
    def __str__(self):
        raise RuntimeError("no words")


@pytest.mark.parametrize("answer", [UnspeakableError(), Plan(1, reason=None), Plan(1, reason=7)])
def test_what_cannot_even_be_told_costs_a_strike(answer):
    asked = regulator(answer)
    for strikes in (1, 2, 3):
        _, interventions = asked.plan(view())
        assert asked.strikes == strikes
        assert interventions[0].rule == "strike"
    assert isinstance(asked.policy, Safe)


@pytest.mark.parametrize("raised", [OverrunError("slow"), SystemExit(0), GeneratorExit()])
def test_an_overrun_is_a_strike_and_so_is_a_policy_that_wants_us_to_end(raised):
    assert rules(regulator(raised).plan(view(jobs=JOBS))[1]) == ["strike"]


@pytest.mark.parametrize("signalled", [KeyboardInterrupt(), Terminated(143)])
def test_a_signal_is_no_fault_of_the_policy_that_decides_just_then(signalled):
    with pytest.raises(type(signalled)):
        regulator(signalled).plan(view(jobs=JOBS))


IMPOSSIBLE = [Plan(5), Plan(3, {"a": 2}), Plan(1, {"x": 1}), Plan(0), Plan(1, {}, frozenset("x"))]


@pytest.mark.parametrize("impossible", IMPOSSIBLE)
def test_an_impossible_plan_is_rejected_as_a_whole(impossible):
    subject = regulator(Plan(2, {"a": 2, "b": 0}), impossible)
    before, _ = subject.plan(view(jobs=JOBS))
    plan, changes = subject.plan(view(jobs=JOBS, time_s=9, service_cores=frozenset({0, 1})))
    assert (plan, rules(changes)) == (before, ["impossible"])


def test_where_cores_are_gone_neither_an_old_plan_nor_what_memcached_held_is_gone_by():
    subject = regulator(Plan(4, {"a": 0, "b": 0}), Plan(5))
    subject.plan(view(jobs=JOBS))
    plan, changes = subject.plan(view(jobs=JOBS, time_s=9, total=2, service_cores=frozenset({0, 1})))
    assert (plan.service, sum(plan.jobs.values()), rules(changes)) == (2, 0, ["impossible"])
    plan, _ = regulator(Plan(1, {"a": 1, "b": 0})).plan(view(jobs=JOBS, total=2), held=4)
    assert plan.service + sum(plan.jobs.values()) <= 2


def test_the_floor():
    plan, changes = regulator(Plan(1, {"a": 3}), floor_cores=2).plan(view(jobs=JOBS))
    assert (plan.service, plan.jobs["a"], rules(changes)) == (2, 2, ["floored"])


def test_sharing_is_regulated_down_with_a_word():
    plan, changes = regulator(Plan(1, {"a": 1}, frozenset({"a"}))).plan(view(jobs=JOBS))
    assert (plan.share, rules(changes)) == (frozenset(), ["unshared"])


def test_where_the_host_can_share_a_plan_that_shares_passes():
    wish = Plan(1, {"a": 1, "b": 0}, frozenset({"b"}))
    assert regulator(wish).plan(view(jobs=JOBS, can_share=True)) == (wish, [])


def test_sharing_ends_at_the_tick_at_which_the_host_cannot_any_more():
    subject = regulator(Plan(1, {"a": 1}, frozenset({"a"})))
    shares = [bool(subject.plan(view(jobs=JOBS, can_share=can))[0].share) for can in (True, False, True)]
    assert shares == [True, False, True]
    assert subject.strikes == 0


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "2", None, MOST_THREADS + 1])
def test_a_thread_count_that_is_none_costs_a_strike(count):
    _, changes = regulator(Plan(1, {"a": 1}, threads={"a": count})).plan(view(jobs=JOBS))
    assert rules(changes) == ["strike"]


def test_thread_counts_and_the_spread_pass_and_are_of_jobs_that_there_are():
    wish = Plan(1, {"a": 1, "b": 0}, threads={"b": MOST_THREADS}, spread=True)
    assert regulator(wish).plan(view(jobs=JOBS)) == (wish, [])
    assert rules(regulator(Plan(1, threads={"x": 1})).plan(view(jobs=JOBS))[1]) == ["impossible"]
    floored, _ = regulator(wish, floor_cores=4).plan(view(jobs=JOBS))
    assert (floored.jobs, floored.threads, floored.spread) == ({"a": 0, "b": 0}, wish.threads, True)


def test_a_sharer_that_a_plan_leaves_out_keeps_its_own_cores_and_no_more():
    held = {"a": frozenset({0, 3}), "b": frozenset({0})}
    jobs = {name: job_view(name, JobState.RUNNING, cores) for name, cores in held.items()}
    plan, changes = regulator(Plan(1)).plan(view(jobs=jobs, service_cores=frozenset({0}), can_share=True))
    assert (plan.jobs, plan.share, changes) == ({"a": 1, "b": 0}, frozenset(), [])


@pytest.mark.parametrize("stale", [service_sample(None), service_sample(age_s=5), service_sample(qps=None)])
def test_stale_signals_allow_only_moves_in_memcacheds_favour(stale):
    two = frozenset({0, 1})
    plan, changes = regulator(Plan(1, {"a": 3})).plan(view(jobs=JOBS, sample=stale, service_cores=two))
    assert (plan.service, plan.jobs["a"], rules(changes)) == (2, 2, ["fresh_enough"])
    plan, changes = regulator(Plan(3)).plan(view(jobs=JOBS, sample=stale, service_cores=two))
    assert (plan.service, changes) == (3, [])


@pytest.mark.parametrize("stale", [service_sample(None), service_sample(age_s=5), service_sample(qps=None)])
def test_on_stale_signals_nobody_more_shares_memcacheds_cores(stale):
    subject = regulator(Plan(1, {"a": 1, "b": 0}, frozenset("b")), Plan(1, {"a": 1, "b": 0}, frozenset("ab")))
    assert subject.plan(view(jobs=JOBS, can_share=True))[0].share == {"b"}
    plan, changes = subject.plan(view(jobs=JOBS, can_share=True, sample=stale))
    assert (plan.share, rules(changes)) == ({"b"}, ["fresh_enough"])
    assert subject.plan(view(jobs=JOBS, can_share=True))[0].share == {"a", "b"}


def test_a_latency_that_never_comes_back_is_not_waited_for_for_ever():
    subject = regulator(Plan(1, {"a": 3}), latency_max_age_s=5, latency_lost_s=20)
    two = frozenset({0, 1})

    def service_at(time_s, latency_ms):
        sample = service_sample(latency_ms=latency_ms)
        return subject.plan(view(time_s=time_s, jobs=JOBS, sample=sample, service_cores=two))[0].service

    assert service_at(0, 0.5) == 1
    assert service_at(10, None) == 2, "it may come back"
    assert service_at(21, None) == 1, "its source has ended"


def test_the_safe_policy_lets_the_run_end():
    subject = regulator(RuntimeError("bug"), strikes=1)
    seen = view(jobs=JOBS, sample=service_sample(threads=4))
    assert subject.plan(seen)[0].service == 4, "at once all it can use"
    plan, _ = subject.plan(view(time_s=9, jobs=JOBS, sample=service_sample(threads=4)))
    assert (plan.service, plan.jobs["a"]) == (3, 1)


def test_memcached_does_not_shrink_again_at_once():
    subject = regulator(Plan(2), Plan(1), Plan(1), shrink_every_s=1.0)
    subject.plan(view(time_s=0.0, service_cores=frozenset({0, 1, 2})))
    plan, changes = subject.plan(view(time_s=0.5, service_cores=frozenset({0, 1})))
    assert (plan.service, rules(changes)) == (2, ["unhurried"])
    assert subject.plan(view(time_s=1.1, service_cores=frozenset({0, 1})))[0].service == 1


def test_jobs_that_have_ended_are_left_out_and_those_not_named_keep_what_they_have():
    jobs = {**JOBS, "c": job_view("c", JobState.FINISHED)}
    plan, changes = regulator(Plan(1, {"c": 3})).plan(view(jobs=jobs))
    assert (plan.jobs, changes) == ({"a": 1, "b": 0}, [])


counts = st.integers(-2, 7)


@given(
    st.lists(st.builds(Plan, counts, st.dictionaries(st.sampled_from("abx"), counts)), min_size=1, max_size=6),
    st.integers(1, 4),
    st.booleans(),
)
def test_whatever_a_policy_says_the_plan_can_be_carried_out(plans, floor, stale):
    subject = regulator(*plans, floor_cores=floor)
    cores = frozenset({0, 1, 2, 3})
    for time_s in range(len(plans) + 1):
        seen = view(time_s=time_s, jobs=JOBS, service_cores=cores, sample=service_sample(age_s=9 if stale else 0))
        plan, _ = subject.plan(seen)
        assert floor <= plan.service <= 4
        assert plan.service + sum(plan.jobs.values()) <= 4
        assert set(plan.jobs) == set(JOBS)
        if stale:
            assert plan.service >= len(cores)
        cores = frozenset(range(plan.service))


def test_a_policy_that_goes_on_changing_its_plan_does_not_change_the_accepted_one():
    jobs = {"a": 1, "b": 1}
    asked = Regulator(Fixed(Plan(2, jobs)), Limits(), no_deadline)
    accepted, _ = asked.plan(view(jobs=JOBS))
    jobs["unknown"] = 1
    assert accepted.jobs == {"a": 1, "b": 1}
    assert asked.plan(view(jobs=JOBS))[0].jobs == {"a": 1, "b": 1}


def rising(*uses):
    times_s = [0.05 * number for number in range(len(uses))]
    return {"cpu_cores": Series(times_s, [*uses], len(uses))}


@pytest.mark.parametrize(
    ("uses", "kept"),
    [
        ((0.5, 0.5, 0.5), 1),
        ((0.5, 0.55, 0.8), 3),
        ((0.8, 0.5, 0.4), 1),
        ((0.01, 0.05, 0.09), 1),
        ((0.5, *[0.8] * 12), 1),
    ],
)
def test_memcached_gets_no_core_fewer_while_its_load_rises(uses, kept):
    picture = view(jobs=JOBS, time_s=9, service_cores=frozenset({0, 1, 2}), series=rising(*uses))
    plan, changes = regulator(Plan(1)).plan(picture)
    assert (plan.service, rules(changes)) == (kept, ["risen"] if kept == 3 else [])


def test_what_is_unknown_at_the_beginning_leaves_memcached_all_cores():
    nothing = view(jobs=JOBS, service_cores=frozenset(), sample=service_sample(None, qps=None))
    subject = regulator(Plan(1, {"b": 3}))
    plan, changes = subject.plan(nothing)
    assert (plan.service, dict(plan.jobs), rules(changes)) == (4, {"a": 0, "b": 0}, ["fresh_enough"])
    for known in (service_sample(0.1, qps=None), service_sample(None, qps=1000.0)):
        plan, changes = regulator(Plan(1, {"b": 3})).plan(view(jobs=JOBS, service_cores=frozenset(), sample=known))
        assert (plan.service, changes) == (1, [])
