"""What the load will do next, with the error that such forecasts have had; where the error is large, none is given.

Two things can be forecast apart. A load generator that draws a new level at fixed intervals can be forecast in the time
of its changes, not in their level. A day, a ramp or a saw can be forecast in level. So `ChangeClock` learns when the
load changes, `Levels` what comes next, each by its own measured errors, and `LoadForecast` puts them together.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, pstdev

_BLOCK_S = 0.25  # a look at one tick says little of a load
_SLOT_S = 2.0  # what passes for an interval of the load while it shows none
_STEP_SHARE, _STEP_CORES = 0.06, 0.02  # a smaller change of the level is none
_STEP_SIGMAS = 5.0
_CHANGES = 12  # remembered
_FIT_CHANGES = 6  # needed before a clock is believed: five gaps that agree
_FIT_SHARE = 0.1  # of the interval: a clock that errs more is none
_AGREE = 0.8  # of the changes must fit; the others are noise
_LEAST_S = 0.75  # no shorter interval can be told from noise
_MISSED = 3  # intervals that may pass unseen between two changes, while the load is learned
_RESTART = 0.2  # an interval that differs by more is another one
_LEVELS = 64  # remembered
_TRIALS = 8  # forecasts that a method must have made; by then chance looks like skill in one series of a thousand
_JUDGED = 12  # the errors that count
_RUNNING = 4  # blocks that tell the level of an interval that is not over
_SKILL = 0.5  # a method's error over the spread of the levels, above which it is no better than a guess


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of a load.

    Attributes:
        change_s: when it changes next (infinite: no clock was found), within `late_s`.
        late_s: the clock's error, seconds.
        interval_s: between two changes; of a load without a clock, how far ahead `level` is.
        level: in the next interval, give or take `error`; None where past forecasts were too bad.
        error: root mean square of past errors.
        method: which gave the level; empty for none.
    """

    change_s: float = math.inf
    late_s: float = math.inf
    interval_s: float = _SLOT_S
    level: float | None = None
    error: float = math.inf
    method: str = ""


