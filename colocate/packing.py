"""Which jobs get the cores that memcached leaves, and how wide each is.

One-thread jobs side by side do more work than one wide job, since no job's speed-up is perfect; a wide job is worth
it when fewer jobs are left than cores. Both follow from one rule: each core goes where it adds most work.
"""

from __future__ import annotations

from collections.abc import Iterable

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
    open_jobs = [job for job in jobs if job.state not in ENDED]
    ranked = sorted(open_jobs, key=lambda j: (_ORDER[j.state], -j.spec.runtime_s.get(1, 0.0) * (not j.cores)))
    shares = {job.name: 0 for job in ranked}
    for _ in range(cores):
        best = max(
            ((_gain(job, shares[job.name]), -shares[job.name], -rank, job.name) for rank, job in enumerate(ranked)),
            default=None,
        )
        if best is None or best[0] <= 0:
            break
        shares[best[-1]] += 1
    return shares


def _gain(job: JobView, cores: int) -> float:
    return speedup(job.spec, cores + 1, job.threads) - speedup(job.spec, cores, job.threads)
