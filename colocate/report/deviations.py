"""What in an event log deviates from the format, and whether the run would count."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from colocate.eventlog import check, parse, violations
from colocate.report.grade import Interval, graded_run
from colocate.report.record import read_text
from colocate.report.suspicions import runs, suspicions

_LINE = re.compile(r"line (\d+): ")


@dataclass(frozen=True, slots=True)
class Checked:
    """The verdict on a log's form.

    Attributes:
        deviations: one line each, in the order of the log's lines, with the line's number.
        reasons: why the run would not count; empty if it would.
    """

    path: Path
    deviations: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def counts(self) -> bool:
        """Whether every batch job both starts and ends."""
        return not self.reasons

    def document(self) -> dict[str, object]:
        """As `--json` prints it."""
        return {
            "log": str(self.path),
            "counts": self.counts,
            "reasons": list(self.reasons),
            "deviations": list(self.deviations),
        }


def checked(path: Path, intervals: Sequence[Interval] = ()) -> Checked:
    """Check a log; of several runs in one file the one that is graded with these intervals must count.

    Raises:
        UserError: it cannot be read.
    """
    text = read_text(path)
    log = parse(text)
    named = [*log.deviations, *(doubt for run in runs(log) for doubt in suspicions(run))]
    told = [
        (found.line_number, f"line {found.line_number}: {found.code}: {found.text}".rstrip(": ")) for found in named
    ]
    lines = {number for number, _ in told}
    for broken in violations(text):  # what reading forgives without a word: the first line, the last one
        match = _LINE.match(broken)
        number = int(match[1]) if match else 0
        if number not in lines:
            told.append((number, broken))
    return Checked(
        path,
        tuple(line for _, line in sorted(told, key=lambda pair: pair[0])),
        tuple(check(graded_run(log, intervals))),
    )
