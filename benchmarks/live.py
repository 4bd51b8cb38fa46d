"""Policies side by side on this machine: a real memcached, a real load, real containers, in turn A B C A B C.

    python benchmarks/live.py [--policies share,static,core-ladder,reactive] [--rounds 5] [--seconds 25] [--json FILE]

For machines with two cores; needs a quiet one, and root or the docker group. Memcached has one worker thread: at loads
of 5 to 40 % of what one core serves nobody needs a second core, so that every exclusive policy gives it one core and
the jobs the other, and they differ in what becomes of the rest of memcached's core. The load generator runs on the last
core at real-time priority and takes a part of it from the jobs, the same for every policy; its lag is shown.

First one core's saturation is measured, with memcached on the first core and the generator on the last: the answers a
second divided by the share of its core that memcached needed for them, since the generator is at its end before
memcached is. Then the load is mcperf's seeded waveform between two shares of it, another rate every second, the same in
every run; the same share twice (`--low 0.2 --high 0.2`) is a fixed load. The jobs are the demonstration's kernels with
inputs that outlast a run. Batch work is counted as the CPU seconds that the jobs get a second, from the moment at which
all have been told to start. That is a fair measure between policies here, where all run the same kernels with one
thread on cores without SMT; it does not see what a neighbour in the cache costs a job.

Violations are shares of the load intervals in which the generator's p95, and of the seconds in which the probe's, was
above the SLO; intervals in which the generator itself was late do not count, and how many did is shown: a run with few
says little. `others` is what neither memcached, the jobs nor the generator used; `idle` what nobody did: cores, means.

Ratios are within a round. The generator takes the same part of the jobs' own core from every policy; the last line adds
it to both sides, as if the load came from elsewhere: a smaller ratio, and the one to expect of a server.
Last, from a step in the load to memcached's wider set, as `bench.py reaction` measures it, by each of `--reaction`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from bench import last_core, reaction
from sim_vs_live import generator_share

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
QUIET_CORES = 0.1
WANTED = 1.3  # times the batch work of the best policy that gives whole cores
_RATIOS = ("late_ratio", "probed_late_ratio")


@dataclass(frozen=True, slots=True)
class Run:
    """One policy for some seconds.

    Attributes:
        batch_cores: CPU seconds a second that the jobs got.
        late_ratio: share of load intervals that broke the SLO, by the generator.
        probed_late_ratio: the same of seconds, by the probe.
        judged: load intervals in which the generator was on time.
        p95_ms: median and highest of the load intervals.
        lag_ms: how late the generator was: p95 of the median interval, p95 of the worst, the most.
        generator_cores: CPU that it used.
        service_cores: CPU that memcached used.
        idle_cores: what nobody used.
        shared: whether jobs ran on memcached's core.
    """

    policy: str
    round: int
    batch_cores: float
    late_ratio: float
    probed_late_ratio: float
    judged: int
    p95_ms: tuple[float, float]
    lag_ms: tuple[float, ...]
    generator_cores: float
    service_cores: float
    idle_cores: float
    shared: bool

    @property
    def others_cores(self) -> float:
        """What other programs and the kernel used."""
        known = self.batch_cores + self.generator_cores + self.service_cores + self.idle_cores
        return max(0.0, len(os.sched_getaffinity(0)) - known)


class Watch:
    """What the jobs have used and what the probe said, by time."""

    def __init__(self) -> None:
        self.used: list[tuple[float, float]] = []
        self.probed_ms: dict[int, float] = {}
        self.idle: list[float] = []
        self.service: list[float] = []
        self.shared = False

    def see(self, controller: Controller) -> None:
        """Called after every tick."""
        decision = controller.decision
        if decision is None:
            return
        view = decision.view
        self.used.append((view.time_s, sum(job.cpu_s or 0.0 for job in view.jobs.values())))
        self.shared |= bool(decision.plan.share)
        if view.time_s >= self.used[0][0] + WARM_S:
            self.idle.append(sum(1.0 - use.busy for use in view.cores.values()))
            self.service.append(view.service.cpu_cores.value or 0.0)
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
    return Run(
        policy=policy,
        round=number,
        batch_cores=watch.batch_cores(),
        late_ratio=share_above(judged, slo.latency_ms),
        probed_late_ratio=share_above(probed, slo.latency_ms),
        judged=len(judged),
        p95_ms=(statistics.median(judged), max(judged)) if judged else (0.0, 0.0),
        lag_ms=lags_ms(text),
        generator_cores=generator_share(output),
        service_cores=statistics.fmean(watch.service),
        idle_cores=statistics.fmean(watch.idle),
        shared=watch.shared,
    )


def share_above(values: Sequence[float], limit: float) -> float:
    """Of no values none is above."""
    return sum(value > limit for value in values) / len(values) if values else 0.0


def lags_ms(output: str) -> tuple[float, ...]:
    """What the generator tells of its own lag at its end."""
    told = re.search(r"^# lag: p95 ([\d.]+) ms .*, ([\d.]+) ms in the worst, ([\d.]+) ms", output, re.MULTILINE)
    if told is None:
        raise SystemExit("the load generator did not tell its lag")
    return tuple(float(ms) for ms in told.groups())


def saturation_qps() -> float:
    """What memcached serves with the whole first core, asked from the last one; the median of three.

    The generator is at its end first, or somebody else is busy there: so it is what memcached answered, by the share of
    its core that it used. At its true end a request costs it less, as it takes several at once.
    """
    with private_memcached(threads=1) as (port, pid):
        affinity = ServiceAffinity(find(IP, port, pid=pid))
        affinity.pin(frozenset({min(os.sched_getaffinity(0))}))
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {last_core()})
        try:
            return statistics.median(one_core_qps(port, psutil.Process(pid)) for _ in range(3))
        finally:
            os.sched_setaffinity(0, allowed)


def one_core_qps(port: int, memcached: psutil.Process, seconds: float = 1.0) -> float:
    """Answers for each second of CPU that memcached used."""
    before = memcached.cpu_times()
    answered = seconds * capacity_qps(IP, port, seconds)
    after = memcached.cpu_times()
    return answered / (after.user - before.user + after.system - before.system)


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


def table(runs: Sequence[Run], policies: Sequence[str]) -> list[str]:
    """As it stands in docs/benchmarks.md."""
    rounds = sorted({run.round for run in runs})
    by_policy = {p: [run for n in rounds for run in runs if (run.policy, run.round) == (p, n)] for p in policies}
    best = best_exclusive(by_policy)
    lines = [
        f"| policy | batch CPU s/s | over {best or 'nothing'} | late %, generator | late %, probe "
        "| p95 ms: median, worst | judged | lag ms: p95, worst | idle | others |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for policy, mine in sorted(by_policy.items(), key=lambda item: -work(item[1])):
        cells = [
            policy,
            estimate([run.batch_cores for run in mine]).told(3),
            ratio(mine, by_policy[best]).told(2) if best else "",
            estimate([run.late_ratio for run in mine]).told(1, 100),
            estimate([run.probed_late_ratio for run in mine]).told(1, 100),
            f"{statistics.median(run.p95_ms[0] for run in mine):.2f}, {max(run.p95_ms[1] for run in mine):.2f}",
            str(sum(run.judged for run in mine)),
            f"{statistics.median(run.lag_ms[0] for run in mine):.3f}, {max(run.lag_ms[1] for run in mine):.3f}",
            f"{statistics.fmean(run.idle_cores for run in mine):.2f}",
            f"{statistics.fmean(run.others_cores for run in mine):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines + verdicts(by_policy, best)


def verdicts(by_policy: Mapping[str, Sequence[Run]], best: str | None) -> list[str]:
    """Each policy that shared against the best of those that did not."""
    lines = []
    for policy, mine in by_policy.items():
        if best is None or not any(run.shared for run in mine):
            continue
        other = by_policy[best]
        here = {name: statistics.fmean(getattr(run, name) for run in mine) for name in _RATIOS}
        there = {name: statistics.fmean(getattr(run, name) for run in other) for name in _RATIOS}
        told = all(run.judged for run in (*mine, *other))  # else a ratio of 0 says nothing
        enough = told and ratio(mine, other).low >= WANTED and all(here[name] <= there[name] for name in _RATIOS)
        lines.append(
            f"\n{policy}: {ratio(mine, other).told(2)} times the batch work of {best} (wanted: {WANTED}, the "
            f"whole interval), late {100 * here['late_ratio']:.1f} against {100 * there['late_ratio']:.1f} % by the "
            f"generator, {100 * here['probed_late_ratio']:.1f} against {100 * there['probed_late_ratio']:.1f} % by the "
            f"probe: {'reached' if enough else 'not reached'}\n"
            f"as if the load came from elsewhere: {ratio(mine, other, whole=True).told(2)} times"
        )
    return lines


def best_exclusive(by_policy: Mapping[str, Sequence[Run]]) -> str | None:
    """Of the policies that never shared the one that got most work done."""
    exclusive = [policy for policy, runs in by_policy.items() if not any(run.shared for run in runs)]
    return max(exclusive, key=lambda policy: work(by_policy[policy]), default=None)


def work(runs: Sequence[Run]) -> float:
    """The mean of a policy's batch work."""
    return statistics.fmean(run.batch_cores for run in runs)


