"""The runs of a log folder: found, told in one line each, and never more than that folder's."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from colocate.eventlog import SCHEDULER, parse
from colocate.metrics import metrics_path
from colocate.report.summary import summary_path

State = Literal["in progress", "finished", "broken"]
RECENT_S = 10.0  # a run writes five times a second; one that is silent for so long has been killed
_FIRST_BYTES = 64 * 1024
_LAST_BYTES = 256  # `end scheduler` with its time is 41
_Stamp = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One run as the list of runs shows it.

    Attributes:
        name: its event log's, without the ending.
        state: `broken` is a log without an end to which nothing is added any more.
        begin: on the log's clock, ISO 8601; None where the file is no event log.
        ratio: SLO violations over intervals.
    """

    name: str
    path: Path
    state: State
    begin: str | None = None
    policy: str | None = None
    source: str | None = None
    makespan_s: float | None = None
    ratio: float | None = None

    def document(self) -> dict[str, object]:
        """For the page."""
        names = ("name", "state", "begin", "policy", "source", "makespan_s", "ratio")
        return {name: getattr(self, name) for name in names}


class Runs:
    """The runs of a folder, newest first; what has not changed is not read again.

    Args:
        directory: where event logs lie; it may come into being later.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._known: dict[Path, tuple[_Stamp, Run]] = {}

    def list(self, live: Path | None = None) -> list[Run]:
        """All of them; `live` is the log of a run that is known to be in progress."""
        found: dict[Path, tuple[_Stamp, Run]] = {}
        for path in self._logs():
            stamp = _stamp(path)
            before = self._known.get(path)
            found[path] = before if before and before[0] == stamp else (stamp, _read(path))
        self._known = found
        runs = [replace(run, state=state_of(run.path, live)) for _, run in found.values()]
        return sorted(runs, key=lambda run: (run.begin or "", run.name), reverse=True)

    def find(self, name: str, live: Path | None = None) -> Run | None:
        """The run of that name, if the folder has one."""
        return next((run for run in self.list(live) if run.name == name), None)

    def _logs(self) -> Iterator[Path]:
        with suppress(OSError):  # not there yet
            for path in sorted(self.directory.glob("log*.txt")):
                if not path.name.endswith("-mcperf.txt") and not path.is_symlink() and path.is_file():
                    yield path


def _stamp(path: Path) -> _Stamp:
    return tuple(_size_and_time(each) for each in (path, metrics_path(path), summary_path(path)))


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def state_of(path: Path, live: Path | None = None) -> State:
    """Whether a run is over, by its log's last line and by when it was last written to."""
    if _ended(path):
        return "finished"
    return "in progress" if path.absolute() == live or silence_s(path) < RECENT_S else "broken"


def silence_s(path: Path) -> float:
    """How long ago something was last added to the log or to the metrics of a run."""
    return min(time.time() - _size_and_time(each)[1] / 1e9 for each in (path, metrics_path(path)))


def read_summary(path: Path) -> Mapping[str, object]:
    """The summary of the run with this event log; empty while there is none."""
    try:
        told = json.loads(summary_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _read(path: Path) -> Run:
    first = next(iter(parse(_piece(path, 0, _FIRST_BYTES)).events), None)
    told, head = read_summary(path), _head(path)
    settings = head.get("settings")
    asked = settings.get("policy") if isinstance(settings, Mapping) else None
    policy, source = told.get("policy") or asked, told.get("source") or head.get("source")
    return Run(
        path.stem,
        path,
        "broken",
        first.time.isoformat(timespec="seconds") if first else None,
        str(policy) if policy else None,
        str(source) if source else None,
        _number(told.get("makespan_s")),
        _number(told.get("slo_violation_ratio")),
    )


def _ended(path: Path) -> bool:
    last = parse(_piece(path, -_LAST_BYTES, _LAST_BYTES)).events[-1:]
    return [(event.event, event.job) for event in last] == [("end", SCHEDULER)]


def _piece(path: Path, offset: int, length: int) -> str:
    """So many bytes of a file, from its end where `offset` is negative; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size + offset) if offset < 0 else offset)
            return file.read(length).decode(errors="replace")
    except OSError:
        return ""


def _head(path: Path) -> Mapping[str, object]:
    """The first record of the metrics; empty where there is none."""
    try:
        head = json.loads(_piece(metrics_path(path), 0, _FIRST_BYTES).partition("\n")[0])
    except (ValueError, RecursionError):
        return {}
    return head if isinstance(head, dict) else {}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
