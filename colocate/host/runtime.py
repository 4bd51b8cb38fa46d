"""The seam behind which jobs run: as Docker containers or as plain processes.

Nothing here blocks the loop: what is not done at once is done by a worker and reported by an event. The contract
suite in `tests/test_runtime_contract.py` holds for every implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from colocate.cores import CoreSet
from colocate.jobs import JobEvent, JobSpec
from colocate.move import OnExit
from colocate.view import JobSample

Progress = Callable[[str, float], None]  # (what is being done, share done between 0 and 1)


class Runtime(Protocol):
    """Runs the jobs of one run. A job is known by its name; every method but `prepare` and `close` returns at once.

    `resize`, `pause` and `resume` return True when the change has taken effect by the time they return (the fast
    path), False when a worker does it and an event will tell. They may be called in any order and often; the last
    wish wins, and its answer takes the place of an earlier one's that is still due. Wishes for a job that is being
    started are answered after STARTED. A wish for a job that is not running any more is not an error: its EXITED or
    GONE event is on its way, or has been reported. A start is followed by one of those once, never twice.
    """

    name: str

    def prepare(self, jobs: Sequence[JobSpec], progress: Progress) -> None:
        """Make ready whatever takes long (images) before the clock starts; blocks.

        Raises:
            UserError: an image is missing and cannot be pulled, or the engine cannot be used.
        """

    def create(self, job: JobSpec, threads: int, cores: CoreSet) -> None:
        """Create a job ahead of its start, with an explicit cpuset; CREATED or FAILED follows.

        Of one that waits for its start already, CREATED follows, too, or GONE where it was for other threads.
        """

    def start(self, job: str, cores: CoreSet) -> None:
        """Start a created job on `cores`, or run one that has ended once more; STARTED or FAILED follows."""

    def resize(self, job: str, cores: CoreSet) -> bool:
        """Move a running or paused job to `cores`; RESIZED or FAILED follows where it returns False."""

    def pause(self, job: str) -> bool:
        """Freeze every process of a job; PAUSED or FAILED follows where it returns False."""

    def resume(self, job: str) -> bool:
        """Thaw a job; RESUMED or FAILED follows where it returns False."""

    def stop(self, job: str) -> None:
        """End a job, paused or not, also one that ignores SIGTERM; EXITED or GONE follows."""

    def look(self) -> Mapping[str, JobSample]:
        """What the kernel says now of each job that runs or is paused; cheap, from files, never through a daemon."""

    def events(self) -> list[JobEvent]:
        """What has happened since the last call, in order."""

    def close(self, on_exit: OnExit, deadline_s: float) -> list[str]:
        """End the runtime: stop and remove every job of ours, or leave or pause those that run; blocks up to the
        deadline. Jobs that never started are removed in any case. Idempotent.

        Returns:
            what could not be ended, one line each.
        """  # noqa: D205 -- the summary needs two lines
