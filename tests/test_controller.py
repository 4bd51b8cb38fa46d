import json
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.controller import Controller
from colocate.jobs import ENDED, JobEvent, JobEventKind, JobState
from colocate.loop import perform
from colocate.move import MoveError, MoveKind
from colocate.policy import Plan
from colocate.regulator import Limits
from colocate.topology import Topology
from colocate.view import JobSample
from tests.builders import Fixed, Machine, no_deadline, observation, service_sample, spec


def machine(*plans, jobs=("a", "b"), cores=4, **kw):
    controller = Controller(
        [spec(name) for name in jobs], Fixed(*plans), Topology.flat(cores), no_deadline,
        limits=Limits(shrink_every_s=0, strikes=10**6), **kw,
    )  # fmt: skip
    return Machine(controller)


def settle(subject: Machine, ticks: int = 3) -> Machine:
    for _ in range(ticks):
        subject.tick()
    subject.check()
    return subject


def states(subject):
    return {name: job.state for name, job in subject.controller.jobs.items()}


def test_a_run_from_start_to_end_leaves_a_log_in_order():
    subject = settle(machine(Plan(1, {"a": 1, "b": 2})))
    subject.end("a", 0)
    subject.end("b", 0)
    subject.tick()
    assert subject.log == [
        "start memcached [0]", "start a [1]", "start b [2, 3]", "end a []", "end b []",
    ]  # fmt: skip
    assert subject.controller.done


def test_memcached_grows_before_a_job_is_paused_and_shrinks_before_one_is_resumed():
    subject = settle(machine(Plan(1, {"a": 1, "b": 2})))
    subject.controller.regulator.policy.plans = [Plan(3, {"a": 1, "b": 0})]
    kinds = [(m.kind, m.target) for m in subject.tick()]
    assert kinds == [(MoveKind.PIN, "memcached"), (MoveKind.PAUSE, "b")]
    subject.check()
    subject.controller.regulator.policy.plans = [Plan(1, {"a": 1, "b": 2})]
    kinds = [(m.kind, m.target) for m in subject.tick()]
    assert kinds[0] == (MoveKind.PIN, "memcached")
    assert kinds[-1] == (MoveKind.RESUME, "b")
    subject.check()


def test_a_paused_job_may_resume_on_other_cores():
    subject = settle(machine(Plan(1, {"a": 1, "b": 1}), cores=3))
    subject.controller.regulator.policy.plans = [Plan(2, {"a": 1, "b": 0})]
    settle(subject, 1)
    held = subject.jobs["a"]
    subject.end("a", 0)
    subject.controller.regulator.policy.plans = [Plan(2, {"b": 1})]
    settle(subject, 2)
    assert subject.jobs["b"] == held
    assert subject.log[-3:] == ["end a []", f"update_cores b {sorted(held)}", "unpause b []"]


def test_a_failed_job_is_retried_and_then_reported():
    subject = settle(machine(Plan(1, {"a": 1}), jobs=("a",), retries=1))
    subject.end("a", 3)
    settle(subject)
    assert states(subject) == {"a": JobState.RUNNING}
    subject.end("a", 3)
    subject.tick()
    assert states(subject) == {"a": JobState.FAILED}
    assert [line.split()[0] for line in subject.log].count("start") == 2, "memcached's and one of the job"
    assert "end a []" not in subject.log


def test_a_job_that_ends_while_paused_is_closed_in_the_log():
    subject = settle(machine(Plan(1, {"a": 1}), jobs=("a",)))
    subject.controller.regulator.policy.plans = [Plan(4, {"a": 0})]
    subject.tick()
    subject.end("a", 0)
    subject.tick()
    assert subject.log[-3:] == ["pause a []", "unpause a []", "end a []"]


