"""Why memcached had the cores that it had: what was seen, what was planned, changed and done, and what came of it.

Plain sentences from a run's event log and, where there is one, its metrics file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from colocate.cores import format_list
from colocate.errors import UserError
from colocate.eventlog import SERVICE
from colocate.report.record import Record
from colocate.report.timeline import EFFECT_S, Change, Stretch, Timeline, listed

_WORDS = {
    "pin": "memcached was pinned to {cores}", "create": "{target} was created ahead of its start",
    "start": "{target} was started on {cores}", "resize": "{target} was given {cores}", "pause": "{target} was paused",
    "resume": "{target} was let go on", "stop": "{target} was stopped",
}  # fmt: skip


def parse_moment(text: str, line: Timeline) -> float:
    """A time as users write it, in seconds from the first job's start.

    `11:32:07` and `2026-04-12T11:32:07.5` are the log's clock; `125` or `125s` counts from the first job's start.

    Raises:
        UserError: it is none of these, or outside the run.
    """
    if line.zero is None:
        raise UserError("there is no event in the log", "give an event log")
    begin = line.zero + timedelta(seconds=line.begin_s)
    if match := re.fullmatch(r"(-?\d{1,9}(?:\.\d{1,9})?)\s*s?", text):
        time_s = float(match[1])
    else:
        try:
            if re.match(r"\d{1,2}:", text):
                clock = datetime.strptime(text.partition(".")[0], "%H:%M:%S").time()
                fraction_s = float(f"0.{text.partition('.')[2] or 0}")
                moment = datetime.combine(begin.date(), clock) + timedelta(seconds=fraction_s)
                if moment < begin - timedelta(seconds=1):  # the run went on past midnight
                    moment += timedelta(days=1)
            else:
                moment = datetime.fromisoformat(text).replace(tzinfo=None)
        except (ValueError, OverflowError) as error:  # the latter on the last day of all eras
            raise UserError(f"--at {text!r} is no time", "write it like 11:32:07 or 125s") from error
        time_s = (moment - line.zero).total_seconds()
    if not line.begin_s - 1 <= time_s <= line.end_s + 1:
        end = line.zero + timedelta(seconds=line.end_s)
        raise UserError(f"--at {text!r} is outside the run", f"it went from {begin:%H:%M:%S} to {end:%H:%M:%S}")
    return time_s


def explain(record: Record, time_s: float) -> list[str]:
    """Why memcached had its cores at that time, a sentence or two a line."""
    line = record.timeline
    held = _at(line.service, time_s)
    lines = [_now(line, time_s, held)]
    change = next((c for c in reversed(line.changes) if c.target == SERVICE and c.time_s <= time_s), None)
    if change is not None:
        lines.append(_since(line, change, held))
    lines.append(_jobs(line, time_s))
    ticks = _Ticks(record)
    decisive = ticks.deciding(change) if change is not None else None
    if decisive is not None and change is not None:
        lines += ["", f"What led to it, at {_clock(line, decisive.time_s)}:", *_tick(decisive, record)]
        lines.append(_effect(ticks, change.time_s, record))
    here = ticks.before(time_s)
    if here is not None and (decisive is None or here.time_s - decisive.time_s > EFFECT_S):
        lines += ["", f"At {_clock(line, here.time_s)} itself:", *_tick(here, record)]
        lines.append(_effect(ticks, time_s, record))
    if here is None and decisive is None:
        lines += ["", *_without_metrics(record, time_s)]
    return lines


def story(record: Record) -> list[str]:
    """Every change of memcached's cores, a line each: when, from what to what, why, and the latency's answer."""
    line = record.timeline
    told = []
    for change in line.changes:
        if change.target != SERVICE:
            continue
        before, after = change.latency_ms
        why = f", because {change.reason}" if change.reason else ""
        effect = f"; p{record.slo.percentile:g} {_ms(before)} then, {_ms(after)} after" if after is not None else ""
        cores = " -> ".join(format_list(cores) for cores in (change.before, change.cores) if cores)
        told.append(f"{_clock(line, change.time_s)} ({change.time_s:.1f} s) {cores}{why}{effect}")
    return told or ["memcached's cores are not in this log."]


class _Tick:
    """One record of the metrics file, at its time on the run's axis."""

    def __init__(self, time_s: float, record: Mapping[str, Any]) -> None:
        self.time_s = time_s
        self.record = record

    def number(self, name: str) -> float | None:
        value: float | None = self.record.get(name)
        return value

    @property
    def fresh_ms(self) -> float | None:
        """The latency, if it is of the last second."""
        age_s = self.number("latency_age_s")
        return self.number("latency_ms") if age_s is not None and age_s < EFFECT_S else None


class _Ticks:
    def __init__(self, record: Record) -> None:
        begin, zero = record.metrics.begin, record.timeline.zero
        shift_s = (begin - zero).total_seconds() if begin and zero else 0.0
        self.all = [_Tick(shift_s + tick["t"], tick) for tick in record.metrics.ticks] if begin and zero else []

    def before(self, time_s: float) -> _Tick | None:
        """The last one until then."""
        return next((tick for tick in reversed(self.all) if tick.time_s <= time_s + 0.1), None)

    def deciding(self, change: Change) -> _Tick | None:
        """The one whose plan brought memcached's cores about."""
        for tick in reversed(self.all):
            if change.time_s - 10 < tick.time_s <= change.time_s + 0.1 and any(
                target == SERVICE for _, target, _ in tick.record["moves"]
            ):
                return tick
        return None

    def between(self, begin_s: float, end_s: float) -> list[_Tick]:
        return [tick for tick in self.all if begin_s <= tick.time_s <= end_s]


