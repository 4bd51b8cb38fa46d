"""`colocate report` from its command line to what it prints and writes."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
import sys
from pathlib import Path

import pytest

from colocate.cli.main import main
from tests.logs import HEAD, STORY, load_text, log_text, run_text, simulate, write, write_metrics


def reported(capsys, *arguments, code=0):
    assert main(["report", *map(str, arguments)]) == code
    return capsys.readouterr()


def document(capsys, *arguments, code=0):
    return json.loads(reported(capsys, *arguments, "--json", code=code).out)


@pytest.fixture
def three(tmp_path):
    """Runs of 50, 70 and 90 s whose loads' names lie, and the loads."""
    logs, loads = tmp_path / "logs", tmp_path / "loads"
    logs.mkdir()
    loads.mkdir()
    for number, (at, seconds) in enumerate(((0, 50), (1000, 70), (3000, 90))):
        write(logs / f"run{number}.txt", run_text(at, seconds, job="my_job", hours=2))
        late = [0.9] * number + [0.5] * (10 - number)
        write(loads / f"load{2 - number}.txt", load_text(late, at_s=at))
    return sorted(logs.iterdir()), sorted(loads.iterdir())


def test_several_runs_are_paired_graded_and_put_together(three, capsys):
    logs, loads = three
    said = reported(capsys, *logs, "--mcperf", *loads, "--json")
    told = json.loads(said.out)
    assert set(told) == {"runs", "aggregate"}
    assert [Path(run["mcperf"]).name for run in told["runs"]] == ["load2.txt", "load1.txt", "load0.txt"]
    assert [run["violations"] for run in told["runs"]] == [0, 1, 2]
    assert [run["intervals"] for run in told["runs"]] == [5, 7, 9]
    assert said.err.count("the log's clock +2 h") == 3
    together = told["aggregate"]
    assert together["makespan_s"] == {"mean": 70, "sd": 20}
    assert together["jobs"]["my_job"] == {"mean": 70, "sd": 20}
    ratios = [0, 1 / 7, 2 / 9]
    assert together["slo_violation_ratio"]["mean"] == pytest.approx(statistics.fmean(ratios))
    assert together["slo_violation_ratio"]["sd"] == pytest.approx(statistics.stdev(ratios))


def test_explicit_pairs_win_over_time(three, capsys):
    logs, loads = three
    (run,) = document(capsys, logs[0], "--pair", logs[0], loads[0])["runs"]
    assert run["mcperf"] == str(loads[0])
    assert (run["coverage"], run["slo_violation_ratio"]) == (0, None)


def test_a_folder_is_sorted_by_content(three, tmp_path, capsys):
    (tmp_path / "folder.txt").mkdir()
    write(tmp_path / "notes.txt", "neither the one nor the other\n")
    told = document(capsys, tmp_path)
    assert len(told["runs"]) == 3
    assert all(run["coverage"] == pytest.approx(1) for run in told["runs"])


