"""A runtime that only pretends, for `--dry-run`: every wish is granted at once and no job ever ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from colocate.cores import CoreSet
from colocate.host.runtime import Progress
from colocate.jobs import JobEvent, JobEventKind, JobSpec
from colocate.move import OnExit
from colocate.view import JobSample


class PretendRuntime:
    """Says yes to everything and touches nothing."""

    name = "dry-run"

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._events: list[JobEvent] = []

    def prepare(self, jobs: Sequence[JobSpec], progress: Progress) -> None:
        """Nothing is needed."""

    def create(self, job: JobSpec, threads: int, cores: CoreSet) -> None:  # noqa: ARG002 -- the Protocol's shape
        """CREATED follows."""
        self._tell(job.name, JobEventKind.CREATED)

    def start(self, job: str, cores: CoreSet) -> None:
        """STARTED follows."""
        self._tell(job, JobEventKind.STARTED, cores)

    def resize(self, job: str, cores: CoreSet) -> bool:  # noqa: ARG002 -- the Protocol's shape
        """Done."""
        return True

    def pause(self, job: str) -> bool:  # noqa: ARG002 -- the Protocol's shape
        """Done."""
        return True

    def resume(self, job: str) -> bool:  # noqa: ARG002 -- the Protocol's shape
        """Done."""
        return True

    def stop(self, job: str) -> None:
        """EXITED follows."""
        self._tell(job, JobEventKind.EXITED)

    def look(self) -> Mapping[str, JobSample]:
        """The kernel knows nothing of these jobs."""
        return {}

    def events(self) -> list[JobEvent]:
        """What was granted since the last call."""
        events, self._events = self._events, []
        return events

    def close(self, on_exit: OnExit, deadline_s: float) -> list[str]:  # noqa: ARG002 -- the Protocol's shape
        """Nothing is left behind."""
        return []

    def _tell(self, job: str, kind: JobEventKind, cores: CoreSet = frozenset()) -> None:
        self._events.append(JobEvent(job, kind, time.monotonic(), cores=cores))
        self._notify()
