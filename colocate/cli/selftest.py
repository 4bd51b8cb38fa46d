"""`colocate selftest`: does each component work on this machine?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from colocate.cli import options
from colocate.host.find import local_address
from colocate.selftest import COMPONENTS, selftest


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `selftest` to the commands."""
    parser = commands.add_parser(
        "selftest",
        description="Try each component for real on this machine, one line each. Nothing is left behind, and "
        "memcached's affinity is not touched. Exit code 1 if a check fails.",
        allow_abbrev=False,
    )
    parser.add_argument("--memcached-ip", default="127.0.0.1", metavar="IP", help="where it listens (%(default)s)")
    parser.add_argument("--port", type=options.port, default=11211, help="its port (%(default)s)")
    parser.add_argument("--memcached-pid", type=options.count, metavar="PID", help="its process")
    parser.add_argument("--test", choices=(*COMPONENTS, "all"), default="all", help="one component only (%(default)s)")
    parser.add_argument("--log-dir", type=Path, default=Path("logs"), metavar="DIR", help="checked, too (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    parser.set_defaults(run=selftest_command)


def selftest_command(args: argparse.Namespace) -> int:
    """Run the checks; a line each as they are done."""
    checks = []
    local_address(args.memcached_ip)
    for check in selftest(args.memcached_ip, args.port, args.memcached_pid, args.log_dir, args.test):
        checks.append(check)
        if not args.json:
            cure = f" -> {check.cure}" if check.cure else ""
            word = ("note" if check.cure else "pass") if check.ok else "FAIL"
            what = f"{word}  {check.component:10} {check.name:10}"
            print(f"{what} {check.ms:8.1f} ms  {check.detail}{cure}", flush=True)
    ok = all(check.ok for check in checks)
    if args.json:
        keys = ("component", "name", "ok", "ms", "cure", "detail")
        rows = [{key: getattr(check, key) for key in keys} for check in checks]
        sys.stdout.write(json.dumps({"checks": rows, "ok": ok}) + "\n")
    return 0 if ok else 1
