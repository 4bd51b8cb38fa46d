"""Counts to cores, moving as little as possible.

Memcached keeps the cores it has; it grows onto free cores first, onto SMT siblings of its own before others, and
shrinks by giving up siblings of cores that it does not have. A job keeps the cores it has as far as they are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from colocate.cores import CoreSet
from colocate.topology import Topology


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who has which cores: disjoint sets, memcached's never empty once placed. A job without cores is left out."""

    service: CoreSet = frozenset()
    jobs: Mapping[str, CoreSet] = field(default_factory=dict)


def place(service: int, jobs: Mapping[str, int], current: Assignment, topology: Topology) -> Assignment:
    """Choose cores for core counts.

    Args:
        service: memcached's count, between 1 and all.
        jobs: count by job; together with memcached's at most all.
        current: where everybody is now; cores outside the topology are forgotten.
        topology: the managed cores.

    Raises:
        ValueError: more is asked for than there is.
    """
    asked = service + sum(jobs.values())
    if service < 1 or asked > len(topology.cores):
        raise ValueError(f"{service} + {dict(jobs)} cores do not fit into {len(topology.cores)}")
    kept = {job: current.jobs.get(job, frozenset()) for job, count in jobs.items() if count}
    everybody = current.service.union(*kept.values())
    if (
        len(current.service) == service
        and [*map(len, kept.values())] == [count for count in jobs.values() if count]
        and len(everybody) == asked  # disjoint
        and everybody <= topology.cores
    ):
        return Assignment(current.service, kept)  # the usual case, and what the search below would find
    held = {job: current.jobs.get(job, frozenset()) & topology.cores for job in jobs}
    taken = frozenset().union(*(cores for job, cores in held.items() if jobs[job]))
    own = _place_service(service, current.service & topology.cores, taken, topology)

    free = topology.cores - own
    placed: dict[str, CoreSet] = {}
    for job, count in jobs.items():  # first everybody keeps what they may
        placed[job] = _nearest(count, held[job] & free, held[job], own, topology)
        free -= placed[job]
    for job, count in jobs.items():  # then the shortages are filled
        more = _nearest(count - len(placed[job]), free, placed[job], own, topology)
        placed[job] |= more
        free -= more
    return Assignment(own, {job: cores for job, cores in placed.items() if cores})


def _place_service(count: int, has: CoreSet, taken: CoreSet, topology: Topology) -> CoreSet:
    own = set(has)
    while len(own) > count:
        # Give up a core whose sibling a job may hold already, the highest id first.
        own.remove(max(own, key=lambda c: (len(topology.siblings[c] - own), c)))
    while len(own) < count:
        own.add(
            min(
                topology.cores - own,
                key=lambda c: (
                    not topology.siblings[c] & own,  # beside a core it has: no job shares that pipeline
                    c in taken,
                    min((topology.node[c] != topology.node[o] for o in own), default=False),
                    c,
                ),
            )
        )
    return frozenset(own)


def _nearest(count: int, free: CoreSet, to: CoreSet, service: CoreSet, topology: Topology) -> CoreSet:
    """`count` of the free cores (fewer if there are fewer): near to `to`, and not beside memcached if possible."""

    def distance(core: int) -> tuple[bool, bool, int, int]:
        beside_service = bool(topology.siblings[core] & service)
        cache_shared = bool(topology.cache[core] & to)
        return beside_service, not cache_shared, -len(topology.siblings[core] & to), core

    return frozenset(sorted(free, key=distance)[: max(0, count)])
