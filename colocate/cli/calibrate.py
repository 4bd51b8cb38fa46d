"""`colocate calibrate`: this machine's figures for the simulated host."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import tomllib
from pathlib import Path

from rich.console import Console

from colocate.calibrate import CalibrationSettings, calibrator
from colocate.cli import options
from colocate.cli.progress import reporting
from colocate.errors import UserError
from colocate.host.memcached import PinError
from colocate.host.trial import TrialError
from colocate.load.generator import FailedError
from colocate.sim.calibration import parse_calibration

_EPILOG = """\
example:
  colocate calibrate --memcached-ip 127.0.0.1 --jobs demo && colocate simulate --scenario this-machine

It measures memcached under load on each number of cores, each job alone on each number of cores, and what moves cost.
memcached must be idle: it is loaded to its limit, and its affinity is put back at the end. On a machine that does
other things meanwhile the figures are those of a busy machine.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `calibrate` to the commands."""
    parser = commands.add_parser(
        "calibrate",
        description="Measure this machine and write a calibration for `colocate simulate --scenario`.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--memcached-ip", required=True, metavar="IP", help="where memcached listens; an address of this machine")
    add("--port", type=options.port, default=11211, help="its port (default %(default)s)")
    add("--memcached-pid", type=options.count, metavar="PID", help="its process, where it is not found")
    add("--jobs", required=True, metavar="CATALOGUE", help="demo, cca-2023, cca-2026, FILE.toml")
    add("--runtime", choices=("docker", "process"), default="docker", help="how jobs run (%(default)s)")
    add("--output", type=Path, default=Path("this-machine.toml"), metavar="FILE", help="(%(default)s)")
    add("--quick", action="store_true", help="fewer loads, nothing repeated: no spreads")
    add("--repeat", type=options.count, metavar="N", help="repetitions of each load and job (2; with --quick 1)")
    add("--busy-anyway", action="store_true", help="measure although memcached serves a load")
    add("--state-dir", type=Path, metavar="DIR", help="of lock and recovery state (/run/colocate for root)")
    add("--json", action="store_true", help="print the figures as JSON on standard output")
    parser.set_defaults(run=calibrate_command)


def calibrate_command(args: argparse.Namespace) -> int:
    """Measure and write; 1 if a job or the load failed on the way, with nothing written."""
    _check_writable(args.output)
    settings = CalibrationSettings(
        args.memcached_ip, args.port, args.memcached_pid, args.jobs, args.runtime, args.quick, args.repeat,
        args.busy_anyway, args.state_dir,
    )  # fmt: skip
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    begun_s = time.monotonic()
    try:
        with reporting(console) as progress, calibrator(settings, progress) as made:
            say(f"{'a quick look, ' if args.quick else ''}{made.plan.told()}")
            for warning in made.warnings:
                say(f"warning: {warning}")
            told = len(made.warnings)
            text = made.run(progress)
            progress("calibrating", 1.0)
    except (FailedError, PinError, TrialError) as error:
        sys.stderr.write(f"colocate: {error}\n")
        return 1
    for warning in made.warnings[told:]:
        say(f"warning: {warning}")
    table = tomllib.loads(text)
    parse_calibration(table, args.output.stem, str(args.output))
    args.output.write_text(text, encoding="utf-8")
    if args.json:
        print(json.dumps({"output": str(args.output), "seconds": round(time.monotonic() - begun_s, 1),
                          "warnings": made.warnings, **table}))  # fmt: skip
    else:
        print(f"{args.output}: try `colocate simulate --scenario {args.output}`")
    return 0


def _check_writable(path: Path) -> None:
    place = path if path.exists() else path.absolute().parent
    if path.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"--output {path}: cannot be written", "give a file in a directory of your own")
    if path.suffix != ".toml":
        raise UserError(f"--output {path}: no .toml", "end its name in .toml, so that --scenario takes it for a file")
