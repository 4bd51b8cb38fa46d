"""What Prometheus is told of a run: checked by promtool, by the client's own parser, and against a real run."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from colocate.controller import Controller
from colocate.errors import UserError
from colocate.host.control import ask
from colocate.meter import BOUNDS_S, cause
from colocate.move import SERVICE, Move, MoveKind
from colocate.policy import Choice, Plan
from colocate.status import Watch
from colocate.topology import Topology
from colocate.web.prometheus import CONTENT_TYPE, DEFINITIONS, exposition, table
from tests.builders import Fixed, Machine, no_deadline, service_sample, spec
from tests.live import catalogue, running
from tests.memcached_fixture import eventually, running_memcached
from tests.promtool import promtool

ROOT = Path(__file__).parent.parent
JOBS = [spec("a"), spec('b "quoted"\n'), spec("c", runtime_s={1: 100.0})]


def watched(*, latency_ms: float | None = 1.2):
    """A machine of four cores and what looks at its run, some ticks old; the policy then fails, and so does a move."""
    shadow = Choice(Fixed(RuntimeError("bug")), "shadow")
    plan = Plan(1, {"a": 1, JOBS[1].name: 2}, reason='needs 3 cores, "now"\\')
    controller = Controller(JOBS, Fixed(plan, plan, RuntimeError("bug")), Topology.flat(4), no_deadline, shadow=shadow)
    machine, watch = Machine(controller), Watch(controller, {"run": "cafe"})
    for pid in (1, 1, 2, 2):
        machine.tick(service=replace(service_sample(pid=pid, latency_ms=latency_ms), connections=9))
        controller.consult(lambda: machine.time_s)
        controller.meter.tick(0.002, 0.0)
        controller.meter.took("pin", 0.0007)
        watch.show(controller)
    pin = Move(MoveKind.PIN, SERVICE, frozenset({0}))
    controller.settle(pin, done=False, now_s=machine.time_s, error="no such process")
    controller.note("a", "foreign_changes", "found elsewhere")
    return controller, watch


def told(watch: Watch) -> dict[str, object]:
    """The figures as they come through the control socket."""
    return json.loads(json.dumps(watch.figures()))


def samples(figures) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The exposition as the client's own parser reads it."""
    families = text_string_to_metric_families(exposition(figures)[0].decode())
    found = [(s.name, frozenset(s.labels.items()), s.value) for family in families for s in family.samples]
    assert len({(name, labels) for name, labels, _ in found}) == len(found), "the same sample twice"
    return {(name, labels): value for name, labels, value in found}


def value(figures, name: str, **labels: str) -> float | None:
    return samples(figures).get((name, frozenset(labels.items())))


def checked(figures) -> tuple[int, bytes, bytes]:
    """What promtool has to say of the exposition; nothing, if all is well."""
    done = promtool("metrics", given=exposition(figures)[0])
    return done.returncode, done.stdout, done.stderr


def documents():
    _, watch = watched()
    fresh = Watch(Controller(JOBS, Fixed(Plan(1)), Topology.flat(4), no_deadline), {"run": "cafe"})
    return {"no run": None, "nothing": {}, "before the first tick": told(fresh), "full": told(watch)}


@pytest.mark.parametrize("case", ["no run", "nothing", "before the first tick", "full"])
def test_promtool_finds_nothing_to_say(case):
    assert checked(documents()[case]) == (0, b"", b"")


def test_without_a_run_it_says_so_and_names_itself():
    body, content_type = exposition(None)
    assert content_type == CONTENT_TYPE
    assert {name for name, _ in samples(None)} == {"colocate_up", "colocate_build_info"}
    assert b"\ncolocate_up 0.0\n" in body


def test_a_run_in_progress_tells_every_metric_there_is():
    names = {name for name, _ in samples(documents()["full"])}
    for definition in DEFINITIONS:
        suffix = "_count" if definition.kind == "histogram" else ""
        assert definition.name + suffix in names, definition.name
    assert {re.sub("_(bucket|count|sum)$", "", name) for name in names} == {d.name for d in DEFINITIONS}


def test_the_labels_are_those_of_the_table():
    of = {definition.name: set(definition.labels) for definition in DEFINITIONS}
    for name, labels in samples(documents()["full"]):
        base = re.sub("_(bucket|count|sum)$", "", name)
        assert {label for label, _ in labels} - {"le"} == of[base], name


def test_what_is_not_known_is_left_out_and_nothing_is_infinite():
    _, watch = watched(latency_ms=None)
    found = samples(told(watch))
    assert not {name for name, _ in found} & {
        "colocate_memcached_latency_seconds", "colocate_memcached_latency_slo_ratio"
    }  # fmt: skip
    assert ("colocate_signal_age_seconds", frozenset({("signal", "latency_ms")})) not in found
    assert all(math.isfinite(number) for number in found.values())
    before = samples(documents()["before the first tick"])
    assert ("colocate_memcached_cores", frozenset()) not in before
    assert before["colocate_controller_state", frozenset({("state", "starting")})] == 1
    assert before["colocate_foreign_changes_total", frozenset()] == 0


