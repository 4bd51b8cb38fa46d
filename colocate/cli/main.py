"""The command line: parses, calls, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from colocate import __version__
from colocate.cli.options import parse_with_config
from colocate.errors import UserError

_EPILOG = """\
start here:
  colocate demo                                  a private memcached, a changing load, four jobs, two minutes
  colocate selftest --memcached-ip 127.0.0.1     does everything work on this machine?
  colocate run --memcached-ip 127.0.0.1 --jobs cca-2026
  colocate simulate --scenario cca-2025          the same loop on a model of a graded machine, in a second

exit codes: 0 all went as asked, 1 a job or a check failed, 2 bad input or a missing permission and nothing touched,
3 --duration was over before the jobs were, 130 and 143 interrupted and ended in order
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line and a `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.prog.removeprefix('colocate ')}: {message}", f"see {self.prog} --help")


def build_parser() -> Parser:
    """The parser with every command."""
    from colocate.cli import (
        calibrate,
        compare,
        demo,
        evaluate,
        load,
        policy,
        replay,
        report,
        restore,
        run,
        selftest,
        simulate,
    )

    parser = Parser(
        prog="colocate",
        description="Fill the idle cores beside memcached with batch jobs, and give them back in milliseconds.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"colocate {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for module in (run, demo, policy, restore, selftest, load, calibrate, simulate, replay, compare, evaluate, report):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is as `colocate --help` tells."""
    words = list(sys.argv[1:] if argv is None else argv)
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that what is open is closed; a run has handlers of its own
        signal.signal(number, _leave)
    try:
        args = build_parser().parse_args(words)
        if "configurable" in args:  # the command's options may also stand in a file
            args = parse_with_config(args.configurable, words[1:], args.ignored)
        return int(args.run(args))
    except UserError as error:
        sys.stderr.write(f"colocate: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
