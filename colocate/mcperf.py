"""The output of mcperf (memcache-perf-dynamic) in dynamic mode, read and written; and its random waveform.

Reading is lenient: what users have are terminal captures, cut, wrapped, pasted twice. Writing is exact: a row is
formatted as mcperf's own `printf` does it. Latencies are microseconds here, as in the file; times are seconds since
the epoch. `colocate load` adds lines that begin with `#`, which readers of mcperf's format skip.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace

from colocate.errors import UserError

_MODULUS = 2**31 - 1
_QPS_LIMIT = 10**9
_EPOCH_MS = range(10**12, 10**13)  # 2001 to 2286; what is outside was never initialised
_OVERRUN_S = 2.6  # a real run ends up to this much later than planned
_LATE = "# late"
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,6})?"
_ROW = re.compile(rf"read((?:\s+(?:{_NUMBER}|-?nan)){{15}})\s+({_NUMBER})\s+([0-9]{{1,15}})")
_TARGETS = re.compile(r"Total number of intervals = ([0-9]{1,9}) \((.*)")
_TARGETS_GO_ON = re.compile(r"[0-9,\s]*(?:\)\s*)?")
_TIMESTAMP = re.compile(r"Timestamp (start|end): ([0-9]{1,20})\b")
_TOTAL = re.compile(r"Total QPS = \S+ \([0-9]+ / ([0-9]{1,9}(?:\.[0-9]{1,6})?)s\)")
_INTERVAL = re.compile(r"# interval: ([0-9]{1,9}(?:\.[0-9]{1,9})?) s")
_PREAMBLE = re.compile(r"Random waveform|Supplied waveform|Total number of intervals|Timestamp start|#type\b")


@dataclass(frozen=True, slots=True)
class Row:
    """One interval: latencies in microseconds, requests a second reached and asked for.

    `late` says that the generator itself was late, so that the latencies are not the server's.
    """

    avg_us: float
    std_us: float
    min_us: float
    p5_us: float
    p10_us: float
    p50_us: float
    p67_us: float
    p75_us: float
    p80_us: float
    p85_us: float
    p90_us: float
    p95_us: float
    p99_us: float
    p999_us: float
    p9999_us: float
    qps: float
    target: int
    late: bool = False


_LATENCIES = tuple(f.name for f in fields(Row) if f.name.endswith("_us"))
COLUMNS = f"{'#type':<7}" + "".join(f" {name[:-3]:>7}" for name in _LATENCIES) + f" {'QPS':>8} {'target':>8}"


@dataclass(frozen=True, slots=True)
class Output:
    """One run of mcperf.

    Attributes:
        start_s: when the first interval began, where that can be known.
        end_s: when the run ended; as planned, in a file that was left before its end.
        interval_s: the length of an interval: given, else written, else inferred.
        targets: the waveform, empty where the preamble is missing.
        rows: row i covers `[start_s + i * interval_s, start_s + (i + 1) * interval_s)`.
        complete: the trailer is there, and a row for every target.
        warnings: what was odd, one line each.
    """

    start_s: float | None = None
    end_s: float | None = None
    interval_s: float | None = None
    targets: tuple[int, ...] = ()
    rows: tuple[Row, ...] = ()
    complete: bool = False
    warnings: tuple[str, ...] = ()


def waveform(seed: int, qps_min: int, qps_max: int, intervals: int) -> list[int]:
    """The random targets of mcperf, bit for bit: `minstd_rand0` with libstdc++'s `uniform_int_distribution`.

    Raises:
        UserError: the range is empty, negative or above 10^9, or `intervals` is negative.
    """
    if not 0 <= qps_min <= qps_max <= _QPS_LIMIT:
        raise UserError(f"QPS from {qps_min} to {qps_max} is no range", "give 0 <= --qps-min <= --qps-max <= 10^9")
    if intervals < 0:
        raise UserError(f"{intervals} intervals", "give a number from 0")
    x = seed % _MODULUS or 1
    span = qps_max - qps_min + 1
    scale = (_MODULUS - 2) // span
    targets: list[int] = []
    while len(targets) < intervals:
        x = 16807 * x % _MODULUS
        if x - 1 < span * scale:
            targets.append(qps_min + (x - 1) // scale)
    return targets


def parse_row(line: str) -> Row | None:
    """A whole row, or None for any other line and for a damaged row."""
    match = _ROW.fullmatch(line.strip())
    if not match:
        return None
    latencies = map(float, match[1].split())
    return Row(*latencies, float(match[2]), int(match[3]))  # type: ignore[call-arg,arg-type]  # 15 by the pattern


def is_late_mark(line: str) -> bool:
    """Whether the line says that in the row before it the generator itself was late."""
    return line.startswith(_LATE)


def parse(text: str, *, interval_s: float | None = None, window: tuple[float, float] | None = None) -> Output:
    """Read any text; what cannot be read is a warning, never an exception.

    Args:
        text: the file. Where it holds several outputs, the one that overlaps `window` longest is taken, else the last
            that has rows.
        interval_s: the interval's length where it is known; a disagreement with the file is a warning.
        window: (start, end) in seconds since the epoch.
    """
    outputs = parse_all(text, interval_s=interval_s) or [Output(warnings=("no output of mcperf in it",))]
    if window is not None:
        return max(reversed(outputs), key=lambda output: (_overlap_s(output, window), bool(output.rows)))
    return max(reversed(outputs), key=lambda output: bool(output.rows))


def parse_all(text: str, *, interval_s: float | None = None) -> list[Output]:
    """Every output in the text, in its order; as `parse` otherwise."""
    lines = text.split("\n")
    cut_below = len(COLUMNS) if lines[-1].strip() else 0
    part, parts = _Part(), list[_Part]()
    for index, raw in enumerate(lines):
        line = raw.strip()
        if _PREAMBLE.match(line) and part.rows_or_trailer():
            parts.append(part)
            part = _Part()
        if line.startswith("read "):
            row = parse_row(line)
            if row is None or (index == len(lines) - 1 and len(raw.rstrip()) < cut_below):
                part.warnings.append(f"line {index + 1}: the row is cut")
            else:
                part.rows.append(row)
        elif is_late_mark(line) and part.rows:
            part.rows[-1] = replace(part.rows[-1], late=True)
        elif match := _TARGETS.search(line):
            part.read_targets(int(match[1]), match[2], (lines[i] for i in range(index + 1, len(lines))))
        elif match := _TIMESTAMP.search(line):
            if match[1] == "start":
                part.start_ms = int(match[2])
            else:
                part.end_ms = int(match[2])
        elif match := _TOTAL.search(line):
            part.total_s = float(match[1])
        elif match := _INTERVAL.match(line):
            part.interval_s = float(match[1]) or None
    parts.append(part)
    return [p.output(interval_s) for p in parts if p.rows or p.start_ms is not None or p.targets]


def intervals(output: Output) -> list[tuple[float, float, Row]]:
    """(start, end, row) in seconds since the epoch; empty where the start or the interval cannot be known.

    The last one ends with the run where that is earlier.
    """
    if output.start_s is None or output.interval_s is None:
        return []
    spans = []
    for index, row in enumerate(output.rows):
        start_s = output.start_s + index * output.interval_s
        end_s = start_s + output.interval_s
        if index == len(output.rows) - 1 and output.end_s is not None and start_s < output.end_s < end_s:
            end_s = output.end_s
        spans.append((start_s, end_s, row))
    return spans


def format_intervals(targets: Sequence[int]) -> str:
    """The line with the waveform."""
    return f"Total number of intervals = {len(targets)} ({', '.join(map(str, targets))})"


def format_preamble(
    start_s: float,
    end_s: float,
    targets: Sequence[int],
    *,
    interval_s: float | None = None,
    title: str = "Random waveform, supplied seed",
) -> list[str]:
    """The lines above the rows. mcperf prints them at the end of its run; who prints them before it plans `end_s`."""
    return [
        title,
        format_intervals(targets),
        f"Average QPS expected = {sum(targets) // max(1, len(targets))}",
        *([] if interval_s is None else [f"# interval: {interval_s:.9g} s"]),
        f"Timestamp start: {round(1e3 * start_s)}",
        format_end(end_s),
        "",
        COLUMNS,
    ]


def format_end(end_s: float) -> str:
    """The line that tells the end; a later one replaces an earlier one."""
    return f"Timestamp end: {round(1e3 * end_s)}"


def format_row(row: Row) -> str:
    """A row in mcperf's column widths."""
    latencies = "".join(f" {getattr(row, name):7.1f}" for name in _LATENCIES)
    return f"{'read':<7}{latencies} {row.qps:8.1f} {row.target:8d}"


