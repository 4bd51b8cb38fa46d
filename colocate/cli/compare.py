"""`colocate compare`: policies side by side on the same loads."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from colocate.cli import options
from colocate.cli.simulate import add_scenario_options, sim_settings
from colocate.compare import compare, parse_contenders, parse_seeds
from colocate.errors import UserError, needs
from colocate.report.comparison import Comparison, Row
from colocate.report.confidence import Estimate
from colocate.report.summary import to_json
from colocate.sim.traces import LOADS

_WIDTH = 120  # in a file or a pipe
_EPILOG = f"""\
examples:
  colocate compare --policies share,reactive,qps-cut,static --seeds 20
  colocate compare --policies 'reactive,reactive[caution=0.7],reactive[caution=0.95,hold_s=2]' --picture front.png
  colocate compare --policies reactive,my.py:Mine --scenario cca-2026 --csv runs.csv

Options of a policy stand in brackets behind it; quote them, since brackets mean something to a shell. A seed means the
same load, the same machine and the same noise to every policy. Intervals hold the true mean in 95 % of all cases
(Student's t over the seeds). The second table has the differences to the first policy named, seed by seed: where zero
is outside the interval the difference is more than chance (marked *). `unavoidable` is the share of load intervals that
break the SLO even with nothing beside memcached, as the machine that was drawn is too slow; it is part of the
violations. `useful` is the share of the machine's cycles in which memcached, its interrupts or a job ran. `over oracle`
is against the best schedule that is known, found with the whole load known in advance. Every figure is the model's, not
a measurement.

loads:
{LOADS}"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `compare` to the commands."""
    parser = commands.add_parser(
        "compare",
        description="Simulate every policy on every load, on all cores of this computer, and tell their means.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--policies", required=True, metavar="A,B,C", help="each NAME, FILE.py:CLASS or module:Class, with [options]")
    add("--seeds", default="20", metavar="N", help="1 to N, or such as 101-120 (%(default)s)")
    add_scenario_options(parser)
    add("--no-oracle", action="store_true", help="do not look for the best schedule (slow at short load intervals)")
    add("--workers", type=options.positive, metavar="N", help="processes (one a core); the result is the same")
    add("--picture", type=Path, metavar="FILE", help="violations against makespan, as .png or .svg")
    add("--csv", type=Path, metavar="FILE", help="write one line a run")
    add("--json", action="store_true", help="print one JSON document on standard output")
    parser.set_defaults(run=compare_command)


def compare_command(args: argparse.Namespace) -> int:
    """Compare; 0 even where a policy failed, which the table tells."""
    contenders, seeds = parse_contenders(args.policies), parse_seeds(args.seeds)
    for path in (args.csv, args.picture):
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.parent}", "make it, or give another")
    if args.picture:
        with needs("report"):
            from colocate.report.pareto import check_picture  # matplotlib takes a quarter of a second to load

        check_picture(args.picture)
    with _progress() as progress:
        task = progress.add_task("simulating", total=None)

        def done(number: int, total: int) -> None:
            progress.update(task, completed=number, total=total)

        found = compare(
            sim_settings(args), contenders, seeds, workers=args.workers, ask_oracle=not args.no_oracle, done=done
        )
    if args.csv:
        found.write_csv(args.csv)
    if args.picture:
        from colocate.report.pareto import draw

        draw(found, args.picture)
    if args.json:
        sys.stdout.write(to_json(found.document()) + "\n")
    else:
        _print(found, Console() if sys.stdout.isatty() else Console(width=_WIDTH))
    return 0


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, refresh_per_second=4, disable=not console.is_terminal)


def _print(found: Comparison, console: Console) -> None:
    rows = found.rows()
    seeds = found.seeds

    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    line(f"{found.scenario}, another load every {found.qps_interval_s:g} s, {seeds} seeds, simulated\n", "bold")
    table = _table("policy", "makespan", "violations", "unavoidable", "over oracle", "moves/min", "useful")
    for row in rows:
        table.add_row(
            Text(row.policy),
            _seconds(row.makespan_s),
            _percent(row.slo_violation_ratio),
            f"{row.unavoidable_ratio:.2%}",
            ("" if math.isnan(row.over_oracle) else f"{row.over_oracle:.3f}") + (" (sharing)" if row.share else ""),
            f"{row.core_moves_per_min:.1f}",
            f"{row.useful_cycles_ratio:.1%}",
        )
    console.print(table)
    if len(rows) > 1:
        line(f"\nless {rows[0].policy}, seed by seed:", "bold")
        table = _table("policy", "makespan", "violations")
        for row in rows[1:]:
            table.add_row(
                Text(row.policy),
                _seconds(row.makespan_difference_s, "+") + _mark(row.makespan_difference_s),
                _percent(row.slo_violation_difference, "+") + _mark(row.slo_violation_difference),
            )
        console.print(table)
    line("")
    for kind, bound in found.oracle().items():
        told = {"exclusive": "whole cores", "sharing": "sharing    "}[kind]
        lower, best = (f"{value:.1f} s" if math.isfinite(value) else "none" for value in bound.values())
        line(f"oracle, {told}  no makespan below {lower}, best found {best}")
    if lost := found.unwinnable_seeds():
        line(f"in {lost} of {seeds} seeds the machine is so slow that no schedule was found that holds the SLO")
    for row in rows:
        for warning in _warnings(row, seeds):
            line(f"warning              {row.policy}: {warning}", "yellow")


def _warnings(row: Row, seeds: int) -> list[str]:
    found = []
    if row.incomplete_runs:
        found.append(f"{row.incomplete_runs} of {seeds} runs were not done in time; they count with the whole time")
    if row.runs_of_the_safe_policy:
        found.append(f"it failed, and the safe policy took over in {row.runs_of_the_safe_policy} of {seeds} runs")
    if row.fault:
        found.append(f"first failure: {row.fault}")
    return found


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        if name == "policy":
            table.add_column(name, overflow="fold", min_width=12)
        else:
            table.add_column(name, justify="right", no_wrap=True)
    return table


def _seconds(value: Estimate, sign: str = "") -> str:
    return f"{value.told(1, sign=sign)} s"


def _percent(value: Estimate, sign: str = "") -> str:
    return f"{value.told(2, 100, sign)} %"


def _mark(value: Estimate) -> str:
    return " *" if value.is_difference else "  "
