"""What memcached needs is learned: from the first tick, with and without a calibration, and from nothing stale."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.policy import Plan, Policy, Setting, Sizing
from tests.builders import Played, profile, service_sample, signal, view

WHOLE = [Setting(cores) for cores in range(1, 5)]


class Sized(Policy):
    """Does what a `Sizing` chooses from a ladder."""

    def __init__(self, ladder=WHOLE, last_resort=Setting(2), **options):  # noqa: B008 -- a frozen value
        self.ladder, self.last_resort = ladder, last_resort
        self.sizing = Sizing(**options)

    def decide(self, view):
        self.chosen = self.sizing.choose(view, self.ladder, self.last_resort)
        return Plan(self.chosen.cores)


def played(known=None, **facts):
    return Played(Sized(**facts.pop("sized", {})), profile=known, **facts)


def settings(subject, seconds, qps, **sample):
    chosen = []
    for _ in range(round(seconds / 0.05)):
        subject.tick(qps, **sample)
        chosen.append(subject.policy.chosen)
    return chosen


def load_of(subject):
    return subject.policy.sizing.load_qps


@pytest.mark.parametrize("known", [None, profile()])
def test_the_load_is_known_by_its_cpu_before_anybody_tells_it(known):
    subject = played(known, cores=2)
    subject.play(3, 10_000)
    assert load_of(subject) == pytest.approx(10_000)
    subject.tick(30_000, signals={"qps": signal(10_000.0)})
    assert load_of(subject) == pytest.approx(30_000, rel=0.01)
    subject.tick(1e6)
    assert math.isinf(load_of(subject)), "more would not show"


def test_what_a_request_costs_is_learned_although_the_calibration_says_otherwise():
    subject = played(profile(core_qps=100_000.0), cores=2)
    subject.tick(10_000)
    assert load_of(subject) == pytest.approx(20_000)
    subject.play(10, 10_000)
    assert load_of(subject) == pytest.approx(10_000, rel=0.01)


def test_what_an_idle_memcached_uses_tells_nothing_of_what_a_request_costs():
    subject = played(cores=2)
    for _ in range(60):
        subject.tick(0, cpu_cores=0.01, signals={"qps": signal(10.0)})  # a thousandth of a second a request
    subject.play(3, 40_000, latency_ms=0.3)
    assert load_of(subject) == pytest.approx(40_000)
    assert settings(subject, 4, 10_000, latency_ms=0.3)[-1] == Setting(1)


def test_without_a_calibration_a_core_is_thought_to_hold_some_of_what_its_cpu_can():
    for qps, cores in ((30_000, 1), (45_000, 2)):
        assert settings(played(cores=1), 0.05, qps) == [Setting(cores)], "from the first tick on"


def test_a_calibration_says_which_load_a_setting_holds():
    for qps, cores in ((36_000, 1), (40_000, 2)):  # 0.9 of the SLO is reached at 38,000
        assert settings(played(profile()), 0.1, qps)[-1] == Setting(cores)


@pytest.mark.parametrize("known", [None, profile()])
def test_nothing_known_is_the_last_resort(known):
    subject = played(known, cores=4)
    assert settings(subject, 2, 0, cpu_cores=None, told=False)[-1] == Setting(2)
    assert subject.policy.sizing.reason() == "load unknown"
    stale = {"cpu_cores": signal(0.1, 5.0), "qps": signal(100.0, 5.0)}
    assert settings(played(known, cores=2), 2, 0, signals=stale)[-1] == Setting(2), "nor is what was so long ago"


@pytest.mark.parametrize("known", [None, profile()])
def test_threads_that_are_not_known_are_not_taken_for_one(known):
    subject = played(known, cores=3, threads=0, sized={"last_resort": Setting(3)})
    subject.tick(75_000)
    assert load_of(subject) == pytest.approx(75_000), "half of what three cores can do"


def test_what_broke_the_slo_once_is_not_tried_again_under_that_load():
    subject = played(profile(), cores=1)
    assert settings(subject, 6, 25_000, latency_ms=0.3)[-1] == Setting(1)
    broke = settings(subject, 4, 25_000, latency_ms=1.5, wait_us=20.0)
    assert broke[-1] == Setting(2)
    assert set(settings(subject, 30, 25_000, latency_ms=0.3)) == {Setting(2)}
    assert settings(subject, 3, 15_000, latency_ms=0.3)[-1] == Setting(1)


@pytest.mark.parametrize(
    ("seen", "cores"),
    [
        ({"latency_ms": 0.5}, 1),
        ({"latency_ms": 0.79}, 2),
        ({"latency_ms": None}, 2),
        ({"signals": {"latency_ms": signal(0.5, 20.0)}}, 2),
    ],
)
def test_a_setting_bears_more_than_was_thought_if_a_latency_of_now_says_so(seen, cores):
    subject = played(profile(machine_sd=0.3), cores=1)
    assert settings(subject, 6, 36_000, **seen)[-1] == Setting(1)
    assert settings(subject, 0.1, 45_000)[-1] == Setting(cores)


def test_a_reported_latency_of_the_interval_before_proves_nothing_of_this_one():
    subject = played(profile(machine_sd=0.3), cores=1)
    settings(subject, 10, 10_000, latency_ms=0.3)
    settings(subject, 9.9, 36_000, signals={"latency_ms": signal(0.3, 5.0)})
    settings(subject, 0.5, 36_000, latency_ms=2.0)  # the last seconds are still full of the one before
    assert settings(subject, 0.1, 45_000)[-1] == Setting(2)


def test_a_run_queue_delay_that_is_not_told_any_more_is_no_trouble():
    subject = played(profile(), cores=1)
    settings(subject, 0.15, 20_000, wait_us=300.0)  # a setting so new that nothing is made of it
    assert set(settings(subject, 2, 20_000, wait_us=None, latency_ms=0.3)) == {Setting(1)}


@pytest.mark.parametrize("known", [None, profile()])
def test_a_memcached_that_starts_again_is_not_blamed_for_having_been_away(known):
    subject = played(known, cores=1)
    settings(subject, 6, 20_000, latency_ms=0.3)
    gone = settings(subject, 5, 0, cpu_cores=None, told=False, wait_us=None)
    assert gone[-1] == Setting(2), "the last resort"
    assert settings(subject, 6, 20_000, latency_ms=0.3)[-1] == Setting(1)


def test_fewer_shared_cores_are_taken_at_once_and_more_after_a_while():
    shared = [Setting(2, 2), Setting(2, 1), Setting(2)]
    subject = played(profile(), cores=2, can_share=True, sized={"ladder": shared, "hold_s": 1.0})
    assert settings(subject, 2, 10_000, latency_ms=0.3)[-1] == Setting(2, 2)
    assert settings(subject, 0.05, 1e6) == [Setting(2)]
    back = settings(subject, 2, 10_000, latency_ms=0.3)
    assert back == [Setting(2)] * 20 + [Setting(2, 2)] * 20


def test_a_memcached_on_fewer_cores_than_the_ladder_has_gets_them_at_once():
    subject = played(profile(), cores=1, can_share=True, sized={"ladder": [Setting(2, 2), Setting(2)]})
    assert settings(subject, 0.05, 1_000) == [Setting(2, 2)]


def test_a_setting_spares_the_jobs_with_fewer_cores_or_more_of_them_shared():
    assert Setting(1).spares(Setting(2, 2))
    assert Setting(2, 2).spares(Setting(2, 1))
    assert not Setting(2, 1).spares(Setting(2, 1))
    assert not Setting(3, 3).spares(Setting(2))


samples = st.tuples(
    st.sampled_from([None, 0.0, 0.02, 0.4, 0.9, 1.5, 2.0, 4.0]),
    st.sampled_from([None, 0.0, 20_000.0, 90_000.0]),
    st.sampled_from([None, 0.2, 0.79, 2.0]),
    st.sampled_from([None, 5.0, 90.0, 400.0]),
    st.sampled_from([0.0, 0.9, 30.0]),
    st.sampled_from([0, 1, 2, 70]),
    st.integers(1, 30),
)


@given(st.lists(samples, max_size=10), st.sampled_from([None, profile(), profile(machine_sd=0.1)]), st.integers(1, 64))
def test_whatever_is_seen_a_setting_of_the_ladder_comes_out(story, known, total):
    ladder = [*(Setting(2, shared) for shared in (2, 1)), *(Setting(cores) for cores in range(2, total + 1))]
    subject = played(known, cores=1, total=total, can_share=True, sized={"ladder": ladder})
    for cpu_cores, qps, latency_ms, wait_us, age_s, threads, ticks in story:
        subject.threads = threads
        signals = {
            "cpu_cores": signal(cpu_cores, age_s),
            "qps": signal(qps, age_s),
            "latency_ms": signal(latency_ms, age_s),
            "wait_us": signal(wait_us, age_s),
        }
        for _ in range(ticks):
            before = subject.policy.sizing._chosen
            subject.tick(0, signals=signals)
            chosen, load_qps = subject.policy.chosen, load_of(subject)
            assert chosen in ladder or chosen in {before, Setting(2)}
            assert subject.policy.sizing.reason()
            if not math.isfinite(load_qps) and not Setting(2).spares(before):
                assert chosen == Setting(2), "nothing known, or nothing left: the last resort at once"


def test_the_first_view_of_all_has_no_cores_and_no_history():
    empty = view(service_cores=frozenset(), sample=service_sample(None, qps=None))
    assert Sizing().choose(empty, WHOLE, Setting(2)) == Setting(2)


def test_a_second_of_figures_in_a_wrong_unit_does_not_keep_the_jobs_waiting_for_ever():
    subject = played(profile(), cores=1)
    assert settings(subject, 6, 25_000, latency_ms=0.3)[-1] == Setting(1)
    wrong = {"cpu_cores": signal(0.0005), "qps": signal(25.0)}
    settings(subject, 0.5, 25_000, signals=wrong)
    assert settings(subject, 0.5, 25_000, signals=wrong, wait_us=500.0)[-1] != Setting(1)
    afterwards = settings(subject, 45, 25_000, latency_ms=0.3)
    assert afterwards[0] != Setting(1)
    assert afterwards[-1] == Setting(1)


def test_a_latency_that_is_fine_for_want_of_requests_is_no_evidence():
    """Under a load that is not believed in, only a latency of enough requests shows that it holds."""
    for samples, holds in ((1, False), (20, True)):
        subject = played(cores=1, sized={"ladder": WHOLE[:1]})
        settings(subject, 10, 34_000, signals={"latency_ms": signal(0.3, samples=samples)})
        known = subject.policy.sizing._known[Setting(1)].load_qps
        assert (known.low > 0.9 * 34_000) is holds
