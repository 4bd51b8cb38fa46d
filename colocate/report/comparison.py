"""Policies side by side: their runs, what they come to, and the documents about them.

Intervals are Student's t over the seeds. Differences are taken seed by seed: the chance that both of a pair met is gone
from them.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from colocate.errors import UserError
from colocate.report.confidence import Estimate, estimate
from colocate.sim.oracle import Bounds


@dataclass(frozen=True, slots=True)
class Outcome:
    """One simulated run of one policy.

    Attributes:
        makespan_s: where jobs were left when the time was over, that time.
        end_s: from the beginning of the run, which is before the first job's start, to its end; the oracle counts so.
        complete: every job ended.
        useful_cycles_ratio: share of the managed cores' time, from the beginning of the run to its end, in which
            memcached, interrupts that serve it, or a job ran; memcached at its capacity fills its cores.
        unavoidable_ratio: share of its load intervals that break the SLO even with nothing beside memcached.
        share: the policy let jobs run on memcached's cores.
        fell_back: the policy failed so often that the safe one took over.
        fault: what its first failure was; empty without one.
    """

    policy: str
    seed: int
    makespan_s: float
    end_s: float
    complete: bool
    slo_violation_ratio: float
    unavoidable_ratio: float
    core_moves_per_min: float
    useful_cycles_ratio: float
    share: bool
    fell_back: bool
    fault: str


@dataclass(frozen=True, slots=True)
class Row:
    """A policy over all seeds.

    Attributes:
        unavoidable_ratio: mean share of load intervals that break the SLO even with nothing beside memcached.
        over_oracle: mean ratio of its time to the best that is known; with sharing where it shares.
        makespan_difference_s: its makespan less the first policy's, seed by seed.
        slo_violation_difference: the same of the ratio of violations.
        incomplete_runs: whose time was over before the jobs were.
        runs_of_the_safe_policy: it had to take over; `fault` says why.
    """

    policy: str
    share: bool
    makespan_s: Estimate
    slo_violation_ratio: Estimate
    unavoidable_ratio: float
    over_oracle: float
    core_moves_per_min: float
    useful_cycles_ratio: float
    makespan_difference_s: Estimate
    slo_violation_difference: Estimate
    incomplete_runs: int
    runs_of_the_safe_policy: int
    fault: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All runs.

    Attributes:
        outcomes: by policy in the order given, one for each seed.
        oracles: what is possible under each seed's load, `exclusive` and `sharing`; empty where it was not asked.
    """

    scenario: str
    qps_interval_s: float
    outcomes: Mapping[str, Sequence[Outcome]]
    oracles: Sequence[Mapping[str, Bounds]]

    @property
    def seeds(self) -> int:
        """How many."""
        return len(next(iter(self.outcomes.values())))

    def rows(self) -> list[Row]:
        """One a policy, in the order given."""
        first = next(iter(self.outcomes.values()))
        return [_row(runs, first, self.oracles) for runs in self.outcomes.values()]

    def oracle(self) -> dict[str, dict[str, float]]:
        """The bounds' means over the seeds."""
        if not self.oracles:
            return {}
        return {
            kind: {
                "lower_bound_s": statistics.fmean(each[kind].lower_bound_s for each in self.oracles),
                "best_s": statistics.fmean(each[kind].best_s for each in self.oracles),
            }
            for kind in ("exclusive", "sharing")
        }

    def unwinnable_seeds(self) -> int:
        """Under how many loads even the oracle's schedule with whole cores breaks the SLO: a slow machine's."""
        return sum(each["exclusive"].violations > 0 for each in self.oracles)

    def document(self) -> dict[str, object]:
        """As `--json` prints it."""
        rows = [
            {key: value.document() if isinstance(value := getattr(row, key), Estimate) else value for key in _KEYS}
            for row in self.rows()
        ]
        return {
            "scenario": self.scenario,
            "qps_interval_s": self.qps_interval_s,
            "seeds": self.seeds,
            "unwinnable_seeds": self.unwinnable_seeds(),
            "difference_to": next(iter(self.outcomes)),
            "rows": rows,
            "oracle": self.oracle(),
        }

    def write_csv(self, path: Path) -> None:
        """One line a run, with the oracle's bounds under the same load.

        Raises:
            UserError: it cannot be written.
        """
        lines = [
            asdict(run) | {f"{kind}_{key}": getattr(bound, key) for kind, bound in oracle.items() for key in _BOUNDS}
            for runs in self.outcomes.values()
            for run, oracle in zip(runs, self.oracles or [{}] * self.seeds, strict=True)
        ]
        try:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, lines[0])
                writer.writeheader()
                writer.writerows(lines)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}", "give a file that can be written") from error


