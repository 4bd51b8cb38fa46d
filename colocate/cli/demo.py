"""`colocate demo`: everything on built-in defaults, nothing to prepare."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from colocate.cli.progress import reporting
from colocate.cli.report_option import check_report
from colocate.cli.run import add_run_options, conclude, dashboard, run_shown, settings_from
from colocate.demo import IP, background_load, choose_runtime, private_memcached, scaled_load
from colocate.jobs import load_catalogue
from colocate.load.generator import capacity_qps
from colocate.policy import choose
from colocate.session import session


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `demo` to the commands."""
    parser = commands.add_parser(
        "demo",
        description="Start a private memcached on loopback and a changing load, run the demo jobs beside it, and print "
        "the summary. The load is scaled to what this machine's memcached answers.",
        allow_abbrev=False,
    )
    add_run_options(parser)
    parser.add_argument("--runtime", choices=("docker", "process"), help="how jobs run (default: docker if it can)")
    parser.set_defaults(run=demo_command, configurable=parser, ignored=("memcached-ip", "port", "memcached-pid"))


def demo_command(args: argparse.Namespace) -> int:
    """Run the demonstration; the exit code is a run's."""
    check_report(args.report)
    load_catalogue(args.jobs)  # what a run would refuse, before memcached is started and loaded
    choose(args.policy, args.set)
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    if args.runtime is None:
        args.runtime, why = choose_runtime()
        if why:
            say(f"jobs run as plain processes: {why}")
    cores = len(os.sched_getaffinity(0))
    with dashboard(args), ExitStack() as stack:
        port, pid = stack.enter_context(private_memcached(threads=max(2, min(4, cores))))
        args.memcached_ip, args.port, args.memcached_pid = IP, port, pid
        settings = settings_from(args)
        progress = stack.enter_context(reporting(console))
        capacity = capacity_qps(IP, port)
        load = scaled_load(capacity)
        say(f"a private memcached on {IP}:{port} answers {capacity:,.0f} requests a second at most")
        say(f"load: {load.qps_min:,} to {load.qps_max:,} requests a second, another rate every {load.interval_s} s")
        opened = stack.enter_context(session(dataclasses.replace(settings, port=port), progress))
        output = Path(settings.log_dir) / f"mcperf{time.strftime('%Y%m%d_%H%M%S')}.txt"
        stack.enter_context(background_load(port, load, output, cpu=max(os.sched_getaffinity(0))))
        ending = run_shown(opened, console, verbose=args.verbose)
        stack.close()  # the load's last words belong to the summary
        sys.stderr.flush()
        return conclude(opened, ending, json=args.json, mcperf=output, report=args.report)
