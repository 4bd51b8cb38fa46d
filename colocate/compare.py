"""Policies side by side: every one on every load, on all cores of this computer.

Seed i means the same load, the same machine and the same job noise to every policy.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from colocate.controller import Controller
from colocate.errors import Terminated, UserError
from colocate.policy import Policy, load_policy
from colocate.report.comparison import Comparison, Outcome, comparison
from colocate.report.grade import reported_intervals
from colocate.sim.oracle import Bounds, bounds
from colocate.sim.run import Setup, reported, simulate
from colocate.simulation import LONGEST_S, SimSettings, graded, setup

_MOST_SEEDS = 10_000
_CONTENDER = re.compile(r"(?P<policy>[^\[\]]+)(\[(?P<options>[^\[\]]*)\])?")
_BETWEEN = re.compile(r",(?![^\[]*\])")  # commas outside of brackets


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy and its options.

    Attributes:
        name: as the user wrote it; names a row.
        policy: as `load_policy` takes it.
        options: `option=value` each.
    """

    name: str
    policy: str
    options: tuple[str, ...] = ()

    def load(self) -> Policy:
        """A fresh policy. What its file prints goes to standard error.

        Raises:
            UserError: there is none such, or an option is bad.
        """
        with redirect_stdout(sys.stderr):
            return load_policy(self.policy, self.options)


def parse_contenders(text: str) -> tuple[Contender, ...]:
    """Read `static,reactive[high=0.8,low=0.2],my.py:Mine`.

    Raises:
        UserError: it is not of that form, or a policy stands twice in it.
    """
    found: list[Contender] = []
    for part in _BETWEEN.split(text):
        name = part.strip()
        match = _CONTENDER.fullmatch(name)
        if match is None:
            raise UserError(
                f"--policies: {name!r} is no policy", "write NAME or NAME[option=value,...], commas between"
            )
        if name in {contender.name for contender in found}:
            raise UserError(f"--policies: {name} stands twice", "name it once, or give it other options")
        options = tuple(option.strip() for option in (match["options"] or "").split(",") if option.strip())
        found.append(Contender(name, match["policy"].strip(), options))
    return tuple(found)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read `20`, which is 1 to 20, or `101-120`, which is these.

    Raises:
        UserError: it is neither, or there are none in it.
    """
    match = re.fullmatch(r"(?:([0-9]{1,9})-)?([0-9]{1,9})", text.strip())
    seeds = range(int(match[1] or 1), int(match[2]) + 1) if match else range(0)
    if not 0 < len(seeds) <= _MOST_SEEDS:
        raise UserError(f"--seeds: {text!r} are no seeds", "give how many, such as 20, or which, such as 101-120")
    return tuple(seeds)


def play(settings: SimSettings, contender: Contender, log_dir: Path) -> Outcome:
    """Simulate one run; its log is in `log_dir` while it lasts.

    The global random numbers are seeded, so that also a policy that draws from them does so anew in each run.

    Raises:
        UserError: the policy cannot be loaded, or left the program (`sys.exit`).
    """
    chosen = setup(settings)
    watch = _Watch()
    with tempfile.TemporaryDirectory(dir=log_dir) as folder:
        try:
            run = simulate(chosen, contender.load(), Path(folder), show=watch.see)
        except Terminated:
            raise
        except SystemExit as error:
            raise UserError(f"policy {contender.name}: it called exit", "let it return a plan, or raise") from error
        verdict = graded(run, chosen.slo)
    complete = verdict.complete and run.ending.why == "done"
    makespan_s = verdict.makespan_s if complete and verdict.makespan_s else settings.duration_s or LONGEST_S
    ratio = verdict.overlap.value if verdict.overlap.intervals else verdict.whole.value
    return Outcome(
        policy=contender.name,
        seed=chosen.seed or 0,
        makespan_s=makespan_s,
        end_s=watch.end_s,
        complete=complete,
        slo_violation_ratio=ratio or 0.0,
        unavoidable_ratio=_unavoidable(chosen, watch.end_s - makespan_s, watch.end_s),
        core_moves_per_min=60 * verdict.core_moves / makespan_s,
        useful_cycles_ratio=run.busy_ratio,
        share=watch.share,
        fell_back=run.controller.counts["fallback"] > 0,
        fault=watch.fault,
    )


def _unavoidable(chosen: Setup, begin_s: float, end_s: float) -> float:
    """The share of the load intervals between two times that break the SLO even with nothing beside memcached.

    More cores and less beside it never do harm on the model, so nobody can avoid these.
    """
    machine, length_s = chosen.machine(), chosen.trace.interval_s
    first, last = (int(max(0.0, time_s) // length_s) for time_s in (begin_s, end_s))
    machine.advance((last + 1) * length_s)
    intervals = reported_intervals(reported(machine), chosen.slo.percentile)[first : last + 1]
    late = sum((interval.latency_ms or 0.0) > chosen.slo.latency_ms for interval in intervals)
    return late / len(intervals)


def oracle(settings: SimSettings, *, share: bool = False) -> Bounds:
    """What is possible under that load with whole cores, or also with memcached's idle cycles."""
    return replace(bounds(setup(settings), share=share), schedule=())


