"""React in two bands, move within a budget, and look ahead where looking ahead has proved right.

After Omar (Chen et al., "Scheduling Cloud Block Storage Proactively and Reactively", EuroSys 2026), whose segment
migrations are moves of cores here: a band in which a move must be paid for from a budget, an emergency band in which it
may not wait, a budget whose rate follows the measured slope of the latency, and hot, steady movers first.
"""

import math
from collections import deque

from colocate.policy import (
    ENDED,
    Forecast,
    JobState,
    JobView,
    LoadForecast,
    Packer,
    Plan,
    Policy,
    Tokens,
    Tuner,
    View,
    share_out,
)

_GLANCE_S, _GLANCES = 0.25, 4  # one look of 50 ms at the run-queue delay says little
_CALM, _BAND, _EMERGENCY = range(3)


class Mixed(Policy):
    """Reacts in two bands, paces its moves, and uses what can be forecast of the load.

    Memcached's CPU use is held against what its cores carry: `Profile.edge` where there is a calibration, else
    `high` and `full` of them. Up to the use that even a slow machine carries all is calm. Above it, in the band, it
    grows while the budget lasts. Where the typical machine breaks the SLO, where its need is hidden, or where its
    run-queue delay or its latency tell of trouble, it grows at once whatever the budget says. Uses at which the latency
    proved good widen the calm, trouble narrows it.

    One token comes every `period_s`. A change of memcached's cores costs one, and so does each change of a running
    job's cores for another reason; what follows from either, or from a job's start or end, is free. With nothing left
    only emergencies move, on credit down to `-borrow`; growth in an emergency beyond that is remitted. The period is
    tuned (`colocate.pacing.Tuner`).

    Options:
        high: share of its cores that it may use in the calm, without a calibration (as `reactive`).
        full: share of its cores above which its need is hidden: an emergency.
        sigmas: how many standard deviations slower than typical a machine is against which the calm is safe.
        low: share of its cores below which run-queue delay and latency are noise (as `reactive`).
        wait_us: run-queue delay a slice that means trouble with a core a thread (as `reactive`; measured).
        crowded_us: the same where threads outnumber cores.
        easy: share of the SLO up to which a latency proves that the cores do.
        hold_s: seconds for which a smaller need must have lasted before a core is taken.
        sure_s: the same while the forecast says that the load will not rise within `hold_s`.
        remember_s: seconds for which trouble with a core count is remembered.
        settle_s: seconds after a change of its cores in which its latency still tells of those that it had before.
        period_s: between two tokens, at first.
        borrow: how far below zero the balance may go (Omar: 8).
        window_s: over which a rate of moves and its latency are compared.
        concern: share of the SLO up to which one latency is as good as another: fewer moves are not worth it then.
        reach: by what factor the tuned period may be shorter or longer than `period_s`.
        tune: whether the period follows the latency.
        ahead: whether forecasts are used.
        memory_s: time constant of what is known of each job's load.
    """

    high: float = 0.75
    full: float = 0.95
    sigmas: float = 2.0
    low: float = 0.3
    wait_us: float = 84.0
    crowded_us: float = 150.0
    easy: float = 0.75
    hold_s: float = 1.5
    sure_s: float = 0.5
    remember_s: float = 30.0
    settle_s: float = 3.0
    period_s: float = 2.0
    borrow: float = 8.0
    window_s: float = 30.0
    concern: float = 0.75
    reach: float = 8.0
    tune: bool = True
    ahead: bool = True
    memory_s: float = 10.0

    def prepare(self) -> None:
        """Start with a full budget and nothing known."""
        self.tokens = Tokens(self.period_s, self.borrow, self.borrow)
        self.tuner = Tuner(self.period_s, (self.period_s / self.reach, self.period_s * self.reach), self.window_s)
        self.loads = JobLoads(self.memory_s)
        self._packer = Packer(service_share=0.75)  # for the thread counts
        self._forecast = LoadForecast()
        self._needs: deque[tuple[float, int]] = deque()  # (when, how many), falling: the first is the highest
        self._trouble: dict[int, tuple[float, float]] = {}  # core count -> (when, CPU use at which it was too few)
        self._proved: dict[int, float] = {}  # core count -> CPU use at which the latency was good
        self._strained_s = float("-inf")  # when it last used more than its cores carry in calm
        self._cores = (0, float("-inf"))  # its core count, and since when
        self._service = 0  # planned last
        self._shares: dict[str, int] = {}  # planned last
        self._open: frozenset[tuple[str, bool]] = frozenset()  # jobs that had not ended, and whether they had started
        self._tick_s, self._last_s = 0.05, float("-inf")

    def decide(self, view: View) -> Plan:
        """Measure, forecast, and move what the budget or an emergency allows."""
        now_s, now = view.time_s, max(1, len(view.service.cores))
        self.tokens.earn(now_s)
        self.loads.see(view)
        if now != self._cores[0]:
            self._cores = (now, now_s)
        self._learn(view, now)
        band, need, reason = self._need(view, now)
        service, reason, held_back = self._sized(view, now, band, need, reason)
        shares, moves, kept = self._shared(view, service)
        self.tokens.spend(moves)
        if self.tune:
            latency = view.service.latency_ms
            seen_ms = latency.value if latency.fresh(1.0) else None
            self.tuner.good_ms = self.concern * view.slo.latency_ms
            self.tuner.tick(now_s, moves, seen_ms, held=held_back or kept)
            self.tokens.period_s = self.tuner.period_s
        self._service, self._shares = service, shares
        reason = f"{reason}; {self.tokens.balance:.1f} tokens"
        return Plan(service, shares, reason=reason, threads=self._packer.threads(view), spread=True)

    def _sized(self, view: View, now: int, band: int, need: int, reason: str) -> tuple[int, str, bool]:
        """Memcached's cores, why, and whether the budget kept it from more or fewer."""
        now_s = view.time_s
        hold_s, soon, why = self._outlook(view, now, need)
        while self._needs and self._needs[0][0] <= now_s - hold_s:
            self._needs.popleft()
        while self._needs and self._needs[-1][1] <= need:
            self._needs.pop()
        self._needs.append((now_s, need))
        if soon > max(now, need):
            band, need, reason = max(band, _BAND), soon, why
        if need > now:
            if band == _EMERGENCY or self.tokens.any or self._service == need:
                return need, reason, False
            return now, f"no token for {need} cores, {reason}", True
        wanted = max(need, soon, min(now, self._needs[0][1]))
        latency = view.service.latency_ms
        if wanted < now and latency.fresh(1.0) and (latency.value or 0.0) > view.slo.latency_ms:
            return now, f"p{view.slo.percentile:g} is still {latency.value:.2f} ms", False
        if wanted == now:
            return now, f"holding {now} for {hold_s:g} s, {reason}" if need < now else reason, False
        if self.tokens.any or self._service == wanted:
            return wanted, reason, False
        return now, f"no token for {wanted} cores, {reason}", True

    def _outlook(self, view: View, now: int, need: int) -> tuple[float, int, str]:
        """How long a smaller need must last, how many cores are needed ahead of time, and why."""
        used = view.service.cpu_cores.value
        if not self.ahead or used is None:
            return self.hold_s, 0, ""
        if view.time_s > self._last_s > float("-inf"):
            self._tick_s += 0.1 * (min(1.0, view.time_s - self._last_s) - self._tick_s)
        self._last_s = view.time_s
        self._forecast.add(view.time_s, used)
        seen = self._forecast.forecast(view.time_s)
        left_s = seen.change_s - view.time_s
        due = 0
        if seen.level is not None:
            due = self._enough(view, seen.level + seen.error)
        lead_s = 2 * seen.late_s + 2 * self._tick_s
        if due > now and left_s <= lead_s and self._late_hurts(view, seen):
            return self.hold_s, due, f"{seen.level:.2f} cores of CPU due in {max(0.0, left_s):.1f} s ({seen.method})"
        calm_s = left_s - 2 * seen.late_s if seen.change_s < math.inf else 0.0  # for which the load stays as it is
        if view.time_s - self._strained_s < self.settle_s:  # it may have fallen behind, and has to catch up
            return self.settle_s, 0, ""
        steady = calm_s > self.hold_s and view.time_s - self._forecast.changed_s > self.sure_s
        return (self.sure_s if steady or 0 < due <= need else self.hold_s), 0, ""

    def _late_hurts(self, view: View, seen: Forecast) -> bool:
        """Whether a growth two ticks late spoils more than half of what the percentile lets pass in an interval."""
        return 2 * self._tick_s > 0.5 * (1 - view.slo.percentile / 100) * seen.interval_s

    def _need(self, view: View, now: int) -> tuple[int, int, str]:
        """The band, how many cores memcached needs, and why."""
        service = view.service
        widest = self._widest(view)
        used = service.cpu_cores.value
        if used is None:
            return _EMERGENCY, max(now, widest), "nothing measured yet"
        enough = self._enough(view, used)
        if used > self._calm(view, now):
            self._strained_s = view.time_s
        if trouble := self._trouble_seen(view, now, used):
            self._trouble[now] = (view.time_s, used)
            self._proved.pop(now, None)
            more = min(view.total_cores, max(now + 1, widest))  # beyond its threads: fewer neighbours
            return _EMERGENCY, more, trouble
        if used > self._most(view, now, 0.0) and now < widest:
            return _EMERGENCY, max(enough, widest), f"uses {used:.2f} of {now} cores"
        return (_BAND if enough > now else _CALM), enough, f"needs {used:.2f} cores"

    def _enough(self, view: View, used: float) -> int:
        """The least core count that carries this CPU use in calm."""
        return next((c for c in range(1, view.total_cores) if used <= self._calm(view, c)), view.total_cores)

    def _calm(self, view: View, cores: int) -> float:
        """The CPU use up to which so many cores give no trouble, as far as is known."""
        calm = max(self._most(view, cores, self.sigmas), 1.1 * self._proved.get(cores, 0.0))
        if cores >= self._widest(view):
            calm = math.inf  # a core beyond its threads is no use, unless it proved to keep neighbours off
        when_s, used = self._trouble.get(cores, (float("-inf"), 0.0))
        return min(calm, 0.9 * used) if view.time_s - when_s < self.remember_s else calm

    def _most(self, view: View, cores: int, sigmas: float) -> float:
        """The CPU use at which the SLO breaks on a machine so many standard deviations slower than the typical one."""
        profile = view.profile
        if profile is None:
            return (self.high if sigmas else self.full) * cores
        holds_qps = profile.edge(cores, view.slo.latency_ms).qps
        used = 1e-6 * profile.cpu_us * holds_qps * math.exp(-sigmas * profile.machine_sd)
        return min(self.full * cores, used)

    def _widest(self, view: View) -> int:
        """Cores beyond its threads are no use to memcached, unless nobody knows how many it has."""
        return min(view.total_cores, view.service.threads or view.total_cores)

    def _trouble_seen(self, view: View, now: int, used: float) -> str:
        """What shows that memcached suffers although it is not out of CPU; empty when nothing does."""
        if used < self.low * now:
            return ""
        wait = view.window("wait_us", _GLANCE_S)
        limit_us = self.crowded_us if view.service.threads > now else self.wait_us
        if view.service.wait_us.fresh(_GLANCE_S) and wait.samples >= _GLANCES and wait.mean > limit_us:
            return f"waits {wait.mean:.0f} us a slice"
        if (latency_ms := self._settled_ms(view)) > view.slo.latency_ms:
            return f"p{view.slo.percentile:g} is {latency_ms:.2f} ms"
        return ""

    def _settled_ms(self, view: View) -> float:
        """The latency, where it tells of the cores that memcached has now; 0 where not."""
        latency = view.service.latency_ms
        settled = view.time_s - self._cores[1] > self.settle_s
        return (latency.value or 0.0) if settled and latency.fresh(1.0) else 0.0

    def _learn(self, view: View, now: int) -> None:
        """A good latency under a use that has been steady since before it was measured proves that the cores do."""
        latency_ms = self._settled_ms(view)
        steady = view.time_s - self._forecast.changed_s >= self.settle_s
        if not steady or not 0 < latency_ms <= self.easy * view.slo.latency_ms:
            return
        use, seen = view.window("cpu_cores", self.settle_s), view.window("latency_ms", self.settle_s)
        if seen.maximum <= self.easy * view.slo.latency_ms and use.mean > self._proved.get(now, 0.0):
            self._proved[now] = use.mean

    def _shared(self, view: View, service: int) -> tuple[dict[str, int], int, bool]:
        """The jobs' cores, how many moves of the policy's choice that makes, and whether the budget kept some back."""
        left = [job for job in view.jobs.values() if job.state not in ENDED]
        wished = share_out(self.loads.victims_last(left), view.total_cores - service)
        happened = frozenset((job.name, job.state is not JobState.WAITING) for job in left)
        new, self._open = happened != self._open, happened
        resized = service != self._service
        before = self._shares
        running = {job.name for job in left if job.state in (JobState.RUNNING, JobState.PAUSED)}
        changed = sum(wished[name] != before.get(name, 0) for name in running)
        fits = sum(before.get(job.name, 0) for job in left) <= view.total_cores - service
        if not resized and not new and changed and fits and not self.tokens.any:
            return {job.name: before.get(job.name, 0) for job in left}, 0, True
        if resized:
            return wished, int(self._service > 0), False  # the jobs' changes follow from it
        return wished, 0 if new else changed, False


