"""Grow memcached at once when it runs hot or waits for a core, shrink it slowly when it cools.

The need is measured, not guessed: the CPU time of memcached's own threads is linear in the load, and their run-queue
delay sees trouble far better than any CPU figure. Source of both observations: measurements on the recorded runs of
course groups and on a 2-core machine (docs/policies.md tells them).
"""

from collections import deque

from colocate.policy import Plan, Policy, View, share_out

_GLANCE_S, _GLANCES = 0.25, 4  # one look of 50 ms at the run-queue delay says little


class Reactive(Policy):
    """Sizes memcached from its CPU need and its run-queue delay; everything else goes to the jobs.

    Up: at the very tick at which it uses more than `high` of its cores; when its threads wait more than `wait_us` a
    time slice (over a quarter of a second), or its latency breaks the SLO, while it uses more than `low` of them. Where
    it is saturated its true need is hidden, so it gets a core for each thread at once. Down: to what the highest need
    of the last `hold_s` seconds asks for, once that has been less for all that time.

    Options:
        high: share of its cores above which it grows, and which a smaller set must not reach either.
        low: share of its cores below which run-queue delay is noise.
        wait_us: run-queue delay a time slice that means trouble, with a core a thread; with fewer cores than
            threads they also queue behind each other, and `crowded_us` holds.
        crowded_us: the same where threads outnumber cores.
        hold_s: seconds for which a smaller need must have lasted before a core is taken.
        remember_s: seconds for which it remembers the CPU use at which a core count was too few.
        settle_s: seconds after a change of its cores in which its latency still tells of those that it had before.
    """

    high: float = 0.75
    low: float = 0.3
    wait_us: float = 84.0
    crowded_us: float = 150.0
    hold_s: float = 1.5
    remember_s: float = 30.0
    settle_s: float = 3.0

    def prepare(self) -> None:
        """Start with nothing known."""
        self._needs: deque[tuple[float, int]] = deque()  # (when, how many), falling: the first is the highest
        self._trouble: dict[int, tuple[float, float]] = {}  # core count -> (when, CPU use at which it was too few)
        self._cores = (0, float("-inf"))  # its core count, and since when

    def decide(self, view: View) -> Plan:
        """Up at once, down slowly; the rest to the jobs."""
        now = len(view.service.cores)
        if now != self._cores[0]:
            self._cores = (now, view.time_s)
        need, reason = self._need(view)
        while self._needs and self._needs[0][0] <= view.time_s - self.hold_s:
            self._needs.popleft()
        while self._needs and self._needs[-1][1] <= need:
            self._needs.pop()
        self._needs.append((view.time_s, need))
        service = max(need, min(now, self._needs[0][1]))
        if service > need:
            reason = f"holding {service} for {self.hold_s:g} s, {reason}"
        return Plan(service, share_out(view.jobs.values(), view.total_cores - service), reason=reason)

    def _need(self, view: View) -> tuple[int, str]:
        """How many cores it needs now, and why."""
        service = view.service
        now = max(1, len(service.cores))
        saturated = min(view.total_cores, max(now + 1, service.threads))
        used = service.cpu_cores.value
        if used is None:
            return min(view.total_cores, max(now, service.threads)), "nothing measured yet"
        if used > self.high * now:
            return saturated, f"uses {used:.2f} of {now} cores"
        trouble = self._trouble_seen(view, now, used)
        if trouble:
            self._trouble[now] = (view.time_s, used)
            return saturated, trouble
        enough = (c for c in range(1, view.total_cores + 1) if used <= self._most(c, view.time_s))
        return next(enough, view.total_cores), f"needs {used:.2f} cores"

    def _trouble_seen(self, view: View, now: int, used: float) -> str:
        """What shows that memcached suffers although it is not out of CPU; empty when nothing does."""
        if used < self.low * now:
            return ""
        wait = view.window("wait_us", _GLANCE_S)
        limit_us = self.crowded_us if view.service.threads > now else self.wait_us
        if view.service.wait_us.fresh(_GLANCE_S) and wait.samples >= _GLANCES and wait.mean > limit_us:
            return f"waits {wait.mean:.0f} us a slice"
        latency = view.service.latency_ms
        settled = view.time_s - self._cores[1] > self.settle_s  # else it tells of the cores that it had before
        if settled and latency.fresh(1.0) and (latency.value or 0.0) > view.slo.latency_ms:
            return f"p{view.slo.percentile:g} is {latency.value:.2f} ms"
        return ""

    def _most(self, cores: int, now_s: float) -> float:
        """The CPU use that this many cores carry, as far as is known."""
        most = self.high * cores
        if cores not in self._trouble:
            return most
        when_s, used = self._trouble[cores]
        return min(most, 0.9 * used) if now_s - when_s < self.remember_s else most
