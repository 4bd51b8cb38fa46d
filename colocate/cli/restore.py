"""`colocate restore`: put back what a killed run has left behind."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from colocate.host.restore import remove_containers, restore
from colocate.host.state import Lock, StateFile, default_directory, default_lock


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `restore` to the commands."""
    parser = commands.add_parser(
        "restore",
        description="Put back what a killed run has left behind: memcached's affinity, containers, processes. "
        "Refused while a run is going on. Exit code 1 if something could not be put back.",
        allow_abbrev=False,
    )
    parser.add_argument("--all", action="store_true", help="also remove containers of runs that left no state file")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="as given to the run")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    parser.set_defaults(run=restore_command)


def restore_command(args: argparse.Namespace) -> int:
    """Restore; one line for each thing done, and for each that failed."""
    state = StateFile(args.state_dir or default_directory())
    lock = Lock(args.state_dir / "lock" if args.state_dir else default_lock())
    lock.acquire()
    try:
        saved = state.read()
        done, failed = restore(saved) if saved else ([], [])
        if args.all:
            more_done, more_failed = remove_containers(None)
            done += more_done
            failed += more_failed
        if not failed:
            state.clear()
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
