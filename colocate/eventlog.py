"""The graded event format: written by `SchedulerLogger`, read by `parse`, checked by `violations`.

One event a line, `<timestamp> <event> <job> [<arguments>]`. Writing is strict, and so is `violations`; reading takes
whatever authors have made of the format and names each deviation. All three share one `LifeCycle`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from io import FileIO
from itertools import count
from pathlib import Path
from urllib.parse import quote_plus, unquote_plus

from colocate.cores import CoreSet, format_list, nonempty, parse_ranges
from colocate.errors import UserError

SCHEDULER = "scheduler"
SERVICE = "memcached"
SIMULATED = "simulated on "  # so begins the remark in the log of a simulated run that names its calibration
KINDS = frozenset({"start", "end", "update_cores", "pause", "unpause", "custom"})

_NAME = r"[a-z][a-z0-9_-]*"
_CORES = r"\[(?:0|[1-9][0-9]{0,4})(?:,(?:0|[1-9][0-9]{0,4}))*\]"
_WORD = r"(?:[A-Za-z0-9_.~+-]|%[0-9A-F]{2})+"
_STRICT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6} "
    rf"(?:start scheduler|start (?!scheduler ){_NAME} {_CORES} [1-9][0-9]{{0,5}}|update_cores {_NAME} {_CORES}"
    rf"|(?:end|pause|unpause) {_NAME}|custom {_NAME} {_WORD})"
)
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.(\d{1,9}))?)(Z|[+-]\d\d:?\d\d)?", re.ASCII)
_PREFIX = re.compile(r"(?:parsec|splash2x?)[-_](?=.)", re.IGNORECASE)
_LINE = re.compile(r"(\S+)(\s+)(\S+)(\s+)(\S+)(?:(\s+)(.*))?", re.DOTALL)
_ARGUMENTS = re.compile(r"""(["']?\[[^\]]*\]["']?|["']?[0-9][0-9,-]*["']?)(?:\s+(\S+))?(?:\s+(.*))?""", re.DOTALL)


class IllegalEvent(ValueError):  # noqa: N818 -- the format's own word for it
    """An event that the life cycle forbids: an error of the program that logs, not of its user."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line. `time` is local and has no zone; `threads` is None but in a start; `comment` is not quoted."""

    time: datetime
    event: str
    job: str
    cores: CoreSet = frozenset()
    threads: int | None = None
    comment: str = ""
    line_number: int = field(default=0, compare=False)

    @property
    def batch(self) -> bool:
        """Whether it is about a batch job."""
        return self.job not in {SCHEDULER, SERVICE}

    def __str__(self) -> str:
        line = f"{self.time.isoformat(timespec='microseconds')} {self.event} {self.job}"
        if self.cores:
            line += f" {format_list(self.cores)}"
        if self.threads is not None:
            line += f" {self.threads}"
        if self.comment:
            line += f" {quote_plus(self.comment, errors='backslashreplace')}"
        return line


@dataclass(frozen=True, slots=True)
class Deviation:
    """What differs from the format: the line's number (from 1), the deviation's name, and the line's beginning."""

    line_number: int
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Log:
    """The events in the order of their lines, and what differs from the format."""

    events: tuple[Event, ...] = ()
    deviations: tuple[Deviation, ...] = ()


class LifeCycle:
    """Which events may follow which."""

    def __init__(self) -> None:
        self._state: dict[str, str] = {}
        self._cores: dict[str, CoreSet] = {}

    def fault(self, event: Event) -> str:
        """The name of what is wrong with this event as the next one; empty if nothing is."""
        kind, job, state = event.event, event.job, self._state.get(event.job)
        scheduler = self._state.get(SCHEDULER)
        if kind == "start" and job == SCHEDULER:
            return "second-run" if scheduler else ""
        if scheduler != "running":
            return "after-end-scheduler" if scheduler else "before-start-scheduler"
        if kind == "custom":
            return ""
        if job == SCHEDULER:
            return "" if kind == "end" else "not-for-scheduler"
        if job == SERVICE and kind not in {"start", "update_cores"}:
            return "not-for-memcached"
        if kind == "start":
            service = self._state.get(SERVICE)
            if state == "running" or (event.batch and state):
                return "start-twice"
            if event.batch:
                return "" if service in {"running", "missing"} else "no-start-memcached"
            return "memcached-late" if service == "missing" else ""
        if state is None:
            return "before-start"
        if state == "ended":
            return "after-end"
        if kind == "update_cores":
            return "cores-unchanged" if event.cores and event.cores == self._cores.get(job) else ""
        if kind == "unpause":
            return "" if state == "paused" else "unpause-while-running"
        return f"{kind}-while-paused" if state == "paused" else ""

    def take(self, event: Event) -> None:
        """Let it happen; after a fault, go on from the likeliest state."""
        kind, job, state = event.event, event.job, self._state.get(event.job)
        if kind == "start" and job == SCHEDULER:
            self._state, self._cores = {}, {}
        self._state.setdefault(SCHEDULER, "running")
        if kind == "end":
            self._state[job] = "ended"
        elif kind == "start":
            self._state[job] = "running"
            if event.batch and self._state.get(SERVICE) != "running":
                self._state[SERVICE] = "missing"
        elif kind == "pause" and state == "running":
            self._state[job] = "paused"
        elif kind == "unpause" and state == "paused":
            self._state[job] = "running"
        if event.cores:
            self._cores[job] = event.cores
            if job == SERVICE:
                self._state.setdefault(SERVICE, "unannounced")


class SchedulerLogger:
    """Writes the log of one run; its first line at once.

    The file is `logYYYYMMDD_HHMMSS.txt`, with `_2`, `_3`, ... where that exists: nothing is overwritten. A timestamp is
    the wall clock at the start plus the monotonic time since, so that no step of the wall clock shows. A line that
    cannot be written (a full disk) does not stop the run: it is kept and tried again before the next one.

    Every method raises `IllegalEvent`, and writes nothing, for what the order of events or the format forbids. A job is
    a name or an enumeration's member whose value is one. A retry is told by a custom event, not by a second start.

    Args:
        directory: made if it does not exist.
        clock: the local wall clock, read once.
        now_s: monotonic seconds, the run's own clock.

    Attributes:
        path: where the log lies.

    Raises:
        UserError: no file can be made there.
    """

    def __init__(
        self,
        directory: Path = Path("logs"),
        clock: Callable[[], datetime] = datetime.now,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now_s = now_s
        self._begin_s = now_s()
        self._begin = self._last = clock().replace(tzinfo=None)
        self._cycle = LifeCycle()
        self._pending = b""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = _create(directory, self._begin.strftime("log%Y%m%d_%H%M%S"))
        except OSError as error:
            raise UserError(f"{directory}: {error.strerror}", "give one that can be written") from error
        self.path = Path(self._file.name)
        self._write("start", SCHEDULER)
        if self._pending:
            self._file.close()
            self.path.unlink()
            raise UserError(f"{directory}: not a line can be written there", "make room, or give another directory")

    @property
    def lost_lines(self) -> int:
        """How many lines are not on disk because they could not be written; 0 once a later attempt succeeds."""
        return self._pending.count(b"\n")

    @property
    def ended(self) -> bool:
        """Whether it has its last line."""
        return self._file.closed

    def now(self) -> datetime:
        """The time that a line written now would bear."""
        return max(self._last, self._begin + timedelta(seconds=self._now_s() - self._begin_s))

    def job_start(self, job: object, initial_cores: Iterable[int], initial_threads: int) -> None:
        """Memcached or a batch job has started on these cores with so many threads."""
        if initial_threads < 1:
            raise IllegalEvent(f"{_name(job)} with {initial_threads} threads")
        self._write("start", job, _core_set(initial_cores), initial_threads)

    def job_end(self, job: object) -> None:
        """A batch job has finished with exit code 0."""
        self._write("end", job)

    def update_cores(self, job: object, cores: Iterable[int]) -> None:
        """Memcached or a job has other cores now; the same ones again are no event and leave no line."""
        self._write("update_cores", job, _core_set(cores))

    def job_pause(self, job: object) -> None:
        """A running job has been paused."""
        self._write("pause", job)

    def job_unpause(self, job: object) -> None:
        """A paused job goes on."""
        self._write("unpause", job)

    def custom_event(self, job: object, comment: str) -> None:
        """Anything else worth knowing, about a job, memcached or the scheduler."""
        if not comment.strip():
            raise IllegalEvent("a custom event that says nothing")
        self._write("custom", job, comment=comment)

    def end(self) -> None:
        """Write the last line, bring the file to the disk and close it."""
        self._write("end", SCHEDULER)
        with suppress(OSError):  # nothing is left to try; `lost_lines` tells
            os.fsync(self._file.fileno())
        self._file.close()

    def _write(
        self, kind: str, job: object, cores: CoreSet = frozenset(), threads: int | None = None, comment: str = ""
    ) -> None:
        now = self.now()
        event = Event(now, kind, _name(job), cores, threads, comment)
        if fault := self._cycle.fault(event):
            if fault == "cores-unchanged":
                return
            raise IllegalEvent(f"{kind} {event.job}: {fault}")
        self._cycle.take(event)
        self._last = now
        self._pending += f"{event}\n".encode()
        with suppress(OSError):  # tried again with the next line
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) or 0 :]


