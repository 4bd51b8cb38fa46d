"""Our hold on a running container without the engine: its cgroup files, and a pidfd of its init process."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

from colocate.cores import CoreSet
from colocate.host.cgroup import JobCgroup
from colocate.host.engine import cgroup_of
from colocate.host.sharing import Sharing
from colocate.host.watcher import Watcher
from colocate.view import JobSample


class Grip:
    """Empty while there is no process, or none that we can see. Not thread-safe: its container's lock guards it.

    Args:
        watcher: tells of the end of its init process.
        root: where /proc lies.
        sharing: gives it idle priority where it meets memcached; None where it need not.
    """

    def __init__(self, watcher: Watcher, root: Path, sharing: Sharing | None = None) -> None:
        self._sharing = sharing
        self._pid = 0
        self._unseen = False  # it runs, and we see no files of it
        self._watcher = watcher
        self._root = root
        self._group: JobCgroup | None = None
        self._pidfd: int | None = None
        self._held: list[int] = []

    def take(self, pid: int, container_id: str, ended: Callable[[], None]) -> None:
        """Find the files of a container's init, and call `ended` (on the watcher's thread) when that is over."""
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:  # it is over already: the engine will tell how
            return
        except OSError:  # no descriptor is free
            self._unseen = True
            return
        with contextlib.suppress(OSError):
            self._group = cgroup_of(pid, container_id, self._root)
            if self._group is None:
                self._unseen = not _ended(fd)
                os.close(fd)
            else:
                self._pidfd, self._pid = fd, pid
                self._watcher.watch(fd, ended)

    def drop(self) -> None:
        """Close everything."""
        if self._group is not None:
            self._group.close()
            self._group = None
        self._unseen = False
        if self._pidfd is not None:
            self._watcher.forget(self._pidfd)
            self._pidfd = None

    def replaced(self, pid: int) -> bool:
        """Whether what it holds has ended, and the engine says that another process is the container's now."""
        return bool(pid) and pid != self._pid and self.ended()

    def ended(self) -> bool:
        """Whether its init process has been seen to end."""
        return self._pidfd is not None and _ended(self._pidfd)

    def writable(self) -> bool:
        """Whether its files are ours to write."""
        return self._group is not None and self._group.writable()

    def sample(self) -> JobSample:
        """What the files say now."""
        group = self._group
        sharing = self._sharing
        if group is None:
            return JobSample(idle=False if sharing and self._unseen else None)
        idle = None if sharing is None else sharing.holds(group, self._pid)
        if idle is False and self.ended():  # its group goes before the engine tells, which may take its time
            idle = None
        return JobSample(group.cores(), group.frozen(), group.cpu_s(), idle)

    def give_way(self) -> bool:
        """Have it let memcached go first where they meet, if it is to; True when it reads so."""
        if self._sharing is None or self._group is None:
            return self._sharing is None
        return self._sharing.give(self._group, self._group.pids())

    def take_back(self) -> None:
        """Undo `give_way` for a container that outlives the run."""
        if self._sharing is not None and self._group is not None:
            self._sharing.take_back(self._group, self._group.pids())

    def set_cores(self, cores: CoreSet) -> bool:
        """Write the cores; True when they are in effect."""
        return self._group is not None and self._group.set_cores(cores)

    def set_paused(self, *, paused: bool) -> bool:
        """Freeze or thaw; True when it has been seen to be so. What has ended does not stay frozen.

        Before it looks whether there is a process at all, runc takes a frozen group for a paused container, which it
        does not delete; then the engine knows no exit code, and tells of 255.
        """
        if self._group is None:
            return False
        if paused:
            frozen = self._group.freeze()
            if over := self.ended():
                self._group.thaw()
            return frozen and not over
        thawed = self._group.thaw()
        self.release()
        return thawed

    def confirm(self, cores: CoreSet, *, paused: bool) -> bool:
        """Have both so, and read them back; True when they are. Whether it gives way as it should, `sample` tells.

        The freezer is written even where it seems right: a freeze that is under way reads as none.
        """
        if self._group is None:
            return False
        self.give_way()
        placed = self._group.cores() == cores or self._group.set_cores(cores)
        return self.set_paused(paused=paused) and placed

    def hold(self) -> bool:
        """Thaw without letting it run: every process is stopped by a signal first, which it meets before its next
        instruction. Otherwise it would run, maybe on memcached's cores, until the engine has frozen it again.

        False where one may not be signalled (another user's, without CAP_KILL): then it stays frozen.
        """  # noqa: D205 -- the summary needs two lines
        if self._group is None:
            return True
        try:
            for pid in self._group.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    self._held.append(pid)
        except OSError:
            self.release()
            return False
        self._group.thaw()
        return True

    def release(self) -> None:
        """Take back the signal of `hold`."""
        for pid in self._held:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
        self._held.clear()


def _ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
