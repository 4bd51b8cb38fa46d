"""The graded event format: `SchedulerLogger` writes it strictly, `parse` reads it leniently, `violations` judges it.

    <timestamp> <event> <job> [<arguments>]

One event a line. Events are `start`, `end`, `update_cores`, `pause`, `unpause` and `custom`; jobs are `scheduler`,
`memcached` and the batch jobs.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote_plus, unquote_plus

from colocate.cores import CoreSet, format_list

SCHEDULER = "scheduler"
SERVICE = "memcached"
EVENTS = frozenset({"start", "end", "update_cores", "pause", "unpause", "custom"})

_NAME = r"[a-z][a-z0-9_-]*"
_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}"
_CORES = r"\[\d+(?:,\d+)*\]"
_LINE = re.compile(
    rf"(?P<time>{_TIME}) (?:"
    rf"(?:start|end) {SCHEDULER}"
    rf"|start (?!{SCHEDULER} )(?P<started>{_NAME}) (?P<first>{_CORES}) (?P<threads>[1-9]\d*)"
    rf"|update_cores (?P<moved>{_NAME}) (?P<cores>{_CORES})"
    rf"|(?P<verb>pause|unpause|end) (?P<job>{_NAME})"
    rf"|custom (?P<about>{_NAME}) (?P<comment>[A-Za-z0-9_.\-~%+]+))"
)


class IllegalEvent(ValueError):  # noqa: N818 -- it names what it is
    """An event that the job's life does not allow; a mistake of the program, never of its user."""


@dataclass(slots=True)
class _Life:
    """What has been written of one job."""

    cores: CoreSet
    paused: bool = False
    ended: bool = False


class _Legality:
    """The life-cycle rules, event by event; the writer and the judge both ask it."""

    def __init__(self) -> None:
        self.jobs: dict[str, _Life] = {}
        self.over = False

    def start(self, job: str, cores: CoreSet) -> None:
        if job in self.jobs:
            raise IllegalEvent(f"{job} starts twice")
        if job != SERVICE and SERVICE not in self.jobs:
            raise IllegalEvent(f"{job} starts before {SERVICE}")
        self.jobs[job] = _Life(cores)

    def end(self, job: str) -> None:
        life = self._alive(job)
        if job == SERVICE:
            raise IllegalEvent(f"{SERVICE} does not end")
        if life.paused:
            raise IllegalEvent(f"{job} ends while paused")
        life.ended = True

    def update(self, job: str, cores: CoreSet) -> bool:
        """Whether the set has changed."""
        life = self._alive(job)
        changed, life.cores = cores != life.cores, cores
        return changed

    def pause(self, job: str, *, paused: bool) -> None:
        life = self._alive(job)
        if job == SERVICE:
            raise IllegalEvent(f"{SERVICE} is never paused")
        if life.paused == paused:
            raise IllegalEvent(f"{job} is {'paused twice' if paused else 'not paused'}")
        life.paused = paused

    def _alive(self, job: str) -> _Life:
        life = self.jobs.get(job)
        if life is None:
            raise IllegalEvent(f"{job} has not started")
        if life.ended:
            raise IllegalEvent(f"{job} has ended")
        return life