def test_a_vanished_container_is_reported_not_finished():
    subject = settle(machine(Plan(1, {"a": 1}), jobs=("a",)))
    subject.jobs.pop("a")
    subject.tell("a", JobEventKind.GONE)
    subject.tick()
    assert states(subject) == {"a": JobState.STOPPED}
    assert not any(line.startswith("end") for line in subject.log)


def test_no_job_starts_before_memcached_is_pinned():
    subject = machine(Plan(1, {"a": 1}), jobs=("a",))
    dead = service_sample(None, alive=False, qps=None)
    for _ in range(4):
        subject.tick(service=dead)
    assert subject.log[0].startswith("custom memcached")
    assert not any(line.startswith("start") for line in subject.log)
    settle(subject)
    assert [line.split()[1] for line in subject.log if line.startswith("start")] == ["memcached", "a"]


def test_a_container_removed_before_its_start_is_made_again():
    subject = machine(Plan(4, {"a": 0}), jobs=("a",))
    settle(subject)
    subject.tell("a", JobEventKind.GONE)
    kinds = [move.kind for _ in range(4) for move in subject.tick()]
    assert kinds.count(MoveKind.CREATE) == 1
    assert states(subject) == {"a": JobState.WAITING}


def test_a_job_that_cannot_be_created_is_asked_for_again_and_then_given_up():
    subject = machine(Plan(1, {"a": 1}), jobs=("a",), retries=1)
    creations = 0
    for _ in range(8):
        creations += sum(move.kind is MoveKind.CREATE for move in subject.tick())
        subject.events.clear()
        if creations and states(subject)["a"] is JobState.WAITING:
            subject.tell("a", JobEventKind.FAILED, detail="no space")
    assert creations == 2
    assert states(subject) == {"a": JobState.FAILED}


def test_a_job_over_before_its_start_was_seen_is_started_and_ended():
    subject = machine(Plan(1, {"a": 1}), jobs=("a",))
    subject.tick()
    subject.tick()
    subject.events.clear()
    subject.tell("a", JobEventKind.EXITED, code=0)
    subject.tick()
    assert subject.log[1:] == ["start a [1]", "end a []"]


def test_a_foreign_change_is_put_right_and_counted():
    subject = settle(machine(Plan(1, {"a": 1}), jobs=("a",)))
    right = subject.jobs["a"]
    subject.jobs["a"] = frozenset({0, 1, 2, 3})
    subject.tick()
    assert subject.jobs["a"] == right
    assert subject.controller.counts["foreign_changes"] == 1
    subject.paused.add("a")
    subject.tick()
    assert "a" not in subject.paused


@pytest.mark.parametrize("stuck", [frozenset({0, 1}), frozenset({0}), frozenset({0, 2})])
def test_a_job_that_stays_on_memcacheds_cores_although_it_was_moved_is_paused_until_a_move_helps(stuck):
    subject = settle(machine(Plan(1, {"a": 1}), jobs=("a",)))
    for ticks in range(1, 9):
        subject.jobs["a"] = stuck  # whatever the runtime says
        subject.tick()
        assert ("a" in subject.paused) == (ticks >= 3)
    settle(subject, 3)
    assert not subject.jobs["a"] & subject.service
    assert not subject.paused


def test_a_job_that_stays_elsewhere_than_on_memcacheds_cores_goes_on_after_a_pause():
    subject = settle(machine(Plan(1, {"a": 1}), jobs=("a",)))
    for _ in range(5):
        subject.jobs["a"] = frozenset({1, 2})
        subject.tick()
    subject.controller.regulator.policy.plans = [Plan(1, {"a": 0})]
    subject.tick()
    assert subject.paused == {"a"}
    subject.controller.regulator.policy.plans = [Plan(1, {"a": 1})]
    for _ in range(4):
        subject.jobs["a"] = frozenset({1, 2})
        subject.tick()
    assert not subject.paused


