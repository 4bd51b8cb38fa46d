"""`colocate restore`: put back what a killed run has left behind."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from colocate.cli import options
from colocate.host.lock import lock_for
from colocate.host.restore import remove_all, restore
from colocate.host.state import CorruptStateError, StateFile

_EPILOG = """\
examples:
  colocate restore               what the last run has left, if it was killed and no guard has put it back
  colocate restore --all         and every job of any run that is over
  colocate restore --wait 45s    go on for so long where dockerd is not there yet

Exit code 1 where something could not be put back, or is not known, because the state file makes no sense.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `restore` to the commands."""
    parser = commands.add_parser(
        "restore",
        description="Put back what a killed run has left behind: memcached's affinity, containers, processes. "
        "Refused, with exit code 2, while a run is going on.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="also jobs of runs that are over and left no state here, killed or left on purpose",
    )
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="as given to the run")
    parser.add_argument(
        "--wait", type=options.seconds, default=0.0, metavar="TIME", help="go on trying for so long (not at all)"
    )
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    parser.set_defaults(run=restore_command)


def restore_command(args: argparse.Namespace) -> int:
    """Restore; one line for each thing done, and for each that failed."""
    state = StateFile(options.state_directory(args.state_dir))
    lock = lock_for(args.state_dir)
    lock.acquire()  # before anything is looked at: what a run in progress has saved is its guard's
    try:
        unknown = _unknown(state)
        if (saved := state.read()) is not None and saved.port is not None:
            lock.claim_port(saved.port)
        end_s = time.monotonic() + args.wait
        done, failed = _restored(state, everything=args.all)
        while failed and time.monotonic() < end_s:
            time.sleep(1.0)
            more, failed = _restored(state, everything=args.all)
            done += [line for line in more if line not in done]
        failed += unknown
    finally:
        lock.release()
    if args.json:
        sys.stdout.write(json.dumps({"done": done, "failed": failed}) + "\n")
    else:
        for line in done or ([] if failed else ["nothing was left behind"]):
            print(line)
        for line in failed:
            sys.stderr.write(f"colocate: not put back: {line}\n")
    return 1 if failed else 0


def _unknown(state: StateFile) -> list[str]:
    """What is to be said of a state file that makes no sense; it is set aside."""
    try:
        state.look()
    except CorruptStateError as error:
        return [f"{error.what}: {state.set_aside()}; {error.cure}"]
    return []


def _restored(state: StateFile, *, everything: bool) -> tuple[list[str], list[str]]:
    """What was put back, and what could not be; one line each."""
    saved = state.read()
    done, failed = restore(saved) if saved else ([], [])
    if everything:
        more_done, more_failed = remove_all()
        done += more_done
        failed += more_failed
    if not failed:
        state.clear()
    return done, failed
