"""`colocate status`: what is held on this machine now, by whom, and since when."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from colocate.cli import options
from colocate.cores import format_list
from colocate.errors import UserError
from colocate.host.control import ask
from colocate.host.lock import lock_for
from colocate.host.state import CorruptStateError, Saved, StateFile
from colocate.report.summary import to_json

_EPILOG = """\
examples:
  colocate status           the run in progress: memcached's and the jobs' cores, and the guard that would put them back
  colocate status --json    the same for scripts

Exit code 1 where a run has died and left something behind that is not put back yet, or where its state file makes no
sense: see `colocate restore`. A run of another user is asked as that user, or by sudo. Nothing is changed.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `status` to the commands."""
    parser = commands.add_parser(
        "status",
        description="Tell what is held on this machine now, by whom, and since when.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="as given to the run")
    parser.add_argument("--json", action="store_true", help="print JSON on standard output")
    parser.set_defaults(run=status_command)


def status_command(args: argparse.Namespace) -> int:
    """Ask the run in progress; without one, tell what an earlier one has left. Nothing is changed."""
    directory = options.state_directory(args.state_dir)
    left: Saved | None = None
    holder: int | None = None
    unknown: UserError | None = None
    try:
        status: Mapping[str, Any] = ask(directory, {"request": "status"})
    except UserError as error:
        holder = lock_for(args.state_dir).holder()
        try:
            left = StateFile(directory).look()
        except CorruptStateError as corrupt:
            unknown = corrupt
        status = {
            "running": False,
            "why": str(error),
            "holder": holder,
            "left": asdict(left) if left else None,
            "unknown": str(unknown) if unknown else None,
        }
    if args.json:
        sys.stdout.write(to_json(status) + "\n")
    elif status["running"]:
        _tell(status)
    elif holder is not None:
        print(
            f"pid {holder}{_whose(holder)} has this machine and does not answer: it begins, ends, hangs or is another's"
        )
    elif unknown is not None:
        print(unknown)
    elif left is not None:
        _tell_left(left, datetime.fromtimestamp(StateFile(directory).path.stat().st_mtime))
    else:
        print("no run in progress, nothing is held")
    return 1 if (left is not None or unknown is not None) and holder is None else 0


def _whose(pid: int) -> str:
    """Of which user a process is, and since when; empty where it has ended."""
    try:
        process = psutil.Process(pid)
        since = datetime.fromtimestamp(process.create_time()).isoformat(timespec="seconds")
        return f" of {process.username()}, since {since},"
    except psutil.Error:
        return ""


def _tell_left(left: Saved, saved: datetime) -> None:
    print(f"run        {left.run} has died and left something behind, saved at {saved.isoformat(timespec='seconds')}")
    print(f"log        {left.log or 'none yet'}")
    masks = left.service.get("masks")
    before = " ".join(sorted({str(mask) for mask in masks.values()})) if isinstance(masks, Mapping) else "unknown"
    print(f"memcached  pid {left.service.get('pid')} had the cores {before} before")
    jobs = {"docker": "containers with the label", "process": "processes marked"}.get(left.runtime, "of the runtime")
    print(f"jobs       {jobs} {left.run}{', which are to stay' if left.keeps_jobs else ''}")
    print("its guard, if there is one, goes on trying; or: colocate restore")


def _tell(status: Mapping[str, Any]) -> None:
    service = status.get("service")
    guard = f"guard {status['guard']}" if status.get("guard") else "no guard: after a kill -9, see `colocate restore`"
    print(f"run        {status['run']}, pid {status['pid']}, since {status['since']}; {guard}")
    print(f"policy     {status['policy']}{f', {n} strikes' if (n := status['strikes']) else ''}")
    print(f"log        {status['log']}")
    if not isinstance(service, Mapping):
        print("           it has not decided anything yet")
        return
    cores = format_list(service["cores"]) if service["cores"] else "no core yet"
    print(f"memcached  pid {service['pid']} on {cores}{_figures(service, status)}")
    for name, job in status["jobs"].items():
        held = f" on {format_list(job['cores'])}" if job["cores"] else ""
        done = f", {job['progress']:.0%} done" if job["progress"] is not None else ""
        print(f"{name:<10} {job['state']}{held}{done}")


def _figures(service: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    parts = []
    if service["cpu_cores"] is not None:
        parts.append(f"uses {service['cpu_cores']:.2f} cores")
    if service["qps"] is not None:
        parts.append(f"{service['qps']:,.0f} requests a second")
    if service["p95_ms"] is not None:
        parts.append(f"p{status['percentile']:g} {service['p95_ms']:.2f} ms (SLO {status['slo_ms']:g} ms)")
    return f": {', '.join(parts)}" if parts else ""
