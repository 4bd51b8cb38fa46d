import os

import pytest

from colocate.eventlog import violations
from colocate.jobs import JobState
from colocate.scripting import Scheduler
from colocate.session import Settings
from tests.live import catalogue, masks, one_mask
from tests.memcached_fixture import running_memcached

pytestmark = pytest.mark.live

FIRST, LAST = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))


@pytest.fixture(params=["docker", "process"])
def settings(request, tmp_path, behave_binary):
    image = request.getfixturevalue("behave_image") if request.param == "docker" else "none"
    program = "/behave" if request.param == "docker" else "./behave"
    jobs = {"spin": f"{program} spin 1", "short": f"{program} exit 0 20", "other": f"{program} spin 1"}
    file = catalogue(tmp_path / "jobs.toml", image, jobs, behave_binary.parent)
    with running_memcached() as server:
        yield server, Settings(
            server.ip, server.port, jobs=str(file), runtime=request.param, log_dir=tmp_path / "logs",
            state_dir=tmp_path / "state", probe_hz=20,
        )  # fmt: skip


def test_the_commands_that_users_of_such_controllers_know(settings):
    server, chosen = settings
    before = masks(server.pid)
    with Scheduler(chosen, memcached_cores=[FIRST]) as scheduler:
        assert one_mask(server.pid) == {FIRST}
        assert LAST in scheduler.get_available_cores()
        scheduler.start_batch_job("spin", cores=[LAST], threads=3)
        assert LAST not in scheduler.get_available_cores()
        assert scheduler.get_job_status()["spin"].state is JobState.RUNNING
        assert scheduler.get_job_status()["spin"].cores == {LAST}
        scheduler.pause_job("spin")
        assert scheduler.get_job_status()["spin"].state is JobState.PAUSED
        assert LAST in scheduler.get_available_cores()
        scheduler.start_batch_job("short", cores=[LAST])
        while scheduler.get_job_status()["short"].state is not JobState.FINISHED:
            scheduler.wait(0.05)
        scheduler.update_job_cores("spin", [LAST])
        scheduler.unpause_job("spin")
        scheduler.stop_job("spin")
        assert scheduler.get_job_status()["spin"].state is JobState.STOPPED
        assert scheduler.get_job_status()["other"].state is JobState.WAITING
    assert masks(server.pid) == before
    (log,) = chosen.log_dir.glob("*.txt")
    assert violations(log.read_text()) == []
    assert f"start spin [{LAST}] 3" in log.read_text()


def test_what_would_hurt_memcached_or_makes_no_sense_is_refused(settings):
    _, chosen = settings
    with Scheduler(chosen, memcached_cores=[FIRST]) as scheduler:
        with pytest.raises(ValueError, match="held by memcached"):
            scheduler.start_batch_job("spin", cores=[FIRST])
        with pytest.raises(ValueError, match="give some of"):
            scheduler.start_batch_job("spin", cores=[9999])
        with pytest.raises(ValueError, match="not running"):
            scheduler.pause_job("spin")
        with pytest.raises(KeyError):
            scheduler.start_batch_job("nobody", cores=[LAST])
        scheduler.start_batch_job("spin", cores=[LAST])
        with pytest.raises(ValueError, match="another job"):
            scheduler.start_batch_job("other", cores=[LAST])
        with pytest.raises(ValueError, match="move or pause it first"):
            scheduler.update_memcached_cores([FIRST, LAST])
        scheduler.pause_job("spin")
        scheduler.update_memcached_cores([FIRST, LAST])
        with pytest.raises(ValueError, match="held by"):
            scheduler.unpause_job("spin")
