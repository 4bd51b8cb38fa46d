"""Measurements that cannot be: taken out of an observation before anybody goes by them.

A signal that is no number, negative, or from another time than it says is worse than none: compared with a threshold it
looks like calm. Without it the regulator's rule for missing signals holds, and memcached keeps its cores.
"""

from __future__ import annotations

import math
from dataclasses import replace

from colocate.view import Observation, Signal

_SHORTEST_MS = 1e-3  # no answer comes through a socket in less: milliseconds were taken for microseconds
_GAP_S = 1.0  # an average over longer says little of now, unless it is usual
_USUAL = 3.0
_SIGNALS = ("cpu_cores", "wait_us", "wait_cores", "qps", "latency_ms")
_AVERAGED = _SIGNALS[:3]  # over the time since the last observation
_UNKNOWN = Signal()


def vetted(seen: Observation, before_s: float | None, usual_s: float) -> tuple[Observation, list[str]]:
    """The observation without what cannot be, and what that was.

    Args:
        seen: as the host gave it.
        before_s: the time of the last one; None for the first.
        usual_s: the time between the two before.
    """
    wrong = [name for name in _SIGNALS if _impossible(name, getattr(seen.service, name))]
    remarks = [f"{name} is no measurement, ignored" for name in wrong]
    gap_s = 0.0 if before_s is None else seen.time_s - before_s
    if gap_s < 0 or (gap_s == 0 and seen.service.cpu_cores.value is not None and before_s is not None):
        remarks.append("an observation is not newer than the last one, its signals are ignored")
        wrong = [*_SIGNALS]
        seen = replace(seen, time_s=seen.time_s - min(0.0, gap_s))
    if wrong:
        seen = replace(seen, service=replace(seen.service, **dict.fromkeys(wrong, _UNKNOWN)))  # type: ignore[arg-type]  # signals
    if gap_s > max(_GAP_S, _USUAL * usual_s):
        aged = {name: replace(getattr(seen.service, name), age_s=gap_s) for name in _AVERAGED}
        seen = replace(seen, service=replace(seen.service, **aged))
        remarks.append("nothing was seen for more than a second, the average over it is not gone by")
    return seen, remarks


def _impossible(name: str, signal: Signal) -> bool:
    value = signal.value
    if value is None:
        return False
    least = _SHORTEST_MS if name == "latency_ms" else 0.0
    return not least <= value < math.inf or not signal.age_s >= 0.0
