"""What was measured, as mcperf's format and as one JSON document; and when the generator was too late to judge."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import TextIO

from colocate import mcperf
from colocate.load.generator import Interval, Load, Totals

LAG_LIMIT_MS = 0.2
_LATE_SHARE = 0.01  # of the requests may be late by over 1 ms


def late_reason(interval: Interval, lag_limit_ms: float = LAG_LIMIT_MS) -> str:
    """Why the latencies of an interval are not the server's; empty where they are.

    Late is an interval whose requests were sent too late by over `lag_limit_ms` at the 95th percentile, which moves
    the p95, or by over 1 ms in more than 1 % of the cases, which moves the p99.
    """
    share = interval.late_over_1ms / interval.sent if interval.sent else 0.0
    lag_p95_ms = interval.lag_us["p95"] / 1e3
    if lag_p95_ms <= lag_limit_ms and share <= _LATE_SHARE:
        return ""
    return f"the generator lagged, p95 {lag_p95_ms:.3f} ms, {100 * share:.1f} % of the requests over 1 ms"


def row(interval: Interval, *, late: bool) -> mcperf.Row:
    """The interval as a row; reads and updates alike are in it."""
    latencies = {f"{name}_us": value for name, value in interval.latency_us.items()}
    return mcperf.Row(**latencies, qps=interval.qps, target=interval.target_qps, late=late)


class Writer:
    """Writes mcperf's format line by line to an open text file; each interval stands there as soon as it has ended."""

    def __init__(self, out: TextIO, load: Load, *, title: str, lag_limit_ms: float = LAG_LIMIT_MS) -> None:
        self._out = out
        self._load = load
        self._title = title
        self._lag_limit_ms = lag_limit_ms

    def begin(self, start_s: float, comments: Iterable[str] = ()) -> None:
        """The preamble, with the planned end; each comment becomes a line of its own."""
        planned_s = len(self._load.targets) * self._load.interval_s
        lines = mcperf.format_preamble(
            start_s,
            start_s + min(planned_s, self._load.duration_s or planned_s),
            self._load.targets,
            interval_s=self._load.interval_s,
            title=self._title,
        )
        self._write([*(f"# {comment}" for comment in comments), *lines])

    def add(self, interval: Interval) -> None:
        """A row, and the mark after it where the generator was late."""
        reason = late_reason(interval, self._lag_limit_ms)
        line = mcperf.format_row(row(interval, late=bool(reason)))
        self._write([line, *([mcperf.format_late(reason)] if reason else [])])

    def end(self, intervals: list[Interval], totals: Totals) -> None:
        """The trailer, with the true end."""
        seconds = sum(i.seconds for i in intervals)
        answered, misses = sum(i.answered for i in intervals), sum(i.misses for i in intervals)
        lost, sent = sum(i.lost for i in intervals), sum(i.sent for i in intervals)
        late = sum(bool(late_reason(i, self._lag_limit_ms)) for i in intervals)
        p95s_ms = [i.lag_us["p95"] / 1e3 for i in intervals] or [0.0]
        most_ms = max((i.lag_us["max"] / 1e3 for i in intervals), default=0.0)
        self._write(
            [
                "",
                mcperf.format_total(answered, seconds),
                "",
                f"Total connections = {self._load.threads * self._load.connections}",
                f"Misses = {misses} ({100 * misses / max(1, answered):.1f}%)",
                "Skipped TXs = 0 (0.0%)",
                "",
                _volume("RX", totals.rx_bytes, seconds),
                _volume("TX", totals.tx_bytes, seconds),
                f"# lost: {lost} of {sent} ({100 * lost / max(1, sent):.1f}%), {totals.disconnects} disconnects",
                f"# lag: p95 {statistics.median(p95s_ms):.3f} ms in the median interval, {max(p95s_ms):.3f} ms in the "
                f"worst, {most_ms:.3f} ms at most; {late} of {len(intervals)} intervals late",
                f"# cpu: {totals.cpu_s:.3f} s ({100 * totals.cpu_s / max(1e-9, seconds):.1f} % of a core)",
                mcperf.format_end(totals.end_ms / 1e3),
            ]
        )

    def _write(self, lines: list[str]) -> None:
        self._out.write("".join(f"{line}\n" for line in lines))  # at once, so that a tail sees row and mark together
        self._out.flush()


def document(
    start_s: float,
    load: Load,
    intervals: list[Interval],
    totals: Totals,
    priority: str,
    lag_limit_ms: float = LAG_LIMIT_MS,
) -> dict[str, object]:
    """The run for `--json`: times in seconds, latencies and lags in milliseconds, `null` where nothing was sent."""
    return {
        "start_s": start_s,
        "end_s": totals.end_ms / 1e3,
        "interval_s": load.interval_s,
        "complete": len(intervals) == len(load.targets),
        "priority": priority,
        "disconnects": totals.disconnects,
        "cpu_s": totals.cpu_s,
        "intervals": [
            {
                "start_s": round(start_s + i.interval * load.interval_s, 6),
                "seconds": i.seconds,
                **{f"{p}_ms": round(i.latency_us[p] / 1e3, 4) if i.sent else None for p in ("p50", "p95", "p99")},
                "qps": i.qps,
                "target_qps": i.target_qps,
                "sent": i.sent,
                "lost": i.lost,
                "errors": i.errors,
                "misses": i.misses,
                "lag_ms": {name: round(value / 1e3, 4) if i.sent else None for name, value in i.lag_us.items()},
                "late": bool(late_reason(i, lag_limit_ms)),
            }
            for i in intervals
        ],
    }


def _volume(name: str, count: int, seconds: float) -> str:
    return f"{name} {count:10d} bytes : {count / 2**20 / max(1e-9, seconds):6.1f} MB/s"
