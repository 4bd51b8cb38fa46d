"""Loads: what is offered to memcached over time, from mcperf's waveform, shapes, lists and files.

Every adapter gives a `Trace`. A load that is shorter than the run is repeated, so that jobs may outlast it.
"""

from __future__ import annotations

import csv
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from colocate import mcperf
from colocate.errors import UserError

LOADS = """\
  waveform                      mcperf's random load: a new target each --qps-interval, from --qps-min to --qps-max,
                                drawn by the seed, bit for bit what mcperf draws; with --qps-target those, in turn
  step:LOW,HIGH[,AT]            LOW, and HIGH from second AT on (60)
  ramp:LOW,HIGH[,LENGTH]        climbs from LOW to HIGH in LENGTH seconds (300), and stays there
  sine:LOW,HIGH[,PERIOD]        a day, from night to night in PERIOD seconds (600): compress it as you like
  spikes:LOW,HIGH[,EVERY[,LENGTH]]
                                LOW, with spikes to HIGH of LENGTH seconds (one interval), by chance every EVERY
                                seconds (60) on average
  sawtooth:LOW,HIGH[,PERIOD]    climbs in PERIOD seconds (60) and falls back at once; with LOW and HIGH on either
                                side of a threshold it shows whether a policy flutters
  FILE.csv                      two columns under the header time_s,qps; each row holds until the next
  FILE                          what mcperf or `colocate load` printed: its targets, where they are missing what it
                                reached; its own interval
A list or a file that ends before the jobs begins anew; a waveform is drawn for as long as they need.
"""
_HEADER = ["time_s", "qps"]
_MOST_QPS = 1e9
_Shape = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Trace:
    """An offered load, constant between two changes.

    Attributes:
        times_s: when it changes, ascending; the first is 0.
        targets_qps: the load from each of those times on.
        interval_s: the load generator reports over intervals of this length.
        duration_s: the last target holds until then; afterwards there is no load.
        warnings: what was odd about its source, one line each.
    """

    times_s: tuple[float, ...]
    targets_qps: tuple[float, ...]
    interval_s: float
    duration_s: float
    warnings: tuple[str, ...] = ()

    def qps(self, time_s: float) -> float:
        """The load at that time."""
        if not 0 <= time_s < self.duration_s:
            return 0.0
        return self.targets_qps[bisect_right(self.times_s, time_s) - 1]

    def next_change_s(self, time_s: float) -> float:
        """The first time after `time_s` at which it may change; infinite once there is none."""
        index = bisect_right(self.times_s, time_s)
        next_s = self.times_s[index] if index < len(self.times_s) else math.inf
        return min(next_s, self.duration_s) if time_s < self.duration_s else math.inf


def load_trace(
    text: str,
    *,
    qps_min: int,
    qps_max: int,
    interval_s: float,
    seed: int,
    duration_s: float,
    targets: Sequence[float] = (),
) -> Trace:
    """The load that a command line names; `LOADS` is the help.

    Args:
        text: `waveform`, `SHAPE:NUMBERS` or a file.
        qps_min: the waveform's least target.
        qps_max: the waveform's highest.
        interval_s: of a new target, and of a report.
        seed: of the waveform and of spikes.
        duration_s: how long the load lasts.
        targets: in place of the waveform.

    Raises:
        UserError: there is no such load, or its file is bad; names the file and the line.
    """
    name, colon, numbers = text.partition(":")
    if text == "waveform":
        count = math.ceil(duration_s / interval_s)
        drawn = targets or mcperf.waveform(seed, qps_min, qps_max, count)
        return repeated(drawn, interval_s, duration_s)
    if colon and name in _SHAPES:
        return _shaped(name, numbers, interval_s, duration_s, seed)
    path = Path(text)
    if not path.is_file():
        known = ", ".join(("waveform", *_SHAPES))
        raise UserError(f"load {text!r}: no such shape or file", f"give {known} (shapes as NAME:LOW,HIGH) or a file")
    try:
        content = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UserError(f"load {text}: {error.strerror}", "give a file that can be read") from error
    if path.suffix == ".csv":
        return from_csv(content, text, interval_s, duration_s)
    return from_mcperf(content, text, interval_s, duration_s)


def repeated(targets_qps: Sequence[float], interval_s: float, duration_s: float) -> Trace:
    """A target an interval, begun anew as often as the duration asks for."""
    count = max(1, math.ceil(duration_s / interval_s - 1e-9))
    return Trace(
        tuple(index * interval_s for index in range(count)),
        tuple(float(targets_qps[index % len(targets_qps)]) for index in range(count)),
        interval_s,
        duration_s,
    )


