"""What holds for every text that is read as an event log or as mcperf's output, whatever befell it."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime
from itertools import chain

from colocate import mcperf
from colocate.eventlog import check, parse, violations
from colocate.report.grade import Grade, Interval, grade, graded_run, reported_intervals
from colocate.report.suspicions import runs, suspicions, told

LOG = """\
2025-05-14T12:21:56.000000 start scheduler
2025-05-14T12:21:56.000100 start memcached [0] 2
2025-05-14T12:22:01.250000 start radix [2,3] 2
2025-05-14T12:22:03.000000 start my-job_2 [1] 1
2025-05-14T12:22:05.125000 pause my-job_2
2025-05-14T12:22:06.000000 update_cores memcached [0,1]
2025-05-14T12:22:09.500000 update_cores radix [3]
2025-05-14T12:22:09.500000 custom scheduler load+rose%21
2025-05-14T12:22:12.000000 unpause my-job_2
2025-05-14T12:22:20.000000 end radix
2025-05-14T12:22:21.000000 end my-job_2
2025-05-14T12:22:22.000000 end scheduler
"""
BEGIN_S = datetime(2025, 5, 14, 12, 21, 56).timestamp()  # of that log, local as it is
_SHAPE = (0.8, 0.5, 0.3, 0.4, 0.5, 0.7, 0.72, 0.75, 0.8, 0.85, 0.9, 1.0, 2.7, 4.8, 24.6)  # of a row, over its p95
ROWS = tuple(
    mcperf.Row(*(round(p95_us * part, 1) for part in _SHAPE), qps=0.99 * target, target=target)
    for p95_us, target in ((151.0, 1486), (288.3, 13440), (957.3, 17185))
)
OUTPUT = mcperf.write(
    mcperf.Output(BEGIN_S, BEGIN_S + 30.3, None, tuple(row.target for row in ROWS), ROWS, complete=True)
).replace("(0 / 0.0s)", "(317789 / 30.0s)")
_INTERVALS = tuple(Interval(BEGIN_S + 10 * i, BEGIN_S + 10 * (i + 1), ms) for i, ms in enumerate((0.2, 0.9, None)))
_WRITABLE_S = (1e-3, 1e6)  # lengths of an interval that the format can tell
_WIDEST = 1e14  # of a figure in a row


def judge_log(text: str) -> None:
    """Read, check and grade it as an event log.

    Raises:
        AssertionError: what holds for every log does not for this one; any other exception is a fault, too.
    """
    log, broken = parse(text), violations(text)
    numbers = [event.line_number for event in log.events]
    assert numbers == sorted(set(numbers))
    assert all(0 < deviation.line_number <= text.count("\n") + 1 for deviation in log.deviations)
    if not broken:
        assert log.deviations == ()
        assert parse("".join(f"{event}\n" for event in log.events)) == log  # more may be quoted than had to be
    parts = runs(log)
    assert tuple(chain.from_iterable(part.events for part in parts)) == log.events
    assert tuple(chain.from_iterable(part.deviations for part in parts)) == log.deviations
    assert graded_run(log, _INTERVALS) in parts
    for part in parts:
        _one_line_each([*check(part), *told(part.deviations), *told(suspicions(part))])
    _one_line_each(broken)
    for intervals in ((), _INTERVALS):
        verdict = grade(log, intervals)
        judge_grade(verdict)
        spoilt = text.replace("\n", " \t\r\n") + ("" if text.endswith("\n") else " \t\r\n")
        assert replace(grade(parse(spoilt), intervals), warnings=()) == replace(verdict, warnings=())


def judge_output(text: str) -> None:
    """Read it as mcperf's output, write it again, and grade a run by it.

    Raises:
        AssertionError: as of `judge_log`.
    """
    parts = mcperf.parse_all(text)
    log = parse(LOG)
    for output in (*parts, mcperf.parse(text, interval_s=2.0), mcperf.parse(text, window=(BEGIN_S, BEGIN_S + 30))):
        _one_line_each(output.warnings)
        spans = mcperf.intervals(output)
        assert len(spans) in {0, len(output.rows)}
        assert all(start_s <= end_s for start_s, end_s, _ in spans)
        assert output.complete is False or len(output.targets) in {0, len(output.rows)}
        for percentile in (5, 95, 99.9):
            intervals = reported_intervals(output, percentile)
            assert len(intervals) == len(spans)
            judge_grade(grade(log, intervals))
        if writable(output):
            written = mcperf.write(output)
            assert mcperf.write(mcperf.parse(written)) == written
            assert len(mcperf.parse(written).rows) == len(output.rows)
    assert repr(mcperf.parse_all(text.replace("\n", " \t\r\n"))) == repr(parts)  # NaN equals nothing


def judge_grade(verdict: Grade) -> None:
    """What holds for every grade."""
    assert verdict.makespan_s is None or 0 <= verdict.makespan_s < math.inf
    for ratio in (verdict.overlap, verdict.inside, verdict.whole):
        assert 0 <= ratio.violations <= ratio.intervals
        assert ratio.value is None or 0 <= ratio.value <= 1
    assert verdict.inside.intervals <= verdict.overlap.intervals <= verdict.whole.intervals
    assert 0 <= verdict.coverage <= 1
    assert len(verdict.latencies_ms) == verdict.overlap.intervals
    assert verdict.core_moves >= 0
    for job in verdict.jobs.values():
        assert job.start_s >= 0
        assert (job.wall_s is None) is (job.run_s is None)
        assert job.wall_s is None or job.run_s is None or 0 <= job.run_s <= job.wall_s
    _one_line_each(verdict.warnings)


def writable(output: mcperf.Output) -> bool:
    """Whether its figures are such as a run can have, so that the format's columns hold them."""
    figures = [v for row in output.rows for v in (row.avg_us, row.p95_us, row.p9999_us, row.qps) if math.isfinite(v)]
    return (
        output.start_s is not None
        and output.end_s is not None
        and output.interval_s is not None
        and _WRITABLE_S[0] <= output.interval_s <= _WRITABLE_S[1]
        and max(figures, default=0.0) < _WIDEST
    )


def _one_line_each(told: object) -> None:
    assert isinstance(told, list | tuple)
    assert all(isinstance(line, str) and line and line.isprintable() for line in told), told
