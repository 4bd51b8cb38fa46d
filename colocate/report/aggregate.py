"""Several runs together: mean and standard deviation of each job's run time and of the makespan."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from typing import Any

from colocate.report.summary import Summary

Aggregate = dict[str, Any]
_COLUMNS = (
    "log", "mcperf", "source", "policy", "scenario", "seed", "slo_ms", "percentile", "complete", "makespan_s",
    "intervals", "violations", "slo_violation_ratio", "coverage", "clock_offset_h", "core_moves", "pauses",
)  # fmt: skip
_ESCAPES = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}


def aggregate(runs: Sequence[Summary]) -> Aggregate:
    """What graded reports ask for, over the runs that count (every job started and ended).

    `jobs` holds run times without pauses, `jobs_wall` with them; `sd` is the sample's, None for a single run.
    """
    counted = [run for run in runs if run["complete"]]
    names = list(dict.fromkeys(name for run in counted for name in run["jobs"]))

    def of_jobs(key: str) -> dict[str, object]:
        return {name: _spread([run["jobs"][name][key] for run in counted if name in run["jobs"]]) for name in names}

    return {
        "runs": len(runs),
        "counted": len(counted),
        "makespan_s": _spread([run["makespan_s"] for run in counted]),
        "slo_violation_ratio": _spread([run["slo_violation_ratio"] for run in counted]),
        "jobs": of_jobs("run_s"),
        "jobs_wall": of_jobs("wall_s"),
    }


def document(runs: Sequence[Summary]) -> dict[str, object]:
    """What `report --json` prints."""
    return {"runs": list(runs), "aggregate": aggregate(runs)}


def to_csv(runs: Sequence[Summary]) -> str:
    """One row a run; of each job its start, its run time without pauses and its time with them."""
    names = sorted({name for run in runs for name in run["jobs"]})
    keys = ("start_s", "run_s", "wall_s")
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow([*_COLUMNS, *(f"{name}_{key}" for name in names for key in keys)])
    for run in runs:
        cells = [run["jobs"].get(name, {}).get(key) for name in names for key in keys]
        table.writerow(["" if cell is None else cell for cell in (*(run[column] for column in _COLUMNS), *cells)])
    return out.getvalue()


def to_latex(runs: Sequence[Summary]) -> str:
    """The table of a graded report: mean and standard deviation a job and in total; needs the package booktabs."""
    found = aggregate(runs)
    plural = "s" if found["counted"] != 1 else ""
    lines = [
        f"% colocate report: {found['counted']} of {found['runs']} runs counted; run times without pauses, in seconds",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        rf"job & mean of {found['counted']} run{plural} [s] & std [s] \\",
        r"\midrule",
        *(_row(_tex(name), spread, 1, 1.0) for name, spread in sorted(found["jobs"].items())),
        r"\midrule",
        _row("total (makespan)", found["makespan_s"], 1, 1.0),
        _row(r"SLO violations [\%]", found["slo_violation_ratio"], 2, 100.0),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "sd": statistics.stdev(known) if len(known) > 1 else None,
    }


def _row(name: str, spread: dict[str, float | None], digits: int, times: float) -> str:
    cells = ["--" if value is None else f"{times * value:.{digits}f}" for value in (spread["mean"], spread["sd"])]
    return rf"{name} & {cells[0]} & {cells[1]} \\"


def _tex(text: str) -> str:
    return "".join(_ESCAPES.get(c, c) for c in text)
