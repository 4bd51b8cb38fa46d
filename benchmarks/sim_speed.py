"""How fast a simulated run is: virtual time over the CPU time of one core, what SimPy's queue takes of it, and memory.

    .venv/bin/python benchmarks/sim_speed.py [--json]

A run of `cca-2025` with `reactive` at a period of 100 ms. The jobs are made twenty times as long, so that they outlast
it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import simpy

from colocate.policy import load_policy
from colocate.sim.run import Setup, simulate
from colocate.simulation import SimSettings, setup

PERIOD_S, RUN_S, LONG_S = 0.1, 900.0, 7200.0


def long_run(duration_s: float) -> Setup:
    """The scenario, for as long as that."""
    chosen = setup(SimSettings(scenario="cca-2025", period_s=PERIOD_S, duration_s=duration_s))
    calibration = chosen.calibration
    jobs = {name: replace(job, alone_s=20 * job.alone_s) for name, job in calibration.jobs.items()}
    return replace(chosen, calibration=replace(calibration, jobs=jobs))


def once(duration_s: float) -> float:
    """CPU seconds of one run."""
    chosen = long_run(duration_s)
    with tempfile.TemporaryDirectory() as directory:
        begin_s = time.process_time()
        run = simulate(chosen, load_policy("reactive"), Path(directory))
        used_s = time.process_time() - begin_s
    if run.ending.why != "duration":
        raise SystemExit(f"the run ended before its time: {run.ending}")
    return used_s


def queue(duration_s: float) -> float:
    """CPU seconds that SimPy takes for the waits of such a run alone."""
    env = simpy.Environment()
    begin_s = time.process_time()
    for _ in range(round(duration_s / PERIOD_S)):
        env.run(until=env.timeout(PERIOD_S))
    return time.process_time() - begin_s


def peak_mb(duration_s: float) -> float:
    """Most memory that a run's objects take at a time, the first run's caches not counted."""
    tracemalloc.start()
    once(duration_s)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="runs (%(default)s)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    once(60.0)
    runs_s = [once(RUN_S) for _ in range(args.repeat)]
    result = {
        "times_real_time": {"median": RUN_S / statistics.median(runs_s), "best": RUN_S / min(runs_s)},
        "us_a_tick": 1e6 * statistics.median(runs_s) * PERIOD_S / RUN_S,
        "simpy_share": min(queue(RUN_S) for _ in range(args.repeat)) / min(runs_s),
        "peak_mb": {"900_s": peak_mb(RUN_S), "7200_s": peak_mb(LONG_S)},
    }
    if args.json:
        print(json.dumps(result))
        return
    speed, peak = result["times_real_time"], result["peak_mb"]
    assert isinstance(speed, dict) and isinstance(peak, dict)  # noqa: S101, PT018
    print(f"{speed['median']:.0f} times real time (best of {args.repeat}: {speed['best']:.0f}; target 1500)")
    print(f"{result['us_a_tick']:.0f} us a tick, SimPy's queue is {result['simpy_share']:.1%} of a run")
    print(f"peak memory of a run of 900 s {peak['900_s']:.1f} MB, of 7200 s {peak['7200_s']:.1f} MB")


if __name__ == "__main__":
    main()
