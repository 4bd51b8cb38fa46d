"""Faults by a seed, over the seams: what a host is told, says and does, and its clock.

A `colocate.testing.schedule.Schedule` says which fault begins at which tick. `ChaosHost` wraps any host and lets it
happen; what it did behind the controller's back stands in `touched`, so that a checker
(`colocate.testing.invariants`) knows what has to be put right. Every choice comes from the seed: the same schedule on
the same simulated machine gives the same log. What somebody else does to the machine is done by an `Others`: pretended
on a simulated machine, real on a real one. A fault that meets nothing (no move that it could fail, no job that it could
end) has not happened: it is not counted and touches nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

from colocate.cores import CoreSet
from colocate.jobs import JobEvent, JobEventKind
from colocate.move import SERVICE, Host, Move, MoveError, MoveKind, OnExit
from colocate.testing.others import Others, Pretended
from colocate.testing.schedule import Fault, Kind, Schedule
from colocate.view import Observation, ServiceSample, Signal

LISTING_S = 2.0  # a host that misses an event learns of it by listing; no host loses one for good
FREEZE_S = 30.0
_SIGNALS = ("cpu_cores", "wait_us", "wait_cores", "qps", "latency_ms")
_NONSENSE = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e3, 1e-3)  # the last two are factors: another unit
_CHANGES = {
    MoveKind.RESIZE: JobEventKind.RESIZED, MoveKind.PAUSE: JobEventKind.PAUSED, MoveKind.RESUME: JobEventKind.RESUMED
}  # fmt: skip
_WAITS = frozenset({Kind.VANISH, Kind.EXIT, Kind.IGNORED, Kind.REFUSED, Kind.ON_ITS_WAY, Kind.PARTIAL})  # for a victim
_BEGINNINGS = (MoveKind.CREATE, MoveKind.START)


class Killed(BaseException):
    """The controller is dead: no call of its host returns any more."""


class ChaosHost:
    """A host that lets a schedule's faults happen.

    Args:
        host: the real one.
        schedule: the faults.
        cores: the managed cores.
        others: do what somebody else does; None pretends it by the host's own moves.
        slow: how long the controller is held up, as a share of the usual; for a machine whose time is real.

    Attributes:
        tick: how often `observe` was called.
        steps: how often the controller has come back from the host; a kill hits between any two.
        injected: how many faults of each kind have happened.
        touched: by job (or memcached): the tick at which it was last changed, or kept from changing, by a fault.
        blind: the last tick at which affinities and jobs could not be looked at.
        completed: how often each job has run to its end.
    """

    def __init__(
        self, host: Host, schedule: Schedule, cores: CoreSet, others: Others | None = None, *, slow: float = 1.0
    ) -> None:
        self.tick = 0
        self.steps = 0
        self.injected: Counter[Kind] = Counter()
        self.touched: dict[str, int] = {}
        self.blind = -(1 << 30)
        self.completed: Counter[str] = Counter()
        self._host = host
        self._cores = cores
        self._others = others or Pretended(host, cores)
        self._slow = slow
        self._waiting = list(schedule.faults)
        self._kill_at = schedule.kill_at
        self._on: list[Fault] = []
        self._met: set[Fault] = set()  # those of them that have happened
        self._moves = 0  # of this tick
        self._running: list[str] = []
        self._held: list[tuple[float, JobEvent]] = []  # events that are told later, and when
        self._due: list[tuple[float, Move, bool]] = []  # moves that are made later, when, and whether that is told
        self._seen: Observation | None = None
        self._frozen: dict[Fault, ServiceSample] = {}

    def inject(self, fault: Fault) -> None:
        """One more fault, from the next tick on at the earliest."""
        self._waiting.append(fault)

    def on(self, kind: Kind) -> Fault | None:
        """The fault of this kind that lasts now; it happens to whoever asks."""
        if fault := self._lasts(kind):
            self._happens(fault)
        return fault

    def interrupted(self) -> int:
        """For the loop: the signal that asks for the end, or 0."""
        return 15 if self.on(Kind.INTERRUPT) else 0

    def now(self) -> float:
        """See `Host.now`."""
        self._step()
        return self._host.now()

    def observe(self) -> Observation:
        """See `Host.observe`."""
        self._step()
        self.tick += 1
        self._moves = 0
        over, self._on = (
            self._on,
            [
                fault
                for fault in self._on
                if self.tick < fault.tick + fault.ticks or (fault.kind in _WAITS and fault not in self._met)
            ],
        )
        self._met &= {*self._on}
        gone = any(fault.kind is Kind.GONE for fault in over)
        if gone and not self._lasts(Kind.GONE) and self._others.restart_service():
            self._touch(SERVICE)
        for fault in [fault for fault in self._waiting if fault.tick <= self.tick]:
            self._waiting.remove(fault)
            self._on.append(replace(fault, tick=self.tick))
        for fault in self._on:
            if fault not in self._met:
                self._once(fault)
        self._make_due()
        seen = self._heard()
        if seen.jobs:
            self._running = sorted(seen.jobs)
        if not seen.service.alive:
            self._touch(SERVICE)
        if (told := self._told(seen.events)) != seen.events:
            seen = replace(seen, events=told)
        seen = self._tampered(seen)
        self._seen = seen
        self._step()
        return seen

    def act(self, move: Move) -> bool:
        """See `Host.act`."""
        self._step()
        self._moves += 1
        done = self._pin(move) if move.target == SERVICE else self._act(move)
        self._step()
        return done

    def wait(self, until_s: float) -> None:
        """See `Host.wait`."""
        self._step()
        if (fault := self._lasts(Kind.FREEZE)) and fault.tick == self.tick:
            self._happens(fault)
            until_s = self._host.now() + FREEZE_S * self._slow
        elif fault := self.on(Kind.LATE_TICKS):
            until_s += (0.1, 0.3, 1.1, 3.0)[fault.pick % 4] * self._slow
        else:
            self._host.wait(until_s)
            return
        while self._host.now() < until_s:
            before_s = self._host.now()
            self._host.wait(until_s)
            if self._host.now() == before_s:  # it waits for somebody to take in what has happened
                self._held += [(before_s, event) for event in self._heard().events]

    def deadline(self, seconds: float) -> AbstractContextManager[None]:
        """See `Host.deadline`."""
        return self._host.deadline(seconds)

    def close(self, on_exit: OnExit) -> list[str]:
        """See `Host.close`."""
        self._step()
        problems = self._host.close(on_exit)
        self._step()
        return problems

    def _step(self) -> None:
        self.steps += 1
        if self._kill_at and self.steps >= self._kill_at:
            raise Killed

    def _lasts(self, kind: Kind) -> Fault | None:
        return next((fault for fault in self._on if fault.kind is kind), None)

    def _happens(self, fault: Fault, target: str = "") -> None:
        """A fault takes effect, on memcached or a job if it is one of those."""
        if fault not in self._met:
            self._met.add(fault)
            self.injected[fault.kind] += 1
        if target:
            self._touch(target)

    def _touch(self, target: str) -> None:
        self.touched[target] = self.tick

    def _once(self, fault: Fault) -> None:
        """What happens only once, happens as soon as it can."""
        kind, pick, others = fault.kind, fault.pick, self._others
        cores = sorted(self._cores)
        last = frozenset(cores[-1 - pick // 4 % len(cores) :])
        if (kind is Kind.GONE and others.kill_service()) or (
            kind is Kind.FOREIGN and pick % 4 == 0 and others.pin(last)
        ):
            self._happens(fault, SERVICE)
        if not self._running:
            return
        job = self._running[pick // 8 % len(self._running)]
        if kind is Kind.UNPLUGGED and not any(one.kind is kind for one in self._met):  # one at a time: never all cores
            gone = self._gone(fault)
            if others.unplug(gone, self._cores - gone):
                self._happens(fault)
        match kind:
            case Kind.FOREIGN if pick % 4 == 1:
                done = others.confine(job, frozenset({cores[pick // 64 % len(cores)]}))
            case Kind.FOREIGN if pick % 4 == 2:
                done = others.pause(job, paused=bool(pick // 4 % 2))
            case Kind.VANISH:
                done = others.end(job, None)
            case Kind.EXIT if pick % 2:
                done = others.end(job, (1, 137, 139)[pick // 2 % 3])
            case _:
                return
        if done:
            self._happens(fault, job)

    def _gone(self, fault: Fault) -> CoreSet:
        """The cores that it takes away: never all."""
        cores = sorted(self._cores)
        first, count = fault.pick // 4, 1 + fault.pick % max(1, len(cores) - 1)
        return frozenset(cores[(first + number) % len(cores)] for number in range(count))

    def _heard(self) -> Observation:
        """What the machine tells, before any fault is at it."""
        seen = self._others.told(self._host.observe())
        for event in seen.events:
            if event.kind is JobEventKind.EXITED:
                self.completed[event.job] += event.code == 0
        return seen

    def _told(self, events: Iterable[JobEvent]) -> tuple[JobEvent, ...]:
        """What the controller is told now."""
        now_s = self._host.now()
        told = [*events]
        if fault := self._lasts(Kind.ENGINE):
            if told:
                self._happens(fault)
            self._held += [(now_s + LISTING_S, event) for event in told]
            told = []
        elif fault := self._lasts(Kind.EVENTS):
            before = [*told]
            match fault.pick % 5:
                case 0:
                    self._held += [(now_s + LISTING_S, event) for event in told]
                    told = []
                case 1:
                    self._held += [(now_s + 0.7, event) for event in told]  # again, when much may have happened
                    told = [event for event in told for _ in range(2)]
                case 2:
                    self._held += [(now_s + 0.01 * (fault.pick // 5 % 100), event) for event in told]
                    told = []
                case 3:
                    told.reverse()
                case _:
                    kind = [*JobEventKind][fault.pick // 5 % len(JobEventKind)]
                    told.append(JobEvent("stranger", kind, now_s, code=0, cores=self._cores))
            if told != before:
                self._happens(fault)
        elif self._held:
            told = [event for due_s, event in self._held if due_s <= now_s] + told
            self._held = [one for one in self._held if one[0] > now_s]
        return tuple(told)

    def _tampered(self, seen: Observation) -> Observation:
        """The observation with what is wrong with its signals now."""
        service = seen.service
        for fault in self._on:
            before = seen, service
            match fault.kind:
                case Kind.UNKNOWN:
                    service = _signals(service, fault.pick, lambda _: Signal())
                case Kind.STALE:
                    then = self._frozen.setdefault(fault, service)
                    age_s = 0.05 * (self.tick - fault.tick) + (0.0, 0.9, 1.9, 14.0, 70.0)[fault.pick // 32 % 5]
                    service = _signals(then, fault.pick, partial(_aged, age_s))
                case Kind.NONSENSE:
                    wrong = _NONSENSE[fault.pick // 32 % len(_NONSENSE)]
                    service = _signals(service, fault.pick, partial(_spoilt, wrong))
                case Kind.BACKWARDS if self._seen is not None:
                    back_s = (0.0, 0.05, 1.0, 3600.0)[fault.pick % 4]
                    seen = replace(seen, time_s=self._seen.time_s - back_s)
                case Kind.EMPTY:
                    self.blind = self.tick
                    seen = replace(seen, cores={}, jobs={})
                    service = replace(service, affinity=frozenset(), threads=0)
                case Kind.UNLOADED:
                    fine = Signal(0.05, 0.0, fault.pick % 2)
                    service = replace(service, latency_ms=fine, qps=Signal(0.0, 0.0, 1))
                case Kind.THREADS if service.affinity:
                    service = replace(
                        service,
                        affinity=service.affinity | {self._cores},
                        threads=service.threads + 1 + fault.pick % 3,
                    )
                case Kind.UNPLUGGED if fault in self._met:
                    seen = replace(seen, offline=self._gone(fault))
                case Kind.FOREIGN if fault.pick % 4 == 3:
                    seen = replace(seen, can_share=False)
            if (seen, service) != before:
                self._happens(fault)
        return seen if service is seen.service else replace(seen, service=service)

    def _pin(self, move: Move) -> bool:
        if self._others.hidden_death:
            raise MoveError("no such process")
        if fault := self._lasts(Kind.REFUSED):
            self._refuse(fault, move)
        if (fault := self._lasts(Kind.IGNORED)) and fault.pick % 2:
            self._happens(fault, SERVICE)
            return True
        self._fail_partly(move)
        return self._host.act(move)

    def _act(self, move: Move) -> bool:
        """A job's move."""
        job, kind = move.target, move.kind
        if fault := self._lasts(Kind.ENGINE):
            self._happens(fault, job)
            raise MoveError("the engine does not answer")
        if (fault := self._lasts(Kind.REFUSED)) and _concerns(fault, kind):
            self._refuse(fault, move)
        self._fail_partly(move)
        ends = self._lasts(Kind.EXIT) if kind is MoveKind.RESIZE else None
        if ends and not ends.pick % 2 and self._others.end(job, 0):
            self._happens(ends, job)
            if ends.pick // 2 % 2:
                raise MoveError("it has ended")
            return True
        if (fault := self._lasts(Kind.IGNORED)) and kind in _CHANGES and _concerns(fault, kind):
            self._happens(fault, job)
            return True
        self._due = [one for one in self._due if (one[1].target, one[1].kind) != (job, kind)]  # the last wish wins
        if (fault := self._lasts(Kind.ON_ITS_WAY)) and _concerns(fault, kind):
            self._happens(fault, job)
            later_s = self._host.now() + (0.02, 0.2, 1.0, 3.0)[fault.pick // 4 % 4]
            variant = fault.pick % 4
            if kind in _BEGINNINGS or variant == 0:
                self._due.append((later_s, move, True))
                return False
            if variant == 1:  # never
                return False
            done = self._host.act(move)
            self._due.append((later_s, move, variant == 3))
            return done if variant == 2 else False
        return self._host.act(move)

    def _refuse(self, fault: Fault, move: Move) -> None:
        """Fail a move: without an effect, or with one, where that can be put right."""
        self._happens(fault, move.target)
        if fault.pick % 2 and move.kind not in _BEGINNINGS:
            self._host.act(move)
        raise MoveError("told to fail")

    def _fail_partly(self, move: Move) -> None:
        if (fault := self._lasts(Kind.PARTIAL)) and (self._moves == 2 if fault.pick % 2 else self._moves > 1):
            self._happens(fault, move.target)
            raise MoveError("told to fail in the middle")

    def _make_due(self) -> None:
        """Make the moves that were on their way."""
        now_s = self._host.now()
        due = [one for one in self._due if one[0] <= now_s]
        self._due = [one for one in self._due if one[0] > now_s]
        for _, move, told in due:
            self._touch(move.target)
            try:
                done = self._host.act(move)
            except MoveError:
                continue
            if done and told and move.kind in _CHANGES:
                self._held.append((now_s, JobEvent(move.target, _CHANGES[move.kind], now_s, cores=move.cores)))


def _concerns(fault: Fault, kind: MoveKind) -> bool:
    """Whether a fault of moves is one of this kind: every second one is of all kinds."""
    variant = fault.pick // 64 % 8
    return variant >= len(_CHANGES) or kind is [*_CHANGES][variant]


def _signals(service: ServiceSample, pick: int, change: Callable[[Signal], Signal]) -> ServiceSample:
    """Some of the signals changed: the lowest bits of `pick` choose, none of them all."""
    chosen: Mapping[str, Signal] = {
        name: change(getattr(service, name)) for bit, name in enumerate(_SIGNALS) if not pick % 32 or pick >> bit & 1
    }
    return replace(service, **chosen)  # type: ignore[arg-type]  # each is a signal


def _aged(age_s: float, signal: Signal) -> Signal:
    return replace(signal, age_s=age_s)


def _spoilt(wrong: float, signal: Signal) -> Signal:
    if wrong in (1e3, 1e-3):
        return signal if signal.value is None else replace(signal, value=wrong * signal.value)
    return Signal(wrong, 0.0, 100)
