"""`--report` of the commands that run something; what draws the page is loaded only where one is asked for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from colocate.errors import UserError, needs
from colocate.report.summary import Summary


def add_report_option(parser: argparse.ArgumentParser) -> None:
    """The option of a command that runs something."""
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write the report of the run at its end")


def check_report(path: Path | None) -> None:
    """Whether a report can be written there at the end; for before the beginning.

    Raises:
        UserError: it cannot, and why.
    """
    if path is None:
        return
    if path.suffix.lower() not in {".html", ".htm"}:
        raise UserError(f"--report {path}: no page", "give a name that ends in .html")
    check_outputs([path])
    with needs("report"):
        import jinja2  # noqa: F401 -- whether it is there
        import plotly  # type: ignore[import-untyped]  # noqa: F401


def write_report(path: Path | None, summary: Summary) -> None:
    """Write the report of a run that has just ended; where that fails, say so: the run itself is over."""
    if path is None:
        return
    from colocate.report.page import page
    from colocate.report.record import load_record, write_text

    load = summary["mcperf"]
    try:
        write_text(path, page([load_record(Path(summary["log"]), Path(load) if load else None)]))
    except UserError as error:
        sys.stderr.write(f"colocate: warning: no report: {error}\n")


def check_outputs(paths: Sequence[Path | None]) -> None:
    """Whether files can be written there at the end; None and `-` can.

    Raises:
        UserError: one cannot, and why.
    """
    for path in paths:
        if path is None or str(path) == "-":
            continue
        if not path.absolute().parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.parent}", "make it, or give another")
        if path.is_dir():
            raise UserError(f"{path}: a folder", "give a file")