def parse(text: str) -> Log:
    """Read any text; what is no event, or not quite one, is a deviation, and nothing raises (CR LF is told once)."""
    lines, deviations = text.split("\n"), list[Deviation]()
    if crlf := next((number for number, line in enumerate(lines, 1) if line.endswith("\r")), 0):
        deviations.append(Deviation(crlf, "crlf", ""))
    if lines[-1]:
        deviations.append(Deviation(len(lines), "no-final-newline", excerpt(lines[-1])))
    else:
        lines.pop()
    events, cycle = list[Event](), LifeCycle()
    for number, raw in enumerate(lines, 1):
        line = raw.removesuffix("\r")
        event, codes = _read_line(line, number)
        if event is not None:
            if events and event.time < events[-1].time:
                codes.append("time-goes-back")
            if fault := cycle.fault(event):
                codes.append(fault)
            cycle.take(event)
            events.append(event)
        deviations += [Deviation(number, code, excerpt(line)) for code in codes]
    return Log(tuple(events), tuple(sorted(deviations, key=lambda deviation: deviation.line_number)))


def check(log: Log) -> list[str]:
    """Why the run does not count, one line each; empty if it does: every batch job both starts and ends."""
    started = {e.job: e.line_number for e in log.events if e.batch and e.event == "start"}
    ended = {e.job: e.line_number for e in log.events if e.batch and e.event == "end"}
    reasons = [f"line {line}: {job} starts and never ends" for job, line in started.items() if job not in ended]
    reasons += [f"line {line}: {job} ends and never starts" for job, line in ended.items() if job not in started]
    return reasons if started or ended else ["no batch job"]


