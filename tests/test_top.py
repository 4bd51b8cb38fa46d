"""`colocate top`: what is on the screen for a given document, and watching a run in progress."""

import asyncio
import json
import signal
from copy import deepcopy

import pytest
from rich.text import Text
from textual.app import App
from textual.widget import Widget

from colocate.errors import UserError
from colocate.host.control import NoRunError
from colocate.report.summary import summary_path
from colocate.top.app import Help, TopApp, layout
from colocate.top.chart import chart
from colocate.top.cores import cores_panel, grid
from colocate.top.feed import Feed, ending, status_of
from colocate.top.marks import ALARM, bar, cell, clock
from colocate.top.panels import header, jobs_panel, moves_panel, service_panel
from tests.live import catalogue, colocate, running
from tests.memcached_fixture import DEADLINE_S, running_memcached

PANELS = ("header", "cores", "service", "jobs", "moves")


def job(state="running", cores=(), **more):
    told = {"threads": 2, "run_s": 0.0, "cpu_cores": None, "failures": 0, "progress": None, "eta_s": None}
    return {"state": state, "cores": list(cores), **told, **more}


DOCUMENT = {
    "running": True, "pid": 1, "version": "0.1.0", "run": "cafe01", "log": "/var/log/colocate/log20261125_120000.txt",
    "since": "2026-11-25T12:00:00", "policy": "share", "state": "running", "strikes": 0, "slo_ms": 0.8,
    "percentile": 95.0, "elapsed_s": 75.0, "can_share": True, "reason": "6.2k requests a second",
    "cores": {
        "0": {"busy": 0.97, "holders": ["memcached"]},
        "1": {"busy": 0.5, "holders": ["memcached", "canneal"]},
        "2": {"busy": 1.0, "holders": ["radix"]},
        "3": {"busy": None, "holders": []},
    },
    "service": {
        "pid": 2, "alive": True, "cores": [0, 1], "threads": 4, "cpu_cores": 1.25, "wait_us": 80.0, "qps": 61234.5,
        "p95_ms": 1.31, "p95_age_s": 0.4, "p95_samples": 50, "connections": 12,
    },
    "jobs": {
        "blackscholes": job("finished", run_s=31.0, progress=1.0, eta_s=0.0),
        "canneal": job("running", [1], threads=1, run_s=62.0, progress=0.4, eta_s=95.0),
        "radix": job("running", [2], run_s=5.0, failures=1),
        "vips": job("waiting", progress=0.0),
    },
    "history": {
        "qps": [1000.0 * second for second in range(60)],
        "latency_ms": [0.2] * 57 + [None, 0.9, 1.31],
        "cpu_cores": [0.5] * 60,
    },
    "moves": [
        {"t": 0.0, "kind": "pin", "target": "memcached", "before": [], "cores": [0, 1, 2, 3], "reason": "begin"},
        {"t": 70.0, "kind": "resize", "target": "radix", "before": [2, 3], "cores": [2], "reason": "needs 2 cores"},
    ],
}  # fmt: skip


def document(**changes):
    return {**deepcopy(DOCUMENT), **changes}


def many(count):
    """As many cores: memcached has an eighth of them, a job is on every second one of these, too."""
    cores = {
        str(core): {
            "busy": core % 10 / 10,
            "holders": ["memcached", "radix"][: 1 + core % 2] if core < count // 8 else ["canneal"],
        }
        for core in range(count)
    }
    return document(cores=cores)


def text_of(widget: Widget) -> str:
    """What a widget shows, line by line."""
    return "\n".join(widget.render_line(row).text for row in range(widget.size.height))


def styles_at(text: Text, piece: str) -> str:
    at = text.plain.index(piece)
    return " ".join(str(span.style) for span in text.spans if span.start <= at < span.end)


def piloted(script, *, first=None, source=None, size=(80, 24)):
    """Run a coroutine function with the app, which asks the source every hundredth of a second."""
    first = first or document()

    async def play():
        app = TopApp(source or (lambda: first), first, every_s=0.01)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            return await script(app, pilot)

    return asyncio.run(play())


