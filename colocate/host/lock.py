"""What keeps controllers apart: a lock a machine, a name for each memcached and each run that are in hands."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

from colocate.errors import UserError


def default_lock() -> Path:
    """The machine's one lock, the same for every user."""
    shared = Path("/run/lock")
    return (shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())) / "colocate.lock"


def lock_for(state_dir: Path | None, port: int | None = None) -> Lock:
    """The lock of runs whose state lies there; the machine's, where no directory is given."""
    return Lock(state_dir / "lock" if state_dir else default_lock(), port)


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
        # Both belong to whoever has a copy of the descriptor: a process that a policy forks would hold them for good.
        os.register_at_fork(after_in_child=self.release)

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
