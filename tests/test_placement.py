import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.placement import Assignment, place
from colocate.topology import Topology


def smt(pairs: int) -> Topology:
    cores = frozenset(range(2 * pairs))
    siblings = {c: frozenset({c - c % 2, c - c % 2 + 1}) for c in cores}
    return Topology(cores, siblings, dict.fromkeys(cores, cores), dict.fromkeys(cores, 0))


@st.composite
def requests(draw):
    topology = draw(st.sampled_from([Topology.flat(2), Topology.flat(4), Topology.flat(9), smt(2), smt(4)]))
    total = len(topology.cores)
    service = draw(st.integers(1, total))
    left = total - service
    jobs = {}
    for name in draw(st.lists(st.sampled_from("abcdef"), unique=True)):
        jobs[name] = draw(st.integers(0, left))
        left -= jobs[name]
    return topology, service, jobs


@st.composite
def histories(draw):
    """A few requests in turn on one machine."""
    topology, service, jobs = draw(requests())
    more = draw(st.lists(requests().filter(lambda r: r[0] == topology), max_size=3))
    return topology, [(service, jobs), *((s, j) for _, s, j in more)]


@given(histories())
def test_counts_are_met_by_disjoint_sets(history):
    topology, steps = history
    now = Assignment()
    for service, jobs in steps:
        now = place(service, jobs, now, topology)
        assert len(now.service) == service
        assert {name: len(now.jobs.get(name, ())) for name in jobs} == jobs
        everybody = [now.service, *now.jobs.values()]
        assert sum(map(len, everybody)) == len(frozenset().union(*everybody))
        assert frozenset().union(*everybody) <= topology.cores


@given(histories())
def test_the_same_counts_move_nothing(history):
    topology, steps = history
    now = Assignment()
    for service, jobs in steps:
        now = place(service, jobs, now, topology)
    assert place(*steps[-1], now, topology) == now


@given(histories())
def test_memcached_only_grows_or_only_shrinks(history):
    topology, steps = history
    now = Assignment()
    for service, jobs in steps:
        then = place(service, jobs, now, topology)
        assert then.service <= now.service or then.service >= now.service
        now = then


def test_cores_that_are_not_managed_are_left_though_the_counts_are_met():
    topology = Topology.flat(4)
    outside = Assignment(frozenset({7}), {"a": frozenset({1, 9})})
    assert place(1, {"a": 2}, outside, topology).service < topology.cores
    then = place(1, {"a": 2}, outside, topology)
    assert 1 in then.jobs["a"]
    assert then.jobs["a"] | then.service <= topology.cores
    narrowed = topology.only(frozenset({0, 1}))
    assert place(1, {"a": 1}, Assignment(frozenset({3}), {"a": frozenset({1})}), narrowed).service == {0}


def test_a_job_that_overlaps_memcached_is_moved_though_the_counts_are_met():
    overlapping = Assignment(frozenset({0}), {"a": frozenset({0, 1})})
    then = place(1, {"a": 2}, overlapping, Topology.flat(4))
    assert then.service == {0}
    assert then.jobs["a"] == {1, 2}


def test_a_job_that_is_to_have_none_loses_what_it_holds():
    now = Assignment(frozenset({0}), {"a": frozenset({1}), "b": frozenset({2})})
    assert place(1, {"a": 1, "b": 0}, now, Topology.flat(4)).jobs == {"a": {1}}


def test_a_job_keeps_the_core_that_memcached_leaves_to_it():
    topology = Topology.flat(4)
    now = Assignment(frozenset({0}), {"a": frozenset({1}), "b": frozenset({2, 3})})
    then = place(2, {"a": 1, "b": 1}, now, topology)
    assert then.service == {0, 1}, "the lowest ids"
    assert then.jobs["b"] < {2, 3}
    assert then.jobs["a"] < {2, 3}


def test_growth_takes_the_sibling_of_a_core_it_has():
    assert place(2, {"a": 1, "b": 1}, Assignment(frozenset({2}), {"a": frozenset({0})}), smt(2)).service == {2, 3}


def test_a_job_is_not_put_beside_memcached_while_other_pipelines_are_free():
    placed = place(1, {"a": 1}, Assignment(frozenset({0})), smt(2))
    assert placed.jobs["a"] <= {2, 3}


def test_memcached_gives_up_the_core_without_its_sibling():
    assert place(2, {}, Assignment(frozenset({0, 1, 3})), smt(2)).service == {0, 1}


@pytest.mark.parametrize(("service", "jobs"), [(0, {}), (5, {}), (2, {"a": 3})])
def test_more_than_there_is_raises(service, jobs):
    with pytest.raises(ValueError, match="do not fit"):
        place(service, jobs, Assignment(), Topology.flat(4))


@st.composite
def shared_histories(draw):
    """A few requests in turn on one machine, with sharers and with memcached spread or not."""
    topology, steps = draw(histories())
    sharers = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 5), max_size=6)
    return topology, [(service, jobs, draw(sharers), draw(st.booleans())) for service, jobs in steps]


@given(shared_histories())
def test_sharers_are_on_memcacheds_cores_and_nobody_else_is(history):
    topology, steps = history
    now = Assignment()
    for service, jobs, sharers, spread in steps:
        now = place(service, jobs, now, topology, sharers=sharers, spread=spread)
        assert len(now.service) == service
        own = {name: cores - now.service for name, cores in now.jobs.items()}
        assert {name: len(own.get(name, ())) for name in jobs} == jobs, "the counts are of cores of their own"
        assert sum(map(len, own.values())) == len(frozenset().union(*own.values())), "which are disjoint"
        assert {name for name, cores in now.jobs.items() if cores & now.service} == set(sharers)
        assert frozenset().union(now.service, *now.jobs.values()) <= topology.cores


