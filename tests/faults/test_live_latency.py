"""A load generator whose figures are wrong, or which is fine because it asks for nothing any more."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import policies
from tests.faults.press import pressing
from tests.faults.stage import Stage
from tests.faults.watchman import times
from tests.live import one_mask
from tests.memcached_fixture import DEADLINE_S

pytestmark = pytest.mark.live

ALL = set(os.sched_getaffinity(0))
BY_LATENCY = ("--policy", f"{policies.__file__}:Follow", "--set", "by=latency_ms", "--set", "high=0.8",
              "--set", "low=0.8", "--set", "hold_s=0.3")  # fmt: skip
LIE_S = 0.6  # twice as long as the policy waits


def row(latency_us: str, qps: str = "5000.0") -> str:
    """As mcperf prints it."""
    return f"read {' '.join([latency_us] * 15)} {qps} 5000"


LATE, CALM = row("2000.0"), row("200.0")
LIES = {
    "milliseconds": row("0.2"), "not a number": row("nan"), "minus": row("-200.0"), "infinite": row("inf"),
    "huge": row("9" * 400), "cut": CALM[:30], "nothing": row("0.0"), "bytes": "read \x00\x00 \udcff",
}  # fmt: skip


def tell(path: Path, line: str, until: Callable[[], bool]) -> None:
    """Report it ten times a second."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not until():
        assert time.monotonic() < deadline_s, line
        with path.open("a", errors="surrogateescape") as file:
            file.write(f"{line}\n")
        time.sleep(0.1)


def after(seconds: float) -> Callable[[], bool]:
    """Whether so long has passed since."""
    end_s = time.monotonic() + seconds
    return lambda: time.monotonic() > end_s


@pytest.fixture
def reported(tmp_path: Path) -> Path:
    """The file that the generator writes."""
    path = tmp_path / "mcperf.txt"
    path.touch()
    return path


def test_figures_that_cannot_be_take_no_core_from_memcached(process_stage: Stage, reported: Path) -> None:
    """Each time memcached is late, then the figures are wrong, and a naive policy takes them for calm."""
    stage, server = process_stage, process_stage.server
    with stage.begin({"spin": "spin 1"}, *BY_LATENCY, "--latency-from", str(reported)) as run:
        run.until("start spin")
        for name in LIES:
            with stage.injected(2) as fault:
                tell(reported, LATE, lambda: one_mask(server.pid) == ALL)
                tell(reported, LIES[name], after(LIE_S))
                assert one_mask(server.pid) == ALL, name
                fault.over()
                tell(reported, CALM, lambda: one_mask(server.pid) != ALL)
                fault.recovered()
        assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []


def test_a_latency_that_is_fine_for_want_of_requests_is_no_evidence(process_stage: Stage, reported: Path) -> None:
    """The generator has died: what was late is fine, of no request, and memcached is as busy as before."""
    stage, server = process_stage, process_stage.server
    with (
        pressing(server.port) as press,
        stage.begin({"spin": "spin 1"}, "--policy", "reactive", "--latency-from", str(reported)) as run,
    ):
        run.until("start spin")
        for _ in range(times(1, 4)):
            with stage.injected(3) as fault:
                press.put(0.8)
                tell(reported, LATE, lambda: one_mask(server.pid) == ALL)
                press.put(1.0)
                tell(reported, row("50.0", qps="0.0"), after(3 * LIE_S))
                assert one_mask(server.pid) == ALL
                press.put(0.0)
                fault.over()
                tell(reported, CALM, lambda: one_mask(server.pid) != ALL)
                fault.recovered()
        assert run.end(signal.SIGTERM) == 143
    assert stage.watchman.left() == []
