"""Policies side by side on this machine: a real memcached, a real load, real containers, in turn A B C A B C.

    python benchmarks/live.py [--policies share,static,core-ladder,reactive] [--rounds 5] [--seconds 25] [--json FILE]

For machines with two cores; needs a quiet one, and root or the docker group. Memcached has one worker thread: at loads
of 5 to 40 % of what one core serves nobody needs a second core, so that every exclusive policy gives it one core and
the jobs the other, and they differ in what becomes of the rest of memcached's core. The load generator runs on the last
core at real-time priority and takes a part of it from the jobs, the same for every policy; its lag is shown.

First one core's saturation is measured, with memcached on the first core and the generator on the last. Then the load
is mcperf's seeded waveform between two shares of it, another rate every second, the same in every run. The jobs are the
demonstration's kernels with inputs that outlast a run. Batch work is counted as the CPU seconds that the jobs get a
second, from the moment at which all have been told to start. That is a fair measure between policies here, where all
run the same kernels on cores without SMT; it does not see what a neighbour in the cache costs a job.

Violations are shares of the load intervals in which the generator's p95, and of the seconds in which the probe's, was
above the SLO; intervals in which the generator itself was late do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from colocate import mcperf
from colocate.controller import Controller
from colocate.demo import IP, Load, background_load, private_memcached
from colocate.host.find import find
from colocate.host.memcached import ServiceAffinity
from colocate.jobs import load_catalogue
from colocate.load.generator import capacity_qps
from colocate.report.confidence import Estimate, estimate
from colocate.report.grade import reported_intervals
from colocate.session import Settings, session
from colocate.view import Slo

WARM_S = 4.0  # until all jobs run
SEED = 3274


@dataclass(frozen=True, slots=True)
class Run:
    """One policy for some seconds.

    Attributes:
        batch_cores: CPU seconds a second that the jobs got.
        late_ratio: share of load intervals that broke the SLO, by the generator.
        probed_late_ratio: the same of seconds, by the probe.
        judged: load intervals in which the generator was on time.
        p95_ms: median and highest of the load intervals.
        lag_p95_ms: the generator's own, worst interval.
        shared: whether jobs ran on memcached's core.
    """

    policy: str
    round: int
    batch_cores: float
    late_ratio: float
    probed_late_ratio: float
    judged: int
    p95_ms: tuple[float, float]
    lag: str
    shared: bool


class Watch:
    """What the jobs have used and what the probe said, by time."""

    def __init__(self) -> None:
        self.used: list[tuple[float, float]] = []
        self.probed_ms: dict[int, float] = {}
        self.shared = False

    def see(self, controller: Controller) -> None:
        """Called after every tick."""
        decision = controller.decision
        if decision is None:
            return
        view = decision.view
        self.used.append((view.time_s, sum(job.cpu_s or 0.0 for job in view.jobs.values())))
        self.shared |= bool(decision.plan.share)
        latency = view.service.latency_ms
        if latency.fresh(1.0) and latency.value is not None:
            self.probed_ms[int(view.time_s)] = latency.value

    def batch_cores(self) -> float:
        """CPU seconds a second after the start."""
        begin_s = self.used[0][0] + WARM_S
        first = next(entry for entry in self.used if entry[0] >= begin_s)
        last = self.used[-1]
        return (last[1] - first[1]) / (last[0] - first[0])


def one(policy: str, number: int, load: Load, jobs: Path, slo: Slo, folder: Path, seconds: float) -> Run:
    """Run one policy."""
    watch = Watch()
    output = folder / f"{policy}-{number}.txt"
    with ExitStack() as stack:
        port, pid = stack.enter_context(private_memcached(threads=1))
        settings = Settings(
            IP, port, pid, policy=policy, jobs=str(jobs), slo=slo, duration_s=seconds, log_dir=folder, state_dir=folder
        )
        opened = stack.enter_context(session(settings))
        stack.enter_context(background_load(port, load, output, cpu=last_core()))
        opened.run(watch.see)
    text = output.read_text(encoding="utf-8")
    latencies = [i.latency_ms for i in reported_intervals(mcperf.parse(text), slo.percentile)]
    judged = [ms for ms in latencies[int(WARM_S) : int(seconds)] if ms is not None]
    probed = list(watch.probed_ms.values())[int(WARM_S) :]
    lag = next((line.removeprefix("# lag: ") for line in text.splitlines() if line.startswith("# lag: ")), "not told")
    return Run(
        policy=policy,
        round=number,
        batch_cores=watch.batch_cores(),
        late_ratio=share_above(judged, slo.latency_ms),
        probed_late_ratio=share_above(probed, slo.latency_ms),
        judged=len(judged),
        p95_ms=(statistics.median(judged), max(judged)) if judged else (0.0, 0.0),
        lag=lag,
        shared=watch.shared,
    )


def share_above(values: Sequence[float], limit: float) -> float:
    """Of no values none is above."""
    return sum(value > limit for value in values) / len(values) if values else 0.0


def saturation_qps() -> float:
    """What memcached serves from the first core, asked from the last one; the median of three."""
    with private_memcached(threads=1) as (port, pid):
        affinity = ServiceAffinity(find(IP, port, pid=pid))
        affinity.pin(frozenset({min(os.sched_getaffinity(0))}))
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {last_core()})
        try:
            return statistics.median(capacity_qps(IP, port) for _ in range(3))
        finally:
            os.sched_setaffinity(0, allowed)


def long_jobs(folder: Path) -> Path:
    """The demonstration's jobs with inputs that outlast a run, as a catalogue."""
    path = folder / "jobs.toml"
    tables = [
        f"[[job]]\nname = {json.dumps(job.name)}\nimage = {json.dumps(job.image)}\nthreads = 1\ncommand = "
        + json.dumps(["native" if word == "simlarge" else word for word in job.command])
        for job in load_catalogue("demo")
    ]
    path.write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    return path


