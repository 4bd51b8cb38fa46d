"""Counts to cores, moving as little as possible.

Memcached keeps the cores it has; it grows onto free cores first, and either onto SMT siblings of its own before others
(whole cores) or onto cores whose siblings are not its own (spread). A job keeps the cores it has as far as they are
left; jobs choose in the plan's order, the first the quietest core. Memcached's cores are dealt among the jobs that may
share them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from colocate.cores import CoreSet
from colocate.topology import Topology


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who has which cores, memcached's never empty once placed. A job without cores is left out.

    The jobs' sets are disjoint from each other and from memcached's, but for what sharers have of memcached's cores.
    """

    service: CoreSet = frozenset()
    jobs: Mapping[str, CoreSet] = field(default_factory=dict)


def place(
    service: int,
    jobs: Mapping[str, int],
    current: Assignment,
    topology: Topology,
    *,
    sharers: Mapping[str, int] | None = None,
    spread: bool = False,
) -> Assignment:
    """Choose cores for core counts.

    Args:
        service: memcached's count, between 1 and all.
        jobs: count by job; together with memcached's at most all.
        current: where everybody is now; cores outside the topology are forgotten.
        topology: the managed cores.
        sharers: jobs that may also run on memcached's cores, each with how many of them it has use for (1 or more).
        spread: whether memcached gets one thread of each physical core first.

    Raises:
        ValueError: more is asked for than there is.
    """
    asked = service + sum(jobs.values())
    if service < 1 or asked > len(topology.cores):
        raise ValueError(f"{service} + {dict(jobs)} cores do not fit into {len(topology.cores)}")
    has = {job: current.jobs.get(job, frozenset()) - current.service for job, count in jobs.items() if count}
    if (
        len(current.service) == service
        and [*map(len, has.values())] == [count for count in jobs.values() if count]
        and len(everybody := current.service.union(*has.values())) == asked  # disjoint
        and everybody <= topology.cores
    ):
        own, placed = current.service, has  # the usual case, and what the search would find
    else:
        own, placed = _search(service, jobs, current, topology, spread=spread)
    for job, cores in _deal(sharers, own, current.jobs).items() if sharers else ():
        placed[job] = placed.get(job, frozenset()) | cores
    return Assignment(own, {job: cores for job, cores in placed.items() if cores})


def _search(
    service: int, jobs: Mapping[str, int], current: Assignment, topology: Topology, *, spread: bool
) -> tuple[CoreSet, dict[str, CoreSet]]:
    """Memcached's cores, and each job's own."""
    held = {job: current.jobs.get(job, frozenset()) & topology.cores for job in jobs}
    taken = frozenset().union(*(cores for job, cores in held.items() if jobs[job]))
    own = _place_service(service, current.service & topology.cores, taken, topology, spread=spread)
    free = topology.cores - own
    placed: dict[str, CoreSet] = {}
    for job, count in jobs.items():  # first everybody keeps what they may
        placed[job] = _nearest(count, held[job] & free, held[job], own, topology, spread=spread)
        free -= placed[job]
    for job, count in jobs.items():  # then the shortages are filled
        more = _nearest(count - len(placed[job]), free, placed[job], own, topology, spread=spread)
        placed[job] |= more
        free -= more
    return own, placed


def _place_service(count: int, has: CoreSet, taken: CoreSet, topology: Topology, *, spread: bool) -> CoreSet:
    own = set(has)
    while len(own) > count:
        # Give up a core whose sibling a job may hold already (spread: one whose sibling stays), the highest id first.
        own.remove(max(own, key=lambda c: ((len(topology.siblings[c] - own) > 0) != spread, c)))
    while len(own) < count:
        own.add(
            min(
                topology.cores - own,
                key=lambda c: (
                    bool(topology.siblings[c] & own) == spread,  # whole cores: no job shares a pipeline with it
                    c in taken,
                    min((topology.node[c] != topology.node[o] for o in own), default=False),
                    c,
                ),
            )
        )
    return frozenset(own)


def _nearest(count: int, free: CoreSet, to: CoreSet, service: CoreSet, topology: Topology, *, spread: bool) -> CoreSet:
    """`count` of the free cores (fewer if there are fewer), near to `to`.

    Where memcached is spread, the cores beside it are the quiet ones; otherwise they are left alone if possible.
    """
    if count <= 0 or count >= len(free):  # the usual case: nothing to choose
        return free if count > 0 else frozenset()

    def distance(core: int) -> tuple[bool, bool, int, int]:
        beside_service = bool(topology.siblings[core] & service)
        cache_shared = bool(topology.cache[core] & to)
        return beside_service != spread, not cache_shared, -len(topology.siblings[core] & to), core

    return frozenset(sorted(free, key=distance)[:count])


def _deal(sharers: Mapping[str, int], own: CoreSet, held: Mapping[str, CoreSet]) -> dict[str, CoreSet]:
    """Memcached's cores among the sharers: none has to stand in a queue behind another while a core is free of jobs.

    First each keeps or gets one, then as many as it can use while there are some; one for which there is none stays
    where it is if that is fair, or shares the least crowded. What is left over is everybody's, so that a thread can go
    where memcached rests.
    """
    hands: dict[str, CoreSet] = {job: frozenset() for job in sharers}
    free = own
    holders = Counter(core for job in sharers for core in held.get(job, ()))

    def take(job: str, most: int, among: CoreSet) -> None:
        nonlocal free
        ranked = sorted(among & free, key=lambda core: (holders[core], core))  # its own before what was everybody's
        more = frozenset(ranked[: max(0, most - len(hands[job]))])
        hands[job] |= more
        free -= more

    for one_each in (True, False):  # nobody gets two while another has none
        for offered in (held, dict.fromkeys(sharers, own)):
            for job, want in sharers.items():
                take(job, 1 if one_each else want, offered.get(job, frozenset()))
    crowd = Counter(core for cores in hands.values() for core in cores)
    fair = math.ceil(len(sharers) / len(own))
    for stays in (True, False):
        for job in [job for job, cores in hands.items() if not cores]:
            pool = [core for core in own if not stays or (core in held.get(job, ()) and crowd[core] < fair)]
            if pool:
                core = min(pool, key=lambda core: (crowd[core], core))
                hands[job] = frozenset({core})
                crowd[core] += 1
    return {job: cores | free for job, cores in hands.items()}
