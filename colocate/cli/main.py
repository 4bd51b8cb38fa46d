"""The command line: parses, calls, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import NoReturn

from colocate import __version__
from colocate.cli.options import parse_with_config
from colocate.errors import Terminated, UserError

_EPILOG = """\
start here:
  colocate demo                                  a private memcached, a changing load, four jobs, two minutes
  colocate selftest --memcached-ip 127.0.0.1     does everything work on this machine?
  colocate run --memcached-ip 127.0.0.1 --jobs cca-2026
  colocate simulate --scenario cca-2025          the same loop on a model of a graded machine, in a second

exit codes: 0 all went as asked, 1 a job or a check failed or not all could be put back, 2 bad input or a missing
permission and nothing touched, 3 --duration was over before the jobs were, 129, 130 and 143 interrupted and ended in
order, 141 nobody read the output
"""

COMMANDS = {
    "run": "keep a memcached fast and give the other cores to batch jobs",
    "demo": "a private memcached, a changing load and four jobs: see it work in two minutes",
    "top": "watch the run in progress on a terminal",
    "policy": "tell or change the policy of the run in progress",
    "status": "what is held on this machine now, by whom, and since when",
    "restore": "put back what a killed run has left: memcached's cores, containers, processes",
    "selftest": "try each component for real on this machine",
    "load": "put a load on memcached, with mcperf's options and output",
    "calibrate": "measure this machine, so that it can be simulated",
    "simulate": "try a policy on a model of a machine, in virtual time",
    "replay": "a recorded run on the model: is the model true, what would another policy have done?",
    "compare": "policies side by side on the same simulated loads",
    "evaluate": "one score for a policy, safe against code that hangs or crashes",
    "serve": "the runs of a log folder in a browser, the one in progress as it grows",
    "report": "what happened in runs: the verdict, tables, figures, a page",
    "explain": "why memcached had the cores that it had at some time of a run",
}  # its module in colocate.cli, and what it is for; only the one that is asked for is loaded


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line and a `UserError`."""

    command = ""  # that stands on the line, for the parser of all of them

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage.

        Raises:
            UserError: always.
        """
        of = f"{self.prog} {self.command}".strip()
        raise UserError(f"{of.removeprefix('colocate').strip()}: {message}".removeprefix(": "), f"see {of} --help")


def build_parser(words: Sequence[str]) -> Parser:
    """The parser for a command line: it knows every command, and the options of the one that stands there."""
    parser = Parser(
        prog="colocate",
        description="Fill the idle cores beside memcached with batch jobs, and give them back in milliseconds.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"colocate {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    wanted = next((word for word in words if not word.startswith("-")), "")
    parser.command = wanted if wanted in COMMANDS else ""
    for name, purpose in COMMANDS.items():
        if name == wanted:
            import_module(f"colocate.cli.{name}").add_parser(commands)
        else:
            commands.add_parser(name, help=purpose)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is as `colocate --help` tells."""
    words = list(sys.argv[1:] if argv is None else argv)
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that what is open is closed; a run has handlers of its own
        signal.signal(number, _leave)
    if sys.stderr is None:  # closed (`2>&-`): what is opened next must not get its number, and our warnings with it
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 -- to the end
    if isinstance(sys.stdout, io.TextIOWrapper):  # no log's text ends a command because a terminal lacks a sign
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        args = build_parser(words).parse_args(words)
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
    finally:
        if argv is None:  # the exit code is known: what comes now must not make another one of it
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated(128 + number)


if __name__ == "__main__":
    sys.exit(main())
