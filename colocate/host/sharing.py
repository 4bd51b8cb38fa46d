"""Where memcached and the jobs compete for a core, and what gives the jobs idle priority there.

Weights are compared between siblings of one parent only. So what counts is the level at which the path of memcached's
control group and that of the jobs part, and the weight belongs on the jobs' side of it: `cpu.idle` (sched(7),
SCHED_IDLE, for a group), else the lowest weight. A group in which anybody else's process stands is never touched.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import os
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from colocate.host import procfs
from colocate.host.cgroup import JobCgroup, Place, find_place, hierarchies, may_weigh, run_group

Driver = Literal["cgroupfs", "systemd", "process"]

_DOCKERS = {"cgroupfs": ("docker",), "systemd": ("system.slice",)}  # where the engine puts containers by default
_REMOVE_S, _ASK_AGAIN_S = 2.0, 0.01  # a group may be removed some milliseconds after its last process has ended
_SYSTEMD_S = 10.0


class CannotShareError(Exception):
    """Nothing gives the jobs idle priority beside memcached; the text says why."""


class Means(enum.StrEnum):
    """What idle priority is given to."""

    JOB = "each job's group"
    RUN = "a group of the run's own"
    THREADS = "the jobs' threads"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the jobs of a run will stand in the hierarchy of the CPU controller.

    Attributes:
        driver: who makes their groups: the Docker Engine itself, systemd for it, or nobody (plain processes).
        parent: the group in which each job's own group will stand, or the job itself where it gets none.
        grouped: whether each job gets a group with a weight.
    """

    driver: Driver
    parent: tuple[str, ...]
    grouped: bool = True


@dataclass(frozen=True, slots=True)
class Mechanism:
    """How the jobs get idle priority where they meet memcached.

    Attributes:
        means: what it is given to.
        driver: as in `Standing`.
        mount: where the CPU controller's hierarchy is mounted.
        service: memcached's group when this was decided.
        meet: the group below which the two paths part.
        parent: as in `Standing`, after the decision; with `Means.RUN` it is the group of the run's own.
        leaf: begins the names of what is made for the probe.
    """

    means: Means
    driver: Driver
    mount: Path
    service: tuple[str, ...]
    meet: tuple[str, ...]
    parent: tuple[str, ...]
    leaf: str

    @property
    def cgroup_parent(self) -> str:
        """What the Docker Engine is told; a bare name with systemd, which wants a slice."""
        return self.parent[-1] if self.driver == "systemd" else _shown(self.parent)

    @property
    def jobs(self) -> str:
        """Where the jobs stand, for people."""
        if self.means is Means.THREADS:
            return _shown(self.parent)
        job = {"cgroupfs": "ID", "systemd": "docker-ID.scope", "process": "JOB"}[self.driver]
        return _shown((*self.parent, job))

    def __str__(self) -> str:
        return f"memcached in {_shown(self.service)}, jobs in {self.jobs}, they part below {_shown(self.meet)}"

    def directories(self, root: Path = Path("/")) -> list[Path]:
        """What `Sharing` may make, or the engine for it: to be removed at the end, also after a crash."""
        found = [self.mount.joinpath(*self.meet, f"{self.leaf}-sleeper")]
        if self.means is Means.JOB and self.driver == "cgroupfs":
            found.append(self.mount.joinpath(*self.parent, f"{self.leaf}-spinner"))
        if self.means is Means.RUN:
            if self.driver == "process":
                found.append(self.mount.joinpath(*self.parent))
            else:
                found += [mount.joinpath(*self.parent) for mount in hierarchies(root)]
        return found


def standing(driver: Driver, run_id: str, root: Path = Path("/")) -> Standing:
    """Where a run's jobs will stand if nothing is done about it.

    Raises:
        CannotShareError: there is no CPU controller.
    """
    if driver != "process":
        return Standing(driver, _DOCKERS[driver])
    place = _place("self", root)
    if may_weigh(place.path):
        return Standing(driver, (*place.parts, run_group(run_id)))
    return Standing(driver, _effective(place).parts, grouped=False)