def test_a_job_that_was_stuck_and_cannot_be_looked_at_any_more_is_not_paused_for_ever():
    subject = settle(machine(Plan(1, {"a": 1}), jobs=("a",)))
    for _ in range(4):
        subject.jobs["a"] = frozenset({0, 1})
        subject.tick()
    assert subject.paused == {"a"}
    for _ in range(12):
        subject.jobs["a"] = frozenset()  # as one whose files tell nothing
        subject.tick()
    assert not subject.paused


def unplug(subject, *cores):
    """What the kernel does: who has no other core is let onto all that are left."""
    left = subject.controller.managed.cores - set(cores)
    subject.service = subject.service & left or left
    subject.jobs = {name: held & left or left for name, held in subject.jobs.items()}
    return frozenset(cores)


@pytest.mark.parametrize(
    ("gone", "lost"), [({3}, "b"), ({2}, "a"), ({0}, "memcached"), ({0, 3}, "b"), ({1, 2, 3}, "a")]
)
def test_of_what_a_core_that_is_unplugged_leaves_memcached_comes_first_and_nobody_is_beside_it(gone, lost):
    plan = Plan(2, {"a": 1, "b": 1})
    subject = settle(machine(plan))
    assert (subject.service, subject.jobs) == ({0, 1}, {"a": {2}, "b": {3}})
    rest = 4 - len(gone)
    subject.controller.regulator.policy.plans = [Plan(min(2, rest), {"a": int(rest > 2), "b": 0})]
    offline = unplug(subject, *gone)
    subject.tick(offline=offline)
    subject.check()
    assert len(subject.service) == min(2, rest)
    assert not subject.service & offline
    assert "b" in subject.paused
    told = [line for line in subject.log if line.startswith("update_cores")]
    assert any(lost in line for line in told)
    assert all(not offline & set(json.loads(line.split(" ", 2)[2])) for line in told)
    subject.controller.regulator.policy.plans = [plan]
    settle(subject)
    assert (len(subject.service), len(subject.jobs["a"]), len(subject.jobs["b"])) == (2, 1, 1)
    assert not subject.paused
    assert subject.controller.counts["cores_plugged"] == 2


def test_where_every_managed_core_is_unplugged_there_is_nothing_to_plan_anew():
    subject = settle(machine(Plan(2, {"a": 1, "b": 1})))
    assert subject.tick(offline=frozenset(range(4))) == []
    assert subject.controller.topology is subject.controller.managed


def test_memcached_found_on_other_cores_is_pinned_again():
    subject = settle(machine(Plan(1, {"a": 1})))
    everywhere = service_sample(affinity=frozenset({frozenset({0}), frozenset({0, 1, 2, 3})}))
    moves = subject.tick(service=everywhere)
    assert [(m.kind, m.cores) for m in moves] == [(MoveKind.PIN, frozenset({0}))]
    assert subject.log[-1].startswith("custom memcached"), "no update_cores for an unchanged set"


def test_a_restarted_memcached_is_told():
    subject = settle(machine(Plan(1, {"a": 1})))
    assert not any(m.kind is MoveKind.PIN for m in subject.tick(service=service_sample(None, alive=False, qps=None)))
    subject.tick(service=service_sample(pid=77))
    assert subject.controller.counts["service_restarts"] == 1


def test_a_move_that_fails_is_made_again_later():
    subject = settle(machine(Plan(1, {"a": 1}), jobs=("a",)))
    controller = subject.controller
    controller.regulator.policy.plans = [Plan(4, {"a": 0})]
    moves = controller.step(observation(subject.time_s + 1))
    pin, pause = moves
    controller.settle(pin, done=True, now_s=subject.time_s + 1)
    controller.settle(pause, done=False, now_s=subject.time_s + 1, error="frozen solid")
    assert [m.kind for m in controller.step(observation(subject.time_s + 1.5))] == []
    assert [m.kind for m in controller.step(observation(subject.time_s + 4))] == [MoveKind.PAUSE]


