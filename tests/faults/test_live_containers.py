"""Real containers and processes that are killed, removed, paused, moved, or end while their cores change."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from colocate.eventlog import violations
from colocate.host.cgroup import JobCgroup
from tests.faults import policies
from tests.faults.stage import Stage
from tests.faults.watchman import OFTEN, times
from tests.live import masks
from tests.memcached_fixture import DEADLINE_S, eventually

pytestmark = pytest.mark.live

ALL = frozenset(os.sched_getaffinity(0))
SWAY = ("--policy", f"{policies.__file__}:Sway")
SWAP = ("--policy", f"{policies.__file__}:Swap")
EVERY_S = 0.1  # between two resizes of a job by `Swap`: two periods


def states(summary: dict) -> dict[str, str]:
    return {name: job["state"] for name, job in summary["jobs"].items()}


def test_a_container_that_is_killed_is_started_again(docker_stage: Stage) -> None:
    stage, most = docker_stage, times(2, 8)
    with stage.begin({"spin": "spin 1"}, "--retries", str(most)) as run:
        run.until("start spin")
        for turn in range(most):
            with stage.injected(7) as fault:
                stage.container("spin").kill()
                fault.over()
                run.until(f"started+again%2C+try+{turn + 2}")
                fault.recovered()
        assert run.end(signal.SIGTERM) == 143
        assert states(run.summary) == {"spin": "stopped"}
    assert stage.watchman.left() == []


def test_containers_that_are_removed_are_reported_and_none_is_made_anew(docker_stage: Stage) -> None:
    stage, names = docker_stage, [f"job{number}" for number in range(times(2, 8))]
    with stage.begin(dict.fromkeys(names, "spin 1")) as run:
        for name in names:
            run.until(f"start {name}")
            with stage.injected(7) as fault:
                stage.container(name).remove(force=True)
                fault.over()
                run.until(f"custom {name} vanished")
                fault.recovered()
        assert run.end() == 1
        assert states(run.summary) == dict.fromkeys(names, "stopped")
    assert " end job" not in run.log
    assert stage.watchman.left() == []


def test_what_takes_the_name_of_a_removed_container_is_left_alone(docker_stage: Stage) -> None:
    stage = docker_stage
    assert stage.client is not None
    with stage.begin({"spin": "spin 1"}) as run:
        run.until("start spin")
        old = stage.container("spin")
        with stage.injected(7):
            old.remove(force=True)
            other = stage.client.containers.create(
                stage.image, ["/behave", "spin", "1"], name=old.name, network_mode="none"
            )
            try:
                other.start()
                assert run.end() == 1
                other.reload()
                assert other.status == "running"
                assert other.attrs["HostConfig"]["CpusetCpus"] == ""
            finally:
                other.remove(force=True)
    assert stage.watchman.left() == []


def test_a_container_that_somebody_pauses_goes_on(docker_stage: Stage) -> None:
    stage = docker_stage
    with stage.begin({"spin": "spin 1"}) as run:
        run.until("start spin")
        container = stage.container("spin")
        for _ in range(times(2, 8)):
            with stage.injected(7) as fault:
                container.pause()
                fault.over()
                eventually(lambda: container.reload() or container.status == "running", "goes on")
                fault.recovered()
        assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []


def test_a_cpuset_that_somebody_changes_is_put_right(docker_stage: Stage) -> None:
    stage, every = docker_stage, ",".join(map(str, sorted(ALL)))
    with stage.begin({"spin": "spin 1"}, watch=OFTEN) as run:
        run.until("start spin")
        container = stage.container("spin")
        pid = container.attrs["State"]["Pid"]
        own = os.sched_getaffinity(pid)
        service = ",".join(map(str, sorted(ALL - own)))
        for turn in range(times(2, 8)):
            with stage.injected(11) as fault:
                container.update(cpuset_cpus=(service, every)[turn % 2])
                fault.over()
                eventually(lambda: os.sched_getaffinity(pid) == own, "moved back")
                fault.recovered()
            time.sleep(0.5)  # time enough to see that it has stayed there
        group = JobCgroup.of(pid)
        for _ in range(times(1, 4)):  # Docker's record says what was asked for, the kernel something else
            with stage.injected(8) as fault:
                assert group.cpuset is not None
                (group.cpuset / "cpuset.cpus").write_text(service)
                fault.over()
                eventually(lambda: os.sched_getaffinity(pid) == own, "moved back")
                fault.recovered()
            time.sleep(0.5)
        group.close()
        assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []


@pytest.mark.parametrize(("behaviour", "fault"), [("stubborn", 15), ("forks 8", 27), ("fork", 27)])
def test_it_ends_whatever_its_jobs_do(stage: Stage, behaviour: str, fault: int) -> None:
    with stage.begin({"odd": behaviour, "spin": "spin 1"}, *SWAY) as run:
        run.until("start odd")
        eventually(lambda: run.log.count("update_cores memcached") > 2, "cores have moved")
        with stage.injected(fault) as case:
            run.process.send_signal(signal.SIGTERM)
            case.over()
            assert run.end() == 143
            assert stage.watchman.left() == []
            case.recovered()


def test_what_a_job_leaves_running_in_a_session_of_its_own_does_not_outlive_the_run(stage: Stage) -> None:
    with stage.begin({"escape": "escape"}) as run, stage.injected(27):
        assert run.end() == 0, run.errors
        assert states(run.summary) == {"escape": "finished"}
        assert stage.watchman.left() == []


def test_jobs_that_end_at_the_instant_of_a_resize_are_counted_once(stage: Stage) -> None:
    """Half of them a moment before the resize that is due, the others right after one; one beside it ends by itself."""
    rounds, chance = times(3, 12), random.Random(1)  # noqa: S311 -- a seed is wanted
    jobs: dict[str, str] = {}
    for number in range(rounds):
        jobs |= {f"told{number}": "polite", f"own{number}": f"exit {0 if number % 2 else 3} {300 + 37 * (number % 8)}"}
    with stage.begin(jobs, "--share", *SWAP, "--retries", "0", watch={"sharing": True}) as run:
        for number in range(rounds):
            name = f"told{number}"
            run.until(f" start {name} ")
            with stage.injected(27) as fault:
                eventually(lambda: catches(stage, stage.first_process(name), signal.SIGTERM), "it can be told")  # noqa: B023
                pid = stage.first_process(name)
                at_s = resized(pid)
                wait_s = EVERY_S + chance.uniform(-3e-3, 1e-3) if number % 2 else chance.uniform(0, 2e-3)
                time.sleep(max(0.0, at_s + wait_s - time.monotonic()))
                os.kill(pid, signal.SIGTERM)
                fault.over()
                run.until(f" custom {name} failed+with+exit+code+143\n")
                fault.recovered()
        assert run.end() == 1, run.errors
    for name, line in jobs.items():
        code = {"polite": 143, "exit 3": 3, "exit 0": 0}[line[:6]]
        assert states(run.summary)[name] == ("failed" if code else "finished")
        assert run.log.count(f" start {name} ") == 1
        assert run.log.count(f" end {name}\n") == (code == 0)
        assert run.log.count(f" custom {name} failed+") == (code != 0)
        assert run.log.count(f" custom {name} failed+with+exit+code+{code}\n") == (code != 0)
        assert run.log.count(f" update_cores {name} ") >= line.startswith("polite")
    assert violations(run.log) == []
    assert stage.watchman.left() == []


def catches(stage: Stage, pid: int, number: int) -> bool:
    """Whether that is the job's program already, and has its handler of a signal (proc(5), SigCgt)."""
    if pid not in stage.watchman.jobs():
        return False
    caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> (number - 1) & 1)


