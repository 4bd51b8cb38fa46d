"""The files of a job's control groups, version 1, version 2 or both side by side: cpuset, freezer, weight, usage.

Where they lie is always read from `/proc/PID/cgroup` and `/proc/self/mountinfo`, never guessed. See cgroups(7),
cpuset(7) and, in the kernel's documentation, admin-guide/cgroup-v1/{cpusets,freezer-subsystem,cpuacct}.rst and
admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from colocate.cores import CoreSet, format_ranges, parse_ranges
from colocate.errors import UserError
from colocate.host.procfs import KeptFile

FREEZE_WAIT_S = 0.002  # freezing takes about 0.2 ms; more than this a caller who must not block does not wait
_POLL_S = 0.00005
_PID_DIGITS = 10
_CONTROLLERS = ("cpuset", "freezer", "cpuacct", "cpu")  # in the order of JobCgroup's arguments
_V1_LOWEST_SHARES, _V2_LOWEST_WEIGHT = "2", "1"
_V1_SHARES, _V2_WEIGHT = "1024", "100"  # the defaults


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands in one hierarchy.

    Attributes:
        mount: where that hierarchy is mounted.
        parts: its group's path below there, name by name; empty for the topmost group.
    """

    mount: Path
    parts: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The group's directory."""
        return self.mount.joinpath(*self.parts)


def find_place(pid: int | str, controller: str, root: Path = Path("/")) -> Place | None:
    """Where a process stands as far as `controller` goes (`cpuset`, `freezer`, `cpuacct`, `cpu`).

    A controller that is mounted as version 1 is found there, every other in the version 2 tree. None where the
    process is gone, or its group lies outside of what is mounted here (as from within another container).
    """
    try:
        memberships = os.fsdecode((root / "proc" / str(pid) / "cgroup").read_bytes())
    except OSError:
        return None
    unified = path = None
    for line in memberships.split("\n"):
        number, _, rest = line.partition(":")
        names, _, group = rest.partition(":")
        if not _is_place(group):  # cut short
            continue
        if controller in names.split(","):
            path = group
        elif number == "0" and not names:
            unified = group
    kind = "cgroup2" if path is None else "cgroup"
    path = unified if path is None else path
    if path is None or path.endswith(" (deleted)") or ".." in path.split("/"):
        return None
    for fstype, options, top, mount in _mounts(root):
        if fstype != kind or (kind == "cgroup" and controller not in options):
            continue
        if top == "/" or path == top or path.startswith(f"{top}/"):
            below = path.removeprefix(top) if top != "/" else path
            return Place(mount, tuple(part for part in below.split("/") if part))
    return None


def directory(pid: int | str, controller: str, root: Path = Path("/")) -> Path | None:
    """The cgroup directory that holds a process as far as `controller` goes; None as in `find_place`."""
    place = find_place(pid, controller, root)
    return place.path if place else None


def hierarchies(root: Path = Path("/")) -> list[Path]:
    """Where whole cgroup hierarchies are mounted, of either version."""
    return [mount for _, _, top, mount in _mounts(root) if top == "/"]


def _mounts(root: Path) -> list[tuple[str, list[str], str, Path]]:
    """The cgroup mounts: type, options, the group at their top, and where they are mounted."""
    try:
        text = os.fsdecode((root / "proc/self/mountinfo").read_bytes())
    except OSError:
        return []
    found = []
    for line in text.split("\n"):
        # 32 31 0:29 /top /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu   (proc_pid_mountinfo(5))
        fields, _, source = line.partition(" - ")
        fstype, _, options = source.partition(" ")
        places = [_unescape(field) for field in fields.split(" ")[3:5]]
        if fstype in ("cgroup", "cgroup2") and len(places) == 2 and all(map(_is_place, places)):
            top, point = places
            found.append((fstype, options.rpartition(" ")[2].split(","), top, root / point.lstrip("/")))
    return found


def _is_place(text: str) -> bool:
    """Whether it can be an absolute path: with a NUL in it every call would raise ValueError."""
    return text.startswith("/") and "\0" not in text


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-3][0-7]{2})", lambda match: os.fsdecode(bytes([int(match[1], 8)])), field)


