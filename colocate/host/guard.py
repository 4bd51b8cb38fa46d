"""A process that outlives its controller: once that has died, however it died, it puts the machine back.

    python -m colocate.host.guard PIDFD STATE_DIRECTORY LOCK RUN RUNTIME

It waits on a pidfd (pidfd_open(2)), which the kernel makes readable when the process has ended and not before: a
controller that is stopped, starved or slow is alive. Nothing is put back twice: the guard takes the machine's lock
first, and a run whose state file is gone has put everything back itself. It has a session of its own, so that what
kills the controller's terminal or process group leaves it alone, and it ignores SIGTERM, which systemd sends to all
of a unit once its main process has died. It imports little until needed.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colocate.host.state import StateFile

LOG = "guard.log"  # in the state directory: what the guard has to say
_MODULE = "colocate.host.guard"
_RETRY_S = 1.0
_GIVE_UP_S = 600.0  # what cannot be put back by then is `colocate restore`'s
_LOOK_S = 5.0


class Guard:
    """The controller's end of it.

    Args:
        directory: the run's state directory.
        lock: the machine's lock.
        run: the run's id, as in the state file.
        runtime: `docker` or `process`, whose jobs are to be ended even if the state file makes no sense.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, directory: Path, lock: Path, run: str, runtime: str) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log = directory / LOG
        self._argv = (str(directory), str(lock), run, runtime)
        self._log.write_text("")
        self._looked_s = time.monotonic()
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        pidfd = os.pidfd_open(os.getpid())
        argv = [sys.executable, "-P", "-m", _MODULE, str(pidfd), *self._argv]
        try:
            with self._log.open("a") as log:
                return subprocess.Popen(
                    argv, pass_fds=(pidfd,), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
        finally:
            os.close(pidfd)

    @property
    def pid(self) -> int | None:
        """Its process; None where it is not there any more."""
        return self._process.pid if self._process.poll() is None else None

    def keep(self) -> str:
        """Start another one where somebody has killed it; asked at every tick, and looks now and then.

        Returns:
            what is to be said of it, if anything.
        """
        if (now_s := time.monotonic()) - self._looked_s < _LOOK_S:
            return ""
        self._looked_s = now_s
        if (code := self._process.poll()) is None:
            return ""
        try:
            self._process = self._start()
        except OSError as error:
            return f"the guard has ended ({code}), and there is no other: {error}"
        return f"the guard has ended ({code}); another one is there, pid {self._process.pid}"

    def end(self, *, all_is_back: bool) -> None:
        """The run is over: end the guard, or leave it behind to try on where not all is put back."""
        if not all_is_back:
            self._process.returncode = 0  # nobody waits for it any more
            return
        self._process.kill()
        self._process.wait()


def is_guard(pid: int) -> bool:
    """Whether that process is a guard, of whatever run."""
    with suppress(OSError):
        return _MODULE.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def main(argv: list[str]) -> int:
    """Wait for the controller's end and put back what it has left."""
    pidfd, directory, lock = int(argv[0]), Path(argv[1]).absolute(), Path(argv[2]).absolute()
    sys.path = [str(Path(place).absolute()) for place in sys.path]
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    over = select.poll()
    over.register(pidfd, select.POLLIN)
    over.poll()
    return _put_back(directory, lock, *argv[3:])


def _put_back(directory: Path, lock_path: Path, run: str, runtime: str) -> int:
    from colocate.errors import UserError
    from colocate.host.lock import Lock
    from colocate.host.state import CorruptStateError, StateFile

    say = _Notes().say
    give_up_s = time.monotonic() + _GIVE_UP_S
    while time.monotonic() < give_up_s:
        try:
            state, port = StateFile(directory), None
            with suppress(CorruptStateError):
                saved = state.look()
                if saved is None or saved.run != run:  # the run, a later one or `restore` has put everything back
                    return 0
                port = saved.port
            lock = Lock(lock_path, port)
            try:
                lock.acquire()
            except UserError:
                give_up_s = time.monotonic() + _GIVE_UP_S  # who holds it, maybe for hours, may know nothing of our run
                raise
            try:
                if _restored(state, run, runtime, say):
                    return 0
            finally:
                lock.release()
        except Exception as error:  # nobody else puts anything back: a full disk, no descriptor, no thread
            say(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        time.sleep(_RETRY_S)
    say("gave up; see `colocate restore`")
    return 1


def _restored(state: StateFile, run: str, runtime: str, say: Callable[[str], None]) -> bool:
    """Put back what the run has left, with the lock held; whether nothing of it is left to do."""
    from colocate.host.restore import end_jobs, restore
    from colocate.host.state import CorruptStateError

    try:
        saved = state.look()
    except CorruptStateError as error:  # it stays, for `status` and `restore` to tell; but the jobs are ours for sure
        say(str(error))
        done, failed = end_jobs(run, runtime)
    else:
        if saved is None or saved.run != run:
            return True
        done, failed = restore(saved)
        if not failed:
            with suppress(OSError):
                state.clear()
    for line in (*done, *(f"not put back: {line}" for line in failed)):
        say(line)
    return not failed


class _Notes:
    """What the guard has to say, each thing once; a disk that takes no word keeps nobody from putting back."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        """One line, if it has not been said yet."""
        if text not in self._said:
            self._said.add(text)
            with suppress(OSError):
                sys.stdout.write(f"{datetime.now().isoformat(timespec='milliseconds')} {text}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
