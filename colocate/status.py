"""What a run in progress looks like from outside: one document, by way of the control socket.

`{"request": "status"}` is answered with `Watch.status`, `{"request": "figures"}` with `Watch.figures`. A run that does
not answer (a dry run has no socket) still has its event log and its metrics file.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from colocate import __version__
from colocate.controller import Controller, Decision
from colocate.cores import CoreSet, format_ranges
from colocate.jobs import ACTIVE, ENDED, JobState
from colocate.metrics import finite
from colocate.move import SERVICE, Move, MoveKind
from colocate.packing import work_s
from colocate.regulator import SAFE
from colocate.view import JobView, Series, View

Answer = Mapping[str, object]
_MOVES_KEPT = 50
_HISTORY_S = 60.0
_PACE_S = 10.0  # a job's pace is what it got in that time: between two ticks it is anything
_ALMOST = 0.99  # what is measured of a job's work may be less than its work


@dataclass(frozen=True, slots=True)
class Seen:
    """A move as it was asked for: when (seconds since the run's first tick), what, and the cores until then."""

    t: float
    move: Move
    before: CoreSet


class Watch:
    """Keeps what the loop cannot tell afterwards: the last moves, the jobs' pace. Another thread asks for documents.

    Args:
        controller: the run's.
        facts: what only the run knows: `run`, `log`, `since`, and more; what changes is called.
    """

    def __init__(self, controller: Controller, facts: Mapping[str, object]) -> None:
        self._controller = controller
        self._facts = facts
        self._begin_s: float | None = None
        self._moves: deque[Seen] = deque(maxlen=_MOVES_KEPT)
        self._work: deque[tuple[float, dict[str, float]]] = deque(maxlen=int(_PACE_S) + 1)  # a second: when, CPU time

    def show(self, controller: Controller) -> None:
        """For the loop, after each tick; costs next to nothing."""
        decision = controller.decision
        if decision is None:
            return
        if self._begin_s is None:
            self._begin_s = decision.view.time_s
        if not self._work or decision.view.time_s - self._work[-1][0] >= 1.0:
            told = {job.name: job.cpu_s for job in decision.view.jobs.values() if job.cpu_s is not None}
            self._work.append((decision.view.time_s, told))
        for move in decision.moves:
            if move.kind is not MoveKind.CREATE:
                self._moves.append(Seen(decision.view.time_s - self._begin_s, move, _held(decision.view, move.target)))

    def status(self, *_: object) -> Answer:
        """The document `status` of the JSON formats, and more: who holds each core, progress, history, last moves."""
        controller, decision = self._controller, self._controller.decision
        facts = {
            "running": True,
            "pid": os.getpid(),
            "version": __version__,
            **{name: fact() if callable(fact) else fact for name, fact in self._facts.items()},
            "policy": controller.regulator.acting,
            "state": _state(controller),
            "strikes": controller.regulator.strikes,
            "slo_ms": controller.slo.latency_ms,
            "percentile": controller.slo.percentile,
        }
        if decision is not None:
            facts |= self._picture(decision)
        told = finite(facts)
        assert isinstance(told, dict)  # noqa: S101 -- of a mapping it makes one
        return told

    def line(self) -> str:
        """The same in a line, for the service manager."""
        decision = self._controller.decision
        if decision is None:
            return _state(self._controller)
        jobs = decision.view.jobs.values()
        running, ended = (sum(job.state in states for job in jobs) for states in (ACTIVE, ENDED))
        cores = format_ranges(decision.view.service.cores) if decision.view.service.cores else "none"
        return f"{self._controller.regulator.acting}: memcached on cores {cores}, {running} jobs run, {ended} ended"

    def figures(self, *_: object) -> Answer:
        """What Prometheus is told: the tallies of `Meter`, counts, this process's CPU time, the age of each signal."""
        controller, decision = self._controller, self._controller.decision
        shadow = controller.shadow
        service = decision.view.service if decision else None
        signals = ("cpu_cores", "wait_us", "qps", "latency_ms")
        ages_s = {name: getattr(service, name).age_s for name in signals} if service else {}
        told = finite({
            "meter": controller.meter.document(),
            "counts": dict(controller.counts.copy()),
            "interventions": dict(controller.regulator.counts.copy()),
            "strikes": controller.regulator.strikes,
            "shadow_strikes": shadow.regulator.strikes if shadow else None,
            "cpu_s": time.process_time(),
            "signal_ages_s": {name: age_s for name, age_s in ages_s.items() if math.isfinite(age_s)},
            "status": self.status(),
        })  # fmt: skip
        assert isinstance(told, dict)  # noqa: S101 -- of a mapping it makes one
        return told

    def handlers(self) -> dict[str, Callable[..., Answer]]:
        """For the control socket."""
        return {"status": self.status, "figures": self.figures}

    def _picture(self, decision: Decision) -> dict[str, object]:
        view, plan = decision.view, decision.plan
        service = view.service
        holders: dict[int, list[str]] = {core: [] for core in sorted(view.topology.cores)}
        for name, held in [(SERVICE, service.cores), *((j.name, j.cores) for j in view.jobs.values())]:
            for core in sorted(held & holders.keys()):
                holders[core].append(name)
        elapsed_s = view.time_s - (self._begin_s if self._begin_s is not None else view.time_s)
        return {
            "elapsed_s": elapsed_s,
            "can_share": view.can_share,
            "reason": plan.reason,
            "cores": {
                str(core): {
                    "busy": use.busy if (use := view.cores.get(core)) else None,
                    "holders": names,
                }
                for core, names in holders.items()
            },
            "service": {
                "pid": self._controller.seen.service.pid,
                "alive": self._controller.seen.service.alive,
                "cores": sorted(service.cores),
                "threads": service.threads,
                "cpu_cores": service.cpu_cores.value,
                "wait_us": service.wait_us.value,
                "qps": service.qps.value,
                "p95_ms": service.latency_ms.value,
                "p95_age_s": service.latency_ms.age_s,
                "p95_samples": service.latency_ms.samples,
                "latency_source": self._controller.seen.service.latency_source,
                "connections": service.connections,
            },
            "jobs": {job.name: _job(job, view, self._pace_cores(job, view)) for job in view.jobs.values()},
            "history": {name: _seconds(view.series.get(name)) for name in ("qps", "latency_ms", "cpu_cores")},
            "moves": [
                {
                    "t": seen.t,
                    "kind": str(seen.move.kind),
                    "target": seen.move.target,
                    "before": sorted(seen.before),
                    "cores": sorted(seen.move.cores),
                    "reason": seen.move.reason,
                }
                for seen in list(self._moves)
            ],
        }

    def _pace_cores(self, job: JobView, view: View) -> float | None:
        """The CPU that a job got over the last ten seconds, or since it was first measured; None before."""
        if job.cpu_s is None:
            return None
        for time_s, told in list(self._work):  # the oldest first; of an earlier attempt there may be more than now
            if told.get(job.name, math.inf) <= job.cpu_s and time_s < view.time_s:
                return (job.cpu_s - told[job.name]) / (view.time_s - time_s)
        return job.cpu_cores


def progress(job: JobView, view: View, pace_cores: float | None) -> tuple[float | None, float | None]:
    """How much of a job's work is done, and the seconds until its end at a pace (CPU in cores); None where not known.

    Work is CPU time, counted against what the job took alone with one thread.
    """
    if job.state is JobState.FINISHED:
        return 1.0, 0.0
    whole_s = work_s(job.spec, view)
    if whole_s is None or job.state not in ACTIVE or job.cpu_s is None:
        return (0.0 if whole_s is not None and job.state is JobState.WAITING else None), None
    done = min(_ALMOST, job.cpu_s / whole_s)
    return done, (1.0 - done) * whole_s / pace_cores if pace_cores else None


def _job(job: JobView, view: View, pace_cores: float | None) -> dict[str, object]:
    done, left_s = progress(job, view, pace_cores)
    return {
        "state": str(job.state),
        "cores": sorted(job.cores),
        "threads": job.threads,
        "run_s": job.run_s,
        "cpu_cores": job.cpu_cores,
        "failures": job.failures,
        "progress": done,
        "eta_s": left_s,
    }


def _held(view: View, target: str) -> CoreSet:
    if target == SERVICE:
        return view.service.cores
    job = view.jobs.get(target)
    return job.cores if job else frozenset()


def _state(controller: Controller) -> str:
    """`starting` before the first decision, `safe` once the safe policy has taken over, else `running`."""
    if controller.decision is None:
        return "starting"
    return SAFE if controller.regulator.acting == SAFE else "running"


def _seconds(series: Series | None) -> Iterable[float | None]:
    """The last value of each second of the last minute, the oldest first; None for a second without one."""
    if series is None or not series.length:
        return []
    end_s = series.times_s[series.length - 1]
    found: list[float | None] = [None] * int(_HISTORY_S)
    for index in range(series.length - 1, -1, -1):
        back = int(end_s - series.times_s[index])
        if back >= len(found):
            break
        if found[-1 - back] is None:
            found[-1 - back] = series.values[index]
    while found and found[0] is None:
        found.pop(0)
    return found
