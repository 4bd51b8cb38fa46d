"""Let the jobs have every cycle that memcached leaves: they also run on its cores, at idle priority.

Handing over whole cores wastes what a core is not used for, and every rise in load is a race. At idle priority
memcached pre-empts a job in microseconds: there is nothing to react to. What remains is what idle priority cannot help
with: caches, memory bandwidth, shared pipelines. So jobs are taken from memcached's cores only when its load or its
run-queue delay shows that even this hurts, the heaviest first. Source: our measurements on a 2-core machine
(docs/policies.md); Lo et al., Heracles, ISCA 2015, for the order in which to fear things.
"""

from itertools import chain

from colocate.policy import (
    JobView,
    Packer,
    Packing,
    Plan,
    Policy,
    Setting,
    Sizing,
    View,
    core_a_thread,
    last_resort,
)

_PRESSURE = ("llc", "membw", "l2")  # who suffers from these uses them


class Share(Policy):
    """Memcached keeps the cores that its peak needs, one a thread; the jobs fill all that is idle.

    The ladder from what is best for the jobs to what is safest: all of memcached's cores shared, one less and so on,
    whole cores, further cores left idle. Where fewer are shared, fewer jobs share them: the lightest whose threads fit.
    The first with which the SLO can be expected to hold is taken. Where the host cannot share, it goes by whole cores
    as `reactive` does.

    Options:
        caution: share of the SLO's latency that a setting may come to where a safer one is to be had.
        hold_s: seconds for which a lesser setting must have sufficed before it is taken.
        settle_s: seconds from a change until the latency tells of the new load and setting.
        quantum_s: core-seconds that one job must have more left than another to take its place.
        spread: memcached takes one thread of each physical core first, instead of whole ones.
    """

    caution: float = 0.95
    hold_s: float = 0.5
    settle_s: float = 3.0
    quantum_s: float = 20.0
    spread: bool = True

    def prepare(self) -> None:
        """Start with nothing learned."""
        self._sizing = Sizing(caution=self.caution, settle_s=self.settle_s, hold_s=self.hold_s)
        self._packers = {True: Packer(0.5, quantum_s=self.quantum_s), False: Packer(0.75, quantum_s=self.quantum_s)}

    def decide(self, view: View) -> Plan:
        """What holds and leaves the jobs most."""
        most, least = core_a_thread(view), max(1, view.service.min_cores)
        shared = (Setting(most, count) for count in range(most, -1, -1))
        whole = (Setting(cores) for cores in range(most + 1 if view.can_share else least, view.total_cores + 1))
        ladder = chain(shared, whole) if view.can_share else whole
        setting = self._sizing.choose(view, ladder, last_resort(view, share=view.can_share))
        packer = self._packers[view.can_share]
        packing = packer.pack(view, setting.cores, setting.cores if setting.shared else 0)
        if packing.share and setting.shared < setting.cores:
            heavy = too_heavy(view, packing, setting.shared)
            packing = packer.pack(view, setting.cores, setting.cores, avoid=heavy)
        return Plan(
            min(most, setting.cores),
            packing.jobs,
            packing.share,
            self._sizing.reason(),
            packer.threads(view),
            spread=self.spread,
        )


def too_heavy(view: View, packing: Packing, cores: int) -> frozenset[str]:
    """Of the jobs that would share, those that must not, so that the others' threads fit on so many cores."""
    kept = set()
    sharers = [name for name in packing.jobs if name in packing.share]  # the order of a set differs between processes
    for name in sorted(sharers, key=lambda name: pressure(view.jobs[name])):
        cores -= max(1, view.jobs[name].threads - packing.jobs[name])
        if cores < 0:
            break
        kept.add(name)
    return packing.share - kept


def pressure(job: JobView) -> float:
    """How heavily a job loads what priorities do not protect, as far as its sensitivities tell.

    By the CPU that it used on average since its start, which does not change while it is kept away.
    """
    used = job.cpu_s / job.run_s if job.cpu_s and job.run_s else job.threads
    return used * sum(job.spec.sensitivity.get(name, 1.0) - 1.0 for name in _PRESSURE)
