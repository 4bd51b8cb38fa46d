"""Lend memcached's second core to one job while the load is low and does not change.

Source: a published schedule of a university course's 2023 task, 2024 (AMD, memcached with two threads on four cores,
SLO 1 ms, loads to 100,000 a second: 666 to 688 s at intervals of 10 s with 0 to 1.5 % of violations).
"""

import math

from colocate.policy import JobState, Plan, Policy, View, in_order

_ROUNDING_S = 1e-6


class SteadyLend(Policy):
    """Memcached has two cores, and one while all holds: a steady rate, a low one, and both cores not busy.

    The rate is steady while its means over `short_s` and `long_s` agree within `steady_share` of the greater. When it
    turns unsteady the greater of the two stands until it is steady again. `busy` is that of memcached's two cores, over
    stretches of `busy_s` that do not overlap. It counts the guest's own work, so that a guest that computes is sent
    away after each stretch and comes back after the next: a weakness of the original (its logs show it), kept.

    The guest has the lent core and no other, but for the end: it moves where a core is left over. The other jobs have
    the other cores, one each; the last gets all that it has threads for. Once the guest has ended nothing is lent.
    The original reads the rate ten times a second and fills cores each 0.2 s; here the rate is at most a fifth of a
    second old, and cores are filled at once.

    Options:
        most_qps: a rate below it is low (the recorded runs lend below 26,000, as the load generator counts).
        most_busy_pct: of the two cores' mean; below it they are not busy.
        steady_share: see above.
        short_s: see above.
        long_s: see above.
        busy_s: see above.
        guest: the job on the lent core.
        order: the others, in turn; jobs that it does not name come after those.
        wide: jobs with `wide_threads` threads; all others have one.
        wide_threads: theirs.
    """

    most_qps: float = 29_000.0
    most_busy_pct: float = 45.0
    steady_share: float = 0.3
    short_s: float = 0.4
    long_s: float = 1.0
    busy_s: float = 1.0
    guest: str = "radix"
    order: str = "ferret dedup vips blackscholes canneal freqmine"
    wide: str = "freqmine"
    wide_threads: int = 2

    def prepare(self) -> None:
        """Start with nothing known."""
        self._held_qps = math.nan  # the rate that stands while it is not steady
        self._busy_pct = math.inf
        self._looks: list[float] = []
        self._due_s = math.nan

    def decide(self, view: View) -> Plan:
        """Lend or not, then deal the other cores."""
        full = max(1, min(2, view.total_cores - 1))
        shares, guest = self._deal(view, view.total_cores - full)
        qps, steady = self._rate(view)
        self._look(view)
        calm = steady and qps < self.most_qps and self._busy_pct < self.most_busy_pct
        lend = calm and full == 2 and guest is not None
        if guest is not None:
            shares[guest] = int(lend)
        reason = f"{'steady' if steady else 'unsteady'} {qps:.0f} a second, {self._busy_pct:.0f} % busy"
        threads = {name: self.wide_threads if name in self.wide.split() else 1 for name in view.jobs}
        return Plan(full - lend, shares, reason=reason, threads=threads)

    def _rate(self, view: View) -> tuple[float, bool]:
        """The rate that counts, and whether it is steady."""
        short, long = view.window("qps", self.short_s).mean, view.window("qps", self.long_s).mean
        if math.isnan(short) or math.isnan(long):
            return math.inf, False
        if abs(short - long) <= self.steady_share * max(short, long):
            self._held_qps = math.nan
            return long, True
        if math.isnan(self._held_qps):
            self._held_qps = max(short, long)
        return self._held_qps, False

    def _look(self, view: View) -> None:
        """How busy memcached's two cores were over the last whole stretch."""
        pair = sorted(view.topology.cores)[:2]
        if not all(core in view.cores for core in pair):
            return
        if math.isnan(self._due_s):
            self._due_s = view.time_s + self.busy_s
        self._looks.append(sum(100 * view.cores[core].busy for core in pair) / len(pair))
        if view.time_s >= self._due_s - _ROUNDING_S:
            self._busy_pct = sum(self._looks) / len(self._looks)
            self._looks, self._due_s = [], view.time_s + self.busy_s

    def _deal(self, view: View, cores: int) -> tuple[dict[str, int], str | None]:
        """The cores that are never memcached's, by job; and the guest, unless it has ended or got one of them."""
        queue = in_order(view.jobs.values(), self.order)
        guest = next((job for job in queue if job.name == self.guest), None)
        queue = [job for job in queue if job is not guest]
        ranked = sorted(queue, key=lambda job: job.state is JobState.WAITING)
        if guest is not None and len(ranked) < cores:
            ranked.append(guest)
            guest = None
        shares = {job.name: int(rank < cores) for rank, job in enumerate(ranked)}
        free = cores - sum(shares.values())
        for job in ranked:
            more = min(free, self.wide_threads - 1) if job.name in self.wide.split() and shares[job.name] else 0
            shares[job.name] += more
            free -= more
        return shares, guest.name if guest is not None else None
