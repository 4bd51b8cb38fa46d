"""`colocate run` as a user starts it: a process of its own, on a private memcached, with jobs of the test's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.memcached_fixture import DEADLINE_S, Memcached, eventually


def masks(pid: int) -> dict[int, set[int]]:
    """The affinity of every thread of a process."""
    return {int(task.name): os.sched_getaffinity(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()}


def one_mask(pid: int) -> set[int]:
    """The affinity that all threads of a process have; they are pinned one after another."""
    end_s = time.monotonic() + DEADLINE_S
    while len(found := {frozenset(mask) for mask in masks(pid).values()}) != 1:
        assert time.monotonic() < end_s, found
    return set(found.pop())


def catalogue(path: Path, image: str, jobs: Mapping[str, str], directory: Path | None = None) -> Path:
    """A file of jobs: name -> command line."""
    where = f'directory = "{directory}"\n' if directory else ""
    path.write_text(
        "".join(
            f'[[job]]\nname = "{name}"\nimage = "{image}"\ncommand = "{command}"\nthreads = 2\n{where}'
            for name, command in jobs.items()
        )
    )
    return path


class Run:
    """One `colocate run` in progress.

    Args:
        tmp_path: where its log, its state and its output go.
        server: the memcached.
        arguments: of `colocate run`.
        program: what Python runs instead of `colocate`.
        before: a program that starts Python, with its arguments.
        env: variables of the environment that are to be otherwise than ours.
    """

    def __init__(
        self, tmp_path: Path, server: Memcached, *arguments: str, program: Sequence[str] = ("-m", "colocate"),
        before: Sequence[str] = (), env: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.logs = tmp_path / "logs"
        self._output = (tmp_path / "output").open("w+")
        self._errors = (tmp_path / "errors").open("w+")
        argv = [
            *before, sys.executable, *program, "run", "--memcached-ip", server.ip, "--port", str(server.port),
            "--log-dir", str(self.logs), "--state-dir", str(tmp_path / "state"), "--json", *arguments,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            argv, cwd=tmp_path, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=self._output,
            stderr=self._errors,
        )  # fmt: skip

    @property
    def log(self) -> str:
        """The event log so far."""
        paths = sorted(self.logs.glob("log*.txt")) if self.logs.exists() else []
        return paths[-1].read_text() if paths else ""

    @property
    def errors(self) -> str:
        """What it has said."""
        return Path(self._errors.name).read_text()  # by a descriptor of our own: the run writes at this one's place

    @property
    def summary(self) -> dict[str, object]:
        """What it has printed."""
        self._output.seek(0)
        document = json.load(self._output)
        assert isinstance(document, dict)
        return document

    def until(self, words: str) -> None:
        """Wait until the log says so."""

        def said() -> bool:
            assert self.process.poll() is None or words in self.log, f"ended without {words!r}: {self.errors}{self.log}"
            return words in self.log

        eventually(said, words)

    def end(self, number: int | None = None) -> int:
        """The exit code, after a signal if one is given."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(4 * DEADLINE_S)


def over(process: psutil.Process) -> bool:
    """Whether a process has ended, whoever has yet to reap it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def running(
    tmp_path: Path, server: Memcached, *arguments: str, program: Sequence[str] = ("-m", "colocate"),
    before: Sequence[str] = (), env: Mapping[str, str] | None = None,
) -> Iterator[Run]:  # fmt: skip
    """A run that is over when the block is; the arguments are those of `Run`."""
    run = Run(tmp_path, server, *arguments, program=program, before=before, env=env)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.send_signal(signal.SIGTERM)
            try:
                run.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                run.process.kill()
                run.process.wait()


def colocate(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """One command, run to its end."""
    argv = [sys.executable, "-m", "colocate", *arguments]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=4 * DEADLINE_S, check=False)
