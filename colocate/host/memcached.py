"""Finds memcached by who listens, and pins every thread of it.

A process is known by its pid and start time: a pid alone may be given anew (pid(7)).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import netaddr
import psutil
import tenacity

from colocate.cores import CoreSet, format_ranges, parse_ranges
from colocate.errors import UserError
from colocate.host import procfs

_ROUNDS = 10  # a thread can only appear while another one, not yet pinned, makes it
_ANSWER_S = 1.0
_TASKSET_S = 5.0
_PERMISSION_CURE = (
    "run as root or as memcached's user, allow `sudo -n taskset` without a password, or give this Python CAP_SYS_NICE"
    " (`sudo setpriv --ambient-caps +sys_nice --inh-caps +sys_nice`)"
)


class PinError(Exception):
    """memcached is there and one of its threads does not run where it should."""


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
        raise UserError(f"{text!r} is not an IP address", f"give one of this machine's: {_machine()}") from error
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
        return find(ip, port, root=root)

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
            while b"\r\nEND" not in text and (more := connection.recv(65536)):
                text += more
    except OSError:
        return None
    values = [line.split()[2] for line in text.split(b"\r\n") if line.startswith(b"STAT pid ")]
    return int(values[0]) if values and values[0].isdigit() else None


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


class ServiceAffinity:
    """The cores on which every thread of one memcached may run (sched_setaffinity(2)).

    Args:
        process: memcached.
        original: each thread's mask as it was before us; what they are now, if not given.
        root: where `proc` lies.
        sudo: what goes before `taskset` where this user may not pin.
    """

    def __init__(
        self,
        process: ServiceProcess,
        original: Mapping[int, CoreSet] | None = None,
        *,
        root: Path = Path("/"),
        sudo: Sequence[str] = ("sudo", "-n"),
    ) -> None:
        self.process = process
        self._root = root
        self._sudo = tuple(sudo)
        self._exit: select.poll | None = None
        self.original = dict(self._now() if original is None else original)
        if root == Path("/"):
            self._exit = _exit_of(process)

    def alive(self) -> bool:
        """Whether that very process is still there; asked at every tick, so by a pidfd where that is possible."""
        if self._exit is not None:
            return not self._exit.poll(0)
        return procfs.start_ticks(self.process.pid, self._root) == self.process.start_ticks

    def masks(self) -> frozenset[CoreSet]:
        """The distinct masks of all its threads; none when it is gone."""
        return frozenset(mask for _, mask in self._now())

    def may_pin(self) -> None:
        """Ask the kernel, without changing anything.

        A set without any core is always refused, and whoever may not pin at all is told so first (EPERM).

        Raises:
            UserError: not permitted, neither directly nor by `sudo -n taskset`.
        """
        try:
            os.sched_setaffinity(self.process.pid, ())
        except PermissionError as error:
            if not self._taskset("-cp", str(self.process.pid)):  # without a list it only shows
                what = f"not permitted to pin memcached (pid {self.process.pid})"
                raise UserError(what, _PERMISSION_CURE) from error
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise UserError(f"memcached (pid {self.process.pid}) has just ended", "start it again") from error

    def pin(self, cores: CoreSet) -> int:
        """Confine every thread to these cores, and read all of them back.

        Returns:
            The number of its threads; 0 when memcached is gone.

        Raises:
            PinError: it is there and cannot be pinned.
            ValueError: the set is empty.
        """
        format_ranges(cores)  # refuses the empty set
        return self._settle({}, cores)

    def restore(self) -> int:
        """Give each thread its mask of before; one that has appeared since then gets the main thread's.

        Returns:
            The number of its threads; 0 when memcached is gone.

        Raises:
            PinError: it is there and has not got all of them back.
        """
        if not self.original:
            return 0
        main = self.original.get(self.process.pid) or next(iter(self.original.values()))
        return self._settle(self.original, main)

    def to_json(self) -> dict[str, object]:
        """What `from_json` needs to put things back after a crash."""
        return {
            "pid": self.process.pid,
            "start_ticks": self.process.start_ticks,
            "name": self.process.name,
            "masks": {str(tid): format_ranges(mask) for tid, mask in self.original.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object], root: Path = Path("/")) -> ServiceAffinity:
        """The process and its original masks as saved.

        Raises:
            ValueError: that is no such record.
        """
        try:
            pid, start_ticks, masks = data["pid"], data["start_ticks"], data["masks"]
            if not (isinstance(pid, int) and isinstance(start_ticks, int) and isinstance(masks, dict)):
                raise ValueError("pid, start_ticks or masks are of another type")
            original = {int(tid): parse_ranges(mask) for tid, mask in masks.items()}
            if not all(original.values()):
                raise ValueError("an empty mask")
            process = ServiceProcess(pid, start_ticks, str(data.get("name", "memcached")))
        except (KeyError, ValueError, TypeError, AttributeError, UserError) as error:
            raise ValueError(f"no record of memcached's affinity: {error}") from error
        return cls(process, original, root=root)

    def _now(self) -> Iterator[tuple[int, CoreSet]]:
        """Each thread with its mask; threads that end meanwhile are left out."""
        for tid in procfs.threads(self.process.pid, self._root):
            try:
                yield tid, frozenset(os.sched_getaffinity(tid))
            except ProcessLookupError:
                continue

    def _settle(self, wanted: Mapping[int, CoreSet], other: CoreSet) -> int:
        """Set and read back until a whole round finds every thread right."""
        wrong: dict[int, CoreSet] = {}
        why = ""
        for _ in range(_ROUNDS):
            if not self.alive():
                return 0
            now = list(self._now())
            wrong = {tid: wanted.get(tid, other) for tid, mask in now if mask != wanted.get(tid, other)}
            if not wrong:
                return len(now)
            why = self._set(wrong) or why
        place = f"memcached (pid {self.process.pid}): {len(wrong)} threads cannot be pinned to"
        raise PinError(f"{place} {format_ranges(next(iter(wrong.values())))}{why and ': '}{why}")

    def _set(self, wrong: Mapping[int, CoreSet]) -> str:
        """Try once; why not, if the kernel gives a reason."""
        why = ""
        denied = {}
        for tid, cores in wrong.items():
            try:
                os.sched_setaffinity(tid, cores)
            except ProcessLookupError:
                continue
            except PermissionError:
                denied[tid] = cores
            except OSError as error:
                why = f"{error.strerror} (its cgroup's cpuset may forbid it, or there is no such core)"
        if len(masks := set(denied.values())) == 1:
            done = self._taskset("-acp", format_ranges(masks.pop()), str(self.process.pid))
        else:
            done = all(self._taskset("-cp", format_ranges(cores), str(tid)) for tid, cores in denied.items())
        return why if done else f"not permitted; {_PERMISSION_CURE}"

    def _taskset(self, *arguments: str) -> bool:
        """Run taskset(1) by sudo; whether it says that it worked."""
        try:
            command = [*self._sudo, "taskset", *arguments]
            return subprocess.run(command, capture_output=True, timeout=_TASKSET_S, check=False).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False


def _exit_of(process: ServiceProcess) -> select.poll | None:
    """Polls readable once that very process has ended (pidfd_open(2)); None if it is not there, or cannot be watched.

    The descriptor lives as long as the poll object is needed, which is the life of this program.
    """
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return None
    if procfs.start_ticks(process.pid) != process.start_ticks:  # checked once the descriptor is tied to it
        os.close(fd)
        return None
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return poll


def restore_from(data: Mapping[str, object], root: Path = Path("/")) -> int:
    """Put back what a record of `ServiceAffinity.to_json` says, if that very process is still there.

    Returns:
        The number of its threads; 0 when it is gone, or its pid is another process's now.

    Raises:
        PinError: it is there and has not got all of them back.
        ValueError: that is no such record.
    """
    return ServiceAffinity.from_json(data, root).restore()