@pytest.mark.parametrize(("text", "cure"), [("", "--check"), ("no event\n", "--check"), (load_text([0.5]), "--mcperf")])
@pytest.mark.parametrize("command", ["report", "explain"])
def test_what_is_no_log_is_named_with_its_cure(tmp_path, capsys, command, text, cure):
    other = write(tmp_path / "other.txt", text)
    assert main([command, str(other)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert f"{other}: no event of a run in it; " in err
    assert cure in err


def test_a_check_tells_even_of_a_text_without_an_event_what_it_lacks(tmp_path, capsys):
    out = reported(capsys, write(tmp_path / "x.txt", "12:00 job one started\n"), "--check", code=1).out
    assert "line 1: not-an-event: 12:00 job one started" in out
    assert "the run would not count" in out


def test_a_load_without_a_row_is_named_and_the_others_are_paired(three, tmp_path, capsys):
    logs, loads = three
    empty = write(tmp_path / "dead.txt", "")
    said = reported(capsys, *logs, "--mcperf", *loads, empty)
    assert f"{empty}: no row of mcperf in it" in said.err
    assert "3 of 3 runs count" in said.out


def test_a_run_that_does_not_count_is_left_out_of_the_mean(three, tmp_path, capsys):
    cut = write(tmp_path / "cut.txt", run_text(9000, 500).replace("end canneal", "custom canneal killed"))
    together = document(capsys, *three[0], cut)["aggregate"]
    assert (together["runs"], together["counted"], together["makespan_s"]["mean"]) == (4, 3, 70)
    assert "canneal" not in together["jobs"]
    alone = document(capsys, cut)
    assert alone["aggregate"]["makespan_s"] == {"mean": None, "sd": None}


def test_the_json_of_a_run_is_as_specified(tmp_path, capsys):
    log = simulate(tmp_path)
    capsys.readouterr()
    told = document(capsys, log, "--slo", "0.3ms")
    (run,) = told["runs"]
    assert {
        "log", "mcperf", "source", "policy", "scenario", "seed", "cores", "slo_ms", "percentile", "complete",
        "exit_code", "makespan_s", "intervals", "violations", "slo_violation_ratio", "coverage", "p95_ms", "core_moves",
        "pauses", "jobs", "warnings",
    } <= run.keys()  # fmt: skip
    assert {"state", "start_s", "run_s", "wall_s", "threads", "retries"} <= run["jobs"]["one"].keys()
    assert (run["slo_ms"], run["source"], run["scenario"]) == (0.3, "simulated", "small")
    assert run["violations"] > 0
    assert told["aggregate"]["makespan_s"] == {"mean": run["makespan_s"], "sd": None}


def test_what_is_not_finite_is_null(tmp_path, capsys):
    log = write(tmp_path / "x.txt", log_text(STORY))
    ticks = [f'{{"t":{t}.5,"moves":[],"latency_ms":NaN,"latency_age_s":0.1,"qps":1e999}}\n' for t in range(80)]
    write_metrics(log, [])
    log.with_suffix(".jsonl").open("a").writelines(ticks)
    out = reported(capsys, log, "--json").out
    assert "NaN" not in out
    assert "Infinity" not in out
    assert json.loads(out)["runs"][0]["p95_ms"] == {"median": None, "max": None}


def test_people_read_the_verdict_the_runs_and_the_means(three, tmp_path, capsys):
    logs, loads = three
    one = reported(capsys, logs[1], "--mcperf", *loads).out
    assert "makespan             70.0 s" in one
    assert "14.29%  (1 of 7 intervals, p95 <= 0.8 ms, by mcperf)" in one
    many = reported(capsys, *logs, "--mcperf", *loads).out
    assert "3 of 3 runs count" in many
    assert re.search(r"makespan +70\.0 s +20\.0 s", many)
    odd = write(tmp_path / "[b]odd.txt", log_text([(0, "start [/b] [1] 1"), (3, "end [/b]")]))
    assert "[b]odd.txt" in reported(capsys, odd, logs[0]).out
    assert "[/b]" in reported(capsys, odd).out


# --check

WILD = [
    ("update_cores my_job [3]", "updated_cores my_job [3]", "event-alias"),
    ("update_cores my_job [3]", "cpu my_job 83", "unknown-event"),
    ("start my_job [2,3] 2", "start my_job [2, 3] 2", "core-list-form"),
    ("start my_job [2,3] 2", "start my_job [3,2] 2", "core-list-order"),
    ("update_cores my_job [3]", "update_cores my_job [2,3]", "cores-unchanged"),
    ("start my_job [2,3] 2", "start my_job", "missing-arguments"),
    ("unpause canneal", "custom canneal it goes on", "custom-unquoted"),
    ("unpause canneal", "unpause my_job", "unpause-while-running"),
    ("end my_job", "end parsec_my_job", "job-prefix"),
    ("update_cores memcached [0,1]", "update_cores canneal [1,2,3,4]\r", "crlf"),
    ("update_cores memcached [0,1]", "end memcached", "not-for-memcached"),
    ("update_cores memcached [0,1]", "CPU utilization: 83%", "unknown-event"),
    ("start canneal [1] 1", "start canneal [1] 1  ", "blanks"),
]


@pytest.mark.parametrize(("before", "after", "name"), WILD, ids=[f"{name}: {after}" for _, after, name in WILD])
def test_each_deviation_is_told_with_its_line(tmp_path, capsys, before, after, name):
    text = log_text(STORY)
    number = text[: text.index(before)].count("\n") + 1
    log = write(tmp_path / "x.txt", text.replace(before, after))
    out = reported(capsys, log, "--check").out
    assert f"  line {number}: {name}" in out
    assert "the run would count" in out


OTHERS = [
    (log_text(STORY).replace(".000000", ""), "line 1: timestamp-fraction", 0),
    (log_text(STORY).replace(".000000 start my", ".000000Z start my"), "line 4: timestamp-zone", 0),
    (log_text(STORY).rstrip("\n"), "line 11: no-final-newline", 0),
    (log_text([line for line in STORY if "start memcached" not in line[1]]), "line 2: no-start-memcached", 0),
    ("pid 4321's current affinity list: 0-3\n" + log_text(STORY), "line 1: not-an-event", 0),
    (log_text([*STORY[:-1], (70 + 17 * 60, "end scheduler")]), "line 11: late-end", 0),
    (log_text(STORY[:-1]), "the last line is not `end scheduler`", 0),
    (log_text(STORY[1:]), "the first line is not `start scheduler`", 0),
    (log_text(STORY) + log_text([(99, "pause canneal")]), "line 12: after-end-scheduler", 0),
    (log_text([line for line in STORY if line[1] != "end my_job"]), "line 4: my_job starts and never ends", 1),
    (log_text(HEAD), "no batch job", 1),
    ("", "no batch job", 1),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words", "code"), OTHERS, ids=[words for _, words, _ in OTHERS])
def test_what_a_whole_log_lacks(tmp_path, capsys, text, words, code):
    log = write(tmp_path / "x.txt", text)
    assert words in reported(capsys, log, "--check", code=code).out
    (found,) = document(capsys, log, "--check", code=code)["checks"]
    assert any(words in line for line in [*found["deviations"], *found["reasons"]])
    assert found["counts"] is (code == 0)


def test_a_log_of_colocates_own_deviates_in_nothing(tmp_path, capsys):
    log = simulate(tmp_path)
    capsys.readouterr()
    (found,) = document(capsys, log, "--check")["checks"]
    assert (found["deviations"], found["reasons"]) == ([], [])


def test_of_two_runs_the_one_that_is_graded_is_the_one_that_is_checked(tmp_path, capsys):
    log = write(tmp_path / "x.txt", run_text(0, 50) + run_text(2000, 90).replace("end canneal", "custom canneal dead"))
    for at, code in ((0, 0), (2000, 1)):
        told = document(
            capsys, log, "--check", "--mcperf", write(tmp_path / "y", load_text([0.5] * 9, at_s=at)), code=code
        )
        assert told["runs"][0]["complete"] is told["checks"][0]["counts"] is (code == 0)


# Tables


def test_the_csv_reads_back(three, capsys):
    logs, loads = three
    rows = list(csv.DictReader(io.StringIO(reported(capsys, *logs, "--mcperf", *loads, "--csv", "-").out)))
    assert [row["log"] for row in rows] == list(map(str, logs))
    assert [float(row["makespan_s"]) for row in rows] == [50, 70, 90]
    assert [float(row["my_job_run_s"]) for row in rows] == [50, 70, 90]
    assert [row["violations"] for row in rows] == ["0", "1", "2"]
    assert [row["clock_offset_h"] for row in rows] == ["2"] * 3


def test_a_field_of_the_csv_that_is_unknown_is_empty_and_a_name_with_a_comma_is_whole(tmp_path, capsys):
    log, table = write(tmp_path / 'a,b".txt', log_text(STORY)), tmp_path / "table.csv"
    other = write(tmp_path / "c.txt", run_text(0, 9))
    reported(capsys, log, other, "--csv", table)
    first, second = csv.DictReader(table.open(newline=""))
    assert (first["log"], first["slo_violation_ratio"], first["canneal_run_s"]) == (str(log), "", "30.0")
    assert second["my_job_run_s"] == ""


def test_the_latex_table_is_whole(three, capsys):
    logs, loads = three
    out = reported(capsys, *logs, "--mcperf", *loads, "--latex", "-").out
    body = "\n".join(line for line in out.splitlines() if not line.startswith("%"))
    assert r"my\_job & 70.0 & 20.0 \\" in body
    assert r"total (makespan) & 70.0 & 20.0 \\" in body
    assert not re.search(r"(?<!\\)[_%#$]", body)
    assert body.count("{") == body.count("}")
    assert re.findall(r"\\(begin|end)\{tabular\}", body) == ["begin", "end"]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", row)) == 2 for row in rows), "three columns, as announced"


def test_a_simulated_run_writes_its_report_at_its_end(tmp_path, capsys):
    page = tmp_path / "page.html"
    log = simulate(tmp_path, "--report", str(page))
    assert json.loads(capsys.readouterr().out)["log"] == str(log)
    assert log.name in page.read_text()


# Bad input

BAD = [
    (["none.txt"], r"none\.txt: No such file"),
    (["empty"], "empty: no event log in it"),
    (["x.txt", "--mcperf", "none"], "none: No such file"),
    (["x.txt", "--mcperf", "empty"], "empty: Is a directory"),
    (["x.txt", "--pair", "none", "x.txt"], "none: No such file"),
    (["x.txt", "--figure-a", "a.gif"], r"a\.gif: .*\.png, \.svg or \.pdf"),
    (["x.txt", "--figure-moves", "a"], "a: no kind of figure"),
    (["x.txt", "--html", "none/x.html"], "there is no folder none"),
    (["x.txt", "--csv", "t.csv", "--html", "empty"], "empty: a folder"),
    (["x.txt", "--csv", "t.csv", "--figure-b", "none/b.svg"], "there is no folder none"),
    (["x.txt", "--colour", "canneal=red"], "--colour 'canneal=red'.*canneal=#CCCCAA"),
    (["x.txt", "--slo", "0.8"], "--slo.*write it like 0.8ms"),
    (["x.txt", "--percentile", "101"], "--percentile"),
    (["x.txt", "--qps-interval", "soon"], "--qps-interval"),
    (["x.txt", "--json", "--csv", "-"], "two documents on standard output"),
    (["x.txt", "--latex", "-", "--csv", "-"], "two documents on standard output"),
    ([], "LOG"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.txt", log_text(STORY))
    (tmp_path / "empty").mkdir()
    said = reported(capsys, *arguments, code=2)
    (line,) = said.err.splitlines()
    assert line.startswith("colocate: ")
    assert re.search(words, line), line
    assert said.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "x.txt"]


@pytest.mark.parametrize(
    ("hidden", "module", "option"),
    [("matplotlib", "figures", "--figure-a"), ("plotly", "page", "--html"), ("jinja2", "page", "--html")],
)
def test_a_missing_extra_is_one_line_with_its_cure(tmp_path, capsys, monkeypatch, hidden, module, option):
    for name in [name for name in sys.modules if name.partition(".")[0] == hidden]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, hidden, None)
    monkeypatch.delitem(sys.modules, f"colocate.report.{module}", raising=False)
    log, out = write(tmp_path / "x.txt", log_text(STORY)), tmp_path / "out.svg"
    said = reported(capsys, log, option, out, code=2)
    (line,) = said.err.splitlines()
    assert re.search(rf"'{hidden}[a-z.]*' is missing; pip install 'colocate\[report\]'", line)
    assert (said.out, out.exists()) == ("", False)
