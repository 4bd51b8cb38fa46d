"""Who is who on the screen: a letter and a colour for each holder of cores, and pieces of lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_letters
from typing import Any

from rich.text import Text

from colocate.eventlog import SERVICE

# Okabe and Ito's colours, which people with any kind of colour blindness can tell apart; every one has a letter, too.
# Those of a report are for white paper; half of them could not be seen on a dark terminal.
SERVICE_COLOUR = "#56B4E9"
ALARM = "#D55E00"  # an SLO that breaks, a job that failed: nobody else's
JOB_COLOURS = ("#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2")
DIM = "#9a9a9a"
TITLE = "bold #ffffff on #3a3a3a"
_LETTERS = ascii_letters.replace("M", "")
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class Mark:
    """How a holder is told on the screen."""

    letter: str
    colour: str


SERVICE_MARK = Mark("M", SERVICE_COLOUR)
STRANGER = Mark("?", DIM)


def marks(document: Mapping[str, Any]) -> dict[str, Mark]:
    """The mark of memcached, and one for each job in the order of its catalogue."""
    found = {SERVICE: SERVICE_MARK}
    for index, name in enumerate(document.get("jobs", {})):
        letter = _LETTERS[index] if index < len(_LETTERS) else STRANGER.letter
        found[name] = Mark(letter, JOB_COLOURS[index % len(JOB_COLOURS)])
    return found


def cell(text: str, width: int, style: str = "", *, right: bool = False) -> Text:
    """A text of exactly so many columns, cut with an ellipsis where it is longer."""
    made = Text(text, style=style, no_wrap=True)
    made.truncate(width, overflow="ellipsis")
    made.align("right" if right else "left", width)
    return made


def joined(*parts: Text) -> Text:
    """Pieces of one line, each in its own style (`+` would give them the style of the first)."""
    return Text.assemble(*parts, no_wrap=True)


def title(width: int, *parts: Text | str) -> Text:
    """The first line of a panel."""
    made = Text.assemble(" ", *parts, no_wrap=True)
    made.truncate(width, overflow="ellipsis", pad=True)
    made.stylize_before(TITLE)
    return made


def lines(rows: list[Text]) -> Text:
    """Rows below each other."""
    return Text("\n", no_wrap=True, overflow="crop").join(rows)


def bar(share: float, width: int) -> str:
    """A horizontal bar of a share between 0 and 1, fine to an eighth of a column."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()).ljust(width)


def clock(seconds: float) -> str:
    """`1:05`, or `2:01:05` from an hour on."""
    minutes, left_s = divmod(round(seconds), 60)
    return f"{minutes}:{left_s:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{left_s:02}"
