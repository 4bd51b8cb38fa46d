"""`colocate report` over recorded runs, against the grades that somebody else gave them.

    python benchmarks/grading.py --runs DIR [--json]

DIR holds `graded.csv` and a folder for each group with `NN-jobs.txt` and `NN-mcperf.txt`. Each group is paired by time
alone, then makespan (to one second) and violation ratio (to one interval) are compared with the table.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

from colocate import mcperf
from colocate.eventlog import parse
from colocate.report.pairing import pair
from colocate.report.record import load_record, read_text


def main() -> int:
    """Grade, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, metavar="DIR")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with (args.runs / "graded.csv").open(newline="") as file:
        table = {row["run"]: row for row in csv.DictReader(file)}
    found: list[dict[str, object]] = []
    for group in sorted(path for path in args.runs.iterdir() if path.is_dir()):
        logs = {path: parse(read_text(path)) for path in sorted(group.glob("*-jobs.txt"))}
        loads = {path: mcperf.parse_all(read_text(path)) for path in sorted(group.glob("*-mcperf.txt"))}
        found += [
            compared(one.log, one.load, table.get(f"{group.name}/{one.log.name}", {})) for one in pair(logs, loads)
        ]
    differ = [one for one in found if one["differs"]]
    if args.json:
        print(json.dumps({"runs": found}))
        return 0
    for one in differ:
        print(f"{one['run']}: {one['differs']}")
    unreadable = [one for one in found if one["differs"] == "no event in it"]
    print(
        f"{len(found)} runs, {len(found) - len(differ)} as graded, {len(unreadable)} in another format, "
        f"{len(differ) - len(unreadable)} differ"
    )
    return 0


def compared(path: Path, load: Path | None, row: dict[str, str]) -> dict[str, object]:
    """One run's grade beside the table's row."""
    slo_ms = float(row.get("slo_ms") or 0.8)
    record = load_record(path, load, slo_ms=slo_ms)
    grade, differs = record.grade, list[str]()
    name = f"{path.parent.name}/{path.name}"
    if not record.log.events:
        return {"run": name, "differs": "no event in it"}
    paired = f"{path.parent.name}/{load.name}" if load else ""
    if paired != row.get("mcperf", ""):
        differs.append(f"paired with {paired or 'nothing'}, graded with {row.get('mcperf') or 'nothing'}")
    graded_s = float(row["makespan_s"]) if row.get("makespan_s") else None
    if (graded_s is None) != (grade.makespan_s is None) or abs((graded_s or 0) - (grade.makespan_s or 0)) > 1.0:
        differs.append(f"makespan {grade.makespan_s} s, graded {graded_s} s")
    graded = float(row["slo_violation_ratio"]) if row.get("slo_violation_ratio") else None
    ratio = grade.overlap.value
    if graded is None or ratio is None:
        if graded != ratio:
            differs.append(f"violation ratio {ratio}, graded {graded}")
    elif abs(graded - ratio) > 1.0 / grade.overlap.intervals + 1e-4:
        intervals = f"{grade.overlap.violations} of {grade.overlap.intervals}"
        differs.append(f"violations {intervals}, graded {row['n_viol']} of {row['n_intervals_in_window']}")
    return {"run": name, "makespan_s": grade.makespan_s, "slo_violation_ratio": ratio, "differs": "; ".join(differs)}


if __name__ == "__main__":
    sys.exit(main())
