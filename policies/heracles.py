"""Heracles: batch work grows a core at a time while the latency has slack, and is switched off when it has none.

Source: Lo, Cheng, Govindaraju, Ranganathan, Kozyrakis, "Heracles: Improving Resource Efficiency at Scale", ISCA 2015:
the top-level controller and the core half of the core-and-memory one, with the constants of the paper.

What this host lacks: cache partitioning and the counters of memory bandwidth (RDT), so batch work grows by cores only
and no growth is rolled back for bandwidth; per-core frequencies (DVFS) and power, so that controller is left out; an
egress limit (HTB), which jobs without a network do not need.
"""

import math

from colocate.policy import Plan, Policy, View, share_out

_ROUNDING_S = 1e-6


class Heracles(Policy):
    """Every `period_s` the latency's slack and the load decide whether batch work may run and may grow.

    A violation switches batch work off for `cooldown_s`. So does a load above `load_off`, until it is below `load_on`.
    Batch work that comes back begins with one core and gets another each `grow_s` while the slack is above
    `slack_grow`; below `slack_shrink` it is cut down to `kept_cores`. Memcached has all other cores.

    Options:
        period_s: of the top-level controller; the latency is the mean of the probe's percentiles over it.
        grow_s: of the core controller.
        cooldown_s: see above.
        load_off: share of `peak_qps`.
        load_on: share of `peak_qps`.
        slack_grow: slack as a share of the target.
        slack_shrink: slack as a share of the target.
        kept_cores: see above.
        peak_qps: the load that counts as 1; 0 is the most that a calibration says the machine holds, and where there is
            none, memcached's CPU use as a share of its threads counts instead.
    """

    period_s: float = 15.0
    grow_s: float = 2.0
    cooldown_s: float = 300.0
    load_off: float = 0.85
    load_on: float = 0.80
    slack_grow: float = 0.10
    slack_shrink: float = 0.05
    kept_cores: int = 2
    peak_qps: float = 0.0

    def prepare(self) -> None:
        """Batch work is off until the first look."""
        self._batch = 0
        self._slack = math.nan
        self._look_s = math.nan  # when the top-level controller looks again
        self._grow_s = -math.inf  # when the core controller does
        self._cool_s = -math.inf  # until when a violation is remembered

    def decide(self, view: View) -> Plan:
        """Both controllers, each at its own pace."""
        if math.isnan(self._look_s):
            self._look_s = view.time_s + self.period_s
        if view.time_s >= self._look_s - _ROUNDING_S:
            self._look_s = view.time_s + self.period_s
            self._look(view)
        if self._batch and view.time_s >= self._grow_s - _ROUNDING_S:
            self._grow_s = view.time_s + self.grow_s
            if self._slack > self.slack_grow:
                self._batch += 1
        self._batch = min(self._batch, view.total_cores - 1)
        reason = f"slack {self._slack:.0%}" if self._batch else f"batch work is off, slack {self._slack:.0%}"
        return Plan(view.total_cores - self._batch, share_out(view.jobs.values(), self._batch), reason=reason)

    def _look(self, view: View) -> None:
        latency_ms = view.window("latency_ms", self.period_s).mean
        self._slack = 1 - latency_ms / view.slo.latency_ms
        load = self._load(view)
        if self._slack < 0:
            self._batch, self._cool_s = 0, view.time_s + self.cooldown_s
        elif load > self.load_off:
            self._batch = 0
        elif not self._batch and load < self.load_on and view.time_s >= self._cool_s - _ROUNDING_S:
            self._batch, self._grow_s = 1, view.time_s + self.grow_s
        if self._slack < self.slack_shrink:
            self._batch = min(self._batch, self.kept_cores)

    def _load(self, view: View) -> float:
        peak_qps = self.peak_qps
        if not peak_qps and view.profile:
            peak_qps = max(view.profile.edge(cores, view.slo.latency_ms).qps for cores in view.profile.curves)
        if peak_qps:
            return view.window("qps", self.period_s).mean / peak_qps
        return view.window("cpu_cores", self.period_s).mean / max(1, view.service.threads)