class SchedulerLogger:
    """Writes one run's event log; `start scheduler` at once, `end scheduler` by `end()`.

    A timestamp is the wall clock at the start plus the monotonic time since then, so that none goes back even if the
    wall clock is set. Each line reaches the file as it is written. Where it cannot be written (a full disk), lines
    wait in memory and are tried again with the next one; control goes on.

    Args:
        directory: where the file is made, `logYYYYMMDD_HHMMSS.txt`, with a suffix where there is one already.
        now_s: a monotonic clock.
        wall: the local time at the start.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(
        self, directory: Path, now_s: Callable[[], float] = time.monotonic, wall: datetime | None = None
    ) -> None:
        self._now_s = now_s
        self._start = (wall or datetime.now()).replace(tzinfo=None)
        self._start_s = now_s()
        self._last = self._start
        self._waiting = b""
        self._legality = _Legality()
        self.path, self._fd = _create(directory, f"log{self._start:%Y%m%d_%H%M%S}")
        self._write("start", SCHEDULER)

    @property
    def lost_lines(self) -> int:
        """Lines that wait for a disk that takes them."""
        return self._waiting.count(b"\n")

    def job_start(self, job: object, initial_cores: Iterable[int], initial_threads: int) -> None:
        """A job, or memcached before any job, has started.

        Raises:
            IllegalEvent: it has before, or a job comes before memcached, or there are no cores or threads.
        """
        name, cores = self._check(job), _cores(initial_cores)
        if initial_threads < 1:
            raise IllegalEvent(f"{name} with {initial_threads} threads")
        self._legality.start(name, cores)
        self._write("start", name, format_list(cores), str(initial_threads))

    def job_end(self, job: object) -> None:
        """A job has finished with exit code 0.

        Raises:
            IllegalEvent: it has not started, has ended before, or is paused.
        """
        name = self._check(job)
        self._legality.end(name)
        self._write("end", name)

    def update_cores(self, job: object, cores: Iterable[int]) -> None:
        """A job, or memcached, has other cores; an unchanged set is not written.

        Raises:
            IllegalEvent: it has not started or has ended, or there are no cores.
        """
        name, wanted = self._check(job), _cores(cores)
        if self._legality.update(name, wanted):
            self._write("update_cores", name, format_list(wanted))

    def job_pause(self, job: object) -> None:
        """A job has been paused.

        Raises:
            IllegalEvent: it does not run.
        """
        name = self._check(job)
        self._legality.pause(name, paused=True)
        self._write("pause", name)

    def job_unpause(self, job: object) -> None:
        """A job goes on.

        Raises:
            IllegalEvent: it is not paused.
        """
        name = self._check(job)
        self._legality.pause(name, paused=False)
        self._write("unpause", name)

    def custom_event(self, job: object, comment: str) -> None:
        """Anything else worth knowing about a job, memcached or the scheduler.

        Raises:
            IllegalEvent: the comment is empty.
        """
        name = self._check(job)
        if not comment:
            raise IllegalEvent("an empty comment")
        self._write("custom", name, quote_plus(comment, errors="replace"))

    def end(self) -> None:
        """The run is over: the last line, on the disk for good; idempotent."""
        if self._legality.over:
            return
        self._write("end", SCHEDULER)
        self._legality.over = True
        with suppress(OSError):  # what is not on the disk is counted in lost_lines
            os.fsync(self._fd)
        os.close(self._fd)

    def _check(self, job: object) -> str:
        name = str(getattr(job, "value", job))
        if self._legality.over:
            raise IllegalEvent("the run is over")
        if not re.fullmatch(_NAME, name):
            raise IllegalEvent(f"{name!r} is no job name")
        return name

    def _write(self, *words: str) -> None:
        self._last = max(self._last, self._start + timedelta(seconds=self._now_s() - self._start_s))
        line = f"{self._last.isoformat(timespec='microseconds')} {' '.join(words)}\n"
        self._waiting += line.encode()
        with suppress(OSError):  # a full disk: tried again with the next line
            while self._waiting:
                self._waiting = self._waiting[os.write(self._fd, self._waiting) :]


def _create(directory: Path, stem: str) -> tuple[Path, int]:
    directory.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = directory / (f"{stem}.txt" if number == 1 else f"{stem}_{number}.txt")
        try:
            return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            number += 1


def _cores(cores: Iterable[int]) -> CoreSet:
    wanted = frozenset(cores)
    if not wanted:
        raise IllegalEvent("an empty set of cores")
    return wanted


def violations(text: str) -> list[str]:
    """Every rule of the format that a log breaks, with its line; empty for a log that `SchedulerLogger` wrote."""
    wrong: list[str] = []
    legality = _Legality()
    lines = text.split("\n")
    if lines.pop() != "":
        wrong.append("the last line has no end")
    if not lines or not re.fullmatch(rf"{_TIME} start {SCHEDULER}", lines[0]):
        wrong.append("line 1: not `start scheduler`")
    if not lines or not re.fullmatch(rf"{_TIME} end {SCHEDULER}", lines[-1]):
        wrong.append(f"line {len(lines)}: not `end scheduler`")
    before = ""
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            wrong.append(f"line {number}: not an event: {line[:80]!r}")
            continue
        if match["time"] < before:
            wrong.append(f"line {number}: earlier than the line before")
        before = match["time"]
        if line.endswith(f" {SCHEDULER}") and number not in (1, len(lines)):
            wrong.append(f"line {number}: {SCHEDULER} starts or ends in the middle")
        try:
            _replay(match, legality)
        except IllegalEvent as error:
            wrong.append(f"line {number}: {error}")
    return wrong


def _replay(match: re.Match[str], legality: _Legality) -> None:
    if match["started"]:
        legality.start(match["started"], _ascending(match["first"]))
    elif match["moved"]:
        if not legality.update(match["moved"], _ascending(match["cores"])):
            raise IllegalEvent(f"{match['moved']}'s cores are unchanged")
    elif match["verb"] == "end" and match["job"] != SCHEDULER:
        legality.end(match["job"])
    elif match["verb"] in {"pause", "unpause"}:
        legality.pause(match["job"], paused=match["verb"] == "pause")


def _ascending(text: str) -> CoreSet:
    ids = [int(core) for core in text[1:-1].split(",")]
    if ids != sorted(set(ids)):
        raise IllegalEvent(f"{text} is not in ascending order")
    return frozenset(ids)


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it was read: local time without a zone; cores, threads and comment where the event has them."""

    time: datetime
    event: str
    job: str
    cores: CoreSet = frozenset()
    threads: int = 0
    comment: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Deviation:
    """Something in a log that the format does not have: its kind, where, and what stands there."""

    line: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Log:
    """A log as it was read: its events in order, and everything odd about it."""

    events: tuple[Event, ...]
    deviations: tuple[Deviation, ...]


