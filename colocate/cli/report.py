"""`colocate report`: the verdict on runs, tables, figures, a page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from colocate import mcperf
from colocate.cli import options
from colocate.cli.progress import reporting
from colocate.cli.report_option import check_outputs
from colocate.errors import UserError, needs
from colocate.eventlog import Log, parse
from colocate.host.runtime import Progress
from colocate.report.aggregate import Aggregate, aggregate, document, to_csv, to_latex
from colocate.report.colours import job_colours, parse_colours
from colocate.report.deviations import Checked, checked
from colocate.report.pairing import pair
from colocate.report.record import Record, load_record, own_load, read_log, read_text, write_text
from colocate.report.summary import Summary, print_summary, to_json

_EPILOG = """\
examples:
  colocate report logs/log20250506_154615.txt                  a run of colocate's: it names its load itself
  colocate report logs/                                        every run in a folder, with the loads that lie there
  colocate report jobs_*.txt --mcperf mcperf_*.txt --slo 1ms   anybody's runs: paired by time, not by name
  colocate report jobs_1.txt --check                           would it count, and what deviates from the format?
  colocate report jobs_*.txt --mcperf mcperf_*.txt --figure-a fig1a.pdf --figure-b fig1b.pdf --latex table.tex
  colocate report logs/ --html report.html                     one page that opens offline, its charts can be zoomed

