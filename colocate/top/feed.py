"""What `colocate top` knows of a run: its latest document, and once it answers no more, how it ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colocate.errors import UserError
from colocate.host.control import NoRunError, ask
from colocate.report.summary import summary_path

Document = dict[str, Any]  # what `colocate.status.Watch.status` answers
Source = Callable[[], Document]
_PATIENCE_S = 2.0  # for an answer; the control thread may be busy with another client
_CODES = {0: "all jobs finished", 1: "a job failed", 3: "its duration was over", 130: "interrupted", 143: "terminated"}


@dataclass(frozen=True, slots=True)
class Picture:
    """What there is to draw: the latest document, and a remark where its run does not answer (any more)."""

    document: Document
    remark: str = ""
    ended: bool = False


class Feed:
    """Asks a source again and again, and keeps the last document it gave.

    Args:
        source: a document of the run in progress; raises `NoRunError` where there is none.
        first: the document to begin with.
    """

    def __init__(self, source: Source, first: Document) -> None:
        self._source = source
        self._document = first

    def look(self) -> Picture:
        """The picture of this moment; blocks as long as the source does. Another run's document replaces the last."""
        try:
            self._document = self._source()
        except NoRunError:
            return Picture(self._document, ending(self._document), ended=True)
        except UserError as error:
            return Picture(self._document, error.what)
        return Picture(self._document)


def status_of(directory: Path) -> Document:
    """What the run whose state lies in `directory` tells of itself.

    Raises:
        UserError: none answers there (`NoRunError`), or not in time.
    """
    return ask(directory, {"request": "status"}, _PATIENCE_S)


def ending(document: Document) -> str:
    """How a run that answers no more has ended, by its event log and its summary; one line."""
    try:
        log = Path(document["log"])
        if not log.read_text(encoding="utf-8").endswith(" end scheduler\n"):
            return "The run has gone without an end in its log; see `colocate status`"
        summary = json.loads(summary_path(log).read_text(encoding="utf-8"))
        words = [_CODES.get(summary["exit_code"], f"exit code {summary['exit_code']}")]
        if summary["makespan_s"] is not None:
            words.append(f"makespan {summary['makespan_s']:.1f} s")
        if summary["intervals"]:
            words.append(f"{summary['violations']} of {summary['intervals']} intervals over the SLO")
    except (OSError, ValueError, LookupError):  # no summary yet, or another user's files
        return "The run has ended"
    return f"Ended: {', '.join(words)}"
