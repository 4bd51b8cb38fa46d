"""`colocate load`: an open-loop load on memcached, with mcperf's options and output."""

from __future__ import annotations

import argparse
import ipaddress
import json
import math
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import Progress

from colocate.cli.options import count, latency_ms, port, seconds
from colocate.errors import UserError
from colocate.load.generator import FailedError, Generator, Interval, Load, load_records
from colocate.load.output import LAG_LIMIT_MS, Writer, document
from colocate.mcperf import format_intervals, waveform

_MOST_INTERVALS = 100_000
_QUICK_S = 2.0
_DESCRIPTION = """\
Put a load on memcached that does not wait for it: requests arrive as a Poisson process, and latency counts from the
time a request was due. Prints mcperf's format, each row as its interval ends. A request without an answer within
--timeout is lost and stands in the percentiles with that time. An interval in which the generator itself sent too
late, by over --lag-limit at the 95th percentile or by over 1 ms in more than 1 % of the cases, is marked `# late`."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `load` to the commands."""
    parser = commands.add_parser(
        "load",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-s", "--server", default="127.0.0.1", metavar="IP[:PORT]", help="memcached (127.0.0.1:11211)")
    add("-t", "--time", type=seconds, metavar="S", help="how long (60 s, or once through all --qps-target)")
    add("--qps-min", "--qps_min", type=count, metavar="N", help="least requests a second of the random waveform")
    add("--qps-max", "--qps_max", type=count, metavar="N", help="most")
    add("--qps-interval", "--qps_interval", type=seconds, default=10.0, metavar="S", help="length of an interval (10)")
    add("--qps-seed", "--qps_seed", type=count, metavar="N", help="of the waveform; the same gives the same")
    add("--qps-target", "--qps_target", type=count, action="append", metavar="N", help="the waveform; repeat it")
    add("-K", "--keysize", type=count, default=30, metavar="N", help="bytes of a key (30)")
    add("-V", "--valuesize", type=count, default=200, metavar="N", help="bytes of a value (200)")
    add("-r", "--records", type=count, default=10_000, metavar="N", help="how many keys (10000)")
    add("-u", "--update", type=_ratio, default=0.0, metavar="RATIO", help="share of sets among the requests (0)")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--loadonly", action="store_true", help="store the records, read them back, end")
    only.add_argument("--noload", action="store_true", help="the records are there already")
    add("-c", "--connections", type=count, default=4, metavar="N", help="connections of each thread (4)")
    add("-T", "--threads", type=count, default=1, metavar="N", help="threads of the generator (1)")
    add("--timeout", type=seconds, default=1.0, metavar="S", help="a request is lost after (1 s)")
    add("--lag-limit", type=latency_ms, default=LAG_LIMIT_MS, metavar="TIME", help=f"({LAG_LIMIT_MS}ms)")
    add("--spin", type=latency_ms, default=0.0, metavar="TIME", help="poll so long before a request is due (off)")
    add("--realtime", action="store_true", help="real-time priority, else a better nice value, where permitted")
    add("--cpu", type=count, metavar="N", help="run on this core")
    add("--output", type=Path, metavar="FILE", help="write mcperf's format there")
    add("--json", action="store_true", help="print one JSON document at the end")
    add("--dry-run", action="store_true", help="print the waveform and end")
    parser.set_defaults(run=load_command)


def load_command(args: argparse.Namespace) -> int:
    """Make the load; 130 or 143 when a signal ended it, with all that was measured written."""
    load, title, seed_line = _load(args)
    if args.dry_run:
        print(format_intervals(load.targets))
        return 0
    try:
        if not args.noload:
            load_records(load)
        return 0 if args.loadonly else _measure(load, args, title, seed_line)
    except FailedError as error:
        sys.stderr.write(f"colocate: {error}\n")
        return 1


def _measure(load: Load, args: argparse.Namespace, title: str, seed_line: str) -> int:
    intervals: list[Interval] = []
    caught: list[int] = []
    generator = Generator(load)
    with ExitStack() as stack:
        out = _open(args.output, stack) if args.output else None if args.json else sys.stdout
        stack.enter_context(generator)
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, _passed_on(generator, caught))
            stack.callback(signal.signal, number, before)
        writer = Writer(out, load, title=title, lag_limit_ms=args.lag_limit) if out else None
        if writer:
            priority = [f"priority: {generator.priority}"] if args.realtime else []
            writer.begin(generator.start_s, [f"colocate load on {load.server} port {load.port}", seed_line, *priority])
        advance = stack.enter_context(ExitStack())
        report = _progress(load, advance, quiet=out is not None and out.isatty())
        for interval in generator:
            intervals.append(interval)
            if writer:
                writer.add(interval)
            report(interval)
        totals = generator.totals
        if totals is None:  # the iteration ends with totals or an error
            raise FailedError("the generator told no totals")
        if writer:
            writer.end(intervals, totals)
    if args.json:
        print(json.dumps(document(generator.start_s, load, intervals, totals, generator.priority, args.lag_limit)))
    return 128 + caught[0] if caught else 0