def violations(text: str) -> list[str]:
    """Every rule of the format that a run's log breaks, one line each, with its line number; nothing is forgiven."""
    lines = text.split("\n")
    found = [] if not lines.pop() else [f"line {len(lines) + 1}: does not end with a line feed"]
    events, cycle = list[Event](), LifeCycle()
    for number, line in enumerate(lines, 1):
        event, codes = _read_line(line, number) if _STRICT.fullmatch(line) else (None, [])
        if event is None or codes:
            found.append(f"line {number}: not in the grammar: {excerpt(line)}")
            continue
        if events and event.time < events[-1].time:
            found.append(f"line {number}: time-goes-back")
        if fault := cycle.fault(event):
            found.append(f"line {number}: {event.event} {event.job}: {fault}")
        cycle.take(event)
        events.append(event)
    if not events or (events[0].event, events[0].job) != ("start", SCHEDULER):
        found.append("the first line is not `start scheduler`")
    if not events or (events[-1].event, events[-1].job) != ("end", SCHEDULER):
        found.append("the last line is not `end scheduler`")
    return found


def excerpt(text: str) -> str:
    """The beginning of what somebody else has written, fit to be shown in a line on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:80])


def _create(directory: Path, stem: str) -> FileIO:
    for number in count(1):
        with suppress(FileExistsError):
            return FileIO(directory / (f"{stem}.txt" if number == 1 else f"{stem}_{number}.txt"), "xb")
    raise AssertionError("count() does not end")


def _name(job: object) -> str:
    name = getattr(job, "value", job)
    if not isinstance(name, str) or not re.fullmatch(_NAME, name):
        raise IllegalEvent(f"{name!r} is no job name")
    return name


def _core_set(cores: Iterable[int]) -> CoreSet:
    try:
        return frozenset(nonempty(cores))
    except ValueError as error:
        raise IllegalEvent(str(error)) from error


def _read_line(line: str, number: int) -> tuple[Event | None, list[str]]:
    """The event on a line, if there is one, and the deviations in its form."""
    if not line.strip():
        return None, ["blank-line"]
    match = _LINE.fullmatch(line.strip())
    moment, codes = _read_time(match[1]) if match else (None, [])
    if match is None or moment is None:
        return None, ["not-an-event"]
    kind, job, rest = match[3], match[5], (match[7] or "")
    if line != line.strip() or {match[2], match[4], match[6] or " "} != {" "}:
        codes.append("blanks")
    if kind == "updated_cores":
        kind = "update_cores"
        codes.append("event-alias")
    if kind not in KINDS:
        return None, [*codes, "unknown-event"]
    if prefix := _PREFIX.match(job):
        job = job[prefix.end() :]
        codes.append("job-prefix")
    if not re.fullmatch(_NAME, job):
        job = excerpt(job.lower())
        codes.append("job-name")
    event = Event(moment, kind, job, line_number=number)
    if kind == "custom":
        if re.fullmatch(_WORD, rest):
            rest = unquote_plus(rest)
        elif rest:
            codes.append("custom-unquoted")
        return replace(event, comment=rest), codes if rest.strip() else [*codes, "custom-empty"]
    if kind == "update_cores" or (kind == "start" and job != SCHEDULER):
        return _read_arguments(event, rest, codes), codes
    return event, [*codes, "extra-arguments"] if rest else codes


def _read_time(word: str) -> tuple[datetime | None, list[str]]:
    match = _TIME.fullmatch(word)
    if match is None:
        return None, []
    try:
        moment = datetime.fromisoformat(match[1])
    except ValueError:
        return None, []
    fraction = [] if len(match[2] or "") == 6 else ["timestamp-fraction"]
    return moment, fraction + (["timestamp-zone"] if match[3] else [])


def _read_arguments(event: Event, rest: str, codes: list[str]) -> Event:
    match = _ARGUMENTS.fullmatch(rest)
    if match is None:
        codes.append("core-list-bad" if rest else "missing-arguments")
        return event
    written, number, more = match.groups()
    try:
        cores, wrong = _read_cores(written)
    except (UserError, ValueError):  # no list, or an empty one
        codes.append("core-list-bad")
        return event
    codes += wrong
    if event.event == "update_cores":
        codes += ["extra-arguments"] if number else []
        return replace(event, cores=cores)
    threads = int(number) if re.fullmatch(r"[1-9][0-9]{0,5}", number or "") else None
    codes += ["missing-arguments"] if threads is None else []
    codes += ["extra-arguments"] if more else []
    return replace(event, cores=cores, threads=threads)


@lru_cache(maxsize=64)  # a log has few sets, again and again; and a short line can name thousands of cores
def _read_cores(written: str) -> tuple[CoreSet, tuple[str, ...]]:
    ids = re.sub(r"[^0-9,-]", "", written)
    cores = parse_ranges(ids)
    if written == format_list(cores):
        return cores, ()
    order = [int(core) for core in ids.split(",") if core.isdigit()]
    unsorted = ("core-list-order",) if order != sorted(order) else ()
    canonical = len(order) == len(cores) and re.fullmatch(_CORES, written)
    return cores, unsorted if canonical else (*unsorted, "core-list-form")
