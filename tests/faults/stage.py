"""What a live injection needs: a memcached, jobs that a test knows again, a run of them, and a watchman beside it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import pytest

from colocate.host import proctree
from colocate.host.cgroup import JobCgroup, make
from tests.faults.ledger import Injection
from tests.faults.watchman import Fault, Watchman, injected
from tests.live import Run, catalogue, running
from tests.memcached_fixture import Memcached, eventually


@dataclass(slots=True)
class Stage:
    """One test's; `begin` may be called more than once.

    Attributes:
        runtime: `docker` or `process`.
        behave: the jobs' program, as it lies here.
        image: the image that has it.
        client: the engine; None for processes.
        env: variables of the run's environment.
        watchman: the one of the run in progress.
    """

    directory: Path
    server: Memcached
    ledger: list[Injection]
    runtime: str
    behave: Path
    image: str
    client: docker.DockerClient | None
    env: dict[str, str] = field(default_factory=dict)
    token: str = field(default_factory=lambda: f"faults-{secrets.token_hex(4)}")
    _watchman: Watchman | None = None

    @property
    def watchman(self) -> Watchman:
        assert self._watchman is not None, "nothing runs yet"
        return self._watchman

    def arguments(self, jobs: Mapping[str, str], *more: str) -> list[str]:
        """Of a run whose jobs behave like that: whole cores, a policy that gives memcached one."""
        docker_jobs = self.runtime == "docker"
        prefix, where = ("/behave", None) if docker_jobs else ("./behave", self.behave.parent)
        lines = {name: f"{prefix} {line} {self.token}" for name, line in jobs.items()}
        file = catalogue(self.directory / "jobs.toml", self.image, lines, where)
        policy = () if "--policy" in more else ("--policy", "static", "--set", "service_cores=1")
        share = () if "--share" in more else ("--no-share",)
        words = (word for word in more if word != "--share")
        return ["--jobs", str(file), "--runtime", self.runtime, *policy, *share, *words]

    @contextmanager
    def begin(
        self, jobs: Mapping[str, str], *more: str, watch: Mapping[str, Any] | None = None, **how: Any
    ) -> Iterator[Run]:
        """A run with a watchman beside it; `watch` are arguments of his, `how` of `tests.live.Run`.

        Nothing may have been broken when it is over.
        """
        with self.watched(**(watch or {})):
            env = {**self.env, **how.pop("env", {})}
            with running(self.directory, self.server, *self.arguments(jobs, *more), env=env, **how) as run:
                yield run
            self.watchman.look()
        assert not self.watchman.breaches

    @contextmanager
    def watched(self, **watch: Any) -> Iterator[Watchman]:
        """A watchman without a run."""
        with Watchman(self.server, self.token, self.directory, self.client, **watch) as self._watchman:
            yield self._watchman

    @contextmanager
    def injected(self, fault: int) -> Iterator[Fault]:
        """See `tests.faults.watchman.injected`."""
        with injected(self.ledger, fault, self.watchman) as made:
            yield made

    @contextmanager
    def group(self) -> Iterator[JobCgroup]:
        """A control group for memcached, or a thread of it; at the end both are gone."""
        made = make(self.token)
        try:
            yield made
        finally:
            self.server.stop()
            eventually(made.remove, "the group is gone")

    def process(self) -> int:
        """The one process of the one job of the run in progress, once it is the job's program."""
        eventually(lambda: len(self.watchman.jobs()) == 1, "the job's program runs")
        return self.watchman.jobs()[0]

    def first_process(self, job: str) -> int:
        """The first process of a job of the run in progress; 0 until there is one."""
        if self.client is not None:
            return int(self.container(job).attrs["State"]["Pid"])
        mark = f"{proctree.MARK}=".encode()
        for pid in self.watchman.jobs():
            with suppress(OSError):
                marks = [
                    word for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if word.startswith(mark)
                ]
                if marks and marks[0].endswith(f"/{job}".encode()):
                    return pid
        return 0

    def container(self, job: str) -> docker.models.containers.Container:
        """The container of a job of the run in progress."""
        assert self.client is not None
        found = self.client.containers.list(all=True, filters={"label": f"colocate.job={job}"})
        (one,) = [each for each in found if self.token in each.attrs["Config"]["Cmd"]]
        return one


def make_stage(
    request: pytest.FixtureRequest, directory: Path, server: Memcached, ledger: list[Injection], runtime: str
) -> Stage:
    """A stage on the machine's own engine, or without one."""
    behave = request.getfixturevalue("behave_binary")
    if runtime == "process":
        return Stage(directory, server, ledger, runtime, behave, "none", None)
    image, client = request.getfixturevalue("behave_image"), request.getfixturevalue("docker_client")
    return Stage(directory, server, ledger, runtime, behave, image, client)