class JobLoads:
    """How heavily and how steadily each job loads the machine: running mean and deviation of the CPU that it uses.

    Args:
        memory_s: time constant of both.
    """

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._seen: dict[str, tuple[float, float, float]] = {}  # mean, variance, when

    def see(self, view: View) -> None:
        """Take in what the running jobs use."""
        for job in view.jobs.values():
            if job.state is not JobState.RUNNING or job.cpu_cores is None:
                continue
            mean, variance, when_s = self._seen.get(job.name, (job.cpu_cores, 0.0, view.time_s))
            weight = 1 - math.exp(-max(0.0, view.time_s - when_s) / self._memory_s)
            off = job.cpu_cores - mean
            self._seen[job.name] = (mean + weight * off, (1 - weight) * (variance + weight * off**2), view.time_s)

    def score(self, name: str) -> float:
        """Omar's order of movers, traffic times steadiness: hot, steady jobs relieve the machine most, and for good."""
        mean, variance, _ = self._seen.get(name, (0.0, 0.0, 0.0))
        return 0.7 * mean - 0.3 * math.sqrt(variance)

    def victims_last(self, jobs: list[JobView]) -> list[JobView]:
        """The jobs in the order in which `share_out` prefers them among equals: who is last loses a core first."""
        return sorted(jobs, key=lambda job: self.score(job.name))
