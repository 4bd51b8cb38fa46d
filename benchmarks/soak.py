"""Whether anything grows over a million ticks or an hour: memory, descriptors, threads, objects, the time of a tick.

    .venv/bin/python benchmarks/soak.py [--ticks 1000000] [--seconds S]   # the simulated machine, as fast as it goes
    .venv/bin/python benchmarks/soak.py --live 3600 [--runtime docker]    # this machine: memcached and jobs of its own

Simulated: three quarters of the ticks are one run, the rest are runs of seconds, one after the other in this process.
In each a job dies every second and is started again, the load flaps at the threshold between one core and two, and
memcached restarts every minute. Live: the real loop on a private memcached under a load that flaps; memcached is killed
and comes back every minute; jobs are plain processes that end after a second, or with --runtime docker the
demonstration's, of which one is killed every second.

Exit code 1 if, after the warm-up, resident memory grows by more than 1 MB an hour by least squares (simulated: in the
72,000 ticks of an hour) and by more than 1 MB in all, so that a short soak is not judged by the allocator's grain; or
if the last third has more descriptors or threads than the first, both at least and at most. The warm-up is the first
tenth (20,000 ticks at least), with --seconds 20,000 ticks, live the first minute. The drift of the tick's time is shown
and not judged: it tells of the machine, too.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import get_args

import docker
import psutil

from colocate.controller import Controller
from colocate.cores import parse_ranges
from colocate.demo import IP, Load, background_load, private_memcached
from colocate.eventlog import SchedulerLogger
from colocate.host.engine import RUN_LABEL
from colocate.loop import run
from colocate.metrics import MetricsWriter
from colocate.policy import load_policy
from colocate.session import RuntimeName, Settings, session
from colocate.sim.host import SimHost
from colocate.sim.run import BEGIN, Setup
from colocate.sim.traces import Trace
from colocate.simulation import SimSettings, setup
from colocate.testing.chaos import ChaosHost
from colocate.testing.schedule import Fault, Kind, Schedule

HOUR_TICKS = 72_000
WARM_TICKS = 20_000  # histories and caches are full by then
MB_AN_HOUR, GRAIN_MB = 1.0, 1.0
SAMPLES = 60
CHURN_S, RESTART_S = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """This process at one moment; `tick_us` is CPU time a tick since the last sample."""

    hours: float
    ticks: int
    rss_mb: float
    descriptors: int
    threads: int
    objects: int
    tick_us: float


class Sampler:
    """Counts ticks, and looks at this process now and then.

    Args:
        every: ticks between two looks.
    """

    def __init__(self, every: int) -> None:
        self.samples: list[Sample] = []
        self.ticks = 0
        self.begin_s = time.monotonic()
        self._every = every
        self._cpu_s = time.process_time()
        self._process = psutil.Process()

    def tick(self) -> None:
        """Called at every tick."""
        self.ticks += 1
        if self.ticks % self._every:
            return
        gc.collect()
        now_s = time.process_time()
        sample = Sample(
            (time.monotonic() - self.begin_s) / 3600, self.ticks, self._process.memory_info().rss / 2**20,
            self._process.num_fds(), self._process.num_threads(), len(gc.get_objects()),
            1e6 * (now_s - self._cpu_s) / self._every,
        )  # fmt: skip
        self._cpu_s = time.process_time()
        self.samples.append(sample)
        print(
            f"{sample.ticks:>10,} ticks {60 * sample.hours:>6.1f} min {sample.rss_mb:>8.2f} MB"
            f" {sample.descriptors:>4} descriptors {sample.threads:>3} threads {sample.objects:>8,} objects"
            f" {sample.tick_us:>7.1f} us a tick",
            flush=True,
        )


def judge(name: str, samples: Sequence[Sample], *, live: bool) -> bool:
    """Print what grew, and say whether that is too much."""
    if len(samples) < 3:
        print(f"{name}: too short to tell")
        return False
    hours = [sample.hours if live else sample.ticks / HOUR_TICKS for sample in samples]
    slope = statistics.linear_regression(hours, [sample.rss_mb for sample in samples]).slope
    third = max(1, len(samples) // 3)
    first, last = (statistics.median(s.tick_us for s in part) for part in (samples[:third], samples[-third:]))
    begin, end = samples[0], samples[-1]
    more = {}
    for what in ("descriptors", "threads"):  # a job that happens to run has some of its own; what is kept, stays
        before, after = ([getattr(s, what) for s in part] for part in (samples[:third], samples[-third:]))
        more[what] = min(max(after) - max(before), min(after) - min(before))
    print(
        f"{name}: {slope:+.3f} MB an hour{'' if live else ' of ticks'}, {end.rss_mb - begin.rss_mb:+.2f} MB in all,"
        f" {more['descriptors']:+} descriptors, {more['threads']:+} threads,"
        f" {end.objects - begin.objects:+,} objects, a tick {last / first - 1:+.1%}"
    )
    grows = slope > MB_AN_HOUR and end.rss_mb - begin.rss_mb > GRAIN_MB
    return not grows and max(more.values()) <= 0


def simulated(ticks: int, seconds: float | None, policy: str) -> bool:
    """The accelerated soak; whether nothing grew."""
    sampler = Sampler(min(max(1, ticks // SAMPLES), 2000 if seconds else ticks))
    end_s = time.monotonic() + seconds if seconds else float("inf")
    begin_s = time.monotonic()

    def over(share: float) -> bool:
        elapsed = (time.monotonic() - begin_s) / seconds if seconds else 0.0
        return max(sampler.ticks / ticks, elapsed) >= share

    chosen = scenario(policy_jobs_s=1e7, duration_s=0.06 * ticks)
    with tempfile.TemporaryDirectory() as directory:
        one_run(chosen, policy, Path(directory), sampler, lambda: 15 * over(0.75))
        boundary = len(sampler.samples)
        short = scenario(policy_jobs_s=1.0, duration_s=600.0)
        while not over(1.0) and time.monotonic() < end_s:
            one_run(short, policy, Path(directory), sampler, lambda: 15 * over(1.0))
            for path in Path(directory).iterdir():
                path.unlink()
    warm_ticks = WARM_TICKS if seconds else max(WARM_TICKS, ticks // 10)
    warm = next((n for n, s in enumerate(sampler.samples) if s.ticks >= warm_ticks), 1)
    grown = [
        judge("one long run", sampler.samples[warm:boundary], live=False),
        judge("many short runs", sampler.samples[boundary + 1 :], live=False),
    ]
    return all(grown)


def scenario(*, policy_jobs_s: float, duration_s: float) -> Setup:
    """The machine of `cca-2025`, jobs of so many seconds, and a load that flaps at the threshold of one core."""
    chosen = setup(SimSettings(scenario="cca-2025", duration_s=600.0))
    calibration = chosen.calibration
    jobs = {name: replace(job, alone_s=policy_jobs_s) for name, job in calibration.jobs.items()}
    edge_qps = chosen.profile().edge(1, chosen.slo.latency_ms).qps
    count = int(duration_s) + 1
    flapping = tuple(islice(cycle((0.96 * edge_qps, 1.04 * edge_qps, 0.99 * edge_qps)), count))
    trace = Trace(tuple(map(float, range(count))), flapping, 3600.0, float(count))
    return replace(chosen, calibration=replace(calibration, jobs=jobs), trace=trace, duration_s=duration_s)


def one_run(chosen: Setup, policy: str, directory: Path, sampler: Sampler, interrupted: Callable[[], int]) -> None:
    """One run to its end, with a job that dies every second and a memcached that restarts every minute."""
    host = SimHost(chosen.machine(), chosen.threads, chosen.calibration.delays, chosen.noise())
    chaos = ChaosHost(host, Schedule(), chosen.topology.cores)
    controller = Controller(
        chosen.jobs, load_policy(policy), chosen.topology, host.deadline, slo=chosen.slo, retries=1 << 60,
        profile=chosen.profile(),
    )  # fmt: skip
    log = SchedulerLogger(directory, clock=lambda: BEGIN, now_s=host.now)
    churn_s = restart_s = 0.0

    def before() -> None:
        nonlocal churn_s, restart_s
        sampler.tick()
        if host.now() >= churn_s + CHURN_S:
            churn_s = host.now()
            chaos.inject(Fault(Kind.EXIT, 0, 1, 1 + 8 * int(churn_s)))
        if host.now() >= restart_s + RESTART_S:
            restart_s = host.now()
            chaos.inject(Fault(Kind.GONE, 0, 20))

    run(
        chaos, controller, log, metrics=MetricsWriter(Path("/dev/null")), duration_s=chosen.duration_s,
        interrupted=interrupted, before=before,
    )  # fmt: skip


def live(seconds: float, policy: str, runtime: RuntimeName) -> bool:
    """The real loop for so long; whether nothing grew."""
    sampler = Sampler(max(1, int(seconds * 20 / SAMPLES)))
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        short = directory / "jobs.toml"
        short.write_text(
            "".join(
                f'[[job]]\nname = "{name}"\nimage = "nothing:1"\n'
                'command = ["timeout", "1", "sh", "-c", "while :; do :; done"]\n'
                for name in ("one", "two", "three")
            )
        )
        port, pid = stack.enter_context(private_memcached(2))
        stack.enter_context(beside(partial(flap_and_restart, port, pid, directory)))
        settings = Settings(
            IP, port, policy=policy, jobs="demo" if runtime == "docker" else str(short), duration_s=seconds,
            runtime=runtime, log_dir=directory / "logs", state_dir=directory / "state", retries=1 << 60,
            cores=parse_ranges("0-1"),
        )  # fmt: skip
        opened = stack.enter_context(session(settings))
        if runtime == "docker":
            stack.enter_context(beside(partial(kill_containers, opened.run_id)))
        ending = opened.run(show=lambda _: sampler.tick())
        told = {name: job.failures for name, job in opened.controller.jobs.items()}
        print(f"ended: {ending.why}; jobs started again: {told}; counted: {dict(opened.controller.counts)}")
    warm = [sample for sample in sampler.samples if 3600 * sample.hours >= min(60.0, 0.2 * seconds)]
    return judge("live", warm, live=True) and ending.why == "duration"


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Work in a thread until the event is set at the end; what it raised is raised here."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work, over)
        try:
            yield
        finally:
            over.set()
            done.result()


def flap_and_restart(port: int, pid: int, directory: Path, over: threading.Event) -> None:
    """A load that flaps, on a memcached that is killed and started anew every minute."""
    binary = shutil.which("memcached")
    load = Load(4_000, 30_000, 1, duration_s=int(2 * RESTART_S))
    server, number = psutil.Process(pid), 0
    while not over.is_set():
        number += 1
        with background_load(port, load, directory / f"load{number}.txt", cpu=None):
            over.wait(RESTART_S)
        if over.is_set():
            break
        server.kill()
        server.wait(10)
        time.sleep(1.0)
        user = ["-u", "nobody"] if psutil.Process().uids().effective == 0 else []
        server = psutil.Popen([str(binary), "-l", IP, "-p", str(port), "-U", "0", "-t", "2", *user])
        time.sleep(0.5)
    server.kill()


def kill_containers(run_id: str, over: threading.Event) -> None:
    """Every second, one of the run's containers is killed by somebody else."""
    with closing(docker.from_env()) as client:
        while not over.wait(CHURN_S):
            running = client.containers.list(filters={"label": f"{RUN_LABEL}={run_id}"})
            for container in running[:1]:
                with suppress(docker.errors.APIError):  # it may have ended, or may be paused
                    container.kill()


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticks", type=int, default=1_000_000, help="of the simulated machine (%(default)s)")
    parser.add_argument("--seconds", type=float, help="end after so many, although ticks are left")
    parser.add_argument("--live", type=float, metavar="SECONDS", help="on this machine instead")
    parser.add_argument("--runtime", choices=get_args(RuntimeName), default="process", help="live (%(default)s)")
    parser.add_argument("--policy", default="share", help="the policy (%(default)s)")
    args = parser.parse_args()
    simulate = args.live is None
    flat = simulated(args.ticks, args.seconds, args.policy) if simulate else live(args.live, args.policy, args.runtime)
    print("flat" if flat else "something grows")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
