"""A second policy beside the acting one: it sees the same views, its plans are regulated and never carried out."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from colocate.policy import Choice, Plan, View
from colocate.regulator import Deadline, Limits, Regulator

_DEADLINE_S = 0.05  # a period: what a shadow that hangs may cost the loop, once for each strike


@dataclass(frozen=True, slots=True)
class Difference:
    """How a count of the shadow's compares with the acting policy's: shares of the ticks, and the mean difference."""

    more: float
    fewer: float
    same: float
    mean_cores: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What a shadow came to.

    Attributes:
        policy: its label.
        ticks: at how many it was asked.
        disagreements: at how many its plan (memcached's cores, each job's, who shares) was another one.
        service: memcached's cores; None while it has not been asked.
        jobs: all jobs' cores together.
        strikes: its failures.
        interventions: how often each rule of the regulator changed its plan.
        dropped: why it is asked no more; empty while it is.
    """

    policy: str
    ticks: int
    disagreements: int
    service: Difference | None
    jobs: Difference | None
    strikes: int
    interventions: dict[str, int]
    dropped: str

    def __str__(self) -> str:
        """In one line, for the log."""
        if self.service is None or self.jobs is None:
            return f"{self.policy}: no decision"
        return (
            f"{self.policy}: another plan at {self.disagreements} of {self.ticks} ticks; "
            f"memcached's cores: {told(self.service)}; the jobs': {told(self.jobs)}"
        )


def told(difference: Difference) -> str:
    """A difference in words."""
    return (
        f"more at {difference.more:.1%}, fewer at {difference.fewer:.1%}, same at {difference.same:.1%}, "
        f"mean difference {difference.mean_cores:+.2f}"
    )


class Shadow:
    """Asks a policy what it would have done.

    Args:
        choice: the policy.
        limits: the regulator's options, as for the acting policy but for the deadline.
        deadline: the host's time limit.
    """

    def __init__(self, choice: Choice, limits: Limits, deadline: Deadline) -> None:
        limits = replace(limits, deadline_s=min(limits.deadline_s, _DEADLINE_S))
        self.regulator = Regulator(choice.policy, limits, deadline, choice.label)
        self.policy = choice.policy
        self.dropped = ""
        self._held: int | None = None  # memcached's cores by its own last plan
        self._rests_until_s = float("-inf")
        self._disagreements = 0
        self._service = _Tally()
        self._jobs = _Tally()
        self._random = random.getstate()

    def ask(self, view: View, acting: Plan, now: Callable[[], float]) -> tuple[Plan | None, str]:
        """Its plan for this view, compared with the acting policy's; and, once, a remark that it was dropped.

        None where it was not asked. After each decision it rests for as long as that took, so that a slow one never
        delays two ticks in a row.
        """
        start_s = now()
        if self.dropped or start_s < self._rests_until_s:
            return None, ""
        # The rules that look at what memcached has (no shrinking in haste or on stale signals) go by what this policy
        # last gave it, as if its plans were carried out. By the acting policy's cores a plan that keeps to fewer
        # would be a new shrinking at every tick. The policy itself sees the world as it is, which the other makes.
        theirs = random.getstate()  # what the acting policy draws must not depend on who watches
        random.setstate(self._random)
        plan, _ = self.regulator.plan(view, self._held)
        self._random = random.getstate()
        random.setstate(theirs)
        self._held = plan.service
        end_s = now()
        self._rests_until_s = end_s + (end_s - start_s)
        regulator = self.regulator
        if regulator.strikes >= regulator.limits.strikes:
            self.dropped = f"failed {regulator.strikes} times; at first: {regulator.first_fault}"
            return None, f"shadow {regulator.label} dropped: {self.dropped}"
        self._service.add(plan.service - acting.service)
        self._jobs.add(sum(plan.jobs.values()) - sum(acting.jobs.values()))
        self._disagreements += brief(plan) != brief(acting)
        return plan, ""

    def figures(self) -> Figures:
        """What it came to so far."""
        return Figures(
            self.regulator.label,
            self._service.ticks,
            self._disagreements,
            self._service.difference(),
            self._jobs.difference(),
            self.regulator.strikes,
            dict(self.regulator.counts),
            self.dropped,
        )


def brief(plan: Plan) -> tuple[int, dict[str, int], list[str]]:
    """What of a plan can be compared: memcached's cores, each job's, and who shares."""
    return plan.service, dict(plan.jobs), sorted(plan.share)


class _Tally:
    def __init__(self) -> None:
        self.ticks = self.more = self.fewer = self.sum = 0

    def add(self, difference: int) -> None:
        self.ticks += 1
        self.more += difference > 0
        self.fewer += difference < 0
        self.sum += difference

    def difference(self) -> Difference | None:
        n = self.ticks
        if not n:
            return None
        return Difference(self.more / n, self.fewer / n, (n - self.more - self.fewer) / n, self.sum / n)
