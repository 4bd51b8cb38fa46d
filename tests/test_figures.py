"""The figures: for paper through matplotlib, for pages as Plotly's JSON; the same picture in both."""

from __future__ import annotations

import json

import matplotlib as mpl
import pytest
from matplotlib.colors import to_hex

from colocate.cli.main import main
from colocate.errors import UserError
from colocate.report import chart, figures
from colocate.report.colours import (
    LOAD_COLOUR,
    SERVICE_COLOUR,
    VIOLATION_COLOUR,
    job_colours,
    on_top,
    parse_colours,
)  # fmt: skip
from colocate.report.record import load_record
from tests.logs import HEAD, STORY, load_text, log_text, run_text, simulate, tick, write, write_metrics

KINDS = ("a", "b", "moves")


@pytest.fixture
def record(tmp_path):
    """Two jobs, one pause, and of the six intervals over their time two violations."""
    log = write(tmp_path / "x.txt", log_text(STORY))
    return load_record(log, write(tmp_path / "y", load_text([0.9, 0.5, 1.2, 0.7] * 2)))


@pytest.fixture
def drawn(record):
    """Figure A as matplotlib has it: its upper and its lower part."""
    with mpl.rc_context(figures._STYLE):
        return figures._figure_a(record, {}).axes[:2]


def charts(record, wished=None):
    return {
        "a": chart.figure_a(record, wished), "b": chart.figure_b(record), "moves": chart.figure_moves(record, wished),
    }  # fmt: skip


def named(chart, name):
    return [trace for trace in chart["data"] if trace["name"] == name]


