"""`colocate top`: watch the run in progress on a terminal."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from colocate.cli import options
from colocate.errors import UserError, needs
from colocate.host.state import default_directory
from colocate.top.feed import status_of

_EPILOG = """\
examples:
  colocate top                             watch the run in progress on this machine; q leaves it alone
  colocate top --every 250ms               look four times a second instead of once
  colocate status --json                   what is shown, once, for a script

keys: q quit, p hold the picture, ? what the panels show

It shows who holds each core, memcached's load, CPU and latency of the last minute against the SLO, the jobs with
progress and time left, and the last moves with their reasons. When the run ends, the last picture stays; when another
one begins in the same state directory, it is shown. A dry run and a simulated one cannot be watched.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `top` to the commands."""
    parser = commands.add_parser(
        "top",
        description="Watch the `colocate run` or `demo` in progress on this machine. It only looks: the run does not "
        "change, and goes on when you quit.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="as given to the run")
    parser.add_argument(
        "--every", type=options.seconds, default=1.0, metavar="TIME", help="between two looks (default 1s)"
    )
    parser.set_defaults(run=top_command)


def top_command(args: argparse.Namespace) -> int:
    """Watch until the user quits."""
    source = partial(status_of, args.state_dir or default_directory())
    first = source()
    with needs("top"):
        from colocate.top.app import TopApp
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError("top: this is no terminal", "start it in one, or see `colocate status`")
    TopApp(source, first, args.every).run()
    return 0
