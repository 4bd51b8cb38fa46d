"""The invariants as the kernel sees them, looked at again and again while a run goes on, and what is left after it."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker

from colocate.eventlog import violations
from colocate.host.cgroup import directory
from tests.faults.ledger import Injection
from tests.live import masks
from tests.memcached_fixture import DEADLINE_S, Memcached

FULL = bool(os.environ.get("FAULTS"))  # `make faults` sets it: more of everything, and the two seconds are insisted on
PROMISE_S = 2.0  # within which the machine is put back, or jobs are reconciled
OFTEN = {"patience_s": DEADLINE_S}  # of a watchman, where the test itself moves cores, again and again
_LOOK_S = 0.1
_MAIN = "behave"  # the program that all jobs here are


def times(usual: int, full: int) -> int:
    """How often to inject: in the usual suite, and in `make faults`."""
    return full if FULL else usual


def in_time(seconds: float) -> bool:
    """Whether a recovery was quick enough: `make faults` takes the promise at its word, else a slow machine may be."""
    return seconds <= (PROMISE_S if FULL else DEADLINE_S)


class Watchman:
    """Looks ten times a second; what breaks an invariant is kept in `breaches`.

    An overlap of memcached's cores and a job's counts when the job uses CPU there for longer than `patience_s`:
    memcached's growth comes before the jobs' shrinking, and a foreign change lasts until it is seen. As much time
    without one makes up for it, so that one that comes and goes counts, too. A look that comes late itself counts as
    two periods at most: on a machine so slow the controller is late, too.

    Args:
        server: the memcached.
        token: the last word of every job's command line.
        directory: the run's, with `logs` and `state`.
        client: the engine that has the containers; None where there are none.
        cores: those that the run may manage.
        floor: how many cores memcached has at least.
        sharing: jobs may run on memcached's cores at idle priority.

    Attributes:
        checks: how often all was looked at.
        breaches: one line each.
    """

    def __init__(
        self, server: Memcached, token: str, directory: Path, client: docker.DockerClient | None = None, *,
        cores: frozenset[int] = frozenset(os.sched_getaffinity(0)), floor: int = 1, sharing: bool = False,
        patience_s: float = 1.0,
    ) -> None:  # fmt: skip
        self.checks = 0
        self.breaches: list[str] = []
        self.before = masks(server.pid)
        self._server, self._token, self._directory, self._client = server, token, directory, client
        self._cores, self._floor, self._sharing, self._patience_s = cores, floor, sharing, patience_s
        self._overlaps: dict[int, tuple[float, int]] = {}  # by pid: for how long, CPU time at the last look
        self._looked_s = time.monotonic()
        self._runs: set[str] = set()
        self._excused = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watchman", daemon=True)

    def __enter__(self) -> Watchman:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @contextlib.contextmanager
    def excused(self) -> Iterator[None]:
        """Nobody can keep the cores apart meanwhile: the controller is frozen, or others have memcached's pid."""
        self._excused.set()
        try:
            yield
        finally:
            self._excused.clear()

    def look(self) -> None:
        """Check everything once."""
        service = self._masks(self._server.pid)
        jobs = {pid: self._masks(pid) for pid in self.jobs()}
        for name, found in (("memcached", service), *((f"job process {pid}", of) for pid, of in jobs.items())):
            for mask in found:
                if not mask or not mask <= self._cores:
                    self._breach(f"{name} on {sorted(mask)}, managed are {sorted(self._cores)}")
        if any(len(mask) < self._floor for mask in service):
            self._breach(f"memcached on {[sorted(mask) for mask in service]}, its floor is {self._floor}")
        self._apart(frozenset().union(*service), jobs)
        self._log()
        with contextlib.suppress(OSError, ValueError):
            self._runs.add(json.loads((self._directory / "state/state.json").read_text())["run"])
        self.checks += 1

    def jobs(self) -> list[int]:
        """The processes of the jobs, by their command lines."""
        found = []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    place = Path(entry.path)
                    words = (place / "cmdline").read_bytes().split(b"\0")
                    if self._token.encode() in words and (place / "comm").read_text().strip() == _MAIN:
                        found.append(int(entry.name))
        return found

    def left(self) -> list[str]:
        """What is not as it was before the run, one line each."""
        found = []
        now = {}
        for task in os.scandir(f"/proc/{self._server.pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                now[int(task.name)] = os.sched_getaffinity(int(task.name))
        main = next(iter(self.before.values()))
        found += [f"thread {tid} on {mask}" for tid, mask in now.items() if mask != self.before.get(tid, main)]
        found += [f"job process {pid}" for pid in self.jobs()]
        if self._client is not None:
            listed = self._client.api.containers(all=True, filters={"label": "colocate.run"})
            found += [f"container {one['Names'][0]}" for one in listed if self._token in one["Command"]]
        for run in self._runs:
            for place in (
                *Path("/sys/fs/cgroup").glob(f"*/colocate[-_]{run}*"),
                Path(f"/sys/fs/cgroup/colocate-{run}"),
            ):
                found += [f"control group {place}"] * place.exists()
        state = self._directory / "state/state.json"
        return found + [str(state)] * state.exists()

    def back_after(self, since_s: float) -> float:
        """Wait until nothing is left; how long that took from then on, on the monotonic clock."""
        while left := self.left():
            assert time.monotonic() < since_s + 2 * DEADLINE_S, f"not put back: {left}"
            time.sleep(0.01)
        return time.monotonic() - since_s

    def _work(self) -> None:
        while not self._over.wait(_LOOK_S):
            self.look()

    def _breach(self, what: str) -> None:
        if what not in self.breaches:
            self.breaches.append(what)

    def _masks(self, pid: int) -> set[frozenset[int]]:
        """The distinct masks of the threads of a process that may be over at any moment."""
        found = set()
        with contextlib.suppress(OSError):
            for task in os.scandir(f"/proc/{pid}/task"):
                with contextlib.suppress(ProcessLookupError):
                    found.add(frozenset(os.sched_getaffinity(int(task.name))))
        return found

    def _apart(self, service: frozenset[int], jobs: dict[int, set[frozenset[int]]]) -> None:
        now_s = time.monotonic()
        passed_s, self._looked_s = min(now_s - self._looked_s, 2 * _LOOK_S), now_s
        before, self._overlaps = self._overlaps, {}
        for pid, found in jobs.items():
            shared = service & frozenset().union(*found)
            used = _cpu_ticks(pid)
            if used is None or self._excused.is_set():
                continue
            for_s, used_before = before.get(pid, (0.0, used))
            overlaps = bool(shared) and used > used_before and not (self._sharing and _idle(pid))
            self._overlaps[pid] = (for_s + passed_s if overlaps else max(0.0, for_s - passed_s), used)
            if overlaps and self._overlaps[pid][0] > self._patience_s:
                self._breach(f"job process {pid} has run on memcached's cores {sorted(shared)} for too long")

    def _log(self) -> None:
        for path in (self._directory / "logs").glob("log*.txt"):
            text = path.read_text()
            whole = text[: text.rfind("\n") + 1]  # a line that is being written
            wrong = (
                [line for line in violations(whole) if line != "the last line is not `end scheduler`"] if whole else []
            )
            if wrong:
                self._breach(f"{path.name}: {wrong[0]}")


def _idle(pid: int) -> bool:
    """Whether a process goes behind all others: by its own policy, or by a control group that it stands in."""
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(pid) == os.SCHED_IDLE:
            return True
    place = directory(pid, "cpu")
    return place is not None and any(
        _number(group / name) == value
        for group in (place, *place.parents)
        for name, value in (("cpu.idle", 1), ("cpu.shares", 2), ("cpu.weight", 1))
    )


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _cpu_ticks(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[11]) + int(fields[12])


@dataclass(slots=True)
class Fault:
    """One injection under way; `over` is when the fault ended, on the monotonic clock."""

    over_s: float = 0.0
    recovery_s: float | None = None

    def over(self) -> None:
        """The fault has just ended."""
        self.over_s = time.monotonic()

    def recovered(self) -> None:
        """All is as it must be again."""
        self.recovery_s = time.monotonic() - self.over_s


@contextlib.contextmanager
def injected(ledger: list[Injection], number: int, watchman: Watchman) -> Iterator[Fault]:
    """One injection of a fault, noted however it goes; fails for what the watchman has seen meanwhile."""
    fault, before = Fault(time.monotonic()), watchman.checks
    held = False
    try:
        yield fault
        watchman.look()
        held = not watchman.breaches
    finally:
        ledger.append(Injection(number, "live", watchman.checks - before, held, fault.recovery_s))
    assert held, watchman.breaches