def test_a_growth_that_failed_keeps_no_job_from_making_way():
    subject = settle(machine(Plan(1, {"a": 2}), jobs=("a",)))
    controller, now_s = subject.controller, subject.time_s + 1
    controller.regulator.policy.plans = [Plan(1, {"a": 3})]
    (growth,) = controller.step(observation(now_s))
    controller.settle(growth, done=False, now_s=now_s, error="engine: 500")
    controller.regulator.policy.plans = [Plan(4, {"a": 0})]
    assert [move.kind for move in controller.step(observation(now_s + 0.05))] == [MoveKind.PIN, MoveKind.PAUSE]


@pytest.mark.parametrize("wanted", [Plan(3, {"a": 1}), Plan(2, {"a": 2})])
def test_a_job_that_cannot_leave_memcacheds_cores_is_paused_until_it_can(wanted):
    subject = settle(machine(Plan(1, {"a": 3}), jobs=("a",)))
    controller, now_s, stuck = subject.controller, subject.time_s, True
    controller.regulator.policy.plans = [wanted]
    kinds = []
    for tick in range(100):
        stuck = tick < 60
        now_s += 0.05
        for move in controller.step(observation(now_s)):
            if not controller.ready(move, now_s):
                continue
            refused = move.kind is MoveKind.RESIZE and stuck
            controller.settle(move, done=not refused, now_s=now_s, error="the cpuset refuses" if refused else "")
            kinds.append(move.kind)
            if move.kind is MoveKind.RESUME:
                assert not controller.jobs["a"].cores & controller.service_cores
    assert kinds[:3] == [MoveKind.PIN, MoveKind.RESIZE, MoveKind.PAUSE]
    assert kinds[-2:] == [MoveKind.RESIZE, MoveKind.RESUME]
    assert kinds.count(MoveKind.PAUSE) == 1
    assert controller.jobs["a"].state is JobState.RUNNING


def test_a_job_is_narrowed_although_memcached_cannot_be_moved():
    """Some of its threads may have moved, and be where the job is."""
    subject = settle(machine(Plan(1, {"a": 3}), jobs=("a",)))
    controller = subject.controller
    controller.regulator.policy.plans = [Plan(2, {"a": 2})]
    done = []

    def act(move):
        if move.kind is MoveKind.PIN:
            raise MoveError("one thread will not")
        done.append((move.kind, len(move.cores)))
        return True

    host = Mock(now=lambda: subject.time_s + 1, act=act)
    perform(host, controller, Mock(), controller.step(observation(subject.time_s + 1)))
    assert done == [(MoveKind.RESIZE, 2)]


def test_a_move_on_its_way_is_logged_when_it_has_happened():
    subject = settle(machine(Plan(1, {"a": 1}), jobs=("a",)))
    controller = subject.controller
    controller.regulator.policy.plans = [Plan(4, {"a": 0})]
    for move in controller.step(observation(subject.time_s + 1)):
        controller.settle(move, done=move.kind is MoveKind.PIN, now_s=subject.time_s + 1)
    assert [entry.event for entry in controller.entries] == ["update_cores"]
    assert not controller.step(observation(subject.time_s + 2)), "not asked twice"
    subject.time_s += 2
    subject.paused.add("a")
    subject.tell("a", JobEventKind.PAUSED)
    subject.tick(0.1)
    assert subject.log[-1] == "pause a []"


@pytest.mark.parametrize("kind", [JobEventKind.EXITED, JobEventKind.GONE, JobEventKind.STARTED, JobEventKind.FAILED])
def test_news_of_a_job_that_has_ended_or_is_unknown_changes_nothing(kind):
    subject = settle(machine(Plan(1, {"a": 1}), jobs=("a",)))
    subject.end("a", 0)
    subject.tick()
    subject.tell("a", kind, code=1)
    subject.tell("stranger", kind, code=1)
    subject.tick()
    assert states(subject) == {"a": JobState.FINISHED}


