"""Batch jobs: what one is, the states it passes through, and catalogues of them (TOML).

A catalogue holds `[[job]]` tables; `load_catalogue` takes a name that ships in the package or a path.
"""

from __future__ import annotations

import enum
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from colocate.cores import CoreSet
from colocate.errors import UserError
from colocate.trust import read_trusted

NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")  # part of a container's name, of a label, and of a directory's name
SUITES = tuple(suite + mark for suite in ("parsec", "splash2", "splash2x") for mark in "_-")  # no part of a job's name
MOST_THREADS = 1024
_MOST = 1e9  # seconds or a ratio: thirty years
RESERVED = frozenset({"scheduler", "memcached"})  # names with a meaning of their own in the event log


class JobState(enum.StrEnum):
    """The life of a job; `jobs.NEXT` has the legal edges."""

    WAITING = "waiting"  # created ahead of time, or about to be
    STARTING = "starting"  # told to start, not yet seen to run
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"  # exit code 0
    FAILED = "failed"  # out of retries
    STOPPED = "stopped"  # by us or by somebody else


ENDED = frozenset({JobState.FINISHED, JobState.FAILED, JobState.STOPPED})
ACTIVE = frozenset({JobState.STARTING, JobState.RUNNING, JobState.PAUSED})
NEXT: Mapping[JobState, frozenset[JobState]] = {
    JobState.WAITING: frozenset({JobState.STARTING, JobState.FAILED, JobState.STOPPED}),
    JobState.STARTING: ENDED | {JobState.RUNNING, JobState.WAITING},
    JobState.RUNNING: ENDED | {JobState.PAUSED, JobState.WAITING},
    JobState.PAUSED: ENDED | {JobState.RUNNING, JobState.WAITING},
    **dict.fromkeys(ENDED, frozenset()),
}


class JobEventKind(enum.StrEnum):
    """What can happen to a job, as a runtime or a model reports it."""

    CREATED = "created"
    STARTED = "started"
    RESIZED = "resized"
    PAUSED = "paused"
    RESUMED = "resumed"
    EXITED = "exited"  # by itself or stopped by us; `code` says how
    CHANGED = "changed"  # by somebody else, and put right; `detail` says what
    GONE = "gone"  # vanished without an exit code (removed by somebody)
    FAILED = "failed"  # what we asked for did not happen; `detail` says what and why


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that has happened to a job, at monotonic time `time_s`."""

    job: str
    kind: JobEventKind
    time_s: float
    code: int | None = None
    detail: str = ""
    cores: CoreSet = frozenset()


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One batch job as its author describes it.

    Attributes:
        name: as in the event log, `[a-z][a-z0-9_-]*`.
        image: the Docker image.
        command: the argument list; `{threads}` is replaced by the thread count.
        threads: how many threads it is given (`-n`).
        network: Docker's network mode; batch jobs need none, and without one a start is faster.
        directory: where the command runs as a plain process; None is where the built kernels lie.
        runtime_s: measured run time alone, by cores (threads = cores); empty if unknown.
        sensitivity: measured run time beside a micro-benchmark that loads one resource, as a multiple of the
            undisturbed, by resource (`cpu`, `l1d`, `l1i`, `l2`, `llc`, `membw`); empty if unknown.
    """

    name: str
    image: str
    command: tuple[str, ...]
    threads: int = 1
    network: str = "none"
    directory: Path | None = None
    runtime_s: Mapping[int, float] = field(default_factory=dict)
    sensitivity: Mapping[str, float] = field(default_factory=dict)

    def argv(self, threads: int | None = None) -> list[str]:
        """The command with its thread count filled in."""
        return [part.replace("{threads}", str(threads or self.threads)) for part in self.command]


