"""`colocate run`: the loop on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from colocate.cli import options
from colocate.cli.progress import RunView, reporting
from colocate.cli.report_option import add_report_option, check_report, write_report
from colocate.errors import UserError
from colocate.host.state import default_directory
from colocate.loop import Ending
from colocate.report.summary import print_summary, to_json, write_summary
from colocate.session import Session, Settings, session
from colocate.view import Slo
from colocate.web.address import parse_address
from colocate.web.server import serving

_DEFAULTS = Settings("")
_EPILOG = """\
examples:
  colocate run --memcached-ip 127.0.0.1                       the demo jobs beside a memcached that is running
  colocate run --memcached-ip 10.0.16.4 --jobs cca-2026 --slo 0.8ms --log-dir logs
  colocate run --memcached-ip 127.0.0.1 --policy my.py:Mine --set high=0.8
  colocate run --memcached-ip 127.0.0.1 --dry-run -v          decide for real, touch nothing

Every option can stand in colocate.toml (or --config FILE), e.g. `memcached-ip = "127.0.0.1"`; flags win.
A run ends when all jobs have; Ctrl-C ends it in order: jobs stopped, memcached's cores given back.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `run` to the commands."""
    parser = commands.add_parser(
        "run",
        description="Keep a memcached fast and give the cores that it leaves to batch jobs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--memcached-ip", metavar="IP", help="where memcached listens; an address of this machine")
    parser.add_argument("--port", type=options.port, default=_DEFAULTS.port, help="its port (default %(default)s)")
    parser.add_argument("--memcached-pid", type=options.count, metavar="PID", help="its process, where it is not found")
    parser.add_argument(
        "--runtime",
        choices=("docker", "process"),
        default=_DEFAULTS.runtime,
        help="run jobs as Docker containers (default) or as plain processes",
    )
    add_run_options(parser)
    parser.set_defaults(run=run_command, configurable=parser, ignored=())


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options that `run` and `demo` share."""
    add = parser.add_argument
    default = _DEFAULTS
    add("--policy", default=default.policy, metavar="NAME", help="name, FILE.py:CLASS or module:Class (%(default)s)")
    add("--set", action="append", default=[], metavar="OPTION=VALUE", help="set an option of the policy; repeatable")
    options.add_shadow(parser)
    add("--jobs", default=default.jobs, metavar="CATALOGUE", help="demo, cca-2023, cca-2026, FILE.toml (%(default)s)")
    add("--cores", type=options.cores, metavar="LIST", help="the cores it may manage, such as 0-3 (default: all)")
    add("--interval", type=options.period, default=default.period_s, metavar="TIME", help="the loop's period (50ms)")
    add("--slo", type=options.latency_ms, default=default.slo.latency_ms, metavar="TIME", help="the promise (0.8ms)")
    add("--percentile", type=options.percentile, default=default.slo.percentile, metavar="P", help="of it (95)")
    add("--duration", type=options.seconds, metavar="TIME", help="end after this long even if jobs are left")
    add("--retries", type=options.count, default=default.retries, metavar="N", help="of a failed job (%(default)s)")
    add("--log-dir", type=Path, default=default.log_dir, metavar="DIR", help="where event logs go (%(default)s)")
    add("--web", metavar="HOST:PORT", help="show it in a browser meanwhile; `colocate serve` goes on showing it")
    add("--latency-from", type=Path, metavar="FILE", help="tail mcperf's output (it may come later), do not probe")
    add("--probe-hz", type=float, metavar="N", help="requests a second of the latency probe")
    add("--on-exit", choices=("stop", "leave", "pause"), default=default.on_exit, help="of unfinished jobs (stop)")
    add("--once", action="store_true", help="one decision, then end")
    add("--dry-run", action="store_true", help="look and decide for real, touch nothing; until Ctrl-C or --duration")
    add("--no-share", action="store_true", help="jobs never share memcached's cores, not even at idle priority")
    add("--no-guard", action="store_true", help="no process that puts everything back if this one is killed")
    add("--state-dir", type=Path, metavar="DIR", help="of lock and recovery state (/run/colocate for root)")
    add("--config", type=Path, metavar="FILE", help="options from this file instead of ./colocate.toml")
    add_report_option(parser)
    add("--json", action="store_true", help="print the summary as JSON on standard output")
    add("-v", "--verbose", action="store_true", help="tell every move and its reason")


def settings_from(args: argparse.Namespace) -> Settings:
    """The settings of a run from parsed options.

    Raises:
        UserError: the address is missing.
    """
    if not args.memcached_ip:
        raise UserError("run: --memcached-ip is missing", "give the address at which memcached listens")
    if args.probe_hz is not None and not 0 < args.probe_hz <= 1000:
        raise UserError(f"run: --probe-hz {args.probe_hz:g}: no rate", "give a number above 0, at most 1000")
    return Settings(
        memcached_ip=args.memcached_ip,
        port=args.port,
        memcached_pid=args.memcached_pid,
        policy=args.policy,
        options=tuple(args.set),
        jobs=args.jobs,
        cores=args.cores,
        period_s=args.interval,
        slo=Slo(args.slo, args.percentile),
        duration_s=args.duration,
        log_dir=args.log_dir,
        runtime=args.runtime,
        dry_run=args.dry_run,
        on_exit=args.on_exit,
        once=args.once,
        retries=args.retries,
        latency_from=args.latency_from,
        probe_hz=args.probe_hz,
        state_dir=args.state_dir,
        shadow=args.shadow,
        shadow_options=options.shadow_options(args),
        share=not args.no_share,
        guard=not args.no_guard,
    )


def run_command(args: argparse.Namespace) -> int:
    """Run; print the summary; the exit code is as `colocate --help` tells."""
    check_report(args.report)
    console = Console(stderr=True)
    with dashboard(args):
        with reporting(console) as progress, session(settings_from(args), progress) as opened:
            ending = run_shown(opened, console, verbose=args.verbose)
        return conclude(opened, ending, json=args.json, report=args.report)


@contextmanager
def dashboard(args: argparse.Namespace) -> Iterator[None]:
    """With --web, the dashboard for the time of a run, by a process of its own; its address on standard error.

    Raises:
        UserError: it cannot be shown there.
    """
    if args.web is None:
        yield
        return
    address = parse_address(args.web)
    with serving(args.log_dir, address, args.state_dir or default_directory()) as url:
        if address.warning:
            sys.stderr.write(f"colocate: warning: {address.warning}\n")
        sys.stderr.write(f"shown at {url}\n")
        sys.stderr.flush()
        yield


def run_shown(opened: Session, console: Console, *, verbose: bool) -> Ending:
    """Run with the live picture."""
    with RunView(console, verbose=verbose) as view:
        return opened.run(view.show)


def conclude(
    opened: Session, ending: Ending, *, json: bool, mcperf: Path | None = None, report: Path | None = None
) -> int:
    """Print the summary of a run that has ended and give its exit code."""
    summary = opened.summary(ending, mcperf)
    write_summary(summary)
    write_report(report, summary)
    if json:
        sys.stdout.write(to_json(summary) + "\n")
    else:
        print_summary(summary, Console())
    code = summary["exit_code"]
    assert isinstance(code, int)  # noqa: S101 -- summary() puts it there
    return code
