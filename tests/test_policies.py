import textwrap
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.errors import UserError
from colocate.jobs import ENDED, JobState
from colocate.packing import share_out, speedup
from colocate.policy import Plan, load_policy, options, policy_names
from colocate.view import History
from tests.builders import job_view, service_sample, spec, view

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


def test_reactive_grows_at_the_very_tick():
    policy = load_policy("reactive")
    assert at(policy, 0.0, 0.1).service == 1
    assert at(policy, 0.05, 0.9, threads=2).service == 2
    assert at(policy, 0.10, 0.9, threads=4, total=8).service == 4, "its need is hidden: a core a thread"


def test_reactive_sees_run_queue_delay_and_latency_while_there_is_work():
    for trouble in ({"waited_us": 400.0}, {"latency_ms": 1.5}):
        policy = load_policy("reactive")
        assert at(policy, 0.0, 0.5).service == 1
        assert at(policy, 5.0, 0.5, **trouble).service == 2
        assert at(load_policy("reactive"), 5.0, 0.02, **trouble).service == 1, "an idle memcached needs nothing"


def test_reactive_does_not_blame_new_cores_for_old_latency():
    policy = load_policy("reactive", ["hold_s=0.5", "settle_s=3"])
    at(policy, 0.0, 0.5)
    assert at(policy, 5.0, 0.5, latency_ms=1.5).service == 2
    at(policy, 5.05, 0.5, cores=2)
    at(policy, 5.1, 0.4, latency_ms=1.5)
    assert at(policy, 6.0, 0.4, latency_ms=1.5).service == 1, "a figure over seconds tells of the cores it had before"


def test_reactive_shrinks_slowly():
    policy = load_policy("reactive", ["hold_s=1.0"])
    at(policy, 0.0, 0.9)
    assert [at(policy, t, 0.2, cores=2).service for t in (0.5, 0.9, 1.1)] == [2, 2, 1]


def test_reactive_does_not_go_back_to_where_it_had_trouble():
    policy = load_policy("reactive", ["hold_s=1.0", "remember_s=10"])
    at(policy, 0.0, 0.6, waited_us=400.0)
    assert at(policy, 2.0, 0.6, cores=2).service == 2, "one core was too few for just that"
    assert at(policy, 3.5, 0.3, cores=2).service == 1, "but will do for half of it"
    policy = load_policy("reactive", ["hold_s=1.0", "remember_s=10"])
    at(policy, 0.0, 0.6, waited_us=400.0)
    assert at(policy, 11.0, 0.6, cores=2).service == 1, "it forgets"


def test_one_thread_jobs_go_side_by_side_and_the_last_goes_wide():
    side_by_side = share_out([job_view("a", threads=4), job_view("b", threads=4), job_view("c", threads=4)], 3)
    assert side_by_side == {"a": 1, "b": 1, "c": 1}
    assert share_out([job_view("a", threads=4), job_view("b", JobState.FINISHED)], 3) == {"a": 3}
    assert share_out([job_view("a"), job_view("b")], 4) == {"a": 1, "b": 1}, "a core beyond its threads is no use"


def test_the_wide_job_is_the_one_that_scales_better():
    bad = job_view("bad", threads=2, runtime_s={1: 10.0, 2: 9.0})
    good = job_view("good", threads=2, runtime_s={1: 10.0, 2: 5.1})
    assert share_out([bad, good], 3) == {"bad": 1, "good": 2}


def test_no_measured_speed_up_leaves_another_job_without_a_core():
    superlinear = job_view("a", JobState.RUNNING, frozenset({1}), threads=4, runtime_s={1: 13.4, 2: 6.3, 4: 3.0})
    paused = job_view("b", JobState.PAUSED, threads=2)
    assert share_out([superlinear, paused], 2) == {"a": 1, "b": 1}
    assert speedup(superlinear.spec, 2) == 2