class JobCgroup:
    """The control groups of one job; every directory may be None where there is none.

    Files are opened once and read again by pread(2). A group that is gone (ENOENT, ENODEV) and one that we may not
    use are normal answers: reads then say None and writes say False. Not thread-safe: `close` must not run beside
    another call.
    """

    __slots__ = (
        "_cores", "_files", "_idles", "_raw_cores", "_v1_freezer", "_v1_usage", "cpuset", "freezer", "usage", "weight",
    )  # fmt: skip

    def __init__(
        self, cpuset: Path | None = None, freezer: Path | None = None, usage: Path | None = None,
        weight: Path | None = None,
    ) -> None:  # fmt: skip
        self.cpuset, self.freezer, self.usage, self.weight = cpuset, freezer, usage, weight
        self._v1_freezer = freezer is not None and (freezer / "freezer.state").exists()
        self._v1_usage = usage is not None and (usage / "cpuacct.usage").exists()
        self._idles = True  # until the kernel has refused
        self._files: dict[str, KeptFile] = {}
        self._raw_cores = b""
        self._cores: CoreSet | None = None

    @classmethod
    def of(cls, pid: int, root: Path = Path("/"), *, name: str = "") -> JobCgroup:
        """The groups that a process is in; with a `name`, only those that `make` made under that name."""
        found = [directory(pid, controller, root) for controller in _CONTROLLERS]
        return cls(*(path if path and str(path).endswith(f"/{name}" if name else "") else None for path in found))

    def close(self) -> None:
        """Close the files; the object may be used again and then opens them anew."""
        for file in self._files.values():
            file.close()

    def directories(self) -> list[Path]:
        """Every directory once."""
        return list(dict.fromkeys(path for path in (self.cpuset, self.freezer, self.usage, self.weight) if path))

    def writable(self) -> bool:
        """Whether both the cores and the freezer can be set by writing files."""
        freezer = "freezer.state" if self._v1_freezer else "cgroup.freeze"
        return all(
            where is not None and os.access(where / name, os.W_OK)
            for where, name in ((self.cpuset, "cpuset.cpus"), (self.freezer, freezer))
        )

    def cores(self) -> CoreSet | None:
        """The cores that are in effect."""
        raw = self._read(self.cpuset, "cpuset.cpus.effective")
        if raw is None:
            raw = self._read(self.cpuset, "cpuset.effective_cpus")
        if raw is None:
            return None
        if raw != self._raw_cores:
            try:
                self._cores, self._raw_cores = parse_ranges(raw.decode()), raw
            except (UserError, UnicodeDecodeError):  # cut short
                return None
        return self._cores

    def set_cores(self, cores: CoreSet) -> bool:
        """Write the cores and read them back; True when they are in effect."""
        return self._write(self.cpuset, "cpuset.cpus", format_ranges(cores)) and self.cores() == cores

    def frozen(self) -> bool | None:
        """Whether every process is frozen (a freeze under way is not yet one)."""
        if self._v1_freezer:
            state = self._read(self.freezer, "freezer.state")
            return None if state is None else state.startswith(b"FROZEN")
        events = self._read(self.freezer, "cgroup.events")
        return None if events is None else b"frozen 1" in events

    def freeze(self, wait_s: float = FREEZE_WAIT_S) -> bool:
        """Freeze every process; True once it has been seen to be so, False if not within `wait_s`."""
        return self._set_frozen(wanted=True, wait_s=wait_s)

    def thaw(self, wait_s: float = FREEZE_WAIT_S) -> bool:
        """Let every process run on; True once it has been seen to be so."""
        return self._set_frozen(wanted=False, wait_s=wait_s)

    def cpu_s(self) -> float | None:
        """CPU seconds used by the group since it was made."""
        if self._v1_usage:
            match = re.match(rb"(\d{1,20})\n", self._read(self.usage, "cpuacct.usage") or b"")
            return None if match is None else int(match[1]) / 1e9
        raw = self._read(self.usage, "cpu.stat")
        match = None if raw is None else re.search(rb"usage_usec (\d{1,20})\n", raw)
        return None if match is None else int(match[1]) / 1e6

    def pids(self) -> list[int]:
        """The processes in the group."""
        raw = None
        for where in self.directories():
            with contextlib.suppress(OSError):  # read whole: the list may be longer than one pread
                raw = (where / "cgroup.procs").read_bytes()
                break
        return [int(pid) for pid in raw.split() if pid.isdigit() and len(pid) <= _PID_DIGITS] if raw else []

    def add(self, pid: int) -> None:
        """Move a process into every one of the groups.

        Raises:
            OSError: one of them refuses.
        """
        for where in self.directories():
            (where / "cgroup.procs").write_text(str(pid))

    def lowest_weight(self) -> bool:
        """Let everything else on the machine go first; False where weights are not ours to set."""
        return self._write(self.weight, "cpu.shares", _V1_LOWEST_SHARES) or self._write(
            self.weight, "cpu.weight", _V2_LOWEST_WEIGHT
        )

    def yields(self) -> bool:
        """Whether everything beside it in the hierarchy goes first, as `give_way` has it."""
        if self._idles and (idle := self._read(self.weight, "cpu.idle")) is not None:
            return idle.strip() == b"1"
        return self._reads_lowest()

    def give_way(self) -> bool:
        """Let all that stands beside it go first: by `cpu.idle`, else the lowest weight; True once it reads so.

        With `cpu.idle` it refuses any weight (EINVAL), so that the engine's `update --cpu-shares` fails.
        """
        if not self.yields():
            self._idles = self._write(self.weight, "cpu.idle", "1")
            if not self._idles:
                self.lowest_weight()
        return self.yields()

    def take_back(self, *, lowest: bool) -> None:
        """Undo `give_way`: to the lowest weight if so wanted, else to the kernel's default."""
        self._write(self.weight, "cpu.idle", "0")
        if lowest:
            self.lowest_weight()
        elif not self._write(self.weight, "cpu.shares", _V1_SHARES):
            self._write(self.weight, "cpu.weight", _V2_WEIGHT)

    def how_it_yields(self) -> str:
        """The file and the value by which it gives way."""
        if self._idles and self._read(self.weight, "cpu.idle") is not None:
            return "cpu.idle 1"
        version1 = self._read(self.weight, "cpu.shares") is not None
        return f"cpu.shares {_V1_LOWEST_SHARES}" if version1 else f"cpu.weight {_V2_LOWEST_WEIGHT}"

    def _reads_lowest(self) -> bool:
        shares, weight = self._read(self.weight, "cpu.shares"), self._read(self.weight, "cpu.weight")
        return (shares or b"").strip() == _V1_LOWEST_SHARES.encode() or (
            (weight or b"").strip() == _V2_LOWEST_WEIGHT.encode()
        )

    def remove(self) -> bool:
        """Remove the directories, and the run's above them once they are empty; True when all are gone."""
        self.close()
        gone = True
        for where in self.directories():
            try:
                where.rmdir()
            except FileNotFoundError:
                pass
            except OSError:  # a process is still on its way out
                gone = False
                continue
            with contextlib.suppress(OSError):  # other jobs, or another run, are still there
                where.parent.rmdir()
        return gone

    def _set_frozen(self, *, wanted: bool, wait_s: float) -> bool:
        if self._v1_freezer:
            written = self._write(self.freezer, "freezer.state", "FROZEN" if wanted else "THAWED")
        else:
            written = self._write(self.freezer, "cgroup.freeze", "1" if wanted else "0")
        if not written:
            return False
        deadline_s = time.monotonic() + wait_s
        while self.frozen() is not wanted:
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(_POLL_S)
        return True

    def _read(self, where: Path | None, name: str) -> bytes | None:
        if where is None:
            return None
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = KeptFile(where / name)
        return file.read() or None

    def _write(self, where: Path | None, name: str, text: str) -> bool:
        if where is None:
            return False
        try:
            fd = os.open(where / name, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        except OSError:
            return False
        return True


def make(name: str, root: Path = Path("/")) -> JobCgroup:
    """Make groups of our own for one job below those that this process is in; `name` is `colocate-RUN/JOB`.

    Under version 1 there is one in each of cpuset, freezer, cpuacct and cpu. Under version 2 there is one, which can
    always be frozen and measured; it has a cpuset and a weight only where our own group already hands those
    controllers to its children. They are never enabled there: doing so resets the affinity of every process around
    us (systemd issue 23748). What cannot be made is None.
    """
    return JobCgroup(*(_make_one(controller, name, root) for controller in _CONTROLLERS))


def run_group(run_id: str) -> str:
    """The name of a run's own group, in which only its jobs stand."""
    return f"colocate-{run_id}"


def may_weigh(base: Path) -> bool:
    """Whether groups that we make below `base` get a CPU weight."""
    if not os.access(base, os.W_OK):
        return False
    try:
        return b"cpu" in (base / "cgroup.subtree_control").read_bytes().split()
    except FileNotFoundError:  # version 1
        return True
    except OSError:
        return False


def made(run_id: str, root: Path = Path("/")) -> dict[str, JobCgroup]:
    """The groups that `make` made for a run and nobody has removed, by job; found only below our own group."""
    bases = [directory("self", controller, root) for controller in _CONTROLLERS]
    places = [base / run_group(run_id) if base else None for base in bases]
    jobs = sorted({path.name for place in places if place for path in place.glob("*") if path.is_dir()})
    return {job: JobCgroup(*(place / job if place else None for place in places)) for job in jobs}


def _make_one(controller: str, name: str, root: Path) -> Path | None:
    base = directory("self", controller, root)
    if base is None:
        return None
    version2 = (base / "cgroup.controllers").exists()
    handed_down = version2 and controller in ("cpuset", "cpu")
    try:
        if handed_down and controller not in (base / "cgroup.subtree_control").read_text().split():
            return None
        *above, last = _levels(base, name)
        for level in above:
            _make_level(level, controller, version2=version2)
            if handed_down:
                (level / "cgroup.subtree_control").write_text(f"+{controller}")
        _make_level(last, controller, version2=version2)
    except OSError:
        return None
    return last


def _levels(base: Path, name: str) -> Iterator[Path]:
    for part in name.split("/"):
        base = base / part
        yield base


def _make_level(level: Path, controller: str, *, version2: bool) -> None:
    level.mkdir(exist_ok=True)
    if controller == "cpuset" and not version2:
        for what in ("cpuset.mems", "cpuset.cpus"):  # both are empty at first, and then no process may enter
            if not (level / what).read_text().strip():
                (level / what).write_text((level.parent / what).read_text())
