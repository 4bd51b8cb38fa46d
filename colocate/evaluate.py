"""One score for a policy, safe against whatever its code does: an evaluator for tools that search for programs.

The score is between 0 and 1: `exp(-25 * max(0, v - 0.01)) / r`, where r is the mean ratio of its time to the best
one that the oracle finds with whole cores under the same load, and v the mean ratio of load intervals that violate the
SLO. So 1 is as good as the oracle, one interval in a hundred may fail, and each further one costs 22 %. (A policy that
shares cores can come to more than 1.) A policy that cannot be loaded, hangs, exits, needs too much memory, fails so
often that the safe policy takes over, or leaves jobs undone scores 0.

The policy's code runs in a process of its own with limits on time and memory, which is killed with all that it has
started. This is a fence against accidents, not a prison: code that means to read files or to cheat can.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import os
import pickle
import resource
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

from colocate.compare import Contender, oracle, play
from colocate.errors import UserError
from colocate.report.comparison import Outcome
from colocate.sim.oracle import Bounds
from colocate.simulation import LONGEST_S, SimSettings, setup

FAILED = 0.0
TOLERATED_RATIO = 0.01
STEEPNESS = 25.0
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Limits:
    """What a policy's process may use.

    Attributes:
        time_s: of the clock, for all seeds together.
        memory_mb: address space.
    """

    time_s: float = 120.0
    memory_mb: int = 2048


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A policy's score and its parts; where `error` says why it failed, the parts are None."""

    score: float
    makespan_s: float | None = None
    slo_violation_ratio: float | None = None
    over_oracle: float | None = None
    error: str | None = None


def evaluate(
    policy: str | Path,
    *,
    scenario: str = "cca-2025",
    seeds: int | Iterable[int] = 5,
    options: Mapping[str, object] | None = None,
    time_limit_s: float = Limits().time_s,
) -> dict[str, float]:
    """Score a policy: the same file, options and seeds give the same score.

    Args:
        policy: the path of a Python file with one policy in it, or whatever else `--policy` takes.
        scenario: machine, jobs, SLO and load.
        seeds: which ones, or how many, from 1.
        options: of the policy.
        time_limit_s: for all seeds together.

    Returns:
        `score`, `makespan_s`, `slo_violation_ratio`, `over_oracle`, and `failed` (1.0 where the policy failed; the
        parts then are the worst there are, so that every figure is finite).

    Raises:
        UserError: the scenario is not there, or there are no seeds.
    """
    chosen = tuple(range(1, seeds + 1)) if isinstance(seeds, int) else tuple(seeds)
    settings = tuple(f"{name}={value}" for name, value in (options or {}).items())
    limits = Limits(time_limit_s)
    found = evaluation(str(policy), settings, SimSettings(scenario=scenario), chosen, limits)
    failed = found.error is not None
    parts = asdict(found)
    del parts["error"]
    if failed:
        best_s = statistics.fmean(_bounds(SimSettings(scenario=scenario, seed=seed)).best_s for seed in chosen)
        parts |= {"makespan_s": LONGEST_S, "slo_violation_ratio": 1.0, "over_oracle": LONGEST_S / best_s}
    return {**parts, "failed": float(failed)}


def evaluation(
    policy: str, options: Sequence[str], settings: SimSettings, seeds: Sequence[int], limits: Limits | None = None
) -> Evaluation:
    """Score a policy; what is wrong with the policy itself is in the evaluation's `error`.

    Raises:
        UserError: the scenario is not there, or there are no seeds.
    """
    if not seeds:
        raise UserError("no seeds", "give at least one")
    each = [replace(settings, seed=seed, qps_targets=tuple(settings.qps_targets)) for seed in seeds]
    setup(each[0]).machine()
    best_s = [_bounds(one).best_s for one in each]
    try:
        runs = _fenced(Contender(policy, with_class(policy), tuple(options)), each, limits or Limits())
    except UserError as error:
        return Evaluation(FAILED, error=str(error))
    for run in runs:
        if run.fell_back:
            return Evaluation(FAILED, error=f"seed {run.seed}: it failed, and the safe policy took over: {run.fault}")
        if not run.complete:
            return Evaluation(FAILED, error=f"seed {run.seed}: jobs were left after {run.makespan_s:g} s")
    ratio = statistics.fmean(run.slo_violation_ratio for run in runs)
    over_oracle = statistics.fmean(run.end_s / best for run, best in zip(runs, best_s, strict=True))
    return Evaluation(
        score=math.exp(-STEEPNESS * max(0.0, ratio - TOLERATED_RATIO)) / over_oracle,
        makespan_s=statistics.fmean(run.makespan_s for run in runs),
        slo_violation_ratio=ratio,
        over_oracle=over_oracle,
    )


