"""`colocate policy`: which policy decides in the run in progress, and another one in its place."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from colocate.errors import UserError
from colocate.host.control import ask
from colocate.host.state import default_directory
from colocate.report.summary import to_json

_EPILOG = """\
examples:
  colocate policy                               which policy decides, with its options; and its shadow
  colocate policy static --set service_cores=2  let another one decide from now on
  colocate policy my.py:Mine --set high=0.7     such a file is read anew each time, so mend it and say it again

Jobs and cores stay as they are until the new policy decides otherwise. One that fails costs strikes, as ever. What
cannot be loaded is said in one line, and the run goes on as before.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `policy` to the commands."""
    parser = commands.add_parser(
        "policy",
        description="Tell which policy decides in the `colocate run` or `demo` in progress on this machine, or let "
        "another one decide from its next tick on.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="name, FILE.py:CLASS or module:Class")
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of it; repeatable"
    )
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="as given to the run")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.set_defaults(run=policy_command)


def policy_command(args: argparse.Namespace) -> int:
    """Ask, and print the answer."""
    request: dict[str, object] = {"request": "policy"}
    if args.name is not None:
        request |= {"name": _absolute(args.name), "set": args.set}
    elif args.set:
        raise UserError("policy: --set without a policy", "give its name, too: the one that decides begins anew then")
    answer = ask(args.state_dir or default_directory(), request)
    if args.json:
        sys.stdout.write(to_json(answer) + "\n")
        return 0
    if "before" in answer:
        print(f"{answer['before']} -> {answer['policy']}")
    else:
        replaced = f", in place of {answer['chosen']}" if answer["policy"] != answer["chosen"] else ""
        _tell("policy", answer, replaced)
    if isinstance(shadow := answer.get("shadow"), dict):
        _tell("shadow", shadow, f", dropped: {shadow['dropped']}" if shadow["dropped"] else "")
    return 0


def _absolute(name: str) -> str:
    """The name with the path of its file, if it has one, seen from here and not from the run's directory."""
    place, colon, cls = name.rpartition(":")
    return f"{Path(place).absolute()}:{cls}" if colon and place.endswith(".py") else name


def _tell(what: str, answer: dict[str, object], remark: str) -> None:
    strikes = f" ({answer['strikes']} strikes)" if answer["strikes"] else ""
    print(f"{what:<8}{answer['policy']}{strikes}{remark}")
    options = answer["options"]
    if isinstance(options, dict):
        for name, value in options.items():
            print(f"        {name} = {value}")
