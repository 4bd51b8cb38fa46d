"""A recorded run on the model: the recorded moves and load, and the model's own ends of the jobs.

A move that came within two seconds after a job's end was an answer to it (the next start, a wider set), so it comes as
long after that job's end in the model. All other moves answered the load and keep their time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from colocate.cores import CoreSet
from colocate.eventlog import SERVICE, Event
from colocate.sim.machine import Machine

_ANSWER_S = 2.0
_LONGEST = 5.0  # a model that takes so many times the recorded time is wrong anyhow


@dataclass(frozen=True, slots=True)
class RecordedMove:
    """What a recorded run did.

    Attributes:
        time_s: on the machine's clock.
        kind: the event's name.
        after: the job whose end it answered; empty where it answered the load.
        lag_s: how long after that end.
    """

    time_s: float
    kind: str
    target: str
    cores: CoreSet = frozenset()
    threads: int = 1
    after: str = ""
    lag_s: float = 0.0


@dataclass(frozen=True, slots=True)
class JobTimes:
    """When a job ran, seconds on the machine's clock; `pause_s` is how long it was paused meanwhile."""

    start_s: float
    end_s: float
    pause_s: float

    @property
    def run_s(self) -> float:
        """Run time without pauses."""
        return self.end_s - self.start_s - self.pause_s


def recorded_moves(events: Iterable[Event], zero_s: float) -> list[RecordedMove]:
    """The moves of one run, in order; `zero_s` is the epoch time of the machine's zero, on the log's clock."""
    moves: list[RecordedMove] = []
    ends: list[tuple[float, str]] = []
    alive: set[str] = set()
    for event in events:
        time_s = event.time.timestamp() - zero_s
        if event.job == "scheduler" or event.event == "custom":
            if event.event == "end":
                break
            continue
        if event.event == "end":
            if event.job in alive:
                alive.discard(event.job)
                ends.append((time_s, event.job))
            continue
        if event.event == "start" and event.batch:
            alive.add(event.job)
        elif event.batch and event.job not in alive:
            continue
        after, lag_s = "", 0.0
        if event.batch and ends and time_s - ends[-1][0] <= _ANSWER_S and event.job != ends[-1][1]:
            after, lag_s = ends[-1][1], time_s - ends[-1][0]
        moves.append(RecordedMove(time_s, event.event, event.job, event.cores, event.threads or 1, after, lag_s))
    return moves


def reenact(moves: Sequence[RecordedMove], machine: Machine) -> Mapping[str, JobTimes]:
    """Make the moves on the machine and run it until every job has ended; the times of those that have.

    The machine's clock must be at or before the first move. Where no move tells memcached's cores, it has those that no
    job has.
    """
    silent = not any(move.target == SERVICE for move in moves)
    queue: list[tuple[float, int, RecordedMove]] = []
    waiting: dict[str, list[tuple[int, RecordedMove]]] = {}
    for number, move in enumerate(moves):
        if move.after:
            waiting.setdefault(move.after, []).append((number, move))
        else:
            heapq.heappush(queue, (move.time_s, number, move))
    life: dict[str, list[float]] = {}  # start, pause so far, paused since
    times: dict[str, JobTimes] = {}
    limit_s = _LONGEST * max((move.time_s for move in moves), default=0.0) + 3600.0

    def paused_s(name: str, now_s: float) -> float:
        _, paused, since_s = life[name]
        return paused + (now_s - since_s if since_s >= 0 else 0.0)

    while (queue or machine.jobs) and machine.time_s < limit_s:
        due_s = queue[0][0] if queue else min(limit_s, machine.next_change_s())
        ended = machine.advance(max(due_s, machine.time_s))
        for name in ended:
            now_s = machine.time_s
            times[name] = JobTimes(life[name][0], now_s, paused_s(name, now_s))
            for number, move in waiting.pop(name, []):
                heapq.heappush(queue, (now_s + move.lag_s, number, move))
        if ended:
            continue
        while queue and queue[0][0] <= machine.time_s:
            _make(heapq.heappop(queue)[2], machine, life)
        if silent:
            held = frozenset[int]().union(*(job.cores for job in machine.jobs.values() if not job.paused))
            machine.pin(machine.topology.cores - held or machine.cores)
    return times


def _make(move: RecordedMove, machine: Machine, life: dict[str, list[float]]) -> None:
    name, now_s = move.target, machine.time_s
    if name == SERVICE:
        if move.cores:
            machine.pin(move.cores & machine.topology.cores or machine.cores)
    elif move.kind == "start":
        if name not in life:
            life[name] = [now_s, 0.0, -1.0]
            machine.start(name, move.threads, move.cores & machine.topology.cores or machine.topology.cores)
    elif name not in machine.jobs:
        return
    elif move.kind == "update_cores":
        if cores := move.cores & machine.topology.cores:
            machine.resize(name, cores)
    elif move.kind == "pause" and life[name][2] < 0:
        life[name][2] = now_s
        machine.pause(name, paused=True)
    elif move.kind == "unpause" and life[name][2] >= 0:
        life[name][1] += now_s - life[name][2]
        life[name][2] = -1.0
        machine.pause(name, paused=False)
