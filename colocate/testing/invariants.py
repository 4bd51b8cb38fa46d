"""What must hold at every instant of a run, whatever goes wrong; and that a run can be replayed.

`Watched` is a controller that remembers what it was told and what it said. `Invariants` looks after each of its steps,
and after every single act, at what the controller knows, at how the machine really is, and at the log on the disk.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colocate.controller import Controller
from colocate.cores import CoreSet
from colocate.eventlog import violations
from colocate.jobs import ENDED, JobState
from colocate.lifecycle import PATIENCE_S
from colocate.move import SERVICE, Move, MoveKind, OnExit
from colocate.testing.chaos import ChaosHost
from colocate.testing.others import Situation
from colocate.view import Observation, ServiceSample, Signal

RECOVERY_TICKS = 90  # a wish's patience (2 s) and a back-off (1 s) at the usual period, and a second and a half
LOOK_TICKS = 10  # twice the time between two looks at what the kernel says of jobs
RISING_S = 0.5
RISING = 1.2  # of the CPU use now over the least of the last `RISING_S`
_RISING_CORES = 0.1  # less than that is noise
_SHORTEST_MS = 1e-3  # no latency is shorter
_NO_LAST_LINE = "the last line is not `end scheduler`"


class BrokenError(AssertionError):
    """An invariant does not hold; the text begins with its number."""


@dataclass(slots=True)
class Step:
    """One tick of a controller: what it saw, what it asked for, what became of that."""

    seen: Observation
    moves: list[Move]
    outcomes: list[tuple[Move, dict[str, Any]]] = field(default_factory=list)


class Watched(Controller):
    """A controller that keeps a record of each step, and tells of each.

    Attributes:
        recording: the steps.
        stepping: called before a step, with what will be seen.
        settled: called after each outcome has been taken in; with the error, if the move failed.
    """

    recording: list[Step]
    stepping: Callable[[Observation], None]
    settled: Callable[[Move, str], None]

    def step(self, observation: Observation) -> list[Move]:
        """See `Controller.step`."""
        self.stepping(observation)
        moves = super().step(observation)
        self.recording.append(Step(observation, list(moves)))
        return moves

    def settle(self, move: Move, *, done: bool, now_s: float, error: str = "", took_s: float | None = None) -> None:
        """See `Controller.settle`."""
        outcome = {"done": done, "now_s": now_s, "error": error, "took_s": took_s}
        self.recording[-1].outcomes.append((move, outcome))
        super().settle(move, **outcome)  # type: ignore[arg-type]  # what came in
        self.settled(move, error)


def replay(recording: list[Step], controller: Controller) -> str:
    """Give a fresh controller what another one was given; where it first decides otherwise, empty if nowhere."""
    for number, step in enumerate(recording, 1):
        moves = controller.step(step.seen)
        if moves != step.moves:
            return f"step {number} at {step.seen.time_s:.3f} s: {moves} instead of {step.moves}"
        for move, outcome in step.outcomes:
            controller.settle(move, **outcome)
    return ""


class Invariants:
    """Watches one run.

    Args:
        controller: decides.
        host: lets the faults happen.
        look: how the machine really is.
        log_path: the event log.

    Attributes:
        checks: how often something was looked at.

    Raises:
        BrokenError: from any method, when something does not hold.
    """

    def __init__(self, controller: Watched, host: ChaosHost, look: Callable[[], Situation], log_path: Path) -> None:
        self.checks = 0
        self._controller = controller
        self._host = host
        self._look = look
        self._log_path = log_path
        self._log_size = -1
        self._before = look()
        self._held = 0  # memcached's cores when the tick began
        self._shared: frozenset[str] = frozenset()  # by the plan before
        self._sharers: set[str] = set()  # those that have not left memcached's cores since they shared them
        self._latency_s = -math.inf  # when it was last fresh
        self._used: deque[tuple[float, float]] = deque()  # memcached's CPU of late
        self._seen: Observation | None = None
        self._offline: CoreSet = frozenset()
        self._plugged_tick = -LOOK_TICKS  # when that has changed
        self._gap_s = 0.0  # between the last two observations
        self._excuses: dict[str, int] = {}  # as in the host's `touched`, prolonged while nothing can be looked at
        controller.recording = []
        controller.stepping, controller.settled = self.stepping, self.settled

    def stepping(self, seen: Observation) -> None:
        """A tick begins: what the last one left must be in order."""
        self.checks += 1
        self._log_is_legal()
        self._prolong()
        if seen.offline != self._offline:  # it is told just now
            self._offline, self._plugged_tick = seen.offline, self._host.tick
        else:
            self._in_order(seen.time_s)
        controller = self._controller
        self._held = len(controller.service_cores)
        if (decision := controller.decision) is not None:
            self._shared = decision.plan.share
        before_s, gap_s = (self._seen.time_s, self._gap_s) if self._seen else (-math.inf, 0.0)
        self._gap_s = seen.time_s - before_s if self._seen else 0.0
        if self._gap_s < 0 or (self._gap_s == 0 and self._seen and seen.service.cpu_cores.value is not None):
            seen = replace(seen, time_s=before_s, service=ServiceSample())  # of no time
        self._seen = seen
        now_s, service = seen.time_s, seen.service
        if _fresh(service.latency_ms, controller.regulator.limits.latency_max_age_s, _SHORTEST_MS):
            self._latency_s = now_s
        if _fresh(service.cpu_cores, 0.1) and self._gap_s <= max(1.0, 3 * gap_s):
            self._used.append((now_s, service.cpu_cores.value or 0.0))
        while self._used and not now_s - RISING_S <= self._used[0][0] <= now_s:
            self._used.popleft()

    def settled(self, move: Move, error: str) -> None:
        """A move was made, or failed."""
        self.checks += 1
        self._log_is_legal()
        controller, topology = self._controller, self._controller.topology  # what is online now
        has_cores = move.kind in (MoveKind.PIN, MoveKind.CREATE, MoveKind.START, MoveKind.RESIZE)
        if has_cores and not (move.cores and move.cores <= topology.cores):
            raise BrokenError(f"3: {move} is on no core, or on others than {sorted(topology.cores)}")
        if move.kind is MoveKind.PIN:
            self._pinned(move)
        elif not error:
            self._gave(move)
        decision = controller.decision
        if decision is not None and (more := decision.plan.share - self._shared) and (stale := self._stale()):
            raise BrokenError(f"5: {sorted(more)} may share although there is {stale}")

    def killed(self) -> None:
        """The controller died: the log must be legal as it stands."""
        self.checks += 1
        self._log_is_legal()

    def ended(self, on_exit: OnExit) -> None:
        """All is put back, and the jobs that had not ended are gone, paused or let be."""
        self.checks += 1
        now = self._look()
        if now.service != self._before.service:
            raise BrokenError(f"4: memcached is left on {sorted(now.service)}, was on {sorted(self._before.service)}")
        if wrong := [
            name for name, (_, paused) in now.jobs.items() if on_exit == "stop" or paused < (on_exit == "pause")
        ]:
            raise BrokenError(f"4: {wrong} are left running ({on_exit})")

    def told(self, *, interrupted: bool, lost_lines: int, on_exit: OnExit = "stop") -> None:
        """The run has ended in order: what it says of each job is true, and the log complete, but for a full disk."""
        self.checks += 1
        text = self._log_path.read_text(encoding="utf-8")
        if lost_lines:
            self._log_is_legal()
        elif found := violations(text):
            raise BrokenError(f"7: {found[0]}")
        for name, job in self._controller.jobs.items():
            completed = self._host.completed[name]
            ends = text.count(f" end {name}\n") if not lost_lines else job.state is JobState.FINISHED
            if completed > 1:
                raise BrokenError(f"6: {name} ran to its end {completed} times")
            if job.state not in ENDED and on_exit == "stop":
                raise BrokenError(f"6: {name} is {job.state} at the end")
            if ends != (job.state is JobState.FINISHED):
                raise BrokenError(f"6: {name} is {job.state}, with {ends} ends in the log")
            if (job.state is JobState.FINISHED) != bool(completed) and not interrupted:
                raise BrokenError(f"6: {name} is {job.state}, and ran to its end {completed} times")

    def _log_is_legal(self) -> None:
        size = self._log_path.stat().st_size
        if size == self._log_size:
            return
        self._log_size = size
        text = self._log_path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a full disk may take half a line
        if found := [one for one in violations(whole) if one != _NO_LAST_LINE]:
            raise BrokenError(f"7: {found[0]}")

    def _in_order(self, now_s: float) -> None:
        """Between two ticks: floor, sets, and who runs beside memcached."""
        real, controller = self._look(), self._controller
        limits, topology = controller.regulator.limits, controller.topology  # what was online at the last tick
        for target, cores in ((SERVICE, real.service), *((name, job[0]) for name, job in real.jobs.items())):
            if not cores or not cores <= controller.managed.cores:
                raise BrokenError(f"3: {target} is on {sorted(cores)}")
        if controller.decision is None or not controller.service_cores:
            return
        service = controller.service_cores
        if not self._excused(SERVICE):
            if len(real.service) < min(limits.floor_cores, len(topology.cores)):
                raise BrokenError(f"1: memcached has {len(real.service)} cores, the floor is {limits.floor_cores}")
            if real.service != service:
                raise BrokenError(f"11: memcached is on {sorted(real.service)}, not on {sorted(service)}")
        for name, (cores, paused) in real.jobs.items():
            job = controller.jobs[name]
            if self._excused(name) or job.state in ENDED:
                continue
            was_paused = job.state is JobState.PAUSED
            granted = (job.wish_cores, job.wish_paused) == (job.cores, was_paused)
            on_its_way = not granted and now_s - job.wish_s <= PATIENCE_S
            if name in controller.decision.plan.share:
                self._sharers.add(name)
            elif not cores & service:
                self._sharers.discard(name)
            # Where memcached's move is refused, those that have shared its cores stay there, at their idle priority.
            shares = name in controller.decision.plan.share or (name in self._sharers and self._excused(SERVICE))
            if not shares and not paused and not on_its_way and cores & service:
                raise BrokenError(f"2: {name} runs on {sorted(cores)}, memcached has {sorted(service)}")
            if not paused and not on_its_way and not cores <= topology.cores:
                raise BrokenError(f"9: {name} is left on {sorted(cores)}, online are {sorted(topology.cores)}")
            known = cores in (job.cores, job.wish_cores) and paused in (was_paused, job.wish_paused)
            looked = self._host.tick - self._plugged_tick > LOOK_TICKS
            if job.state in (JobState.RUNNING, JobState.PAUSED) and looked and not known:
                raise BrokenError(
                    f"11: {name} is {job.state} on {sorted(job.cores)}, really {sorted(cores)}, {paused=}"
                )

    def _pinned(self, move: Move) -> None:
        controller = self._controller
        online = len(controller.topology.cores)
        floor, held = min(controller.regulator.limits.floor_cores, online), min(self._held or online, online)
        if len(move.cores) < floor:
            raise BrokenError(f"1: memcached gets {len(move.cores)} cores, the floor is {floor}")
        if len(move.cores) >= held:
            return
        if stale := self._stale():
            raise BrokenError(f"5: memcached gets {len(move.cores)} cores instead of {self._held}, there is {stale}")
        if self._held and self._rising():
            raise BrokenError(f"1: memcached gets {len(move.cores)} cores instead of {self._held} while its load rises")

    def _gave(self, move: Move) -> None:
        """A job must not have been given a core that memcached has."""
        controller, name = self._controller, move.target
        decision, real = controller.decision, self._look()
        if decision is None or name in decision.plan.share:
            return
        service = controller.service_cores if self._excused(SERVICE) else real.service
        had = controller.jobs[name].cores
        match move.kind:
            case MoveKind.START:
                given = move.cores
            case MoveKind.RESIZE:
                given = move.cores - had
            case MoveKind.RESUME if not self._excused(name) and name in real.jobs:
                given = real.jobs[name][0]
            case MoveKind.RESUME:  # it has not started yet, or a fault has moved it
                given = controller.jobs[name].wish_cores
            case _:
                return
        if given & service:
            raise BrokenError(f"2: {move.kind} gives {name} {sorted(given)}, memcached has {sorted(service)}")

    def _stale(self) -> str:
        """Which signals are missing or stale, as the controller was told; empty if none is."""
        seen, limits = self._seen, self._controller.regulator.limits
        if seen is None:
            return "nothing seen"
        service = seen.service
        if not self._held:  # at the beginning something must be known
            known = _fresh(service.cpu_cores, limits.cpu_max_age_s) or _fresh(service.qps, limits.qps_max_age_s)
            return "" if known else "nothing known"
        if not _fresh(service.cpu_cores, limits.cpu_max_age_s):
            return "no fresh CPU"
        if not _fresh(service.qps, limits.qps_max_age_s):
            return "no fresh request rate"
        lost = seen.time_s - self._latency_s >= limits.latency_lost_s
        fresh = _fresh(service.latency_ms, limits.latency_max_age_s, _SHORTEST_MS)
        return "" if lost or fresh else "no fresh latency"

    def _rising(self) -> bool:
        """Whether memcached's CPU use, as it was told, is well above what it was a moment ago."""
        uses = [used for _, used in self._used]
        return bool(uses) and uses[-1] > max(RISING * min(uses), min(uses) + _RISING_CORES)

    def _excused(self, target: str) -> bool:
        """Whether a fault has touched it so lately that it need not be put right yet."""
        touched = self._host.touched.get(target)
        return touched is not None and self._host.tick - max(touched, self._excuses.get(target, 0)) < RECOVERY_TICKS

    def _prolong(self) -> None:
        """What cannot be looked at need not be put right meanwhile."""
        if self._host.blind == self._host.tick:
            self._excuses.update({target: self._host.tick for target in self._host.touched if self._excused(target)})


def _fresh(signal: Signal, max_age_s: float, least: float = 0.0) -> bool:
    return signal.value is not None and least <= signal.value < math.inf and signal.age_s <= max_age_s
