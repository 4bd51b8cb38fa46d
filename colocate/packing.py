"""Which jobs get the cores that memcached leaves, and how wide each is.

One-thread jobs side by side do more work than one wide job, since no job's speed-up is perfect; a wide job is worth
it when fewer jobs are left than cores. Both follow from one rule: each core goes where it adds most work.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heapreplace

from colocate.jobs import ENDED, JobSpec, JobState
from colocate.view import JobView

_ASSUMED_EXPONENT = 0.85  # speed-up of w cores where none was measured: w ** 0.85
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
    best = [(-_gain(job, 0), 0, rank) for rank, job in enumerate(ranked)]
    heapify(best)
    for _ in range(cores if ranked else 0):
        loss, share, rank = best[0]
        if loss >= 0:
            break
        job = ranked[rank]
        shares[job.name] = share + 1
        heapreplace(best, (-_gain(job, share + 1), share + 1, rank))
    return shares


def _gain(job: JobView, cores: int) -> float:
    return speedup(job.spec, cores + 1, job.threads) - speedup(job.spec, cores, job.threads)
