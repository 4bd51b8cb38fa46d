"""Finds memcached by who listens at an address of this machine.

A process is known by its pid and start time: a pid alone may be given anew (pid(7)).
"""

from __future__ import annotations

import re
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

import netaddr
import psutil
import tenacity

from colocate.errors import UserError
from colocate.host import procfs

_ANSWER_S = 1.0
_MOST_BYTES = 1 << 20  # of an answer; memcached's has some 3,000


@dataclass(frozen=True, slots=True)
class ServiceProcess:
    """A running memcached.

    Attributes:
        pid: its process id.
        start_ticks: when it began, in clock ticks after boot (proc(5), field 22 of /proc/PID/stat).
        name: its command's name.
    """

    pid: int
    start_ticks: int
    name: str


def local_address(text: str) -> str:
    """The address in its usual form, if it is one of this machine's; `localhost` is 127.0.0.1.

    Raises:
        UserError: it is no IP address, the wildcard address, or another machine's.
    """
    try:
        address = netaddr.IPAddress("127.0.0.1" if text.strip() == "localhost" else text.strip())
    except (netaddr.AddrFormatError, ValueError) as error:
        cure = f"give one of this machine's, without a port: {_machine()}"
        raise UserError(f"{text!r} is not an IP address", cure) from error
    if address.is_ipv4_mapped():
        address = address.ipv4()
    if int(address) == 0:
        raise UserError(f"{address} means every address", f"give one of this machine's: {_machine()}")
    if str(address) not in _own_addresses() and not address.is_loopback():
        raise UserError(
            f"{address} is not an address of this machine",
            f"run colocate where memcached runs, or give one of {_machine()}",
        )
    return str(address)


def _own_addresses() -> list[str]:
    families = (socket.AF_INET, socket.AF_INET6)
    interfaces = psutil.net_if_addrs().values()
    return [a.address.partition("%")[0] for addresses in interfaces for a in addresses if a.family in families]


def _machine() -> str:
    return ", ".join(dict.fromkeys(_own_addresses()))


def find(ip: str, port: int, *, pid: int | None = None, root: Path = Path("/")) -> ServiceProcess:
    """The memcached that listens at an address.

    Args:
        ip: one of this machine's addresses, as `local_address` returns it.
        port: its TCP port.
        pid: the process that it must be; needed where this user may not see who listens.
        root: where `proc` lies.

    Raises:
        UserError: nobody listens there, one may not see who, it is not memcached, or not that process.
    """
    place = _place(ip, port)
    answer = _version(ip, port)
    bound = _listening(port)
    owners = _heard_by(ip, bound)
    if answer is None or not (owners or answer):
        raise UserError(f"memcached is not running on {place}", _start_cure(ip, port, bound))
    if not owners:
        raise UserError(f"what answers on {place} is in another network namespace", "run it with --network host")
    pids = [owner for owner in owners if owner is not None]
    if pid is None and not pids:
        raise UserError(f"no permission to see which process listens on {place}", "use sudo, or give --memcached-pid")
    candidates = pids if pid is None else [pid]
    found = [process for process in (_process(each, root) for each in candidates) if process is not None]
    if not found:
        raise UserError(f"there is no process {candidates[0]}", "see `pgrep -a memcached`")
    # Several processes can hold one listening socket: a child inherits it.
    process = next((p for p in found if _is_memcached(p, root)), found[0])
    who = f"process {process.pid} ({process.name})"
    if not _is_memcached(process, root):
        raise UserError(f"{who} on {place} is not memcached", "give memcached's own address, --port or --memcached-pid")
    listens = process.pid in pids if pids else process.pid == _told_pid(ip, port)
    if not listens:
        raise UserError(f"{who} does not listen on {place}", "see `pgrep -a memcached`, or leave --memcached-pid out")
    if not answer.startswith(b"VERSION "):
        what = "does not answer `version` as memcached does" if answer else "does not answer"
        raise UserError(f"{who} on {place} {what}", "see whether it is stopped, or wants TLS or a password")
    return process