def last_core() -> int:
    """The highest core's id."""
    return max(os.sched_getaffinity(0))


def table(runs: Sequence[Run], policies: Sequence[str]) -> list[str]:
    """As it stands in docs/benchmarks.md."""
    by_round = {(run.policy, run.round): run for run in runs}
    rounds = sorted({run.round for run in runs})
    exclusive = [policy for policy in policies if not any(run.shared for run in runs if run.policy == policy)]
    means = {p: statistics.fmean(by_round[p, n].batch_cores for n in rounds) for p in policies}
    best = max(exclusive, key=lambda policy: means[policy], default=policies[0])
    lines = [
        f"| policy | batch CPU s/s | over {best} | late %, generator | late %, probe | p95 ms: median, worst |",
        "|---|---|---|---|---|---|",
    ]
    for policy in sorted(policies, key=lambda policy: -means[policy]):
        mine = [by_round[policy, number] for number in rounds]
        work = estimate([run.batch_cores for run in mine])
        ratio = estimate([run.batch_cores / by_round[best, run.round].batch_cores for run in mine])
        late = estimate([100 * run.late_ratio for run in mine])
        probed = estimate([100 * run.probed_late_ratio for run in mine])
        p95s = statistics.median(run.p95_ms[0] for run in mine), max(run.p95_ms[1] for run in mine)
        cells = [spread(work, 3), spread(ratio, 2), spread(late, 1), spread(probed, 1), f"{p95s[0]:.2f}, {p95s[1]:.2f}"]
        lines.append(f"| {policy} | {' | '.join(cells)} |")
    return lines


def spread(value: Estimate, digits: int) -> str:
    """A mean and half of its interval."""
    return f"{value.mean:.{digits}f} ± {value.high - value.mean:.{digits}f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default="share,static,core-ladder,reactive", help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=25.0, help="of a run (%(default)s)")
    parser.add_argument("--low", type=float, default=0.05, help="least load, as a share of saturation (%(default)s)")
    parser.add_argument("--high", type=float, default=0.40, help="most (%(default)s)")
    parser.add_argument("--slo-ms", type=float, default=Slo().latency_ms, help="(%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    args = parser.parse_args()
    policies, slo = args.policies.split(","), Slo(args.slo_ms)
    busy = sum(psutil.cpu_percent(2.0, percpu=True)) / 100
    most_qps = saturation_qps()
    load = Load(int(args.low * most_qps), int(args.high * most_qps), 1, SEED, int(args.seconds) + 15)
    print(f"other programs kept {busy:.2f} cores busy before; one core of memcached serves {most_qps:,.0f} a second")
    print(f"load: {load.qps_min:,} to {load.qps_max:,} a second, another rate every second, seed {load.seed}\n")
    runs: list[Run] = []
    begin_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="colocate-live-") as name:
        folder = Path(name)
        jobs = long_jobs(folder)
        for number in range(1, args.rounds + 1):
            for policy in policies:
                runs.append(one(policy, number, load, jobs, slo, folder, args.seconds))
                told: Mapping[str, object] = asdict(runs[-1])
                sys.stderr.write(f"{time.monotonic() - begin_s:5.0f} s  {json.dumps(told)}\n")
    print("\n".join(table(runs, policies)))
    print(f"\n{args.rounds} rounds of {args.seconds:g} s; the generator's worst lag: {max(run.lag for run in runs)}")
    if args.json:
        document = {"saturation_qps": most_qps, "load": asdict(load), "runs": [asdict(run) for run in runs]}
        args.json.write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
