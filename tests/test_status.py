"""What a run tells of itself through the control socket: the documents `status` and `figures`."""

import json

import pytest

from colocate.controller import Controller
from colocate.jobs import JobEventKind, JobState
from colocate.policy import Choice, Plan
from colocate.regulator import Limits
from colocate.status import Watch, progress
from colocate.topology import Topology
from colocate.view import JobSample
from tests.builders import Fixed, Machine, job_view, no_deadline, observation, service_sample, spec, view


def watched(*plans, ticks=3, specs=None, shadow=None, **limits):
    """A machine of four cores with the jobs `a` and `b`, ticking once a second, and its watch."""
    controller = Controller(
        specs or [spec("a", runtime_s={1: 100.0}), spec("b")], Fixed(*plans), Topology.flat(4), no_deadline,
        limits=Limits(shrink_every_s=0, **limits), label="first", shadow=shadow,
    )  # fmt: skip
    subject = Machine(controller)
    watch = Watch(controller, {"run": "cafe", "log": "/logs/log.txt", "since": "2026-11-25T12:00:00"})
    for _ in range(ticks):
        tick(subject, watch)
    return subject, watch


def tick(subject, watch, **seen):
    moves = subject.tick(**seen)
    watch.show(subject.controller)
    return moves


def work(subject, watch, name, cpu_s, **seen):
    """A tick in which the kernel tells how much CPU a job has used."""
    subject.time_s += 1.0
    told = {name: JobSample(subject.jobs[name], paused=False, cpu_s=cpu_s)}
    subject.controller.step(observation(subject.time_s, jobs=told, **seen))
    watch.show(subject.controller)


def test_before_the_first_decision_there_are_the_facts_only():
    _, watch = watched(Plan(1), ticks=0)
    told = watch.status()
    assert (told["state"], told["run"], told["log"], told["policy"]) == ("starting", "cafe", "/logs/log.txt", "first")
    assert (told["slo_ms"], told["percentile"], told["strikes"]) == (0.8, 95.0, 0)
    assert "cores" not in told
    assert watch.figures()["signal_ages_s"] == {}


def test_it_tells_who_holds_each_core_and_how_busy_it_is():
    subject, watch = watched(Plan(1, {"a": 1, "b": 2}))
    cores = watch.status()["cores"]
    assert list(cores) == ["0", "1", "2", "3"]
    found = {
        name: frozenset(int(core) for core, told in cores.items() if name in told["holders"])
        for name in ("memcached", "a", "b")
    }
    assert found == {"memcached": subject.service, **subject.jobs}
    assert {told["busy"] for told in cores.values()} == {0.1}


def test_a_shared_core_has_both_memcached_first():
    subject, watch = watched(Plan(4, share=frozenset({"a"})), ticks=0)
    for _ in range(3):
        tick(subject, watch, can_share=True)
    told = watch.status()
    assert told["can_share"] is True
    assert subject.jobs["a"]
    for core in subject.jobs["a"]:
        assert told["cores"][str(core)]["holders"] == ["memcached", "a"]


def test_it_tells_of_memcached_what_was_seen_last():
    subject, watch = watched(Plan(1))
    tick(subject, watch, service=service_sample(0.5, latency_ms=0.9, qps=2000.0, pid=7))
    told = watch.status()["service"]
    assert (told["pid"], told["alive"], told["cores"], told["threads"]) == (7, True, sorted(subject.service), 2)
    assert (told["cpu_cores"], told["qps"], told["p95_ms"], told["p95_samples"]) == (0.5, 2000.0, 0.9, 100)
    assert told["latency_source"] == "probe"


def test_the_history_has_the_last_value_of_each_second_and_gaps_where_there_was_none():
    subject, watch = watched(Plan(1), ticks=0)
    for latency_ms in (0.1, None, 0.3):
        tick(subject, watch, service=service_sample(latency_ms=latency_ms, qps=1000.0))
    tick(subject, watch, step_s=0.2, service=service_sample(latency_ms=0.4, qps=None))
    history = watch.status()["history"]
    assert history["latency_ms"] == [0.1, None, 0.4]
    assert history["qps"] == [1000.0, 1000.0, 1000.0]
    for _ in range(100):
        tick(subject, watch)
    assert len(watch.status()["history"]["qps"]) == 60


def test_the_last_moves_have_their_reasons_and_what_was_before():
    subject, watch = watched(Plan(1, {"a": 1}), Plan(1, {"a": 1}), Plan(1, {"a": 3}, reason="quiet"))
    moves = watch.status()["moves"]
    assert "create" not in {move["kind"] for move in moves}
    assert (moves[0]["kind"], moves[0]["target"], moves[0]["t"], moves[0]["before"]) == ("pin", "memcached", 0.0, [])
    assert moves[-1]["kind"] == "resize"
    assert (moves[-1]["target"], moves[-1]["reason"], moves[-1]["t"]) == ("a", "quiet", 2.0)
    assert len(moves[-1]["before"]) == 1
    assert moves[-1]["cores"] == sorted(subject.jobs["a"])


