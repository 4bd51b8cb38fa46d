"""HyperPilot's best-effort controller: batch work's share of the machine grows and shrinks in proportion to the slack.

Source: the CPU quota controller of github.com/Hyperpilotio/be-controller (2018), with its constants: the heir of
Heracles by one of its authors.

Its actuator is a CPU quota of each batch container, beside a service on all cores. Here the quota is of all batch work
together, and it is rounded to whole cores that memcached does not have; the exact quota is kept. Below
`slack_disable` it kills batch work, whose cluster then starts it elsewhere; here there is nowhere else, so the jobs are
paused. What this host lacks: its network and disk controllers (HTB, blkio).
"""

import math

from colocate.policy import Plan, Policy, View, share_out

_ROUNDING_S = 1e-6


class BeController(Policy):
    """Every `period_s` the first rule that fits acts on the quota: off, least, shrink, shrink for CPU use, grow.

    Options:
        period_s: between two looks; latency and CPU use are means over it.
        slack_disable: slack, as a share of the target, below which batch work is off until it may grow again.
        slack_reset: below which it gets the least quota.
        slack_shrink: below which it shrinks, the more the further below.
        slack_grow: above which it may grow.
        load_shrink: CPU use of the machine above which it shrinks, the more the further above.
        load_grow: below which it may grow.
        grow_ratio: growth by the slack.
        shrink_ratio: shrinking by what is missing.
        least: quota, as a share of the machine.
        most: quota, as a share of the machine.
    """

    period_s: float = 2.0
    slack_disable: float = -0.5
    slack_reset: float = -0.1
    slack_shrink: float = 0.2
    slack_grow: float = 0.3
    load_shrink: float = 0.8
    load_grow: float = 0.6
    grow_ratio: float = 0.5
    shrink_ratio: float = 3.0
    least: float = 0.05
    most: float = 0.95

    def prepare(self) -> None:
        """Begin with the least quota."""
        self._quota = self.least
        self._enabled = True
        self._next_s = -math.inf
        self._busy: list[float] = []

    def decide(self, view: View) -> Plan:
        """The quota in whole cores; memcached has the others."""
        if view.cores:
            self._busy.append(sum(core.busy for core in view.cores.values()) / len(view.cores))
        if view.time_s >= self._next_s - _ROUNDING_S:
            self._next_s = view.time_s + self.period_s
            self._look(view)
            self._busy.clear()
        batch = min(math.floor(self._quota * view.total_cores + 0.5), view.total_cores - 1) if self._enabled else 0
        reason = f"quota {self._quota:.0%}" if self._enabled else "batch work is off"
        return Plan(view.total_cores - batch, share_out(view.jobs.values(), batch), reason=reason)

    def _look(self, view: View) -> None:
        latency_ms = view.window("latency_ms", self.period_s).mean
        # The original, too, takes a slack of 0 where it cannot measure, and so shrinks.
        slack = 0.0 if math.isnan(latency_ms) else 1 - latency_ms / view.slo.latency_ms
        load = sum(self._busy) / len(self._busy) if self._busy else 1.0
        if slack < self.slack_disable:
            self._enabled = False
        elif slack < self.slack_reset:
            self._quota = self.least
        elif slack < self.slack_shrink:
            self._quota *= 1 + self.shrink_ratio * (slack - self.slack_shrink)
        elif load > self.load_shrink:
            self._quota *= 1 + self.shrink_ratio * (self.load_shrink - load)
        elif slack > self.slack_grow and load < self.load_grow:
            self._quota *= 1 + self.grow_ratio * slack if self._enabled else 1.0
            self._enabled = True
        self._quota = min(self.most, max(self.least, self._quota))
