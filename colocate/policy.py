"""What a policy is, and how one is loaded by name or by path.

Who writes a policy needs one import line: `from colocate.policy import Plan, Policy, View`.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path

from colocate.errors import UserError
from colocate.forecast import Forecast, LoadForecast
from colocate.jobs import ACTIVE, ENDED, JobSpec, JobState
from colocate.pacing import Tokens, Tuner
from colocate.packing import Packer, Packing, in_order, share_out, speedup
from colocate.sizing import Setting, Sizing, core_a_thread, last_resort
from colocate.trust import read_trusted
from colocate.view import CoreUse, JobView, LoadPoint, Profile, ServiceView, Signal, Slo, View, Window

__all__ = [
    "ACTIVE", "ENDED", "CoreUse", "Forecast", "JobSpec", "JobState", "JobView", "LoadForecast", "LoadPoint", "Packer",
    "Packing", "Plan", "Policy", "Profile", "ServiceView", "Setting", "Signal", "Sizing", "Slo", "Tokens", "Tuner",
    "View", "Window", "core_a_thread", "in_order", "last_resort", "load_policy", "policy_names", "share_out",
    "speedup",
]  # fmt: skip

GROUP = "colocate.policies"
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a policy wants: counts of cores, never ids.

    Attributes:
        service: memcached's core count.
        jobs: core count by job. 0 pauses a started job; a job that waits starts when it first gets a core; a job
            left out keeps what it has if it has started.
        share: jobs that may also run on memcached's cores, at idle priority only; one with no core of its own then
            runs there alone. Memcached's cores are dealt among them in this plan's order of jobs.
        reason: why, in a few words, for the log.
        threads: thread counts of jobs whose containers are not made yet; a job left out gets its catalogue's.
        spread: memcached gets one thread of each physical core before it gets a second one of any. Jobs lose less to
            a sibling that is half idle, and memcached shares pipelines with them. Otherwise it gets whole cores first.
    """

    service: int
    jobs: Mapping[str, int] = field(default_factory=dict)
    share: frozenset[str] = frozenset()
    reason: str = ""
    threads: Mapping[str, int] = field(default_factory=dict)
    spread: bool = False


class Policy(ABC):
    """Decides how many cores memcached gets and how many each job gets.

    Options are annotated class attributes with a default (`high: float = 0.85`); `--set high=0.8` sets one on the
    object. A policy may keep state between calls; it reads no clock but `view.time_s` and touches nothing outside.
    """

    def prepare(self) -> None:  # noqa: B027 -- a hook; most policies have nothing to prepare
        """Called once, after the options are set and before the first decision."""

    @abstractmethod
    def decide(self, view: View) -> Plan:
        """The plan for this instant; called at every tick, so it must take well under the period."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A policy that was chosen for a run; `label` is its name and the options that were set, as log and records say."""

    policy: Policy
    label: str


def choose(text: str, settings: Iterable[str] = ()) -> Choice:
    """Load a policy as `load_policy` does, and label it.

    Raises:
        UserError: see `load_policy`.
    """
    chosen = tuple(settings)
    return Choice(load_policy(text, chosen), " ".join((text, *chosen)))


def policy_names() -> list[str]:
    """The names of the policies that are installed, this package's and others'."""
    return sorted(_installed().names)


def load_policy(text: str, settings: Iterable[str] = ()) -> Policy:
    """Make a policy from `NAME`, `path/to/file.py:Class` or `module:Class` and set its options (`option=value`).

    Raises:
        UserError: there is none such, it cannot be loaded, or an option is unknown or of another type.
    """
    cls = _find(text)
    try:
        policy = cls()
    except Exception as error:  # whatever a user's constructor raises is the user's to mend
        raise UserError(f"policy {text}: {type(error).__name__}: {error}", "make it work without arguments") from error
    decide = getattr(policy, "decide", None)
    if not callable(decide):
        raise UserError(f"policy {text}: no method decide(view)", "see docs/policies.md")
    for setting in settings:
        _set_option(policy, text, setting)
    if isinstance(policy, Policy):
        try:
            policy.prepare()
        except Exception as error:  # the user's code, too
            raise UserError(f"policy {text}: {type(error).__name__}: {error}", "mend its prepare()") from error
    return typing.cast(Policy, policy)


def options(policy: object) -> dict[str, object]:
    """The options of a policy with their present values."""
    hints = typing.get_type_hints(type(policy))
    return {name: getattr(policy, name) for name in hints if not name.startswith("_") and hasattr(policy, name)}


class _Source(SourceFileLoader):
    """Runs what was checked, never a `__pycache__` beside it, which somebody else may have put there."""

    def get_code(self, fullname: str) -> types.CodeType:  # noqa: ARG002 -- the loader's signature
        return self.source_to_code(read_trusted(Path(self.path)), self.path)


@cache
def _installed() -> EntryPoints:
    """Looked for once: each look reads the metadata of every package that is installed."""
    return entry_points(group=GROUP)


def _find(text: str) -> type:
    place, colon, class_name = text.rpartition(":")
    if not colon:
        found = _installed().select(name=text)
        if not found:  # maybe installed since
            _installed.cache_clear()
            found = _installed().select(name=text)
        if not found:
            names = ", ".join(policy_names())
            raise UserError(f"policy {text!r}: unknown", f"give one of {names}, or FILE.py:CLASS, or module:Class")
        place, _, class_name = next(iter(found)).value.partition(":")
    module_name = place
    try:
        if place.endswith(".py"):
            path = Path(place)
            if not path.is_file():
                raise UserError(f"policy {text!r}: no file {place}", "give the path of a Python file")
            module_name = f"_colocate_policy_{path.stem}"
            loader = _Source(module_name, str(path))
            spec = importlib.util.spec_from_file_location(module_name, path, loader=loader)
            assert spec is not None  # noqa: S101 -- it is given its loader
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module  # dataclasses look their module up
            loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except UserError:
        raise
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise UserError(f"policy {text!r}: {type(error).__name__}: {error}", f"mend {place}") from error
    cls = getattr(module, class_name, None)
    if not isinstance(cls, type):
        raise UserError(f"policy {text!r}: no class {class_name!r} in {place}", "check the name after the colon")
    return cls


def _makes_sense(value: float, default: object) -> bool:
    """Whether a number is one; a negative one is where the default is."""
    return math.isfinite(value) and (value >= 0 or (isinstance(default, int | float) and default < 0))


def _set_option(policy: object, text: str, setting: str) -> None:
    name, equals, value = setting.partition("=")
    name = name.strip().replace("-", "_")
    known = options(policy)
    if not equals or name not in known:
        raise UserError(
            f"policy {text}: no option {name!r}", f"it has {', '.join(known) or 'none'}; write option=value"
        )
    wanted = type(known[name])
    convert: Callable[[str], object] = _BOOLEANS.__getitem__ if wanted is bool else wanted
    try:
        converted = convert(value.strip())
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"policy {text}: {name}={value!r} is no {wanted.__name__}", "give such a value") from error
    if isinstance(converted, int | float) and not _makes_sense(converted, known[name]):
        raise UserError(f"policy {text}: {name}={value!r} makes no sense", "give a number, 0 or above")
    setattr(policy, name, converted)