Makespan: from the first job's start to the last one's end. Violation ratio: of the load generator's intervals that
overlap that time, the share whose percentile is above the SLO. A run counts only if every job both starts and ends.
Where there is no load generator's output, the latency is what the run's own probe saw.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `report` to the commands."""
    parser = commands.add_parser(
        "report",
        description="Grade runs from their event logs and the load generator's output, and draw them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("log", type=Path, nargs="+", metavar="LOG", help="event logs, or folders of them")
    add("--mcperf", type=Path, nargs="+", default=[], metavar="FILE", help="outputs of mcperf or colocate load")
    add("--pair", type=Path, nargs=2, action="append", default=[], metavar=("LOG", "FILE"), help="these two")
    add("--slo", type=options.latency_ms, metavar="TIME", help="the promise (the run's own, else 0.8ms)")
    add("--percentile", type=options.percentile, metavar="P", help="of the promise (the run's own, else 95)")
    add("--qps-interval", type=options.seconds, metavar="TIME", help="length of a load interval, where it is known")
    add("--check", action="store_true", help="every deviation from the format; exit code 1 if a run would not count")
    add("--figure-a", type=Path, metavar="FILE", help="latency, load and jobs over time; .png, .svg or .pdf")
    add("--figure-b", type=Path, metavar="FILE", help="memcached's cores and its load over time")
    add("--figure-moves", type=Path, metavar="FILE", help="who held which core, and every move by its reason")
    add("--colour", action="append", default=[], metavar="JOB=COLOUR", help="of a job in all figures; repeatable")
    add("--html", type=Path, metavar="FILE", help="one self-contained page with everything")
    add("--csv", type=Path, metavar="FILE", help="a row a run; - is standard output")
    add(
        "--latex",
        type=Path,
        metavar="FILE",
        help="mean and standard deviation a job, for a paper; - is standard output",
    )
    add("--json", action="store_true", help="print JSON on standard output")
    parser.set_defaults(run=report_command)


def report_command(args: argparse.Namespace) -> int:
    """Report; 1 where a check was asked for and a run would not count."""
    figures = {kind: path for kind in ("a", "b", "moves") if (path := getattr(args, f"figure_{kind}"))}
    quiet = args.json or Path("-") in {args.csv, args.latex}
    wished = parse_colours(args.colour)
    check_outputs([*figures.values(), args.html, args.csv, args.latex])
    if args.json + [args.csv, args.latex].count(Path("-")) > 1:
        raise UserError("two documents on standard output", "give a file to one of --json, --csv - and --latex -")
    if figures:
        with needs("report"):
            from colocate.report.figures import check_figure
        for path in figures.values():
            check_figure(path)
    if args.html:
        with needs("report"):
            from colocate.report.page import page
    console = Console(stderr=True)
    with reporting(console) if console.is_terminal else nullcontext(lambda _what, _share: None) as progress:
        records = list(_read(args, console, progress))
    runs = [record.summary for record in records]
    colours = job_colours((name for record in records for name in record.timeline.jobs), wished)
    found = [checked(record.path, record.intervals) for record in records] if args.check else []
    if args.json:
        print(to_json(document(runs) | ({"checks": [one.document() for one in found]} if args.check else {})))
    elif not quiet:
        _print(runs, found, Console())
    _write(args.csv, to_csv, runs)
    _write(args.latex, to_latex, runs)
    if figures:
        from colocate.report.figures import draw

        for kind, path in figures.items():
            for number, record in enumerate(records, 1):
                draw(kind, record, _numbered(path, number, len(records)), colours)
    if args.html:
        write_text(args.html, page(records, colours))
    return int(any(not one.counts for one in found))


def _read(args: argparse.Namespace, console: Console, progress: Progress) -> Iterator[Record]:
    """The runs, each with its load; says what belongs to what."""
    given = {Path(log): Path(load) for log, load in args.pair}
    read = (lambda path: parse(read_text(path))) if args.check else read_log  # a check tells what a text lacks
    logs, loads = _found([*args.log, *given], args.mcperf, read)
    for path, outputs in loads.items():
        if not any(output.rows for output in outputs):
            _line(console, f"{path}: no row of mcperf in it", "yellow")
    open_ones = [path for path in logs if path not in given]
    if not args.mcperf:
        given |= {path: load for path in open_ones if (load := own_load(path))}
    pairs = pair({path: logs[path] for path in logs if path not in given}, loads)
    for one in pairs if loads else ():
        _line(console, str(one), "yellow" if one.others else "dim")
    chosen = given | {one.log: one.load for one in pairs if one.load is not None}
    for number, path in enumerate(logs):
        progress("reading", number / len(logs))
        yield load_record(
            path,
            chosen.get(path),
            slo_ms=args.slo,
            percentile=args.percentile,
            interval_s=args.qps_interval,
        )
    progress("reading", 1.0)


def _found(
    places: Sequence[Path], load_files: Sequence[Path], read: Callable[[Path], Log]
) -> tuple[dict[Path, Log], dict[Path, list[mcperf.Output]]]:
    """The logs and the loads in files and folders; in a folder each text is taken for what it is.

    Raises:
        UserError: there is no log.
    """
    logs: dict[Path, Log] = {}
    loads = {path: mcperf.parse_all(read_text(path)) for path in load_files}
    for place in places:
        if not place.is_dir():
            logs[place] = read(place)
            continue
        for path in sorted(place.rglob("*.txt")):
            if path in loads or not path.is_file():
                continue
            text = read_text(path)
            outputs = mcperf.parse_all(text)
            if any(output.rows for output in outputs):
                loads[path] = outputs
            elif (log := parse(text)).events:
                logs[path] = log
    if not logs:
        raise UserError(f"{', '.join(map(str, places))}: no event log in it", "give a folder of logs, or a log")
    return logs, loads


def _print(runs: Sequence[Summary], found: Sequence[Checked], console: Console) -> None:
    if len(runs) == 1:
        print_summary(runs[0], console)
    else:
        _print_runs(runs, console)
        _print_aggregate(aggregate(runs), console)
    for one in found:
        _print_check(one, console)


def _print_runs(runs: Sequence[Summary], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("run", "policy", "makespan", "violations", "", "coverage", "worst", "moves", "pauses", "counts"):
        table.add_column(name, justify="left" if name in {"run", "policy", "counts"} else "right", no_wrap=True)
    for run in runs:
        ratio, worst = run["slo_violation_ratio"], run["p95_ms"]["max"]
        table.add_row(
            Text(run["log"]),
            Text(run["policy"] or ""),
            "" if run["makespan_s"] is None else f"{run['makespan_s']:.1f} s",
            "unknown" if ratio is None else f"{ratio:.2%}",
            "" if ratio is None else f"{run['violations']} of {run['intervals']}",
            "" if ratio is None else f"{run['coverage']:.0%}",
            "" if worst is None else f"{worst:.2f} ms",
            str(run["core_moves"]),
            str(run["pauses"]),
            "yes" if run["complete"] else "no",
            style="" if run["complete"] else "yellow",
        )
    console.print(table, soft_wrap=True)
    for run in runs:
        for warning in run["warnings"]:
            _line(console, f"{run['log']}: {warning}", "yellow")


def _print_aggregate(found: Aggregate, console: Console) -> None:
    title = f"{found['counted']} of {found['runs']} runs count"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name in ("", "mean", "sd"):
        table.add_column(name, justify="right" if name else "left")
    rows = [(name, spread, "{:.1f} s", 1.0) for name, spread in found["jobs"].items()]
    rows += [("makespan", found["makespan_s"], "{:.1f} s", 1.0)]
    rows += [("SLO violation ratio", found["slo_violation_ratio"], "{:.2f} %", 100.0)]
    for name, spread, form, times in rows:
        cells = ["" if value is None else form.format(times * value) for value in (spread["mean"], spread["sd"])]
        table.add_row(Text(name), *cells, style="bold" if name in {"makespan", "SLO violation ratio"} else "")
    console.print()
    console.print(table)


def _print_check(found: Checked, console: Console) -> None:
    count = len(found.deviations)
    _line(console, f"\n{found.path}: {count or 'no'} deviation{'s' * (count != 1)} from the format", "bold")
    for deviation in found.deviations:
        _line(console, f"  {deviation}")
    verdict = "the run would count" if found.counts else "the run would not count:"
    _line(console, verdict, "green" if found.counts else "bold red")
    for reason in found.reasons:
        _line(console, f"  {reason}", "red")


def _line(console: Console, text: str, style: str = "") -> None:
    """A line with others' words in it, as they are."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _write(path: Path | None, table: Callable[[Sequence[Summary]], str], runs: Sequence[Summary]) -> None:
    if path is None:
        return
    if str(path) == "-":
        sys.stdout.write(table(runs))
    else:
        write_text(path, table(runs))


def _numbered(path: Path, number: int, of: int) -> Path:
    """The file of one of several runs: `figure.pdf` becomes `figure-2.pdf`."""
    return path if of == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
