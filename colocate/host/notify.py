"""Tells the service manager how we are (sd_notify(3)): ready, alive, ending, and a line about what is going on.

A service of `Type=notify` counts as started once it has said so, and one with `WatchdogSec` is killed once it has not
said for so long that it is alive. Each is a datagram to the socket in the environment; where there is none, nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress

ALIVE_S = 1.0  # so often at most it is said that we are alive


class Notifier:
    """The service's end of it; never waits, and whoever does not listen is not told.

    Args:
        environ: where `NOTIFY_SOCKET` stands.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address  # unix(7), abstract sockets
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)  # noqa: FBT003 -- that is its signature
        self._ready = False
        self._stopping = False
        self._next_s = float("-inf")

    def alive(self, now_s: float, status: Callable[[], str]) -> None:
        """The loop has made a tick; the first time this says that the service is ready. `status` is asked if told."""
        if self._socket is None or now_s < self._next_s:
            return
        self._next_s = now_s + ALIVE_S
        self._send(*([] if self._ready else ["READY=1"]), "WATCHDOG=1", f"STATUS={status()}")
        self._ready = True

    def stopping(self) -> None:
        """The end has begun, and may take a while; idempotent."""
        if not self._stopping:
            self._stopping = True
            self._send("STOPPING=1", "STATUS=jobs and cores are being put back")

    def close(self) -> None:
        """Give the socket back."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto("\n".join(" ".join(line.split()) for line in lines).encode(), self._address)