def _load(args: argparse.Namespace) -> tuple[Load, str, str]:
    """The load, mcperf's line about the waveform, and a comment with the seed."""
    server, port_number = _address(args.server)
    if args.keysize > 250 or len(str(max(0, args.records - 1))) > args.keysize or args.records < 1:
        raise UserError(
            f"{args.records} records with keys of {args.keysize} bytes", "give --keysize up to 250 that fits"
        )
    if not args.connections or not args.threads:
        raise UserError("no connections or no threads", "give -c and -T from 1")
    total_s = args.time or (len(args.qps_target) * args.qps_interval if args.qps_target else 60.0)
    number = math.ceil(total_s / args.qps_interval - 1e-9)
    if number > _MOST_INTERVALS:
        raise UserError(f"{number} intervals", f"give at most {_MOST_INTERVALS}: a longer --qps-interval")
    seed = args.qps_seed if args.qps_seed is not None else secrets.randbelow(2**31 - 2) + 1
    if args.qps_target:
        targets = [args.qps_target[i % len(args.qps_target)] for i in range(number)]
        title = "Supplied waveform"
    elif args.qps_min is None or args.qps_max is None:
        if not args.loadonly:
            raise UserError("how much load?", "give --qps-min and --qps-max, or --qps-target")
        targets, title = [], ""
    else:
        targets = waveform(seed, args.qps_min, args.qps_max, number)
        title = f"Random waveform, {'random' if args.qps_seed is None else 'supplied'} seed"
    load = Load(
        server,
        port_number,
        tuple(targets),
        args.qps_interval,
        total_s,
        connections=args.connections,
        threads=args.threads,
        key_bytes=args.keysize,
        value_bytes=args.valuesize,
        records=args.records,
        update_ratio=args.update,
        timeout_s=args.timeout,
        seed=seed,
        spin_us=1e3 * args.spin,
        realtime=args.realtime,
        cpu=args.cpu,
    )
    return load, title, f"seed: {seed}"


def _address(text: str) -> tuple[str, int]:
    """IP and port; a host name is looked up."""
    host, separator, tail = text.rpartition(":")
    if not separator or (":" in host and not host.endswith("]")):
        host, tail = text, "11211"
    host = host.removeprefix("[").removesuffix("]")
    try:
        number = port(tail)
        return str(ipaddress.ip_address(host)), number
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--server {text}: {error}") from error
    except ValueError:
        pass
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]), number
    except (OSError, UnicodeError) as error:
        raise UserError(f"--server {text}: no such host", "give IP:PORT") from error


def _ratio(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no ratio; give a number from 0 to 1")
    return value


def _open(path: Path, stack: ExitStack) -> TextIO:
    try:
        return stack.enter_context(path.open("w", encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--output {path}: {error.strerror}", "give a file that can be written") from error


def _passed_on(generator: Generator, caught: list[int]) -> Callable[[int, object], None]:
    def handle(number: int, _frame: object) -> None:
        caught.append(number)
        generator.end(number)

    return handle


def _progress(load: Load, stack: ExitStack, *, quiet: bool) -> Callable[[Interval], None]:
    """Draw a bar on a terminal while it lasts; what to call with each interval."""
    console = Console(stderr=True)
    total_s = load.duration_s or len(load.targets) * load.interval_s
    if quiet or total_s <= _QUICK_S or not console.is_terminal:
        return lambda _: None
    progress = stack.enter_context(Progress(console=console, refresh_per_second=2, transient=True))
    task = progress.add_task("load", total=total_s)

    def advance(interval: Interval) -> None:
        p95_ms = interval.latency_us["p95"] / 1e3
        progress.update(task, advance=interval.seconds, description=f"{interval.qps:.0f} QPS, p95 {p95_ms:.2f} ms")

    return advance
