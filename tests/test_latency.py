from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colocate.errors import UserError
from colocate.host.latency import LatencySource, Probe, Reported, percentile_of
from colocate.view import Signal, Slo
from tests.memcached_fixture import Memcached, eventually, free_port, running_memcached

pytestmark = pytest.mark.live

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on emulated machines, too

HEADER = (
    "#type       avg     std     min      p5     p10     p50     p67     p75     p80     p85     p90     p95     p99"
    "    p999   p9999      QPS   target\n"
)


def row(p95_us: float, qps: float = 8055.5) -> str:
    return (
        "read      202.8   133.9    68.9   109.0   126.7   189.3   210.4   222.3   231.0   242.0   257.0"
        f"   {p95_us:.1f}   773.3  1398.5  7086.6   {qps:.1f}     8195\n"
    )


@pytest.fixture
def server() -> Iterator[Memcached]:
    with running_memcached() as memcached:
        yield memcached


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "mcperf.txt"


@pytest.fixture
def reported(output: Path) -> Iterator[Reported]:
    source = Reported(output)
    yield source
    source.stop()


@UNHURRIED
@given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([50.0, 90.0, 95.0, 99.0, 99.9, 100.0]))
def test_a_percentile_has_its_share_at_or_below_it(values: list[float], percentile: float) -> None:
    found = percentile_of(values, percentile)
    assert found in values
    assert sum(value <= found for value in values) >= percentile / 100 * len(values) - 1e-6
    assert sum(value < found for value in values) < percentile / 100 * len(values)


def test_nearest_rank() -> None:
    assert percentile_of([float(i) for i in range(1, 21)], 95) == 19
    assert percentile_of([3.0], 95) == 3.0
    assert [Slo(percentile=p).least_samples for p in (50, 90, 95, 99, 99.9)] == [2, 10, 20, 100, 1000]


def test_unknown_while_there_are_too_few_samples(server: Memcached) -> None:
    probe = Probe(server.ip, server.port, rate_hz=200, window_s=60.0)
    try:
        counts = []

        def enough() -> bool:
            signal = probe.signal()
            counts.append(signal.samples)
            assert (signal.value is None) == (signal.samples < 20)
            return signal.value is not None

        eventually(enough, "20 samples")
        assert counts[0] < 20 <= counts[-1]
        eventually(lambda: probe.signal().age_s < 0.5, "a fresh sample")
        assert (probe.signal().value or 0.0) > 0.0
    finally:
        probe.stop()


def test_the_window_widens_for_a_low_rate_or_a_high_percentile(server: Memcached) -> None:
    probe = Probe(server.ip, server.port, rate_hz=200, percentile=99)
    try:
        eventually(lambda: probe.signal().value is not None, "100 samples of 200 a second")
    finally:
        probe.stop()


def test_a_stall_counts_for_all_that_would_have_been_asked(server: Memcached) -> None:
    """Of 40 samples one may be bad without the 95th percentile's showing it; a stall of 200 ms must show."""
    probe = Probe(server.ip, server.port, rate_hz=100, window_s=3600.0)
    try:
        eventually(lambda: probe.signal().samples >= 40, "quiet samples")
        server.suspend()
        stopped_s = time.monotonic()
        eventually(lambda: time.monotonic() - stopped_s > 0.2, "200 ms")
        server.resume()
        eventually(lambda: (probe.signal().value or 0.0) > 50.0, "the stall is seen")
    finally:
        probe.stop()


def test_a_stall_shows_before_it_ends_and_again_after_time_outs(server: Memcached) -> None:
    probe = Probe(server.ip, server.port, rate_hz=100, window_s=5.0, timeout_s=0.3)
    try:
        eventually(lambda: probe.signal().value is not None, "quiet samples")
        server.suspend()
        eventually(lambda: (probe.signal().value or 0.0) > 100.0, "the stall is seen while it lasts")
        eventually(lambda: (probe.signal().value or 0.0) >= 250.0, "each wait counts with the time-out")
        assert probe.signal().age_s < 1.0
        server.resume()
        eventually(lambda: 0.0 < (probe.signal().value or 0.0) < 100.0, "recovered")
    finally:
        probe.stop()


def test_without_memcached_there_is_no_latency_and_with_it_again_there_is(server: Memcached) -> None:
    probe = Probe(server.ip, server.port, rate_hz=100, window_s=3.0)
    try:
        eventually(lambda: probe.signal().value is not None, "samples")
        server.stop()
        eventually(lambda: probe.signal() == Signal(), "none")
        server.restart()
        eventually(lambda: probe.signal().value is not None, "samples of the new one")
    finally:
        probe.stop()


def test_a_probe_of_nothing_ends_at_once() -> None:
    probe = Probe("127.0.0.1", free_port(), rate_hz=100)
    assert probe.signal() == Signal()
    probe.stop()
    assert "latency-probe" not in {thread.name for thread in threading.enumerate()}


