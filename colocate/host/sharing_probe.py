"""A sleeper that stands in for memcached, and a spinner that stands where the jobs will: what each meets.

Both are on one core at first; then the spinner may go to one of memcached's cores for a moment, at idle priority and
never otherwise.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from colocate.cores import CoreSet
from colocate.host import procfs, sharing_worker
from colocate.host.cgroup import JobCgroup, find_place
from colocate.host.monitor import ResourceMonitor
from colocate.host.proctree import give_way
from colocate.host.sharing import CannotShareError, Means, Sharing, remove_groups

_CYCLES = 60  # of 1.8 ms
_TRIES = 3
_REST_S = 0.3  # before the second try, twice that before the third: what disturbs one lasts for a while
_SETTLE_S = 0.01
_ALONE_S, _BESIDE_S, _LOOK_S, _ASK_EVERY_S = 0.06, 0.1, 0.01, 0.001
_PATIENCE_S = 20.0  # an emulated machine takes a while to start a process
# At equal weight the spinner takes 0.8 of what the sleeper gets, at idle priority nothing (on an emulated machine,
# where a switch takes long, a tenth or two). Memcached waits 2 to 61 us a slice when all is well, and some 1000 us
# behind a spinner of equal weight.
_MOST_TAKEN = 0.4
_FACTOR, _MORE_WAIT_US = 3.0, 250.0
_SLICES = 10  # fewer say nothing; behind a spinner of equal weight there are some 20 in the time


@dataclass(frozen=True, slots=True)
class Sleeper:
    """What the sleeper met.

    Attributes:
        alone_us: how late it woke alone (p90).
        beside_us: the same beside the spinner.
        taken: the CPU that the spinner got while the sleeper wanted it, as a share of what that got. It cannot be
            another program's doing, as a late waking can.
    """

    alone_us: float
    beside_us: float
    taken: float

    @property
    def well(self) -> bool:
        """Whether the spinner leaves it alone."""
        return self.taken <= _MOST_TAKEN

    def __str__(self) -> str:
        late = f"a sleeper wakes {self.alone_us:.0f} us late alone and {self.beside_us:.0f} us beside a spinner"
        return f"{late}, which takes {self.taken:.0%} of its CPU"


@dataclass(frozen=True, slots=True)
class Service:
    """How long memcached's threads waited for a core, microseconds a time slice; None where none of them ran.

    Attributes:
        alone_us: without the spinner.
        beside_us: with the spinner on one of its cores.
        blamed_us: how much of that can be the spinner's doing at most: nobody waits longer for it than it runs. None
            where too few time slices tell.
    """

    alone_us: float | None
    beside_us: float | None
    blamed_us: float | None

    @property
    def well(self) -> bool:
        """Whether it waits as if the spinner were not there."""
        return self.blamed_us is None or self.blamed_us <= _FACTOR * (self.alone_us or 0.0) + _MORE_WAIT_US

    def __str__(self) -> str:
        alone, beside = (
            "nothing" if wait is None else f"{wait:.0f} us a slice" for wait in (self.alone_us, self.beside_us)
        )
        return f"memcached waits {alone} alone and {beside} beside a spinner"


class Probe:
    """The sleeper and the spinner; a context manager, after which nothing of them is left.

    Attributes:
        how, where: what the spinner's idle priority is made of, and on which group or process it lies.

    Raises:
        CannotShareError: on entry, where the spinner cannot be had as the jobs will be.
    """

    def __init__(self, sharing: Sharing) -> None:
        self.how = self.where = ""
        self._sharing = sharing
        self._mechanism = sharing.mechanism
        self._stack = contextlib.ExitStack()
        self._made: list[Path] = []

    def __enter__(self) -> Probe:
        try:
            self._sleeper = self._stack.enter_context(_worker([], "sleep"))
            self._place_sleeper()
            self._spinner = self._stack.enter_context(_worker(self._launcher(), "spin"))
            self._place_spinner()
            _tell(self._spinner, "go")  # not before it has idle priority
            self._run_spinner(on=False)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        remove_groups(self._made)

    def sleeper(self, cores: CoreSet) -> Sleeper:
        """What the sleeper meets, alone and then beside the spinner on the same core; tried again if it is not well."""
        found: list[Sleeper] = []
        for core in itertools.islice(itertools.cycle(sorted(cores, reverse=True)), _TRIES):
            time.sleep(_REST_S * len(found))
            for worker in (self._sleeper, self._spinner):
                _pin(worker.pid, core)
            alone_us, _ = self._late_us()
            self._run_spinner(on=True)
            beside_us, taken = self._late_us()
            self._run_spinner(on=False)
            found.append(Sleeper(alone_us, beside_us, taken))
            if found[-1].well:
                break
        return min(found, key=lambda one: one.taken)

    def beside(self, service_pid: int, address: tuple[str, int], cores: CoreSet) -> Service:
        """Memcached's run-queue delay without the spinner, and with it on one of its cores.

        The spinner is stopped at once when the delay gets bad; it is tried again then, as that may have been anything.
        """
        theirs = sorted(os.sched_getaffinity(service_pid) & cores) or sorted(cores)
        _pin(self._spinner.pid, theirs[0])
        monitor = ResourceMonitor(())
        found = Service(None, None, None)
        try:
            with _client(address) as client:
                for number in range(_TRIES):
                    time.sleep(_REST_S * number)
                    alone = self._watch(monitor, service_pid, client, _ALONE_S, Service(None, None, None))
                    self._run_spinner(on=True)
                    try:
                        without = Service(alone.beside_us, None, None)
                        found = self._watch(monitor, service_pid, client, _BESIDE_S, without)
                    finally:
                        self._run_spinner(on=False)
                    if found.well:
                        break
        finally:
            monitor.close()
        return found

    def _place_sleeper(self) -> None:
        """Where memcached stands, as far as the jobs can tell: below the group where the paths part."""
        mechanism = self._mechanism
        found = find_place(self._sleeper.pid, "cpu")
        if mechanism.means is Means.THREADS or (found and found.parts == mechanism.meet == mechanism.service):
            return
        if not mechanism.service:  # memcached is in the topmost group, where anybody may be
            (mechanism.mount / "cgroup.procs").write_text(str(self._sleeper.pid))
            return
        group = JobCgroup(weight=mechanism.mount.joinpath(*mechanism.meet, f"{mechanism.leaf}-sleeper"))
        self._into(group, self._sleeper.pid)

    def _place_spinner(self) -> None:
        """Where the jobs will stand, with all that they will get."""
        mechanism, pid = self._mechanism, self._spinner.pid
        give_way(pid, Path("/"))
        if mechanism.means is not Means.THREADS and mechanism.driver != "systemd":
            made = JobCgroup(weight=mechanism.mount.joinpath(*mechanism.parent, f"{mechanism.leaf}-spinner"))
            self._into(made, pid)
            made.lowest_weight()
        group = JobCgroup.of(pid)
        try:
            if not self._sharing.give(group, [pid]):
                raise CannotShareError(f"{self._sharing.how(group)} on {group.weight} has not been accepted")
            self.how = self._sharing.how(group)
            self.where = self._sharing.what
        finally:
            group.close()

    def _into(self, group: JobCgroup, pid: int) -> None:
        assert group.weight is not None  # noqa: S101 -- both callers give one
        try:
            group.weight.mkdir(exist_ok=True)
            self._made.append(group.weight)
            group.add(pid)
        except OSError as error:
            raise CannotShareError(f"{group.weight}: {error.strerror}") from error

    def _launcher(self) -> list[str]:
        """With systemd, the spinner is a scope beside the containers' scopes, made by systemd as those are."""
        mechanism = self._mechanism
        if mechanism.driver != "systemd":
            return []
        version2 = (mechanism.mount / "cgroup.controllers").exists()
        weight = "CPUWeight=1" if version2 else "CPUShares=2"
        name = f"{mechanism.leaf.replace('-', '_')}_spinner"
        return [
            "systemd-run", "--scope", "--quiet", "--collect", "--no-ask-password", f"--unit={name}",
            f"--slice={mechanism.parent[-1]}", "-p", weight,
        ]  # fmt: skip

    def _late_us(self) -> tuple[float, float]:
        """How late the sleeper wakes (p90), and what share of its CPU the spinner takes from it."""
        before_s, before = time.monotonic(), (_ran_waited_s(self._sleeper.pid), _ran_waited_s(self._spinner.pid))
        _tell(self._sleeper, str(_CYCLES))
        late_us = float(_line(self._sleeper).split()[1])
        passed_s = time.monotonic() - before_s
        (ran, waited), (took, _) = (
            [now - then for now, then in zip(_ran_waited_s(worker.pid), old, strict=True)]
            for worker, old in zip((self._sleeper, self._spinner), before, strict=True)
        )
        if not ran:
            raise CannotShareError("this kernel does not tell how long a thread has run (schedstat)")
        slept = passed_s - ran - waited
        return late_us, max(0.0, took - slept) / ran

    def _run_spinner(self, *, on: bool) -> None:
        self._spinner.send_signal(signal.SIGCONT if on else signal.SIGSTOP)
        time.sleep(_SETTLE_S)

    def _watch(
        self, monitor: ResourceMonitor, pid: int, client: socket.socket | None, seconds: float, found: Service
    ) -> Service:
        """Memcached for so long, or until it is not well."""
        monitor.service(pid)
        waited_us, slices = 0.0, 0
        before_s, _ = _ran_waited_s(self._spinner.pid)
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s and found.well:
            _ask(client, _LOOK_S)
            delay = monitor.service(pid)[1]
            if delay.value is not None and delay.age_s == 0:
                waited_us += delay.value * delay.samples
                slices += delay.samples
                spun_us = 1e6 * (_ran_waited_s(self._spinner.pid)[0] - before_s)
                blamed_us = min(waited_us, spun_us) / slices if slices >= _SLICES else None
                found = Service(found.alone_us, waited_us / slices, blamed_us)
        return found