def load_catalogue(name_or_path: str) -> tuple[JobSpec, ...]:
    """Load a catalogue that ships (`cca-2023`, `cca-2026`, `demo`) or a user's TOML file.

    Raises:
        UserError: there is none, or it is bad; names the file, the job and the field.
    """
    shipped = resources.files("colocate.catalogues")
    names = sorted(p.name.removesuffix(".toml") for p in shipped.iterdir() if p.name.endswith(".toml"))
    try:
        if name_or_path in names:
            path = Path(f"{name_or_path}.toml")
            text = (shipped / path.name).read_text(encoding="utf-8")
        else:
            path = Path(name_or_path)
            text = read_trusted(path).decode("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "is not UTF-8 text"
        raise UserError(f"jobs {name_or_path!r}: {reason}", f"give a TOML file or one of {', '.join(names)}") from error
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # tomllib lets both through: a number of 5,000 digits, brackets
        raise UserError(f"{path}: not TOML: {error}", "mend that line") from error
    return parse_catalogue(table, path)


def parse_catalogue(table: Mapping[str, object], path: Path) -> tuple[JobSpec, ...]:
    """Check a parsed catalogue and make its jobs; `path` is for messages and relative directories.

    Raises:
        UserError: names the file, the job and the field.
    """
    unknown = sorted(set(table) - {"job", "description"})
    if unknown:
        raise UserError(f"{path}: unknown key {unknown[0]!r}", "jobs stand in [[job]] tables")
    entries = table.get("job")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: no jobs", "write one [[job]] table a job")
    jobs: dict[str, JobSpec] = {}
    for number, entry in enumerate(entries, 1):
        job = _parse_job(entry, path, number)
        if job.name in jobs:
            raise UserError(f"{path}: job {job.name}: name: stands twice", "give each job a name of its own")
        jobs[job.name] = job
    return tuple(jobs.values())


def _parse_job(entry: object, path: Path, number: int) -> JobSpec:
    if not isinstance(entry, dict):
        raise UserError(f"{path}: job {number}: not a table", "write [[job]]")
    name = entry.get("name")
    where = f"{path}: job {name if isinstance(name, str) and NAME.fullmatch(name) else number}"

    def bad(field_name: str, why: str, cure: str) -> UserError:
        return UserError(f"{where}: {field_name}: {why}", cure)

    known = set(JobSpec.__dataclass_fields__)
    for key in entry:
        if key not in known:
            raise bad(key if key.isprintable() else repr(key), "unknown field", f"known are {', '.join(sorted(known))}")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise bad("name", f"{name!r} is no job name", "use at most 64 lower case letters, digits, - and _")
    if name in RESERVED:
        raise bad("name", f"{name!r} means something else in the log", "call the job otherwise")
    if prefix := next((prefix for prefix in SUITES if name.startswith(prefix)), ""):
        raise bad("name", f"{name!r} has the suite's prefix", f"call it {name.removeprefix(prefix)!r}")
    image = entry.get("image")
    if not isinstance(image, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*", image):
        raise bad("image", f"{image!r} is no image name", "write it like repository/name:tag")
    command = entry.get("command")
    words = command.split() if isinstance(command, str) else command
    if not isinstance(words, list) or not words or not all(isinstance(w, str) and w and "\0" not in w for w in words):
        raise bad("command", "not a command", 'write it like "./run -n {threads}" or as a list of words')
    threads = entry.get("threads", 1)
    if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= MOST_THREADS:
        raise bad("threads", f"{threads!r} is no thread count", f"give a whole number from 1 to {MOST_THREADS}")
    network = entry.get("network", "none")
    if not isinstance(network, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:-]*", network):
        raise bad("network", f"{network!r} is no network mode", 'write "none" or "bridge"')
    directory = entry.get("directory")
    if directory is not None and (not isinstance(directory, str) or "\0" in directory):
        raise bad("directory", f"{directory!r} is no path", "write a path, relative to this file")
    runtime_s: dict[int, float] = {}
    for key, value in _numbers(entry.get("runtime_s", {}), "runtime_s", bad).items():
        if not re.fullmatch(r"[1-9]\d{0,3}", key, re.ASCII):
            raise bad("runtime_s", f"{key!r} is no core count", "write it like { 1 = 20.5, 2 = 11.0 }")
        runtime_s[int(key)] = value
    return JobSpec(
        name=name, image=image, command=tuple(words), threads=threads, network=network,
        directory=None if directory is None else (path.parent / directory),
        runtime_s=runtime_s, sensitivity=_numbers(entry.get("sensitivity", {}), "sensitivity", bad),
    )  # fmt: skip


def _numbers(table: object, field_name: str, bad: object) -> dict[str, float]:
    assert callable(bad)  # noqa: S101 -- a closure of the caller
    if not isinstance(table, dict):
        raise bad(field_name, "not a table", "write it like { 1 = 20.5, 2 = 11.0 }")
    for key, value in table.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= _MOST:
            raise bad(field_name, f"{key!r}: {value!r} is no positive number", "give seconds or a ratio above 0")
    return {str(key): float(value) for key, value in table.items()}
