"""Policies for runs that are to be tried: some move all the time, some fail."""

from __future__ import annotations

import time

from colocate.policy import Plan, Policy, View, in_order, share_out


def split(view: View, service: int, reason: str) -> Plan:
    """So many cores for memcached, the rest for the jobs."""
    return Plan(service, share_out(view.jobs.values(), view.total_cores - service), reason=reason)


class Follow(Policy):
    """All cores for memcached at the tick that shows it busy, one again when it has not been for a while.

    Naive on purpose: it takes what it does not know for nothing.

    Options:
        by: the signal that shows it.
        high: the signal when it is busy; of `cpu_cores`, in cores.
        low: and when it is not.
        hold_s: seconds for which it must not have been.
    """

    by: str = "cpu_cores"
    high: float = 0.5
    low: float = 0.2
    hold_s: float = 1.0

    def prepare(self) -> None:
        self._service = 1
        self._busy_s = 0.0

    def decide(self, view: View) -> Plan:
        used = getattr(view.service, self.by).value or 0.0
        if used > self.high:
            self._service = view.total_cores
        if used > self.low:
            self._busy_s = view.time_s
        elif view.time_s - self._busy_s > self.hold_s:
            self._service = 1
        return split(view, self._service, f"{self.by} {used:.2f}")


class Sway(Policy):
    """Memcached gets all cores and one in turn, as fast as the regulator lets it shrink."""

    def prepare(self) -> None:
        self._ticks = 0

    def decide(self, view: View) -> Plan:
        self._ticks += 1
        return split(view, view.total_cores if self._ticks % 16 < 3 else 1, "to and fro")


class Swap(Policy):
    """Of two jobs each has a core of its own in turn, the other shares memcached's; one that is alone does at times.

    Both are so resized every other tick, also where there are but two cores. The other jobs wait.
    """

    def prepare(self) -> None:
        self._ticks = 0

    def decide(self, view: View) -> Plan:
        self._ticks += 1
        turn, names = self._ticks // 2, [job.name for job in in_order(view.jobs.values(), "")[:2]]
        if not names:
            return Plan(1)
        owner = names[turn % len(names)]
        share = frozenset(names) - {owner} if len(names) > 1 else frozenset(names[: turn % 2])
        return Plan(1, {name: int(name == owner) for name in view.jobs}, share, "each in turn")


class Raises(Policy):
    """Always."""

    def decide(self, view: View) -> Plan:
        raise RuntimeError("told to")


class Nonsense(Policy):
    """What is no plan, or an impossible one, in turn."""

    def prepare(self) -> None:
        self._turn = 0

    def decide(self, view: View) -> Plan:
        self._turn += 1
        answers: list[object] = [
            None, 7, "plan", Plan(-1), Plan(0), Plan(1, {"nobody": 1}), Plan(10**9), Plan(1, {"one": 10**6}),
            Plan(1, share=frozenset({"nobody"})), Plan(1, threads={"one": -1}), Plan(True), {"service": 1},
        ]  # fmt: skip
        return answers[self._turn % len(answers)]  # type: ignore[return-value]  # that is the point


class Sleeps(Policy):
    """Ten seconds, whatever it is asked."""

    def decide(self, view: View) -> Plan:
        time.sleep(10.0)
        return split(view, 1, "well rested")


class Leaks(Policy):
    """A megabyte at every tick."""

    def prepare(self) -> None:
        self._kept: list[bytearray] = []

    def decide(self, view: View) -> Plan:
        self._kept.append(bytearray(1 << 20))
        return split(view, 1, f"{len(self._kept)} MB lost")
