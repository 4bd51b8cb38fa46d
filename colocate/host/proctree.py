"""A job's processes as a whole, where there is no cgroup to hold them together: found by session, moved, stopped.

A job leads a session of its own (setsid(2)); what it forks stays in it unless it makes a session of its own in turn.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from colocate.cores import CoreSet
from colocate.host.cgroup import JobCgroup, made
from colocate.host.procfs import threads

Members = Callable[[], list[int]]

_ROUNDS = 50  # a tree that still grows after this many sweeps is a fork bomb
MARK = "COLOCATE_JOB"  # in a job's environment: run id/job, inherited by whatever it forks
_KILL_S = 2.0  # killed processes are gone within milliseconds, unless the kernel holds on to them
_TICKS = os.sysconf("SC_CLK_TCK")


def session_members(session: int, root: Path = Path("/")) -> list[int]:
    """The live processes of a session (zombies left out)."""
    found = []
    for entry in os.scandir(root / "proc"):
        if entry.name.isdigit():
            words = _stat(int(entry.name), root)
            if len(words) > 3 and words[3] == str(session) and words[0] not in "ZXx":
                found.append(int(entry.name))
    return found


def set_affinity(members: Members, cores: CoreSet, root: Path = Path("/")) -> bool:
    """Move every thread of every process; again until none is new, because a thread moved hands it on to its children.

    Returns:
        False where the tree never came to rest.

    Raises:
        OSError: a core is absent, or we may not.
    """
    done: set[int] = set()
    for _ in range(_ROUNDS):
        new = {thread for pid in members() for thread in threads(pid, root)} - done
        if not new:
            return True
        for thread in new:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cores)
        done |= new
    return False


def affinity(pid: int, root: Path = Path("/")) -> CoreSet | None:
    """The cores that any thread of a process may run on; None if it is not there."""
    cores: set[int] = set()
    for thread in threads(pid, root):
        with contextlib.suppress(OSError):
            cores |= os.sched_getaffinity(thread)
    return frozenset(cores) or None


def signal_all(members: Members, number: int) -> None:
    """Signal every process once, also those that are forked meanwhile."""
    done: set[int] = set()
    for _ in range(_ROUNDS):
        new = set(members()) - done
        if not new:
            return
        for pid in new:
            with contextlib.suppress(OSError):  # it has ended, or has become another user's
                os.kill(pid, number)
        done |= new


def wait_until(condition: Callable[[], bool], wait_s: float, pause_s: float = 0.0002) -> bool:
    """Ask until it is so, or no longer than `wait_s`; says whether it is."""
    deadline_s = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(pause_s)
    return True


def stopped(members: Members, root: Path = Path("/")) -> bool | None:
    """Whether every process is stopped by a signal; None if there is none."""
    states = [words[0] for pid in members() if (words := _stat(pid, root))]
    return all(state in "TtZX" for state in states) if states else None


def cpu_s(pid: int, root: Path = Path("/")) -> float | None:
    """CPU seconds of a process, its threads, and those of its children that it has waited for."""
    words = _stat(pid, root)
    if len(words) < 15 or not all(word.isascii() and word.isdigit() and len(word) <= 20 for word in words[11:15]):
        return None
    return sum(int(word) for word in words[11:15]) / _TICKS


def give_way(pid: int, root: Path) -> None:
    """Let everything else go first. Sessions are weighed against one another (sched(7), autogroups), so the process's
    own niceness would only count within its session; and no affinity of ours may narrow what its cpuset will allow.
    """  # noqa: D205 -- the summary needs two lines
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, 19)
    with contextlib.suppress(OSError):
        (root / "proc" / str(pid) / "autogroup").write_text("19")
    with contextlib.suppress(OSError):
        os.sched_setaffinity(pid, range(os.cpu_count() or 1))


def kill_all(members: Members, group: JobCgroup, pid: int, wait_s: float) -> bool:
    """Kill every process, frozen or not, and wait for the end of all but `pid`, which its parent has yet to reap."""

    def sweep() -> bool:
        signal_all(members, signal.SIGKILL)
        group.thaw()
        return not set(members()) - {pid}

    return wait_until(sweep, wait_s)


def marked(run_id: str, root: Path = Path("/")) -> dict[int, str]:
    """The processes of a run that this user may see, with their jobs: every one has inherited `MARK`."""
    return {pid: job for pid, (run, job) in _marks(root).items() if run == run_id}


def marked_runs(root: Path = Path("/")) -> set[str]:
    """The runs of which this user can see a job's process."""
    return {run for run, _ in _marks(root).values()}


def kill_leftovers(run_id: str, root: Path = Path("/")) -> tuple[list[str], list[str]]:
    """Kill the jobs that an earlier run has left behind, found by their mark and in its cgroups; remove the cgroups.

    Returns:
        what was killed, and what would not end; one line each.
    """
    killed, left = list[str](), list[str]()
    groups = made(run_id, root)
    for job in sorted({*marked(run_id, root).values(), *groups}):
        group = groups.get(job, JobCgroup())

        def members(job: str = job, group: JobCgroup = group) -> list[int]:
            return sorted({*group.pids(), *(pid for pid, of in marked(run_id, root).items() if of == job)})

        if members():
            signal_all(members, signal.SIGCONT)
            gone = kill_all(members, group, 0, _KILL_S)
            (killed if gone else left).append(f"{job}: its processes {'killed' if gone else 'do not end'}")
        wait_until(group.remove, _KILL_S)
    return killed, left


def _marks(root: Path) -> dict[int, tuple[str, str]]:
    """Run and job of every process that has `MARK` in its environment."""
    found = {}
    mark = f"{MARK}=".encode()
    for entry in os.scandir(root / "proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ends meanwhile, or is another user's
            for word in (root / "proc" / entry.name / "environ").read_bytes().split(b"\0"):
                if word.startswith(mark):
                    run, _, job = word.removeprefix(mark).decode(errors="replace").partition("/")
                    found[int(entry.name)] = run, job
    return found


def _stat(pid: int, root: Path) -> list[str]:
    """The fields of /proc/PID/stat from the third (the state) on; proc_pid_stat(5)."""
    try:
        text = (root / "proc" / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return []
    return text.rpartition(") ")[2].split()
