"""A set of cores: parsed, printed, never empty where it is written.

Two notations are used on Linux and both appear here: ranges as in cpuset(7) (`0-2,4`) and the event log's
list of ids (`[0,1,2,4]`).
"""

from __future__ import annotations

from collections.abc import Iterable

from colocate.errors import UserError

CoreSet = frozenset[int]

_MAX_CORE = 8191  # the kernel's largest CONFIG_NR_CPUS
_MAX_PART = 100  # signs; far fewer than the digits that Python refuses to convert


def parse_ranges(text: str) -> CoreSet:
    """Parse the kernel's list format, such as `0-2,4` (an empty text is the empty set).

    Raises:
        UserError: the text is no such list.
    """
    cores: set[int] = set()
    told = 0
    for part in text.strip().split(",") if text.strip() else []:
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()) or len(part) > _MAX_PART:
            raise UserError(f"{text.strip()!r} is not a set of cores", "write it like 0-2,4")
        low, high = int(first), int(last)
        told += high - low + 1
        if low > high or high > _MAX_CORE or told > _MAX_CORE + 1:  # the last: the same ones again and again
            raise UserError(f"{part.strip()!r} is no range of cores", "write it like 0-2,4")
        cores.update(range(low, high + 1))
    return frozenset(cores)


def format_ranges(cores: Iterable[int]) -> str:
    """Write a set as the kernel does: `0-2,4`.

    Raises:
        ValueError: the set is empty (an empty cpuset means "all" in one place and an error in another).
    """
    ids = nonempty(cores)
    parts: list[str] = []
    start = previous = ids[0]
    for core in [*ids[1:], -1]:
        if core == previous + 1:
            previous = core
            continue
        parts.append(str(start) if start == previous else f"{start}-{previous}")
        start = previous = core
    return ",".join(parts)


def format_list(cores: Iterable[int]) -> str:
    """Write a set as the event log does: `[0,1,2,4]`.

    Raises:
        ValueError: the set is empty.
    """
    return f"[{','.join(map(str, nonempty(cores)))}]"


def nonempty(cores: Iterable[int]) -> list[int]:
    """The ids in ascending order.

    Raises:
        ValueError: there are none, or one is negative.
    """
    ids = sorted(set(cores))
    if not ids:
        raise ValueError("an empty set of cores is never written")
    if ids[0] < 0:
        raise ValueError(f"core {ids[0]} is negative")
    return ids
