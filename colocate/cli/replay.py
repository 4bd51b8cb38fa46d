"""`colocate replay`: a recorded run on the model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from colocate.cli import options
from colocate.errors import UserError
from colocate.policy import load_policy
from colocate.replay import Recording, calibration_of, check_model, read_recording, setup_of
from colocate.report.summary import Summary, print_summary, to_json, write_summary
from colocate.sim.calibration import Calibration
from colocate.sim.run import simulate
from colocate.simulation import summary, write_load
from colocate.view import Slo

_EPILOG = """\
examples:
  colocate replay logs/log20250506_154615.txt --mcperf mcperf.txt --check-model
  colocate replay logs/log20250506_154615.txt --mcperf mcperf.txt --policy reactive --set caution=0.9

--check-model makes the recorded moves under the recorded load on the model and prints model against record.
--policy lets a policy meet the recorded load and jobs on the model, beside what really happened, and beside the
recorded moves on the model, so that the model's own error shows.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `replay` to the commands."""
    parser = commands.add_parser(
        "replay",
        description="Take a recorded run to the model: how true the model is, or what another policy would have done.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("log", type=Path, metavar="LOG", help="the run's event log")
    add("--mcperf", type=Path, metavar="FILE", help="the load generator's output over the same time")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check-model", action="store_true", help="model against record")
    what.add_argument("--policy", metavar="NAME", help="what this policy would have done")
    add("--set", action="append", default=[], metavar="OPTION=VALUE", help="set an option of the policy; repeatable")
    add("--scenario", metavar="NAME", help="the machine's calibration (default: cca-YEAR of the log)")
    add("--jobs", metavar="CATALOGUE", help="where the recorded jobs are described (the scenario's)")
    add("--slo", type=options.latency_ms, metavar="TIME", help="the promise (the scenario's)")
    add("--percentile", type=options.percentile, metavar="P", help="of the promise (the scenario's)")
    add("--qps-interval", type=options.seconds, metavar="TIME", help="length of a load interval, where it is known")
    add("--interval", type=options.seconds, default=0.05, metavar="TIME", help="the loop's period (50ms)")
    add("--seed", type=options.count, metavar="N", help="of what is random on the machine (default: nothing is)")
    add("--log-dir", type=Path, default=Path("logs"), metavar="DIR", help="where the policy's log goes (%(default)s)")
    add("--json", action="store_true", help="print JSON on standard output")
    parser.set_defaults(run=replay_command)


def replay_command(args: argparse.Namespace) -> int:
    """Check the model, or try a policy."""
    recording = read_recording(args.log, args.mcperf, args.qps_interval)
    calibration = calibration_of(recording, args.scenario)
    usual = calibration.scenario.slo
    slo = Slo(args.slo or usual.latency_ms, args.percentile or usual.percentile)
    if args.check_model:
        if args.set or args.jobs:
            raise UserError("replay --check-model: --set and --jobs are a policy's", "leave them out, or give --policy")
        checked = check_model(recording, calibration, slo)
        if args.json:
            sys.stdout.write(to_json({"runs": [checked]}) + "\n")
        else:
            _print_check(checked, slo, Console())
        return 0
    return _try_policy(args, recording, calibration, slo)


def _try_policy(args: argparse.Namespace, recording: Recording, calibration: Calibration, slo: Slo) -> int:
    if recording.load_path is None:
        raise UserError("replay --policy: no load", "give the load generator's output by --mcperf")
    chosen = setup_of(recording, calibration, slo, args.jobs, seed=args.seed, period_s=args.interval)
    run = simulate(chosen, load_policy(args.policy, args.set), args.log_dir, metrics=True)
    told = summary(run, chosen, args.policy, write_load(run))
    write_summary(told)
    model = check_model(recording, calibration, slo)
    told["recorded"] = _recorded(recording, slo)
    told["recorded_on_model"] = {
        "makespan_s": model["makespan_s"]["model"],
        "slo_violation_ratio": model["slo_violation_ratio"]["model"],
    }
    if args.json:
        sys.stdout.write(to_json(told) + "\n")
    else:
        print_summary(told, Console())
        _print_beside(told, args.policy, Console())
    code = told["exit_code"]
    assert isinstance(code, int)  # noqa: S101 -- summary() puts it there
    return code


def _recorded(recording: Recording, slo: Slo) -> Summary:
    grade = recording.graded(slo)
    return {
        "makespan_s": grade.makespan_s,
        "slo_violation_ratio": grade.overlap.value,
        "violations": grade.overlap.violations,
        "intervals": grade.overlap.intervals,
        "core_moves": grade.core_moves,
        "pauses": grade.pauses,
        "warnings": list(grade.warnings),
    }


def _print_beside(told: Summary, policy: str, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("", "recorded", "the same moves on the model", f"{policy} on the model"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    recorded, model = told["recorded"], told["recorded_on_model"]
    for row, key, form in (
        ("makespan", "makespan_s", "{:.1f} s"),
        ("SLO violation ratio", "slo_violation_ratio", "{:.2%}"),
        ("core sets changed", "core_moves", "{}"),
        ("pauses", "pauses", "{}"),
    ):
        values = (recorded.get(key), model.get(key), told.get(key))
        table.add_row(row, *("" if value is None else form.format(value) for value in values))
    console.print("")
    console.print(table, soft_wrap=True)


def _print_check(checked: Summary, slo: Slo, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("", "recorded", "model", "error"):
        table.add_column(name, justify="left" if not name else "right")
    for name, pair in checked["jobs"].items():
        table.add_row(name, *_pair(pair, "{:.1f} s"))
    table.add_row("makespan", *_pair(checked["makespan_s"], "{:.1f} s"), style="bold")
    ratio = checked["slo_violation_ratio"]
    values = ["unknown" if ratio[key] is None else f"{ratio[key]:.2%}" for key in ("recorded", "model")]
    table.add_row("SLO violation ratio", *values, "", style="bold")
    console.print(table)
    if checked["p95_relative_error_median"] is not None:
        console.print(
            f"\np{slo.percentile:g} of {len(checked['intervals'])} intervals: median relative error "
            f"{checked['p95_relative_error_median']:.1%}, "
            f"{checked['slo_class_agreement']:.1%} rightly above or below {slo.latency_ms:g} ms",
            highlight=False,
            soft_wrap=True,
        )


def _pair(pair: dict[str, float | None], form: str) -> tuple[str, str, str]:
    recorded, model = pair["recorded"], pair["model"]
    error = f"{model / recorded - 1:+.1%}" if recorded and model is not None else ""
    return (
        "none" if recorded is None else form.format(recorded),
        "none" if model is None else form.format(model),
        error,
    )
