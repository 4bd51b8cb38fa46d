"""The page: whole in itself, safe from what logs say, with all that was asked of it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from colocate.report.colours import job_colours
from colocate.report.page import page
from colocate.report.record import load_record
from tests.logs import STORY, load_text, log_text, run_text, simulate, tick, write, write_metrics

HOSTILE = "<script>alert(1)</script> {{ 7*7 }} {% raw %} \" ' & <!-- </style>"


class Markup(HTMLParser):
    """What a browser sees: elements with their attributes, the text of scripts and of everything else."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text += " "
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data


@pytest.fixture
def hostile(tmp_path):
    text = log_text(STORY).replace("pause canneal", f"custom scheduler {HOSTILE}", 1)
    log = write(tmp_path / "<b>x.txt", text)
    seen = [tick(t, latency_ms=ms) for t, ms in ((39.9, 0.9), (41.1, 0.3))]
    seen[0] |= {"moves": [["pin", "memcached", [0, 1]]], "reason": f"needs 2 cores {HOSTILE}"}
    write_metrics(log, seen, settings={"policy": "mine", "comment": HOSTILE, "period_s": 0.05})
    return load_record(log, write(tmp_path / "y", load_text([0.9, 0.5, 1.2, 0.7] * 2)))


def chart_of(made, name):
    """A chart's JSON in the page."""
    (script,) = (script for script in made.scripts if "Plotly.newPlot" in script and len(script) < 200_000)
    text = script[script.index(f'["{name}", ') + len(f'["{name}", ') :]
    return json.JSONDecoder().raw_decode(text)[0]


def test_it_needs_nothing_but_itself(hostile):
    made = Markup(page([hostile]))
    for tag, attributes in made.tags:
        assert tag not in {"link", "iframe", "img", "object", "embed", "base", "form"}
        assert not {"src", "srcset", "action", "data"} & attributes.keys()
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    (styles,) = re.findall(r"<style>(.*?)</style>", page([hostile]).split("<script>")[0], re.DOTALL)
    assert "url(" not in styles
    assert "@import" not in styles
    ours = [script for script in made.scripts if len(script) < 200_000]
    assert len(made.scripts) == len(ours) + 1, "the library, and what draws"
    assert not any(re.search(r"https?://|\bimport\b|fetch\(", script) for script in ours)


def test_nothing_in_a_log_becomes_markup_or_a_template(hostile):
    text = page([hostile])
    made = Markup(text)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "{{ 7*7 }}" in made.text
    assert [tag for tag, _ in made.tags if tag == "script"] == ["script"] * 3
    assert made.text.count(HOSTILE) == 3, "the remark, the reason and the setting"


def test_it_has_the_verdict_the_moves_with_reason_and_effect_and_the_settings(hostile):
    told = " ".join(Markup(page([hostile])).text.split())
    for words in ("60.0 s", "50.00 %", "3 of 6 intervals, by mcperf", "p95 over 0.8 ms", "mine", "period_s = 0.05"):
        assert words in told, words
    assert re.search(r"30\.00 11:00:40 update_cores memcached \[0\] → \[0,1\] needs 2 cores .* 0\.90 → 0\.30", told)


def test_a_simulated_run_says_that_it_is_one_and_a_foreign_one_that_nothing_was_measured(tmp_path):
    assert "Simulated: every figure here is the model's" in page([load_record(simulate(tmp_path))])
    foreign = page([load_record(write(tmp_path / "x.txt", log_text(STORY)))])
    assert "Simulated:" not in foreign
    assert "unknown" in Markup(foreign).text
    assert "nan" not in Markup(page([load_record(write(tmp_path / "z.txt", ""))])).text.lower()


def test_charts_and_tables_have_one_colour_for_each_job(hostile):
    wished = {"my_job": "#123456"}
    text = page([hostile], wished)
    colours = job_colours(hostile.timeline.jobs, wished)
    for name, colour in colours.items():
        assert re.search(rf'background: {colour}"></span>{name}<', text)
    for kind in ("a", "moves"):
        bars = [trace for trace in chart_of(Markup(text), kind)["data"] if trace["type"] == "bar"]
        assert {(t["name"], t["marker"]["color"]) for t in bars} >= set(colours.items())


def test_several_runs_have_one_table_of_means_and_one_colour_for_each_job(tmp_path):
    texts = (run_text(0, 50, job="zebra"), run_text(0, 70, job="zebra"), run_text(0, 90, job="ant"))
    text = page([load_record(write(tmp_path / f"{n}.txt", one)) for n, one in enumerate(texts)])
    told = " ".join(Markup(text).text.split())
    assert "3 of 3 runs count" in told
    assert "zebra 60.0 s 14.1" in told
    assert "makespan 70.0 s 20.0" in told
    swatches = re.findall(r'background: (#\w+)"></span>(\w+)<', text)
    assert [name for _, name in swatches] == ["zebra", "zebra", "ant"]
    assert len(set(swatches)) == 2
    assert len({colour for colour, _ in swatches}) == 2
    assert len(re.findall(r'<section id="run-', text)) == 3