_SYNONYMS = {"updated_cores": "update_cores"}
_PREFIXES = ("parsec_", "splash2x_", "parsec-", "splash2x-")
_LOOSE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?)(?P<zone>Z|[+-]\d\d:\d\d)?\s+"
    r"(?P<event>[A-Za-z_]+)\s+(?P<job>[A-Za-z][\w-]*)(?P<rest>.*)"
)
_LOOSE_CORES = re.compile(r"\s*(\[[\d\s,]*\])\s*(\d+)?\s*")


def parse(text: str) -> Log:
    """Read a log by whoever wrote it: what can be understood is taken, with a named deviation for all that is odd.

    Never raises. What the events mean together (a job that never ends, two runs in one file) is for the grader.
    """
    events: list[Event] = []
    odd: list[Deviation] = []
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.rstrip()
        if line != raw:
            odd.append(Deviation(number, "blanks or a carriage return at the end", raw[-20:]))
        if line:
            event = _read(line, number, odd)
            if event is not None:
                events.append(event)
    if text and not text.endswith("\n"):
        odd.append(Deviation(text.count("\n") + 1, "no newline at the end", text[-20:]))
    return Log(tuple(events), tuple(odd))


def _read(line: str, number: int, odd: list[Deviation]) -> Event | None:
    def deviate(kind: str) -> None:
        odd.append(Deviation(number, kind, line[:120]))

    match = _LOOSE.fullmatch(line)
    try:
        when = datetime.fromisoformat(match["time"]) if match else None
    except ValueError:
        when = None
    if match is None or when is None:
        deviate("not an event")
        return None
    if "." not in match["time"]:
        deviate("no microseconds")
    if match["zone"]:
        deviate("a time zone")
    name = _SYNONYMS.get(match["event"], match["event"])
    if name not in EVENTS:
        deviate("an unknown event")
        return None
    if name != match["event"]:
        deviate("another name for the event")
    job = match["job"].lower()
    bare = next((job.removeprefix(prefix) for prefix in _PREFIXES if job.startswith(prefix)), job)
    if bare != match["job"]:
        deviate("a prefix or capitals in the job's name")
    rest = match["rest"]
    if name == "custom":
        comment = rest.strip()
        if not re.fullmatch(r"[A-Za-z0-9_.\-~%+]+", comment):
            deviate("a comment that is not quoted" if comment else "an empty comment")
        return Event(when, name, bare, comment=unquote_plus(comment), line=number)
    if bare == SCHEDULER or name in {"end", "pause", "unpause"}:
        if rest.strip():
            deviate("arguments where there are none")
        return Event(when, name, bare, line=number)
    listed = _LOOSE_CORES.fullmatch(rest)
    ids = [int(core) for core in re.findall(r"\d+", listed[1])] if listed else []
    if listed is None or not ids or (name == "start") != bool(listed[2]):
        deviate("cores or threads are missing")
    elif listed[1] != format_list(ids):
        deviate("a list of cores not in the format")
    threads = int(listed[2]) if listed and listed[2] else 0
    return Event(when, name, bare, frozenset(ids), threads, line=number)