async def until(pilot, condition):
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await pilot.pause(0.01)


async def shown(app: App[None], _pilot) -> dict[str, str]:
    return {name: text_of(app.query_one(f"#{name}")) for name in PANELS}


# --- on the screen --------------------------------------------------------------------------------------------------


def test_a_small_terminal_shows_every_panel():
    told = piloted(shown)
    assert "run cafe01" in told["header"]
    assert "running 1:15" in told["header"]
    assert "SLO p95 <= 0.8 ms" in told["header"]
    assert "policy share" in told["header"]
    assert "/var/log/colocate/log20261125_120000.txt" in told["header"]

    cores = told["cores"].splitlines()
    assert cores[0].startswith(" CORES 4  M memcached 2, shared 1, idle 1  plan: 6.2k requests a second")
    assert [" ".join(line.split()[0:1] + line.split()[-2:]) for line in cores[1:]] == [
        "0 M memcached", "1 memcached canneal", "2 c radix", "3 · idle",
    ]  # fmt: skip
    assert " 97% M " in cores[1]
    assert " 50% Mb " in cores[2]

    assert "61,234 max 59,000" in told["service"]
    assert "1.25 max 0.50" in told["service"]
    assert "p95     1.31 ms OVER" in told["service"]
    assert "SLO    0.80 ms 2/59 s" in told["service"]

    jobs = [line.split() for line in told["jobs"].splitlines()]
    assert jobs[0][:3] == ["JOBS", "1/4", "done"]
    assert jobs[1][:3] == ["a", "blackscholes", "finished"]
    assert jobs[2][:6] == ["b", "canneal", "running", "1", "1", "1:02"]
    assert jobs[2][-2:] == ["40%", "1:35"]
    assert jobs[3][:7] == ["c", "radix", "running", "2", "2", "1", "0:05"]  # failed once
    assert jobs[3][-2:] == ["?", "?"]
    assert jobs[4][:3] == ["d", "vips", "waiting"]

    moves = [line.split() for line in told["moves"].splitlines()]
    assert moves[1] == ["0:05", "resize", "c", "radix", "2-3", "→", "2", "needs", "2", "cores"]
    assert moves[2] == ["1:15", "pin", "M", "memcached", "-", "→", "0-3", "begin"]


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (200, 60), (80, 50), (160, 24)])
@pytest.mark.parametrize("first", [document(), many(16), many(64), many(256)], ids=["4", "16", "64", "256"])
def test_all_panels_are_inside_the_screen_and_none_covers_another(size, first):
    async def script(app, pilot):
        regions = [app.query_one(f"#{name}").region for name in PANELS] + [app.query_one("Footer").region]
        for region in regions:
            assert region in app.screen.region
            assert region.height > 0
        for index, region in enumerate(regions):
            assert not any(region.overlaps(other) for other in regions[index + 1 :])
        told = await shown(app, pilot)
        assert told["moves"].count("\n") >= 1  # a title and a move
        assert "canneal" in told["jobs"]
        assert "radix" in told["jobs"]
        assert "SLO" in told["service"]

    piloted(script, first=first, size=size)


def test_a_wide_terminal_uses_its_room():
    async def script(app, pilot):
        left, right = app.query_one("#cores").region, app.query_one("#jobs").region
        assert right.x > left.right - 2
        assert right.y == left.y
        assert app.query_one("#service").size.height > 20

    piloted(script, size=(200, 60))


def test_a_resized_terminal_is_laid_out_anew():
    async def script(app, pilot):
        await pilot.resize_terminal(200, 60)
        await until(pilot, lambda: app.query_one("#jobs").region.y == app.query_one("#cores").region.y)
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: app.query_one("#jobs").region.y > app.query_one("#cores").region.y)

    piloted(script)