_KEYS = tuple(Row.__dataclass_fields__)
_BOUNDS = ("lower_bound_s", "best_s")


def comparison(
    scenario: str,
    qps_interval_s: float,
    outcomes: Mapping[str, Sequence[Outcome]],
    found: Sequence[tuple[Bounds, Bounds]] | None,
) -> Comparison:
    """Put runs and bounds together.

    The best that is known of a load is the oracle's, or a policy's that held the SLO and was quicker. Whoever may share
    may as well not.

    Args:
        scenario: its name.
        qps_interval_s: length of a load interval.
        outcomes: by policy, one for each seed.
        found: by the oracle for each seed, with whole cores and with sharing; None where it was not asked.
    """
    oracles: list[Mapping[str, Bounds]] = []
    if found is None:
        return Comparison(scenario, qps_interval_s, outcomes, oracles)
    for (whole, sharing), *runs in zip(found, *outcomes.values(), strict=True):
        held = [run for run in runs if run.complete and run.slo_violation_ratio == 0]
        best_s = min([whole.best_s, *(run.end_s for run in held if not run.share)])
        shared_s = min([sharing.best_s, best_s, *(run.end_s for run in held)])
        oracles.append({"exclusive": replace(whole, best_s=best_s), "sharing": replace(sharing, best_s=shared_s)})
    return Comparison(scenario, qps_interval_s, outcomes, oracles)


def _row(runs: Sequence[Outcome], first: Sequence[Outcome], oracles: Sequence[Mapping[str, Bounds]]) -> Row:
    share = any(run.share for run in runs)
    kind = "sharing" if share else "exclusive"
    return Row(
        policy=runs[0].policy,
        share=share,
        makespan_s=estimate([run.makespan_s for run in runs]),
        slo_violation_ratio=estimate([run.slo_violation_ratio for run in runs], 0.0, 1.0),
        unavoidable_ratio=statistics.fmean(run.unavoidable_ratio for run in runs),
        over_oracle=(
            statistics.fmean(run.end_s / each[kind].best_s for run, each in zip(runs, oracles, strict=True))
            if oracles
            and all(run.complete for run in runs)
            and all(math.isfinite(each[kind].best_s) for each in oracles)
            else math.nan  # a run that was cut off says nothing
        ),
        core_moves_per_min=statistics.fmean(run.core_moves_per_min for run in runs),
        useful_cycles_ratio=statistics.fmean(run.useful_cycles_ratio for run in runs),
        makespan_difference_s=_paired(runs, first, lambda run: run.makespan_s),
        slo_violation_difference=_paired(runs, first, lambda run: run.slo_violation_ratio),
        incomplete_runs=sum(not run.complete for run in runs),
        runs_of_the_safe_policy=sum(run.fell_back for run in runs),
        fault=next((run.fault for run in runs if run.fault), ""),
    )


def _paired(runs: Iterable[Outcome], first: Iterable[Outcome], value: Callable[[Outcome], float]) -> Estimate:
    return estimate([value(run) - value(other) for run, other in zip(runs, first, strict=True)])