def test_units_are_base_units():
    figures = documents()["full"]
    assert value(figures, "colocate_memcached_latency_seconds", percentile="95") == pytest.approx(1.2e-3)
    assert value(figures, "colocate_memcached_slo_seconds", percentile="95") == pytest.approx(0.8e-3)
    assert value(figures, "colocate_memcached_latency_slo_ratio") == pytest.approx(1.5)
    assert value(figures, "colocate_memcached_runqueue_wait_seconds") == pytest.approx(5e-6)


def test_a_histogram_is_cumulative_and_ends_with_its_count():
    figures = documents()["full"]
    name = "colocate_tick_duration_seconds"
    buckets = [value(figures, f"{name}_bucket", le=f"{bound:g}") for bound in BOUNDS_S]
    assert buckets == [4.0 if bound >= 0.002 else 0.0 for bound in BOUNDS_S]
    assert value(figures, f"{name}_bucket", le="+Inf") == value(figures, f"{name}_count") == 4.0
    assert value(figures, f"{name}_sum") == pytest.approx(0.008)


def test_the_state_is_one_of_three():
    states = [value(documents()["full"], "colocate_controller_state", state=s) for s in ("starting", "running", "safe")]
    assert states == [0.0, 1.0, 0.0]


def test_strikes_restarts_foreign_changes_and_failed_moves_are_counted():
    figures = documents()["full"]
    assert value(figures, "colocate_policy_strikes") == 2
    assert value(figures, "colocate_shadow_strikes") == 3
    assert value(figures, "colocate_memcached_restarts_total") == 1
    assert value(figures, "colocate_foreign_changes_total") == 1
    assert value(figures, "colocate_move_errors_total", kind="pin") == 1


def test_jobs_are_counted_by_state():
    figures = documents()["full"]
    by_state = {dict(labels)["state"]: n for (name, labels), n in samples(figures).items() if name == "colocate_jobs"}
    assert sum(by_state.values()) == len(JOBS)
    assert by_state["running"] == 2


def test_only_time_with_a_fresh_latency_is_judged_against_the_slo():
    controller, _ = watched(latency_ms=None)
    assert (controller.meter.judged_s, controller.meter.broken_s) == (0.0, 0.0)
    controller, _ = watched(latency_ms=0.8)
    assert (controller.meter.judged_s, controller.meter.broken_s) == (3.0, 0.0)
    controller, _ = watched(latency_ms=0.81)
    assert (controller.meter.judged_s, controller.meter.broken_s) == (3.0, 3.0)


def test_a_reason_keeps_no_figures_and_stays_short():
    assert cause("needs 3 cores at 0.75") == "needs N cores at N"
    assert len(cause("because " * 1000)) == 80
    controller, watch = watched()
    for n in range(500):
        controller.meter.moved("resize", "because of " + "x" * (n % 200) + chr(ord("A") + n % 26) + "y" * n)
    found = samples(told(watch))
    assert len([name for name, _ in found if name == "colocate_moves_total"]) < 100
    assert sum(n for (name, _), n in found.items() if name == "colocate_moves_total") == controller.meter.moves.total()
    assert checked(told(watch)) == (0, b"", b"")


def test_without_the_extra_a_hint_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "colocate.web.prometheus")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(UserError, match=r"'prometheus_client' is missing; pip install 'colocate\[web\]'"):
        importlib.import_module("colocate.web.prometheus")


def test_the_committed_table_is_the_generated_one():
    assert table() in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.mark.live
def test_a_real_run_is_told(tmp_path):
    jobs = catalogue(tmp_path / "jobs.toml", "none", {"spin": f"{sys.executable} -c 'while True: pass'"})
    options = ("--runtime", "process", "--jobs", str(jobs), "--policy", "static")
    with running_memcached() as server, running(tmp_path, server, *options) as run:
        run.until("start spin")

        def figures():
            return ask(tmp_path / "state", {"request": "figures"})

        eventually(lambda: value(figures(), "colocate_tick_duration_seconds_count"), "a tick is counted")
        eventually(lambda: value(figures(), "colocate_memcached_cpu_cores") is not None, "memcached's use is seen")
        seen = figures()
        assert value(seen, "colocate_up") == 1
        assert value(seen, "colocate_tick_duration_seconds_count") > 0
        assert value(seen, "colocate_memcached_cores") >= 1
        assert value(seen, "colocate_controller_cpu_seconds_total") > 0
        assert value(seen, "colocate_jobs", state="running") == 1
        assert value(seen, "colocate_actuator_latency_seconds_count", kind="pin") > 0
        assert checked(seen) == (0, b"", b"")
