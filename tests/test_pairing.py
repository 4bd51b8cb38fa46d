"""Which load belongs to which log: by time, never by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate import mcperf
from colocate.eventlog import parse
from colocate.report.pairing import Pair, pair
from tests.logs import load_text, run_text

HOUR = 3600


def paired(logs, loads):
    """The load's name for each log's, with the hours; and the pairs themselves."""
    found = pair(
        {Path(name): parse(text) for name, text in logs.items()},
        {Path(name): mcperf.parse_all(text) for name, text in loads.items()},
    )
    assert [str(one.log) for one in found] == list(logs), "in the order of the logs"
    return {str(one.log): (one.load and str(one.load), one.offset_h) for one in found}, found


def load(at_s, seconds=100):
    return load_text([0.5] * (seconds // 10), at_s=at_s)


@pytest.mark.parametrize("hours", [0, 2, -7])
def test_a_set_of_runs_whose_clock_is_whole_hours_off_is_paired_in_spite_of_misleading_names(hours):
    starts = {"1": 0, "2": 1500, "3": 5000}
    logs = {f"jobs_{name}.txt": run_text(at, 90, hours=hours) for name, at in starts.items()}
    loads = {f"mcperf_{name}.txt": load(starts[other]) for name, other in (("1", "3"), ("2", "1"), ("3", "2"))}
    told, found = paired(logs, loads)
    assert told == {
        "jobs_1.txt": ("mcperf_2.txt", hours), "jobs_2.txt": ("mcperf_3.txt", hours),
        "jobs_3.txt": ("mcperf_1.txt", hours),
    }  # fmt: skip
    assert all(one.coverage == 1 and not one.others for one in found)
    assert (f"{hours:+d} h" in str(found[0])) == bool(hours)


def test_a_lone_run_takes_the_load_that_began_with_it_and_at_the_smaller_offset():
    told, _ = paired({"a": run_text(1000, 90)}, {"far": load(1000 - 3 * HOUR), "near": load(1000), "late": load(1050)})
    assert told["a"] == ("near", 0)


def test_where_two_loads_fit_alike_that_is_said():
    _, (found,) = paired({"a": run_text(1000, 90)}, {"one": load(1000), "copy": load(1000)})
    assert {str(found.load), *map(str, found.others)} == {"one", "copy"}
    assert "would fit as well" in str(found)


def test_a_clock_that_is_changed_in_the_middle_of_a_set_gives_two_offsets():
    starts = [0, 1500, 5000, 9000 + HOUR, 12_000 + HOUR]
    hours = [1, 1, 1, 2, 2]
    logs = {f"log{i}": run_text(at, 90, hours=ahead) for i, (at, ahead) in enumerate(zip(starts, hours, strict=True))}
    told, _ = paired(logs, {f"load{9 - i}": load(at) for i, at in enumerate(starts)})
    assert told == {f"log{i}": (f"load{9 - i}", ahead) for i, ahead in enumerate(hours)}


def test_a_log_without_any_load_over_its_time_stays_alone():
    told, found = paired({"with": run_text(0, 90), "without": run_text(1800, 90)}, {"load": load(0)})
    assert told == {"with": ("load", 0), "without": (None, 0)}
    assert "no load generator's output overlaps it" in str(found[1])
    assert pair({Path("x"): parse(run_text(0, 9))}, {}) == [Pair(Path("x"))]
    assert pair({}, {Path("x"): mcperf.parse_all(load(0))}) == []


def test_one_long_load_may_serve_two_logs():
    told, _ = paired({"a": run_text(0, 90), "b": run_text(300, 90)}, {"long": load(0, 500)})
    assert told == {"a": ("long", 0), "b": ("long", 0)}


def test_one_run_under_two_names_has_the_same_load_twice():
    told, _ = paired(
        {"a": run_text(0, 90), "twin": run_text(0, 90), "b": run_text(2000, 90)}, {"x": load(2000), "y": load(0)}
    )
    assert told == {"a": ("y", 0), "twin": ("y", 0), "b": ("x", 0)}


def test_of_two_runs_in_one_file_either_may_be_the_one_with_a_load():
    both = run_text(0, 90) + run_text(2000, 300)
    for at in (0, 2000):
        told, (found,) = paired({"both": both}, {"load": load(at, 300)})
        assert told["both"] == ("load", 0)
        assert found.coverage == 1


def test_an_output_that_stands_twice_in_its_file_and_one_without_times():
    told, _ = paired({"a": run_text(0, 90)}, {"none": "read nothing", "twice": load(0) + load(0)})
    assert told["a"] == ("twice", 0)


def test_logs_without_jobs_take_no_load_from_others():
    told, _ = paired({"odd": "no event\n", "a": run_text(0, 90)}, {"x": load(0)})
    assert told == {"odd": (None, 0), "a": ("x", 0)}
