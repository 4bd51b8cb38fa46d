"""What every host must do, checked on the simulated one and on this very computer with a real memcached."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from colocate.host.find import find
from colocate.host.latency import Probe
from colocate.host.live import Doorbell, LiveHost, Service
from colocate.host.memcached import ServiceAffinity
from colocate.host.monitor import ResourceMonitor
from colocate.host.processes import ProcessRuntime
from colocate.host.statistics import Statistics
from colocate.jobs import JobEvent, JobEventKind, JobSpec
from colocate.move import SERVICE, Host, Move, MoveKind
from colocate.sim.host import SimHost
from colocate.sim.run import Setup
from colocate.sim.traces import repeated
from colocate.topology import read_topology
from colocate.view import JobSample, Observation
from tests.calibrations import small
from tests.live import masks
from tests.memcached_fixture import DEADLINE_S, running_memcached

pytestmark = pytest.mark.live

ONE = frozenset({0})
TWO = frozenset({0, 1})
SHORT = JobSpec("one", "nothing:1", ("sleep", "0.6"))
LONG = JobSpec("two", "nothing:1", ("sleep", "600"))

Made = tuple[Host, Callable[[], set[frozenset[int]]]]  # a host, and what memcached's threads are really pinned to


@pytest.fixture(params=["simulated", "live"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Made]:
    if request.param == "simulated":
        calibration = small(tmp_path, noise=False)
        short = replace(calibration.jobs["one"], alone_s=0.6)
        trace = repeated([5000], 1.0, 3600.0)
        setup = Setup(
            replace(calibration, jobs={**calibration.jobs, "one": short}), (SHORT, LONG), trace,
            calibration.scenario.slo, calibration.topology.only(TWO), 2,
        )  # fmt: skip
        machine = setup.machine()
        yield SimHost(machine, 2, calibration.delays, setup.noise()), lambda: {machine.cores}
        return
    with running_memcached() as server:
        doorbell = Doorbell()
        runtime = ProcessRuntime("contract", doorbell.ring, workdir=tmp_path)
        service = Service(
            server.ip, server.port, ServiceAffinity(find(server.ip, server.port)),
            Statistics(server.ip, server.port), Probe(server.ip, server.port),
        )  # fmt: skip
        specs = {spec.name: replace(spec, directory=tmp_path) for spec in (SHORT, LONG)}
        cores = read_topology().only(TWO).cores
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        host = LiveHost(service, runtime, specs, ResourceMonitor(cores), doorbell, remember=lambda _: None)
        try:
            yield host, lambda: {frozenset(mask) for mask in masks(server.pid).values()}
        finally:
            host.close("stop")
        assert os.getpriority(os.PRIO_PROCESS, 0) == niceness, "our own priority is given back, too"


def seen(host: Host, wanted: Callable[[Observation], object]) -> tuple[Observation, list[JobEvent]]:
    """Observe at the loop's pace until it is so; all events on the way."""
    events: list[JobEvent] = []
    end_s = time.monotonic() + DEADLINE_S
    while True:
        observation = host.observe()
        events += observation.events
        if wanted(observation):
            return observation, events
        assert time.monotonic() < end_s, f"never came true; {events}"
        host.wait(host.now() + 0.05)


def told(job: str, kind: JobEventKind) -> Callable[[Observation], bool]:
    return lambda observation: any((event.job, event.kind) == (job, kind) for event in observation.events)


def begun(host: Host, spec: JobSpec) -> list[JobEvent]:
    assert host.act(Move(MoveKind.CREATE, spec.name, TWO, spec.threads)) is False
    events = seen(host, told(spec.name, JobEventKind.CREATED))[1]
    assert host.act(Move(MoveKind.START, spec.name, ONE, spec.threads)) is False
    return events + seen(host, told(spec.name, JobEventKind.STARTED))[1]


def sample(spec: JobSpec, condition: Callable[[JobSample], object]) -> Callable[[Observation], object]:
    return lambda observation: spec.name in observation.jobs and condition(observation.jobs[spec.name])


def test_the_clock_goes_on_while_one_waits_and_not_beyond(made: Made) -> None:
    host, _ = made
    host.observe()
    before_s = host.now()
    host.wait(before_s + 0.05)
    assert host.now() >= before_s
    assert host.observe().time_s == pytest.approx(host.now(), abs=0.5)
    host.wait(before_s - 1.0)
    assert host.now() >= before_s


def test_a_pin_is_seen_on_every_thread(made: Made) -> None:
    host, pinned = made
    for cores in (ONE, TWO):
        assert host.act(Move(MoveKind.PIN, SERVICE, cores)) is True
        assert pinned() == {cores}
        assert seen(host, lambda o: o.service.affinity)[0].service.affinity == {cores}


