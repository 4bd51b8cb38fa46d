"""One figure of a calibration: a value, its spread, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from colocate.errors import UserError

_MOST = 1e15  # of any figure


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured figure; `low` and `high` span those who measured it."""

    value: float
    low: float
    high: float
    source: str


@dataclass(frozen=True, slots=True)
class CurveFigure:
    """A measured list of figures, such as one a load."""

    value: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    source: str


def figure(table: Mapping[str, object], name: str, where: str, *, least: float = 0.0) -> Figure:
    """The figure `name` of a section; without `low` and `high` it has no spread.

    Raises:
        UserError: it is missing, no number, or below `least`; names it.
    """
    inner = _inner(table, name, where)
    numbers = []
    for key in ("value", "low", "high"):
        number = inner.get(key, inner.get("value"))
        if not isinstance(number, int | float) or isinstance(number, bool) or not -_MOST <= number <= _MOST:
            raise UserError(f"{where}: {name}: {key} {number!r} is no number", "mend that figure")
        numbers.append(float(number))
    value, low, high = numbers
    if value < least:
        raise UserError(f"{where}: {name}: {value:g} is less than {least:g}", "mend that figure")
    return Figure(value, low, high, str(inner.get("source", "")))


def curve_figure(table: Mapping[str, object], name: str, where: str, *, length: int) -> CurveFigure:
    """The list `name` of a section, `length` numbers above 0.

    Raises:
        UserError: it is missing or no such list; names it.
    """
    inner = _inner(table, name, where)
    lists: list[tuple[float, ...]] = []
    for key in ("value", "low", "high"):
        found = inner.get(key, inner.get("value"))
        if not isinstance(found, list) or len(found) != length or not all(_positive(number) for number in found):
            raise UserError(f"{where}: {name}: {key} is no list of {length} numbers above 0", "mend that figure")
        lists.append(tuple(map(float, found)))
    value, low, high = lists
    return CurveFigure(value, low, high, str(inner.get("source", "")))


def ascending(figures: Sequence[float]) -> bool:
    """Whether each is at least as large as the one before."""
    return list(figures) == sorted(figures)


def _inner(table: Mapping[str, object], name: str, where: str) -> Mapping[str, object]:
    inner = table.get(name)
    if not isinstance(inner, dict):
        raise UserError(
            f"{where}: {name}: missing, or no table", "write { value = .., low = .., high = .., source = .. }"
        )
    return inner


def _positive(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 < number <= _MOST
