"""The figures of the live loop, measured on this machine with real memcached and real containers.

    python benchmarks/bench.py [cost] [reaction] [release] [--json]

cost: the controller's CPU and memory over 60 s at the default period with seven jobs. reaction: from a step in
memcached's load to its wider affinity, 50 steps, by `reactive`, since a policy that shares memcached's cores need not
widen them. release: from the decision until a container is really off a core, by the cgroup's own files and by the
Docker API, in turn. Figures of one run compare with each other; those of two machines, or of two days, do not. Needs
root (or the docker group and CAP_SYS_NICE), the demo image and memcached.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import psutil

from colocate.cores import CoreSet, parse_ranges
from colocate.demo import IP, Load, background_load, private_memcached
from colocate.host.containers import ContainerRuntime
from colocate.host.engine import client_from_env
from colocate.jobs import JobEventKind, JobSpec

SEVEN = ("blackscholes", "canneal", "dedup", "ferret", "freqmine", "radix", "vips")
PERIOD_S = 0.05
AHEAD = 8  # of a burst: batches of requests on their way on each connection


def catalogue(names: tuple[str, ...], directory: Path) -> Path:
    """Jobs that outlast a measurement."""
    path = directory / "jobs.toml"
    path.write_text(
        "".join(
            f'[[job]]\nname = "{name}"\nimage = "colocate/workloads"\nthreads = 2\n'
            f'command = "./run -a run -S parsec -p {name} -i native -n {{threads}}"\n'
            for name in names
        )
    )
    return path


@contextmanager
def controller(port: int, jobs: Path, directory: Path, *more: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`colocate run` on a private memcached: the process and its log, once the loop runs."""
    argv = [
        sys.executable, "-m", "colocate", "run", "--memcached-ip", IP, "--port", str(port), "--jobs", str(jobs),
        "--log-dir", str(directory / "logs"), "--state-dir", str(directory / "state"), *more,
    ]  # fmt: skip
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process, wait_for_log(process, directory / "logs")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def wait_for_log(process: subprocess.Popen[bytes], directory: Path) -> Path:
    """The event log, once memcached's start stands in it."""
    while process.poll() is None:
        for path in directory.glob("*.txt"):
            if "start memcached" in path.read_text():
                return path
        time.sleep(0.05)
    raise SystemExit(f"colocate run ended with {process.returncode}")


def cost(seconds: float) -> dict[str, float]:
    """CPU (share of one core) and memory of the controller, all its threads, in steady work."""
    with tempfile.TemporaryDirectory() as name, private_memcached(2) as (port, _):
        directory = Path(name)
        load = Load(5000, 5000, interval_s=5, duration_s=int(seconds) + 30)
        with (
            background_load(port, load, directory / "mcperf.txt", cpu=last_core()),
            controller(port, catalogue(SEVEN, directory), directory) as (process, _),
        ):
            observed = psutil.Process(process.pid)
            time.sleep(3)
            before, start_s = observed.cpu_times(), time.monotonic()
            time.sleep(seconds)
            after, end_s = observed.cpu_times(), time.monotonic()
            memory = observed.memory_info().rss
    used_s = after.user - before.user + after.system - before.system
    return {"cpu_share": used_s / (end_s - start_s), "rss_mb": memory / 1e6, "over_s": end_s - start_s}


def reaction(steps: int, policy: str = "reactive") -> dict[str, float]:
    """From a step in the load to the wider set, by the event log's clock; of a policy that gives whole cores.

    A step is a burst of large gets on two connections, which asks for more than one core and costs its sender little.
    """
    with tempfile.TemporaryDirectory() as name, private_memcached(2) as (port, _):
        directory = Path(name)
        begun_s = []
        with (
            background_load(port, Load(1000, 1000, duration_s=10 * steps), directory / "mcperf.txt", cpu=last_core()),
            controller(port, catalogue(SEVEN[:2], directory), directory, "--policy", policy) as (_, log),
        ):
            time.sleep(3)
            for step in range(steps):
                time.sleep(2.5 + 0.013 * (step % 7))  # until memcached is narrow again; at no fixed phase to the ticks
                begun_s.append(burst(port, seconds=0.5))
            text = log.read_text()
    waits, wide_already = step_latencies(text, begun_s)
    return {"steps": steps, "wide_already": wide_already, "period_ms": 1e3 * PERIOD_S, **quantiles(waits)}


def burst(port: int, seconds: float) -> float:
    """Keep two of memcached's threads busy; when it began, by the wall clock.

    At real-time priority, where that is permitted: the sender's own wait for a core is not the controller's. Some
    requests are always on their way, so that memcached never waits for this process.
    """
    request = 50 * (b"get " + b" ".join(b"missing%03d" % n for n in range(100)) + b"\r\n")
    answer_bytes = 50 * len(b"END\r\n")
    connections = [socket.create_connection((IP, port)) for _ in range(2)]
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        begun_s = time.time()
        end_s = time.monotonic() + seconds
        for connection in connections:
            connection.sendall(AHEAD * request)
        while time.monotonic() < end_s:
            for connection in connections:
                connection.sendall(request)
                swallow(connection, answer_bytes)
        for connection in connections:
            swallow(connection, AHEAD * answer_bytes)
            connection.close()
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return begun_s


