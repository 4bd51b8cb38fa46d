"""The loop: observe, decide, act, log what has happened, wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from colocate.controller import Controller
from colocate.eventlog import SchedulerLogger
from colocate.metrics import MetricsWriter
from colocate.move import SERVICE, Entry, Host, Move, MoveError, OnExit
from colocate.shadow import brief

_RECORD_S = 0.19  # a quiet tick is not worth a record of its own

Why = Literal["done", "duration", "once", "interrupted", "crashed"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended: why, by which signal (0 for none), and what could not be put right."""

    why: Why
    signal: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tick:
    """What a tick cost: seconds of work, and how late it began."""

    work_s: float
    late_s: float


def run(
    host: Host,
    controller: Controller,
    log: SchedulerLogger,
    *,
    period_s: float = 0.05,
    metrics: MetricsWriter | None = None,
    duration_s: float | None = None,
    once: bool = False,
    on_exit: OnExit = "stop",
    interrupted: Callable[[], int] = lambda: 0,
    show: Callable[[Controller], None] | None = None,
    before: Callable[[], None] = lambda: None,
    ending: Callable[[], None] = lambda: None,
) -> Ending:
    """Run until every job has ended, the duration is over, or a signal came; then put everything back.

    Args:
        host: the machine.
        controller: decides.
        log: the event log; its first line is written, its last one is written here.
        period_s: between two ticks; what happens to a job makes one come earlier.
        metrics: takes a record of each tick that moves something, and five a second of the others.
        duration_s: end after this long.
        once: end after one decision.
        on_exit: what becomes of jobs that have not ended.
        interrupted: the number of the signal that asks for the end, or 0.
        show: called after every tick.
        before: called before every tick; where what others ask of the controller is done.
        ending: called once nothing more is decided, before everything is put back, which may take its time.
    """
    why: Why = "crashed"
    try:
        host.observe()  # so that the first decision sees what happened since
        begin_s = due_s = record_s = host.now()
        if metrics is not None:
            metrics.write({"t": 0.0, "begin": log.now().isoformat(timespec="microseconds")})
        host.wait(due_s := due_s + period_s)
        while True:
            start_s = host.now()
            before()
            moves = controller.step(host.observe())
            perform(host, controller, log, moves)
            tick = Tick(host.now() - start_s, max(0.0, start_s - due_s))
            controller.meter.tick(tick.work_s, tick.late_s)
            controller.consult(host.now)
            if metrics is not None and (moves or start_s >= record_s):
                record_s = start_s + _RECORD_S
                metrics.write(record(controller, start_s - begin_s, tick))
            if show is not None:
                show(controller)
            if interrupted():
                why = "interrupted"
            elif controller.done:
                why = "done"
            elif once:
                why = "once"
            elif duration_s is not None and start_s - begin_s >= duration_s:
                why = "duration"
            else:
                due_s = max(due_s, host.now() - period_s) + period_s if host.now() >= due_s else due_s
                host.wait(due_s)
                continue
            break
    finally:
        try:
            ending()
            problems = end(host, controller, log, on_exit, f"run {_ENDED.get(why, why)}")
        finally:
            if metrics is not None:
                metrics.close()
    return Ending(why, interrupted(), problems)


def end(host: Host, controller: Controller, log: SchedulerLogger, on_exit: OnExit, why: str) -> tuple[str, ...]:
    """Put everything back and close the log; what could not be put back, one line each."""
    problems = host.close(on_exit)
    controller.finish(f"{_FATE[on_exit]}: {why}", host.now(), stopped=on_exit == "stop")
    controller.entries.extend(Entry("custom", "scheduler", comment=problem) for problem in problems)
    if controller.counts:
        told = " ".join(f"{topic}={count}" for topic, count in sorted(controller.counts.items()))
        controller.entries.append(Entry("custom", "scheduler", comment=f"counted {told}"))
    try:
        write(log, controller)
    finally:
        log.end()
    return tuple(problems)


_FATE = {"stop": "stopped", "leave": "left running", "pause": "left paused"}
_ENDED = {"interrupted": "interrupted", "duration": "over its duration", "once": "after one decision"}


def perform(host: Host, controller: Controller, log: SchedulerLogger, moves: Iterable[Move]) -> None:
    """Do each move, take in its outcome, and log it once it has happened.

    Once memcached's cores cannot be set, jobs only lose: the other moves count on its cores, and the next tick plans
    anew. Some of its threads may have moved all the same, to where those jobs are.
    """
    write(log, controller)  # what has happened since the last tick
    refused = False
    for move in moves:
        if refused and not controller.only_less(move):
            continue
        begin_s = host.now()
        if not controller.ready(move, begin_s):
            continue
        try:
            done = host.act(move)
        except MoveError as error:
            controller.settle(move, done=False, now_s=host.now(), error=str(error))
            refused = refused or move.target == SERVICE
        else:
            now_s = host.now()
            controller.settle(move, done=done, now_s=now_s, took_s=now_s - begin_s)
        write(log, controller)
    write(log, controller)


def write(log: SchedulerLogger, controller: Controller) -> None:
    """Write what waits for the event log."""
    while controller.entries:
        entry = controller.entries.pop(0)
        match entry.event:
            case "start":
                log.job_start(entry.target, entry.cores, entry.threads)
            case "end":
                log.job_end(entry.target)
            case "update_cores":
                log.update_cores(entry.target, entry.cores)
            case "pause":
                log.job_pause(entry.target)
            case "unpause":
                log.job_unpause(entry.target)
            case _:
                log.custom_event(entry.target, entry.comment)


def record(controller: Controller, time_s: float, tick: Tick) -> dict[str, object]:
    """One tick for the metrics file: cause, action, effect; `t` is seconds since the record that has `begin`."""
    decision = controller.decision
    if decision is None:
        return {"t": time_s}
    service, shadow = decision.view.service, decision.shadow
    return {
        "t": round(time_s, 4),
        "policy": decision.policy,
        "busy": {core: round(use.busy, 3) for core, use in decision.view.cores.items()},
        "cores": sorted(service.cores),
        "cpu_cores": service.cpu_cores.value,
        "wait_us": service.wait_us.value,
        "qps": service.qps.value,
        "latency_ms": service.latency_ms.value,
        "latency_samples": service.latency_ms.samples,
        "latency_age_s": service.latency_ms.age_s,
        "jobs": {job.name: [job.state, sorted(job.cores)] for job in decision.view.jobs.values()},
        "plan": [decision.plan.service, dict(decision.plan.jobs)],
        "reason": decision.plan.reason,
        **({"shadow": brief(shadow)} if shadow and brief(shadow) != brief(decision.plan) else {}),
        **({"share": sorted(decision.plan.share)} if decision.plan.share else {}),
        "rules": [[change.rule, change.reason] for change in decision.interventions],
        "moves": [[move.kind, move.target, sorted(move.cores)] for move in decision.moves],
        "work_ms": round(1e3 * tick.work_s, 3),
        "late_ms": round(1e3 * tick.late_s, 3),
    }