def test_old_moves_are_forgotten():
    subject, watch = watched(*[Plan(1, {"a": 1 + i % 2}) for i in range(200)])
    for _ in range(190):
        tick(subject, watch)
    moves = watch.status()["moves"]
    assert len(moves) == 50
    assert moves[-1]["t"] > moves[0]["t"] > 50


def test_the_safe_policy_is_told_with_its_strikes():
    _, watch = watched(RuntimeError("bug"), strikes=3)
    told = watch.status()
    assert (told["state"], told["policy"], told["strikes"]) == ("safe", "safe", 3)


def test_the_time_left_is_told_from_what_a_job_got_in_ten_seconds():
    subject, watch = watched(Plan(1, {"a": 2}))
    for second in range(30):
        work(subject, watch, "a", 0.5 * second if second < 15 else 7.0 + 2.0 * (second - 14))
    job = watch.status()["jobs"]["a"]
    assert job["state"] == "running"
    assert job["progress"] == pytest.approx(0.37)
    assert job["eta_s"] == pytest.approx(63.0 / 2.0)
    unknown = watch.status()["jobs"]["b"]
    assert (unknown["progress"], unknown["eta_s"]) == (None, None)  # nobody measured what it takes


def test_what_an_earlier_attempt_did_is_no_part_of_the_pace():
    subject, watch = watched(Plan(1, {"a": 2}))
    for cpu_s in (10.0, 50.0, 1.0, 2.0, 3.0):
        work(subject, watch, "a", cpu_s)
    assert watch.status()["jobs"]["a"]["eta_s"] == pytest.approx(97.0)


def test_progress_by_state():
    picture = view()
    facts = {"runtime_s": {1: 50.0}}
    assert progress(job_view("a", JobState.FINISHED, **facts), picture, None) == (1.0, 0.0)
    assert progress(job_view("a", JobState.WAITING, **facts), picture, None) == (0.0, None)
    assert progress(job_view("a", JobState.WAITING), picture, None) == (None, None)
    assert progress(job_view("a", JobState.FAILED, cpu_s=3.0, **facts), picture, 1.0) == (None, None)
    assert progress(job_view("a", JobState.RUNNING, cpu_s=None, **facts), picture, 1.0) == (None, None)
    assert progress(job_view("a", JobState.PAUSED, cpu_s=10.0, **facts), picture, 0.0) == (0.2, None)
    assert progress(job_view("a", JobState.RUNNING, cpu_s=10.0, **facts), picture, 4.0) == (0.2, 10.0)
    done, left_s = progress(job_view("a", JobState.RUNNING, cpu_s=70.0, **facts), picture, 1.0)
    assert done == 0.99  # more work than was measured once
    assert left_s == pytest.approx(0.5)


def test_figures_have_the_tallies_the_ages_and_the_status():
    subject, watch = watched(Plan(1, {"a": 1}))
    subject.controller.meter.tick(0.003, 0.0)
    tick(subject, watch, service=service_sample(age_s=0.25, latency_ms=None))
    told = watch.figures()
    assert sum(told["meter"]["work"]["counts"]) == 1
    assert ["pin", "memcached", 1] not in told["meter"]["moves"]  # by kind and cause, not by target
    assert {kind for kind, _, _ in told["meter"]["moves"]} == {"create", "pin", "start"}
    assert told["signal_ages_s"] == {"cpu_cores": 0.25, "wait_us": 0.25, "qps": 0.25}  # no latency, so no age of it
    assert told["shadow_strikes"] is None
    assert told["status"]["run"] == "cafe"


def test_figures_count_what_the_regulator_changed_and_the_shadows_strikes():
    shadow = Choice(Fixed(RuntimeError("bug")), "second")
    subject, watch = watched(Plan(9), shadow=shadow)
    subject.controller.consult(lambda: subject.time_s)
    told = watch.figures()
    assert sum(told["interventions"].values()) > 0
    assert told["shadow_strikes"] == 1


def test_every_document_is_json_whatever_the_figures():
    subject, watch = watched(Plan(1, {"a": 1}))
    tick(subject, watch, service=service_sample(float("nan"), wait_us=float("inf"), latency_ms=None, qps=None))
    subject.tell("a", JobEventKind.EXITED, code=0)
    tick(subject, watch)
    assert set(watch.handlers()) == {"status", "figures"}
    for handler in watch.handlers().values():
        told = json.loads(json.dumps(handler({"request": "any"}, lambda: True), allow_nan=False))
        assert told
    assert watch.status()["service"]["p95_age_s"] is None
