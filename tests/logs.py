"""Event logs, loads and recorded runs for tests of the report, made by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from colocate import mcperf
from colocate.cli.main import main
from tests.calibrations import JOBS, small_text

BEGIN = datetime(2026, 4, 12, 11, 0, 0)
Line = tuple[float, str]
HEAD: tuple[Line, ...] = ((0, "start scheduler"), (0, "start memcached [0] 2"))
STORY: tuple[Line, ...] = (
    *HEAD,
    (10, "start canneal [1] 1"),
    (12, "start my_job [2,3] 2"),
    (20, "pause canneal"),
    (30, "unpause canneal"),
    (40, "update_cores memcached [0,1]"),
    (45, "update_cores my_job [3]"),
    (50, "end canneal"),
    (70, "end my_job"),
    (75, "end scheduler"),
)  # fmt: skip


def log_text(lines: Iterable[Line], *, begin: datetime = BEGIN, hours: int = 0) -> str:
    """The text of a log: each line at so many seconds, on a clock that is so many hours ahead."""
    return "".join(
        f"{(begin + timedelta(seconds=at, hours=hours)).isoformat(timespec='microseconds')} {rest}\n"
        for at, rest in lines
    )


def run_text(at_s: float, seconds: float, *, job: str = "canneal", hours: int = 0) -> str:
    """A whole run of one job that starts at `at_s`."""
    whole = (*HEAD, (1, f"start {job} [1] 1"), (1 + seconds, f"end {job}"), (2 + seconds, "end scheduler"))
    return log_text([(at_s - 1 + at, rest) for at, rest in whole], hours=hours)


def load_text(latencies_ms: Sequence[float], *, at_s: float = 0.0, interval_s: float = 10.0, qps: float = 5e3) -> str:
    """The output of mcperf with these 95th percentiles; `at_s` is on the clock of logs that are no hour ahead."""
    rows = [mcperf.Row(*(100.0,) * 11, 1e3 * late_ms, *(9e3,) * 3, qps, round(qps)) for late_ms in latencies_ms]
    start_s = BEGIN.timestamp() + at_s
    end_s = start_s + interval_s * len(rows)
    return mcperf.write(
        mcperf.Output(start_s, end_s, interval_s, (round(qps),) * len(rows), tuple(rows), complete=True)
    ).replace("# interval", "# as written: interval")  # mcperf itself does not tell it


def write(path: Path, text: str) -> Path:
    """A file with this text."""
    path.write_text(text, encoding="utf-8")
    return path


def tick(t: float, **facts: object) -> dict[str, object]:
    """A record of a metrics file."""
    return {"t": t, "policy": "share", "moves": [], "latency_ms": None, "latency_age_s": 0.1, **facts}


def write_metrics(log: Path, records: Iterable[object], **head: object) -> Path:
    """A metrics file beside a log, whose `t` is 0 at `BEGIN`."""
    first = {"t": 0.0, "source": "live", "cores": [0, 1, 2, 3], "slo_ms": 0.8, "percentile": 95.0, "settings": {}}
    lines = [first | head, {"t": 0.0, "begin": BEGIN.isoformat()}, *records]
    return write(log.with_suffix(".jsonl"), "".join(f"{json.dumps(line)}\n" for line in lines))


def simulate(directory: Path, *options: str) -> Path:
    """The log of a simulated run of the small scenario, beside its load, metrics and summary."""
    directory.mkdir(exist_ok=True)
    scenario = write(directory / "small.toml", small_text(str(write(directory / "jobs.toml", JOBS))))
    logs = directory / "logs"
    before = set(logs.glob("*.txt"))
    assert main(["simulate", "--scenario", str(scenario), "--log-dir", str(logs), "--json", *options]) == 0
    (log,) = (path for path in set(logs.glob("*.txt")) - before if not path.stem.endswith("-mcperf"))
    return log