def choose(service: Place, jobs: Standing, run_id: str) -> Mechanism:
    """The mechanism that has an effect between memcached and such jobs.

    Raises:
        CannotShareError: there is none.
    """
    leaf = run_group(run_id)
    meet = _common(service.parts, jobs.parent)
    means, parent = Means.JOB, jobs.parent
    if len(meet) == len(parent):
        means = Means.JOB if jobs.grouped else Means.THREADS
    elif jobs.driver != "process":  # the jobs' side of the parting is the engine's, with everybody's containers
        means = Means.RUN
        if jobs.driver == "systemd":
            leaf = f"{leaf.replace('-', '_')}.slice"  # a dash would make it a part of another slice (systemd.slice(5))
        parent = (*meet, leaf)
    elif jobs.grouped and len(meet) == len(parent) - 1:
        means = Means.RUN
    else:
        side = _shown(parent[: len(meet) + 1])
        raise CannotShareError(
            f"memcached ({_shown(service.parts)}) competes with {side}, where others stand beside our processes"
        )
    return Mechanism(means, jobs.driver, service.mount, service.parts, meet, parent, run_group(run_id))


def choose_here(service_pid: int, driver: Driver, run_id: str, root: Path = Path("/")) -> Mechanism:
    """As `choose`, for a memcached that runs.

    Raises:
        CannotShareError: there is no such mechanism.
    """
    return choose(_place(service_pid, root), standing(driver, run_id, root), run_id)


class Sharing:
    """Gives jobs idle priority where they meet memcached, says whether they have it, and takes it back.

    Args:
        mechanism: how.
        root: where /proc and the cgroup mounts lie.
    """

    def __init__(self, mechanism: Mechanism, root: Path = Path("/")) -> None:
        self.mechanism = mechanism
        self._root = root
        self._parent = mechanism.mount.joinpath(*mechanism.parent)
        self._run = JobCgroup(weight=self._parent) if mechanism.means is Means.RUN else None
        self._seen: tuple[bytes, bytes] | None = None
        self._fits = True
        self._lock = threading.Lock()  # the run's group is every container's

    def open(self) -> None:
        """Make the run's own group, where there is to be one, with idle priority; systemd makes its slice itself.

        Raises:
            CannotShareError: not permitted, or the group has no weight.
        """
        if self._run is None or self.mechanism.driver == "systemd":
            return
        try:
            self._parent.mkdir(exist_ok=True)
        except OSError as error:
            raise CannotShareError(f"{self._parent} cannot be made: {error.strerror}") from error
        if not self._run.give_way():
            raise CannotShareError(f"{self._parent} has no CPU weight to set")

    def how(self, group: JobCgroup) -> str:
        """The file and its value, or the scheduling policy, by which a job gives way."""
        if self.mechanism.means is Means.THREADS:
            return "SCHED_IDLE"
        return (self._run or group).how_it_yields()

    @property
    def what(self) -> str:
        """What idle priority lies on, for people."""
        means = self.mechanism.means
        return f"{means}, {_shown(self.mechanism.parent)}" if means is Means.RUN else str(means)

    def holds(self, group: JobCgroup, pid: int) -> bool:
        """Whether a job has idle priority where it meets memcached, read back.

        Args:
            group: the job's own group.
            pid: its first process.
        """
        if self.mechanism.means is Means.THREADS:
            try:
                return os.sched_getscheduler(pid) == os.SCHED_IDLE
            except OSError:  # it has just ended, and takes no core any more
                return True
        with self._lock:
            return self._stands(group) and (self._run or group).yields()

    def give(self, group: JobCgroup, pids: Iterable[int]) -> bool:
        """Give a job idle priority where it meets memcached; True when it reads so.

        Args:
            group: the job's own group.
            pids: its processes.
        """
        if self.mechanism.means is Means.THREADS:
            done = [_set_policy(pid, os.SCHED_IDLE, self._root) for pid in pids]
            return all(done)
        with self._lock:
            return self._stands(group) and (self._run or group).give_way()

    def take_back(self, group: JobCgroup, pids: Iterable[int]) -> None:
        """Let a job that outlives the run be as it would have been without: containers have the lowest weight."""
        if self.mechanism.means is Means.THREADS:
            for pid in pids:
                _set_policy(pid, os.SCHED_OTHER, self._root)
        elif self.mechanism.means is Means.JOB:
            group.take_back(lowest=True)

    def fits(self, service_pid: int) -> bool:
        """Whether memcached and the jobs still meet where it was proved; cheap as long as nothing changes.

        Memcached may have been restarted or moved into another group. And threads in one group with it are apart from
        it as soon as that group hands the CPU controller down, as systemd has it do for the first unit with a weight.
        """
        seen = (
            _bytes(self._root / "proc" / str(service_pid) / "cgroup"),
            _bytes(self._parent / "cgroup.subtree_control") if self.mechanism.means is Means.THREADS else b"",
        )
        if seen != self._seen:
            self._seen, self._fits = seen, self._meets(service_pid)
        return self._fits

    def close(self, wait_s: float = _REMOVE_S) -> list[str]:
        """Remove what was made, as `remove_groups` does."""
        if self._run is not None:
            with self._lock:
                self._run.close()
        return remove_groups(self.mechanism.directories(self._root), wait_s)

    def _meets(self, service_pid: int) -> bool:
        mechanism = self.mechanism
        place = find_place(service_pid, "cpu", self._root)
        if place is None or place.mount != mechanism.mount:
            return False
        if mechanism.means is Means.THREADS and _effective(_place("self", self._root)).parts != mechanism.parent:
            return False
        return _common(place.parts, mechanism.parent) == mechanism.meet

    def _stands(self, group: JobCgroup) -> bool:
        """Whether a job's group is where it was to be: only there the weight counts."""
        return group.weight is not None and group.weight.parent == self._parent