def from_csv(text: str, where: str, interval_s: float, duration_s: float) -> Trace:
    """Rows of time and load; times count from the first row, the last row lasts as long as the one before it.

    Raises:
        UserError: no such header, or a bad row; `where` names the file.
    """
    rows = csv.reader(text.splitlines())
    if [cell.strip() for cell in next(rows, [])] != _HEADER:
        raise UserError(f"load {where}: line 1: no header", f"write {','.join(_HEADER)} there")
    times_s: list[float] = []
    loads: list[float] = []
    for row in rows:
        if not row:
            continue
        at = f"load {where}: line {rows.line_num}"
        if len(row) != len(_HEADER):
            raise UserError(f"{at}: {len(row)} columns", f"write two: {','.join(_HEADER)}")
        time_s, qps = (_number(cell, at) for cell in row)
        if times_s and time_s <= times_s[-1]:
            raise UserError(f"{at}: {time_s:g} s is not after the row before it", "sort the rows by time")
        times_s.append(time_s)
        loads.append(qps)
    if not times_s:
        raise UserError(f"load {where}: no rows", "give at least one time and load")
    last_s = times_s[-1] - times_s[-2] if len(times_s) > 1 else interval_s
    length_s = times_s[-1] - times_s[0] + last_s
    changes = [
        (turn * length_s + time_s - times_s[0], qps)
        for turn in range(max(1, math.ceil(duration_s / length_s - 1e-9)))
        for time_s, qps in zip(times_s, loads, strict=True)
    ]
    within = [(time_s, qps) for time_s, qps in changes if time_s < duration_s]
    return Trace(tuple(time_s for time_s, _ in within), tuple(qps for _, qps in within), interval_s, duration_s)


def from_mcperf(text: str, where: str, interval_s: float, duration_s: float) -> Trace:
    """A recorded output: its targets, else what it reached; `interval_s` only where it does not tell its own.

    Raises:
        UserError: there is no load in it; `where` names the file.
    """
    output = mcperf.parse(text)
    targets: Sequence[float] = output.targets or [row.target or row.qps for row in output.rows]
    if not targets:
        raise UserError(
            f"load {where}: no load in it", "give mcperf's output, a .csv, or a shape such as step:LOW,HIGH"
        )
    trace = repeated(targets, output.interval_s or interval_s, duration_s)
    warnings = tuple(f"{where}: {warning}" for warning in output.warnings)
    return Trace(trace.times_s, trace.targets_qps, trace.interval_s, trace.duration_s, warnings)


def _shaped(name: str, text: str, interval_s: float, duration_s: float, seed: int) -> Trace:
    """A shape, held over each interval at its value in the interval's middle, as a load generator would."""
    make, usual, form = _SHAPES[name]
    cells = text.split(",")
    if not 2 <= len(cells) <= 2 + len(usual):
        raise UserError(f"load {name}:{text}: {len(cells)} numbers", f"write {form}")
    low, high, *given = (_number(cell, f"load {name}:{text}") for cell in cells)
    times_s = [*given, *usual[len(given) :]]
    if 0.0 in given:
        raise UserError(f"load {name}:{text}: a time of 0 s", f"write {form} with times above 0")
    draw = random.Random(f"{seed}/spikes")  # noqa: S311 -- a load, no secret
    shape = make(low, high, *(time_s or interval_s for time_s in times_s), interval_s, draw)
    count = max(1, math.ceil(duration_s / interval_s - 1e-9))
    return repeated([shape((index + 0.5) * interval_s) for index in range(count)], interval_s, duration_s)


def _number(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 0 <= value <= _MOST_QPS:
        raise UserError(f"{where}: {cell.strip()!r} is no number from 0 to 10^9", "write plain numbers, such as 20000")
    return value


def _step(low: float, high: float, at_s: float, *_: object) -> _Shape:
    return lambda time_s: low if time_s < at_s else high


def _ramp(low: float, high: float, length_s: float, *_: object) -> _Shape:
    return lambda time_s: low + (high - low) * min(1.0, time_s / length_s)


def _sine(low: float, high: float, period_s: float, *_: object) -> _Shape:
    return lambda time_s: low + (high - low) * (1 - math.cos(2 * math.pi * time_s / period_s)) / 2


def _sawtooth(low: float, high: float, period_s: float, *_: object) -> _Shape:
    return lambda time_s: low + (high - low) * (time_s / period_s % 1.0)


def _spikes(low: float, high: float, every_s: float, length_s: float, interval_s: float, draw: random.Random) -> _Shape:
    until_s = -math.inf

    def shape(time_s: float) -> float:  # asked interval by interval
        nonlocal until_s
        if time_s >= until_s and draw.random() < interval_s / every_s:
            until_s = time_s + max(length_s, interval_s) - interval_s / 2
        return high if time_s < until_s else low

    return shape


_SHAPES: dict[str, tuple[Callable[..., _Shape], tuple[float, ...], str]] = {
    "step": (_step, (60.0,), "step:LOW,HIGH[,AT]"),
    "ramp": (_ramp, (300.0,), "ramp:LOW,HIGH[,LENGTH]"),
    "sine": (_sine, (600.0,), "sine:LOW,HIGH[,PERIOD]"),
    "spikes": (_spikes, (60.0, 0.0), "spikes:LOW,HIGH[,EVERY[,LENGTH]]"),  # 0 is one interval
    "sawtooth": (_sawtooth, (60.0,), "sawtooth:LOW,HIGH[,PERIOD]"),
}
