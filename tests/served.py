"""`colocate serve` as a process of a test's own, and a run whose files grow as the test lets them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from colocate.cli.main import main
from colocate.metrics import metrics_path, read_run
from colocate.report.grade import probed_intervals
from colocate.report.summary import summary_path
from tests.calibrations import JOBS, small_text
from tests.memcached_fixture import DEADLINE_S, eventually


def simulated_run(directory: Path, *options: str) -> Path:
    """The event log of a run of some virtual seconds, with its metrics and its summary beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "jobs.toml").write_text(JOBS)
    scenario = directory / "small.toml"
    scenario.write_text(small_text(str(directory / "jobs.toml")))
    before = set(directory.glob("log*.txt"))
    assert main(["simulate", "--scenario", str(scenario), "--log-dir", str(directory), "--json", *options]) == 0
    (made,) = {path for path in directory.glob("log*.txt") if "-mcperf" not in path.name} - before
    return made


class Growing:
    """A run that goes on in another folder as far as it is let, and never seems to have broken off meanwhile."""

    def __init__(self, finished: Path, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._finished = finished
        self.log = directory / finished.name
        self._begin = read_run(metrics_path(finished)).begin
        self._lines = finished.read_text().splitlines(keepends=True)
        self._records = metrics_path(finished).read_text().splitlines(keepends=True)
        self._ending = threading.Event()
        self._heart = threading.Thread(target=self._beat)
        self._heart.start()

    def until(self, time_s: float) -> int:
        """Let it go on until then, in its own seconds; how many lines its log has."""
        assert self._begin is not None
        now = self._begin + timedelta(seconds=time_s)
        while self._lines and datetime.fromisoformat(self._lines[0].split()[0]) <= now:
            self._append(self.log, self._lines)
        while self._records and _t(self._records[0]) <= time_s:
            self._append(metrics_path(self.log), self._records)
        return len(self.log.read_text().splitlines())

    @property
    def points(self) -> int:
        """In how many seconds of it the latency is known by now."""
        so_far = read_run(metrics_path(self.log))
        return sum(interval.latency_ms is not None for interval in probed_intervals(so_far.ticks, 0.0))

    def finish(self) -> None:
        """Let it end: the rest of its log, then its summary."""
        self.until(1e6)
        shutil.copy(summary_path(self._finished), summary_path(self.log))

    def close(self) -> None:
        self._ending.set()
        self._heart.join()

    def _append(self, path: Path, lines: list[str]) -> None:
        with path.open("a") as file:
            file.write(lines.pop(0))

    def _beat(self) -> None:
        while not self._ending.wait(1.0):
            if self.log.exists():
                os.utime(self.log)


def _t(record: str) -> float:
    match = re.match(r'\{"t":([0-9.]+)', record)
    assert match is not None
    return float(match[1])


@contextmanager
def growing(finished: Path, directory: Path) -> Iterator[Growing]:
    made = Growing(finished, directory)
    try:
        yield made
    finally:
        made.close()


class Dashboard:
    """One `colocate serve`, which a test may kill and start again on the same port."""

    def __init__(self, directory: Path, said: Path, port: int = 0) -> None:
        self.directory = directory
        self._said = said
        self.process = self._start(port)
        match = re.search(r"http://127\.0\.0\.1:(\d+)/", said.read_text())
        assert match is not None
        self.port = int(match[1])
        self.url = match[0]

    def restart(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        self.process = self._start(self.port)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def _start(self, port: int) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "colocate", "serve", str(self.directory), "--web", f"127.0.0.1:{port}"]
        argv += ["--state-dir", str(self.directory / "no-state")]
        with self._said.open("wb") as file:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file)

        def listens() -> bool:
            assert process.poll() is None, self._said.read_text()
            return "http://" in self._said.read_text()

        eventually(listens, "the dashboard listens")
        return process


@contextmanager
def dashboard(directory: Path, said: Path, port: int = 0) -> Iterator[Dashboard]:
    made = Dashboard(directory, said, port)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.end(signal.SIGKILL)
