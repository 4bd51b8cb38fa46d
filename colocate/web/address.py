"""Where the dashboard listens: an address, checked and bound before anything else is done."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from colocate.errors import UserError

DEFAULT = "127.0.0.1:8099"
_CURE = f"write it like {DEFAULT}"


@dataclass(frozen=True, slots=True)
class Address:
    """An address of this machine; port 0 is any that is free.

    Attributes:
        host: as it was given, for messages and the Host header.
        ip: what it stands for.
    """

    host: str
    ip: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return ipaddress.ip_address(self.ip).is_loopback

    @property
    def warning(self) -> str:
        """What must be said before it is opened; empty on loopback."""
        return "" if self.loopback else f"--web {self}: anybody who reaches this address can read every run's log"

    @property
    def url(self) -> str:
        """For a browser."""
        return f"http://{self}/"

    def listen(self) -> socket.socket:
        """A socket that listens there.

        Raises:
            UserError: the port is in use, or the address is not this machine's.
        """
        family = socket.AF_INET6 if ":" in self.ip else socket.AF_INET
        try:
            return socket.create_server((self.ip, self.port), family=family)
        except OSError as error:
            raise UserError(
                f"--web {self}: {error.strerror}", "give another port, or an address of this machine"
            ) from error

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """An address from `HOST:PORT` or `[HOST]:PORT`.

    Raises:
        UserError: it is none, or its name is unknown.
    """
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if (
        not colon
        or not bare
        or not (port.isascii() and port.isdigit())
        or int(port) > 65535
        or (":" in bare) != (bare != host)
    ):
        raise UserError(f"--web {text}: no address", _CURE)
    try:
        found = socket.getaddrinfo(bare, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--web {text}: no address of this machine", _CURE) from error
    return Address(bare, str(found[0][4][0]), int(port))