def find_again(
    ip: str, port: int, stopped: threading.Event, *, root: Path = Path("/"), pause_s: float = 0.1
) -> ServiceProcess | None:
    """Wait until memcached listens there (again); None once `stopped` is set. Meant for a worker thread."""

    def look() -> ServiceProcess:
        if _version(ip, port) is None:  # a hundredth of the cost of reading all sockets' owners
            raise UserError(f"memcached is not running on {_place(ip, port)}")
        try:
            return find(ip, port, root=root)
        except UserError:  # where this user may not see who listens, memcached's own word for its pid is taken
            if (pid := _told_pid(ip, port)) is None:
                raise
            return find(ip, port, pid=pid, root=root)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(UserError),
        wait=tenacity.wait_exponential(multiplier=pause_s, min=pause_s, max=10 * pause_s, exp_base=1.2),
        stop=tenacity.stop_when_event_set(stopped),
        sleep=tenacity.sleep_using_event(stopped),
    )
    try:
        return retrying(look)
    except tenacity.RetryError:
        return None


def _place(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _start_cure(ip: str, port: int, bound: list[tuple[netaddr.IPAddress, int | None]]) -> str:
    if bound:
        others = ", ".join(sorted({str(address) for address, _ in bound}))
        return f"port {port} is open on {others} only: give that address, or start memcached with `-l {ip}`"
    return f"start it (`sudo systemctl start memcached`, or `memcached -d -l {ip} -p {port}`), or give its --port"


def _version(ip: str, port: int) -> bytes | None:
    """What is said to `version`; empty when nothing is, None when nobody listens."""
    try:
        with socket.create_connection((ip, port), timeout=_ANSWER_S) as connection:
            connection.sendall(b"version\r\n")
            return connection.recv(256)
    except ConnectionRefusedError:
        return None
    except OSError:
        return b""


def _told_pid(ip: str, port: int) -> int | None:
    """The pid that memcached itself names: the proof for a user who may not see the owners of sockets."""
    text = b""
    try:
        with socket.create_connection((ip, port), timeout=_ANSWER_S) as connection:
            connection.sendall(b"stats\r\n")
            while b"\r\nEND" not in text and len(text) < _MOST_BYTES and (more := connection.recv(65536)):
                text += more
    except OSError:
        return None
    found = re.search(rb"^STAT pid (\d{1,10})\r\n", text, re.MULTILINE)
    return int(found[1]) or None if found else None


def _listening(port: int) -> list[tuple[netaddr.IPAddress, int | None]]:
    """The address of each socket that listens on a port, and its owner where this user may see it."""
    found = []
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            address = netaddr.IPAddress(connection.laddr.ip)
            found.append((address.ipv4() if address.is_ipv4_mapped() else address, connection.pid))
    return found


def _heard_by(ip: str, bound: list[tuple[netaddr.IPAddress, int | None]]) -> list[int | None]:
    """Who hears an address, the closest match first: the address itself, then a wildcard."""
    wanted = netaddr.IPAddress(ip)
    exact = [pid for address, pid in bound if address == wanted]
    same = [pid for address, pid in bound if int(address) == 0 and address.version == wanted.version]
    # A socket on :: hears IPv4, too, unless it says otherwise (ipv6(7), IPV6_V6ONLY).
    other = [pid for address, pid in bound if int(address) == 0 and address.version > wanted.version]
    return exact or same or other


def _process(pid: int, root: Path) -> ServiceProcess | None:
    start_ticks = procfs.start_ticks(pid, root)
    return None if start_ticks is None else ServiceProcess(pid, start_ticks, procfs.command(pid, root))


def _is_memcached(process: ServiceProcess, root: Path) -> bool:
    return any(name.startswith("memcached") for name in (process.name, procfs.executable(process.pid, root)))
