"""The load generator against a real memcached: open loop, honest latencies, its own lag, and every bad end."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import psutil
import pytest
from pymemcache.client.base import Client

from colocate import mcperf
from colocate.cli.load import add_parser
from colocate.cli.main import Parser
from colocate.errors import UserError
from colocate.load.generator import FailedError, Generator, Interval, Load, capacity_qps, load_records
from colocate.load.output import late_reason
from tests.memcached_fixture import DEADLINE_S, eventually, free_port, running_memcached

pytestmark = pytest.mark.live

PATIENT_S = 60.0  # no request is lost only because the machine is slow


@pytest.fixture
def server():
    with running_memcached() as memcached:
        yield memcached


def modest(server, *targets, **more):
    return Load(server.ip, server.port, targets, **{"interval_s": 1.0, "timeout_s": PATIENT_S, "records": 100, **more})


def measure(load):
    with Generator(load) as generator:
        return list(generator)


def load_main(*words):
    """`colocate load` in this process."""
    parser = Parser(prog="colocate")
    add_parser(parser.add_subparsers(parser_class=Parser))
    args = parser.parse_args(["load", *map(str, words)])
    return args.run(args)


@contextmanager
def load_process(*words):
    process = subprocess.Popen(
        [sys.executable, "-m", "colocate", "load", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_rate_asked_for_is_reached_by_a_schedule_that_the_seed_fixes(server):
    intervals = measure(modest(server, 2000, 1000))
    assert [(i.interval, i.target_qps, i.seconds) for i in intervals] == [(0, 2000, 1.0), (1, 1000, 1.0)]
    for interval in intervals:
        assert interval.qps == pytest.approx(interval.target_qps, rel=0.15)
        assert (interval.answered, interval.lost, interval.errors) == (interval.sent, 0, 0)
        assert interval.misses == interval.sent  # nothing has been stored
        assert 0 < interval.latency_us["min"] <= interval.latency_us["p50"] <= interval.latency_us["p9999"]
    again, other = measure(modest(server, 2000, 1000)), measure(modest(server, 2000, 1000, seed=2))
    assert [i.sent for i in again] == [i.sent for i in intervals]
    assert [i.sent for i in other] != [i.sent for i in intervals]


def test_threads_share_the_rate_and_a_last_part_of_an_interval_counts_as_such(server):
    first, last = measure(modest(server, 1000, 1000, threads=3, connections=2, duration_s=1.5))
    assert (first.seconds, last.seconds) == (1.0, 0.5)
    assert first.qps == pytest.approx(1000, rel=0.2)
    assert last.qps == pytest.approx(1000, rel=0.3)


def test_an_interval_without_load_is_told_too(server):
    first, last = measure(modest(server, 0, 500, interval_s=0.5))
    assert (first.sent, first.qps, first.latency_us["p95"]) == (0, 0.0, 0.0)
    assert last.answered == last.sent > 0


def test_a_stall_of_the_server_shows_in_the_latencies_and_slows_no_arrival(server):
    undisturbed = [i.sent for i in measure(modest(server, 2000, 2000, 2000))]
    intervals = []
    with Generator(modest(server, 2000, 2000, 2000)) as generator:
        for interval in generator:
            if not intervals:
                server.suspend()
                timer = threading.Timer(0.3, server.resume)
                timer.start()
            intervals.append(interval)
    timer.join()
    assert [i.sent for i in intervals] == undisturbed
    assert sum(i.lost for i in intervals) == 0
    assert max(i.latency_us["p99"] for i in intervals[1:]) > 200_000


def test_a_server_that_does_not_answer_costs_the_timeout_and_no_more(server):
    with Generator(modest(server, 500, 500, timeout_s=0.2)) as generator:
        server.suspend()
        first, last = list(generator)
    server.resume()
    for interval in (first, last):
        assert interval.answered + interval.lost == interval.sent
    assert last.lost == last.sent
    assert last.latency_us["p50"] == pytest.approx(200_000, rel=0.01)


def test_a_restart_in_the_middle_loses_requests_but_not_the_load(server):
    lost = 0
    with Generator(modest(server, *[500] * 300, timeout_s=0.5)) as generator:
        for interval in generator:
            if interval.interval == 0:
                server.stop()
            elif not lost and interval.lost:
                lost = interval.lost
                server.restart()
            elif lost and interval.answered == interval.sent:
                generator.end()
                break
        else:
            pytest.fail("no interval without a loss after the restart")
        list(generator)
    assert generator.totals is not None
    assert generator.totals.disconnects >= 1


def test_updates_are_sets(server):
    (interval,) = measure(modest(server, 500, update_ratio=0.5, value_bytes=7))
    stats = Client((server.ip, server.port)).stats()
    assert stats[b"cmd_set"] + stats[b"cmd_get"] == interval.answered == interval.sent
    assert stats[b"cmd_set"] == pytest.approx(interval.sent / 2, rel=0.3)
    assert interval.errors == 0


def test_few_open_requests_a_connection_make_the_rest_lost_at_once(server):
    server.suspend()  # the kernel accepts connections in its place
    with Generator(modest(server, 500, depth=2, connections=1)) as generator:
        timer = threading.Timer(0.5, server.resume)
        timer.start()
        (interval,) = list(generator)
    timer.join()
    assert interval.lost > 100
    assert interval.answered == interval.sent - interval.lost > 0


def test_capacity_is_far_above_a_modest_rate_and_found_without_records(server):
    assert capacity_qps(server.ip, server.port, 0.5) > 500


def test_a_generator_that_was_held_up_is_late_and_sends_all_the_same(server):
    undisturbed = [i.sent for i in measure(modest(server, 500, 500, 500))]
    intervals = []
    with Generator(modest(server, 500, 500, 500)) as generator:
        for interval in generator:
            if not intervals:
                process = psutil.Process(generator.pid)
                process.suspend()
                timer = threading.Timer(0.3, process.resume)
                timer.start()
            intervals.append(interval)
    timer.join()
    assert [i.sent for i in intervals] == undisturbed
    worst = max(intervals[1:], key=lambda i: i.lag_us["max"])
    assert worst.lag_us["max"] > 200_000
    assert "lagged" in late_reason(worst)


def interval_with(*, lag_p95_us=50.0, over_1ms=0):
    names = ("avg", "std", "min", "p50", "p95", "p99")
    lag = {"p50": 10.0, "p95": lag_p95_us, "max": 5000.0}
    return Interval(0, 1.0, 1000, 1000, 1000, 0, 0, 0, dict.fromkeys(names, 100.0), lag, over_1ms)


def test_an_interval_is_late_by_its_p95_or_by_many_stragglers():
    assert not late_reason(interval_with())
    assert not late_reason(interval_with(lag_p95_us=200.0, over_1ms=10))
    assert late_reason(interval_with(lag_p95_us=201.0))
    assert not late_reason(interval_with(lag_p95_us=201.0), lag_limit_ms=0.3)
    assert late_reason(interval_with(over_1ms=11))


def test_records_are_stored_and_read_back(server):
    assert load_main("-s", f"{server.ip}:{server.port}", "--loadonly", "-r", 300, "-K", 12, "--valuesize", 50) == 0
    client = Client((server.ip, server.port))
    assert client.stats()[b"curr_items"] == 300
    assert {len(value) for value in client.get_many([f"{i:012d}" for i in range(300)]).values()} == {50}
    assert sum(i.misses for i in measure(modest(server, 300, records=300, key_bytes=12))) == 0


def test_a_memcached_too_small_for_the_records_is_told():
    small = running_memcached("-l", "127.0.0.1", "-m", "2")
    with small as server, pytest.raises(UserError, match="of 9000 records"):
        load_records(Load(server.ip, server.port, records=9000, value_bytes=4000))


def test_a_value_that_memcached_refuses_is_told_in_its_words(server, capsys):
    where = f"{server.ip}:{server.port}"
    assert load_main("-s", where, "--loadonly", "-V", 2**20, "-r", 1) == 1
    assert "too large" in capsys.readouterr().err


class Chatter(StreamRequestHandler):
    """Answers, but not as memcached does."""

    def handle(self):
        while self.rfile.readline():
            self.wfile.write(b"220 welcome\r\n")


def test_a_server_that_is_not_memcached_is_told():
    with ThreadingTCPServer(("127.0.0.1", 0), Chatter) as other:
        other.daemon_threads = True
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(FailedError, match="220 welcome"):
            load_records(Load("127.0.0.1", other.server_address[1]))
        other.shutdown()


def test_the_waveform_is_printed_as_mcperf_does_with_either_spelling(capsys):
    golden = "Total number of intervals = 6 (1486, 13440, 17185, 12790, 6319, 17576)\n"
    assert load_main("--qps-min", 1000, "--qps-max", 20000, "--qps-seed", 3274, "-t", 60, "--dry-run") == 0
    assert capsys.readouterr().out == golden
    words = ("--qps_min", 1000, "--qps_max", 20000, "--qps_seed", 3274, "--qps_interval", 5, "--time", "0.5m")
    assert load_main(*words, "--dry-run") == 0
    assert capsys.readouterr().out == golden
    assert load_main("--qps_target", 7, "--qps-target", 8, "-t", "25", "--dry-run") == 0
    assert capsys.readouterr().out == "Total number of intervals = 3 (7, 8, 7)\n"


def test_the_output_is_read_back_whole(server, tmp_path, capsys):
    path = tmp_path / "mcperf.txt"
    words = ("--qps-target", 400, "--qps-target", 800, "--qps-interval", 1, "--output", path, "--json", "-r", 50)
    assert load_main("-s", f"{server.ip}:{server.port}", *words, "--timeout", PATIENT_S) == 0
    output = mcperf.parse(path.read_text())
    document = json.loads(capsys.readouterr().out)
    assert (output.complete, output.warnings, output.interval_s, output.targets) == (True, (), 1.0, (400, 800))
    assert (output.start_s, output.end_s) == (document["start_s"], document["end_s"])
    assert document["end_s"] >= document["start_s"] + 2
    for row, told in zip(output.rows, document["intervals"], strict=True):
        assert row.p95_us == pytest.approx(1e3 * told["p95_ms"], abs=0.1)
        assert row.qps == pytest.approx(told["qps"], abs=0.1)
        assert (row.target, row.late, told["misses"]) == (told["target_qps"], told["late"], 0)


def test_ctrl_c_ends_in_order_with_what_was_measured(server, tmp_path):
    path = tmp_path / "mcperf.txt"
    target = ("--qps-min", 100, "--qps-max", 500, "--qps-interval", 0.5, "-t", 600, "-r", 10)
    with load_process("-s", f"{server.ip}:{server.port}", *target, "--output", path) as process:
        eventually(lambda: path.exists() and len(mcperf.parse(path.read_text()).rows) >= 2, "two rows while it runs")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 130
    output = mcperf.parse(path.read_text())
    assert "Total QPS" in path.read_text()
    assert (output.interval_s, len(output.targets), output.complete) == (0.5, 1200, False)
    assert len(output.rows) >= 2
    assert output.start_s < output.end_s < output.start_s + 600


def test_sigterm_tells_the_interval_it_is_in(server):
    client = Client((server.ip, server.port))
    with Generator(modest(server, 200, interval_s=600.0)) as generator:
        eventually(lambda: client.stats()[b"cmd_get"] > 10, "requests")
        server.suspend()  # open requests are waited for
        generator.end(signal.SIGTERM)
        timer = threading.Timer(0.2, server.resume)
        timer.start()
        (interval,) = list(generator)
    timer.join()
    assert generator.totals is not None
    assert 10 < interval.answered == interval.sent
    assert interval.seconds < 600


def test_a_killed_command_leaves_no_generator_behind(server):
    target = ("--qps-target", 100, "--qps-interval", 600, "-r", 10)
    with load_process("-s", f"{server.ip}:{server.port}", *target) as process:
        assert process.stdout.readline()
        children = []
        eventually(lambda: children.extend(psutil.Process(process.pid).children()) or children, "a generator")
        process.kill()
        process.wait(DEADLINE_S)
        assert not psutil.wait_procs(children, DEADLINE_S)[1]


def test_nobody_there_is_one_line_and_exit_code_2():
    with load_process("-s", f"127.0.0.1:{free_port()}", "--qps-target", 100) as process:
        out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out, len(err.splitlines())) == (2, "", 1)
    assert "Connection refused" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "how much load"),
        (("--qps-min", 5, "--qps-max", 4), "no range"),
        (("--qps-target", 5, "--records", 1000, "--keysize", 2), "keysize"),
        (("--qps-target", 5, "-u", 2), "ratio"),
        (("--qps-target", 5, "-c", 0), "-c and -T"),
        (("--qps-target", 5, "-t", "100h", "--qps-interval", 1), "intervals"),
        (("--qps-target", 5, "-s", "127.0.0.1:x"), "--server"),
        (("--qps-target", 5, "-s", "no.such.host.invalid"), "no such host"),
        (("--qps-target", 5, "--noload", "--output", "/nowhere/at/all"), "/nowhere"),
        (("--qps-target", 5, "--loadonly", "--noload"), "not allowed"),
    ],
)
def test_bad_input_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        load_main(*words)


def test_a_core_that_is_not_there_is_refused(server):
    with pytest.raises(UserError, match="core 1000"):
        measure(modest(server, 5, cpu=1000))


def test_it_runs_on_the_core_asked_for_at_the_priority_permitted(server):
    core = min(os.sched_getaffinity(0))
    with Generator(modest(server, 100, cpu=core, realtime=True)) as generator:
        assert os.sched_getaffinity(generator.pid) == {core}
        fifo = os.sched_getscheduler(generator.pid) == os.SCHED_FIFO
        assert fifo == (generator.priority == "SCHED_FIFO")
        assert all(i.answered == i.sent for i in generator)


def test_the_histogram_is_exact_to_half_a_per_cent(tmp_path):
    source = tmp_path / "check.c"
    source.write_text(
        """
        #include <stdio.h>
        #include "histogram.h"
        int main(void) {
            static struct histogram h, other;
            for (int64_t i = 1; i <= 100000; i++) record(i % 2 ? &h : &other, i * i, 1);
            merge(&h, &other);
            record(&h, INT64_MAX, 1);
            for (int i = 1; i < 1000; i++) printf("%lld ", (long long)quantile(&h, i / 1000.0));
            printf("%lld %lld %llu", (long long)h.least, (long long)h.most, (unsigned long long)above(&h, 2500000000));
        }
        """
    )
    headers = Path(__file__).parents[1] / "workloads"
    subprocess.run(["cc", "-O1", f"-I{headers}", "-o", tmp_path / "check", source, "-lm"], check=True)
    told = subprocess.run([tmp_path / "check"], check=True, capture_output=True, text=True).stdout
    *quantiles, least, most, above = map(int, told.split())
    assert quantiles == [pytest.approx(math.ceil(i * 100.001) ** 2, rel=0.004) for i in range(1, 1000)]
    assert (least, most) == (1, 2**40 - 1)
    assert above == pytest.approx(50001, rel=0.01)
