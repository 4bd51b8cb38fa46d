"""The generator as a process: what load it makes, how it is started, and what it tells as each interval ends."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from colocate_workloads import BuildError, binaries

from colocate.errors import UserError


@dataclass(frozen=True, slots=True)
class Load:
    """A load on one memcached.

    Attributes:
        server: its IP address.
        port: its TCP port.
        targets: requests a second, one an interval.
        interval_s: the length of an interval.
        duration_s: less than all intervals, where the last one is a part.
        connections: TCP connections of each thread.
        threads: threads of the generator.
        depth: most requests open on a connection; what arrives above is lost at once.
        key_bytes: length of a key.
        value_bytes: length of a value.
        records: how many keys there are.
        update_ratio: share of sets among the requests, 0 to 1.
        timeout_s: a request without an answer for so long is lost.
        seed: of the arrivals and the keys.
        spin_us: so long before a request is due the generator stops sleeping and polls.
        realtime: run at real-time priority where that is permitted.
        cpu: the core to run on, None for any.
    """

    server: str
    port: int = 11211
    targets: tuple[int, ...] = ()
    interval_s: float = 10.0
    duration_s: float | None = None
    connections: int = 4
    threads: int = 1
    depth: int = 1 << 16
    key_bytes: int = 30
    value_bytes: int = 200
    records: int = 10_000
    update_ratio: float = 0.0
    timeout_s: float = 1.0
    seed: int = 1
    spin_us: float = 0.0
    realtime: bool = False
    cpu: int | None = None

    def argv(self, *, loadonly: bool = False) -> list[str]:
        """The generator's command line.

        Raises:
            UserError: it cannot be built on this machine.
        """
        try:
            program = binaries() / "loadgen"
        except BuildError as error:
            raise UserError(str(error)) from error
        options = {
            "-i": self.interval_s, "-t": self.duration_s, "-c": self.connections, "-T": self.threads, "-d": self.depth,
            "-k": self.key_bytes, "-v": self.value_bytes, "-r": self.records, "-u": self.update_ratio,
            "-w": self.timeout_s, "-s": self.seed, "-x": self.spin_us, "-C": self.cpu,
        }  # fmt: skip
        words = [str(program), *(["-L"] if loadonly else []), *(["-p"] if self.realtime else [])]
        for option, value in options.items():
            words += [] if value is None else [option, str(value)]
        return [*words, self.server, str(self.port), *([] if loadonly else map(str, self.targets))]


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened to the requests that were due in one interval.

    `latency_us` has avg, std, min, p5 ... p9999 from the intended time of each request; one that was lost stands in it
    with the timeout. `lag_us` has p50, p95 and max of the time from intended to sent: the generator's own doing.
    """

    interval: int
    seconds: float
    target_qps: int
    sent: int
    answered: int
    lost: int
    errors: int
    misses: int
    latency_us: Mapping[str, float]
    lag_us: Mapping[str, float]
    late_over_1ms: int

    @property
    def qps(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Totals:
    """The whole run, told at its end. `cpu_s` is the generator's own CPU time."""

    end_ms: int
    rx_bytes: int
    tx_bytes: int
    disconnects: int
    cpu_s: float


class FailedError(Exception):
    """The load came to a bad end after it had begun; one line."""


class Generator:
    """A running generator: a context manager, to be iterated over once.

    Raises (on entering):
        UserError: nobody listens there, or the machine cannot do what was asked.
        FailedError: it ended before it began.
    """

    def __init__(self, load: Load) -> None:
        self.load = load
        self.start_s = 0.0
        self.priority = ""
        self.totals: Totals | None = None

    def __enter__(self) -> Self:
        """Start; returns when it has connected and its clock begins."""
        self._process = _spawn(self.load.argv())
        assert self._process.stdout is not None  # noqa: S101  # made with PIPE
        self._lines = self._process.stdout
        first = self._lines.readline()
        if not first:
            raise _reason(self.load, self._process)
        head = json.loads(first)
        self.start_s, self.priority = head["start_ms"] / 1e3, head["priority"]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the process if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def __iter__(self) -> Iterator[Interval]:
        """Each interval as it ends.

        Raises:
            FailedError: the generator died.
        """
        for line in self._lines:
            values: dict[str, Any] = json.loads(line)
            if "end_ms" in values:
                self.totals = Totals(**values)
            else:
                yield Interval(**values)
        if self.totals is None:
            raise _reason(self.load, self._process)

    @property
    def pid(self) -> int:
        """The process that makes the load."""
        return self._process.pid

    def end(self, signal_number: int = signal.SIGTERM) -> None:
        """Ask it to end: it still tells the interval it is in, and its totals."""
        self._process.send_signal(signal_number)


def load_records(load: Load) -> None:
    """Store every record and read it back.

    Raises:
        UserError: nobody listens there, or memcached has not kept them all.
        FailedError: the server went wrong.
    """
    process = _spawn(load.argv(loadonly=True))
    text, _ = _communicate(process)
    if not text:
        raise _reason(load, process)
    told = json.loads(text)
    if told["found"] < told["records"]:
        raise UserError(
            f"memcached kept {told['found']} of {told['records']} records",
            "give it more memory (-m), or take fewer --records or a smaller --valuesize",
        )


def capacity_qps(server: str, port: int, seconds: float = 1.0) -> float:
    """The answers a second when far more is offered than can be answered, one request open on each connection.

    What generator and memcached can do together on this machine at this moment, without the gain of answering many
    requests at once, on which a load below saturation cannot count.

    Raises:
        UserError: nobody listens there.
        FailedError: the load came to a bad end.
    """
    load = Load(server, port, (300_000,), seconds, depth=1, timeout_s=5.0)
    with Generator(load) as generator:
        return sum(interval.answered for interval in generator) / seconds


def _spawn(argv: list[str]) -> subprocess.Popen[str]:
    try:
        # A group of its own: Ctrl-C reaches it only through us, once.
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
        )
    except OSError as error:
        raise UserError(f"cannot start {argv[0]}: {error.strerror}") from error


def _communicate(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate()
    except BaseException:  # whatever interrupts us must not leave it behind
        process.kill()
        process.communicate()
        raise


def _reason(load: Load, process: subprocess.Popen[str]) -> UserError | FailedError:
    """Why it ended: exit code 2 is the user's to cure."""
    _, text = process.communicate()
    what = (text.strip().splitlines() or [f"exit code {process.returncode}"])[-1].removeprefix("loadgen: ")
    where = f"{load.server}:{load.port}" if ":" not in load.server else f"[{load.server}]:{load.port}"
    if process.returncode != 2:
        return FailedError(f"load on {where}: {what}")
    if what.startswith(("-", "cannot run on")):  # an option, no address
        return UserError(what)
    return UserError(f"{where}: {what}", "is memcached running there? name another with --server IP:PORT")
