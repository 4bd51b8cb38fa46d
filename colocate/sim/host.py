"""A simulated machine as a host: the seam that the live host has, over a model, with a virtual clock.

SimPy runs the queue of what will happen (a tick, a container that is on its way, a job's end). Nothing here decides
anything: controller, regulator, placement and policy are the objects of a live run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import simpy
from simpy.core import StopSimulation

from colocate.cores import CoreSet
from colocate.jobs import JobEvent, JobEventKind
from colocate.move import Move, MoveError, MoveKind, OnExit
from colocate.sim.machine import Machine, Noise
from colocate.sim.sensors import Sensors
from colocate.view import Observation


@dataclass(frozen=True, slots=True)
class Delay:
    """How long a kind of move takes, seconds: the median, and the log standard deviation around it."""

    median_s: float
    sd: float = 0.0

    def draw(self, stream: random.Random) -> float:
        """One duration."""
        return self.median_s * math.exp(stream.gauss(0.0, self.sd)) if self.sd else self.median_s


@dataclass(frozen=True, slots=True)
class Delays:
    """What moves cost: `pin`, `resize`, `pause` and `resume` hold up the loop; the others are on their way meanwhile.

    Attributes:
        notice: from a job's end until it is known.
    """

    pin: Delay = Delay(0.0)
    resize: Delay = Delay(0.0)
    pause: Delay = Delay(0.0)
    resume: Delay = Delay(0.0)
    create: Delay = Delay(0.0)
    start: Delay = Delay(0.0)
    notice: Delay = Delay(0.0)


class SimHost:
    """A simulated machine.

    Args:
        machine: the physics.
        threads: memcached's worker threads.
        delays: how long moves take.
        noise: its seed feeds the delays and the samples.
        percentile: of the latency that the probe tells.
        pace: called with the virtual time before each wait ends, for whoever wants to watch at a human speed.
        share: whether jobs have only idle priority where they meet memcached.
    """

    def __init__(
        self,
        machine: Machine,
        threads: int,
        delays: Delays,
        noise: Noise,
        percentile: float = 95.0,
        pace: Callable[[float], None] | None = None,
        *,
        share: bool = True,
    ) -> None:
        self.machine = machine
        self._share = share
        self._threads = threads
        self._delays = delays
        self._holding_up = {
            MoveKind.RESIZE: delays.resize, MoveKind.PAUSE: delays.pause, MoveKind.RESUME: delays.resume
        }  # fmt: skip
        self._draw = noise.stream("delays")
        self._sensors = Sensors(machine, threads, noise, percentile, can_share=share)
        self._pace = pace
        self._env = simpy.Environment()
        self._now_s = 0.0
        self._timer: simpy.Event | None = None  # of the wait in progress
        self._change_s = math.inf  # when the machine's next change is queued for
        self._events: list[JobEvent] = []
        self._created: dict[str, int] = {}  # threads by job
        self._starting: dict[str, Starting] = {}
        self._over: set[str] = set()  # jobs that have ended by themselves
        self._closed = False

    def now(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def observe(self) -> Observation:
        """What the sensors of a live host would say now."""
        events, self._events = tuple(self._events), []
        return self._sensors.observe(self._now_s, events)

    def act(self, move: Move) -> bool:
        """Do one thing, in the time that it takes on a live host."""
        name, kind = move.target, move.kind
        if kind is MoveKind.PIN:
            self._pass(self._delays.pin)
            self.machine.pin(move.cores)
        elif kind is MoveKind.CREATE:
            self._created[name] = move.threads
            self._later(self._delays.create, lambda: self._tell(name, JobEventKind.CREATED))
            return False
        elif kind is MoveKind.START:
            self._starting[name] = Starting(move.cores)
            self._later(self._delays.start, lambda: self._started(name))
            return False
        elif kind is MoveKind.STOP:
            self._later(self._delays.notice, lambda: self._stopped(name))
            return False
        elif name in self._starting:  # what is wished for it holds from its start on
            if kind is MoveKind.RESIZE:
                self._starting[name].resized = move.cores
            else:
                self._starting[name].paused = kind is MoveKind.PAUSE
            return False
        else:
            self._pass(self._holding_up[kind])
            if name not in self.machine.jobs:
                raise MoveError("it has ended")
            if kind is MoveKind.RESIZE:
                self.machine.resize(name, move.cores)
            else:
                self.machine.pause(name, paused=kind is MoveKind.PAUSE)
        self._queue_change()
        return True

    def wait(self, until_s: float) -> None:
        """Let virtual time pass until then, or until something has happened to a job."""
        if not self._events and until_s > self._now_s:
            self._timer = timer = self._env.timeout(until_s - self._env.now)
            self._env.run(until=timer)
            self._timer = None
            # The very number that was asked for, lest rounding makes the loop tick twice.
            self._advance(self._env.now if self._events else until_s)
        if self._pace is not None:
            self._pace(self._now_s)

    def deadline(self, seconds: float) -> AbstractContextManager[None]:  # noqa: ARG002 -- virtual time stands still
        """No limit: a decision takes no virtual time. For strangers' policies `colocate.evaluate` has one."""
        return _NO_LIMIT

    def close(self, on_exit: OnExit) -> list[str]:
        """Give memcached all cores back and end, leave or pause the jobs; idempotent."""
        if not self._closed:
            self._closed = True
            self._created.clear()
            self._starting.clear()
            self.machine.pin(self.machine.topology.cores)
            for name in tuple(self.machine.jobs):
                if on_exit == "stop":
                    self.machine.stop(name)
                elif on_exit == "pause":
                    self.machine.pause(name, paused=True)
        return []

    def run_on(self, until_s: float) -> None:
        """Let the load go on after the run, so that the interval in which it ended is reported whole."""
        while self._now_s < until_s:
            self._now_s = min(until_s, self.machine.next_change_s())
            self.machine.advance(self._now_s)

    def _advance(self, to_s: float) -> None:
        """Bring the machine to that time; jobs that end on the way are known a moment later."""
        self._now_s = max(self._now_s, to_s)
        while self.machine.time_s < self._now_s:
            for name in self.machine.advance(self._now_s):
                self._over.add(name)
                self._later(self._delays.notice, partial(self._tell, name, JobEventKind.EXITED, 0))

    def _pass(self, delay: Delay) -> None:
        """The loop is held up for so long."""
        seconds = delay.draw(self._draw)
        if seconds > 0:
            self._env.run(until=self._env.now + seconds)
            self._advance(self._env.now)

    def _later(self, delay: Delay, act: Callable[[], None]) -> None:
        def happen(_: simpy.Event) -> None:
            self._advance(self._env.now)
            act()
            self._queue_change()

        self._at(self._now_s + delay.draw(self._draw), happen)

    def _queue_change(self) -> None:
        """Have the machine's next change in the queue; one that was queued for another time is void by then."""
        change_s = self.machine.next_change_s()
        if change_s == self._change_s or change_s == math.inf:
            return
        self._change_s = change_s

        def change(_: simpy.Event) -> None:
            if change_s == self._change_s:
                self._advance(change_s)
                self._queue_change()

        self._at(change_s, change)

    def _at(self, time_s: float, act: Callable[[simpy.Event], None]) -> None:
        self._env.timeout(max(0.0, time_s - self._env.now)).callbacks.append(act)

    def _started(self, name: str) -> None:
        wish = self._starting.pop(name, None)
        if wish is None:
            return
        self._over.discard(name)
        if self._share:
            self.machine.share(self.machine.shared | {name})
        self.machine.start(name, self._created[name], wish.resized or wish.cores)
        self._tell(name, JobEventKind.STARTED, cores=wish.cores)
        if wish.resized:
            self._tell(name, JobEventKind.RESIZED, cores=wish.resized)
        if wish.paused:
            self.machine.pause(name, paused=True)
            self._tell(name, JobEventKind.PAUSED)

    def _stopped(self, name: str) -> None:
        if name in self.machine.jobs:
            self.machine.stop(name)
            self._tell(name, JobEventKind.EXITED, code=137)
        elif name not in self._over:  # else that is told
            self._starting.pop(name, None)
            self._tell(name, JobEventKind.GONE)

    def _tell(self, name: str, kind: JobEventKind, code: int | None = None, cores: CoreSet = frozenset()) -> None:
        self._events.append(JobEvent(name, kind, self._now_s, code, cores=cores))
        if self._timer is not None:  # end the wait here, and let its timer pass without effect
            self._timer.callbacks.clear()
            self._timer = None
            self._env.event().succeed().callbacks.append(StopSimulation.callback)


@dataclass(slots=True)
class Starting:
    """A job whose start is on its way, and what has been wished for it since: other cores (empty if none), a pause."""

    cores: CoreSet
    resized: CoreSet = frozenset()
    paused: bool = False


_NO_LIMIT: AbstractContextManager[None] = nullcontext()