def test_memcached_is_measured(made: Made) -> None:
    host, _ = made
    observation, _ = seen(
        host,
        lambda o: (
            o.service.cpu_cores.fresh(1.0) and o.service.qps.fresh(1.0) and o.service.latency_ms.fresh(1.0)
            and o.service.wait_us.fresh(1.0) and o.service.threads
        ),
    )  # fmt: skip
    service = observation.service
    assert service.alive
    assert service.pid is not None
    assert 0 <= (service.cpu_cores.value or 0) <= len(TWO)
    assert (service.latency_ms.value or 0) > 0
    assert service.latency_ms.samples >= 20
    assert set(observation.cores) == TWO
    assert all(0 <= use.busy <= 1 for use in observation.cores.values())


def test_a_job_that_ends_by_itself_says_so(made: Made) -> None:
    host, _ = made
    events = begun(host, SHORT)
    events += seen(host, told("one", JobEventKind.EXITED))[1]
    assert [event.kind for event in events] == [JobEventKind.CREATED, JobEventKind.STARTED, JobEventKind.EXITED]
    assert events[-1].code == 0
    assert events[0].time_s <= events[1].time_s <= events[2].time_s


def test_a_job_moves_pauses_and_goes_on(made: Made) -> None:
    host, _ = made
    begun(host, LONG)
    for cores in (TWO, ONE):
        if not host.act(Move(MoveKind.RESIZE, "two", cores)):
            seen(host, told("two", JobEventKind.RESIZED))
        seen(host, sample(LONG, lambda job, cores=cores: job.cores == cores))
    for kind, event, paused in (
        (MoveKind.PAUSE, JobEventKind.PAUSED, True),
        (MoveKind.RESUME, JobEventKind.RESUMED, False),
    ):
        if not host.act(Move(kind, "two")):
            seen(host, told("two", event))
        seen(host, sample(LONG, lambda job, paused=paused: job.paused is paused))


def test_a_resize_during_a_start_is_confirmed_after_it(made: Made) -> None:
    host, _ = made
    host.act(Move(MoveKind.CREATE, "two", TWO, LONG.threads))
    seen(host, told("two", JobEventKind.CREATED))
    host.act(Move(MoveKind.START, "two", ONE, LONG.threads))
    at_once = host.act(Move(MoveKind.RESIZE, "two", TWO))  # a real start may be that quick
    last = JobEventKind.STARTED if at_once else JobEventKind.RESIZED
    _, events = seen(host, told("two", last))
    assert [event.kind for event in events] == [JobEventKind.STARTED, JobEventKind.RESIZED][: 2 - at_once]
    assert at_once or events[-1].cores == TWO
    seen(host, sample(LONG, lambda job: job.cores == TWO))


def test_a_wait_ends_early_when_a_job_does(made: Made) -> None:
    host, _ = made
    begun(host, SHORT)
    before_s = host.now()
    host.wait(before_s + DEADLINE_S)
    assert host.now() < before_s + DEADLINE_S


def test_a_stopped_job_is_reported_and_gone(made: Made) -> None:
    host, _ = made
    begun(host, LONG)
    assert host.act(Move(MoveKind.STOP, "two")) is False
    over = (JobEventKind.EXITED, JobEventKind.GONE)
    _, events = seen(host, lambda o: any(event.kind in over for event in o.events))
    assert events[-1].code != 0
    seen(host, lambda o: o.time_s and "two" not in o.jobs)


def test_closing_gives_memcached_its_cores_back_and_may_be_done_twice(made: Made) -> None:
    host, pinned = made
    original = pinned()
    begun(host, LONG)
    host.act(Move(MoveKind.PIN, SERVICE, ONE))
    assert host.close("stop") == []
    assert pinned() == original
    assert host.close("stop") == []


def test_a_start_that_was_on_its_way_at_the_end_never_happens(tmp_path):
    calibration = small(tmp_path)
    trace = repeated([5000], 1.0, 3600.0)
    setup = Setup(calibration, (LONG,), trace, calibration.scenario.slo, calibration.topology, 2)
    host = SimHost(setup.machine(), 2, calibration.delays, setup.noise())
    host.act(Move(MoveKind.CREATE, "two", TWO, 1))
    host.act(Move(MoveKind.START, "two", TWO))
    assert host.close("stop") == []
    for _ in range(3):
        host.wait(host.now() + 5.0)
        host.observe()
    assert not host.machine.jobs


def test_a_job_that_ended_by_itself_is_told_once_though_it_is_stopped_as_well(tmp_path):
    calibration = small(tmp_path)
    short = replace(calibration, jobs={"two": replace(calibration.jobs["two"], alone_s=0.5)})
    setup = Setup(short, (LONG,), repeated([5000], 1.0, 3600.0), short.scenario.slo, short.topology, 2)
    host = SimHost(setup.machine(), 2, calibration.delays, setup.noise())
    host.act(Move(MoveKind.CREATE, "two", TWO, 1))
    host.act(Move(MoveKind.START, "two", TWO))
    told = []
    for _ in range(40):
        host.wait(host.now() + 0.1)
        told += [(event.kind, event.code) for event in host.observe().events]
    host.act(Move(MoveKind.STOP, "two"))
    host.wait(host.now() + 1.0)
    told += [(event.kind, event.code) for event in host.observe().events]
    assert told[1:] == [(JobEventKind.STARTED, None), (JobEventKind.EXITED, 0)]