def remove_groups(directories: Iterable[Path], wait_s: float = _REMOVE_S) -> list[str]:
    """Remove groups that a run has made; one that still has processes after that time gets the default weight back.

    Returns:
        which are still there, one line each.
    """
    left = []
    end_s = time.monotonic() + wait_s
    for path in directories:
        while path.is_dir() and not _removed(path):
            if time.monotonic() > end_s:
                JobCgroup(weight=path).take_back(lowest=False)
                left.append(f"control group {path} is still in use: it has its weight back")
                break
            time.sleep(_ASK_AGAIN_S)
    return left


def _removed(path: Path) -> bool:
    groups = [Path(group) for group, _, _ in os.walk(path)]  # which lets them vanish meanwhile, as rglob does not
    if any(_processes(group) for group in groups):
        return False
    if path.name.endswith(".slice"):  # systemd's to remove; stopping it ends whatever is in it: nothing
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            argv = ["systemctl", "stop", path.name]
            subprocess.run(argv, capture_output=True, timeout=_SYSTEMD_S, check=False)
    for group in reversed(groups):
        with contextlib.suppress(OSError):
            group.rmdir()
    return not path.exists()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _processes(group: Path) -> str:
    return _bytes(group / "cgroup.procs").decode().strip()


def _set_policy(pid: int, policy: int, root: Path) -> bool:
    """Set the scheduling policy of every thread of a process; what ends meanwhile needs none."""
    for thread in procfs.threads(pid, root):
        try:
            os.sched_setscheduler(thread, policy, os.sched_param(0))
        except ProcessLookupError:
            continue
        except OSError:
            return False
    return True


def _place(pid: int | str, root: Path) -> Place:
    place = find_place(pid, "cpu", root)
    if place is None:
        raise CannotShareError(f"the CPU control group of process {pid} is not to be seen here")
    return place


def _effective(place: Place) -> Place:
    """The group whose weight counts for a process: under version 2 the controller may end further up."""
    parts = place.parts
    if (place.path / "cgroup.controllers").exists():
        while parts and not place.mount.joinpath(*parts, "cpu.weight").exists():
            parts = parts[:-1]
    return Place(place.mount, parts)


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return tuple(part for part, _ in pairs)


def _shown(parts: tuple[str, ...]) -> str:
    return "/" + "/".join(parts)
