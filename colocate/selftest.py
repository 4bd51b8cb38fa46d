"""Does each component work on this machine? Exercised for real, on things of our own; nothing is left behind.

memcached is looked at and asked, never pinned: pinning is tried on a throw-away process.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from colocate.check import Check, FailedError, attempt, attempts
from colocate.cores import CoreSet
from colocate.eventlog import SchedulerLogger, violations
from colocate.host import procfs
from colocate.host.containers import ContainerRuntime
from colocate.host.find import ServiceProcess, find, local_address
from colocate.host.latency import Probe
from colocate.host.memcached import ServiceAffinity
from colocate.host.monitor import ResourceMonitor
from colocate.host.statistics import Statistics
from colocate.jobs import JobEvent, JobEventKind, JobSpec, JobState, load_catalogue
from colocate.policy import JobView, ServiceView, Signal, Slo, View, load_policy
from colocate.selftest_privileges import privilege_checks
from colocate.selftest_sharing import sharing_checks
from colocate.topology import read_topology

COMPONENTS = ("privileges", "monitor", "memcached", "docker", "sharing", "policy", "log")
_PATIENCE_S = 30.0
_SPIN_S = 0.3
_SPIN = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
_SLEEP = "import threading, time\n[threading.Thread(target=time.sleep, args=(60,), daemon=True).start() for _ in 'abc']"
_SLEEP += "\nprint(flush=True)\ntime.sleep(60)"


def selftest(ip: str, port: int, pid: int | None, log_dir: Path, component: str = "all") -> Iterator[Check]:
    """Try one component or all of them; yields each check as it is done."""
    tests: dict[str, Callable[[], Iterator[Check]]] = {
        "privileges": lambda: privilege_checks(ip, port, pid),
        "monitor": lambda: _monitor(ip, port, pid),
        "memcached": lambda: _memcached(ip, port, pid),
        "docker": _docker,
        "sharing": lambda: sharing_checks(ip, port, pid),
        "policy": _policy,
        "log": lambda: _log(log_dir),
    }
    for name in COMPONENTS if component == "all" else (component,):
        yield from tests[name]()


def _monitor(ip: str, port: int, pid: int | None) -> Iterator[Check]:
    topology = read_topology()
    monitor = ResourceMonitor(topology.cores)
    try:
        yield attempt("monitor", "cores", lambda: _spin_shows(monitor, max(topology.cores)))
        yield attempt("monitor", "threads", lambda: _service_shows(monitor, ip, port, pid))
    finally:
        monitor.close()
    yield attempt("monitor", "statistics", lambda: _statistics_answer(ip, port))
    yield attempt("monitor", "latency", lambda: _probe_answers(ip, port))


def _spin_shows(monitor: ResourceMonitor, core: int) -> str:
    busy = 0.0
    with _child(_SPIN) as child:
        _pin_child(child, frozenset({core}))
        end_s = time.monotonic() + _PATIENCE_S
        while busy < 0.5 and time.monotonic() < end_s:
            monitor.cores()
            time.sleep(_SPIN_S)
            busy = monitor.cores()[core].busy
    if busy < 0.5:
        raise FailedError(f"a spin on core {core} shows as {busy:.2f} busy", "is /proc/stat that of this machine?")
    return f"a spin on core {core} shows as {busy:.2f} busy"


def _service_shows(monitor: ResourceMonitor, ip: str, port: int, pid: int | None) -> str:
    process = find(local_address(ip), port, pid=pid)
    monitor.service(process.pid)
    statistics = Statistics(ip, port, period_s=0.005)  # questions, so that it has something to do
    try:
        time.sleep(_SPIN_S)
        cpu_cores, wait_us, _ = monitor.service(process.pid)
    finally:
        statistics.stop()
    if not cpu_cores.value:
        raise FailedError(f"no CPU time of pid {process.pid} is seen", "the kernel needs CONFIG_SCHED_INFO")
    waits = f", waits {wait_us.value:.0f} us a slice" if wait_us.value is not None else ""
    return f"pid {process.pid} uses {cpu_cores.value:.3f} cores{waits}"


def _somebody_listens(ip: str, port: int) -> None:
    try:
        socket.create_connection((local_address(ip), port), timeout=_PATIENCE_S).close()
    except OSError as error:
        raise FailedError(f"{ip}:{port}: {error.strerror or error}", "start memcached there, or give --port") from error


def _statistics_answer(ip: str, port: int) -> str:
    _somebody_listens(ip, port)
    statistics = Statistics(local_address(ip), port, period_s=0.05)
    try:
        if not statistics.first(_PATIENCE_S):
            raise FailedError(f"no answer to `stats` on {ip}:{port}", "is it memcached, and not stopped?")
        sample = statistics.sample()
    finally:
        statistics.stop()
    return f"{sample.threads} threads, {sample.connections} connections"


def _probe_answers(ip: str, port: int) -> str:
    _somebody_listens(ip, port)
    probe = Probe(local_address(ip), port, rate_hz=200)
    try:
        end_s = time.monotonic() + _PATIENCE_S
        while probe.signal().value is None and time.monotonic() < end_s:
            time.sleep(0.02)
        signal = probe.signal()
    finally:
        probe.stop()
    if signal.value is None:
        raise FailedError(f"no answers from {ip}:{port}", "is memcached stopped?")
    return f"p95 {signal.value:.3f} ms of {signal.samples} requests"


def _memcached(ip: str, port: int, pid: int | None) -> Iterator[Check]:
    found: list[ServiceAffinity] = []

    def look() -> str:
        process = find(local_address(ip), port, pid=pid)
        found.append(ServiceAffinity(process))
        return f"pid {process.pid}, {len(found[0].original)} threads"

    yield attempt("memcached", "found", look)
    if found:
        yield attempt("memcached", "permission", lambda: _permitted(found[0]))
    yield attempt("memcached", "pin", _pin_a_child)
    if found:
        yield attempt("memcached", "untouched", lambda: _unchanged(found[0]))


def _permitted(affinity: ServiceAffinity) -> str:
    return f"may be pinned {affinity.may_pin()}"


def _pin_a_child() -> str:
    core = min(read_topology().cores)
    with _child(_SLEEP) as child:
        assert child.stdout is not None  # noqa: S101 -- _child opens it
        child.stdout.readline()
        affinity = _affinity_of(child)
        threads = affinity.pin(frozenset({core}))
        if affinity.masks() != {frozenset({core})}:
            raise FailedError("a pinned process is elsewhere", "does another program set affinities?")
        affinity.restore()
        if affinity.masks() != frozenset(affinity.original.values()):
            raise FailedError("a restored process is elsewhere", "does another program set affinities?")
    return f"{threads} threads of a process of our own, and back"


def _unchanged(affinity: ServiceAffinity) -> str:
    if affinity.masks() != frozenset(affinity.original.values()):
        raise FailedError("memcached's affinity has changed meanwhile", "who else pins it?")
    return "memcached's own affinity is as it was"


def _docker() -> Iterator[Check]:
    rung = threading.Event()
    runtime = ContainerRuntime("selftest", rung.set)
    job = next(spec for spec in load_catalogue("demo"))
    long_job = JobSpec(
        job.name, job.image, tuple("native" if word == "simlarge" else word for word in job.command), job.threads
    )
    cores = read_topology().cores
    one = frozenset({min(cores)})
    events: list[JobEvent] = []

    def wait_for(kind: JobEventKind) -> None:
        end_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end_s:
            events.extend(runtime.events())
            for event in events:
                if event.kind is JobEventKind.FAILED:
                    raise FailedError(event.detail, "see the engine's log: journalctl -u docker")
                if event.kind is kind:
                    events.remove(event)
                    return
            rung.wait(0.05)
            rung.clear()
        raise FailedError(f"not {kind} after {_PATIENCE_S:g} s", "see the engine's log: journalctl -u docker")

    def follow(kind: JobEventKind, *, done: bool = False) -> str:
        if not done:
            wait_for(kind)
        return "by the cgroup's own files" if done else "by the engine"

    def seen(what: Callable[[], str], check: Callable[[], bool]) -> str:
        told = what()
        end_s = time.monotonic() + _PATIENCE_S
        while not check():
            if time.monotonic() > end_s:
                raise FailedError("the kernel does not show it", "is the container's cgroup another one?")
            time.sleep(0.001)
        return told

    def now_on(wanted: CoreSet) -> bool:
        sample = runtime.look().get(job.name)
        return sample is not None and sample.cores in (wanted, None)

    def paused(*, wanted: bool) -> bool:
        sample = runtime.look().get(job.name)
        return sample is not None and sample.paused in (wanted, None)

    def ready() -> str:
        runtime.prepare([long_job], lambda _what, _share: None)
        return f"image {job.image} is ready"

    def after(kind: JobEventKind, action: Callable[[], None]) -> str:
        action()
        return follow(kind)

    steps: list[tuple[str, Callable[[], str]]] = [
        ("engine", ready),
        ("create", lambda: after(JobEventKind.CREATED, lambda: runtime.create(long_job, 1, cores))),
        ("start", lambda: after(JobEventKind.STARTED, lambda: runtime.start(job.name, cores))),
        ("resize", lambda: seen(
            lambda: follow(JobEventKind.RESIZED, done=runtime.resize(job.name, one)), lambda: now_on(one))),
        ("pause", lambda: seen(
            lambda: follow(JobEventKind.PAUSED, done=runtime.pause(job.name)), lambda: paused(wanted=True))),
        ("resume", lambda: seen(
            lambda: follow(JobEventKind.RESUMED, done=runtime.resume(job.name)), lambda: paused(wanted=False))),
        ("stop", lambda: after(JobEventKind.EXITED, lambda: runtime.stop(job.name))),
    ]  # fmt: skip
    yield from attempts("docker", steps, ("remove", lambda: _removed(runtime.close("stop", 10.0))))


def _removed(problems: list[str]) -> str:
    if problems:
        raise FailedError("; ".join(problems), "docker rm -f $(docker ps -aq --filter label=colocate.run=selftest)")
    return "nothing is left"


def _policy() -> Iterator[Check]:
    yield attempt("policy", "decide", _decide)


def _decide() -> str:
    topology = read_topology()
    total = len(topology.cores)
    policy = load_policy("share")
    jobs = {spec.name: JobView(spec, JobState.WAITING, frozenset(), 1, None, 0.0) for spec in load_catalogue("demo")}
    decisions = 0
    start_s = time.perf_counter()
    for tick in range(500):
        cpu = Signal(tick / 500 * total, 0.0, 1)
        service = ServiceView(frozenset({0}), 1, 4, cpu, Signal(5.0, 0.0, 9), Signal(), cpu, Signal(), 1)
        plan = policy.decide(View(0.05 * tick, Slo(), topology, {}, service, jobs))
        if not 1 <= plan.service <= total or plan.service + sum(plan.jobs.values()) > total:
            raise FailedError(f"{plan} does not fit into {total} cores", "report this, please")
        decisions += 1
    return f"{1e6 * (time.perf_counter() - start_s) / decisions:.0f} us a decision"


def _log(log_dir: Path) -> Iterator[Check]:
    yield attempt("log", "format", _format)
    yield attempt("log", "directory", lambda: _writable(log_dir))


def _format() -> str:
    with tempfile.TemporaryDirectory() as directory:
        log = SchedulerLogger(Path(directory))
        log.job_start("memcached", {0}, 2)
        log.job_start("canneal", {1}, 1)
        log.update_cores("memcached", {0, 1})
        log.job_pause("canneal")
        log.job_unpause("canneal")
        log.custom_event("canneal", "words, with 100 % of the signs")
        log.job_end("canneal")
        log.end()
        if wrong := violations(log.path.read_text(encoding="utf-8")):
            raise FailedError(wrong[0], "report this, please")
    return "a run's log obeys every rule"


def _writable(directory: Path) -> str:
    existed = directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"x")
        if not existed:
            directory.rmdir()
    except OSError as error:
        raise FailedError(f"{directory}: {error.strerror}", "give a --log-dir of your own") from error
    return f"{directory} can be written"


class _child:  # noqa: N801 -- a context manager that reads like a function
    """A throw-away Python process."""

    def __init__(self, program: str) -> None:
        self._argv = [sys.executable, "-S", "-c", program]

    def __enter__(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE)
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def _affinity_of(child: subprocess.Popen[bytes]) -> ServiceAffinity:
    start_ticks = procfs.start_ticks(child.pid)
    if start_ticks is None:
        raise FailedError("a process of our own has ended", "is there memory left?")
    return ServiceAffinity(ServiceProcess(child.pid, start_ticks, "selftest"))


def _pin_child(child: subprocess.Popen[bytes], cores: CoreSet) -> None:
    _affinity_of(child).pin(cores)
