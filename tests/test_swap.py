"""Another policy takes over a run in progress: on the controller, on a simulated machine, and live."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from colocate import metrics
from colocate.controller import Controller
from colocate.errors import UserError
from colocate.eventlog import parse, violations
from colocate.host.control import NAME
from colocate.policy import Choice, Plan, load_policy
from colocate.regulator import Limits
from colocate.sim.run import simulate
from colocate.simulation import SimSettings, setup
from colocate.swap import PolicySwap
from colocate.topology import Topology
from tests.builders import Fixed, Machine, no_deadline, spec
from tests.calibrations import JOBS, small_text
from tests.live import catalogue, colocate, running
from tests.memcached_fixture import eventually, running_memcached

pytestmark = pytest.mark.live


def machine(*plans, **limits):
    limits = {"shrink_every_s": 0, **limits}
    controller = Controller(
        [spec("a"), spec("b")], Fixed(*plans), Topology.flat(4), no_deadline, limits=Limits(**limits), label="first"
    )
    subject = Machine(controller)
    for _ in range(3):
        subject.tick()
    return subject


def fixed(*plans):
    return Choice(Fixed(*plans), "second")


def comments(subject):
    """What the controller wants in the log; taken away, as the loop does."""
    told = [entry.comment for entry in subject.controller.entries]
    subject.drain()
    return told


def test_the_swap_itself_moves_nothing_and_the_log_says_from_what_to_what():
    subject = machine(Plan(1, {"a": 1, "b": 2}))
    before = list(subject.log)
    assert subject.controller.swap(fixed(Plan(1, {"a": 1, "b": 2}))) == "first"
    assert comments(subject) == ["policy swapped: first -> second"]
    assert subject.tick() == []
    assert subject.controller.decision.policy == "second"
    assert subject.log == [*before, "custom scheduler []"]
    assert subject.controller.policies == ["first", "second"]


def test_the_next_decision_is_the_new_ones():
    subject = machine(Plan(1, {"a": 1, "b": 2}))
    subject.controller.swap(fixed(Plan(3, {"a": 1, "b": 0})))
    subject.tick()
    subject.check()
    assert len(subject.service) == 3
    assert subject.paused == {"b"}


def test_the_new_policy_starts_without_a_strike_and_the_old_ones_are_not_forgotten():
    subject = machine(RuntimeError("bug"), strikes=3)
    subject.tick()
    controller = subject.controller
    assert controller.decision.policy == "safe"
    assert controller.swap(fixed(Plan(1))) == "safe"
    assert comments(subject) == ["policy swapped: safe -> second"]
    assert (controller.regulator.strikes, controller.regulator.first_fault) == (0, "")
    subject.tick()
    assert controller.decision.policy == "second"
    assert controller.regulator.fault == ""
    assert controller.regulator.past_faults == (
        "first: the policy failed 3 times, then the safe policy took over; at first: RuntimeError: bug",
    )


def test_the_accepted_plan_holds_where_the_new_ones_is_impossible():
    subject = machine(Plan(1, {"a": 1, "b": 2}))
    subject.controller.swap(fixed(Plan(9)))
    assert subject.tick() == []
    assert subject.controller.decision.plan == Plan(1, {"a": 1, "b": 2})


def test_the_new_policy_may_not_shrink_sooner_after_a_growth_than_the_old_one():
    subject = machine(Plan(3, {"a": 1}), shrink_every_s=5.0)
    subject.controller.swap(fixed(Plan(1, {"a": 1})))
    subject.tick()
    assert [change.rule for change in subject.controller.decision.interventions] == ["unhurried"]
    assert len(subject.service) == 3


def swapped_simulation(tmp_path: Path, at_s: float, choice: Choice):
    (tmp_path / "jobs.toml").write_text(JOBS)
    scenario = tmp_path / "small.toml"
    scenario.write_text(small_text(str(tmp_path / "jobs.toml")))
    done: list[str] = []

    def show(controller: Controller) -> None:
        if controller.seen.time_s >= at_s and not done:
            done.append(controller.swap(choice))

    first = load_policy("static", ["service_cores=2"])
    return simulate(
        setup(SimSettings(str(scenario))), first, tmp_path / "logs", metrics=True, show=show, label="static two"
    )


def test_on_a_simulated_machine_the_jobs_go_on(tmp_path):
    choice = Choice(load_policy("static", ["service_cores=1"]), "static one")
    run = swapped_simulation(tmp_path, 5.0, choice)
    log = run.log_path.read_text()
    assert violations(log) == []
    assert run.ending.why == "done"
    events = parse(log).events
    (swap,) = [i for i, event in enumerate(events) if event.comment.startswith("policy swapped")]
    assert events[swap].comment == "policy swapped: static two -> static one"
    moved = [i for i, event in enumerate(events) if (event.event, event.job) == ("update_cores", "memcached")]
    assert len(events[moved[0]].cores) == 1
    assert moved[0] > swap
    for job in ("one", "two"):
        assert [event.event for event in events if event.job == job and event.event != "update_cores"] == [
            "start", "end"
        ]  # fmt: skip
    ticks = metrics.read_run(run.log_path.with_suffix(".jsonl")).ticks
    acting = [(tick["t"], tick["policy"]) for tick in ticks]
    assert {name for t, name in acting if t < 5.0} == {"static two"}
    assert {name for t, name in acting if t > 5.1} == {"static one"}


def handled(swap: PolicySwap, request: dict[str, object], waiting=lambda: True):
    """Handle on a thread, as the server does; what came of it once it is over."""
    got: list[object] = []

    def work():
        try:
            got.append(swap.handle(request, waiting))
        except UserError as error:
            got.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, got


def test_the_loop_takes_it_before_a_tick_and_then_the_answer_goes_back():
    subject, rung = machine(Plan(1)), threading.Event()
    swap = PolicySwap(subject.controller, rung.set)
    swap.take()  # nothing waits
    thread, got = handled(swap, {"request": "policy", "name": "static", "set": ["service_cores=2"]})
    assert rung.wait(60)
    assert (subject.controller.regulator.label, got) == ("first", [])
    swap.take()
    thread.join(60)
    assert got == [
        {
            "policy": "static service_cores=2", "chosen": "static service_cores=2", "options": {"service_cores": 2},
            "strikes": 0, "shadow": None, "before": "first",
        }
    ]  # fmt: skip


@pytest.mark.parametrize("gone", ["client", "run"])
def test_who_has_gone_away_changes_nothing(gone):
    subject = machine(Plan(1))
    swap = PolicySwap(subject.controller, lambda: None)
    if gone == "run":
        swap.end()
    thread, got = handled(swap, {"request": "policy", "name": "static"}, lambda: gone == "run")
    thread.join(60)
    assert str(got[0]) == "the run has ended, its policy was not changed"
    swap.take()
    assert subject.controller.regulator.label == "first"


@pytest.mark.parametrize(
    "request_", [{"name": 3}, {"name": ["static"]}, {"name": "static", "set": "a=1"}, {"name": "static", "set": [1]}]
)
def test_a_request_that_makes_no_sense_is_refused(request_):
    with pytest.raises(UserError, match="no policy's name, or no list of options"):
        PolicySwap(machine(Plan(1)).controller, lambda: None).handle(request_, lambda: True)


# --- live -----------------------------------------------------------------------------------------------------------

GIVES_ALL = """\
from colocate.policy import Plan, Policy

