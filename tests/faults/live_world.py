"""This very machine as the stage of a schedule: a private memcached, real jobs, and somebody else with real hands."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import docker
import docker.errors

from colocate.cores import CoreSet
from colocate.host import proctree
from colocate.host.cgroup import JobCgroup
from colocate.host.containers import ContainerRuntime
from colocate.host.find import find
from colocate.host.latency import Probe
from colocate.host.live import Doorbell, LiveHost, Service
from colocate.host.memcached import ServiceAffinity
from colocate.host.monitor import ResourceMonitor
from colocate.host.processes import ProcessRuntime
from colocate.host.runtime import Runtime
from colocate.host.sharing import Sharing, choose_here
from colocate.host.sharing_proof import driver
from colocate.host.state import Saved, StateFile, boot_id
from colocate.host.statistics import Statistics
from colocate.jobs import JobSpec, JobState
from colocate.testing.invariants import RECOVERY_TICKS, BrokenError, Situation
from colocate.topology import read_topology
from colocate.view import Observation, Slo
from tests.faults.course import Course, Machine
from tests.faults.press import Press, pressing
from tests.faults.stage import Stage
from tests.faults.watchman import Watchman
from tests.live import masks
from tests.memcached_fixture import DEADLINE_S, Memcached

_SLOW = 0.04  # a freeze is of 1.2 s, a late tick of 0.12 s at most
_LOADS = {0: (0.2, 0.2, 0.2), 25: (0.9, 0.1, 0.7), 26: (1.0, 1.0, 0.4)}  # shares of a thread, by the fault; then rest
_LOAD_TICKS = 20  # for which each lasts
_RECORDING_S = 5.0
_SLO = Slo(latency_ms=1e3)  # how fast this machine answers is not tried here


@dataclass(slots=True)
class Hands:
    """Somebody else at this machine: see `colocate.testing.others.Others`.

    Attributes:
        token: stands in the command line of every job, its name after it.
        client: the engine that has the containers; None where jobs are processes.
        server: the memcached.
    """

    token: str
    client: docker.DockerClient | None
    server: Memcached
    hidden_death: bool = False  # the host sees it by itself
    _dead: bool = False
    _known: int | None = None  # the pid of memcached that the host has found

    def jobs(self) -> dict[str, list[int]]:
        """The processes of each job, once they are the job's program."""
        found = defaultdict(list)
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with suppress(OSError):
                    words = (Path(entry.path) / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    if self.token in words and words[0].endswith("behave"):
                        found[words[words.index(self.token) + 1]].append(int(entry.name))
        return found

    def pin(self, cores: CoreSet) -> bool:
        """See `Others.pin`; a memcached that the host has not found again yet is let be: it would be found so."""
        done = False
        if not self._dead and self._known == self.server.pid:
            for tid, mask in masks(self.server.pid).items():
                if mask != cores:
                    os.sched_setaffinity(tid, cores)
                    done = True
        return done

    def confine(self, job: str, cores: CoreSet) -> bool:
        """See `Others.confine`."""
        with self._group(job) as group:
            return group is not None and group.cores() != cores and group.set_cores(cores)

    def unplug(self, cores: CoreSet, left: CoreSet) -> bool:
        """See `Others.unplug`; the cores stay, as other programs need them."""
        with suppress(OSError):  # it is dead
            self.pin(frozenset().union(*masks(self.server.pid).values()) - cores or left)
        for job, pids in self.jobs().items():
            with suppress(OSError):  # it ends
                self.confine(job, frozenset().union(*masks(pids[0]).values()) - cores or left)
        return True

    def pause(self, job: str, *, paused: bool) -> bool:
        """See `Others.pause`."""
        with self._group(job) as group:
            if group is None or group.frozen() is paused:
                return False
            return group.freeze() if paused else group.thaw()

    def end(self, job: str, code: int | None) -> bool:
        """See `Others.end`: a container is removed, or its process killed."""
        pids = self.jobs().get(job, [])
        if code is None and self.client is not None:
            labelled = self.client.containers.list(filters={"label": f"colocate.job={job}"})
            for container in [one for one in labelled if self.token in one.attrs["Config"]["Cmd"]]:
                with suppress(docker.errors.APIError):  # it has just ended by itself
                    container.remove(force=True)
                    return True
            return False
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def kill_service(self) -> bool:
        """See `Others.kill_service`."""
        killed, self._dead = not self._dead, True
        if killed:
            self.server.stop()
        return killed

    def restart_service(self) -> bool:
        """See `Others.restart_service`."""
        restarted, self._dead = self._dead, False
        if restarted:
            self.server.restart()
        return restarted

    def told(self, seen: Observation) -> Observation:
        """See `Others.told`: the host knows all."""
        self._known = seen.service.pid if seen.service.alive else None
        return seen

    @contextmanager
    def _group(self, job: str) -> Iterator[JobCgroup | None]:
        """The control groups of a job, if it has some of its own."""
        pids = self.jobs().get(job)
        group, ours = (JobCgroup.of(pid) for pid in (pids[0] if pids else os.getpid(), os.getpid()))
        try:
            yield None if {*group.directories()} & {*ours.directories()} else group
        finally:
            group.close()
            ours.close()


@dataclass(slots=True)
class LiveWorld(Course):
    """One run to be on this machine, within `open`.

    Attributes:
        stage: the memcached, the jobs' program, the runtime.
        load: the fault that the load is; 0 for none.
        shares: whether jobs may be given idle priority on memcached's cores.
    """

    stage: Stage = field(kw_only=True)
    load: int = field(default=0, kw_only=True)
    jobs: int = field(default=3, kw_only=True)
    shares: bool = field(default=False, kw_only=True)
    hands: Hands = field(init=False)
    watchman: Watchman = field(init=False)
    _press: Press = field(init=False)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Stand on the machine; everything of it is gone afterwards, however the run ends."""
        stage, directory = self.stage, self.directory
        server, run_id = stage.server, f"test-{stage.token}"
        doorbell = Doorbell()
        affinity = ServiceAffinity(find(server.ip, server.port))
        state = StateFile(directory.parent / "state")
        sharing = Sharing(choose_here(server.pid, driver(stage.runtime), run_id)) if self.shares else None
        if sharing is not None:
            sharing.open()
        runtime = self._runtime(run_id, doorbell, sharing)
        specs = self._specs()
        runtime.prepare(specs, lambda _what, _share: None)

        def remember(of: ServiceAffinity) -> None:
            state.write(Saved(run_id, boot_id(), stage.runtime, "", of.to_json()))

        remember(affinity)
        statistics = Statistics(server.ip, server.port)
        statistics.first(DEADLINE_S)
        topology = read_topology()
        host = LiveHost(
            Service(server.ip, server.port, affinity, statistics, Probe(server.ip, server.port)),
            runtime, {spec.name: spec for spec in specs}, ResourceMonitor(topology.cores), doorbell,
            remember=remember, sharing=sharing,
        )  # fmt: skip
        self.hands = Hands(stage.token, stage.client, server)
        self.watchman = Watchman(server, stage.token, directory.parent, stage.client, sharing=True)
        try:
            self.begin(
                Machine(host, self.hands, self.look, specs, topology, datetime.now, DEADLINE_S, slo=_SLO, slow=_SLOW)
            )
            with self.watchman, pressing(server.port) as self._press:
                yield
        finally:
            if not host.close("stop"):
                state.clear()

    def between(self) -> None:
        """See `Course.between`: the load goes by the tick, as the faults do."""
        turn, tick = divmod(self.chaos.tick, _LOAD_TICKS)
        if tick == 1 and turn <= len(_LOADS[self.load]):
            self._press.put((*_LOADS[self.load], 0.0)[turn])

    def look(self) -> Situation:
        """How the kernel has it. Of a thread that is elsewhere than the controller believes, the cores are told.

        A memcached that is dead has all cores, as the next one will.
        """
        controller, cores = self.controller, self.machine.topology.cores
        service, jobs = cores, {}
        with suppress(OSError):
            service = _odd(masks(self.stage.server.pid).values(), controller.service_cores) or cores
        for name, pids in self.hands.jobs().items():
            with suppress(OSError):  # it ends
                found = [mask for pid in pids for mask in masks(pid).values()]
                jobs[name] = (_odd(found, controller.jobs[name].cores), self._stands_still(name, pids))
        return Situation(service, jobs)

    def _stands_still(self, name: str, pids: list[int]) -> bool:
        """Whether it is frozen, or stopped.

        A call that brings the engine's record up to date freezes a job, or thaws it behind a SIGSTOP, for milliseconds;
        what a fault has touched is not waited for.
        """
        job, end_s = self.controller.jobs[name], time.monotonic()
        if self.chaos.tick - self.chaos.touched.get(name, -RECOVERY_TICKS) >= RECOVERY_TICKS:
            end_s += _RECORDING_S
        with closing(JobCgroup.of(pids[0])) as group:
            while True:
                still = bool(group.frozen()) or bool(proctree.stopped(lambda: pids))
                if still in (job.state is JobState.PAUSED, job.wish_paused) or time.monotonic() > end_s:
                    return still
                time.sleep(0.005)

    def put_back(self) -> None:
        """See `Course.put_back`."""
        self.hands.restart_service()
        self.invariants.ended(self.on_exit)
        left = [one for one in self.watchman.left() if not one.endswith("state.json")]  # cleared a moment later
        if left:
            raise BrokenError(f"4: {left}")
        if self.watchman.breaches:
            raise BrokenError(f"3: {self.watchman.breaches}")

    def _specs(self) -> tuple[JobSpec, ...]:
        stream = random.Random(f"{self.seed}/world")  # noqa: S311 -- no secret
        stage = self.stage
        program, where = ("/behave", None) if stage.client else ("./behave", stage.behave.parent)
        return tuple(
            JobSpec(name, stage.image, (program, "exit", "0", str(stream.choice((300, 900, 1800))), stage.token, name),
                    stream.choice((1, 2)), directory=where)
            for name in "abcd"[: self.jobs]
        )  # fmt: skip

    def _runtime(self, run_id: str, doorbell: Doorbell, sharing: Sharing | None) -> Runtime:
        if self.stage.client is not None:
            return ContainerRuntime(run_id, doorbell.ring, sharing=sharing)
        return ProcessRuntime(run_id, doorbell.ring, workdir=self.stage.behave.parent, sharing=sharing)


def _odd(found: Iterator[set[int]], expected: CoreSet) -> CoreSet:
    """A mask that is not the expected one; the expected one if there is none; nothing of nothing."""
    distinct = {frozenset(mask) for mask in found}
    return next(iter(distinct - {expected}), expected if distinct else frozenset())
