"""The end of a run where it is disturbed itself: whatever is not put back must not be taken for put back."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from unittest.mock import Mock

import pytest

from colocate.errors import UserError
from colocate.host.live import Doorbell, LiveHost
from colocate.signals import signals

pytestmark = pytest.mark.live


def test_a_second_signal_ends_nothing_although_nobody_reads_what_we_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `colocate run 2>&1 | tee log` and two Ctrl-C, which end `tee` first."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as nobody, signals() as interrupted:
        monkeypatch.setattr(sys, "stderr", nobody)
        assert interrupted() == 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        assert interrupted() == signal.SIGINT


def test_a_second_signal_waits_for_nobody_who_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with Ctrl-S and two Ctrl-C, or `2>&1 | less`."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write_end, bytes(4096))
    os.set_blocking(write_end, True)
    with os.fdopen(write_end, "w") as full, os.fdopen(read_end, "rb"), signals() as interrupted:
        monkeypatch.setattr(sys, "stderr", full)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert interrupted() == signal.SIGTERM


def test_what_memcached_had_before_is_written_once_the_disk_takes_it() -> None:
    """A memcached that has come back while the disk was full; nobody else would ever write it."""
    remember = Mock(side_effect=[UserError("the disk is full"), None])
    runtime = Mock()
    runtime.close.return_value = []
    host = LiveHost(Mock(), runtime, {}, Mock(), Doorbell(), remember=remember)
    host._unsaved = True
    for _ in range(3):
        host._save()
    assert remember.call_count == 2
    assert host.close("stop") == []


def test_a_host_whose_end_failed_half_way_says_so_when_it_is_ended_again() -> None:
    service, runtime = Mock(), Mock()
    runtime.close.side_effect = OSError("the terminal is gone")
    host = LiveHost(service, runtime, {}, Mock(), Doorbell(), remember=lambda _: None)
    with pytest.raises(OSError, match="terminal"):
        host.close("stop")
    service.affinity.restore.assert_called_once()
    (problem,) = host.close("stop")
    assert "not everything is put back" in problem
    assert "terminal" in problem