def ratio(ours: Sequence[Run], theirs: Sequence[Run], *, whole: bool = False) -> Estimate:
    """Batch work over batch work, round by round; `whole`: with the generator's core given to the jobs entirely."""
    pairs = zip(ours, theirs, strict=True)
    if whole:
        return estimate([(a.batch_cores + a.generator_cores) / (b.batch_cores + b.generator_cores) for a, b in pairs])
    return estimate([a.batch_cores / b.batch_cores for a, b in pairs])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default="share,static,core-ladder,reactive", help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=25.0, help="of a run (%(default)s)")
    parser.add_argument("--low", type=float, default=0.05, help="least load, as a share of saturation (%(default)s)")
    parser.add_argument("--high", type=float, default=0.40, help="most (%(default)s)")
    parser.add_argument("--slo-ms", type=float, default=Slo().latency_ms, help="(%(default)s)")
    parser.add_argument("--reaction", default="reactive", help="policies whose reaction is measured (%(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="of the load, for the reaction; 0: not (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    args = parser.parse_args()
    policies, slo = args.policies.split(","), Slo(args.slo_ms)
    busy = sum(psutil.cpu_percent(2.0, percpu=True)) / 100
    if busy > QUIET_CORES:
        sys.stderr.write(f"warning: other programs keep {busy:.2f} cores busy: these figures will tell of them\n")
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
    print(f"\n{args.rounds} rounds of {args.seconds:g} s")
    reactions = {policy: reaction(args.steps, policy) for policy in args.reaction.split(",") if args.steps}
    for policy, found in reactions.items():
        print(f"from a step in the load to memcached's wider set, {policy}: {json.dumps(found)}")
    if args.json:
        document = {"saturation_qps": most_qps, "others_busy_cores_before": round(busy, 2), "load": asdict(load),
                    "runs": [asdict(run) for run in runs], "reaction": reactions}  # fmt: skip
        args.json.write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
