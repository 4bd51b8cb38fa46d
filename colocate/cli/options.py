"""What command-line options have in common: units, and a configuration file whose keys are the options' names."""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from colocate.cores import CoreSet, parse_ranges
from colocate.errors import UserError
from colocate.host.state import default_directory
from colocate.trust import read_trusted

CONFIG = Path("colocate.toml")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_LONGEST_PERIOD_S = 5.0
T = TypeVar("T")


def _checked(convert: Callable[[str], T]) -> Callable[[str], T]:
    """An argparse type from a converter that raises UserError, so that the message names the option."""

    def call(text: str) -> T:
        try:
            return convert(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return call


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|min|m|h)?", text.strip())
    value = float(match[1]) * _UNITS[match[2] or "s"] if match else 0.0
    if not 0 < value < 1e7:
        raise UserError(f"{text!r} is no time above zero", "write it like 50ms, 90s, 15m")
    return value


def _period(text: str) -> float:
    value = _seconds(text)
    if value > _LONGEST_PERIOD_S:
        raise UserError(f"{text!r}: so long nobody would look at memcached", f"give {_LONGEST_PERIOD_S:g}s at most")
    return value


def _latency_ms(text: str) -> float:
    if not re.search(r"[a-z]", text):
        number = text.strip() if text.strip().strip("0.") else "0.8"
        raise UserError(f"{text!r} has no unit", f"write it like {number}ms")
    return 1e3 * _seconds(text)


def _percentile(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 100:
        raise UserError(f"{text!r} is no percentile", "give a number between 0 and 100, such as 95")
    return value


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"{text!r} is no whole number", "give 0, 1, 2, ...")
    return int(text)


def _positive(text: str) -> int:
    value = _count(text)
    if not value:
        raise UserError("0 is too few", "give 1, 2, ...")
    return value


def _factor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise UserError(f"{text!r} is no factor", "give a number above 0, such as 60")
    return value


def _port(text: str) -> int:
    value = _count(text)
    if not 1 <= value <= 65535:
        raise UserError(f"{text} is no port", "give a number from 1 to 65535")
    return value


def _cores(text: str) -> CoreSet:
    cores = parse_ranges(text)
    if not cores:
        raise UserError("an empty set of cores", "write it like 0-3")
    return cores


seconds = _checked(_seconds)
period = _checked(_period)
latency_ms = _checked(_latency_ms)
percentile = _checked(_percentile)
count = _checked(_count)
positive = _checked(_positive)
factor = _checked(_factor)
port = _checked(_port)
cores = _checked(_cores)


def add_shadow(parser: argparse.ArgumentParser) -> None:
    """The options of a policy that watches."""
    add = parser.add_argument
    add("--shadow", metavar="NAME", help="ask this policy, too, and tell where it would have done otherwise")
    add("--shadow-set", action="append", default=[], metavar="OPTION=VALUE", help="an option of it; repeatable")


def shadow_options(args: argparse.Namespace) -> tuple[str, ...]:
    """What is set of the policy that watches.

    Raises:
        UserError: something is, but there is none.
    """
    if args.shadow_set and not args.shadow:
        raise UserError("--shadow-set without --shadow", "say --shadow NAME, too")
    return tuple(args.shadow_set)


def parse_with_config(
    parser: argparse.ArgumentParser, argv: Sequence[str], ignored: Sequence[str] = ()
) -> argparse.Namespace:
    """Parse `argv` with the options of a configuration file put before it, so that flags win.

    The file is `--config FILE`, else `colocate.toml` here if there is one. A key is an option's long name; `true`
    sets a flag, a list repeats an option. Keys in `ignored` are another command's.

    Raises:
        UserError: the file cannot be read, a key is unknown, or a value is bad; names file and key.
    """
    given = _config_path(argv)
    path = given or CONFIG
    if given is None and not path.is_file():
        return parser.parse_args(argv)
    try:
        table = tomllib.loads(read_trusted(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: it is not UTF-8 text", "give a TOML file of options") from error
    except (OSError, ValueError, RecursionError) as error:  # tomllib lets both through: 5,000 digits, brackets
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: {reason}", "give a TOML file of options") from error
    known = {s.lstrip("-"): a for a in parser._actions for s in a.option_strings if s.startswith("--")}
    words: list[str] = []
    for key, value in table.items():
        name = key.replace("_", "-")
        if name in ignored:
            continue
        if name not in known or name in {"config", "help"}:
            options = ", ".join(sorted(set(known) - {"config", "help"}))
            raise UserError(f"{path}: unknown key {key!r}", f"known are {options}")
        flag = isinstance(known[name].nargs, int) and known[name].nargs == 0
        if flag != isinstance(value, bool) or isinstance(value, dict) or "\0" in str(value):
            raise UserError(f"{path}: {key}: {value!r} does not fit", "true or false" if flag else "give its value")
        if flag:
            words += [f"--{name}"] * bool(value)
        else:
            words += [f"--{name}={item}" for item in (value if isinstance(value, list) else [value])]
    try:
        parser.parse_args(words)
    except UserError as error:
        raise UserError(f"{path}: {error.what}", error.cure) from error
    return parser.parse_args([*words, *argv])


def _config_path(argv: Sequence[str]) -> Path | None:
    for word, following in pairwise([*argv, ""]):
        if word == "--config":
            return Path(following)
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
    return None


def state_directory(given: Path | None) -> Path:
    """Where the state of an earlier run is looked for.

    Raises:
        UserError: the directory that was given is not there, so that no run can have used it.
    """
    if given is not None and not given.is_dir():
        what = "not a directory" if given.exists() else "no such directory"
        raise UserError(f"--state-dir {given}: {what}", "give the one that was given to the run")
    return given or default_directory()
