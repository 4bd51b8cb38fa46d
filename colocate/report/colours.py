"""One colour for each job, the same in every figure, page and dashboard.

The jobs' are Paul Tol's "muted" scheme, which people with any kind of colour blindness can tell apart and which stays
legible in print (P. Tol, Colour Schemes, SRON technical note, 2021); memcached's and the SLO's are Okabe and Ito's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from colocate.errors import UserError

SERVICE_COLOUR = "#0072B2"
LOAD_COLOUR = "#9AA5B1"
VIOLATION_COLOUR = "#D55E00"
FREE_COLOUR = "#F2F2F2"
_MUTED = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#EE9944",
)  # fmt: skip
_KNOWN = (
    "blackscholes", "canneal", "dedup", "ferret", "freqmine", "radix", "vips", "streamcluster", "barnes", "fft",
)  # fmt: skip


def job_colours(jobs: Iterable[str], wished: Mapping[str, str] | None = None) -> dict[str, str]:
    """A colour for each job: wished, else the one that a known job always has, else the next that is free."""
    names = list(dict.fromkeys(jobs))
    known = dict(zip(_KNOWN, _MUTED, strict=True))
    fixed = {name: colour for name in names if (colour := (wished or {}).get(name) or known.get(name))}
    free = [colour for colour in _MUTED if colour not in fixed.values()] or list(_MUTED)
    others = sorted(name for name in names if name not in fixed)
    return fixed | {name: free[index % len(free)] for index, name in enumerate(others)}


def parse_colours(texts: Sequence[str]) -> dict[str, str]:
    """`JOB=#RRGGBB`, as courses prescribe them.

    Raises:
        UserError: one has another form.
    """
    found: dict[str, str] = {}
    for text in texts:
        match = re.fullmatch(r"([a-z][a-z0-9_-]*)=#?([0-9A-Fa-f]{6})", text)
        if not match:
            raise UserError(f"--colour {text!r}: no colour of a job", "write it like canneal=#CCCCAA")
        found[match[1]] = f"#{match[2].upper()}"
    return found


def on_top(colour: str) -> str:
    """Black or white, whichever is legible on it (relative luminance, WCAG 2.1)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return "#000000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#FFFFFF"
