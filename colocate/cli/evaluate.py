"""`colocate evaluate`: one score for a policy whose code is not trusted to end."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from colocate.cli import options
from colocate.cli.simulate import add_scenario_options, sim_settings
from colocate.compare import parse_seeds
from colocate.errors import UserError
from colocate.evaluate import STEEPNESS, TOLERATED_RATIO, Evaluation, Limits, evaluation
from colocate.report.summary import to_json
from colocate.sim.traces import LOADS

_LIMITS = Limits()
_EPILOG = f"""\
examples:
  colocate evaluate my.py
  colocate evaluate my.py:Mine --set high=0.6 --seeds 20 --json
  colocate evaluate reactive --seeds 101-120

The score is exp(-{STEEPNESS:g} * max(0, v - {TOLERATED_RATIO:g})) / r: r is the time over the oracle's best, v the
share of load intervals that violate the SLO, both means over the seeds. 1 is as good as the oracle, 0 has failed.
`docs/evaluate.md` plugs this into a search for better policies. Every figure is the model's, not a measurement.

exit codes: 0 it has a score, 1 it failed (and why), 2 bad input

loads:
{LOADS}"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `evaluate` to the commands."""
    parser = commands.add_parser(
        "evaluate",
        description="Simulate a policy in a process of its own with limits on time and memory, and score it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("policy", metavar="FILE.py:CLASS", help="FILE.py alone where it has one policy; or a policy's name")
    add("--seeds", default="5", metavar="N", help="1 to N, or such as 101-120 (%(default)s)")
    add_scenario_options(parser)
    add("--set", action="append", default=[], metavar="OPTION=VALUE", help="set an option of the policy; repeatable")
    add("--time-limit", type=options.seconds, default=_LIMITS.time_s, metavar="TIME", help="for all seeds (2m)")
    add("--memory-limit", type=options.positive, default=_LIMITS.memory_mb, metavar="MB", help="(%(default)s)")
    add("--json", action="store_true", help="print one JSON document on standard output")
    parser.set_defaults(run=evaluate_command)


def evaluate_command(args: argparse.Namespace) -> int:
    """Evaluate; 1 where the policy failed."""
    place = args.policy.rpartition(":")[0] or args.policy
    if place.endswith(".py") and not Path(place).is_file():
        raise UserError(f"policy {args.policy!r}: no file {place}", "give the path of a Python file")
    limits = Limits(args.time_limit, args.memory_limit)
    found = evaluation(args.policy, args.set, sim_settings(args), parse_seeds(args.seeds), limits)
    if args.json:
        sys.stdout.write(to_json(asdict(found)) + "\n")
    else:
        _print(found, Console())
    return 0 if found.error is None else 1


def _print(found: Evaluation, console: Console) -> None:
    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    line(f"score                {found.score:.4f}", "bold")
    if found.error is not None:
        line(f"failed               {found.error}", "bold red")
        return
    line(f"makespan             {found.makespan_s:.1f} s, {found.over_oracle:.3f} times the oracle's")
    line(f"SLO violation ratio  {found.slo_violation_ratio:.2%}")