@given(shared_histories())
def test_memcacheds_cores_are_all_dealt_and_the_same_request_moves_nobody(history):
    topology, steps = history
    now = Assignment()
    for service, jobs, sharers, spread in steps:
        now = place(service, jobs, now, topology, sharers=sharers, spread=spread)
        dealt = [now.jobs[name] & now.service for name in sharers]
        if dealt:
            assert frozenset().union(*dealt) == now.service or sum(sharers.values()) < service
        if sum(sharers.values()) <= service:
            assert all(len(cores) >= want for cores, want in zip(dealt, sharers.values(), strict=True))
        assert place(service, jobs, now, topology, sharers=sharers, spread=spread) == now


@given(shared_histories(), st.data())
def test_who_keeps_its_count_keeps_its_cores_but_for_those_that_memcached_takes(history, data):
    topology, steps = history
    now = Assignment()
    for service, jobs, sharers, spread in steps:
        now = place(service, jobs, now, topology, sharers=sharers, spread=spread)
    service, jobs, sharers, spread = steps[-1]
    if not jobs:
        return
    leaves = data.draw(st.sampled_from(sorted(jobs)))
    fewer = {name: count for name, count in jobs.items() if name != leaves}
    still = {name: want for name, want in sharers.items() if name != leaves}
    then = place(service, fewer, now, topology, sharers=still, spread=spread)
    assert then.service == now.service
    for name in fewer:
        before, after = now.jobs.get(name, frozenset()), then.jobs.get(name, frozenset())
        assert after - then.service == before - now.service
    wider = min(len(topology.cores) - sum(fewer.values()), service + jobs[leaves])
    grown = place(wider, fewer, now, topology, sharers=still, spread=spread)
    for name, count in fewer.items():
        own = now.jobs.get(name, frozenset()) - now.service
        assert grown.jobs.get(name, frozenset()) >= own - grown.service or len(own) > count


def test_spread_takes_one_thread_of_each_physical_core_and_gives_up_the_second_ones_first():
    assert place(2, {}, Assignment(), smt(2), spread=True).service == {0, 2}
    assert place(2, {}, Assignment(), smt(2)).service == {0, 1}
    assert place(3, {}, Assignment(frozenset({0, 2})), smt(2), spread=True).service == {0, 1, 2}
    assert place(2, {}, Assignment(frozenset({0, 1, 2})), smt(2), spread=True).service in ({0, 2}, {1, 2})


def test_beside_a_spread_memcached_the_first_job_gets_the_sibling_of_its_core():
    assert place(1, {"a": 1, "b": 1}, Assignment(frozenset({0})), smt(2), spread=True).jobs["a"] == {1}


def test_sharers_do_not_queue_behind_each_other_while_a_core_is_free_of_jobs():
    four = Assignment(frozenset({0, 1, 2, 3}))
    placed = place(4, {}, four, Topology.flat(4), sharers={"a": 1, "b": 2})
    assert placed.jobs == {"a": {0, 3}, "b": {1, 2, 3}}, "what nobody needs is everybody's"
    crowded = place(1, {"c": 1}, Assignment(frozenset({0})), Topology.flat(2), sharers={"a": 1, "b": 1})
    assert crowded.jobs == {"a": {0}, "b": {0}, "c": {1}}


def test_a_sharer_on_a_crowded_core_stays_when_another_is_as_crowded():
    jobs = {"b": frozenset({1}), "c": frozenset({0}), "d": frozenset({1})}
    placed = place(2, {}, Assignment(frozenset({0, 1}), jobs), Topology.flat(2), sharers=dict.fromkeys("bcd", 1))
    assert placed.jobs == jobs


def test_on_crowded_cores_everybody_stays_who_is_not_one_too_many():
    jobs = {**dict.fromkeys("abf", frozenset({0})), **dict.fromkeys("ed", frozenset({1}))}
    wanted = dict.fromkeys("abefd", 1)
    crowded = Assignment(frozenset({0, 1}), jobs)
    assert place(2, {}, crowded, Topology.flat(2), sharers=wanted) == crowded
    lopsided = Assignment(frozenset({0, 1}), dict.fromkeys("abc", frozenset({0})))
    balanced = place(2, {}, lopsided, Topology.flat(2), sharers=dict.fromkeys("abc", 1))
    assert balanced.jobs == {"a": {0}, "b": {1}, "c": {0}}


def test_on_one_core_everybody_shares_it():
    assert place(1, {}, Assignment(), Topology.flat(1), sharers={"a": 4}).jobs == {"a": {0}}


def test_a_sharer_keeps_its_own_core_before_one_that_was_everybodys():
    three = Assignment(frozenset({0, 1, 2}), {"a": frozenset({0, 1}), "b": frozenset({1, 2})})
    assert place(3, {}, three, Topology.flat(4), sharers={"a": 1, "b": 1}) == three


def test_a_sharer_has_no_second_core_while_another_has_none():
    two = Assignment(frozenset({0, 1}), {"a": frozenset({0, 1})})
    placed = place(2, {}, two, Topology.flat(2), sharers={"c": 1, "a": 2})
    assert placed.jobs == {"a": {0}, "c": {1}}