def swallow(connection: socket.socket, size: int) -> None:
    """Read so many bytes and forget them."""
    while size > 0:
        size -= len(connection.recv(size))


def step_latencies(log: str, steps_s: list[float]) -> tuple[list[float], int]:
    """For each step the milliseconds until memcached has more than one core; and how often it had them already.

    A step that is never answered counts as infinite.
    """
    widths = [
        (datetime.fromisoformat(line.split()[0]).timestamp(), line.split()[3].count(",") + 1)
        for line in log.splitlines()
        if line.split()[1:3] in (["update_cores", "memcached"], ["start", "memcached"])
    ]
    waits: list[float] = []
    wide_already = 0
    for step_s in steps_s:
        if [width for when_s, width in widths if when_s <= step_s][-1] > 1:
            wide_already += 1
            continue
        wide_s = next((when_s for when_s, width in widths if when_s > step_s and width > 1), math.inf)
        waits.append(1e3 * (wide_s - step_s))
    return waits, wide_already


def release(trials: int) -> dict[str, dict[str, float]]:
    """From the decision until every thread of a busy container has left a core, by both paths in turn."""
    rung = threading.Event()
    runtime = ContainerRuntime("bench", rung.set)
    both, one = frozenset({0, last_core()}), frozenset({0})
    job = JobSpec("canneal", "colocate/workloads", ("./run", "-a", "run", "-S", "parsec", "-p", "canneal", "-i",
                                                    "native", "-n", "4"))  # fmt: skip
    runtime.prepare([job], lambda _what, _share: None)
    client = client_from_env(10.0)
    times: dict[str, list[float]] = {"fast path": [], "docker API": []}
    try:
        runtime.create(job, 4, both)
        wait_for(runtime, JobEventKind.CREATED)
        runtime.start("canneal", both)
        wait_for(runtime, JobEventKind.STARTED)
        container = client.containers.list(filters={"label": "colocate.run=bench"})[0]
        pid = container.attrs["State"]["Pid"]
        time.sleep(2)
        for _ in range(trials):
            times["fast path"].append(until_off(pid, one, lambda: runtime.resize("canneal", one)))
            runtime.resize("canneal", both)
            time.sleep(1.2)  # until Docker's record has followed
            times["docker API"].append(until_off(pid, one, lambda: container.update(cpuset_cpus="0")))
            container.update(cpuset_cpus=f"0,{last_core()}")
            time.sleep(0.3)
    finally:
        runtime.close("stop", 10.0)
        client.close()
    return {path: quantiles(values) for path, values in times.items()}


def wait_for(runtime: ContainerRuntime, kind: JobEventKind) -> None:
    """Wait for one event of the runtime."""
    while not any(event.kind is kind for event in runtime.events()):
        time.sleep(0.01)


def until_off(pid: int, cores: CoreSet, move: Callable[[], object]) -> float:
    """Milliseconds from the call until no thread may run, or last ran, anywhere else."""
    start_s = time.perf_counter()
    move()
    while not all(allowed <= cores and last in cores for allowed, last in threads(pid)):
        pass
    return 1e3 * (time.perf_counter() - start_s)


def threads(pid: int) -> list[tuple[CoreSet, int]]:
    """Each thread's allowed cores and the one it last ran on (proc(5), /proc/PID/task/TID/status and stat)."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        allowed = re.search(r"Cpus_allowed_list:\s*(\S+)", (task / "status").read_text())
        last = (task / "stat").read_text().rpartition(")")[2].split()[36]
        found.append((parse_ranges(allowed[1] if allowed else ""), int(last)))
    return found


def last_core() -> int:
    """The highest core's id."""
    return max(os.sched_getaffinity(0))


def quantiles(values_ms: list[float]) -> dict[str, float]:
    """Median, 99th percentile (nearest rank) and maximum; of nothing only the count."""
    if not values_ms:
        return {"n": 0}
    ranked = sorted(values_ms)
    p99 = ranked[min(len(ranked) - 1, int(0.99 * len(ranked)))]
    return {"p50_ms": statistics.median(ranked), "p99_ms": p99, "max_ms": ranked[-1], "n": len(ranked)}


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", default=["cost", "reaction", "release"], metavar="FIGURE")
    parser.add_argument("--seconds", type=float, default=60.0, help="of cost (%(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="of reaction (%(default)s)")
    parser.add_argument("--trials", type=int, default=20, help="of release (%(default)s)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures: dict[str, Callable[[], dict[str, object]]] = {
        "cost": lambda: dict(cost(args.seconds)),
        "reaction": lambda: dict(reaction(args.steps)),
        "release": lambda: dict(release(args.trials)),
    }
    results = {}
    for name in args.figures:
        sys.stderr.write(f"measuring {name} ...\n")
        results[name] = figures[name]()
        if not args.json:
            print(f"{name}: {json.dumps(results[name], default=float)}")
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