def test_before_the_first_decision_it_waits():
    first = {key: DOCUMENT[key] for key in ("run", "log", "policy", "strikes", "slo_ms", "percentile")}
    told = piloted(shown, first={**first, "state": "starting"})
    assert "starting" in told["header"]
    assert "waiting for the first decision" in told["cores"]


def test_a_held_picture_stays_until_it_is_let_go():
    seconds = iter(range(100, 10**9))

    async def script(app, pilot):
        header = app.query_one("#header")
        await pilot.press("p")
        before = text_of(header)
        assert "PICTURE PAUSED" in before
        seen = next(seconds)
        await until(pilot, lambda: next(seconds) > seen + 20)
        assert text_of(header) == before
        await pilot.press("p")
        await until(pilot, lambda: "PAUSED" not in text_of(header) and text_of(header) != before)

    piloted(script, source=lambda: document(elapsed_s=float(next(seconds))))


def test_the_help_says_what_the_signs_mean_and_goes_away():
    async def script(app, pilot):
        await pilot.press("question_mark")
        assert isinstance(app.screen, Help)
        told = text_of(app.screen.query_one("Static"))
        assert "who holds it" in told
        assert app.screen.query_one("Static").region in app.screen.region
        await pilot.press("escape")
        assert not isinstance(app.screen, Help)
        await pilot.press("question_mark", "q")
        assert app.is_running
        assert not isinstance(app.screen, Help)

    piloted(script)


def test_q_quits():
    async def script(app, pilot):
        await pilot.press("q")
        return app

    app = piloted(script)
    assert app.return_code == 0
    assert not app.is_running


def test_an_ended_run_is_said_with_the_last_picture_and_another_run_is_shown():
    now = [document()]

    def source():
        if now[0] is None:
            raise NoRunError("no run in progress answers at there", "start one")
        return now[0]

    async def script(app, pilot):
        header = app.query_one("#header")
        now[0] = None
        await until(pilot, lambda: "The run has ended" in text_of(header))
        assert "ended 1:15" in text_of(header)
        assert "canneal" in text_of(app.query_one("#jobs"))
        now[0] = document(run="beef02")
        await until(pilot, lambda: "run beef02  running" in text_of(header))
        assert "ended" not in text_of(header)

    piloted(script, source=source)


def test_a_run_that_does_not_answer_is_not_called_ended():
    def source():
        raise UserError("the run at there does not answer within 2 s")

    async def script(app, pilot):
        header = app.query_one("#header")
        await until(pilot, lambda: "does not answer within 2 s" in text_of(header))
        assert "running 1:15" in text_of(header)

    piloted(script, source=source)


# --- the pieces -----------------------------------------------------------------------------------------------------


def test_a_violated_slo_has_the_colour_of_an_alarm_and_a_kept_one_has_not():
    late = service_panel(document(), 80, 5)
    assert ALARM in styles_at(late, "1.31 ms OVER")
    kept = document()
    kept["service"]["p95_ms"] = 0.5
    kept["history"]["latency_ms"] = [0.5] * 60
    calm = service_panel(kept, 80, 5)
    assert "OVER" not in calm.plain
    assert ALARM not in styles_at(calm, "0.50 ms")
    assert ALARM not in styles_at(calm, "SLO")


def test_an_old_latency_is_told_with_its_age():
    old = document()
    old["service"]["p95_age_s"] = 12.0
    assert "1.31 ms 12s old" in service_panel(old, 80, 5).plain


def test_a_memcached_that_is_gone_and_what_is_unknown_are_said():
    gone = document()
    gone["service"] |= {
        "alive": False,
        "qps": None,
        "p95_ms": None,
        "p95_age_s": None,
        "cores": [],
        "connections": None,
    }
    told = service_panel(gone, 80, 5).plain
    assert "NOT RUNNING" in told
    assert "QPS        ?" in told


def test_strikes_and_the_safe_policy_are_an_alarm():
    told = header(Feed(lambda: document(state="safe", policy="safe", strikes=3), {}).look(), 80, paused=False)
    assert ALARM in styles_at(told, "safe, 3 strikes")


