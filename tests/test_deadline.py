"""The time limit of a decision on a real host: whose fault it is that it took long."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from unittest.mock import Mock

import pytest

from colocate.host.live import Doorbell, LiveHost
from colocate.regulator import OverrunError

pytestmark = pytest.mark.live

LIMIT_S = 0.2


@pytest.fixture
def host() -> Iterator[LiveHost]:
    runtime = Mock()
    runtime.close.return_value = []
    host = LiveHost(Mock(), runtime, {}, Mock(), Doorbell(), remember=lambda _: None)
    yield host
    host.close("stop")


@contextmanager
def crowded(others: int) -> Iterator[None]:
    """This thread on one core, with so many others that want all of it, none of them less than we do."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    running = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(others)]
    try:
        for one in running:
            os.setpriority(os.PRIO_PROCESS, one.pid, os.getpriority(os.PRIO_PROCESS, 0))
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()
        os.sched_setaffinity(0, before)


def compute(cpu_s: float) -> float:
    """Use so much CPU, however long it takes; return how long that was."""
    begin_s, end_s = time.monotonic(), time.thread_time() + cpu_s
    while time.thread_time() < end_s:
        pass
    return time.monotonic() - begin_s


def test_time_spent_waiting_for_a_core_is_not_the_policys(host: LiveHost) -> None:
    with crowded(8), host.deadline(LIMIT_S):
        assert compute(LIMIT_S / 2) > LIMIT_S


@pytest.mark.parametrize("others", [0, 4])
def test_what_computes_for_too_long_is_interrupted(host: LiveHost, others: int) -> None:
    with crowded(others), pytest.raises(OverrunError, match="longer than its deadline"), host.deadline(LIMIT_S):
        compute(60.0)


def test_what_sleeps_is_interrupted(host: LiveHost) -> None:
    with pytest.raises(OverrunError, match="longer than its deadline"), host.deadline(LIMIT_S):
        time.sleep(60.0)


def test_what_catches_the_alarm_is_found_out_afterwards(host: LiveHost) -> None:
    with pytest.raises(OverrunError, match="took"), host.deadline(LIMIT_S), suppress(BaseException):
        time.sleep(60.0)
