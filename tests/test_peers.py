"""The policies of others: each rule at its written thresholds, and a simulated run of each."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from colocate.jobs import ENDED, JobState, load_catalogue
from colocate.packing import in_order
from colocate.placement import Assignment, place
from colocate.policy import load_policy, policy_names
from colocate.sim.calibration import load_calibration
from colocate.sim.run import Setup, simulate
from colocate.sim.traces import Trace
from colocate.view import CoreUse, History, LoadPoint, Profile
from tests.builders import job_view, service_sample, view

PEERS = ["core-ladder", "steady-lend", "qps-cut", "pause-at-40", "heracles", "parties", "be-controller"]


@dataclass
class Play:
    """A policy on a machine that does at once what is planned; jobs end when the test says so."""

    policy: object
    names: tuple[str, ...]
    total: int = 4
    profile: Profile | None = None
    time_s: float = 0.0
    service: frozenset[int] = frozenset()
    cores: dict[str, frozenset[int]] = field(default_factory=dict)
    states: dict[str, JobState] = field(default_factory=dict)
    history: History = field(default_factory=History)
    plan: object = None

    def tick(self, step_s=0.05, *, cpu_cores=0.2, qps=1000.0, latency_ms=None, busy=0.0):
        self.time_s = round(self.time_s + step_s, 6)
        for name, value in (("cpu_cores", cpu_cores), ("qps", qps), ("latency_ms", latency_ms)):
            self.history.add(name, self.time_s, value)
        jobs = {}
        for name in self.names:
            state = self.states.get(name, JobState.WAITING)
            held = self.cores.get(name, frozenset()) if state is JobState.RUNNING else frozenset()
            jobs[name] = job_view(name, state, held, threads=self.plan.threads.get(name, 1) if self.plan else 1)
        seen = view(
            time_s=self.time_s,
            total=self.total,
            service_cores=self.service,
            sample=service_sample(cpu_cores, qps=qps, latency_ms=latency_ms),
            jobs=jobs,
            series=self.history.series(),
        )
        seen = replace(seen, cores={core: CoreUse(busy, 0.0, 0.0) for core in range(self.total)}, profile=self.profile)
        self.plan = self.policy.decide(seen)
        alive = {n: count for n, count in self.plan.jobs.items() if self.states.get(n) not in ENDED}
        placed = place(self.plan.service, alive, Assignment(self.service, self.cores), seen.topology)
        self.service = placed.service
        for name in alive:
            if name in placed.jobs:
                self.cores[name], self.states[name] = placed.jobs[name], JobState.RUNNING
            elif name in self.states:
                self.states[name] = JobState.PAUSED
        return self.plan

    def hold(self, seconds, **seen):
        """Ticks of 50 ms with the same figures."""
        for _ in range(round(seconds / 0.05)):
            self.tick(**seen)
        return self.plan

    def read(self, **seen):
        """Ticks until the policy has taken a reading."""
        while not self.tick(**seen).reason.startswith("uses"):
            pass

    def end(self, name):
        self.states[name] = JobState.FINISHED

    def running(self):
        """Where each job runs."""
        return {n: sorted(self.cores[n]) for n, state in self.states.items() if state is JobState.RUNNING}


LADDER = ("radix", "freqmine", "canneal", "barnes", "vips", "blackscholes", "streamcluster")
OLD = ("radix", "canneal", "blackscholes", "dedup", "freqmine", "ferret", "vips")


def ladder(*settings, names=LADDER):
    return Play(load_policy("core-ladder", settings), names)


def at_one(play):
    play.tick()
    play.hold(0.5)
    assert len(play.service) == 1
    play.hold(3.0)
    return play


def test_they_are_registered():
    assert set(PEERS) <= set(policy_names())


def test_jobs_in_an_order_by_name():
    jobs = [job_view("a"), job_view("b"), job_view("c", JobState.FINISHED), job_view("d")]
    assert [job.name for job in in_order(jobs, "d c e b")] == ["d", "b", "a"]


def test_ladder_starts_at_the_top_and_fills_in_its_order():
    play = ladder()
    plan = play.tick()
    assert plan.service == 3
    assert play.running() == {"freqmine": [3]}
    assert plan.threads == {**dict.fromkeys(LADDER, 1), "streamcluster": 3}
    play.hold(0.45)
    assert len(play.service) == 3, "half a second is one reading"
    play.tick()
    assert len(play.service) == 1, "125 % and more are needed for two"
    assert set(play.running()) == {"freqmine", "canneal", "barnes"}


@pytest.mark.parametrize(("used_pct", "cores"), [(79, 1), (81, 2)])
def test_ladder_from_one(used_pct, cores):
    play = at_one(ladder())
    play.hold(1.0, cpu_cores=used_pct / 100)
    assert len(play.service) == cores


@pytest.mark.parametrize(("used_pct", "cores"), [(94, 1), (96, 2), (159, 2), (161, 3)])
def test_ladder_from_two(used_pct, cores):
    play = at_one(ladder())
    play.hold(1.0, cpu_cores=0.9)
    play.hold(3.0, cpu_cores=1.2)
    play.read(cpu_cores=1.2)
    assert len(play.service) == 2
    play.hold(1.0, cpu_cores=used_pct / 100)
    assert len(play.service) == cores


@pytest.mark.parametrize(("used_pct", "cores"), [(124, 1), (126, 2), (169, 2), (171, 3)])
def test_ladder_from_three(used_pct, cores):
    play = at_one(ladder())
    play.hold(5.0, cpu_cores=2.0)
    play.read(cpu_cores=2.0)
    assert len(play.service) == 3
    play.hold(1.0, cpu_cores=used_pct / 100)
    assert len(play.service) == cores


def test_ladder_closes_the_opposite_direction_for_three_readings():
    play = at_one(ladder())
    while len(play.service) == 1:
        play.tick(cpu_cores=0.9)
    moved_s = play.time_s
    while len(play.service) == 2:
        play.tick(cpu_cores=0.1)
    assert play.time_s - moved_s == pytest.approx(0.25 + 4 * 0.5), "one thrown away, three closed, the fourth acts"
    moved_s = play.time_s
    while len(play.service) == 1:
        play.tick(cpu_cores=0.9)
    assert play.time_s - moved_s == pytest.approx(2.25)
    moved_s = play.time_s
    while len(play.service) == 2:
        play.tick(cpu_cores=1.9)
    assert play.time_s - moved_s == pytest.approx(0.75), "the same direction is open"


def test_ladder_pauses_who_stands_there_and_never_moves_it():
    play = at_one(ladder())
    (on_one,) = (name for name, cores in play.running().items() if cores == [1])
    others = {name: cores for name, cores in play.running().items() if name != on_one}
    play.hold(1.0, cpu_cores=1.2)
    assert play.running() == others
    assert play.states[on_one] is JobState.PAUSED
    ended = next(iter(others))
    play.end(ended)
    play.hold(0.1, cpu_cores=1.2)
    assert play.states[on_one] is JobState.PAUSED, "another core came free, and took the next of the queue"
    assert play.running()["vips"] == others[ended]
    play.hold(3.0, cpu_cores=0.5)
    assert play.running()[on_one] == [1]


def test_ladder_leaves_a_core_idle_while_the_last_job_is_paused():
    play = Play(load_policy("core-ladder"), ("freqmine", "canneal", "barnes"))
    at_one(play)
    play.hold(1.0, cpu_cores=1.2)
    (paused,) = (name for name, state in play.states.items() if state is JobState.PAUSED)
    for name in set(play.running()):
        play.end(name)
        play.hold(0.5, cpu_cores=1.2)
    assert play.states[paused] is JobState.PAUSED


def test_ladder_widens_and_narrows_the_wide_one():
    play = at_one(Play(load_policy("core-ladder"), ("freqmine", "canneal", "streamcluster")))
    for name in ("freqmine", "canneal"):
        play.end(name)
        play.hold(0.1)
    assert play.running() == {"streamcluster": [1, 2, 3]}
    play.hold(1.0, cpu_cores=0.9)
    assert play.running() == {"streamcluster": [2, 3]}
    play.hold(1.0, cpu_cores=1.9)
    assert play.running() == {"streamcluster": [3]}
    play.hold(4.0, cpu_cores=0.3)
    assert play.running() == {"streamcluster": [1, 2, 3]}


def test_ladder_reads_nothing_while_a_job_starts():
    play = at_one(ladder())
    policy = play.policy
    seen = view(time_s=play.time_s + 1.0, service_cores=play.service, sample=service_sample(1.2),
                jobs={"freqmine": job_view("freqmine", JobState.STARTING, frozenset({2}))})  # fmt: skip
    assert policy.decide(seen).service == 1
    running = {"freqmine": job_view("freqmine", JobState.RUNNING, frozenset({2}))}
    assert policy.decide(replace(seen, time_s=play.time_s + 1.05, jobs=running)).service == 2


def test_cut_has_one_threshold():
    play = Play(load_policy("qps-cut"), OLD)
    assert play.tick(qps=100_000).service == 1
    assert play.tick(qps=100_001).service == 2
    assert play.tick(qps=100_000).service == 1
    assert play.tick(qps=None).service == 2, "nothing known"
    assert Play(load_policy("qps-cut", ["cut_qps=110000"]), OLD).tick(qps=109_000).service == 1


def test_cut_runs_narrow_jobs_first_and_then_one_wide_one_that_takes_every_core():
    play = Play(load_policy("qps-cut"), OLD)
    plan = play.tick()
    assert set(play.running()) == {"radix", "canneal", "blackscholes"}
    assert plan.threads == {name: 3 if name in {"freqmine", "ferret", "vips"} else 1 for name in OLD}
    play.end("canneal")
    play.tick()
    assert "dedup" in play.running()
    play.end("blackscholes")
    play.tick()
    assert len(play.running()["freqmine"]) == 1
    play.end("radix")
    play.tick()
    assert len(play.running()["freqmine"]) == 2
    play.end("dedup")
    play.tick()
    assert play.running() == {"freqmine": [1, 2, 3]}
    play.tick(qps=150_000)
    assert play.running() == {"freqmine": [2, 3]}
    play.end("freqmine")
    play.tick(qps=150_000)
    assert play.running() == {"ferret": [2, 3]}


def test_cut_pauses_who_has_only_that_core_and_resumes_it_elsewhere():
    play = Play(load_policy("qps-cut"), OLD)
    play.tick()
    (on_one,) = (name for name, cores in play.running().items() if cores == [1])
    play.tick(qps=150_000)
    assert play.states[on_one] is JobState.PAUSED
    assert len(play.running()) == 2
    gone, cores = next(iter(play.running().items()))
    play.end(gone)
    play.tick(qps=150_000)
    assert play.running()[on_one] == cores


def lend(**settings):
    return Play(load_policy("steady-lend", [f"{k}={v}" for k, v in settings.items()]), OLD)


@pytest.mark.parametrize(
    ("qps", "busy", "cores"), [(28_900, 0.44, 1), (29_100, 0.44, 2), (28_900, 0.46, 2), (5_000, 0.0, 1)]
)
def test_lend_when_low_and_not_busy(qps, busy, cores):
    play = lend()
    assert play.tick(qps=qps, busy=busy).service == 2, "nothing is known of the two cores yet"
    assert play.hold(2.0, qps=qps, busy=busy).service == cores


def test_lend_only_while_steady():
    play = lend()
    play.hold(3.0, qps=5_000)
    play.tick(qps=20_000)
    assert play.hold(0.2, qps=20_000).service == 2, "it rises"
    assert play.hold(1.0, qps=20_000).service == 1, "it is steady again"
    assert play.hold(0.3, qps=3_000).service == 2, "it falls"
    assert play.hold(1.0, qps=3_000).service == 1


def test_lend_looks_at_the_two_cores_in_whole_seconds():
    play = lend()
    play.hold(3.0, qps=5_000)
    assert "radix" in play.running()
    changed = []
    for _ in range(100):
        before = play.plan.service
        if play.tick(qps=5_000, busy=0.55 if before == 1 else 0.05).service != before:
            changed.append(play.time_s)
    spans = [b - a for a, b in pairwise(changed)]
    assert len(spans) >= 2
    assert all(0.9 < span < 2.2 for span in spans), "the guest's own work sends it away, and it comes back"


def test_lend_deals_the_other_cores_in_order():
    play = lend()
    plan = play.tick()
    assert play.running() == {"ferret": [2], "dedup": [3]}
    assert plan.threads == {name: 2 if name == "freqmine" else 1 for name in OLD}
    for ended, started in (("dedup", "vips"), ("vips", "blackscholes"), ("blackscholes", "canneal")):
        play.end(ended)
        play.tick()
        assert play.running() == {"ferret": [2], started: [3]}
    play.end("ferret")
    play.tick()
    assert play.running() == {"freqmine": [2], "canneal": [3]}
    play.end("canneal")
    play.tick()
    assert play.running() == {"freqmine": [2], "radix": [3]}, "what is left of the guest"
    play.end("radix")
    assert play.hold(3.0).service == 2, "nobody to lend to"
    assert play.running() == {"freqmine": [2, 3]}


def test_pause_at_40():
    play = Play(load_policy("pause-at-40"), OLD)
    assert play.hold(1.0, cpu_cores=0.41).service == 2
    assert play.running() == {"ferret": [2, 3]}
    assert play.hold(1.0, cpu_cores=0.39).service == 1
    assert play.running() == {"ferret": [2, 3], "dedup": [1]}
    play.hold(1.0, cpu_cores=0.41)
    assert play.states["dedup"] is JobState.PAUSED
    play.hold(1.0, cpu_cores=0.3)
    play.end("dedup")
    play.hold(0.1, cpu_cores=0.3)
    assert play.running() == {"ferret": [2, 3], "radix": [1]}
    assert play.plan.threads["radix"] == 1
    assert play.plan.threads["ferret"] == 2


def heracles(*settings, peak=100_000.0):
    curves = {n: (LoadPoint(0.0, 0.2, 5.0), LoadPoint(n * peak / 2, 0.8, 50.0)) for n in (1, 2)}
    profile = Profile(curves, 10.0)
    return Play(load_policy("heracles", settings), OLD, profile=profile)


def test_heracles_grows_a_core_each_two_seconds_while_there_is_slack():
    play = heracles()
    assert play.hold(14.0, latency_ms=0.3).service == 4, "off until the first look"
    play.hold(1.5, latency_ms=0.3)
    assert play.plan.service == 3
    play.hold(2.0, latency_ms=0.3)
    assert play.plan.service == 2
    assert play.hold(10.0, latency_ms=0.3).service == 1


@pytest.mark.parametrize(("slack", "service"), [(0.11, 1), (0.09, 1), (0.04, 2)])
def test_heracles_shrinks_to_two_cores_below_five_per_cent(slack, service):
    play = heracles()
    play.hold(30.0, latency_ms=0.3)
    assert play.plan.service == 1
    assert play.hold(30.0, latency_ms=0.8 * (1 - slack)).service == service


def test_heracles_does_not_grow_below_ten_per_cent():
    play = heracles()
    play.hold(25.0, latency_ms=0.8 * 0.91)
    assert play.plan.service == 3


def test_heracles_is_off_for_five_minutes_after_a_violation():
    play = heracles()
    play.hold(30.0, latency_ms=0.3)
    assert play.hold(30.0, latency_ms=0.9).service == 4
    assert play.hold(280.0, latency_ms=0.3).service == 4
    assert play.hold(40.0, latency_ms=0.3).service < 4


def test_heracles_has_two_thresholds_for_the_load():
    play = heracles()
    play.hold(30.0, latency_ms=0.3, qps=84_000)
    assert play.plan.service == 4, "above 0.80 it does not come on"
    play.hold(30.0, latency_ms=0.3, qps=79_000)
    assert play.plan.service < 4
    play.hold(30.0, latency_ms=0.3, qps=84_000)
    assert play.plan.service < 4, "below 0.85 it does not go off"
    play.hold(30.0, latency_ms=0.3, qps=86_000)
    assert play.plan.service == 4
    assert heracles("peak_qps=1000000").hold(40.0, latency_ms=0.3, qps=86_000).service < 4


def test_parties_steps_each_half_second():
    play = Play(load_policy("parties"), OLD)
    assert play.tick(latency_ms=0.65).service == 2, "half of the cores; less than 20 % of slack is none"
    assert play.hold(0.5, latency_ms=0.63).service == 1
    assert play.hold(6.0, latency_ms=0.7).service == 1
    assert play.hold(0.5, latency_ms=0.81).service == 2
    assert play.hold(0.5, latency_ms=0.81).service == 3
    assert play.hold(2.0, latency_ms=0.81).service == 3, "one core is the jobs'"


def test_parties_reverts_a_step_that_broke_the_target():
    play = Play(load_policy("parties"), OLD)
    play.tick(latency_ms=0.3)
    assert play.plan.service == 1
    play.hold(0.5, latency_ms=0.9)
    assert play.plan.service == 2
    assert play.hold(29.0, latency_ms=0.3).service == 2
    assert play.hold(2.0, latency_ms=0.3).service == 1


def quota(play):
    return float(play.plan.reason.removeprefix("quota ").removesuffix("%"))


def looks(play, count, **seen):
    """So many looks of the be-controller, each at these figures alone."""
    for _ in range(count):
        play.tick(2.1, **seen)
    return play.plan


def test_be_controller_grows_with_the_slack_and_shrinks_faster():
    play = Play(load_policy("be-controller"), OLD)
    looks(play, 1, latency_ms=0.4)
    assert quota(play) == 6, "5 % times 1.25"
    assert looks(play, 30, latency_ms=0.4).service == 1
    assert quota(play) == 95
    looks(play, 1, latency_ms=0.8 * 0.9)
    assert quota(play) == round(95 * (1 + 3 * (0.1 - 0.2)))
    looks(play, 3, latency_ms=0.8 * 0.75)
    assert quota(play) == 66, "between the two thresholds nothing changes"


def test_be_controller_reads_the_machine_too():
    play = Play(load_policy("be-controller"), OLD)
    looks(play, 30, latency_ms=0.4)
    looks(play, 3, latency_ms=0.4, busy=0.79)
    assert quota(play) == 95
    looks(play, 1, latency_ms=0.4, busy=0.9)
    assert quota(play) == round(95 * (1 + 3 * (0.8 - 0.9)))
    looks(play, 3, latency_ms=0.4, busy=0.61)
    assert quota(play) == 66, "it grows below 60 % only"
    looks(play, 1, latency_ms=0.4, busy=0.59)
    assert quota(play) > 66


def test_be_controller_resets_and_switches_off():
    play = Play(load_policy("be-controller"), OLD)
    looks(play, 30, latency_ms=0.4)
    looks(play, 1, latency_ms=0.8 * 1.2)
    assert quota(play) == 5
    assert looks(play, 1, latency_ms=0.8 * 1.6).service == 4
    assert "off" in play.plan.reason
    assert looks(play, 30, latency_ms=0.4).service == 1


def test_be_controller_shrinks_without_a_latency():
    play = Play(load_policy("be-controller"), OLD)
    assert looks(play, 30).service == 4
    assert quota(play) == 5


@pytest.mark.parametrize("name", [*PEERS, "static"])
@pytest.mark.parametrize("total", [1, 2, 3, 4, 64])
def test_no_plan_shares_and_every_plan_fits(name, total):
    play = Play(load_policy(name), OLD, total)
    for step, load in enumerate((0.1, 0.3, 0.9, 1.8, 0.1, 0.1, 0.2)):
        for _ in range(40):
            plan = play.tick(cpu_cores=load, qps=load * 1e5, latency_ms=0.3 + 0.3 * load, busy=0.2)
            assert plan.service >= 1
            assert plan.service + sum(plan.jobs.values()) <= total
            assert not plan.share
        if step == 3 and "dedup" in play.running():
            play.end("dedup")


@pytest.mark.parametrize("name", PEERS)
def test_a_simulated_run_ends_with_all_jobs_done(name, tmp_path):
    calibration = load_calibration("cca-2025")
    wanted = {"radix", "dedup", "vips", "ferret"}
    jobs = tuple(job for job in load_catalogue("cca-2023") if job.name in wanted)
    loads = (20e3, 120e3, 60e3, 170e3, 8e3, 95e3)
    trace = Trace(tuple(10.0 * i for i in range(180)), tuple(loads[i % 6] for i in range(180)), 10.0, 1810.0)
    setup = Setup(calibration, jobs, trace, calibration.scenario.slo, calibration.topology, 2, duration_s=1800.0)
    settings = ["cooldown_s=20"] if name == "heracles" else []
    run = simulate(setup, load_policy(name, settings), tmp_path)
    assert {job.state for job in run.controller.jobs.values()} == {JobState.FINISHED}
    assert not run.controller.regulator.counts.keys() & {"impossible", "strike"}
