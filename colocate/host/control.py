"""The control socket of a run in progress (unix(7)): one connection, one JSON request, one JSON answer, a line each.

It lies in the run's state directory, mode 0600, so that only the run's user and root can connect. A socket that a
killed run has left is harmless: nobody answers there, and the next run replaces it.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from colocate.errors import UserError

NAME = "control"
_MOST_BYTES = 16 * 1024  # of a request
_MOST_ANSWER_BYTES = 1 << 20
_REQUEST_S = 2.0  # so long a client may take to say what it wants
_ANSWER_S = 30.0  # a policy may import much before it can be told whether it loads
_SLICE_S = 0.1  # so long a thread does not look whether it is to end

Answer = Mapping[str, object]
Waiting = Callable[[], bool]  # whether the client is still there
Handler = Callable[[Mapping[str, object], Waiting], Answer]


class NoRunError(UserError):
    """Nobody answers at a control socket, or there is none."""


class ControlServer:
    """Answers requests on a thread of its own, one after the other, so that no client ever holds up the loop.

    Args:
        directory: where the socket is made; the caller holds the lock that keeps other runs away.
        handlers: by the word under `request`; called on the thread. What one raises is the answer, too.

    Raises:
        OSError: the socket cannot be made.
    """

    def __init__(self, directory: Path, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._path = directory / NAME
        self._closing = threading.Event()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _short(directory) as path:
                self._listener.bind(path)
            self._path.chmod(0o600)  # nobody can connect before listen(2)
            self._listener.listen()
        except OSError:
            self._listener.close()
            raise
        self._thread = threading.Thread(target=self._work, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and remove the socket; a request that hangs in a stranger's code is left to itself."""
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends an accept in progress
        self._thread.join(timeout=1.0)
        self._listener.close()
        with suppress(OSError):  # on a disk that has become read-only it stays, and the next run replaces it
            self._path.unlink()

    def _work(self) -> None:
        with suppress(OSError):  # of this thread alone: only the loop may go before memcached
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed, or no descriptor is left
                self._closing.wait(_SLICE_S)
                continue
            with connection, suppress(OSError):
                answer = json.dumps(self._answer(connection))
                connection.settimeout(_REQUEST_S)
                connection.sendall(answer.encode() + b"\n")

    def _answer(self, connection: socket.socket) -> Answer:
        hang_up = select.poll()
        hang_up.register(connection, 0)  # POLLHUP always counts
        try:
            request = _parsed(self._line(connection))
            handler = self._handlers.get(str(request["request"]))
            if handler is None:
                raise UserError(f"this run knows no request {request['request']!r}", "use the colocate of that run")
            return handler(request, lambda: not hang_up.poll(0))
        except UserError as error:
            return _error(error.what, error.cure)
        except BaseException as error:  # a stranger's policy is imported here, which may even call sys.exit()
            return _error(f"{type(error).__name__}: {error}")

    def _line(self, connection: socket.socket) -> bytes:
        end_s = time.monotonic() + _REQUEST_S
        data = b""
        while b"\n" not in data:
            if len(data) > _MOST_BYTES:
                raise UserError(f"a request of more than {_MOST_BYTES} bytes")
            if time.monotonic() > end_s or self._closing.is_set():
                raise UserError(f"no request within {_REQUEST_S:g} s")
            connection.settimeout(_SLICE_S)
            try:
                piece = connection.recv(4096)
            except TimeoutError:
                continue
            if not piece:
                break
            data += piece
        return data


def ask(directory: Path, request: Mapping[str, object], patience_s: float = _ANSWER_S) -> dict[str, object]:
    """What the run whose state lies in `directory` answers.

    Raises:
        NoRunError: no run is there.
        UserError: it does not answer, or it refuses; in its words.
    """
    place = directory / NAME
    try:
        answer = _ask(directory, json.dumps(request).encode() + b"\n", time.monotonic() + patience_s)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        raise NoRunError(f"no run in progress answers at {place}", "start one, or give its --state-dir") from error
    except PermissionError as error:
        raise UserError(f"{place}: the run is another user's", "ask as that user or as root") from error
    except TimeoutError as error:
        raise UserError(
            f"the run at {place} does not answer within {patience_s:g} s", "see whether it hangs"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"the run at {place} gives no answer: {error}", "see whether it has ended") from error
    refusal = answer.get("error")
    if isinstance(refusal, dict):
        raise UserError(str(refusal.get("what")), str(refusal.get("cure") or ""))
    return answer


def _ask(directory: Path, line: bytes, end_s: float) -> dict[str, object]:
    def patience_s() -> float:
        if (left_s := end_s - time.monotonic()) <= 0:
            raise TimeoutError
        return left_s

    data = b""
    with _short(directory) as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(patience_s())
        connection.connect(path)
        connection.sendall(line)
        while b"\n" not in data and len(data) <= _MOST_ANSWER_BYTES:
            connection.settimeout(patience_s())
            piece = connection.recv(65536)
            if not piece:
                break
            data += piece
    answer = json.loads(data)
    if not isinstance(answer, dict):
        raise ValueError("it is no object")
    return answer


@contextmanager
def _short(directory: Path) -> Iterator[str]:
    """The socket's path by way of a descriptor: an address holds 107 bytes only (unix(7)), a directory's name more."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{NAME}"
    finally:
        os.close(fd)


def _parsed(line: bytes) -> dict[str, object]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict) or "request" not in request:
        raise UserError("no request", 'send {"request": NAME, ...} in one line')
    return request


def _error(what: str, cure: str = "") -> Answer:
    return {"error": {"what": what, "cure": cure}}
