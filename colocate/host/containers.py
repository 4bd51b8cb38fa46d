"""Jobs as Docker containers: the table of them, what the engine tells of them, and the end of a run."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker

from colocate.cores import CoreSet
from colocate.host.container import Container
from colocate.host.engine import (
    CALL_TIMEOUT_S,
    ENGINE_ERRORS,
    JOB_LABEL,
    LONG_TIMEOUT_S,
    RUN_LABEL,
    START_TIMEOUT_S,
    ClientFactory,
    client_from_env,
    connect,
    containers_of,
    leftover_runs,
    prepare_images,
    remove_leftovers,
)
from colocate.host.runtime import Progress
from colocate.host.sharing import Sharing
from colocate.host.watcher import Watcher
from colocate.host.wishes import Engine
from colocate.jobs import JobEvent, JobSpec
from colocate.move import OnExit
from colocate.view import JobSample

if TYPE_CHECKING:
    from docker.types.daemon import CancellableStream  # a class with type parameters only in the stub

__all__ = ["ContainerRuntime", "leftover_runs", "remove_leftovers"]

_LIST_EVERY_S = 2.0  # the safety net below the event stream; costs about 1 ms
_RECONNECT_S = 0.2
_ACTIONS = ["kill", "die", "destroy", "pause", "unpause", "update"]


class ContainerRuntime:
    """A `Runtime` on the Docker Engine.

    Args:
        run_id: stands in the containers' names and labels.
        notify: called from any thread whenever an event was queued; must not block.
        root: where /proc and the cgroup mounts lie.
        factory: makes a client with a given time-out in seconds; None takes the engine that the environment names.
        sharing: gives jobs idle priority where they meet memcached; None where they need none.
    """

    name = "docker"

    def __init__(
        self, run_id: str, notify: Callable[[], None], *, root: Path = Path("/"), factory: ClientFactory | None = None,
        sharing: Sharing | None = None,
    ) -> None:  # fmt: skip
        self._run_id = run_id
        self._notify = notify
        self._root = root
        self._sharing = sharing
        self._factory = factory or client_from_env
        self._clients: list[docker.DockerClient] = []
        self._engine: Engine | None = None
        self._jobs: dict[str, Container] = {}
        self._events: deque[JobEvent] = deque()
        self._closing = threading.Event()
        self._stream: CancellableStream[dict[str, Any]] | None = None
        self._threads: list[threading.Thread] = []

    def prepare(self, jobs: Sequence[JobSpec], progress: Progress) -> None:
        """See `Runtime.prepare`; also reaches the engine, so it comes before everything else."""
        if self._engine is None:
            quick = connect(self._factory, START_TIMEOUT_S)
            quick.api.timeout = int(CALL_TIMEOUT_S)
            self._clients.append(quick)
            patient = connect(self._factory, LONG_TIMEOUT_S)
            self._clients.append(patient)
            watcher = Watcher("colocate-ends")
            self._engine = Engine(self._run_id, quick.api, patient.api, watcher, self._emit, self._root, self._sharing)
            for target in (self._follow, self._list):
                thread = threading.Thread(target=target, name=f"colocate-docker{target.__name__}", daemon=True)
                self._threads.append(thread)
                thread.start()
        prepare_images(self._clients[1], jobs, progress)

    def create(self, job: JobSpec, threads: int, cores: CoreSet) -> None:
        """See `Runtime.create`."""
        if self._engine is None:
            raise RuntimeError("prepare comes first")
        if job.name in self._jobs:
            self._jobs[job.name].create(job, threads, cores)
        else:
            self._jobs[job.name] = Container(self._engine, job, threads, cores)

    def start(self, job: str, cores: CoreSet) -> None:
        """See `Runtime.start`."""
        self._jobs[job].start(cores)

    def resize(self, job: str, cores: CoreSet) -> bool:
        """See `Runtime.resize`."""
        return self._jobs[job].resize(cores)

    def pause(self, job: str) -> bool:
        """See `Runtime.pause`."""
        return self._jobs[job].pause()

    def resume(self, job: str) -> bool:
        """See `Runtime.resume`."""
        return self._jobs[job].resume()

    def stop(self, job: str) -> None:
        """See `Runtime.stop`."""
        self._jobs[job].stop()

    def look(self) -> Mapping[str, JobSample]:
        """See `Runtime.look`."""
        return {name: sample for name, job in self._jobs.items() if (sample := job.sample()) is not None}

    def events(self) -> list[JobEvent]:
        """See `Runtime.events`."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def close(self, on_exit: OnExit, deadline_s: float) -> list[str]:
        """See `Runtime.close`."""
        engine = self._engine
        if engine is None or self._closing.is_set():
            return []
        end_s = time.monotonic() + deadline_s
        self._closing.set()
        for job in self._jobs.values():
            job.finish(on_exit)
        problems = []
        for name, job in self._jobs.items():
            job.thread.join(max(0.0, end_s - time.monotonic()))
            if job.thread.is_alive():
                problems.append(f"{name}: the Docker Engine has not answered within {deadline_s:g} s")
            elif job.error:
                problems.append(f"{name}: {job.error}")
        if on_exit == "stop":  # whatever carries our label and escaped our table
            patience_s = min(START_TIMEOUT_S, end_s - time.monotonic())  # an engine that hangs has used it up
            self._clients[0].api.timeout = int(max(CALL_TIMEOUT_S, patience_s))
            problems += remove_leftovers(self._clients[0], self._run_id, self._root)
        if self._stream is not None:
            self._stream.close()
        for thread in self._threads:
            thread.join(max(0.5, end_s - time.monotonic()))
        engine.watcher.close()
        for client in self._clients:
            client.close()
        return problems

    def _emit(self, event: JobEvent) -> None:
        self._events.append(event)
        self._notify()

    def _follow(self) -> None:
        """Read the engine's event stream, again and again if it breaks."""
        filters = {"type": "container", "label": f"{RUN_LABEL}={self._run_id}", "event": _ACTIONS}
        while not self._closing.is_set():
            try:
                with contextlib.closing(self._clients[0].api.events(decode=True, filters=filters)) as stream:
                    self._stream = stream
                    for event in stream:
                        attributes = event["Actor"]["Attributes"]
                        job = self._jobs.get(attributes[JOB_LABEL])
                        code = attributes.get("exitCode")
                        if job is not None:
                            job.hint(event["Actor"]["ID"], event["Action"], None if code is None else int(code))
            except (*ENGINE_ERRORS, ValueError, AttributeError):  # the last two: cut off in the middle of a line
                pass
            self._closing.wait(_RECONNECT_S)

    def _list(self) -> None:
        """Compare with the engine's list now and then: an event may be lost, and an engine that was away is back."""
        away = False
        while not self._closing.wait(_RECONNECT_S if away else _LIST_EVERY_S):
            asked_s = time.monotonic()
            try:
                listed = containers_of(self._clients[0], self._run_id)
            except ENGINE_ERRORS:
                away = True
                continue
            if away:
                away = False
                for job in tuple(self._jobs.values()):
                    job.engine_is_back()
            states = {one["Labels"][JOB_LABEL]: one["State"] for one in listed}
            for name, job in tuple(self._jobs.items()):
                job.listed(states.get(name), asked_s)