def test_those_that_run_come_first_then_the_longest():
    running = job_view("r", JobState.RUNNING, frozenset({1}), runtime_s={1: 1.0})
    paused = job_view("p", JobState.PAUSED, runtime_s={1: 2.0})
    short, long = job_view("s", runtime_s={1: 5.0}), job_view("l", runtime_s={1: 50.0})
    everybody = [short, long, paused, running]
    assert [name for name, n in share_out(everybody, 1).items() if n] == ["r"]
    assert {name for name, n in share_out(everybody, 2).items() if n} == {"r", "p"}
    assert {name for name, n in share_out(everybody, 3).items() if n} == {"r", "p", "l"}


open_jobs = st.builds(
    lambda state, threads, held, runtime_s: (state, threads, held, runtime_s),
    st.sampled_from(sorted(JobState)),
    st.integers(1, 4),
    st.booleans(),
    st.dictionaries(st.sampled_from([1, 2, 4]), st.sampled_from([5.0, 9.0, 10.0])),
)


@given(st.lists(open_jobs, max_size=6), st.integers(0, 8))
def test_each_core_goes_where_it_adds_most(facts, cores):
    jobs = [
        job_view(f"j{i}", state, frozenset({i} if held else ()), threads=threads, runtime_s=runtime_s)
        for i, (state, threads, held, runtime_s) in enumerate(facts)
    ]
    before, after = share_out(jobs, cores), share_out(jobs, cores + 1)

    def gains(shares):
        return {j.name: speedup(j.spec, shares[j.name] + 1) - speedup(j.spec, shares[j.name]) for j in jobs
                if j.name in shares}  # fmt: skip

    assert set(before) == {job.name for job in jobs if job.state not in ENDED}
    gained = [name for name in before if after[name] != before[name]]
    best = max(gains(before).values(), default=0.0)
    if best > 0:
        (name,) = gained
        assert after[name] == before[name] + 1
        assert gains(before)[name] == best
    else:
        assert not gained


def test_shares_follow_every_fact_that_they_depend_on():
    a = job_view("a", JobState.PAUSED, threads=2, runtime_s={1: 20.0, 2: 12.0})
    b = job_view("b", JobState.PAUSED, threads=2, runtime_s={1: 10.0, 2: 6.0})
    on_one = frozenset({1})
    faster = job_view("b", JobState.PAUSED, threads=2, runtime_s={1: 10.0, 2: 5.0})
    for cores, before, changed, after in (
        (3, {"a": 2, "b": 1}, [a, faster], {"a": 1, "b": 2}),
        (3, {"a": 2, "b": 1}, [a, replace(b, state=JobState.FINISHED)], {"a": 2}),
        (4, {"a": 2, "b": 2}, [a, replace(b, threads=1)], {"a": 2, "b": 1}),
        (1, {"a": 1, "b": 0}, [a, replace(b, state=JobState.RUNNING)], {"a": 0, "b": 1}),
        (1, {"a": 1, "b": 0}, [replace(a, cores=on_one), b], {"a": 0, "b": 1}),
    ):
        assert share_out([a, b], cores) == before
        assert share_out(changed, cores) == after
    assert share_out([a, b], 2) == {"a": 1, "b": 1}
    assert share_out([a, b], 3) == {"a": 2, "b": 1}


def test_a_policy_may_change_the_shares_that_it_got():
    jobs = [job_view("a"), job_view("b")]
    share_out(jobs, 1)["b"] = 9
    assert share_out(jobs, 1) == {"a": 1, "b": 0}


def test_speed_up_from_measured_times():
    job = spec("a", 4, runtime_s={1: 100.0, 2: 60.0})
    assert speedup(job, 0) == 0
    assert speedup(job, 1) == 1
    assert speedup(job, 2) == pytest.approx(100 / 60)
    assert speedup(job, 2) < speedup(job, 4) < 4
    assert speedup(job, 8) == speedup(job, 4)


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
