import json
from pathlib import Path

import docker
import pytest

from tests.live import colocate, masks
from tests.memcached_fixture import free_port, running_memcached

pytestmark = pytest.mark.live


@pytest.fixture
def server():
    with running_memcached() as made:
        yield made


def at(server):
    return ["selftest", "--memcached-ip", server.ip, "--port", str(server.port)]


def ours(client: docker.DockerClient) -> list[str]:
    return [c.name for c in client.containers.list(all=True, filters={"label": "colocate.run=selftest"})]


def test_every_component_passes_here_and_nothing_is_left(tmp_path, server, docker_client):
    before = masks(server.pid)
    done = colocate(*at(server), "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert [check for check in report["checks"] if not check["ok"]] == []
    assert (report["ok"], done.returncode) == (True, 0)
    components = {"privileges", "monitor", "memcached", "docker", "sharing", "policy", "log"}
    assert {check["component"] for check in report["checks"]} == components
    assert {"component", "name", "ok", "ms", "cure"} <= set(report["checks"][0])
    names = [check["name"] for check in report["checks"] if check["component"] == "docker"]
    assert names == ["engine", "create", "start", "resize", "pause", "resume", "stop", "remove"]
    sharing = {check["name"]: check["detail"] for check in report["checks"] if check["component"] == "sharing"}
    assert list(sharing) == ["hierarchy", "mechanism", "sleeper", "memcached", "undone"]
    assert sharing["hierarchy"].startswith("memcached in /")
    assert "us late alone and" in sharing["sleeper"]
    assert not list(Path("/sys/fs/cgroup").glob("**/colocate[-_]selftest*"))
    assert masks(server.pid) == before
    assert ours(docker_client) == []
    assert list(tmp_path.iterdir()) == []


def test_one_component_a_line_each(tmp_path, server):
    done = colocate(*at(server), "--test", "log", cwd=tmp_path)
    assert done.returncode == 0
    told = [line.split()[:3] for line in done.stdout.splitlines()]
    assert told == [["pass", "log", "format"], ["pass", "log", "directory"]]


def test_a_failure_names_the_cure(tmp_path):
    port = str(free_port())
    done = colocate("selftest", "--port", port, "--test", "memcached", cwd=tmp_path)
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1
    assert "not running" in failed[0]
    assert " -> start it" in failed[0]
