"""How the cores that memcached leaves are shared out: by the present alone, and by the end of the run."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.jobs import ACTIVE, ENDED, JobState
from colocate.packing import Packer, Packing, share_out, speedup
from colocate.topology import Topology
from tests.builders import job_view, spec, view


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


jobs_left = st.lists(
    st.tuples(
        st.sampled_from(sorted(JobState)),
        st.sampled_from([1, 2, 4]),  # threads
        st.sampled_from([None, 5.0, 40.0, 200.0, 201.0]),  # seconds alone
        st.sampled_from([None, 0.0, 30.0, 1000.0]),  # CPU seconds used
        st.integers(-1, 7),  # a core that it holds
    ),
    min_size=1,
    max_size=8,
)


def seen(facts, *, total=8, scale=True):
    jobs = {}
    for number, (state, threads, alone_s, used_s, core) in enumerate(facts):
        held = frozenset({core}) if core >= 0 and state in ACTIVE else frozenset()
        runtime_s = {1: alone_s, 2: alone_s / 1.9, 4: alone_s / 3.4} if alone_s else {}
        runtime_s = runtime_s if scale else {1: alone_s}
        name = f"j{number}"
        jobs[name] = job_view(name, state, held, threads=threads, runtime_s=runtime_s, cpu_s=used_s)
    return view(total=total, jobs=jobs)


@given(jobs_left, st.integers(1, 8), st.integers(0, 8), st.data())
def test_whatever_is_left_the_packing_can_be_carried_out_and_no_core_idles(facts, service, shared, data):
    shared = min(shared, service)
    picture = seen(facts)
    left = {name: job for name, job in picture.jobs.items() if job.state not in ENDED}
    avoid = frozenset(data.draw(st.sets(st.sampled_from(sorted(picture.jobs)))))
    packer = Packer(0.5)
    packing = packer.pack(picture, service, shared, avoid)
    own = picture.total_cores - service
    assert set(packing.jobs) == set(left), "never a core to one that has ended"
    assert packing.share <= set(left) - avoid
    assert shared or not packing.share
    assert sum(packing.jobs.values()) <= own
    threads = {
        name: job.threads if job.state in ACTIVE else packer.threads(picture).get(name, job.threads)
        for name, job in left.items()
    }
    assert all(packing.jobs[name] <= threads[name] for name in left), "a core that no thread can use"
    assert sum(packing.jobs.values()) == min(own, sum(threads.values())), "no core idles while a thread has none"
    idle = min(shared, sum(threads.values()) - sum(packing.jobs.values()))
    if idle > 0 and not avoid:
        assert packing.share


@given(jobs_left, st.integers(1, 7))
def test_who_has_most_left_runs(facts, service):
    picture = seen([(state, 1, alone_s or 7.0, *more) for state, _, alone_s, *more in facts], scale=False)
    packing = Packer(0.5, quantum_s=0.0).pack(picture, service)
    work_s = {name: job.spec.runtime_s[1] for name, job in picture.jobs.items()}
    left_s = {n: max(0.03 * work_s[n], work_s[n] - (job.cpu_s or 0.0)) for n, job in picture.jobs.items()}
    runs = [left_s[name] for name, cores in packing.jobs.items() if cores]
    waits = [left_s[name] for name, cores in packing.jobs.items() if not cores]
    assert min(runs, default=0.0) >= max(waits, default=0.0)


def test_nobody_is_interrupted_for_one_that_has_only_a_little_more_left():
    def packed(quantum_s):
        running = job_view("runs", JobState.RUNNING, frozenset({1}), runtime_s={1: 100.0}, cpu_s=5.0)
        waiting = job_view("waits", runtime_s={1: 100.0})
        picture = view(total=2, jobs={"runs": running, "waits": waiting})
        return Packer(0.5, quantum_s=quantum_s).pack(picture, 1).jobs

    assert packed(10.0) == {"runs": 1, "waits": 0}
    assert packed(4.0) == {"runs": 0, "waits": 1}


def test_a_job_that_would_outlast_all_others_is_a_gang_and_the_short_ones_are_fillers():
    long = {1: 500.0, 2: 260.0, 4: 150.0}
    short = {1: 30.0, 2: 15.5, 4: 8.0}
    other = {1: 170.0, 2: 90.0, 4: 50.0}
    bad = {1: 30.0, 2: 28.0, 4: 27.0}
    jobs = {
        name: job_view(name, threads=4, runtime_s=times)
        for name, times in (("long", long), ("short", short), ("bad", bad), ("other", other), ("unknown", {}))
    }
    picture = view(total=4, jobs=jobs)
    packer = Packer(0.5)
    assert packer.threads(picture) == {"long": 2, "short": 4, "bad": 1, "other": 1}
    assert packer.pack(picture, 1).jobs["long"] == 2, "as many cores as threads whenever it runs"
    assert packer.pack(picture, 3).jobs["long"] == 1, "but what there is, if there is less"
    assert packer.pack(picture, 3, 3).share >= {"long"}, "and memcached's for the other thread"
    assert packer.pack(picture, 1).jobs["short"] == 0, "fillers come last"
    alone = view(total=4, jobs={**jobs, **{n: replace(jobs[n], state=JobState.FINISHED) for n in jobs if n != "short"}})
    assert packer.pack(alone, 1).jobs == {"short": 3}, "where they fill all"


def test_a_job_that_was_made_with_one_thread_is_no_gang():
    long = job_view("long", JobState.RUNNING, frozenset({1}), threads=1, runtime_s={1: 500.0, 2: 260.0})
    jobs = {"long": long, "a": job_view("a", runtime_s={1: 20.0}), "b": job_view("b", runtime_s={1: 20.0})}
    assert Packer(0.5).pack(view(total=3, jobs=jobs), 1).jobs == {"long": 1, "a": 1, "b": 0}


def test_the_most_sensitive_comes_first_and_so_gets_the_quietest_core():
    jobs = {name: job_view(name, sensitivity={"cpu": cpu}) for name, cpu in (("a", 1.1), ("b", 2.0), ("c", 1.5))}
    assert list(Packer(0.5).pack(view(jobs=jobs), 1).jobs) == ["b", "c", "a"]


def test_work_is_longer_where_siblings_are_busy():
    one, two = {1: 100.0}, {1: 110.0}
    jobs = {
        "hurt": job_view("hurt", runtime_s=one, sensitivity={"cpu": 1.5}),
        "not": job_view("not", runtime_s=two, sensitivity={"cpu": 1.0}),
    }
    cores = frozenset(range(2))
    paired = Topology(cores, dict.fromkeys(cores, cores), dict.fromkeys(cores, cores), dict.fromkeys(cores, 0))
    assert Packer(0.5).pack(view(total=2, jobs=jobs), 1).jobs == {"hurt": 0, "not": 1}
    assert Packer(0.5).pack(view(total=2, jobs=jobs, topology=paired), 1).jobs == {"hurt": 1, "not": 0}


def test_what_is_left_is_looked_at_again_after_a_while_and_when_something_happens():
    def at(time_s, used_s, state=JobState.RUNNING):
        a = job_view("a", state, frozenset({1}), runtime_s={1: 100.0}, cpu_s=used_s)
        return view(time_s=time_s, total=2, jobs={"a": a, "b": job_view("b", runtime_s={1: 60.0})})

    packer = Packer(0.5, quantum_s=0.0, every_s=0.25)
    assert packer.pack(at(0.0, 0.0), 1).jobs == {"a": 1, "b": 0}
    assert packer.pack(at(0.2, 50.0), 1).jobs == {"a": 1, "b": 0}
    assert packer.pack(at(0.2, 50.0), 1, 1).share == {"a"}, "another question has an answer of its own"
    assert packer.pack(at(0.25, 50.0), 1).jobs == {"a": 0, "b": 1}
    assert packer.pack(at(0.3, 50.0, JobState.FINISHED), 1).jobs == {"b": 1}


@pytest.mark.parametrize(("total", "service"), [(1, 1), (64, 64)])
def test_where_memcached_has_all_there_is_nothing_but_its_own_cores_to_share(total, service):
    jobs = {name: job_view(name) for name in "ab"}
    packing = Packer(0.5).pack(view(total=total, jobs=jobs), service)
    assert packing == Packing({"a": 0, "b": 0})
    assert Packer(0.5).pack(view(total=total, jobs=jobs), service, 1).share == {"a"}
