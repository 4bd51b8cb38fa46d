"""What was there before us, on disk, so that it can be put back."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from colocate.errors import UserError
from colocate.host.cgroup import hierarchies
from colocate.trust import check_directory, read_trusted

VERSION = 3
_UNKNOWN = "what its run has left is not known: end jobs by `colocate restore --all`, pin memcached by `taskset -acp`"


def default_directory() -> Path:
    """Where state lies: `/run/colocate` for root, else under the user's runtime directory."""
    if os.geteuid() == 0 and Path("/run").is_dir():
        return Path("/run/colocate")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "colocate"
    return Path(tempfile.gettempdir()) / f"colocate-{os.geteuid()}"


@dataclass(frozen=True, slots=True)
class Saved:
    """What a run has to put back.

    Attributes:
        run: the run's id, as on the containers' labels.
        boot_id: the kernel's; after a reboot nothing of this is true any more.
        runtime: `docker` or `process`.
        log: the run's event log.
        service: memcached's pid, start time and original affinity, as `host.memcached` writes it.
        groups: control groups that the run may have made, or the engine for it.
        keeps_jobs: its jobs, and the groups they are in, stay: it has ended with `--on-exit leave` or `pause`.
        port: memcached's, which belongs to whoever puts this back meanwhile.
    """

    run: str
    boot_id: str
    runtime: str
    log: str
    service: Mapping[str, object]
    groups: tuple[str, ...] = ()
    keeps_jobs: bool = False
    port: int | None = None


def boot_id(root: Path = Path("/")) -> str:
    """This boot's id (random(4)); empty where the kernel does not say."""
    try:
        return (root / "proc/sys/kernel/random/boot_id").read_text(errors="replace").strip()
    except OSError:
        return ""


def _check(saved: Saved) -> None:
    """Whether it is what a run writes: names that go into paths and filters, groups that are control groups.

    Raises:
        ValueError: it is not.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", saved.run):
        raise ValueError(f"run {saved.run!r}")
    if "\0" in saved.log:
        raise ValueError(f"log {saved.log!r}")
    mounts = hierarchies() if saved.groups else []
    for path in saved.groups:
        below = any(Path(path).is_relative_to(mount) for mount in mounts)
        if not below or "colocate" not in Path(path).name or ".." in path or "\0" in path:
            raise ValueError(f"group {path!r}")


class CorruptStateError(UserError):
    """The state file makes no sense, so that nobody knows what the run that wrote it has left."""


class StateFile:
    """The state of one run in one file with a checksum, replaced as a whole (temporary file, fsync, rename).

    Raises:
        UserError: somebody else can write in the directory.
    """

    def __init__(self, directory: Path) -> None:
        check_directory(directory)
        self.path = directory / "state.json"
        self._lock = threading.Lock()

    def write(self, saved: Saved) -> None:
        """Replace the file.

        Raises:
            UserError: the directory cannot be written.
            ValueError: it could not be read again.
        """
        _check(saved)
        try:
            with self._lock:
                data = {"version": VERSION, **asdict(saved)}
                self._replace(json.dumps({"sha256": _sum(data), **data}))
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}", "give a writable --state-dir") from error

    def look(self) -> Saved | None:
        """What a run of this boot has saved; whoever has not the lock may ask, since nothing is changed.

        Raises:
            CorruptStateError: it makes no sense.
            UserError: somebody else can write it (it names processes to pin, groups to remove, a log to close), or this
                user may not read it.
        """
        try:
            data = json.loads(read_trusted(self.path))
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']!r}")
            if data.pop("sha256") != _sum(data):
                raise ValueError("it is not as it was written: the checksum is another one")
            saved = Saved(
                run=str(data["run"]),
                boot_id=str(data["boot_id"]),
                runtime=str(data["runtime"]),
                log=str(data["log"]),
                service=dict(data["service"]),
                groups=tuple(str(path) for path in data["groups"]),
                keeps_jobs=bool(data["keeps_jobs"]),
                port=None if data["port"] is None else int(data["port"]),
            )
            _check(saved)
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise UserError(f"{self.path}: {error.strerror}", "ask as the user of that run, or as root") from error
        except OSError as error:  # it may be as it was written: no descriptor is free, say
            raise UserError(f"{self.path}: {error.strerror}", "try again") from error
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CorruptStateError(f"{self.path} makes no sense: {type(error).__name__}: {error}", _UNKNOWN) from error
        return saved if saved.boot_id == boot_id() else None

    def read(self) -> Saved | None:
        """As `look`, for whoever has the lock: what is not true any more is removed, what makes no sense set aside.

        Raises:
            UserError: as `look`; where it makes no sense, there is a warning instead.
        """
        try:
            saved = self.look()
        except CorruptStateError as error:
            sys.stderr.write(f"colocate: warning: {error.what}: {self.set_aside()}; {error.cure}\n")
            return None
        if saved is None:
            self.clear()
        return saved

    def set_aside(self) -> str:
        """Keep a file that makes no sense for people, out of the way of runs; what was done, for people."""
        aside = self.path.with_suffix(".corrupt")
        try:
            self.path.replace(aside)
        except OSError as error:
            return f"it cannot be set aside: {error.strerror}"
        return f"set aside as {aside}"

    def clear(self) -> None:
        """Remove the file; nothing is left to put back. Where it cannot be removed, that is told and does no harm."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:  # a disk that has become read-only
            sys.stderr.write(f"colocate: warning: {self.path} cannot be removed: {error.strerror}\n")

    def _replace(self, text: str) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        with open(new, "w", encoding="utf-8", opener=_private) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _sum(data: Mapping[str, object]) -> str:
    """A checksum of what is saved, however it is laid out."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _private(path: str, flags: int) -> int:
    """Opens it for this user alone, whatever the umask: we do not obey a file that a group can write."""
    fd = os.open(path, flags, 0o600)
    os.fchmod(fd, 0o600)
    return fd
