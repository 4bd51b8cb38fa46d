"""What a controller asks of a host, what it asks of the log, and what a host is."""

from __future__ import annotations

import enum
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from colocate.cores import CoreSet
from colocate.eventlog import SERVICE as SERVICE
from colocate.view import Observation

OnExit = Literal["stop", "leave", "pause"]


class MoveKind(enum.StrEnum):
    """What can be done to memcached (`pin`) and to jobs (the rest)."""

    PIN = "pin"
    CREATE = "create"
    START = "start"
    RESIZE = "resize"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Move:
    """One thing for a host to do. `target` is `memcached` or a job; `cores` and `threads` where the kind has them."""

    kind: MoveKind
    target: str
    cores: CoreSet = frozenset()
    threads: int = 0
    reason: str = ""


class MoveError(Exception):
    """A move did not happen; the text says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line for the event log: an event's name (`start`, `end`, `update_cores`, `pause`, `unpause`, `custom`)."""

    event: str
    target: str
    cores: CoreSet = frozenset()
    threads: int = 0
    comment: str = ""


class Host(Protocol):
    """One machine that can be looked at and acted on; it carries its own clock.

    Nothing else in the program reads the time or sleeps. `colocate.host.live.LiveHost` is this computer.
    """

    def now(self) -> float:
        """The run's monotonic clock, seconds."""

    def observe(self) -> Observation:
        """The facts of this instant; never blocks on a daemon, a socket or a disk."""

    def act(self, move: Move) -> bool:
        """Do one thing: True when it has taken effect, False when it is on its way and an event will tell.

        Raises:
            MoveError: it did not happen.
        """

    def wait(self, until_s: float) -> None:
        """Return at `until_s` on the clock, or earlier when something has happened to a job or a signal came."""

    def deadline(self, seconds: float) -> AbstractContextManager[None]:
        """A limit for what it encloses: raises `colocate.regulator.OverrunError` in it when the time is over."""

    def close(self, on_exit: OnExit) -> list[str]:
        """Give memcached its cores back, then stop (or leave, or pause) the jobs; what failed, one line each."""
