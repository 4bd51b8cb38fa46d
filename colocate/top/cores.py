"""The grid of cores: one cell a core, with who holds it and how busy it is; the more cores, the smaller the cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from colocate.eventlog import SERVICE
from colocate.top.marks import DIM, SERVICE_MARK, STRANGER, Mark, bar, joined, lines, marks, title

_NAMED = 39  # columns of a cell with a long bar and names
_COUNTED = 12  # with number and share
_LABEL = 5  # the first core's number before a row of small cells
_LEVELS = "▁▂▃▄▅▆▇█"

Core = Mapping[str, Any]
Draw = Callable[[int, Core, Mapping[str, Mark], int], Text]


@dataclass(frozen=True, slots=True)
class Grid:
    """How the cores are laid out: rows of ids (None where there is no such core), and what draws a cell how wide."""

    rows: Sequence[Sequence[int | None]]
    width: int
    draw: Draw
    labelled: bool = False


def grid(cores: Sequence[int], width: int, height: int) -> Grid:
    """The largest cells with which the cores fit in so many rows; the smallest where none fit."""
    for columns in range(1, width // _NAMED + 1):
        if len(cores) <= columns * height:
            return Grid(_batches(cores, columns), width // columns, _named)
    counted = Grid(_batches(cores, max(1, width // _COUNTED)), _COUNTED, _counted)
    if len(counted.rows) <= height:
        return counted
    small = _ruled(cores, width, 3, _small)
    return small if len(small.rows) <= height else _ruled(cores, width, 2, _smallest)


def cores_panel(document: Mapping[str, Any], width: int, height: int) -> Text:
    """The panel: a title that counts them, then the grid."""
    cores = {int(core): use for core, use in document.get("cores", {}).items()}
    if not cores:
        return title(width, "CORES  waiting for the first decision")
    held = [core["holders"] for core in cores.values()]
    served = [names for names in held if SERVICE in names]
    shared, idle = sum(len(names) > 1 for names in served), sum(not names for names in held)
    service = Text(f"{SERVICE_MARK.letter} memcached {len(served)}", SERVICE_MARK.colour)
    why = Text(f"  plan: {document['reason']}" if document["reason"] else "", "not bold")
    head = title(width, f"CORES {len(cores)}  ", service, f", shared {shared}, idle {idle}", why)
    laid, who = grid(sorted(cores), width, height - 1), marks(document)
    blank, rows = Text(" " * laid.width), [head]
    for row in laid.rows:
        label = Text(f"{_first(row):>4} " if laid.labelled else "", DIM)
        cells = [laid.draw(core, cores[core], who, laid.width) if core is not None else blank for core in row]
        rows.append(joined(label, *cells))
    return lines(rows)


def _batches(cores: Sequence[int], columns: int) -> list[Sequence[int]]:
    return [cores[begin : begin + columns] for begin in range(0, len(cores), columns)]


def _ruled(cores: Sequence[int], width: int, size: int, draw: Draw) -> Grid:
    """Small cells, a multiple of eight in a row, so that a cell's place tells its core's number."""
    columns = max(8, (width - _LABEL) // size // 8 * 8)
    there = set(cores)
    firsts = sorted({core // columns * columns for core in cores})
    rows = [[core if core in there else None for core in range(first, first + columns)] for first in firsts]
    return Grid(rows, size, draw, labelled=True)


def _first(row: Sequence[int | None]) -> int:
    """The number of a row's first place, whether there is a core or not."""
    index, core = next((index, core) for index, core in enumerate(row) if core is not None)
    return core - index


def _holders(core: Core, who: Mapping[str, Mark]) -> list[Mark]:
    return [who.get(name, STRANGER) for name in core["holders"]]


def _letters(core: Core, who: Mapping[str, Mark]) -> Text:
    """Two columns: both letters of a shared core, and from three holders on the number of those beside memcached."""
    held = _holders(core, who)
    if not held:
        return Text("· ", DIM)
    made = Text().append(held[0].letter, f"bold {held[0].colour}")
    if len(held) == 2:
        made.append(held[1].letter, f"bold {held[1].colour}")
    else:
        made.append(str(min(9, len(held) - 1)) if len(held) > 2 else " ", "bold")
    return made


def _colour(core: Core, who: Mapping[str, Mark]) -> str:
    """Of a bar: the job's who uses what memcached leaves, else memcached's."""
    held = _holders(core, who)
    return held[-1].colour if held else DIM


def _level(core: Core) -> str:
    busy = core["busy"]
    return " " if busy is None else _LEVELS[min(7, int(busy * 8))]


def _named(number: int, core: Core, who: Mapping[str, Mark], width: int) -> Text:
    busy = core["busy"]
    long = 8 if width < 60 else 20
    made = Text()
    made.append(f"{number:>4} ", DIM)
    made.append(bar(busy or 0.0, long), f"{_colour(core, who)} on #2a2a2a")
    made.append(f" {busy:4.0%} " if busy is not None else "    ? ")
    made.append_text(_letters(core, who))
    for name in core["holders"]:
        made.append(f" {name} ", who.get(name, STRANGER).colour)
    if not core["holders"]:
        made.append(" idle", DIM)
    made.truncate(width - 1, overflow="ellipsis")
    made.pad_right(width - made.cell_len)
    return made


def _counted(number: int, core: Core, who: Mapping[str, Mark], width: int) -> Text:
    busy = Text(f"{core['busy']:5.0%}" if core["busy"] is not None else "    ?")
    made = joined(Text(f"{number:>3} ", DIM), _letters(core, who), busy)
    made.truncate(width, pad=True)
    return made


def _small(_number: int, core: Core, who: Mapping[str, Mark], _width: int) -> Text:
    return joined(_letters(core, who), Text(_level(core), _colour(core, who)))


def _smallest(_number: int, core: Core, who: Mapping[str, Mark], _width: int) -> Text:
    """A letter and a bar; on memcached's colour where the job shares a core of memcached's."""
    letters, held = _letters(core, who), _holders(core, who)
    letter = letters[0] if len(held) < 2 else Text(letters.plain[1], f"bold #000000 on {held[0].colour}")
    return joined(letter, Text(_level(core), _colour(core, who)))