def compare(
    settings: SimSettings,
    contenders: Sequence[Contender],
    seeds: Sequence[int],
    *,
    workers: int | None = None,
    ask_oracle: bool = True,
    done: Callable[[int, int], None] = lambda _number, _total: None,
) -> Comparison:
    """Run every policy under every seed, and the oracle; the result does not depend on the number of workers.

    Args:
        settings: the scenario; its seed is replaced.
        contenders: the policies.
        seeds: one run each.
        workers: processes; one a core unless given.
        ask_oracle: whether to look for the best schedule; at load intervals of a second that takes long.
        done: called after each task with how many are done and how many there are.

    Raises:
        UserError: a policy cannot be loaded (before anything runs), or ended its process.
    """
    for contender in contenders:
        contender.load()
    interval_s = setup(settings).trace.interval_s
    each = [replace(settings, seed=seed) for seed in seeds]
    with tempfile.TemporaryDirectory(prefix="colocate-", ignore_cleanup_errors=True) as folder, _pool(workers) as pool:
        with _undisturbed():
            whole = [pool.submit(oracle, one) for one in each if ask_oracle]
            shared = [pool.submit(oracle, one, share=True) for one in each if ask_oracle]
            played = [[pool.submit(play, one, contender, Path(folder)) for one in each] for contender in contenders]
        futures: list[Future[Any]] = [*whole, *shared, *chain.from_iterable(played)]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                future.result()
                done(number, len(futures))
        except BrokenProcessPool as error:
            raise UserError(
                "a policy ended the process that it ran in", "find out which by `colocate evaluate FILE.py:CLASS`"
            ) from error
        names = [contender.name for contender in contenders]
        outcomes = {name: tuple(run.result() for run in runs) for name, runs in zip(names, played, strict=True)}
        found = [(alone.result(), sharing.result()) for alone, sharing in zip(whole, shared, strict=True)]
        return comparison(settings.scenario, interval_s, outcomes, found if ask_oracle else None)


@contextmanager
def _pool(workers: int | None) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes are killed when it is left early, whatever they are at."""
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers or len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn"), _quieten)
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """What is started here does not hear the terminal's Ctrl-C, and hashes alike in every process."""
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = "0"
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        if before is None:
            del os.environ["PYTHONHASHSEED"]
        else:
            os.environ["PYTHONHASHSEED"] = before


def _quieten() -> None:
    """What a policy prints goes to standard error: standard output is the command's."""
    os.dup2(2, 1)


class _Watch:
    """What a run's log does not tell: its end on the machine's clock, whether cores were shared, the first failure."""

    def __init__(self) -> None:
        self.end_s = 0.0
        self.share = False
        self.fault = ""

    def see(self, controller: Controller) -> None:
        """Called after every tick."""
        decision = controller.decision
        if decision is None:
            return
        self.end_s = decision.view.time_s
        self.share = self.share or bool(decision.plan.share)
        if decision.interventions and not self.fault:
            self.fault = next((change.reason for change in decision.interventions if change.rule == "strike"), "")
