"""PARTIES: one step of one resource at a time, taken back if the latency did not stand it.

Source: Chen, Delimitrou, Martínez, "PARTIES: QoS-Aware Resource Partitioning for Multiple Interactive Services",
ASPLOS 2019: a service that violates its target is upsized, one with more than 20 % of slack is downsized, each half a
second, and a downsizing after which the target is violated is reverted. What it frees goes to batch work.

What this host lacks: the other resources (cache ways by CAT, frequency by DVFS, memory, disk, network shares by HTB).
PARTIES turns to the next resource when a step did not help or was reverted. Here cores are the only one, so it waits
for `wait_s` instead, a number of our own. There is one service, so the worst one is always memcached.
"""

from colocate.policy import Plan, Policy, View, share_out

_ROUNDING_S = 1e-6


class Parties(Policy):
    """Memcached gains a core when its latency breaks the target, and loses one when there is slack.

    It begins with half of the cores, as equal shares are where PARTIES begins. The latency is the probe's, which is a
    percentile over seconds and so lags behind steps of half a second.

    Options:
        period_s: between two steps.
        slack_down: slack, as a share of the target, above which memcached is downsized.
        judged_s: a violation so soon after a downsizing is its fault: it is reverted.
        wait_s: after that, nothing is downsized for so long.
    """

    period_s: float = 0.5
    slack_down: float = 0.20
    judged_s: float = 5.0
    wait_s: float = 30.0

    def prepare(self) -> None:
        """Start with nothing done."""
        self._service = 0
        self._next_s = float("-inf")
        self._downsized_s = float("-inf")
        self._wait_until_s = float("-inf")
        self._reason = "half of the cores"

    def decide(self, view: View) -> Plan:
        """One step, if it is time for one."""
        most = max(1, view.total_cores - 1)
        self._service = min(most, self._service or max(1, view.total_cores // 2))
        latency = view.service.latency_ms
        if view.time_s >= self._next_s - _ROUNDING_S and latency.value is not None and latency.fresh(self.period_s):
            self._next_s = view.time_s + self.period_s
            self._step(view.time_s, 1 - latency.value / view.slo.latency_ms, most)
        jobs = share_out(view.jobs.values(), view.total_cores - self._service)
        return Plan(self._service, jobs, reason=self._reason)

    def _step(self, now_s: float, slack: float, most: int) -> None:
        self._reason = f"slack {slack:.0%}"
        if slack < 0:
            if now_s - self._downsized_s <= self.judged_s:
                self._wait_until_s = now_s + self.wait_s
                self._reason = f"slack {slack:.0%}, downsizing reverted"
            self._service = min(most, self._service + 1)
        elif slack > self.slack_down and self._service > 1 and now_s >= self._wait_until_s:
            self._service -= 1
            self._downsized_s = now_s
