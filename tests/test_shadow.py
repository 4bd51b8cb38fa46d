"""A policy that watches: what it would have done is counted, and nothing else is changed by it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from colocate.cli.main import main
from colocate.eventlog import parse, violations
from colocate.jobs import JobState
from colocate.metrics import read_run
from colocate.policy import Choice, Plan, Policy, load_policy
from colocate.regulator import Limits
from colocate.shadow import Difference, Shadow
from colocate.sim.run import simulate
from colocate.simulation import SimSettings, setup
from tests.builders import Fixed, job_view, no_deadline, service_sample, view
from tests.calibrations import JOBS, small_text

JOB = {"a": job_view("a", JobState.RUNNING, frozenset({3}))}


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    (tmp_path / "jobs.toml").write_text(JOBS)
    path = tmp_path / "small.toml"
    path.write_text(small_text(str(tmp_path / "jobs.toml")))
    return str(path)


def simulated(scenario, directory, capsys, *options):
    code = main(["simulate", "--scenario", scenario, "--log-dir", str(directory), "--json", *options])
    summary = json.loads(capsys.readouterr().out)
    assert summary["exit_code"] == code
    return summary


def static(cores, word="set"):
    return [f"--{'policy' if word == 'set' else 'shadow'}", "static", f"--{word}", f"service_cores={cores}"]


def test_two_fixed_splits_differ_by_exactly_that(scenario, tmp_path, capsys):
    options = [*static(2), *static(1, "shadow-set"), "--duration", "5s"]
    summary = simulated(scenario, tmp_path / "logs", capsys, *options)
    shadow = summary["shadow"]
    assert shadow["ticks"] >= 100
    assert shadow == {
        "policy": "static service_cores=1",
        "ticks": shadow["ticks"],
        "disagreements": shadow["ticks"],
        "service": {"more": 0.0, "fewer": 1.0, "same": 0.0, "mean_cores": -1.0},
        "jobs": {"more": 1.0, "fewer": 0.0, "same": 0.0, "mean_cores": 1.0},
        "strikes": 0,
        "interventions": {},
        "dropped": "",
    }
    assert summary["policies"] == ["static service_cores=2"]
    log = Path(summary["log"]).read_text()
    assert violations(log) == []
    (told,) = [event.comment for event in parse(log).events if "shadow" in event.comment]
    n = shadow["ticks"]
    assert told.startswith(f"shadow static service_cores=1: another plan at {n} of {n} ticks; memcached's cores: more")
    assert "fewer at 100.0%, same at 0.0%, mean difference -1.00" in told
    records = read_run(Path(summary["metrics"])).ticks
    assert {(r["plan"][0], r["shadow"][0], r["policy"]) for r in records} == {(2, 1, "static service_cores=2")}


def test_the_same_policy_never_differs(scenario, tmp_path, capsys):
    summary = simulated(scenario, tmp_path / "logs", capsys, *static(2), *static(2, "shadow-set"))
    assert summary["shadow"]["disagreements"] == 0
    same = {"more": 0.0, "fewer": 0.0, "same": 1.0, "mean_cores": 0.0}
    assert summary["shadow"]["service"] == summary["shadow"]["jobs"] == same
    assert not any("shadow" in tick for tick in read_run(Path(summary["metrics"])).ticks)


def test_nothing_is_changed_by_who_watches(scenario, tmp_path, capsys):
    (tmp_path / "dice.py").write_text(
        "import random\nfrom colocate.policy import Plan, Policy, share_out\n"
        "class Dice(Policy):\n    def decide(self, view):\n        n = random.randint(1, 3)\n"
        "        return Plan(n, share_out(view.jobs.values(), view.total_cores - n))\n"
    )
    dice = f"{tmp_path / 'dice.py'}:Dice"
    alone = simulated(scenario, tmp_path / "a", capsys, "--policy", dice)
    watched = simulated(scenario, tmp_path / "b", capsys, "--policy", dice, "--shadow", dice)
    assert alone["shadow"] is None
    assert watched["shadow"]["ticks"] > 0
    a, b = (Path(told["log"]).read_text().splitlines() for told in (alone, watched))
    assert a == [line for line in b if " custom scheduler shadow" not in line]


def test_a_shadow_that_fails_is_dropped_with_one_line_and_the_acting_policy_has_no_strike(scenario, tmp_path, capsys):
    (tmp_path / "broken.py").write_text(
        "from colocate.policy import Policy\n"
        "class Broken(Policy):\n    def decide(self, view):\n        raise RuntimeError('out of ideas')\n"
    )
    summary = simulated(scenario, tmp_path / "logs", capsys, *static(2), "--shadow", f"{tmp_path / 'broken.py'}:Broken")
    assert summary["complete"] is True
    assert summary["warnings"] == []
    shadow = summary["shadow"]
    assert (shadow["ticks"], shadow["strikes"]) == (2, 3), "twice the safe set, then no more"
    assert shadow["dropped"] == "failed 3 times; at first: RuntimeError: out of ideas"
    comments = [event.comment for event in parse(Path(summary["log"]).read_text()).events if event.comment]
    assert len([comment for comment in comments if " dropped: " in comment]) == 1
    assert not any("strike" in comment or "regulator" in comment for comment in comments)


class Counts(Policy):
    """Gives memcached one count after the other."""

    def __init__(self, *counts):
        self.counts = list(counts)

    def decide(self, view):
        count = self.counts.pop(0)
        return Plan(count, {"a": view.total_cores - count})


def watcher(policy, **limits):
    return Shadow(Choice(policy, "watcher"), Limits(**limits), no_deadline)


def at(subject, time_s, service, *, acting_cores=2, now=None):
    seen = view(time_s=time_s, jobs=JOB, service_cores=frozenset(range(acting_cores)))
    return subject.ask(seen, Plan(service, {"a": 4 - service}), now or (lambda: time_s))


def test_each_tick_counts_once():
    subject = watcher(Counts(1, 1, 1, 1, 2, 2, 2, 3, 3, 4))
    for time_s in range(10):
        at(subject, float(time_s), 2)
    figures = subject.figures()
    assert (figures.ticks, figures.disagreements) == (10, 7)
    assert figures.service == Difference(more=0.3, fewer=0.4, same=0.3, mean_cores=0.0)
    assert figures.jobs == Difference(more=0.4, fewer=0.3, same=0.3, mean_cores=0.0)


def test_who_shares_is_a_difference_even_with_the_same_cores():
    subject = watcher(Fixed(Plan(2, {"a": 2})))
    subject.ask(view(jobs=JOB), Plan(2, {"a": 2}, frozenset({"a"})), lambda: 0.0)
    figures = subject.figures()
    assert (figures.disagreements, figures.service.same, figures.jobs.same) == (1, 1.0, 1.0)


def test_its_shrinking_is_judged_by_its_own_cores_not_by_those_that_memcached_has():
    subject = watcher(Counts(1, 1, 3, 1, 1), shrink_every_s=1.0)
    plans = [at(subject, time_s, 3, acting_cores=3)[0].service for time_s in (0.0, 0.1, 0.2, 0.3, 1.5)]
    assert plans == [1, 1, 3, 3, 1], "only what follows its own growth too soon is held"
    assert subject.figures().interventions == {"unhurried": 1}


def test_on_stale_signals_it_may_not_shrink_either():
    subject = watcher(Counts(3, 1))
    seen = view(jobs=JOB, sample=service_sample(age_s=9))
    plans = [subject.ask(seen, Plan(1, {"a": 3}), lambda t=t: t)[0].service for t in (0.0, 1.0)]
    assert plans == [3, 3]


def test_a_slow_one_rests_as_long_as_it_took():
    clock = iter([0.0, 0.04, 0.05, 0.1, 0.101])
    subject = watcher(Counts(1, 1, 1))
    asked = [at(subject, time_s, 2, now=lambda: next(clock))[0] is not None for time_s in (0.0, 0.05, 0.1)]
    assert asked == [True, False, True]


def test_its_time_limit_is_short_and_its_own():
    limits = []

    def deadline(seconds):
        limits.append(seconds)
        return no_deadline(seconds)

    Shadow(Choice(Counts(1), "w"), Limits(deadline_s=0.25), deadline).ask(view(jobs=JOB), Plan(1), lambda: 0.0)
    assert limits == [0.05]


def test_one_that_was_never_asked_says_so():
    assert str(watcher(Counts(1)).figures()) == "watcher: no decision"


def test_pythons_own_stream_is_left_as_it_was():
    random.seed(1)
    expected = [random.getrandbits(32) for _ in range(3)]

    class Draws(Policy):
        def decide(self, view):
            return Plan(1 + random.getrandbits(1))

    random.seed(1)
    subject = watcher(Draws())
    got = []
    for time_s in range(3):
        at(subject, float(time_s), 2)
        got.append(random.getrandbits(32))
    assert got == expected


def test_a_shadow_goes_on_when_the_acting_policy_is_swapped(scenario, tmp_path):
    chosen = setup(SimSettings(scenario, duration_s=4.0))
    swapped = []

    def show(controller):
        if controller.seen.time_s >= 2.0 and not swapped:
            swapped.append(controller.swap(Choice(load_policy("static", ["service_cores=1"]), "one")))

    run = simulate(
        chosen, load_policy("static", ["service_cores=2"]), tmp_path / "logs", label="two", show=show,
        shadow=Choice(load_policy("static", ["service_cores=1"]), "shadow"),
    )  # fmt: skip
    assert swapped == ["two"]
    assert run.controller.policies == ["two", "one"]
    figures = run.controller.shadow.figures()
    assert 0.4 < figures.service.fewer < 0.7, "memcached keeps its cores until the rise at 2 s is over"
    assert figures.service.fewer + figures.service.same == pytest.approx(1.0)


def test_options_for_nobody_are_refused(scenario, tmp_path, capsys):
    assert main(["simulate", "--scenario", scenario, "--shadow-set", "a=1"]) == 2
    assert capsys.readouterr().err == "colocate: --shadow-set without --shadow; say --shadow NAME, too\n"
    assert main(["simulate", "--scenario", scenario, "--shadow", "nobody", "--log-dir", str(tmp_path / "l")]) == 2
    assert "policy 'nobody': unknown" in capsys.readouterr().err


def test_people_are_told_in_two_lines(scenario, tmp_path, capsys):
    main(
        ["simulate", "--scenario", scenario, "--log-dir", str(tmp_path / "logs"), *static(2), *static(1, "shadow-set")]
    )
    lines = capsys.readouterr().out.splitlines()
    at_line = next(i for i, line in enumerate(lines) if line.startswith("shadow "))
    assert "static service_cores=1: another plan at" in lines[at_line]
    assert "fewer at 100.0%" in lines[at_line + 1]
    assert lines[at_line + 2].startswith("log ")