def with_class(policy: str) -> str:
    """The policy as `load_policy` takes it: a bare `FILE.py` gets the name of the one class in it that decides.

    Raises:
        UserError: the file cannot be read or has no such class, or several.
    """
    if not policy.endswith(".py"):
        return policy
    try:
        tree = ast.parse(Path(policy).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"policy {policy}: {error.strerror}", "give the path of a Python file") from error
    except (SyntaxError, ValueError) as error:
        raise UserError(f"policy {policy}: not Python: {error}", "mend it") from error
    found = [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and any(isinstance(part, ast.FunctionDef) and part.name == "decide" for part in node.body)
    ]
    if len(found) != 1:
        raise UserError(f"policy {policy}: {len(found)} classes with a method decide", "name one: FILE.py:CLASS")
    return f"{policy}:{found[0]}"


@lru_cache(maxsize=1024)
def _bounds(settings: SimSettings) -> Bounds:
    """The oracle's, worked out once: a search asks for the same ones over and over."""
    return oracle(settings)


def _fenced(contender: Contender, each: Sequence[SimSettings], limits: Limits) -> list[Outcome]:
    """Play in a process of its own, which is killed with its whole group at the end.

    Raises:
        UserError: it gave no outcomes; says why.
    """
    path = os.pathsep.join(entry for entry in sys.path if entry)
    answer_fd, result_fd = os.pipe()
    with (
        tempfile.TemporaryDirectory(prefix="colocate-", ignore_cleanup_errors=True) as folder,
        os.fdopen(answer_fd, "rb", buffering=0) as answer,
        tempfile.TemporaryFile() as request,
    ):
        pickle.dump((contender, each, limits, folder), request)
        request.seek(0)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from colocate.evaluate import _play; _play({result_fd})"],
                stdin=request, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[result_fd],
                start_new_session=True, env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": path},
            )  # fmt: skip
        finally:
            os.close(result_fd)
        try:
            told, ended = _read_until_end(answer.fileno(), process.pid, time.monotonic() + limits.time_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if not told.endswith(b"\n"):
        raise UserError(_why(process.returncode) if ended else f"it was not done after {limits.time_s:g} s", "")
    try:
        document = json.loads(told)
        if document["error"]:
            raise UserError(document["error"])
        return [Outcome(**outcome) for outcome in document["outcomes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError("its process told nonsense") from error


def _read_until_end(answer_fd: int, pid: int, give_up_s: float) -> tuple[bytes, bool]:
    """What the process tells until the line is complete, it ends or the time is over; and whether it ended."""
    told = b""
    pidfd = os.pidfd_open(pid)  # tells of its end without reaping it, so that its group can still be killed
    try:
        while not told.endswith(b"\n"):
            left_s = give_up_s - time.monotonic()
            ready, _, _ = select.select([answer_fd, pidfd], [], [], max(0.0, left_s))
            part = os.read(answer_fd, _CHUNK) if answer_fd in ready else b""
            told += part
            if not part and (not ready or pidfd in ready):
                return told, pidfd in ready
        return told, False
    finally:
        os.close(pidfd)


def _why(code: int) -> str:
    return (
        f"its process was killed by {signal.Signals(-code).name}" if code < 0 else f"it ended its process (exit {code})"
    )


def _play(result_fd: int) -> None:
    """What runs in the process: read the request, play it, tell the outcomes as one line, and end at once."""
    contender, each, limits, folder = pickle.load(sys.stdin.buffer)  # noqa: S301 -- our own parent wrote it
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 -- a descriptor is what counts
        os.dup2(nothing.fileno(), 0)
    memory_bytes, cpu_s = limits.memory_mb << 20, math.ceil(limits.time_s) + 1
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))  # also where our parent is killed before it can kill us
    outcomes: list[dict[str, object]] = []
    error = ""
    try:
        outcomes = [asdict(play(one, contender, Path(folder))) for one in each]
    except UserError as found:
        error = str(found)
    except BaseException as found:
        error = f"{type(found).__name__}: {found}"
    with os.fdopen(result_fd, "w", encoding="utf-8") as result:
        result.write(json.dumps({"error": error, "outcomes": outcomes}) + "\n")
    os._exit(0)