class All(Policy):
    name: str = "nobody"
    def decide(self, view):
        return Plan(view.total_cores, {job: 0 for job in view.jobs}, reason=f"all for {self.name}")
"""
FIRST = ("--policy", "static", "--set", "service_cores=1", "--shadow", "reactive")


@pytest.fixture
def server():
    with running_memcached() as made:
        yield made


@pytest.fixture
def spinning(tmp_path, behave_binary):
    """Arguments of a run of one job that never ends, as a plain process."""
    file = catalogue(tmp_path / "jobs.toml", "none", {"spin": "./behave spin 1"}, behave_binary.parent)
    return ["--jobs", str(file), "--runtime", "process", *FIRST]


def policy(tmp_path: Path, *arguments: str, cwd: Path | None = None):
    return colocate("policy", "--state-dir", str(tmp_path / "state"), *arguments, cwd=cwd or tmp_path)


def children(pid: int) -> set[tuple[str, str]]:
    """Pid and start time of every process below."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.add((stat.parent.name, fields[19]))
    return found


def swap_there_and_back(tmp_path, run, identity):
    """Swap twice, from a directory of the client's own; the job is the very same before, between and after."""
    away = tmp_path / "away"
    away.mkdir()
    (away / "all.py").write_text(GIVES_ALL)
    run.until("start spin")
    before = identity()
    assert before
    told = policy(tmp_path, "--json")
    assert told.returncode == 0, told.stderr
    document = json.loads(told.stdout)
    assert (document["policy"], document["options"]) == ("static service_cores=1", {"service_cores": 1})
    assert document["shadow"]["policy"] == "reactive"

    done = policy(tmp_path, "all.py:All", "--set", "name=everybody", cwd=away)
    assert (done.returncode, done.stderr) == (0, "")
    label = f"{away}/all.py:All name=everybody"
    assert done.stdout.splitlines()[0] == f"static service_cores=1 -> {label}"
    run.until("pause spin")
    assert identity() == before
    done = policy(tmp_path, "static", "--set", "service_cores=1", cwd=away)
    assert done.returncode == 0, done.stderr
    run.until("unpause spin")
    assert identity() == before
    assert run.end(signal.SIGTERM) == 143

    assert violations(run.log) == []
    words = [event.comment or event.event for event in parse(run.log).events if event.job in {"scheduler", "spin"}]
    assert [word for word in words if word in {"pause", "unpause"} or "swapped" in word] == [
        f"policy swapped: static service_cores=1 -> {label}",
        "pause",
        f"policy swapped: {label} -> static service_cores=1",
        "unpause",
    ]
    assert len([word for word in words if word.startswith("shadow reactive: another plan at")]) == 1
    records = [record for record in metrics.read(Path(run.summary["metrics"])) if "policy" in record]
    assert {record["reason"] for record in records if record["policy"] == label} == {"all for everybody"}
    assert {record["policy"] for record in records} == {"static service_cores=1", label}
    assert run.summary["policies"] == ["static service_cores=1", label, "static service_cores=1"]
    assert run.summary["policy"] == "static"
    assert not (tmp_path / "state" / NAME).exists()


