"""Which fault begins when: drawn from a seed, carried out by `colocate.testing.chaos`."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

_TOUCHED = 10  # steps of `ChaosHost` by which a controller has begun to touch the machine


class Kind(enum.StrEnum):
    """What can go wrong."""

    UNKNOWN = "unknown"  # signals are missing
    STALE = "stale"  # signals are those of the fault's beginning, and age
    NONSENSE = "nonsense"  # signals are no numbers, negative, in another unit
    BACKWARDS = "backwards"  # the observation's time stands still or steps back
    EMPTY = "empty"  # neither cores nor jobs nor affinities are looked at
    UNLOADED = "unloaded"  # the latency is fine, of hardly any sample
    GONE = "gone"  # memcached is not there, and comes back as another process, on all cores
    THREADS = "threads"  # memcached has more threads, one of them on all cores
    FREEZE = "freeze"  # the controller stands still for `chaos.FREEZE_S`
    LATE_TICKS = "late ticks"  # the controller gets little CPU
    VANISH = "vanish"  # somebody removes a job
    EXIT = "exit"  # a job ends: with an error, or at the instant of a resize
    IGNORED = "ignored"  # a move is said to have happened and has not
    REFUSED = "refused"  # moves fail, without or with an effect
    ON_ITS_WAY = "on its way"  # moves take effect late, twice, or never, or nobody tells
    ENGINE = "engine"  # no job's move succeeds, nothing is told
    PARTIAL = "partial"  # the second move of a tick fails, or all from there on
    UNPLUGGED = "unplugged"  # cores go offline: who had no other one is let onto all that are left
    FOREIGN = "foreign"  # somebody else moves memcached or a job, or takes the priorities away
    EVENTS = "events"  # told late, twice, in another order, of strangers, or only when the host lists
    DISK = "disk"  # the disk of log and metrics is full, also in the middle of a line
    POLICY = "policy"  # raises, overruns, talks nonsense, or wants something foolish
    INTERRUPT = "interrupt"  # SIGTERM


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        tick: at which it begins; they are counted by `observe`.
        ticks: how many it lasts, where it lasts; what fails moves or ends jobs waits for the first one for longer.
        pick: chooses among the kind's variants, its signals, its jobs.
    """

    kind: Kind
    tick: int
    ticks: int = 1
    pick: int = 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which faults happen when; `kill_at` is the step (`ChaosHost.steps`) at which the controller dies, 0 for never."""

    faults: tuple[Fault, ...] = ()
    kill_at: int = 0


def draw(seed: int, ticks: int, *, most: int = 6, steps: int = 0) -> Schedule:
    """A schedule of one to `most` faults within so many ticks.

    With `steps`, one in five has a kill within them, not before something can have been touched.
    """
    stream = random.Random(seed)  # noqa: S311 -- faults, no secret
    faults = [
        Fault(
            stream.choice([*Kind]),
            stream.randint(1, ticks),
            stream.choice((1, 2, 5, 20, 60)),
            stream.randrange(1 << 16),
        )
        for _ in range(stream.randint(1, most))
    ]
    kill_at = stream.randint(min(_TOUCHED, steps), steps) if steps and stream.random() < 0.2 else 0
    return Schedule(tuple(sorted(faults, key=lambda fault: fault.tick)), kill_at)
