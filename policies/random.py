"""A coin at every turn: the baseline that any idea must beat, and the shortest example of a policy with state."""

import random

from colocate.policy import Plan, Policy, View, share_out


class Random(Policy):
    """Draws memcached's core count anew every `hold_s` seconds, uniformly between one and all but one.

    Options:
        seed: the same seed makes the same draws.
        hold_s: seconds between draws.
    """

    seed: int = 0
    hold_s: float = 2.0

    def prepare(self) -> None:
        """Seed the generator."""
        self._draw = random.Random(self.seed)  # noqa: S311 -- a policy, not a secret
        self._service = 1
        self._until_s = float("-inf")

    def decide(self, view: View) -> Plan:
        """The count drawn last, and the rest to the jobs."""
        most = max(1, view.total_cores - 1)
        if view.time_s >= self._until_s or self._service > most:
            self._service = self._draw.randint(1, most)
            self._until_s = view.time_s + self.hold_s
        jobs = share_out(view.jobs.values(), view.total_cores - self._service)
        return Plan(self._service, jobs, reason=f"drew {self._service}")