def test_live_processes_go_on_under_the_new_policy(tmp_path, server, spinning):
    with running(tmp_path, server, *spinning) as run:
        swap_there_and_back(tmp_path, run, lambda: children(run.process.pid))


def test_live_containers_go_on_under_the_new_policy(tmp_path, server, behave_image, docker_client):
    file = catalogue(tmp_path / "jobs.toml", behave_image, {"spin": "/behave spin 1"})

    def identity():
        only = {"label": "colocate.job=spin", "ancestor": behave_image}  # others may test at the same time
        (container,) = docker_client.containers.list(all=True, filters=only)
        return container.id, container.attrs["State"]["Pid"], container.attrs["RestartCount"]

    with running(tmp_path, server, "--jobs", str(file), *FIRST) as run:
        swap_there_and_back(tmp_path, run, identity)


BAD = {
    "unknown": (("no-such",), "policy 'no-such': unknown; give one of"),
    "no file": (("none.py:Mine",), "no file"),
    "no class": (("fine.py:Other",), "no class 'Other'"),
    "bad option": (("static", "--set", "colour=red"), "no option 'colour'; it has service_cores"),
    "bad value": (("static", "--set", "service_cores=many"), "service_cores='many' is no int"),
    "raises": (("raises.py:Mine",), "ZeroDivisionError"),
    "exits": (("exits.py:Mine",), "SystemExit"),
    "no syntax": (("syntax.py:Mine",), "SyntaxError"),
    "set alone": (("--set", "a=1"), "--set without a policy"),
}


