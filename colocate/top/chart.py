"""A bar chart of the last minute in a few rows of a terminal, with a limit that it may not pass."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from colocate.top.marks import ALARM

_LEVELS = " ▁▂▃▄▅▆▇█"
_SAMPLES = 60  # seconds that are kept


def chart(
    values: Sequence[float | None], width: int, height: int, colour: str, *, limit: float | None = None
) -> list[Text]:
    """The rows, the highest first, of a value a second; the newest is on the right, a missing one leaves a gap.

    With a limit, the scale is such that it lies between two rows, the lower half (of one row: the whole) being below;
    what exceeds it has the colour of an alarm, and the limit is a line of underscores where no bar hides it.
    """
    minute = [*[None] * (_SAMPLES - len(values)), *values[-_SAMPLES:]]
    seconds = min(width, _SAMPLES)  # that are shown; where there is more room, some of them are wider
    shown = [minute[_SAMPLES - seconds + column * seconds // width] for column in range(width)]
    under = max(1, height // 2)  # rows below the limit
    top = limit * height / under if limit else max((v for v in shown if v is not None), default=0.0)
    rows = []
    for row in range(height - 1, -1, -1):
        made = Text(no_wrap=True)
        on_limit = limit is not None and row == under and height > 1
        for value in shown:
            share = min(1.0, value / top) if value is not None and top > 0 else 0.0
            filled = share * height - row
            glyph = _LEVELS[min(8, max(0, round(filled * 8)))]
            if row == 0 and value and glyph == " ":
                glyph = _LEVELS[1]  # a little is not nothing
            late = limit is not None and value is not None and value > limit
            if late and row == under and glyph == " ":
                glyph = _LEVELS[1]  # just over is over
            line = on_limit and glyph == " "
            made.append("_" if line else glyph, ALARM if late or line else colour)
        rows.append(made)
    return rows
