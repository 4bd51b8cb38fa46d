"""The engine's record of one container: what it was told of cores and pauses, and how it is told more."""

from __future__ import annotations

import time

from docker import APIClient
from docker.types import LogConfig

from colocate.cores import CoreSet, format_ranges
from colocate.host.engine import ENGINE_ERRORS, JOB_LABEL, RUN_LABEL, is_conflict
from colocate.jobs import JobSpec

_LOG = LogConfig(type="json-file", config={"max-size": "1m", "max-file": "1"})  # a chatty job cannot fill the disk

_NEVER = "0001-01-01T00:00:00Z"  # when a container has started that has not


class Record:
    """What the engine has on record, as far as we know. Only the container's worker calls it.

    Every method that calls the engine raises one of `ENGINE_ERRORS` where that refuses, and believes nothing new then.

    Attributes:
        asked_s: since when a start has not been answered, on the monotonic clock: it may have come through.
        unseen: it has started, and its process is not known yet.

    Args:
        quick: a client with a short time-out, for ordinary calls.
        patient: one with a long time-out, for what waits for disks or processes.
        cores: the cpuset at its creation.
        parent: the control group (with systemd: the slice) in which its own is to stand; None is the engine's default.
    """

    def __init__(self, quick: APIClient, patient: APIClient, cores: CoreSet, parent: str | None = None) -> None:
        self.id = ""
        self.cores = cores
        self.paused = False
        self.asked_s: float | None = None
        self.unseen = False
        self._started = _NEVER
        self._parent = parent
        self._quick = quick
        self._patient = patient

    def create(self, run_id: str, spec: JobSpec, threads: int) -> None:
        """Create the container."""
        host = self._patient.create_host_config(
            cpuset_cpus=format_ranges(self.cores),  # explicit, because one can never be unset later
            network_mode=spec.network,
            # The lowest there is: what stands beside the container in the hierarchy goes first. Only at its creation:
            # with `cpu.idle` the engine can change it no more.
            cpu_shares=2,
            cgroup_parent=self._parent,
            log_config=_LOG,
        )
        name, labels = f"colocate-{run_id}-{spec.name}", {RUN_LABEL: run_id, JOB_LABEL: spec.name}
        try:
            made = self._patient.create_container(
                spec.image, spec.argv(threads), name=name, host_config=host, labels=labels
            )
        except ENGINE_ERRORS as error:
            if not is_conflict(error):
                raise
            made = self._patient.inspect_container(name)  # of an earlier try whose answer was lost
            if not labels.items() <= made["Config"]["Labels"].items():
                raise
        self.id, self.asked_s, self.unseen, self._started = made["Id"], None, False, _NEVER

    def start(self) -> int:
        """Start it; its init's pid, 0 if that is over already.

        After a start that was not answered it is not started a second time if that one has come through.
        """
        state = self._patient.inspect_container(self.id)["State"] if self.asked_s is not None else {}
        self.asked_s = self.asked_s or time.monotonic()
        if state.get("StartedAt", self._started) == self._started:
            self._patient.start(self.id)
            self.unseen = True
            state = self._patient.inspect_container(self.id)["State"]
        self.asked_s, self.unseen, self._started, self.paused = None, False, state["StartedAt"], False
        return int(state["Pid"])

    def move(self, cores: CoreSet) -> None:
        """Have it say `cores`; the engine writes them into the container's files, too."""
        if cores != self.cores:
            self.write_cores(cores)

    def write_cores(self, cores: CoreSet) -> None:
        """As `move`, even if it says so already."""
        self._quick.update_container(self.id, cpuset_cpus=format_ranges(cores))
        self.cores = cores

    def set_paused(self, *, paused: bool) -> None:
        """Have it say so; the engine refuses to pause what is frozen already, and to resume what is not."""
        (self._quick.pause if paused else self._quick.unpause)(self.id)
        self.paused = paused

    def says_paused(self, *, paused: bool) -> bool:
        """Whether it runs, and is paused or not as asked; False where the engine does not answer."""
        try:
            state = self._quick.inspect_container(self.id)["State"]
        except ENGINE_ERRORS:
            return False
        self.paused = state["Paused"]
        return bool(state["Running"]) and self.paused == paused
