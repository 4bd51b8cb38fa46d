"""Loads: each source gives the load that it names, and says clearly where it is bad."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate import mcperf
from colocate.errors import UserError
from colocate.sim.traces import LOADS, Trace, load_trace

ROW = mcperf.Row(*[100.0] * 15, 4000.0, 5000)


def load(text, **given):
    usual = {"qps_min": 5000, "qps_max": 100000, "interval_s": 10.0, "seed": 3, "duration_s": 100.0}
    return load_trace(text, **usual | given)


def values(trace, step_s=10.0):
    return [trace.qps(step_s * i) for i in range(round(trace.duration_s / step_s))]


@given(st.lists(st.floats(0.5, 50), min_size=1, max_size=20), st.floats(0, 400))
def test_the_load_is_constant_until_the_next_change(gaps, time_s):
    times = tuple(math.fsum(gaps[:i]) for i in range(len(gaps)))
    trace = Trace(times, tuple(map(float, range(1, len(gaps) + 1))), 10.0, math.fsum(gaps))
    next_s = trace.next_change_s(time_s)
    assert next_s > time_s
    if next_s < math.inf:
        assert trace.qps(time_s) == trace.qps((time_s + next_s) / 2) != trace.qps(next_s)
    else:
        assert trace.qps(time_s) == trace.qps(1e9) == 0.0


def test_the_last_target_holds_to_the_end_and_then_there_is_no_load():
    trace = Trace((0.0, 10.0), (5.0, 6.0), 10.0, 30.0)
    assert [trace.qps(t) for t in (0.0, 9.999, 10.0, 29.9, 30.0, -1.0)] == [5.0, 5.0, 6.0, 6.0, 0.0, 0.0]
    assert [trace.next_change_s(t) for t in (0.0, 10.0, 30.0)] == [10.0, 30.0, math.inf]


def test_the_waveform_is_mcperfs_and_a_longer_run_only_draws_on():
    assert values(load("waveform")) == mcperf.waveform(3, 5000, 100000, 10)
    assert values(load("waveform", duration_s=300.0))[:10] == values(load("waveform"))
    assert values(load("waveform", seed=4)) != values(load("waveform"))


def test_a_last_interval_that_is_cut_counts():
    trace = load("waveform", duration_s=95.0)
    assert len(trace.times_s) == 10
    assert trace.qps(94.9) > 0.0 == trace.qps(95.0)


def test_explicit_targets_come_in_turn():
    assert values(load("waveform", targets=(1000, 2000, 3000)), 10.0)[:5] == [1000, 2000, 3000, 1000, 2000]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("step:10,90,30", [10, 10, 10, 90, 90, 90, 90, 90, 90, 90]),
        ("ramp:0,100,50", [10, 30, 50, 70, 90, 100, 100, 100, 100, 100]),
        ("sawtooth:0,100,20", [25, 75, 25, 75, 25, 75, 25, 75, 25, 75]),
        ("sine:0,100,40", [14.6, 85.4, 85.4, 14.6, 14.6, 85.4, 85.4, 14.6, 14.6, 85.4]),
    ],
)
def test_shapes(text, expected):
    assert values(load(text)) == pytest.approx(expected, abs=0.05)


def test_spikes_come_by_the_seed_and_last_as_long_as_said():
    trace = load("spikes:10,90,100,30", duration_s=10000.0)
    loads = values(trace)
    runs = "".join("x" if qps == 90 else "." for qps in loads).split(".")
    spikes = [len(run) for run in runs if run]
    assert set(loads) == {10.0, 90.0}
    assert all(length % 3 == 0 for length in spikes[:-1])  # the end may cut the last
    assert 40 <= sum(spikes) / 3 <= 110  # 1000 intervals, one in ten begins a spike where there is none
    assert loads == values(load("spikes:10,90,100,30", duration_s=10000.0))
    assert loads != values(load("spikes:10,90,100,30", duration_s=10000.0, seed=9))


def test_csv_holds_each_row_until_the_next_and_begins_anew(tmp_path):
    path = tmp_path / "load.csv"
    path.write_text("\ufefftime_s,qps\n100,5\n\n101.5, 7\n103.5,9\n", encoding="utf-8")
    trace = load(str(path), duration_s=7.0)
    assert trace.times_s == (0.0, 1.5, 3.5, 5.5)
    assert trace.targets_qps == (5.0, 7.0, 9.0, 5.0)
    assert trace.interval_s == 10.0


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("", "line 1: no header"),
        ("0,5\n", "line 1: no header"),
        ("time_s,qps\n", "no rows"),
        ("time_s,qps\n0,5\n1\n", "line 3: 1 columns"),
        ("time_s,qps\n0,5\n\n1,x\n", "line 4: 'x' is no number"),
        ("time_s,qps\n0,nan\n", "line 2: 'nan' is no number"),
        ("time_s,qps\n0,-1\n", "line 2: '-1' is no number"),
        ("time_s,qps\n5,1\n5,2\n", "line 3: 5 s is not after"),
    ],
)
def test_a_bad_csv_is_named_with_its_line(tmp_path, text, culprit):
    path = tmp_path / "bad.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.csv") as raised:
        load(str(path))
    assert culprit in str(raised.value)


def recorded(targets, rows):
    output = mcperf.Output(1747218116.0, 1747218116.0 + 20.0, 2.0, targets, rows, complete=False)
    return mcperf.write(output)


def test_a_recorded_output_gives_its_targets_its_interval_and_its_warnings(tmp_path):
    path = tmp_path / "run-mcperf.txt"
    path.write_text(recorded((5000, 6000, 7000), (ROW,)), encoding="utf-8")
    trace = load(str(path), duration_s=8.0)
    assert (trace.targets_qps, trace.interval_s) == ((5000, 6000, 7000, 5000), 2.0)
    assert trace.warnings == (f"{path}: 1 rows for 3 intervals",)


def test_a_recorded_output_without_targets_gives_what_was_reached(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("\n".join(mcperf.format_row(row) for row in (ROW, mcperf.Row(*[1.0] * 15, 444.0, 0))) + "\n")
    trace = load(str(path), duration_s=20.0)
    assert (trace.targets_qps, trace.interval_s) == ((5000.0, 444.0), 10.0)
    assert "the rows have no times" in trace.warnings[0]


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("sinus:1,2", "no such shape or file"),
        ("missing.csv", "no such shape or file"),
        ("step:1", "write step:LOW,HIGH[,AT]"),
        ("step:1,2,3,4", "write step:LOW,HIGH[,AT]"),
        ("step:a,2", "'a' is no number"),
        ("sine:1,2,0", "a time of 0 s"),
        ("spikes:1,inf", "'inf' is no number"),
    ],
)
def test_a_load_that_is_none_is_named_with_the_cure(text, culprit):
    with pytest.raises(UserError) as raised:
        load(text)
    assert culprit in str(raised.value)


def test_a_file_without_a_load_is_named(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("nothing here\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"notes\.txt: no load in it"):
        load(str(path))


@pytest.mark.parametrize("shape", ["step", "ramp", "sine", "spikes", "sawtooth"])
def test_every_shape_stands_in_the_help_and_works_with_its_defaults(shape):
    assert f"{shape}:LOW,HIGH" in LOADS
    assert max(values(load(f"{shape}:100,200", duration_s=1000.0))) > 150