def format_late(reason: str) -> str:
    """The line after a row in which the generator itself was late."""
    return f"{_LATE}: {reason}"


def format_total(requests: int, seconds: float) -> str:
    """The first line of the trailer."""
    return f"Total QPS = {requests / seconds if seconds else 0.0:.1f} ({requests} / {seconds:.1f}s)"


def write(output: Output) -> str:
    """The text that `parse` reads back as `output` (whose warnings it cannot tell). Needs a start and an end.

    Raises:
        ValueError: there is no start or no end.
    """
    if output.start_s is None or output.end_s is None:
        raise ValueError("an output without start or end")
    lines = format_preamble(output.start_s, output.end_s, output.targets, interval_s=output.interval_s)
    for row in output.rows:
        lines += [format_row(row), *([format_late("marked")] if row.late else [])]
    if output.complete:
        seconds = len(output.rows) * (output.interval_s or 0.0)
        lines += ["", format_total(round(sum(r.qps for r in output.rows) * (output.interval_s or 0.0)), seconds)]
    return "\n".join(lines) + "\n"


@dataclass(slots=True)
class _Part:
    """What has been read of one output so far."""

    start_ms: int | None = None
    end_ms: int | None = None
    interval_s: float | None = None
    total_s: float | None = None
    targets: tuple[int, ...] = ()
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def rows_or_trailer(self) -> bool:
        return bool(self.rows) or self.total_s is not None

    def read_targets(self, count: int, text: str, following: Iterable[str]) -> None:
        """The waveform's list, which a terminal may have wrapped anywhere, even inside a number."""
        pieces = [text.rstrip()]
        for line in following:
            if ")" in pieces[-1] or not line.strip() or not _TARGETS_GO_ON.fullmatch(line):
                break
            pieces.append(line.strip())
        self.targets = tuple(int(number) for number in re.findall(r"[0-9]{1,10}", "".join(pieces)))
        if len(self.targets) != count:
            self.warnings.append(f"{count} intervals announced, {len(self.targets)} listed")

    def output(self, given_interval_s: float | None) -> Output:
        warnings = list(self.warnings)
        start_s, end_s = _epoch_s(self.start_ms), _epoch_s(self.end_ms)
        if start_s is not None and end_s is not None and end_s < start_s:
            warnings.append("it ends before it starts")
            start_s = None
        count = max(len(self.targets), len(self.rows))
        inferred_s = self.interval_s
        if inferred_s is None and count:
            if start_s is not None and end_s is not None:
                inferred_s = _infer_interval_s(end_s - start_s, count)
            elif self.total_s:
                inferred_s = _infer_interval_s(self.total_s, count)
        if given_interval_s and inferred_s and not math.isclose(given_interval_s, inferred_s, rel_tol=0.01):
            warnings.append(f"an interval of {given_interval_s:g} s was given, the file tells {inferred_s:g} s")
        interval_s = given_interval_s or inferred_s
        if start_s is None and end_s is not None and interval_s:
            warnings.append("no valid start: counted back from the end")
            start_s = end_s - len(self.rows) * interval_s
        if self.rows and (start_s is None or interval_s is None):
            warnings.append("no valid start, or no length of an interval: the rows have no times")
        if self.targets and len(self.rows) != len(self.targets):
            warnings.append(f"{len(self.rows)} rows for {len(self.targets)} intervals")
        complete = self.total_s is not None and len(self.rows) == (len(self.targets) or len(self.rows))
        return Output(start_s, end_s, interval_s, self.targets, tuple(self.rows), complete, tuple(warnings))


def _epoch_s(ms: int | None) -> float | None:
    return None if ms is None or ms not in _EPOCH_MS else ms / 1e3


def _infer_interval_s(duration_s: float, count: int) -> float | None:
    """The roundest length of which `count` intervals, the last perhaps a part, explain a duration with an overrun."""
    raw_s = duration_s / count
    for step_s in (1.0, 0.5, 0.25):
        length_s = round(raw_s / step_s) * step_s
        if (count - 1) * length_s < duration_s and 0 < count * length_s >= duration_s - _OVERRUN_S:
            return length_s
    return round(raw_s, 3) or None


def _overlap_s(output: Output, window: tuple[float, float]) -> float:
    spans = intervals(output)
    return max(0.0, min(spans[-1][1], window[1]) - max(spans[0][0], window[0])) if spans else 0.0
