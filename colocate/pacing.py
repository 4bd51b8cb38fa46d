"""How often to move: a budget of tokens, and the token's period tuned by what moving does to the latency.

Moving too seldom leaves cores where they are not needed, moving too often disturbs what runs. The latency against the
rate of moves is U-shaped, and where the bottom lies depends on the machine. Source of the idea: Chen et al.,
"Scheduling Cloud Block Storage Proactively and Reactively with Omar" (EuroSys 2026), there for segment migrations.
"""

from __future__ import annotations

import math

_BETA1, _BETA2 = 0.9, 0.999  # Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015), section 2
_NOISE = 0.1  # a slope (log latency by log rate, so between -1 and 1) below this is not worth following
_SETTLES = 1 / 3  # of a window: until then its latency may still tell of the window before
_LEAST_CHANGE = 0.25  # of the log rate (the probe makes 0.67); less is chance, and a slope over it near 0/0
_LEAST_TOKENS = 6  # a window in which fewer come tells little of a rate
_STRAY_MOVES = 0.5  # added to each count, so that also none has a logarithm


class Tokens:
    """A budget of moves: one token comes every `period_s`, up to `most` are kept, `limit` can be borrowed.

    Args:
        period_s: between two tokens.
        limit: the balance is never below minus this.
        most: the balance is never above this; it begins here.
    """

    def __init__(self, period_s: float, limit: float, most: float) -> None:
        self.period_s = period_s
        self.limit = limit
        self.most = most
        self.balance = most
        self._now_s: float | None = None

    @property
    def any(self) -> bool:
        """Whether there is a whole token; more may then be spent at once, on credit."""
        return self.balance >= 1.0

    def earn(self, now_s: float) -> None:
        """Add what has come since the last time."""
        passed_s = 0.0 if self._now_s is None else max(0.0, now_s - self._now_s)
        self._now_s = now_s
        self.balance = min(self.most, self.balance + passed_s / self.period_s)

    def spend(self, moves: int) -> None:
        """Pay for moves. What goes beyond the limit is remitted: an emergency is not called off for a debt."""
        self.balance = max(-self.limit, self.balance - moves)


class Adam:
    """Adam's step (Kingma and Ba 2015, algorithm 1): how far to go against a noisy slope.

    Args:
        rate: the longest usual step.
        noise: epsilon; slopes well below it make small steps.
    """

    def __init__(self, rate: float, noise: float = _NOISE) -> None:
        self._rate, self._noise = rate, noise
        self._mean = self._square = 0.0
        self._steps = 0

    def step(self, slope: float) -> float:
        """What to add to the variable whose slope this is, to go downhill."""
        self._steps += 1
        self._mean = _BETA1 * self._mean + (1 - _BETA1) * slope
        self._square = _BETA2 * self._square + (1 - _BETA2) * slope**2
        mean = self._mean / (1 - _BETA1**self._steps)
        square = self._square / (1 - _BETA2**self._steps)
        return -self._rate * mean / (math.sqrt(square) + self._noise)


class Tuner:
    """Finds the token period at which the latency is lowest, from windows with a rate of moves and a latency each.

    Everything is in logarithms: a period may be wrong by a factor, and the slope of the latency is then between -1 and
    1 on any machine (for `base * (1 + a * rate + b / rate)`). The slope between two windows is a finite difference.
    So that it can be measured when nothing else changes, the period is in turn `probe` times longer and shorter than
    the centre, which also lets a slow drift of the latency cancel out. The first window halves the centre, as Omar
    does, or doubles it where the budget held nothing back: then halving would change nothing. Two windows with nearly
    the same rate, or one without a latency, make no step; but where the budget also held nothing back, the centre grows
    by `probe` a window, up to `probe` times the pace at which moves are wanted: all shorter ones are alike.

    The lowest latency is worth nothing where any latency up to `good_ms` will do: all up to there count as equal, and a
    window with no other brings the centre half of the way back to where it began.

    Args:
        period_s: the centre to begin with.
        range_s: the least and the highest centre.
        window_s: least length of a window; it lasts until a few tokens have come.
        probe: the factor by which the period swings around the centre.
        rate: the longest usual step of the centre's logarithm.
        good_ms: latencies up to this are as good as any.
    """

    def __init__(
        self,
        period_s: float,
        range_s: tuple[float, float],
        window_s: float,
        probe: float = 1.4,
        rate: float = 0.2,
        good_ms: float = 0.0,
    ) -> None:
        self.centre_s = period_s
        self.good_ms = good_ms
        self.windows = 0
        self._start_s = period_s
        self._first = True
        self._range_s = range_s
        self._window_s = window_s
        self._probe = probe
        self._adam = Adam(rate)
        self._begin_s: float | None = None
        self._moves = 0
        self._held = False
        self._good = True  # whether every latency was
        self._logs = (0, 0.0)  # of the latencies in this window: how many, and their sum
        self._before: tuple[float, float] | None = None  # the last window's log rate and mean log latency

    @property
    def period_s(self) -> float:
        """The period that holds now."""
        return self.centre_s * (self._probe if self.windows % 2 else 1 / self._probe)

    def tick(self, now_s: float, moves: int, latency_ms: float | None, *, held: bool) -> None:
        """Take in what one tick showed.

        Args:
            now_s: when.
            moves: how many there were since the last tick.
            latency_ms: of this instant; None where it is not known.
            held: whether the budget held a move back.
        """
        if self._begin_s is None:
            self._begin_s = now_s
        self._moves += moves
        self._held = self._held or held
        length_s = max(self._window_s, _LEAST_TOKENS * self.period_s)
        passed_s = now_s - self._begin_s
        if latency_ms is not None and 0 < latency_ms < math.inf and passed_s >= _SETTLES * length_s:
            count, total = self._logs
            self._logs = (count + 1, total + math.log(max(latency_ms, self.good_ms)))
            self._good = self._good and latency_ms <= self.good_ms
        if passed_s >= length_s:
            self._close(passed_s)
            self._begin_s, self._moves, self._held, self._good, self._logs = now_s, 0, False, True, (0, 0.0)

    def _close(self, passed_s: float) -> None:
        """A window is over: a step, if there is a slope."""
        count, total = self._logs
        rate = math.log((self._moves + _STRAY_MOVES) / passed_s)
        seen = (rate, total / count) if count else None
        if count and self._good:
            self._scale(math.sqrt(self._start_s / self.centre_s))
        elif self._first:
            self._first = False
            self._scale(0.5 if self._held else 2.0)
        elif seen and self._before and abs(change := rate - self._before[0]) >= _LEAST_CHANGE:
            slope = max(-1.0, min(1.0, (seen[1] - self._before[1]) / change))
            self._scale(math.exp(-self._adam.step(slope)))  # to move more often is a shorter period
        elif self._moves and not self._held:
            self._scale(max(1.0, min(self._probe, self._probe * passed_s / self._moves / self.centre_s)))
        self._before = seen
        self.windows += 1

    def _scale(self, factor: float) -> None:
        least_s, most_s = self._range_s
        self.centre_s = max(least_s, min(most_s, self.centre_s * factor))