@contextmanager
def _worker(launcher: list[str], what: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that has said that it is there."""
    argv = [*launcher, sys.executable, "-S", sharing_worker.__file__, what]
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise CannotShareError(f"{argv[0]}: {error.strerror}") from error
    try:
        _line(process)
        yield process
    finally:
        process.kill()
        process.communicate()


def _tell(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None  # noqa: S101 -- _worker opens it
    process.stdin.write(f"{line}\n".encode())
    process.stdin.flush()


def _line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None  # noqa: S101 -- _worker opens it
    ready, _, _ = select.select([process.stdout], [], [], _PATIENCE_S)
    line = process.stdout.readline() if ready else b""
    if not line:
        process.kill()
        said = process.communicate()[1].decode(errors="replace").strip().splitlines()
        raise CannotShareError(f"the probe's process has not begun: {said[-1] if said else 'it says nothing'}")
    return line.decode()


def _ran_waited_s(pid: int) -> tuple[float, float]:
    """Seconds that a process's threads have run, and waited for a core."""
    ran_ns = waited_ns = 0
    for thread in procfs.threads(pid):
        found = procfs.run_delay(Path(f"/proc/{pid}/task/{thread}/schedstat").read_bytes())
        if found is not None:
            ran_ns, waited_ns = ran_ns + found[0], waited_ns + found[1]
    return ran_ns / 1e9, waited_ns / 1e9


def _pin(pid: int, core: int) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


@contextmanager
def _client(address: tuple[str, int]) -> Iterator[socket.socket | None]:
    try:
        client = socket.create_connection(address, timeout=_LOOK_S)
    except OSError:  # it has its own traffic, or none is to be seen
        yield None
        return
    with client:
        yield client


def _ask(client: socket.socket | None, seconds: float) -> None:
    """Let that much time pass; ask memcached for something meanwhile."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if client is not None:
            with contextlib.suppress(OSError):
                client.sendall(b"version\r\n")
                client.recv(256)
        time.sleep(_ASK_EVERY_S)
