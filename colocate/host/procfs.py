"""Texts of /proc, parsed: what is cut short, absent or odd reads as "not known", never as an error.

The kernel may cut a text anywhere in the middle of a process's end, and a container may hide whole files. Formats:
proc(5), and the kernel's Documentation/scheduler/sched-stats.rst and Documentation/accounting/psi.rst.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from colocate.cores import CoreSet, parse_ranges
from colocate.errors import UserError

_SIZE = 1 << 16  # the CPU lines of 800 cores


class KeptFile:
    """A file that is opened once and read from its start again and again: a third of the cost of opening it anew.

    A descriptor of /proc/PID stays with the process that it was opened for, even when the pid is given anew (pid(7)).
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._fd = -1

    def read(self) -> bytes:
        """The first 64 KiB; empty where it cannot be read, and then it is opened anew the next time."""
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._fd, _SIZE, 0)
        except OSError:
            self.close()
            return b""

    def close(self) -> None:
        """Give the descriptor back; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def core_ticks(text: bytes) -> dict[int, list[int]]:
    """The first eight columns of each `cpuN` line of /proc/stat.

    They are user, nice, system, idle, iowait, irq, softirq and steal; what follows (guest time) is contained in user.
    """
    found = {}
    for line in text.partition(b"\nintr")[0].split(b"\n"):
        words = line.split(None, 9)
        if len(words) < 9 or not (words[0].startswith(b"cpu") and words[0][3:].isdigit()):
            continue
        ticks = [int(word) for word in words[1:9] if word.isdigit()]
        if len(ticks) == 8:
            found[int(words[0][3:])] = ticks
    return found


def core_list(text: bytes) -> CoreSet | None:
    """The cores of /sys/devices/system/cpu/online or the like (the kernel's admin-guide/cputopology.rst)."""
    if not text.endswith(b"\n"):
        return None
    try:
        return parse_ranges(text.decode("ascii")) or None
    except (UserError, UnicodeDecodeError):
        return None


def offline_cores(root: Path = Path("/")) -> CoreSet:
    """The cores that are there and unplugged; none where the kernel does not tell."""
    base = root / "sys/devices/system/cpu"
    try:
        present, online = (core_list((base / name).read_bytes()) for name in ("present", "online"))
    except OSError:
        return frozenset()
    return frozenset() if present is None or online is None else present - online


def run_delay(text: bytes) -> tuple[int, int, int] | None:
    """A thread's schedstat: nanoseconds run, nanoseconds waited for a core, time slices."""
    words = text.split()
    if len(words) != 3 or not all(word.isdigit() for word in words) or not text.endswith(b"\n"):
        return None
    return int(words[0]), int(words[1]), int(words[2])


def mem_available_bytes(text: bytes) -> int | None:
    """`MemAvailable` of /proc/meminfo."""
    for line in text.split(b"\n"):
        if line.startswith(b"MemAvailable:"):
            words = line.split()
            return int(words[1]) * 1024 if len(words) == 3 and words[1].isdigit() else None
    return None


def some_avg10(text: bytes) -> float | None:
    """The share of the last 10 s in which some task waited, between 0 and 1, from a pressure file."""
    first = text.partition(b"\n")[0].split()
    if len(first) < 3 or first[0] != b"some" or not first[1].startswith(b"avg10="):
        return None
    try:
        percent = float(first[1][6:])
    except ValueError:
        return None
    return percent / 100 if math.isfinite(percent) and 0 <= percent <= 100 else None


def start_ticks(pid: int, root: Path = Path("/")) -> int | None:
    """When a process began, in clock ticks after boot; None if it is not there or is a zombie."""
    try:
        text = (root / "proc" / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    # The second field is the command's name in parentheses, which may itself hold spaces and parentheses.
    words = text.rpartition(b") ")[2].split()
    if len(words) < 20 or words[0] in (b"Z", b"X", b"x") or not words[19].isdigit():
        return None
    return int(words[19])


def command(pid: int, root: Path = Path("/")) -> str:
    """A process's name (`comm`); empty if it is not there."""
    try:
        return (root / "proc" / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def executable(pid: int, root: Path = Path("/")) -> str:
    """The file name of a process's program; empty where one may not know (only its owner and root may)."""
    try:
        return (root / "proc" / str(pid) / "exe").readlink().name
    except OSError:
        return ""


def threads(pid: int, root: Path = Path("/")) -> list[int]:
    """The ids of a process's threads; none if it is not there."""
    try:
        names = os.listdir(f"{root}/proc/{pid}/task")  # noqa: PTH208  # at every tick, and a fifth of iterdir's cost
    except OSError:
        return []
    return [int(name) for name in names if name.isdigit()]
