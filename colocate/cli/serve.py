"""`colocate serve`: the dashboard of a log folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from colocate.errors import UserError
from colocate.host.state import default_directory
from colocate.web.address import DEFAULT, parse_address
from colocate.web.server import serve

_EPILOG = """\
One page with every run in the folder: those that are over, and the one in progress as it grows. `colocate run --web`
starts the same for the time of its run. It only reads, and it listens on this machine alone unless --web says
otherwise.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `serve` to the commands."""
    parser = commands.add_parser(
        "serve",
        description="Show the runs of a log folder in a browser, also the one in progress.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("directory", type=Path, nargs="?", default=Path("logs"), metavar="LOGDIR", help="(%(default)s)")
    parser.add_argument("--web", default=DEFAULT, metavar="HOST:PORT", help="where to listen (%(default)s)")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="as given to the run in progress")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)  # started by a run
    parser.set_defaults(run=serve_command)


def serve_command(args: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    address = parse_address(args.web)
    if not args.child:
        if not args.directory.is_dir():
            raise UserError(f"{args.directory}: no such folder", "give the --log-dir of your runs")
        if address.warning:
            sys.stderr.write(f"colocate: warning: {address.warning}\n")
    serve(args.directory, address, args.state_dir or default_directory(), child=args.child)
    return 0
