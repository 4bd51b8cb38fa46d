"""A ladder of one to three cores, climbed by memcached's own CPU use; the jobs stay where they started.

Source: the best published schedule of a university course's 2026 task (memcached with three threads on four cores, SLO
0.8 ms, 829 to 843 s and no violation). Each threshold is as it was tuned for that machine.
"""

from colocate.policy import JobState, Plan, Policy, View, in_order

_ROUNDING_S = 1e-6


class CoreLadder(Policy):
    """Reads memcached's CPU use twice a second and moves it up one core, or down one or two.

    Memcached's cores are a prefix; one core at least is always the jobs'. After a move the opposite direction is closed
    for some readings, and one reading is thrown away. On growth the job whose only core is taken is paused, a wider one
    is narrowed. On shrinking, the core's owner goes on, else the next job of the queue starts there, else the wide job
    that runs is widened. No paused job moves to another core, and what is idle is looked at only when a job ends:
    weaknesses of the original, kept. So is that nothing is read while a job is being started, which held the original
    up for a `docker run`; here a start takes less.

    Options:
        order: the queue; jobs that it does not name come after those.
        wide: jobs with `wide_threads` threads; all others have one.
        wide_threads: theirs.
        most_cores: memcached's, at most.
        one_up_pct: CPU use, in per cent of one core, above which one core becomes two.
        two_up_pct: above which two become three.
        two_down_pct: below which two become one.
        three_down_pct: below which three become two.
        three_drop_pct: below which three become one.
        sample_s: the stretch of one reading.
        settle_s: after a move, so long passes before the next stretch begins.
        closed_readings: so many readings without a move keep the opposite direction closed.
    """

    order: str = "freqmine canneal barnes vips blackscholes radix streamcluster"
    wide: str = "streamcluster"
    wide_threads: int = 3
    most_cores: int = 3
    one_up_pct: float = 80.0
    two_up_pct: float = 160.0
    two_down_pct: float = 95.0
    three_down_pct: float = 170.0
    three_drop_pct: float = 125.0
    sample_s: float = 0.5
    settle_s: float = 0.25
    closed_readings: int = 3

    def prepare(self) -> None:
        """Begin at the top of the ladder, as the original does."""
        self._service = 0
        self._home: dict[str, set[int]] = {}  # by job that has started: its cores, or where it stood when paused
        self._refill = True
        self._closed = (0, 0)  # a direction, and the readings for which it is closed
        self._from_s = float("-inf")  # when the stretch of this reading began
        self._last_s = float("-inf")
        self._used_s = 0.0  # memcached's CPU time in it

    def decide(self, view: View) -> Plan:
        """Act at a reading and when a job ends; in between nothing changes."""
        cores = sorted(view.topology.cores)
        most = max(1, min(self.most_cores, len(cores) - 1))
        self._service = min(self._service or most, most)  # a core may have been unplugged
        self._look(view, cores)
        reason = "between two readings"
        used_pct = self._reading(view)
        if used_pct is not None:
            target = min(most, self._rung(used_pct))
            reason = f"uses {used_pct:.0f} % of a core"
            if self._open(target):
                self._move(view, cores, target)
        if self._refill:
            self._refill = False
            for core in sorted(set(cores[self._service :]).difference(*self._home.values())):
                self._fill(view, core)
        # Last those next to memcached: if it gets more than was planned, they have to give way.
        free = set(cores[self._service :])
        jobs = {name: len(self._home[name] & free) for name in sorted(self._home, key=lambda n: -max(self._home[n]))}
        waiting = {job.name: 0 for job in in_order(view.jobs.values(), self.order) if job.name not in jobs}
        threads = {name: self.wide_threads if name in self.wide.split() else 1 for name in view.jobs}
        return Plan(self._service, jobs | waiting, reason=reason, threads=threads)

    def _look(self, view: View, cores: list[int]) -> None:
        """Note where the jobs really stand, and whether one has ended."""
        own = set(cores[: self._service])
        alive = {job.name: job for job in in_order(view.jobs.values(), self.order)}
        for name, home in list(self._home.items()):
            if name not in alive:
                del self._home[name]
                self._refill = True
            elif len(alive[name].cores) == len(home - own) > 0:
                self._home[name] = set(alive[name].cores)

    def _reading(self, view: View) -> float | None:
        """Memcached's CPU use since the last reading, where one is due."""
        now_s, used = view.time_s, view.service.cpu_cores.value
        if used is not None and now_s > self._from_s > float("-inf"):
            self._used_s += used * (now_s - max(self._last_s, self._from_s))
        elif used is not None and self._from_s == float("-inf"):
            self._from_s = now_s
        self._last_s = now_s
        starting = any(job.state is JobState.STARTING for job in view.jobs.values())
        span_s = now_s - self._from_s
        if used is None or starting or not self.sample_s - _ROUNDING_S <= span_s < float("inf"):
            return None
        used_pct = 100 * self._used_s / span_s
        self._from_s, self._used_s = now_s, 0.0
        return used_pct

    def _rung(self, used_pct: float) -> int:
        """How many cores the ladder gives for this use."""
        if self._service == 1:
            return 2 if used_pct > self.one_up_pct else 1
        if self._service == 2:
            return 3 if used_pct > self.two_up_pct else 1 if used_pct < self.two_down_pct else 2
        return 1 if used_pct < self.three_drop_pct else 2 if used_pct < self.three_down_pct else 3

    def _open(self, target: int) -> bool:
        """Whether a move to that count is one, and allowed; a reading without a move counts the hold-off down."""
        direction = (target > self._service) - (target < self._service)
        closed, left = self._closed
        if direction and not (direction == closed and left > 0):
            return True
        self._closed = (closed, left - 1)
        return False

    def _move(self, view: View, cores: list[int], target: int) -> None:
        before, self._service = self._service, target
        self._closed = (1 if target < before else -1, self.closed_readings)
        self._from_s, self._used_s = view.time_s + self.settle_s, 0.0
        taken = set(cores[before:target])
        for home in self._home.values():
            if home - taken:  # one that stood there alone is paused, and remembers it
                home -= taken
        for core in cores[target:before]:
            if not any(core in home for home in self._home.values()):
                self._fill(view, core)

    def _fill(self, view: View, core: int) -> None:
        """Start the next job there, else widen the one that runs and has threads for it."""
        jobs = in_order(view.jobs.values(), self.order)
        for job in jobs:
            if job.state is JobState.WAITING and job.name not in self._home:
                self._home[job.name] = {core}
                return
        for job in jobs:
            if job.state is JobState.RUNNING and len(self._home.get(job.name, ())) < job.threads:
                self._home.setdefault(job.name, set()).add(core)
                return
