"""How the cores that memcached leaves are shared out: by the present alone, and by the end of the run."""

PACKING
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