def test_live_bad_requests_and_garbage_leave_the_run_unharmed(tmp_path, server, spinning, monkeypatch):
    (tmp_path / "fine.py").write_text(GIVES_ALL)
    (tmp_path / "raises.py").write_text("1 / 0\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(5)\n")
    (tmp_path / "syntax.py").write_text("class\n")
    with running(tmp_path, server, *spinning) as run:
        run.until("start spin")
        before = children(run.process.pid)
        for arguments, words in BAD.values():
            done = policy(tmp_path, *arguments)
            assert (done.returncode, done.stdout) == (2, ""), done.stdout
            (line,) = done.stderr.splitlines()
            assert line.startswith("colocate: ")
            assert words in line
        monkeypatch.chdir(tmp_path / "state")  # an address is short
        stream = random.Random(5)  # noqa: S311 -- no secret
        held = []
        for garbage in (stream.randbytes(500), b"x" * 1_000_000, b'{"request": "policy", "name": "sta', b""):
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            client.settimeout(60)
            client.connect(NAME)
            with suppress(OSError):  # it may be cut off
                client.sendall(garbage)
            held.append(client)  # and stays silent
        (records,) = (tmp_path / "logs").glob("*.jsonl")
        so_far = len(list(metrics.read(records)))
        eventually(lambda: len(list(metrics.read(records))) > so_far + 5, "the loop goes on meanwhile")
        told = policy(tmp_path)
        assert told.returncode == 0, told.stderr
        assert re.match(r"policy  static service_cores=1\n        service_cores = 1\nshadow  reactive\b", told.stdout)
        for client in held:
            client.close()
        assert children(run.process.pid) == before
        assert run.end(signal.SIGTERM) == 143
    assert "swapped" not in run.log
    assert violations(run.log) == []
    assert not any("policy" in warning for warning in run.summary["warnings"])


def test_after_kill_minus_nine_no_run_answers_and_the_next_one_does(tmp_path, server, spinning):
    with running(tmp_path, server, *spinning) as run:
        run.until("start spin")
        assert policy(tmp_path).returncode == 0
        run.process.kill()
        run.process.wait()
    assert (tmp_path / "state" / NAME).exists()
    done = policy(tmp_path, "static")
    assert done.returncode == 2
    assert re.fullmatch(
        r"colocate: no run in progress answers at \S+/state/control; start one, or give its --state-dir\n", done.stderr
    )
    with running(tmp_path, server, *spinning) as run:
        eventually(lambda: policy(tmp_path).returncode == 0, "the next run answers")
        assert run.end(signal.SIGTERM) == 143


def test_live_a_shadow_that_hangs_is_dropped_and_costs_the_acting_policy_nothing(tmp_path, server, spinning):
    (tmp_path / "hangs.py").write_text(
        "import time\nfrom colocate.policy import Policy\n"
        "class Hangs(Policy):\n    def decide(self, view):\n        time.sleep(30)\n"
    )
    with running(tmp_path, server, *spinning, "--shadow", "hangs.py:Hangs") as run:
        run.until("dropped%3A+failed+3+times")
        told = json.loads(policy(tmp_path, "--json").stdout)
        assert (told["policy"], told["strikes"], told["shadow"]["strikes"]) == ("static service_cores=1", 0, 3)
        assert run.end(signal.SIGTERM) == 143
    assert violations(run.log) == []
    assert "strike" not in run.log
    assert "OverrunError" in run.summary["shadow"]["dropped"]


def test_without_a_run_one_line_says_so(tmp_path):
    done = policy(tmp_path, "static")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "no run in progress answers at" in done.stderr


def test_a_dry_run_has_no_control_and_takes_no_other_runs_place(tmp_path, server, spinning):
    with running(tmp_path, server, *spinning, "--dry-run") as run:
        run.until("start spin")
        assert policy(tmp_path).returncode == 2
        assert run.end(signal.SIGTERM) == 143
