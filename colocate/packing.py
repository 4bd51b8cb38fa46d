"""Which jobs get the cores that memcached leaves, and how wide each is.

One-thread jobs side by side do more work than one wide job, since no job's speed-up is perfect; a wide job is worth
it when fewer jobs are left than cores. `share_out` follows from one rule: each core goes where it adds most work. It
looks at nothing but the present. `Packer` looks at the end of the run: it knows what is left of each job and lets all
of them end at about the same time, so that no core idles while a job is left.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heapreplace

from colocate.jobs import ACTIVE, ENDED, JobSpec, JobState
from colocate.view import JobView, View

_ASSUMED_EXPONENT = 0.85  # speed-up of w cores where none was measured: w ** 0.85
_FLOOR = 0.03  # of its work a job is thought to have left at least, however much it has used
_QUESTIONS = 8  # answered ones that are kept; a policy comes back to one or two
_GOOD = 0.7  # share of a core that each thread of a filler must be worth
_ORDER = {JobState.RUNNING: 0, JobState.STARTING: 0, JobState.PAUSED: 1, JobState.WAITING: 2}


def speedup(spec: JobSpec, cores: int, threads: int | None = None) -> float:
    """How much faster a job runs on `cores` than on one, from its measured run times where there are any.

    Cores beyond the thread count add nothing. Beyond a measured point an assumed exponent holds. A measured speed-up
    above the core count is noise.
    """
    useful = min(cores, threads or spec.threads)
    if useful <= 1:
        return float(useful)
    one_s = spec.runtime_s.get(1)
    measured = {w: min(w, one_s / s) for w, s in spec.runtime_s.items() if w > 1} if one_s else {}
    if useful in measured:
        return measured[useful]
    below = max((w for w in measured if w < useful), default=0)
    if below:
        return float(measured[below] * (useful / below) ** _ASSUMED_EXPONENT)
    return float(useful**_ASSUMED_EXPONENT)


def in_order(jobs: Iterable[JobView], names: str) -> list[JobView]:
    """The jobs that have not ended: those named (separated by blanks) in that order, then the others in theirs."""
    rank = {name: number for number, name in enumerate(names.split())}
    return sorted((j for j in jobs if j.state not in ENDED), key=lambda j: rank.get(j.name, len(rank)))


def share_out(jobs: Iterable[JobView], cores: int) -> dict[str, int]:
    """Divide `cores` among the jobs that have not ended; a job that gets none is named with 0.

    Each core in turn goes where it adds most work a second. Among equals a job without a core comes first; then one
    that runs before one that is paused, that before one that waits, and of those that wait the longest first, where run
    times are known.
    """
    global _last
    open_jobs = [job for job in jobs if job.state not in ENDED]
    question = (cores, [(job.spec, job.state, job.threads, not job.cores) for job in open_jobs])
    last = _last
    if question != last[0]:  # from one tick to the next it is nearly always the same
        last = _last = (question, _share_out(open_jobs, cores))
    return last[1].copy()


_last: tuple[object, dict[str, int]] = (None, {})


def _share_out(jobs: list[JobView], cores: int) -> dict[str, int]:
    ranked = sorted(jobs, key=lambda j: (_ORDER[j.state], -j.spec.runtime_s.get(1, 0.0) * (not j.cores)))
    shares = {job.name: 0 for job in ranked}
    best = [(-_gain(job.spec, 0, job.threads), 0, rank) for rank, job in enumerate(ranked)]
    heapify(best)
    for _ in range(cores if ranked else 0):
        loss, share, rank = best[0]
        if loss >= 0:
            break
        job = ranked[rank]
        shares[job.name] = share + 1
        heapreplace(best, (-_gain(job.spec, share + 1, job.threads), share + 1, rank))
    return shares


def _gain(spec: JobSpec, cores: int, threads: int) -> float:
    """Work a second that one core more adds."""
    return speedup(spec, cores + 1, threads) - speedup(spec, cores, threads)


@dataclass(frozen=True, slots=True)
class Packing:
    """What `Packer` gives: the parts of a plan that are about jobs.

    Attributes:
        jobs: cores of its own, by job; those that suffer most from a busy sibling first.
        share: jobs that run on memcached's cores, too.
    """

    jobs: Mapping[str, int] = field(default_factory=dict)
    share: frozenset[str] = frozenset()


class Packer:
    """Order and widths of jobs: most left first, so that all end together.

    Who has most to do runs, on cores of its own if there are such; whoever has less waits or is paused, until the
    others have come down to it. For jobs that can be interrupted and run on any core this is the level algorithm, which
    is optimal (Muntz & Coffman 1970, J. ACM 17; McNaughton 1959, Management Science 6). A paused job may resume on
    other cores. Jobs run with one thread, which wastes nothing, but for two kinds. *Fillers* are the shortest of those
    that scale well: they get threads for every core and come last, where they soak up what is left over. A job that
    would outlast all others with one thread gets two, and is a *gang*: it gets as many cores whenever it runs.

    What is left of a job is its work less the CPU it has used. Its work is its measured run time on one core, times
    what a busy SMT sibling costs it (its sensitivity `cpu`), where there are siblings. Jobs without a measured run time
    are taken as average ones and are not interrupted for each other.

    Args:
        service_share: how much of each of memcached's cores is lost to the jobs, to guess the length of the run.
        quantum_s: core-seconds by which a job must have more left than one that runs, before it takes its place.
        fillers: share of all work that is kept for the end.
        every_s: seconds between two looks at what is left, where nothing else changes.
    """

    def __init__(
        self, service_share: float, *, quantum_s: float = 10.0, fillers: float = 0.2, every_s: float = 0.25
    ) -> None:
        self._service_share = service_share
        self._quantum_s = quantum_s
        self._fillers = fillers
        self._every_s = every_s
        self._threads: dict[str, int] | None = None
        self._gangs: dict[str, int] = {}  # cores that a job needs for its threads at once
        self._answers: dict[tuple[int, int, frozenset[str]], tuple[object, float, Packing]] = {}

    def threads(self, view: View) -> Mapping[str, int]:
        """Thread counts, decided once; a job of unknown run time is left out."""
        if self._threads is None:
            self._threads = self._choose_threads(view)
        return self._threads

    def pack(self, view: View, service: int, shared: int = 0, avoid: frozenset[str] = frozenset()) -> Packing:
        """Divide the cores that memcached leaves, and the idle time of its own.

        Args:
            view: the present.
            service: memcached's cores.
            shared: on how many of them jobs may run.
            avoid: jobs that may not; nobody takes their place there.
        """
        question, facts = (service, shared, avoid), [(job.state, job.cores) for job in view.jobs.values()]
        known, asked_s, packing = self._answers.get(question, (None, 0.0, Packing()))
        if facts != known or view.time_s - asked_s >= self._every_s:
            if len(self._answers) >= _QUESTIONS:
                self._answers.clear()
            packing = self._pack(view, service, shared, avoid)
            self._answers[question] = (facts, view.time_s, packing)
        return packing

    def _pack(self, view: View, service: int, shared: int, avoid: frozenset[str]) -> Packing:
        threads = self.threads(view)
        jobs = [job for job in view.jobs.values() if job.state not in ENDED]
        width = {job.name: job.threads if job.state in ACTIVE else threads.get(job.name, job.threads) for job in jobs}
        left_s = self._left_s(view, jobs, width)
        needs = {job.name: min(self._gangs.get(job.name, 1), width[job.name]) for job in jobs}
        own = view.total_cores - service

        def urgency(job: JobView, *, holds: bool) -> float:
            return -left_s[job.name] - self._quantum_s * holds

        jobs.sort(key=lambda job: (urgency(job, holds=bool(job.cores)), job.state not in ACTIVE))
        chosen: list[JobView] = []
        room = own + shared
        for job in jobs:
            if room > 0:
                chosen.append(job)
                room -= needs[job.name]
        chosen.sort(key=lambda job: urgency(job, holds=not job.cores <= view.service.cores))
        counts = {job.name: 0 for job in jobs}
        spare = own
        for job in chosen:
            counts[job.name] = given = min(spare, needs[job.name])
            spare -= given
        while spare and chosen:
            best = max(chosen, key=lambda job: _gain(job.spec, counts[job.name], width[job.name]))
            if _gain(best.spec, counts[best.name], width[best.name]) <= 0:
                break
            counts[best.name] += 1
            spare -= 1
        sharers = {job.name for job in chosen if counts[job.name] < needs[job.name]} if shared else set()
        idle = shared - len(sharers)
        sharers -= avoid
        for job in chosen:
            if counts[job.name] and idle > 0 and width[job.name] > counts[job.name] and job.name not in avoid:
                sharers.add(job.name)
                idle -= width[job.name] - counts[job.name]
        by_sensitivity = sorted(jobs, key=lambda job: -job.spec.sensitivity.get("cpu", 1.0))
        return Packing({job.name: counts[job.name] for job in by_sensitivity}, frozenset(sharers))

    def _left_s(self, view: View, jobs: Iterable[JobView], width: Mapping[str, int]) -> dict[str, float]:
        """Core-seconds that are left of each job, by thread."""
        works = {job.name: work_s(job.spec, view) for job in view.jobs.values()}
        usual_s = statistics.fmean(known) if (known := [work for work in works.values() if work]) else 1.0
        left: dict[str, float] = {}
        for job in jobs:
            needed_s = works[job.name]
            now_s = usual_s if needed_s is None else max(_FLOOR * needed_s, needed_s - (job.cpu_s or 0.0))
            left[job.name] = now_s / width[job.name]
        return left

    def _choose_threads(self, view: View) -> dict[str, int]:
        works = {job.name: needed_s for job in view.jobs.values() if (needed_s := work_s(job.spec, view)) is not None}
        total_s = sum(works.values())
        service = max(1, view.service.threads)
        run_s = total_s / max(1.0, view.total_cores - self._service_share * min(service, view.total_cores))
        room_s = self._fillers * total_s
        threads = dict.fromkeys(works, 1)
        for name in sorted(works, key=lambda name: works[name]):
            spec = view.jobs[name].spec
            counts = [count for count in spec.runtime_s if 1 < count <= view.total_cores]
            if not counts:
                continue
            if works[name] <= room_s and speedup(spec, max(counts), max(counts)) >= _GOOD * max(counts):
                threads[name] = max(counts)
                room_s -= works[name]
            elif works[name] > run_s:
                threads[name] = self._gangs[name] = min(counts)
        return threads


def work_s(spec: JobSpec, view: View) -> float | None:
    """Core-seconds of a job with one thread on a machine whose cores are all busy; None where it was not measured."""
    alone_s = spec.runtime_s.get(1)
    if alone_s is None:
        return None
    paired = any(len(siblings) > 1 for siblings in view.topology.siblings.values())
    return alone_s * (spec.sensitivity.get("cpu", 1.0) if paired else 1.0)
