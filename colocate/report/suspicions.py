"""What no rule of the event format forbids and yet makes a recorded run doubtful."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import combinations, pairwise

from colocate.eventlog import SCHEDULER, Deviation, Log, excerpt

_LATE_END_S = 60.0
_PAUSE = re.compile(r"\bpaus(?:e|ed|es|ing)\b", re.IGNORECASE)


def runs(log: Log) -> list[Log]:
    """The runs in one file, each from its `start scheduler`; at least one, perhaps without events."""
    begins = [i for i, e in enumerate(log.events) if i and (e.event, e.job) == ("start", SCHEDULER)]
    lines = [d.line_number for d in log.deviations]
    first = [bisect_left(lines, log.events[i].line_number) for i in begins]
    return [
        Log(log.events[low:high], log.deviations[first:last])
        for (low, high), (first, last) in zip(pairwise([0, *begins, None]), pairwise([0, *first, None]), strict=True)
    ]


def suspicions(log: Log) -> list[Deviation]:
    """Oddities of one run, by name.

    `one-based`: core 0 never appears and the others are 1 to 4, 1 to 6, ...; perhaps they are counted from 1.
    `pause-as-custom`: a custom event tells of a pause and no event records any; run times may contain it.
    `late-end`: `end scheduler` stands more than a minute after the last job's end.
    """
    found: list[Deviation] = []
    ids = frozenset[int]().union(*{e.cores for e in log.events})
    highest = len(ids)
    if highest >= 4 and highest % 2 == 0 and ids == frozenset(range(1, highest + 1)):
        line = next(e.line_number for e in log.events if highest in e.cores)
        found.append(Deviation(line, "one-based", f"core {highest}, never core 0"))
    if not any(e.event == "pause" for e in log.events):
        told = [e for e in log.events if e.event == "custom" and _PAUSE.search(e.comment)]
        found += [Deviation(e.line_number, "pause-as-custom", excerpt(e.comment)) for e in told]
    last = max((e.time for e in log.events if e.batch and e.event == "end"), default=None)
    for event in log.events:
        if last is not None and (event.event, event.job) == ("end", SCHEDULER):
            late_s = (event.time - last).total_seconds()
            if late_s > _LATE_END_S:
                found.append(Deviation(event.line_number, "late-end", f"{late_s:.0f} s after the last job"))
    return found


def same_runs(logs: Mapping[str, Log]) -> list[tuple[str, str]]:
    """Pairs of names under which one and the same run stands."""
    return [(a, b) for a, b in combinations(logs, 2) if logs[a].events and logs[a].events == logs[b].events]


def told(deviations: Iterable[Deviation]) -> list[str]:
    """One line for each kind of deviation: where it stands first, and how often it does."""
    kinds: dict[str, list[Deviation]] = {}
    for deviation in deviations:
        kinds.setdefault(deviation.code, []).append(deviation)
    return [
        f"line {found[0].line_number}: {code}"
        + (f", {len(found)} times" if len(found) > 1 else "")
        + (f": {found[0].text}" if found[0].text else "")
        for code, found in kinds.items()
    ]