def test_stop_does_not_wait_for_a_stuck_memcached(server: Memcached) -> None:
    probe = Probe(server.ip, server.port, rate_hz=100, timeout_s=300.0)
    eventually(lambda: probe.signal().samples > 0, "a sample")
    server.suspend()
    eventually(lambda: (probe.signal().value or 0.0) > 100.0, "it waits")
    start_s = time.monotonic()
    probe.stop()
    assert time.monotonic() - start_s < 30.0
    assert "latency-probe" not in {thread.name for thread in threading.enumerate()}


def test_a_server_without_the_question_is_timed_all_the_same() -> None:
    """An old memcached answers ERROR: the way there and back is the same."""

    def answer(other: socket.socket) -> None:
        connection, _ = other.accept()
        with connection:
            while connection.recv(99):
                connection.sendall(b"ERROR\r\n")

    with socket.create_server(("127.0.0.1", 0)) as other:
        thread = threading.Thread(target=answer, args=(other,))
        thread.start()
        probe = Probe("127.0.0.1", other.getsockname()[1], rate_hz=200, window_s=60.0)
        try:
            eventually(lambda: probe.signal().value is not None, "samples")
        finally:
            probe.stop()
        thread.join(60.0)


def test_both_are_sources(server: Memcached, reported: Reported) -> None:
    probe = Probe(server.ip, server.port)
    sources: list[LatencySource] = [probe, reported]
    assert [source.source for source in sources] == ["probe", "reported"]
    for source in sources:
        source.stop()
        source.stop()


def test_the_file_may_appear_later_and_grow(output: Path, reported: Reported) -> None:
    assert reported.signal() == Signal()
    output.write_text("Timestamp start: 1747218116063\n" + HEADER)
    assert reported.signal() == Signal()
    with output.open("a") as file:
        for p95_us in (288.3, 301.5):
            file.write(row(p95_us))
            file.flush()
            signal = reported.signal()
            assert signal.value == pytest.approx(p95_us / 1e3)
            assert 0 <= signal.age_s < 60.0
            assert signal.samples >= 1


def test_rows_that_come_together_are_of_more_than_one_request(output: Path, reported: Reported) -> None:
    """As from a generator whose output is buffered: the length of their interval is not known, and need not be."""
    output.write_text(HEADER + row(288.3) + row(301.5))
    assert reported.signal().samples >= Slo().least_samples


def test_half_a_row_waits_for_its_other_half(output: Path, reported: Reported) -> None:
    output.write_text(HEADER + row(288.3) + row(999.9)[:60])
    assert reported.signal().value == pytest.approx(0.2883)
    with output.open("a") as file:
        file.write(row(999.9)[60:])
    assert reported.signal().value == pytest.approx(0.9999)


def test_the_age_is_that_of_the_row(output: Path, reported: Reported) -> None:
    output.write_text(HEADER + row(288.3))
    old_s = time.time() - 3600
    os.utime(output, (old_s, old_s))
    assert reported.signal().age_s == pytest.approx(3600, abs=60)
    with output.open("a") as file:
        file.write(row(300.0))
    signal = reported.signal()
    assert signal.age_s < 60
    assert signal.samples == pytest.approx(8055.5 * 3600, rel=0.02)  # the rate times the time between the rows


def test_a_file_that_is_cut_or_replaced_is_read_from_its_start(output: Path, reported: Reported) -> None:
    output.write_text(HEADER + row(288.3) + row(290.0))
    assert reported.signal().value == pytest.approx(0.29)
    output.write_text(HEADER + row(111.1))
    assert reported.signal().value == pytest.approx(0.1111)
    new = output.with_suffix(".new")
    new.write_text(HEADER + row(222.2) + row(333.3) + row(444.4))
    new.replace(output)
    assert reported.signal().value == pytest.approx(0.4444)
    output.unlink()
    assert reported.signal().value == pytest.approx(0.4444)  # and it ages


def test_of_a_long_file_only_the_end_is_read(output: Path, reported: Reported) -> None:
    output.write_text(HEADER + row(288.3) * 2000 + row(777.7))
    assert output.stat().st_size > 1 << 18
    assert reported.signal().value == pytest.approx(0.7777)


@UNHURRIED
@given(st.binary(max_size=400))
def test_any_bytes_are_survived(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.txt"
    path.write_bytes(text + b"\n" + HEADER.encode() + row(288.3).encode())
    source = Reported(path)
    assert source.signal().value == pytest.approx(0.2883)
    source.stop()


def test_a_row_in_which_the_generator_was_late_is_not_memcacheds(output: Path, reported: Reported) -> None:
    output.write_text(HEADER + row(288.3) + row(999.9))
    assert reported.signal().value == pytest.approx(0.9999)
    with output.open("a") as file:
        file.write("# late\n")
    assert reported.signal().value == pytest.approx(0.2883)
    with output.open("a") as file:
        file.write(row(300.0) + row(999.9) + "# late\n" + row(float("nan")))
    assert reported.signal().value == pytest.approx(0.3)


def test_another_percentile_is_another_column(output: Path) -> None:
    output.write_text(HEADER + row(288.3))
    source = Reported(output, 99)
    assert source.signal().value == pytest.approx(0.7733)
    source.stop()
    with pytest.raises(UserError, match=r"has no 97th percentile; its columns are .*p95"):
        Reported(output, 97)