class ChangeClock:
    """Learns at which fixed interval something changes, from times of changes of which some were missed."""

    def __init__(self) -> None:
        self.interval_s = math.inf
        self.late_s = math.inf
        self._anchor_s = 0.0
        self._seen: deque[float] = deque(maxlen=_CHANGES)

    @property
    def known(self) -> bool:
        """Whether there is an interval that fits."""
        return self.interval_s < math.inf

    def changed(self, time_s: float) -> None:
        """Take in a change."""
        self._seen.append(time_s)
        self.interval_s = self.late_s = math.inf
        if len(self._seen) < _FIT_CHANGES:
            return
        times = list(self._seen)
        gaps = [(b - a) / parts for a, b in pairwise(times) for parts in range(1, _MISSED + 1)]
        tried = [(index // _MISSED, gap) for index, gap in enumerate(gaps) if gap >= _LEAST_S]
        for first, gap_s in sorted(tried, key=lambda one: -one[1]):  # half of an interval fits as well, but says less
            count, interval_s, anchor_s, late_s = _line(times, first, gap_s)
            if count >= _FIT_CHANGES and count >= _AGREE * len(times) and late_s <= _FIT_SHARE * interval_s:
                self.interval_s, self._anchor_s, self.late_s = interval_s, anchor_s, late_s
                return

    def next_s(self, now_s: float) -> float:
        """When the next change is due; infinite if that is not known."""
        if not self.known:
            return math.inf
        return self._anchor_s + self.interval_s * (math.floor((now_s - self._anchor_s) / self.interval_s) + 1)


def _line(times: Sequence[float], first: int, gap_s: float) -> tuple[int, float, float, float]:
    """A regular grid through most of the times, grown from one gap: how many fit, interval, phase, error (rms)."""
    zero_s = times[first]
    on = [(0, 0.0)]  # number and time after `zero_s` of the changes that fit
    interval_s, anchor_s = gap_s, 0.0
    for time_s in sorted((t - zero_s for i, t in enumerate(times) if i != first), key=abs):
        number = round((time_s - anchor_s) / interval_s)
        if abs(anchor_s + number * interval_s - time_s) > 2 * _FIT_SHARE * interval_s or number in {n for n, _ in on}:
            continue
        on.append((number, time_s))
        mean_n, mean_t = fmean(n for n, _ in on), fmean(t for _, t in on)
        spread = sum((n - mean_n) ** 2 for n, _ in on)
        interval_s = sum((n - mean_n) * (t - mean_t) for n, t in on) / spread
        anchor_s = mean_t - interval_s * mean_n
    late_s = rms([anchor_s + n * interval_s - t for n, t in on])
    return len(on), interval_s, zero_s + anchor_s, late_s


class Levels:
    """Forecasts the next of a row of levels by whichever method has erred least: last, trend, or a season ago."""

    def __init__(self) -> None:
        self._levels: deque[float] = deque(maxlen=_LEVELS)
        self._errors: dict[str, deque[float]] = {}

    def add(self, level: float) -> None:
        """Take in a level; first it tells how good each method was."""
        for method, guess in self._guesses().items():
            self._errors.setdefault(method, deque(maxlen=_JUDGED)).append(guess - level)
        self._levels.append(level)

    def forecast(self, running: float | None = None) -> tuple[float, float, str] | None:
        """The next level, its error, and the method; None while none is any good.

        Args:
            running: the level of an interval that is not over yet, if there is one: the next is the one after it.
        """
        rated = {m: rms(e) for m, e in self._errors.items() if len(e) >= _TRIALS}
        if not rated:
            return None
        method = min(rated, key=rated.__getitem__)
        recent = list(self._levels)[-2 * _JUDGED :]
        if rated[method] > max(_SKILL * pstdev(recent), _STEP_SHARE * fmean(recent)):
            return None
        return self._guesses(running)[method], rated[method], method

    def _guesses(self, running: float | None = None) -> Mapping[str, float]:
        levels = [*self._levels, *([] if running is None else [running])]
        if len(levels) < 2:
            return {}
        seasons = {f"season {s}": levels[-s] for s in range(2, len(levels) // 2 + 1)}
        return {"last": levels[-1], "trend": max(0.0, 2 * levels[-1] - levels[-2]), **seasons}


class LoadForecast:
    """Watches a load (in any unit that is linear in it) and says what comes next.

    Attributes:
        changed_s: when the level was last seen to change; minus infinity if never.
    """

    def __init__(self) -> None:
        self.clock = ChangeClock()
        self.levels = Levels()
        self.changed_s = -math.inf
        self._block: list[float] = []
        self._block_end_s = -math.inf
        self._steady: deque[float] = deque(maxlen=40)  # blocks since the last change
        self._slot: list[float] = []
        self._slot_end_s = -math.inf
        self._suspect: float | None = None  # when a block first differed

    def add(self, time_s: float, load: float) -> None:
        """Take in the load of one tick."""
        if not self._block:
            self._block_end_s = time_s + _BLOCK_S
        self._block.append(load)
        if time_s >= self._block_end_s:
            self._take(self._block_end_s - _BLOCK_S, fmean(self._block))
            self._block = []

    def forecast(self, now_s: float) -> Forecast:
        """What is expected from now on."""
        interval_s = self.clock.interval_s if self.clock.known else _SLOT_S
        found = self.levels.forecast(fmean(self._slot[-_RUNNING:]) if self._slot else None)
        level, error, method = found or (None, math.inf, "")
        return Forecast(self.clock.next_s(now_s), self.clock.late_s, interval_s, level, error, method)

    def _take(self, begin_s: float, load: float) -> None:
        if begin_s >= self._slot_end_s:
            self._turn(begin_s)
        if self._differs(load):
            if self._suspect is None:  # the block in which the change fell is half of each
                self._suspect = begin_s
                return
            before_s = self.clock.interval_s
            self.clock.changed(self._suspect)
            if not math.isclose(before_s, self.clock.interval_s, rel_tol=_RESTART):  # the old levels are of other slots
                self.levels, self._slot, self._slot_end_s = Levels(), [], -math.inf
            self.changed_s = self._suspect
            self._steady.clear()
        self._suspect = None
        self._steady.append(load)
        self._slot.append(load)

    def _differs(self, load: float) -> bool:
        if len(self._steady) < 2:
            return False
        level = fmean(self._steady)
        noise = pstdev(self._steady) if len(self._steady) > _RUNNING else 0.0
        return abs(load - level) > max(_STEP_CORES, _STEP_SHARE * level, _STEP_SIGMAS * noise)

    def _turn(self, now_s: float) -> None:
        """An interval of the load is over: its level is what it was in its middle."""
        inner = self._slot[1:-1] or self._slot
        if inner:
            self.levels.add(fmean(inner))
        self._slot = []
        self._slot_end_s = self.clock.next_s(now_s + _BLOCK_S / 2) if self.clock.known else now_s + _SLOT_S


def rms(errors: Sequence[float] | deque[float]) -> float:
    """The root of their mean square."""
    return math.sqrt(fmean(error**2 for error in errors))
