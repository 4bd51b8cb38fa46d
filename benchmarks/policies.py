"""Every policy that ships, on the simulated machines of three years, at several load intervals: one table a machine.

    python benchmarks/policies.py [--seeds 20] [--json FILE] [--markdown FILE]

All figures are simulated (docs/simulation.md says how far to believe them). The same seed is the same machine, load
and noise to every policy; intervals are 95 %, Student's t over the seeds. At each machine's official load interval all
policies run beside the oracle (the published systems only with `--published`); at the others some, without it. Then the
questions that the policies were built to answer are answered, whatever the answer is.

`avoidable` is what is left of the violations without those that the drawn machine has even with nothing beside it (the
capacity strays by 14 % between machines of a type). A rule *holds* a limit if its avoidable violations do. Runs are cut
off after 2400 s.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from colocate.compare import Contender, compare, parse_contenders
from colocate.report.comparison import Comparison, Outcome, Row
from colocate.sim.calibration import load_calibration
from colocate.simulation import SimSettings

SCENARIOS = ("cca-2024", "cca-2025", "cca-2026")
LONGEST_S = 2400.0
SHORT_S = (5.0, 2.0, 1.0, 0.5)
WINNER, EXCLUSIVE = "share", "reactive"
PEERS = ("core-ladder", "steady-lend", "qps-cut", "pause-at-40", "static", "static[service_cores=3]")
PUBLISHED = ("heracles", "parties", "be-controller")
OTHERS = ("mixed", "random")
BRIEF = (WINNER, EXCLUSIVE, "qps-cut", "static")  # at the short intervals
TARGETS = {10.0: 0.005, 15.0: 0.005, 5.0: 0.01, 1.0: 0.03}  # violations of the winner
HELD = 0.03


@dataclass(frozen=True, slots=True)
class Table:
    """One machine at one load interval."""

    found: Comparison
    official: bool

    def row(self, policy: str) -> Row:
        """One policy's."""
        return next(row for row in self.found.rows() if row.policy == policy)

    def markdown(self) -> str:
        """As it stands in docs/benchmarks.md."""
        lines = [
            f"**{self.found.scenario}, another load every {self.found.qps_interval_s:g} s**",
            "",
            "| policy | makespan s | violations % | avoidable % | over best | on fast machines: s, % | moves/min |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in sorted(self.found.rows(), key=lambda row: row.makespan_s.mean):
            fast_s, late = means(fast_runs(self.found.outcomes[row.policy]))
            over = "" if math.isnan(row.over_oracle) else f"{row.over_oracle:.3f}{'*' if row.share else ''}"
            cut = f" ({row.incomplete_runs} cut off)" if row.incomplete_runs else ""
            lines.append(
                f"| {row.policy} | {row.makespan_s.told(0)}{cut} | {row.slo_violation_ratio.told(2, 100)} "
                f"| {100 * avoidable(row):.2f} | {over} | {fast_s:.0f}, {100 * late:.2f} "
                f"| {row.core_moves_per_min:.1f} |"
            )
        for kind, bound in self.found.oracle().items():
            best_s, lower_s = bound["best_s"], bound["lower_bound_s"]
            lines.append(f"| oracle, {kind} | {best_s:.0f} (none below {lower_s:.0f}) | | | | | |")
        return "\n".join(lines)


def avoidable(row: Row) -> float:
    """Violations less those that nobody could have avoided."""
    return max(0.0, row.slo_violation_ratio.mean - row.unavoidable_ratio)


def fast_runs(runs: Sequence[Outcome]) -> list[Outcome]:
    """Those on machines that are fast enough for their load throughout."""
    return [run for run in runs if run.unavoidable_ratio == 0] or list(runs)


def means(runs: Sequence[Outcome]) -> tuple[float, float]:
    """Of makespan and violations."""
    return statistics.fmean(run.makespan_s for run in runs), statistics.fmean(run.slo_violation_ratio for run in runs)


def answers(tables: Sequence[Table]) -> list[str]:
    """The questions, each with its figures and a verdict."""
    lines = ["1. Does the winner hold the SLO? (violations, and those that could have been avoided)"]
    for table in tables:
        limit = TARGETS.get(table.found.qps_interval_s)
        row = table.row(WINNER)
        all_, own = row.slo_violation_ratio.mean, avoidable(row)
        told = "no target"
        if limit is not None:
            told = f"target {limit:.1%}: {_met(all_ <= limit)}, avoidable: {_met(own <= limit)}"
        lines.append(f"   {_name(table)}: {all_:.2%}, avoidable {own:.2%}; {told}")
    official = [table for table in tables if table.official]
    lines.append("2. Whole cores only: at most 1.05 times the best schedule, 10 % below the best rule that holds 3 %?")
    lines += [f"   {_name(table)}: {_against(table, EXCLUSIVE, 1.05, 0.10)}" for table in official]
    lines.append("3. Sharing: at most 1.08 times the best schedule, 20 % below the best rule?")
    lines += [f"   {_name(table)}: {_against(table, WINNER, 1.08, 0.20)}" for table in official]
    return lines


def _against(table: Table, policy: str, most_over: float, least_gain: float) -> str:
    row = table.row(policy)
    fast = {name: fast_runs(runs) for name, runs in table.found.outcomes.items()}
    told = [f"{row.makespan_s.mean:.0f} s, {row.over_oracle:.3f} times the best ({_met(row.over_oracle <= most_over)})"]
    peers = [table.row(name) for name in PEERS if name in table.found.outcomes]
    if holding := [peer for peer in peers if avoidable(peer) <= HELD and not peer.incomplete_runs]:
        best = min(holding, key=lambda peer: peer.makespan_s.mean)
        gain = 1 - row.makespan_s.mean / best.makespan_s.mean
        told.append(f"{gain:.0%} below {best.policy} ({best.makespan_s.mean:.0f} s; {_met(gain >= least_gain)})")
    on_fast = {peer.policy: means(fast[peer.policy]) for peer in peers if not peer.incomplete_runs}
    if held := {name: makespan_s for name, (makespan_s, late) in on_fast.items() if late <= HELD}:
        name = min(held, key=lambda name: held[name])
        gain = 1 - means(fast[policy])[0] / held[name]
        told.append(
            f"on the {len(fast[policy])} machines that are fast enough {gain:.0%} below {name} "
            f"({held[name]:.0f} s; {_met(gain >= least_gain)})"
        )
    return "; ".join(told)


def _met(met: bool) -> str:  # noqa: FBT001 -- a word for a truth
    return "met" if met else "MISSED"


def _name(table: Table) -> str:
    return f"{table.found.scenario}, {table.found.qps_interval_s:g} s"


def main() -> None:
    """Run, print, answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="1 to N (20)")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), help="machines (all three)")
    parser.add_argument("--short", default=",".join(map(str, SHORT_S)), help="load intervals beside the official one")
    parser.add_argument("--published", action="store_true", help="also the published systems; they take longest")
    parser.add_argument("--markdown", type=Path, help="write the tables there")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    seeds, tables = range(1, args.seeds + 1), list[Table]()
    lengths = [float(text) for text in args.short.split(",") if text]
    everybody = parse_contenders(",".join((WINNER, EXCLUSIVE, *OTHERS, *PEERS, *(PUBLISHED if args.published else ()))))
    brief = parse_contenders(",".join(BRIEF))
    for scenario in args.scenarios.split(","):
        official_s = load_calibration(scenario).scenario.qps_interval_s
        for interval_s in (official_s, *lengths):
            official = interval_s == official_s
            begin_s = time.monotonic()
            found = _run(scenario, interval_s, everybody if official else brief, seeds, ask_oracle=official)
            tables.append(Table(found, official))
            print(f"{tables[-1].markdown()}\n\n({time.monotonic() - begin_s:.0f} s)\n", flush=True)
    told = answers(tables)
    print("\n".join(told))
    if args.markdown:
        text = "\n\n".join(table.markdown() for table in tables) + "\n\n```\n" + "\n".join(told) + "\n```\n"
        args.markdown.write_text(text, encoding="utf-8")
    if args.json:
        document = {"simulated": True, "tables": [table.found.document() for table in tables], "answers": told}
        args.json.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _run(
    scenario: str, interval_s: float, contenders: Sequence[Contender], seeds: range, *, ask_oracle: bool
) -> Comparison:
    def done(number: int, total: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{scenario}, {interval_s:g} s: {number} of {total}   ")

    settings = SimSettings(scenario=scenario, qps_interval_s=interval_s, duration_s=LONGEST_S)
    return compare(settings, contenders, seeds, ask_oracle=ask_oracle, done=done)


if __name__ == "__main__":
    main()