def _now(line: Timeline, time_s: float, held: Stretch | None) -> str:
    when = f"At {_clock(line, time_s)}, {time_s:.1f} s after the first job's start,"
    if held is None or not held.cores:
        return f"{when} the log does not say which cores memcached had."
    return f"{when} memcached had {_count(len(held.cores))}, {format_list(held.cores)}."


def _since(line: Timeline, change: Change, held: Stretch | None) -> str:
    since = f"It had them since {_clock(line, change.time_s)}"
    if change.before and change.before != change.cores:
        since += f" (until then {_count(len(change.before))}, {format_list(change.before)})"
    until = f" and kept them until {_clock(line, held.end_s)}" if held and held.end_s < line.end_s else ""
    return f"{since}{until}." + (f" The reason given was: {change.reason}." if change.reason else "")


def _jobs(line: Timeline, time_s: float) -> str:
    running, paused = list[str](), list[str]()
    for name, stretches in line.jobs.items():
        if (stretch := _at(stretches, time_s)) is not None:
            (paused if stretch.paused else running).append(f"{name} {listed(stretch.cores)}")
    told = f"Jobs that ran: {', '.join(running) or 'none'}."
    return f"{told} Paused: {', '.join(paused)}." if paused else told


def _tick(tick: _Tick, record: Record) -> list[str]:
    lines = [f"  Seen: {_seen(tick, record)}."]
    if plan := tick.record.get("plan"):
        jobs = ", ".join(f"{name} {count}" for name, count in plan[1].items() if count)
        shared = f", and let {', '.join(share)} use memcached's, too" if (share := tick.record.get("share")) else ""
        policy = tick.record.get("policy") or "the policy"
        reason = f", because {why}" if (why := tick.record.get("reason")) else ""
        given = f"{_count(plan[0])} to memcached, {jobs or 'none to jobs'}"
        lines.append(f"  Planned by {policy}: {given}{shared}{reason}.")
    changed = "; ".join(f"{name}: {why}" for name, why in tick.record.get("rules", [])) or "nothing"
    lines.append(f"  The regulator changed: {changed}.")
    moves = [
        _WORDS[kind].format(target=target, cores=listed(frozenset(cores)))
        for kind, target, cores in tick.record["moves"]
        if kind in _WORDS
    ]
    lines.append(f"  Done: {'; '.join(moves) or 'nothing'}.")
    return lines


def _seen(tick: _Tick, record: Record) -> str:
    parts = []
    if (qps := tick.number("qps")) is not None:
        parts.append(f"{qps:,.0f} requests a second")
    if (cpu := tick.number("cpu_cores")) is not None:
        parts.append(f"memcached used {cpu:.2f} cores of CPU")
    if (wait_us := tick.number("wait_us")) is not None:
        parts.append(f"it waited {wait_us:.0f} us a time slice for a core")
    name, promise = f"p{record.slo.percentile:g}", f"(the promise is {record.slo.latency_ms:g} ms)"
    if (latency_ms := tick.number("latency_ms")) is not None:
        age_s, samples = tick.number("latency_age_s"), tick.record.get("latency_samples")
        parts.append(f"{name} {latency_ms:.2f} ms {promise} of {samples} requests, {age_s or 0.0:.1f} s old")
    else:
        parts.append(f"{name} not known {promise}")
    if busy := tick.record.get("busy"):
        parts.append("cores busy: " + ", ".join(f"{core} {share:.0%}" for core, share in busy.items()))
    return "; ".join(parts)


def _effect(ticks: _Ticks, time_s: float, record: Record) -> str:
    """What the latency did in the second after."""
    name = f"p{record.slo.percentile:g}"
    then = ticks.before(time_s)
    after = [t.fresh_ms for t in ticks.between(time_s, time_s + EFFECT_S) if t.fresh_ms is not None]
    if not after:
        return f"  In the second after, {name} was not measured."
    first = then.fresh_ms if then else None
    start = f"from {_ms(first)} " if first is not None else ""
    verdict = "within the promise" if max(after) <= record.slo.latency_ms else "over the promise"
    return f"  In the second after, {name} went {start}to {_ms(after[-1])}, at most {_ms(max(after))}: {verdict}."


def _without_metrics(record: Record, time_s: float) -> Sequence[str]:
    lines = ["There is no metrics file beside this log, so that what was seen and planned is not known."]
    interval = next((i for i in record.timeline.intervals if i.start_s <= time_s < i.end_s), None)
    if interval is not None and interval.latency_ms is not None:
        qps = f" at {interval.qps:,.0f} requests a second" if interval.qps is not None else ""
        length_s = interval.end_s - interval.start_s
        seen = f"p{record.slo.percentile:g} {interval.latency_ms:.2f} ms{qps}"
        lines.append(f"The load generator saw {seen} in those {length_s:g} s.")
    near = [r for r in record.timeline.remarks if abs(r.time_s - time_s) <= EFFECT_S]
    return [*lines, *(f"The log remarks on {remark.target}: {remark.text}" for remark in near)]


def _at(stretches: Sequence[Stretch], time_s: float) -> Stretch | None:
    return next((stretch for stretch in stretches if stretch.begin_s <= time_s < stretch.end_s), None)


def _clock(line: Timeline, time_s: float) -> str:
    moment = line.moment(time_s)
    return f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d}" if moment else f"{time_s:.3f} s"


def _count(cores: int) -> str:
    return f"{cores} core{'s' * (cores != 1)}"


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} ms"
