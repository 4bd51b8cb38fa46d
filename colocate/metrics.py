"""The run's metrics: one record a tick (cause, action, effect), as JSON lines beside the event log."""

from __future__ import annotations

import json
import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any

from colocate import __version__
from colocate.view import Slo

_FLUSH_S = 1.0
_KEEP_RECORDS = 20_000  # a quarter of an hour of ticks that a stuck disk may hold up
_CLOSE_S = 2.0
_LONGEST_S = 31 * 86400.0  # no run is longer; a time beyond is a broken file's
_MOST = 1e15  # what is larger is no figure of a run


def metrics_path(log_path: Path) -> Path:
    """Where the metrics of the run with this event log lie: `log20260412_111346.jsonl`."""
    return log_path.with_suffix(".jsonl")


def first_record(
    source: str, settings: Mapping[str, object], cores: Iterable[int], slo: Slo, **facts: object
) -> dict[str, object]:
    """What a metrics file begins with: what the run was asked to do, what it promises, and on which cores.

    Args:
        source: `live` or `simulated`.
        settings: as the user gave them, by name.
        cores: those that it manages.
        slo: the promise.
        facts: what else is known before the first tick.
    """
    return {
        "t": 0.0,
        "version": __version__,
        "source": source,
        "cores": sorted(cores),
        "slo_ms": slo.latency_ms,
        "percentile": slo.percentile,
        "settings": settings,
        **facts,
    }


def finite(value: object) -> object:
    """The same, as JSON can hold it: None for a number that is not finite, text for what JSON does not know."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [finite(item) for item in value]
    return str(value)


class MetricsWriter:
    """Writes records from a thread, once a second, so that the loop never waits for the disk.

    A killed run loses its last second. What cannot be written is dropped and counted; it never stops the run.

    Args:
        path: the file, appended to.

    Attributes:
        path: where the records lie.
        lost: how many could not be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        self._encode = json.JSONEncoder(allow_nan=False, separators=(",", ":"), check_circular=False).encode
        self._lines: deque[str] = deque()  # appended to and taken from by different threads
        self._torn = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, object]) -> None:
        """Take a record; what it holds may change afterwards."""
        try:
            line = self._encode(record)
        except (TypeError, ValueError):  # a number that is not finite, a set
            line = self._encode(finite(record))
        if len(self._lines) < _KEEP_RECORDS:
            self._lines.append(line)
        else:
            self.lost += 1

    def close(self) -> None:
        """Write what is left, for two seconds at most; idempotent."""
        self._closing.set()
        self._thread.join(_CLOSE_S)

    def _work(self) -> None:
        while not self._closing.wait(_FLUSH_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        if not lines:
            return
        data = ("\n" * self._torn + "".join(f"{line}\n" for line in lines)).encode()
        try:
            with FileIO(self.path, "ab") as file:
                while data:
                    data = data[file.write(data) or 0 :]
            self._torn = False
        except OSError:
            self._torn = True  # so that the next record begins on a line of its own
            self.lost += data.lstrip(b"\n").count(b"\n")


def read(path: Path) -> Iterator[dict[str, object]]:
    """The records; a torn line, as a killed run or a full disk leaves it, is skipped.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from decode(file)


def decode(lines: Iterable[str]) -> Iterator[dict[str, object]]:
    """The records on these lines, without the torn ones."""
    return (record for line in lines if (record := _decode(line)) is not None)


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a metrics file holds: the `first_record`, when `t` was 0 on the log's clock, and the ticks after it."""

    head: Mapping[str, Any] = field(default_factory=dict)
    begin: datetime | None = None
    ticks: tuple[Mapping[str, Any], ...] = ()


def read_run(path: Path) -> Metrics:
    """The records of one run, sorted out.

    Raises:
        OSError: the file cannot be read.
    """
    return sort_out(read(path))


def sort_out(records: Iterable[Mapping[str, Any]]) -> Metrics:
    """Head, begin and ticks of the records of one run.

    What is none of them is left out, and so is a field of a tick that has another shape than the loop gives it, as in a
    damaged file: whoever reads a tick may rely on what stands in it.
    """
    head: Mapping[str, Any] = {}
    begin, ticks = None, []
    for record in records:
        if isinstance(record.get("moves"), list):
            tick = {key: value for key, value in record.items() if _belongs(key, value)}
            t = tick.get("t")
            if "moves" in tick and t is not None and 0 <= t < _LONGEST_S:
                ticks.append(tick)
        elif "settings" in record:
            head = record
        elif isinstance(told := record.get("begin"), str):
            with suppress(ValueError):
                begin = datetime.fromisoformat(told).replace(tzinfo=None)
    return Metrics(head, begin, tuple(ticks))


def fits(value: object, shape: object) -> bool:
    """Whether a value that was read from JSON has a shape.

    Args:
        value: the value.
        shape: a type (`float` is any finite number), `[shape]` for a list of such, `(shape, ...)` for a list of just
            these, `{"": shape}` for an object whose values are such.
    """
    if shape is float or shape is int:
        right = isinstance(value, int | float if shape is float else int) and not isinstance(value, bool)
        return right and abs(value) < _MOST  # type: ignore[arg-type]  # a number; neither of NaN and infinity is less
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    if isinstance(shape, tuple):
        return isinstance(value, list) and len(value) == len(shape) and all(map(fits, value, shape))
    if isinstance(shape, dict):
        return isinstance(value, Mapping) and all(fits(item, shape[""]) for item in value.values())
    return isinstance(shape, type) and isinstance(value, shape)


_TICK = {
    "t": float, "policy": str, "busy": {"": float}, "cores": [int], "cpu_cores": float, "wait_us": float, "qps": float,
    "latency_ms": float, "latency_samples": int, "latency_age_s": float, "jobs": {"": (str, [int])},
    "plan": (int, {"": int}), "reason": str, "share": [str], "rules": [(str, str)], "moves": [(str, str, [int])],
    "work_ms": float, "late_ms": float,
}  # fmt: skip


def _belongs(key: str, value: object) -> bool:
    """Whether a tick may have this there; a figure that was not known is null."""
    shape = _TICK.get(key, object)
    return fits(value, shape) or (value is None and shape in (int, float))


def _decode(line: str) -> dict[str, object] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
