"""Pins every thread of memcached, and puts back what was there before."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from colocate.cores import CoreSet, format_ranges, parse_ranges
from colocate.errors import UserError
from colocate.host import procfs
from colocate.host.find import ServiceProcess

_ROUNDS = 10  # a thread can only appear while another one, not yet pinned, makes it
_TASKSET_S = 5.0
_PERMISSION_CURE = (
    "run as root or as memcached's user, allow `sudo -n taskset` without a password, or give this Python CAP_SYS_NICE"
    " (`sudo setpriv --ambient-caps +sys_nice --inh-caps +sys_nice`)"
)


class PinError(Exception):
    """memcached is there and one of its threads does not run where it should."""


_DENIED = "not permitted"


class ServiceAffinity:
    """The cores on which every thread of one memcached may run (sched_setaffinity(2)).

    Args:
        process: memcached.
        original: each thread's mask as it was before us; what they are now, if not given.
        root: where `proc` lies.
        sudo: what goes before `taskset` where this user may not pin.
    """

    def __init__(
        self,
        process: ServiceProcess,
        original: Mapping[int, CoreSet] | None = None,
        *,
        root: Path = Path("/"),
        sudo: Sequence[str] = ("sudo", "-n"),
    ) -> None:
        self.process = process
        self._root = root
        self._sudo = tuple(sudo)
        self._exit: select.poll | None = None
        self._over = False
        self.original = dict(self._now() if original is None else original)
        pidfd = _pidfd_of(process) if root == Path("/") else None
        if pidfd is not None:
            self._exit = select.poll()
            self._exit.register(pidfd, select.POLLIN)
            self._release = weakref.finalize(self, os.close, pidfd)

    def alive(self) -> bool:
        """Whether that very process is still there; asked at every tick, so by a pidfd where that is possible."""
        if self._exit is not None and self._exit.poll(0):
            self._over, self._exit = True, None
            self._release()
        if self._exit is not None or self._over:
            return not self._over
        return procfs.start_ticks(self.process.pid, self._root) == self.process.start_ticks

    def masks(self) -> frozenset[CoreSet]:
        """The distinct masks of all its threads; none when it is gone."""
        return frozenset(mask for _, mask in self._now())

    def may_pin(self) -> str:
        """Ask the kernel, without changing anything; by which means, for people.

        A set without any core is always refused, and whoever may not pin at all is told so first (EPERM). By sudo the
        first thread is given the very cores that it has: a sudo without the capability would still be shown them.

        Raises:
            UserError: not permitted, neither directly nor by `sudo -n taskset`.
        """
        try:
            os.sched_setaffinity(self.process.pid, ())
        except PermissionError as error:
            present = format_ranges(os.sched_getaffinity(self.process.pid))
            if not self._taskset("-cp", present, str(self.process.pid)):
                what = f"not permitted to pin memcached (pid {self.process.pid})"
                raise UserError(what, _PERMISSION_CURE) from error
            return f"by `{' '.join((*self._sudo, 'taskset'))}`"
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise UserError(f"memcached (pid {self.process.pid}) has just ended", "start it again") from error
        return "directly"

    def pin(self, cores: CoreSet) -> int:
        """Confine every thread to these cores, and read all of them back.

        Returns:
            The number of its threads; 0 when memcached is gone.

        Raises:
            PinError: it is there and cannot be pinned.
            ValueError: the set is empty.
        """
        format_ranges(cores)  # refuses the empty set
        return self._settle({}, cores)

    def restore(self) -> int:
        """Give each thread its mask of before; one that has appeared since then gets the main thread's.

        Of a mask that reaches beyond its cpuset, or to a core that is unplugged now, it has what there is.

        Returns:
            The number of its threads; 0 when memcached is gone.

        Raises:
            PinError: it is there and has not got all of them back.
        """
        if not self.original:
            if self.alive():
                raise PinError(f"memcached (pid {self.process.pid}): what its threads had before is not known")
            return 0
        main = self.original.get(self.process.pid) or next(iter(self.original.values()))
        return self._settle(self.original, main, whole=False)

    def to_json(self) -> dict[str, object]:
        """What `from_json` needs to put things back after a crash."""
        return {
            "pid": self.process.pid,
            "start_ticks": self.process.start_ticks,
            "name": self.process.name,
            "masks": {str(tid): format_ranges(mask) for tid, mask in self.original.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object], root: Path = Path("/")) -> ServiceAffinity:
        """The process and its original masks as saved.

        Raises:
            ValueError: that is no such record.
        """
        try:
            pid, start_ticks, masks = data["pid"], data["start_ticks"], data["masks"]
            if not (isinstance(pid, int) and isinstance(start_ticks, int) and isinstance(masks, dict)):
                raise ValueError("pid, start_ticks or masks are of another type")
            if not 0 < pid < 1 << 31 or isinstance(pid, bool):
                raise ValueError(f"{pid} is no process id")
            original = {int(tid): parse_ranges(mask) for tid, mask in masks.items()}
            if not all(original.values()):
                raise ValueError("an empty mask")
            process = ServiceProcess(pid, start_ticks, str(data.get("name", "memcached")))
        except (KeyError, ValueError, TypeError, AttributeError, UserError) as error:
            raise ValueError(f"no record of memcached's affinity: {error}") from error
        return cls(process, original, root=root)

    def _now(self) -> Iterator[tuple[int, CoreSet]]:
        """Each thread with its mask; threads that end meanwhile are left out."""
        for tid in procfs.threads(self.process.pid, self._root):
            try:
                yield tid, frozenset(os.sched_getaffinity(tid))
            except ProcessLookupError:
                continue

    def _settle(self, wanted: Mapping[int, CoreSet], other: CoreSet, *, whole: bool = True) -> int:
        """Set and read back until a whole round finds every thread right.

        Cores that are unplugged do not show in what a thread was given (sched_setaffinity(2)). Nor do those outside its
        cpuset, which is enough where the kernel itself has taken the set, unless the `whole` is wanted.
        """
        wrong: dict[int, CoreSet] = {}
        given: dict[int, bool] = {}  # by thread: whether by the kernel's word, or by taskset's alone
        why = ""
        for _ in range(_ROUNDS):
            if not self.alive():
                return 0
            now = dict(self._now())
            wrong = {tid: wanted.get(tid, other) for tid, mask in now.items() if mask != wanted.get(tid, other)}
            if wrong and given:
                offline = procfs.offline_cores(self._root)
                reached = {tid for tid in wrong.keys() & given.keys() if now[tid] == wrong[tid] - offline}
                if not whole:
                    reached |= {tid for tid in wrong if given.get(tid) and now[tid] < wrong[tid]}
                wrong = {tid: cores for tid, cores in wrong.items() if tid not in reached}
            if now and not wrong:
                return len(now)
            why = self._set(wrong, given) or why
            if why.startswith(_DENIED):  # it will not be permitted a moment later either
                break
        if not wrong:
            raise PinError(f"memcached (pid {self.process.pid}): its threads cannot be listed")
        place = f"memcached (pid {self.process.pid}): {len(wrong)} threads cannot be pinned to"
        raise PinError(f"{place} {format_ranges(next(iter(wrong.values())))}{why and ': '}{why}")

    def _set(self, wrong: Mapping[int, CoreSet], given: dict[int, bool]) -> str:
        """Try once, and note who was given its cores; why not, if the kernel gives a reason."""
        why = ""
        denied = {}
        for tid, cores in wrong.items():
            try:
                os.sched_setaffinity(tid, cores)
                given[tid] = True
            except ProcessLookupError:
                continue
            except PermissionError:
                denied[tid] = cores
            except OSError as error:
                why = f"{error.strerror} (its cgroup's cpuset may forbid it, or there is no such core)"
        if len(masks := set(denied.values())) == 1 and denied.keys() >= {*procfs.threads(self.process.pid, self._root)}:
            done = self._taskset("-acp", format_ranges(masks.pop()), str(self.process.pid))
        else:
            told = [self._taskset("-cp", format_ranges(cores), str(tid)) for tid, cores in denied.items()]
            done = all(told)
        if done:
            given |= dict.fromkeys(denied, False)
        return why if done else f"{_DENIED}; {_PERMISSION_CURE}"

    def _taskset(self, *arguments: str) -> bool:
        """Run taskset(1) by sudo; whether it says that it worked."""
        try:
            command = [*self._sudo, "taskset", *arguments]
            return subprocess.run(command, capture_output=True, timeout=_TASKSET_S, check=False).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False


def _pidfd_of(process: ServiceProcess) -> int | None:
    """Readable once that very process has ended (pidfd_open(2)); None if it is not there, or cannot be watched."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return None
    if procfs.start_ticks(process.pid) != process.start_ticks:  # checked once the descriptor is tied to it
        os.close(fd)
        return None
    return fd


def restore_from(data: Mapping[str, object], root: Path = Path("/")) -> int:
    """Put back what a record of `ServiceAffinity.to_json` says, if that very process is still there.

    Returns:
        The number of its threads; 0 when it is gone, or its pid is another process's now.

    Raises:
        PinError: it is there and has not got all of them back.
        ValueError: that is no such record.
    """
    return ServiceAffinity.from_json(data, root).restore()