names = st.sampled_from("abc")
plans = st.builds(
    Plan,
    st.integers(0, 5),
    st.dictionaries(names, st.integers(0, 4), max_size=3),
    st.frozensets(names),
    threads=st.dictionaries(names, st.integers(1, 4)),
    spread=st.booleans(),
)
happenings = st.sampled_from(["exit0", "exit1", "vanish", "foreign", "nothing", "nothing", "nothing"])


@settings(max_examples=300)
@given(st.lists(st.tuples(plans, happenings, names, st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_whatever_is_planned_and_happens_only_sharers_are_on_memcacheds_cores(story):
    subject = machine(Plan(1), jobs=("a", "b", "c"), retries=1)
    for plan, happening, job, stale, can_share in story:
        subject.controller.regulator.policy.plans = [plan]
        if job in subject.jobs:
            match happening:
                case "exit0" | "exit1":
                    subject.end(job, int(happening[-1]))
                case "vanish":
                    subject.jobs.pop(job)
                    subject.paused.discard(job)
                    subject.tell(job, JobEventKind.GONE)
        subject.tick(service=service_sample(age_s=9.0 if stale else 0.0), can_share=can_share)
        if happening != "foreign":
            subject.check()
    started = {line.split()[1] for line in subject.log if line.startswith("start")}
    ended = [line.split()[1] for line in subject.log if line.startswith("end ")]
    assert len(ended) == len(set(ended)), "no job ends twice"
    assert set(ended) <= started
    assert all(job.state in ENDED for name, job in subject.controller.jobs.items() if name in ended)


def test_cpu_use_of_a_job_comes_from_its_counter():
    subject = settle(machine(Plan(1, {"a": 1}), jobs=("a",)))
    controller = subject.controller
    controller.absorb(observation(10.0, jobs={"a": JobSample(cpu_s=2.0)}))
    controller.absorb(observation(12.0, jobs={"a": JobSample(cpu_s=3.0)}))
    assert controller.view().jobs["a"].cpu_cores == pytest.approx(0.5)


def test_an_old_view_does_not_change_when_time_goes_on():
    subject = settle(machine(Plan(1, {"a": 1, "b": 0})))
    old = subject.controller.view()

    def picture():
        windows = [old.window(name, 60) for name in ("cpu_cores", "wait_us", "qps")]
        return repr((old.time_s, old.service, old.jobs, list(old.series), windows))

    before = picture()
    subject.controller.regulator.policy.plans = [Plan(2, {"a": 0, "b": 1})]
    subject.tick(service=service_sample(0.9, latency_ms=0.5))
    subject.tick()
    subject.end("b", 0)
    settle(subject, 2)
    assert picture() == before
    assert subject.controller.view().jobs != old.jobs


def test_every_view_shows_the_job_as_it_is_at_that_instant():
    subject = machine(Plan(1, {"a": 1}), jobs=("a",), retries=1)
    shown = []

    def tick():
        subject.tick()
        job = subject.controller.view().jobs["a"]
        shown.append((str(job.state), len(job.cores), job.run_s, job.failures))

    for _ in range(4):  # created, told to start, seen to run one second later
        tick()
    for plan in (Plan(4, {"a": 0}), Plan(4, {"a": 0}), Plan(1, {"a": 2})):
        subject.controller.regulator.policy.plans = [plan]
        tick()
    subject.end("a", 1)
    tick()
    assert shown == [
        ("waiting", 0, 0.0, 0),
        ("starting", 1, 0.0, 0),
        ("running", 1, 1.0, 0),
        ("running", 1, 2.0, 0),
        ("paused", 0, 3.0, 0),
        ("paused", 0, 3.0, 0),
        ("running", 2, 3.0, 0),
        ("starting", 2, 3.0, 1),
    ]


def test_run_time_leaves_pauses_out():
    subject = settle(machine(Plan(1, {"a": 1}), jobs=("a",)), 2)
    subject.tick()  # STARTED at 2 s, seen now at 3 s
    subject.controller.regulator.policy.plans = [Plan(4, {"a": 0})]
    subject.tick()
    for _ in range(5):
        subject.tick()
    assert subject.controller.view().jobs["a"].run_s == pytest.approx(2.0)


def sharing(*plans, **kw):
    subject = machine(*plans, **kw)
    for _ in range(3):
        subject.tick(can_share=True)
    subject.check()
    return subject


def replan(subject, plan, *, can_share=True):
    subject.controller.regulator.policy.plans = [plan]
    moves = subject.tick(can_share=can_share)
    subject.check()
    return [(str(move.kind), move.target, sorted(move.cores)) for move in moves]


def test_a_sharer_runs_on_memcacheds_cores_and_on_its_own():
    subject = sharing(Plan(2, {"a": 1}, frozenset("ab"), threads={"a": 2, "b": 1}))
    assert subject.service == {0, 1}
    assert subject.jobs == {"a": {0, 2}, "b": {1}}
    assert subject.log == ["start memcached [0, 1]", "start a [0, 2]", "start b [1]"]


def test_who_may_not_share_any_more_leaves_memcacheds_cores_or_stands_still():
    subject = sharing(Plan(2, {"a": 1}, frozenset("ab"), threads={"a": 2}))
    assert replan(subject, Plan(2, {"a": 1, "b": 0})) == [("resize", "a", [2]), ("pause", "b", [])]
    again = replan(subject, Plan(2, {"a": 1, "b": 0}, frozenset("b")))
    assert again == [("resize", "b", [0, 1]), ("resume", "b", [])], "nobody else shares now"
    assert replan(subject, Plan(2, {"a": 1, "b": 0}, frozenset("b")), can_share=False) == [("pause", "b", [])]
    assert subject.controller.counts["unshared"] == 1


def test_what_memcached_leaves_to_one_its_sharers_leave_first():
    subject = sharing(Plan(2, {"a": 0, "b": 1}, frozenset("a"), threads={"a": 2}))
    assert subject.jobs == {"a": {0, 1}, "b": {2}}
    moves = replan(subject, Plan(1, {"a": 0, "b": 3}, frozenset("a")))
    assert moves == [("pin", "memcached", [0]), ("resize", "a", [0]), ("resize", "b", [1, 2, 3])]


def test_a_paused_job_whose_cores_are_gone_resumes_on_those_that_there_are():
    subject = sharing(Plan(1, {"a": 1, "b": 2}))
    replan(subject, Plan(3, {"a": 0, "b": 1}))
    assert subject.paused == {"a"}
    moves = replan(subject, Plan(4, {"a": 0, "b": 0}, frozenset("a")))
    assert moves[-1] == ("resume", "a", [])
    assert subject.jobs["a"] <= subject.service
    assert "b" in subject.paused


@pytest.mark.parametrize("cores", [1, 64])
def test_sharing_works_on_the_smallest_and_on_a_big_machine(cores):
    subject = sharing(Plan(cores, {}, frozenset("ab"), threads={"a": 3}), cores=cores)
    assert set(subject.jobs) == {"a", "b"}
    assert all(held <= subject.service for held in subject.jobs.values())


def test_thread_counts_come_from_the_plan_until_a_job_is_made_and_again_when_it_is_made_anew():
    subject = machine(Plan(1, {"a": 1}, threads={"a": 3}), jobs=("a", "b"))
    made = {move.target: move.threads for move in subject.tick() if move.kind is MoveKind.CREATE}
    assert made == {"a": 3, "b": 1}, "who is not named has its catalogue's"
    subject.controller.regulator.policy.plans = [Plan(1, {"a": 1}, threads={"a": 2})]
    settle(subject)
    assert subject.controller.view().jobs["a"].threads == 3
    subject.end("a", 1)
    moves = [move for _ in range(3) for move in subject.tick()]
    assert all(move.threads == 3 for move in moves if move.kind is MoveKind.START)


def test_the_cpu_of_a_try_that_failed_is_no_work_done():
    subject = settle(machine(Plan(1, {"a": 1}), jobs=("a",), retries=1))
    subject.controller.absorb(observation(subject.time_s, jobs={"a": JobSample(cpu_s=50.0)}))
    assert subject.controller.view().jobs["a"].cpu_s == 50.0
    subject.end("a", 1)
    subject.tick()
    job = subject.controller.view().jobs["a"]
    assert (job.failures, job.cpu_s, job.cpu_cores) == (1, None, None)
    subject.controller.absorb(observation(subject.time_s + 1, jobs={"a": JobSample(cpu_s=0.5)}))
    assert subject.controller.view().jobs["a"].cpu_s == 0.5


def resuming(**outcome):
    """A paused job is to go on elsewhere, and what became of moving it there; the controller and the resumption."""
    subject = settle(machine(Plan(1, {"a": 1, "b": 1}), jobs=("a", "b"), cores=3))
    controller = subject.controller
    controller.regulator.policy.plans = [Plan(2, {"a": 1, "b": 0})]
    settle(subject, 1)
    subject.end("a", 0)
    controller.regulator.policy.plans = [Plan(2, {"b": 1})]
    subject.time_s += 1
    resize, resume = controller.step(observation(subject.time_s, 3, events=tuple(subject.events)))
    controller.settle(resize, now_s=subject.time_s, **outcome)
    return subject, resume


@pytest.mark.parametrize("outcome", [{"done": False, "error": "no"}, {"done": False}])
def test_a_job_that_could_not_be_moved_yet_does_not_go_on_beside_memcached(outcome):
    subject, resume = resuming(**outcome)
    assert not subject.controller.ready(resume, subject.time_s)
    moves = subject.controller.step(observation(subject.time_s + 0.1, 3))
    assert not [move for move in moves if move.kind is MoveKind.RESUME]


def test_a_job_that_has_been_moved_goes_on():
    subject, resume = resuming(done=True)
    assert subject.controller.ready(resume, subject.time_s)


def test_a_job_is_paused_in_the_log_even_if_its_start_was_not_yet_told_then():
    subject = machine(Plan(1, {"a": 1}), jobs=("a",))
    subject.tick()
    subject.tick()
    started, subject.events = subject.events, []
    subject.controller.regulator.policy.plans = [Plan(4, {"a": 0})]
    subject.tick()
    subject.events = started
    subject.tick()
    assert subject.log[-2:] == ["start a [1]", "pause a []"]
    assert states(subject)["a"] is JobState.PAUSED


def test_what_is_told_late_is_no_news():
    subject = settle(machine(Plan(1, {"a": 1}), jobs=("a",)))
    for jobs in ({"a": 0}, {"a": 1}):
        subject.controller.regulator.policy.plans = [Plan(1, jobs)]
        subject.tick()
    before = list(subject.log)
    subject.events.append(JobEvent("a", JobEventKind.PAUSED, subject.time_s - 0.5))
    subject.tick()
    assert (states(subject)["a"], subject.log) == (JobState.RUNNING, before)


def test_an_end_told_twice_is_one_failure_and_one_of_the_try_before_is_none():
    subject = settle(machine(Plan(1, {"a": 1}), jobs=("a",), retries=1))
    subject.end("a", 1)
    subject.events *= 2
    (again, _) = subject.events
    subject.tick()
    settle(subject, 2)
    subject.events.append(again)
    subject.tick()
    assert (states(subject)["a"], subject.controller.jobs["a"].failures) == (JobState.RUNNING, 1)


def test_what_cannot_have_been_measured_is_counted_and_never_seen_by_the_policy():
    subject = settle(machine(Plan(1, {"a": 1})))
    subject.tick(service=service_sample(float("nan"), qps=-1.0))
    service = subject.controller.decision.view.service
    assert (service.cpu_cores.value, service.qps.value) == (None, None)
    assert subject.controller.counts["bad_signals"] == 2