def test_the_slo_lies_between_two_rows_of_a_chart():
    for height in (2, 4, 7):
        rows = chart([0.79, 0.81, None, 80.0], 4, height, "#56B4E9", limit=0.8)
        above, below = rows[: height - height // 2], rows[height - height // 2 :]
        assert above[-1].plain == "_▁_█"
        assert {row.plain[0] for row in above[:-1]} <= {" "}
        assert {row.plain[1] for row in below} == {"█"}
        assert {row.plain[2] for row in below} == {" "}
        assert ALARM not in styles_at(below[-1], "██")  # the first one keeps the SLO


def test_a_chart_shows_the_newest_values_and_a_little_is_not_nothing():
    (row,) = chart([8.0, 0.0, 0.001, 4.0, 8.0], 4, 1, "#56B4E9")
    assert row.plain == " ▁▄█"
    assert chart([], 4, 1, "#56B4E9")[0].plain == "    "
    assert chart([1.0, 2.0], 120, 1, "#56B4E9")[0].plain == " " * 116 + "▄▄██"
    wide = chart([float(second) for second in range(90)], 75, 1, "#56B4E9")[0].plain
    assert len(wide) == 75
    assert wide.strip() == wide


def test_cells_get_smaller_with_more_cores_and_the_place_tells_the_number():
    assert [len(grid(range(count), 80, 4).rows) for count in (4, 8, 16, 64, 128, 256)] == [4, 4, 3, 3, 4, 8]
    for count in (64, 256):
        told = cores_panel(many(count), 80, 9).plain.splitlines()[1:]
        firsts = [int(line.split()[0]) for line in told]
        assert firsts == list(range(0, count, firsts[1]))
    sparse = dict.fromkeys(map(str, [*range(32), *range(70, 140)]), DOCUMENT["cores"]["0"])
    laid = grid(sorted(map(int, sparse)), 80, 4)
    for row in laid.rows:
        (offset,) = {core - index for index, core in enumerate(row) if core is not None}
        assert offset % len(row) == 0


def test_small_cells_show_both_holders_and_count_more():
    crowded = many(64)
    crowded["cores"]["0"]["holders"] = ["memcached", "canneal", "radix", "vips"]
    row = cores_panel(crowded, 80, 5).plain.splitlines()[1]
    assert row.split()[1].startswith("M3▁Mc")
    crowded = many(256)
    crowded["cores"]["0"]["holders"] = ["memcached", "canneal", "radix"]
    told = cores_panel(crowded, 80, 9)
    assert told.plain.splitlines()[1].split()[1].startswith("2▁c▁M▂c▃")
    assert "on #56B4E9" in styles_at(told, "c▁M")


def test_without_room_for_all_jobs_those_that_run_or_failed_are_shown_and_the_rest_is_counted():
    jobs = {f"done{i}": job("finished") for i in range(5)} | {
        "bad": job("failed"),
        "last": job(),
        "next": job("waiting"),
    }
    told = jobs_panel(document(jobs=jobs), 80, 4)
    assert [line.split()[1] for line in told.plain.splitlines()[1:3]] == ["bad", "last"]
    assert "and 6 more: 5 finished, 1 waiting" in told.plain
    assert ALARM in styles_at(told, "failed")


def test_more_jobs_than_letters_are_shown():
    jobs = {f"job{i}": job() for i in range(70)}
    assert "?" in jobs_panel(document(jobs=jobs), 80, 80).plain.splitlines()[65]


def test_the_newest_moves_are_shown_where_not_all_fit():
    moves = [{**DOCUMENT["moves"][1], "t": float(t)} for t in range(20)]
    told = moves_panel(document(moves=moves), 80, 4).plain.splitlines()
    assert [line.split()[0] for line in told[1:]] == ["0:56", "0:57", "0:58"]
    assert len(moves_panel(document(moves=moves), 80, 1).plain.splitlines()) == 1


@pytest.mark.parametrize("height", range(12, 70, 3))
@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_rows_are_shared_out_whole(width, height):
    for first in (document(), many(256)):
        room = layout(first, width, height, remark=True)
        if height >= 24:
            assert min(room.cores, room.service, room.jobs, room.moves) >= 2
            columns = [room.cores + room.service, room.jobs + room.moves] if room.wide else [
                room.cores + room.service + room.jobs + room.moves
            ]  # fmt: skip
            assert columns == [height - room.header - 1] * len(columns)


def test_pieces_of_lines():
    assert [clock(s) for s in (0.4, 59.6, 3599.0, 3661.0)] == ["0:00", "1:00", "59:59", "1:01:01"]
    assert [bar(share, 4) for share in (0.0, 0.5, 0.53, 1.5)] == ["    ", "██  ", "██▏ ", "████"]
    assert cell("memcached", 5).plain == "memc…"
    assert cell("ab", 4, right=True).plain == "  ab"


# --- how a run ended ------------------------------------------------------------------------------------------------


def test_the_ending_is_told_from_log_and_summary(tmp_path):
    log = tmp_path / "log20261125_120000.txt"
    told = {"log": str(log)}
    assert ending(told) == "The run has ended"  # nothing to read
    log.write_text("2026-11-25T12:00:00.000000 start scheduler\n")
    assert "gone without an end in its log; see `colocate status`" in ending(told)
    log.write_text("2026-11-25T12:00:00.000000 start scheduler\n2026-11-25T12:00:09.000000 end scheduler\n")
    assert ending(told) == "The run has ended"  # its summary is not written yet
    summary = {"exit_code": 0, "makespan_s": 50.52, "intervals": 11, "violations": 2}
    summary_path(log).write_text(json.dumps(summary))
    assert ending(told) == "Ended: all jobs finished, makespan 50.5 s, 2 of 11 intervals over the SLO"
    summary_path(log).write_text(json.dumps({**summary, "exit_code": 143, "makespan_s": None, "intervals": 0}))
    assert ending(told) == "Ended: terminated"


# --- live -----------------------------------------------------------------------------------------------------------


def test_without_a_run_one_line_says_so(tmp_path):
    done = colocate("top", "--state-dir", str(tmp_path), cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "no run in progress answers at" in done.stderr


def test_the_help_names_the_keys_and_needs_no_run(tmp_path):
    done = colocate("top", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "q quit, p hold the picture" in done.stdout


@pytest.mark.live
def test_live_it_shows_a_run_leaves_it_alone_and_says_how_it_ended(tmp_path, behave_binary):
    file = catalogue(tmp_path / "jobs.toml", "none", {"spin": "./behave spin 1"}, behave_binary.parent)
    options = ("--jobs", str(file), "--runtime", "process", "--policy", "static", "--set", "service_cores=1")
    state = tmp_path / "state"
    with running_memcached() as server, running(tmp_path, server, *options) as run:
        run.until("start spin")
        told = status_of(state)
        assert list(told["jobs"]) == ["spin"]
        assert told["pid"] == run.process.pid
        assert str(run.logs) in told["log"]

        piped = colocate("top", "--state-dir", str(state), cwd=tmp_path)
        assert (piped.returncode, piped.stderr.count("\n")) == (2, 1)
        assert "this is no terminal" in piped.stderr

        async def look(app, pilot):
            await until(pilot, lambda: "spin" in text_of(app.query_one("#jobs")))
            await pilot.press("q")

        piloted(look, first=told, source=lambda: status_of(state))
        assert run.process.poll() is None
        assert status_of(state)["jobs"]["spin"]["state"] == "running"

        async def watch(app, pilot):
            run.process.send_signal(signal.SIGTERM)
            await until(pilot, lambda: "Ended: terminated" in text_of(app.query_one("#header")))
            assert "spin" in text_of(app.query_one("#jobs"))

        piloted(watch, first=told, source=lambda: status_of(state))
        assert run.end() == 143
