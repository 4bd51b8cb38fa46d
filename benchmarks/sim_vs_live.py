"""One run of the demo jobs on this machine and on its model, side by side: makespan and violation ratio.

    python benchmarks/sim_vs_live.py [--calibration this-machine.toml] [--runs 3] [--calibrate] [--runtime docker]

Live, as `colocate demo` does it: a private memcached, `colocate load` at real-time priority on the highest core, and
`colocate run`. Simulated: the calibration's scenario with the same load, seed for seed. The model knows no load
generator, which takes a part of the highest core away from the jobs there: its share of that core is read from what it
tells at the end of the live runs, and the jobs' work is longer by 1 / (1 - share). That holds where jobs have but that
core: on a machine of two cores.

Exit code 1 if the makespans differ by more than 10 %, or the violation ratios by more than 3 percentage points. Needs a
quiet machine: it prints what other programs kept busy before. Live figures are the median run's makespan and the mean
violation ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
from bench import last_core

from colocate.demo import IP, Load, background_load, private_memcached
from colocate.policy import load_policy
from colocate.session import RuntimeName, Settings, session
from colocate.sim.calibration import Calibration, load_calibration
from colocate.sim.run import Setup, simulate
from colocate.simulation import SimSettings, graded, setup

MAKESPAN_LIMIT, RATIO_LIMIT = 0.10, 0.03
SEEDS = 5  # of the model's chance; the load's seed is one


def generator_share(output: Path) -> float:
    """The load generator's share of its core over its whole life, as it tells at its end."""
    told = re.search(r"^# cpu: .*\(([\d.]+) % of a core\)", output.read_text(encoding="utf-8"), re.MULTILINE)
    if told is None:
        raise SystemExit(f"{output}: the load generator did not tell its CPU")
    return float(told[1]) / 100


def simulated(calibration: str, share: float, policy: str) -> dict[str, object]:
    """The model's runs."""
    runs = [simulate_one(calibration, seed, share, policy) for seed in range(1, SEEDS + 1)]
    return {**middle(runs), "generator_share": round(share, 3), "seeds": SEEDS}


def simulate_one(calibration: str, seed: int, share: float, policy: str) -> dict[str, float]:
    """One simulated run with jobs slowed by the generator's share."""
    usual = setup(SimSettings(scenario=calibration))
    chosen = setup(SimSettings(scenario=calibration, seed=seed, qps_seed=usual.calibration.scenario.qps_seed))
    with tempfile.TemporaryDirectory() as name:
        run = simulate(slowed(chosen, share), load_policy(policy), Path(name))
        grade = graded(run, chosen.slo)
    return figures(grade.makespan_s, grade.overlap.value, {name: job.run_s for name, job in grade.jobs.items()})


def slowed(chosen: Setup, share: float) -> Setup:
    """Every job takes longer, because the generator has a share of the only core that jobs get."""
    jobs = {name: replace(job, alone_s=job.alone_s / (1.0 - share)) for name, job in chosen.calibration.jobs.items()}
    return replace(chosen, calibration=replace(chosen.calibration, jobs=jobs))


def live(calibration: Calibration, runtime: RuntimeName, policy: str, log_dir: Path) -> dict[str, float]:
    """One live run."""
    usual = calibration.scenario
    load = Load(usual.qps_min, usual.qps_max, int(usual.qps_interval_s), usual.qps_seed, duration_s=900)
    with ExitStack() as stack:
        port, pid = stack.enter_context(private_memcached(usual.memcached_threads))
        settings = Settings(
            IP, port, pid, policy=policy, jobs=usual.jobs, slo=usual.slo, log_dir=log_dir, runtime=runtime
        )
        opened = stack.enter_context(session(settings))
        output = log_dir / f"mcperf-{port}.txt"
        log_dir.mkdir(parents=True, exist_ok=True)
        stack.enter_context(background_load(port, load, output, cpu=last_core()))
        ending = opened.run()
    told = opened.summary(ending, output)
    jobs = told["jobs"]
    makespan_s, ratio = told["makespan_s"], told["slo_violation_ratio"]
    if not told["complete"] or not isinstance(jobs, Mapping):
        raise SystemExit(f"the live run did not complete: {told['log']}")
    if not isinstance(makespan_s, float) or not isinstance(ratio, int | float):
        raise SystemExit(f"the live run measured no violation ratio: {told['log']}")
    run = figures(makespan_s, float(ratio), {name: job["run_s"] for name, job in jobs.items()})
    moves, coverage = told["core_moves"], told["coverage"]
    return {**run, "core_moves": float(str(moves)), "coverage": float(str(coverage)), "share": generator_share(output)}


