"""Which cores there are and what they share: SMT siblings, last-level caches, NUMA nodes.

Read from /sys (Documentation/admin-guide/cputopology.rst in the kernel) or from a JSON file of the same facts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from colocate.cores import CoreSet, format_ranges, parse_ranges
from colocate.errors import UserError


@dataclass(frozen=True, slots=True)
class Topology:
    """The managed cores, each with the managed cores that it shares something with (itself included).

    Attributes:
        cores: the ids that may be given to memcached and jobs.
        siblings: SMT siblings by core.
        cache: cores with the same last-level cache, by core.
        node: NUMA node by core.
    """

    cores: CoreSet
    siblings: Mapping[int, CoreSet]
    cache: Mapping[int, CoreSet]
    node: Mapping[int, int]

    @classmethod
    def flat(cls, count: int) -> Topology:
        """`count` cores that share nothing but a cache."""
        cores = frozenset(range(count))
        return cls(cores, {c: frozenset({c}) for c in cores}, dict.fromkeys(cores, cores), dict.fromkeys(cores, 0))

    def only(self, cores: CoreSet) -> Topology:
        """The same facts for a part of the cores.

        Raises:
            UserError: one of them is not there.
        """
        missing = sorted(cores - self.cores)
        if missing or not cores:
            raise UserError(
                f"core {missing[0]} is not on this machine" if missing else "no cores to manage",
                f"there are {format_ranges(self.cores)}",
            )
        return Topology(
            cores,
            {c: self.siblings[c] & cores for c in cores},
            {c: self.cache[c] & cores for c in cores},
            {c: self.node[c] for c in cores},
        )


def read_topology(root: Path = Path("/")) -> Topology:
    """Read this machine's topology from `root/sys`; facts that are missing count as "shares nothing".

    Raises:
        UserError: the list of online cores cannot be read.
    """
    base = root / "sys/devices/system/cpu"
    try:
        online = parse_ranges((base / "online").read_text(errors="replace"))
    except OSError as error:
        raise UserError(f"{base / 'online'}: {error.strerror}", "this needs Linux with /sys mounted") from error
    if not online:
        raise UserError(f"{base / 'online'} names no core", "this needs Linux with /sys mounted")
    siblings: dict[int, CoreSet] = {}
    cache: dict[int, CoreSet] = {}
    node: dict[int, int] = {}
    for core in sorted(online):
        cpu = base / f"cpu{core}"
        siblings[core] = _list_or(cpu / "topology/thread_siblings_list", frozenset({core})) & online
        last_level = max((cpu / "cache").glob("index*"), key=lambda p: int(p.name[5:]), default=cpu / "cache/none")
        cache[core] = _list_or(last_level / "shared_cpu_list", siblings[core]) & online
        node[core] = next((int(p.name[4:]) for p in cpu.glob("node[0-9]*")), 0)
    return Topology(online, siblings, cache, node)


def load_topology(path: Path) -> Topology:
    """Read a topology from JSON: `{"siblings": {"0": "0-1"}, "cache": {...}, "node": {"0": 0}}`, each by core id.

    Raises:
        UserError: the file cannot be read or is no topology.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        siblings = {int(core): parse_ranges(text) for core, text in data["siblings"].items()}
        cache = {int(core): parse_ranges(text) for core, text in data.get("cache", data["siblings"]).items()}
        node = {core: int(data.get("node", {}).get(str(core), 0)) for core in siblings}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: no topology: {error}", 'write {"siblings": {"0": "0-1", ...}}') from error
    return Topology(frozenset(siblings), siblings, cache, node)


def _list_or(path: Path, default: CoreSet) -> CoreSet:
    try:
        return parse_ranges(path.read_text(errors="replace")) or default
    except (OSError, UserError):  # a virtual machine need not say
        return default
