"""Two chains of jobs; the one on memcached's second core is paused above 40 % of CPU use.

Source: a published schedule of a university course (memcached with two threads on four cores: 736 to 766 s, no
violation). There memcached stays pinned to two cores, and the first chain runs on the second of them. Here nobody is
given a core that memcached has, so memcached has one core while that chain runs and two while it is paused.

Which jobs were in which chain is not told; nor is the period of a reading. The defaults are those of recorded runs with
the same two chains, which also give way at 40 %.
"""

import math

from colocate.policy import Plan, Policy, View, in_order

_ROUNDING_S = 1e-6


class PauseAt40(Policy):
    """Reads memcached's CPU use twice a second: one threshold for both directions.

    Each chain runs its jobs one after the other and never helps the other: a weakness, kept.

    Options:
        pause_pct: CPU use of memcached, in per cent of one core, above which the first chain is paused.
        sample_s: the stretch of one reading.
        beside: the first chain, on memcached's second core; one thread each.
        pair: the second chain, on two cores; jobs that neither names come after those.
        pair_threads: the thread count of those, and their cores.
    """

    pause_pct: float = 40.0
    sample_s: float = 0.5
    beside: str = "dedup radix blackscholes"
    pair: str = "ferret freqmine canneal vips"
    pair_threads: int = 2

    def prepare(self) -> None:
        """Two cores for memcached until the first reading."""
        self._due_s = -math.inf
        self._lend = False
        self._used_pct = math.nan

    def decide(self, view: View) -> Plan:
        """Read, if it is time; then the first job of either chain."""
        if view.time_s >= self._due_s - _ROUNDING_S:
            self._due_s = view.time_s + self.sample_s
            self._used_pct = 100 * view.window("cpu_cores", self.sample_s).mean
            self._lend = self._used_pct <= self.pause_pct  # false while nothing is known
        full = max(1, min(2, view.total_cores - 1))
        beside = self.beside.split() if full == 2 else []
        jobs = in_order(view.jobs.values(), f"{self.beside} {self.pair}")
        first = [job.name for job in jobs if job.name in beside]
        second = [job.name for job in jobs if job.name not in beside]
        lend = self._lend and bool(first)
        shares = dict.fromkeys([*second, *first], 0)
        if second:
            shares[second[0]] = min(view.total_cores - full, self.pair_threads)
        if lend and full == 2:
            shares[first[0]] = 1
        threads = {name: 1 if name in beside else self.pair_threads for name in view.jobs}
        reason = f"uses {self._used_pct:.0f} % of a core"
        return Plan(full - (lend and full == 2), shares, reason=reason, threads=threads)