def is_picture(path):
    begin = path.read_bytes()[:200]
    return {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[path.suffix[1:]] == begin[: 5 - (path.suffix != ".svg")]


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_each_figure_is_written_by_its_ending(tmp_path, capsys, ending):
    log = simulate(tmp_path)
    paths = {kind: tmp_path / f"{kind}.{ending}" for kind in KINDS}
    options = [word for kind, path in paths.items() for word in (f"--figure-{kind}", str(path))]
    assert main(["report", str(log), *options]) == 0
    assert all(is_picture(path) for path in paths.values())


def test_of_several_runs_each_has_its_own_file(tmp_path, capsys):
    logs = [write(tmp_path / f"{n}.txt", run_text(1000 * n, 50)) for n in range(2)]
    assert main(["report", *map(str, logs), "--figure-b", str(tmp_path / "b.svg")]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == ["b-1.svg", "b-2.svg"]


ODD = {
    "no load": log_text(STORY),
    "no job": log_text(HEAD),
    "no core list": log_text(STORY).replace(" [1] 1", "").replace(" [2,3] 2", ""),
    "one moment": log_text([(0, "start a [1] 1"), (0, "end a")]),
    "names like formulas": log_text([(0, "start $x^$ [1] 1"), (5, "end $x^$")]),
    "all eras": "0001-01-01T00:00:00.000000 start a [1] 1\n9999-12-31T23:59:59.999999 end a\n",
    "many cores": log_text([(0, f"start a [{','.join(map(str, range(1200)))}] 1"), (5, "end a")]),
    "many jobs": log_text([(at, f"start j{at} [1] 1") for at in range(100)]),
}


@pytest.mark.parametrize("name", ODD)
def test_a_foreign_or_an_odd_log_is_drawn_too(tmp_path, name):
    record = load_record(write(tmp_path / "$x^$.txt", ODD[name]))
    for kind in KINDS:
        figures.draw(kind, record, tmp_path / f"{kind}.png")
        assert is_picture(tmp_path / f"{kind}.png")
    for made in charts(record).values():
        json.dumps(made, allow_nan=False)


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(UserError, match="no event in it"):
        figures.draw("a", load_record(write(tmp_path / "x.txt", "nothing\n")), tmp_path / "a.png")
    with pytest.raises(UserError, match=r"\.png, \.svg or \.pdf"):
        figures.check_figure(tmp_path / "a.jpeg")
    with pytest.raises(UserError, match="No such file"):
        figures.draw("a", load_record(write(tmp_path / "x.txt", log_text(STORY))), tmp_path / "none/a.png")


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_same_run_gives_the_same_bytes(tmp_path, record, ending):
    for kind in KINDS:
        first, second = (tmp_path / f"{number}.{ending}" for number in (1, 2))
        for path in (first, second):
            figures.draw(kind, record, path)
        assert first.read_bytes() == second.read_bytes()


def test_violations_are_marked_in_both(record, drawn):
    above, _ = drawn
    (crosses,) = (line for line in above.lines if line.get_marker() == "x")
    assert list(crosses.get_xdata()) == [-5, 15, 35, 55], "the middles, from the first job's start"
    assert to_hex(crosses.get_color()) == VIOLATION_COLOUR.lower()
    (promise,) = (line for line in above.lines if line.get_linestyle() == "--")
    assert set(promise.get_ydata()) == {0.8}
    made = chart.figure_a(record)
    (trace,) = named(made, "over 0.8 ms")
    assert trace["x"] == [-5, 15, 35, 55]
    shapes = made["layout"]["shapes"]
    assert [(s["x0"], s["x1"]) for s in shapes if s["type"] == "rect"] == [(-10, 0), (10, 20), (30, 40), (50, 60)]
    assert [s["y0"] for s in shapes if s["type"] == "line"] == [0.8]


def test_pauses_starts_and_ends_are_visible_in_both(record, drawn):
    _, below = drawn
    hatched, plain = (
        [
            path.get_extents()
            for bars in below.collections
            if bool(bars.get_hatch()) is paused
            for path in bars.get_paths()
        ]
        for paused in (True, False)
    )
    assert [(bar.x0, bar.width) for bar in hatched] == [(10, 10)]
    assert sorted((bar.x0, bar.width) for bar in plain) == [(0, 10), (2, 33), (20, 20), (35, 25)]
    assert len({round(bar.height, 3) for bar in plain}) == 2, "two cores are thicker than one"
    made = chart.figure_a(record)
    paused = [trace for trace in made["data"] if "pattern" in trace.get("marker", {})]
    assert [(trace["name"], trace["base"], trace["x"]) for trace in paused] == [("canneal", [10], [10])]
    assert [named(made, name)[0]["x"] for name in ("start", "end")] == [[0, 2], [40, 60]]


def test_memcacheds_cores_and_load_are_in_figure_b(record):
    made = chart.figure_b(record)
    (cores,) = named(made, "memcached's cores")
    assert (cores["x"], cores["y"]) == ([-10, 30, 30, 65], [1, 1, 2, 2])
    (load,) = named(made, "load")
    assert set(load["y"]) == {5000}


def test_a_move_has_its_reason_and_effect_and_none_of_them_is_markup(tmp_path):
    log = write(tmp_path / "x.txt", log_text(STORY))
    seen = [tick(t, latency_ms=ms) for t, ms in ((39.9, 0.9), (41.1, 0.3))]
    seen[0] |= {"moves": [["pin", "memcached", [0, 1]]], "reason": "p95 < 1 <a href=x>"}
    write_metrics(log, seen)
    (moves,) = named(chart.figure_moves(load_record(log)), "moves")
    assert len(moves["x"]) == 7, "every change but the two ends"
    told = moves["text"][moves["x"].index(30)]
    assert "update_cores memcached [0] &rarr; [0,1]" in told
    assert "p95 &lt; 1 &lt;a href=x&gt;" in told
    assert "latency 0.90 &rarr; 0.30 ms" in told


def test_a_job_has_the_same_colour_everywhere_and_the_one_that_is_wished(record):
    for wished in ({}, {"my_job": "#123456"}):
        colours = job_colours(record.timeline.jobs, wished)
        assert len(set(colours.values())) == 2
        with mpl.rc_context(figures._STYLE):
            bars = figures._figure_a(record, wished).axes[1].collections
            cores = figures._figure_moves(record, wished).axes[0].collections
        drawn = {to_hex(one.get_facecolor()[0]).upper() for one in bars if not one.get_hatch()}
        assert drawn == set(colours.values())
        assert {to_hex(one.get_facecolor()[0]).upper() for one in cores} == {*colours.values(), SERVICE_COLOUR}
        for made in (chart.figure_a(record, wished), chart.figure_moves(record, wished)):
            told = {(t["name"], t["marker"]["color"]) for t in made["data"] if t["type"] == "bar"}
            assert {pair for pair in told if pair[1].startswith("#")} >= set(colours.items())
    assert colours["my_job"] == "#123456"


def test_colours_are_fixed_by_name_and_apart_from_what_else_is_drawn():
    known = job_colours(["blackscholes", "canneal", "dedup", "ferret", "freqmine", "radix", "vips", "streamcluster"])
    assert job_colours(["vips"])["vips"] == known["vips"]
    assert len({*known.values(), SERVICE_COLOUR, LOAD_COLOUR, VIOLATION_COLOUR}) == 11
    assert "vips" not in job_colours(["a"])
    assert job_colours(["a", "vips"])["a"] != known["vips"]
    assert len(job_colours([f"j{n}" for n in range(30)])) == 30
    assert parse_colours(["a=ccccaa", "b=#000000"]) == {"a": "#CCCCAA", "b": "#000000"}
    assert (on_top("#FFFFFF"), on_top("#332288")) == ("#000000", "#FFFFFF")
