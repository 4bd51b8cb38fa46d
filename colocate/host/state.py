"""What was there before us, on disk, so that it can be put back; and the lock that keeps controllers apart."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from colocate.errors import UserError
from colocate.trust import check_directory, read_trusted

VERSION = 3


def default_directory() -> Path:
    """Where state lies: `/run/colocate` for root, else under the user's runtime directory."""
    if os.geteuid() == 0 and Path("/run").is_dir():
        return Path("/run/colocate")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "colocate"
    return Path(tempfile.gettempdir()) / f"colocate-{os.geteuid()}"


def default_lock() -> Path:
    """The machine's one lock, the same for every user."""
    shared = Path("/run/lock")
    return (shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())) / "colocate.lock"


def lock_for(state_dir: Path | None, port: int | None = None) -> Lock:
    """The lock of runs whose state lies there; the machine's, where no directory is given."""
    return Lock(state_dir / "lock" if state_dir else default_lock(), port)


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
    for path in saved.groups:
        if not path.startswith("/sys/fs/cgroup/") or ".." in path or "\0" in path:
            raise ValueError(f"group {path!r}")


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
        """
        try:
            with self._lock:
                data = {"version": VERSION, **asdict(saved)}
                self._replace(json.dumps({"sha256": _sum(data), **data}))
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}", "give a writable --state-dir") from error

    def read(self) -> Saved | None:
        """What was saved, if it is of this boot; a file that makes no sense is set aside with a warning.

        Raises:
            UserError: somebody else can write it (it names processes to pin, groups to remove, a log to close), or this
                user may not read it.
        """
        try:
            data = json.loads(read_trusted(self.path))
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise UserError(f"{self.path}: {error.strerror}", "ask as the user of that run, or as root") from error
        except (OSError, ValueError, RecursionError) as error:
            self._set_aside(str(error))
            return None
        try:
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
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._set_aside(f"{type(error).__name__}: {error}")
            return None
        if saved.boot_id != boot_id():
            self.clear()
            return None
        return saved

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

    def _set_aside(self, why: str) -> None:
        aside = self.path.with_suffix(".corrupt")
        try:
            self.path.replace(aside)
        except OSError:
            aside = self.path
        sys.stderr.write(f"colocate: warning: state file set aside as {aside}: {why}\n")


def _sum(data: Mapping[str, object]) -> str:
    """A checksum of what is saved, however it is laid out."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _private(path: str, flags: int) -> int:
    """Opens it for this user alone, whatever the umask: we do not obey a file that a group can write."""
    fd = os.open(path, flags, 0o600)
    os.fchmod(fd, 0o600)
    return fd


def claim(name: str) -> socket.socket:
    """Take a name that is this process's alone until the socket is closed: an abstract one (unix(7)).

    Raises:
        OSError: another process has it.
    """
    bound = socket.socket(socket.AF_UNIX)
    try:
        bound.bind(f"\0colocate-{name}")
    except OSError:
        bound.close()
        raise
    return bound


def goes_on(run: str) -> bool:
    """Whether that run is still there, whatever its state directory is."""
    try:
        claim(f"run-{run}").close()
    except OSError:
        return True
    return False


class Lock:
    """One controller a machine: an flock(2) on a file that holds the owner's pid.

    Args:
        path: the file.
        port: memcached's. Runs with state directories of their own have locks of their own, and one memcached has one
            controller all the same: it claims the port.
    """

    def __init__(self, path: Path, port: int | None = None) -> None:
        self.path = path
        self._port = port
        self._fd = -1
        self._names: list[socket.socket] = []

    def acquire(self) -> None:
        """Take the lock; it is given up when the process ends, however it ends.

        Raises:
            UserError: another controller holds it (its pid is named), or the file cannot be opened.
        """
        self._lock_file()
        if self._port is not None:
            self.claim_port(self._port)

    def claim_port(self, port: int) -> None:
        """Take one more memcached, until this is released.

        Raises:
            UserError: another controller has it; then the whole lock is released.
        """
        try:
            self._names.append(claim(f"memcached-{port}"))
        except OSError as error:
            self.release()
            what = f"another colocate controls the memcached on port {port}"
            raise UserError(what, "end it first, or wait for its end") from error

    def claim_run(self, run: str) -> None:
        """Let others know that this run goes on, until this is released."""
        self._names.append(claim(f"run-{run}"))

    def _lock_file(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = self._open()
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}", "give a writable --state-dir") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise UserError(f"another colocate runs here (pid {owner})", "end it first, or wait for its end") from error
        with suppress(OSError):  # another user's file, or a full disk: only the name of the owner is missing
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def holder(self) -> int | None:
        """The pid of who holds it now, as the kernel tells (proc_locks(5)); None where nobody does.

        Unlike an attempt to take it, this is in nobody's way.
        """
        try:
            inode = self.path.stat().st_ino
            held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        except OSError:
            return None
        for fields in held:  # number, kind, mode, access, pid, device and inode, range
            if len(fields) == 8 and fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
                return int(fields[4])
        return None

    def release(self) -> None:
        """Give the lock up; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        while self._names:
            self._names.pop().close()

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW  # where everybody may write, a link may lead anywhere
        try:
            return os.open(self.path, flags)  # without O_CREAT: fs.protected_regular forbids it on others' files
        except OSError as error:
            if error.errno == errno.EROFS:  # a disk that failed under a run: its guard must get the lock all the same
                return os.open(self.path, flags & ~os.O_RDWR)
            if error.errno != errno.ENOENT:
                raise
            fd = os.open(self.path, flags | os.O_CREAT, 0o666)
            if os.fstat(fd).st_uid == os.geteuid():
                os.fchmod(fd, 0o666)
            return fd