def resized(pid: int) -> float:
    """Wait for the next resize of a job's process; when it was seen, on the monotonic clock."""
    before, end_s = os.sched_getaffinity(pid), time.monotonic() + DEADLINE_S
    while os.sched_getaffinity(pid) == before:
        assert time.monotonic() < end_s, "it is resized"
        time.sleep(1e-4)
    return time.monotonic()


@pytest.mark.parametrize("rhythm_s", [(60.0, 0.0), (0.5, 0.3)], ids=["always", "to and fro"])
def test_the_watchman_sees_a_job_on_memcacheds_cores(process_stage: Stage, rhythm_s: tuple[float, float]) -> None:
    """By itself, lest what all tests here rely on be blind."""
    stage, (beside_s, apart_s) = process_stage, rhythm_s
    one, other = {min(ALL)}, {max(ALL)}
    with stage.watched() as watchman:
        job = subprocess.Popen([stage.behave, "spin", "1", stage.token])
        begin_s = time.monotonic()

        def seen() -> bool:
            beside = (time.monotonic() - begin_s) % (beside_s + apart_s) < beside_s
            for tid in masks(stage.server.pid):
                os.sched_setaffinity(tid, ALL if beside else other)
            os.sched_setaffinity(job.pid, ALL if beside else one)
            return bool(watchman.breaches)

        try:
            eventually(seen, "it is seen")
            assert watchman.breaches == [
                f"job process {job.pid} has run on memcached's cores {sorted(ALL)} for too long"
            ]
        finally:
            job.kill()
            job.wait()
