"""`colocate explain`: why memcached had the cores that it had."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from colocate.cli import options
from colocate.report.explain import explain, parse_moment, story
from colocate.report.record import load_record, read_log
from colocate.report.summary import to_json

_EPILOG = """\
examples:
  colocate explain logs/log20260412_111346.txt                  every change of memcached's cores, with its reason
  colocate explain logs/log20260412_111346.txt --at 11:32:07    that moment: seen, planned, done, and the effect
  colocate explain logs/log20260412_111346.txt --at 125s        125 s after the first job's start

What was seen and planned stands in the metrics file beside the log (.jsonl); a log without one tells less.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `explain` to the commands."""
    parser = commands.add_parser(
        "explain",
        description="Why memcached had the cores that it had: what was seen, planned and done, and the effect.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("log", type=Path, metavar="LOG", help="the run's event log")
    add("--at", metavar="TIME", help="a time on the log's clock, or seconds after the first job's start")
    add("--mcperf", type=Path, metavar="FILE", help="the load generator's output (the one that the run names)")
    add("--slo", type=options.latency_ms, metavar="TIME", help="the promise (the run's own, else 0.8ms)")
    add("--json", action="store_true", help="print JSON on standard output")
    parser.set_defaults(run=explain_command)


def explain_command(args: argparse.Namespace) -> int:
    """Explain one moment, or tell the whole run."""
    read_log(args.log)
    record = load_record(args.log, args.mcperf, slo_ms=args.slo)
    time_s = None if args.at is None else parse_moment(args.at, record.timeline)
    lines = story(record) if time_s is None else explain(record, time_s)
    if args.json:
        told = [line.strip() for line in lines if line]
        sys.stdout.write(to_json({"log": str(args.log), "time_s": time_s, "lines": told}) + "\n")
    else:
        print("\n".join(lines))
    return 0
