"""`colocate simulate`: the loop on a machine on paper."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from colocate.cli import options
from colocate.cli.progress import RunView
from colocate.cli.report_option import add_report_option, check_report, write_report
from colocate.policy import choose
from colocate.report.summary import print_summary, to_json, write_summary
from colocate.signals import signals
from colocate.sim.run import simulate
from colocate.sim.traces import LOADS
from colocate.simulation import SimSettings, setup, summary, write_load

_DEFAULTS = SimSettings()
_SLICE_S = 0.1  # so long a signal may wait
_EPILOG = f"""\
examples:
  colocate simulate                                           the graded run of 2025, in some seconds
  colocate simulate --scenario cca-2026 --policy static --set service_cores=3
  colocate simulate --policy my.py:Mine --seed 7 --speed 60   watch it at sixty times real time
  colocate simulate --load step:20000,120000 --qps-interval 5

loads:
{LOADS}
The event log and the load generator's file have the formats of a live run; every figure is the model's, not a
measurement. `docs/simulation.md` says how far the model may be believed.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `simulate` to the commands."""
    parser = commands.add_parser(
        "simulate",
        description="Run the very loop of `colocate run` on a model of a machine, in virtual time.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_scenario_options(parser)
    add = parser.add_argument
    add("--policy", default="share", metavar="NAME", help="name, FILE.py:CLASS or module:Class (%(default)s)")
    add("--set", action="append", default=[], metavar="OPTION=VALUE", help="set an option of the policy; repeatable")
    options.add_shadow(parser)
    add("--seed", type=options.count, metavar="N", help="of the load and of all that is random (the scenario's)")
    add("--typical", action="store_true", help="a machine without chance; only the load is drawn")
    add("--speed", type=options.factor, metavar="X", help="play it at X times real time, with live progress")
    add("--log-dir", type=Path, default=Path("logs"), metavar="DIR", help="where event logs go (%(default)s)")
    add_report_option(parser)
    add("--json", action="store_true", help="print the summary as JSON on standard output")
    add("-v", "--verbose", action="store_true", help="tell every move and its reason")
    parser.set_defaults(run=simulate_command)


def add_scenario_options(parser: argparse.ArgumentParser) -> None:
    """The options that name a machine, its jobs and its load; what is left out is the scenario's."""
    add = parser.add_argument
    add("--scenario", default=_DEFAULTS.scenario, metavar="NAME", help="machine, jobs, SLO, load in one (%(default)s)")
    add("--jobs", metavar="CATALOGUE", help="other jobs: a catalogue's name or file")
    add("--cores", type=options.cores, metavar="LIST", help="the cores to share out, such as 0-2 (all)")
    add("--memcached-threads", type=options.positive, metavar="N", help="memcached's worker threads")
    add("--slo", type=options.latency_ms, metavar="TIME", help="the promise, such as 0.8ms")
    add("--percentile", type=options.percentile, metavar="P", help="of the promise (95)")
    add("--interval", type=options.period, default=_DEFAULTS.period_s, metavar="TIME", help="the loop's period (50ms)")
    add("--duration", type=options.seconds, metavar="TIME", help="end after this long even if jobs are left (2h)")
    add("--no-share", action="store_true", help="a host on which jobs cannot share memcached's cores")
    add("--load", default=_DEFAULTS.load, metavar="LOAD", help="waveform (%(default)s), a shape, or a file: see below")
    add("--qps-interval", type=options.seconds, metavar="TIME", help="length of a load interval")
    add("--qps-min", type=options.count, metavar="N", help="least load")
    add("--qps-max", type=options.count, metavar="N", help="most load")
    add("--qps-seed", type=options.count, metavar="N", help="of the load alone, where it is not --seed")
    add("--qps-target", type=options.count, action="append", default=[], metavar="N", help="a load; repeat: the next")


def sim_settings(args: argparse.Namespace) -> SimSettings:
    """The settings of a simulated run from parsed options."""
    return SimSettings(
        scenario=args.scenario,
        jobs=args.jobs,
        slo_ms=args.slo,
        percentile=args.percentile,
        threads=args.memcached_threads,
        cores=args.cores,
        load=args.load,
        qps_min=args.qps_min,
        qps_max=args.qps_max,
        qps_interval_s=args.qps_interval,
        qps_seed=args.qps_seed,
        qps_targets=args.qps_target,
        seed=getattr(args, "seed", None),
        typical=getattr(args, "typical", False),
        share=not args.no_share,
        period_s=args.interval,
        duration_s=args.duration,
    )


def simulate_command(args: argparse.Namespace) -> int:
    """Simulate; print the summary; the exit code is a live run's."""
    check_report(args.report)
    settings = sim_settings(args)
    chosen = setup(settings)
    policy = choose(args.policy, args.set)
    shadow_options = options.shadow_options(args)
    shadow = choose(args.shadow, shadow_options) if args.shadow else None
    console = Console(stderr=True)
    with ExitStack() as stack:
        watched = args.speed is not None or args.verbose
        view = stack.enter_context(RunView(console, verbose=args.verbose)) if watched else None
        interrupted = stack.enter_context(signals())
        run = simulate(
            chosen,
            policy.policy,
            args.log_dir,
            metrics=True,
            label=policy.label,
            shadow=shadow,
            interrupted=interrupted,
            show=view.show if view else None,
            settings={**asdict(settings), "policy": args.policy, "options": args.set, "shadow": args.shadow},
            pace=_pace(args.speed, interrupted) if args.speed else None,
        )
    told = summary(run, chosen, args.policy, write_load(run))
    write_summary(told)
    write_report(args.report, told)
    if args.json:
        sys.stdout.write(to_json(told) + "\n")
    else:
        print_summary(told, Console())
    code = told["exit_code"]
    assert isinstance(code, int)  # noqa: S101 -- summary() puts it there
    return code


def _pace(speed: float, interrupted: Callable[[], int]) -> Callable[[float], None]:
    """Hold virtual time back to `speed` times real time."""
    begin_s = time.monotonic()

    def pace(now_s: float) -> None:
        while (ahead_s := begin_s + now_s / speed - time.monotonic()) > 0 and not interrupted():
            time.sleep(min(ahead_s, _SLICE_S))

    return pace
