"""Intervals, rows and the picture of a comparison, on figures made up for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from colocate.errors import UserError
from colocate.report.comparison import Comparison, Outcome, comparison
from colocate.report.confidence import estimate
from colocate.report.pareto import draw, front
from colocate.sim.oracle import Bounds


def bound(lower_s: float, best_s: float) -> Bounds:
    return Bounds(lower_s, best_s, 0, ())


def outcome(policy: str, seed: int, makespan_s: float, ratio: float, *, share: bool = False) -> Outcome:
    return Outcome(policy, seed, makespan_s, makespan_s, True, ratio, 0.0, 6.0, 0.5, share, False, "")


def runs(policy: str, makespans_s: Sequence[float], ratios: Sequence[float], *, share: bool = False) -> list[Outcome]:
    pairs = enumerate(zip(makespans_s, ratios, strict=True), 1)
    return [outcome(policy, seed, makespan_s, ratio, share=share) for seed, (makespan_s, ratio) in pairs]


def made_up() -> Comparison:
    found = {
        "slow": runs("slow", [900, 1000, 1100], [0, 0, 0]),
        "fast": runs("fast", [800, 910, 990], [0.01, 0, 0.02]),
        "bad": runs("bad", [850, 950, 1050], [0.3, 0.2, 0.25]),
        "lends": runs("lends", [600, 700, 800], [0.4, 0.4, 0.4], share=True),
    }
    return comparison("made-up", 10.0, found, [(bound(700.0, 800.0), bound(400.0, 500.0))] * 3)


def test_an_interval_is_the_mean_and_t_standard_errors() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.high - found.mean) == pytest.approx((2.0, 4.303 / math.sqrt(3)), abs=1e-3)


def test_one_value_has_no_interval_and_a_ratio_none_below_zero() -> None:
    assert math.isnan(estimate([5.0], 0.0, 1.0).low)
    assert estimate([0.0, 0.1], 0.0, 1.0).low == 0.0


def test_differences_are_taken_seed_by_seed() -> None:
    slow, fast, *_ = made_up().rows()
    assert not slow.makespan_difference_s.is_difference
    assert fast.makespan_difference_s.mean == pytest.approx(-100)
    assert fast.makespan_difference_s.is_difference
    assert fast.makespan_s.low < slow.makespan_s.mean, "unpaired, the two could not be told apart"


def test_a_policy_that_shares_is_measured_by_the_oracle_that_shares() -> None:
    slow, *_, lends = made_up().rows()
    assert slow.over_oracle == pytest.approx(1000 / 800)
    assert lends.over_oracle == pytest.approx(700 / 500)


def test_the_best_known_is_no_worse_than_what_a_policy_did() -> None:
    found = comparison(
        "made-up", 10.0,
        {"held": runs("held", [90.0], [0.0]), "broke": runs("broke", [70.0], [0.1]),
         "lent": runs("lent", [80.0], [0.0], share=True)},
        [(bound(60.0, 100.0), bound(40.0, 110.0))],
    )  # fmt: skip
    assert found.oracle() == {
        "exclusive": {"lower_bound_s": 60.0, "best_s": 90.0},
        "sharing": {"lower_bound_s": 40.0, "best_s": 80.0},
    }
    assert [row.over_oracle for row in found.rows()] == pytest.approx([1.0, 70 / 90, 1.0])


def test_the_document_has_the_keys_that_were_promised() -> None:
    document = made_up().document()
    assert {"scenario", "qps_interval_s", "seeds", "rows", "oracle"} <= document.keys()
    assert document["seeds"] == 3
    rows = document["rows"]
    assert isinstance(rows, list)
    assert set(rows[0]["makespan_s"]) == {"mean", "ci95"}
    assert rows[0]["share"] is False
    assert document["oracle"]["sharing"] == {"lower_bound_s": 400.0, "best_s": 500.0}


def test_a_table_has_one_line_a_run(tmp_path: Path) -> None:
    made_up().write_csv(tmp_path / "runs.csv")
    lines = (tmp_path / "runs.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 * 3
    assert lines[0].startswith("policy,seed,makespan_s,")
    with pytest.raises(UserError, match="nowhere"):
        made_up().write_csv(tmp_path / "nowhere" / "runs.csv")


def test_the_front_has_what_nothing_beats_in_both() -> None:
    assert [row.policy for row in front(made_up().rows())] == ["lends", "fast", "slow"]


def test_the_picture_names_every_policy_and_is_the_same_twice(tmp_path: Path) -> None:
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    draw(made_up(), first)
    draw(made_up(), second)
    assert first.read_bytes() == second.read_bytes()
    for name in ("slow", "fast", "bad", "lends", "sharing oracle: best found", "Pareto front"):
        assert name in first.read_text()


def test_a_picture_of_one_policy_and_one_seed_can_be_drawn(tmp_path: Path) -> None:
    one = comparison("made-up", 10.0, {"a": runs("a", [5.0], [0.0])}, [(bound(3.0, 4.0), bound(3.0, 4.0))])
    draw(one, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["picture.pdf", "picture", "nowhere/picture.png"])
def test_a_picture_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="picture"):
        draw(made_up(), tmp_path / name)