def figures(makespan_s: float | None, ratio: float | None, jobs: Mapping[str, float | None]) -> dict[str, float]:
    """A run's figures, flat."""
    times = {f"{name}_s": round(seconds or 0.0, 2) for name, seconds in sorted(jobs.items())}
    return {"makespan_s": round(makespan_s or 0.0, 2), "violation_ratio": round(ratio or 0.0, 4), **times}


def middle(runs: list[dict[str, float]]) -> dict[str, object]:
    """Medians, the ratio's mean, and the makespan's spread."""
    makespans_s = [run["makespan_s"] for run in runs]
    return {
        **{key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]},
        "violation_ratio": round(statistics.fmean(run["violation_ratio"] for run in runs), 4),
        "makespan_low_s": min(makespans_s),
        "makespan_high_s": max(makespans_s),
    }


def calibrate(path: Path, runtime: RuntimeName) -> None:
    """Measure this machine by `colocate calibrate` with a private memcached."""
    with private_memcached(max(2, min(4, len(os.sched_getaffinity(0))))) as (port, pid):
        argv = [
            sys.executable, "-m", "colocate", "calibrate", "--memcached-ip", IP, "--port", str(port),
            "--memcached-pid", str(pid), "--jobs", "demo", "--runtime", runtime, "--output", str(path),
        ]  # fmt: skip
        if subprocess.run(argv, check=False).returncode:
            raise SystemExit("colocate calibrate failed")


def main() -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", default="this-machine", help="name or file (%(default)s)")
    parser.add_argument("--calibrate", action="store_true", help="measure this machine first, into that file")
    parser.add_argument("--runs", type=int, default=3, help="live runs (%(default)s)")
    parser.add_argument("--runtime", choices=("docker", "process"), default="docker", help="(%(default)s)")
    parser.add_argument("--policy", default="reactive", help="(%(default)s)")
    parser.add_argument("--log-dir", type=Path, default=Path("logs"), help="of the live runs (%(default)s)")
    args = parser.parse_args()
    if args.calibrate:
        if not args.calibration.endswith(".toml"):
            args.calibration += ".toml"
        calibrate(Path(args.calibration), args.runtime)
    calibration = load_calibration(args.calibration)
    busy = sum(psutil.cpu_percent(2.0, percpu=True)) / 100
    runs = []
    for number in range(1, args.runs + 1):
        runs.append(live(calibration, args.runtime, args.policy, args.log_dir))
        sys.stderr.write(f"live run {number} of {args.runs}: {json.dumps(runs[-1])}\n")
    real = middle(runs)
    model = simulated(args.calibration, statistics.fmean(run["share"] for run in runs), args.policy)
    makespan = float(str(model["makespan_s"])) / float(str(real["makespan_s"])) - 1.0
    ratio = float(str(model["violation_ratio"])) - float(str(real["violation_ratio"]))
    good = abs(makespan) <= MAKESPAN_LIMIT and abs(ratio) <= RATIO_LIMIT
    document = {
        "calibration": args.calibration,
        "others_busy_cores_before": round(busy, 2),
        "simulated": model,
        "live": real,
        "live_runs": runs,
        "makespan_difference": round(makespan, 4),
        "violation_ratio_difference": round(ratio, 4),
        "limits": {"makespan": MAKESPAN_LIMIT, "violation_ratio": RATIO_LIMIT},
        "ok": good,
    }
    print(json.dumps(document, indent=2))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
