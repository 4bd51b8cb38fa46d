"""The dashboard's server: its routes, what it refuses, and a run that grows."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from colocate.cli.main import main
from colocate.errors import UserError
from colocate.host.control import ControlServer
from colocate.metrics import metrics_path, read_run
from colocate.report.grade import epoch_s, probed_intervals
from colocate.report.summary import summary_path
from colocate.web.address import parse_address
from colocate.web.app import make_app
from colocate.web.feed import Feed
from colocate.web.follow import Follower
from colocate.web.runs import Runs
from tests.live import catalogue, running
from tests.memcached_fixture import eventually, free_port, running_memcached
from tests.served import dashboard, growing, simulated_run

ORIGIN = "http://127.0.0.1:8099"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_run(tmp_path_factory.mktemp("logs"), "--policy", "reactive")


def client_of(directory: Path, hosts: set[str] | None = frozenset({"127.0.0.1", "localhost"})) -> TestClient:
    return TestClient(make_app(directory, directory / "no-state", hosts), base_url=ORIGIN)


@pytest.fixture
def client(finished: Path) -> TestClient:
    return client_of(finished.parent)


def messages(text: str) -> list[dict[str, str]]:
    """The events of a stream: their fields."""
    blocks = [block for block in text.replace("\r\n", "\n").split("\n\n") if block]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


def streamed(client: TestClient, log: Path, **headers: str) -> list[dict[str, str]]:
    answer = client.get(f"/runs/{log.stem}/events", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [message for message in messages(answer.text) if "event" in message]


def numbers(stream: list[dict[str, str]]) -> list[int]:
    return [int(message["id"]) for message in stream if message["event"] == "change"]


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/static/page.js", "text/javascript"),
        ("/static/page.css", "text/css"),
        ("/plotly.min.js", "text/javascript"),
        ("/api/runs", "application/json"),
        ("/metrics", "text/plain"),
        ("/healthz", "text/plain"),
    ],
)
def test_every_route_answers(client, path, kind):
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(kind)
    assert answer.content
    assert client.head(path).status_code == 200


def test_the_page_asks_no_other_host(client):
    for path in ("/", "/static/page.js", "/static/page.css", "/static/icon.svg"):
        text = client.get(path).text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "//" not in text.replace("// ", ""), path
    assert "default-src 'self'" in client.get("/").headers["content-security-policy"]


def test_the_list_tells_what_came_of_each_run(client, finished):
    summary = json.loads(summary_path(finished).read_text())
    (run,) = client.get("/api/runs").json()
    assert run == {
        "name": finished.stem,
        "state": "finished",
        "begin": "2026-01-01T00:00:00",
        "policy": "reactive",
        "source": "simulated",
        "makespan_s": summary["makespan_s"],
        "ratio": summary["slo_violation_ratio"],
    }


def test_a_report_is_served_and_may_load_nothing(client, finished):
    answer = client.get(f"/runs/{finished.stem}/report")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_finished_run_is_told_once_and_its_totals_are_the_result_files(client, finished):
    stream = streamed(client, finished)
    assert numbers(stream) == list(range(1, len(finished.read_text().splitlines()) + 1))
    assert [message["event"] for message in stream if message["event"] != "change"] == ["picture", "verdict", "end"]
    assert stream[-1]["event"] == "end"
    verdict = json.loads(next(m["data"] for m in stream if m["event"] == "verdict"))
    summary = json.loads(summary_path(finished).read_text())
    same = verdict.keys() & summary.keys()
    assert {"makespan_s", "violations", "intervals", "slo_violation_ratio", "core_moves", "pauses", "jobs"} <= same
    assert {name: verdict[name] for name in same} == {name: summary[name] for name in same}
    assert verdict["final"] is True


def test_a_line_tells_its_reason_and_its_effect(client, finished):
    changes = [json.loads(m["data"]) for m in streamed(client, finished) if m["event"] == "change"]
    start = next(change for change in changes if (change["kind"], change["target"]) == ("start", "memcached"))
    assert start["reason"]
    assert start["cores"]
    assert any(None not in change["latency_ms"] for change in changes)


@pytest.mark.parametrize(("header", "first"), [("5", 6), ("0", 1), ("", 1), ("five", 1), ("-1", 1), ("9" * 40, 1)])
def test_a_stream_goes_on_after_the_last_event_that_was_seen(client, finished, header, first):
    count = len(finished.read_text().splitlines())
    assert numbers(streamed(client, finished, **{"last-event-id": header})) == list(range(first, count + 1))


def test_broken_and_foreign_files_are_shown_as_such(tmp_path):
    good = simulated_run(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("2026-01-01T00:00:00.000000 start scheduler\n")
    (tmp_path / "log1.txt").write_bytes(bytes(range(256)) * 50)
    (tmp_path / "log2.txt").write_text("")
    (tmp_path / "log3.txt").mkdir()
    (tmp_path / "log4.txt").symlink_to(secret)
    os.mkfifo(tmp_path / "log5.txt")
    (tmp_path / "log6.txt").write_text(good.read_text()[:-200])
    metrics_path(tmp_path / "log6.txt").write_text(
        '[]\n{"t": "x", "moves": []}\n{"moves": [1], "t": 1}\n{"settings": 3}\n{'
    )
    summary_path(tmp_path / "log6.txt").write_text('{"jobs": [], "makespan_s": "long", "mcperf": 7}')
    (tmp_path / "log7.txt").write_text(good.read_text())
    summary_path(tmp_path / "log7.txt").write_text('{"jobs": {"one": 1}}')
    for path in tmp_path.glob("log[1267]*"):
        os.utime(path, (0, 0))
    client = client_of(tmp_path)
    states = {run["name"]: run["state"] for run in client.get("/api/runs").json()}
    assert states == {
        good.stem: "finished", "log1": "broken", "log2": "broken", "log6": "broken", "log7": "finished",
    }  # fmt: skip
    for name in states:
        assert client.get(f"/runs/{name}/report").status_code == 200
        assert streamed(client, tmp_path / name)[-1]["event"] == "end"


@pytest.mark.parametrize("time_s", ["1e999", "NaN", "-5", "1e300", "true", "1e7"])
def test_a_run_in_progress_may_write_nonsense(tmp_path, time_s):
    (tmp_path / "log1.txt").write_text("2026-01-01T00:00:00.000000 start scheduler\n")
    tick = f'{{"t":{time_s},"moves":[[3],4],"jobs":{{"a":["x",3],"b":7}},"cores":3,"busy":{{"x":1,"0":[]}},"qps":[]}}\n'
    (tmp_path / "log1.jsonl").write_text(
        '{"settings":[]}\n{"begin":"2026-01-01T00:00:00"}\n' + tick + tick.replace("{}", "[]")
    )
    found = Runs(tmp_path).find("log1")
    assert found is not None
    feed = Feed(found)
    feed.refresh(None)
    assert json.loads(feed.latest["verdict"].data)["state"] == "in progress"
    assert json.loads(feed.latest["status"].data)["jobs"] == {}


def test_a_folder_that_is_not_there_yet_has_no_runs(tmp_path):
    assert client_of(tmp_path / "later").get("/api/runs").json() == []


@pytest.mark.parametrize(
    "name",
    ["nothing", "..", "%2e%2e%2fsecret", "..%2f..%2fetc%2fpasswd", "log%00", "small", "*", "log*", "%2fetc%2fpasswd"],
)
@pytest.mark.parametrize("what", ["events", "report"])
def test_only_a_name_of_the_list_names_a_run(client, name, what):
    assert client.get(f"/runs/{name}/{what}").status_code == 404


@pytest.mark.parametrize(
    "path", ["/static/..%2fapp.py", "/static/../app.py", "/static/%2e%2e/app.py", "/static/%2fetc/passwd"]
)
def test_no_file_but_the_pages_own_is_served(client, path):
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8099", "127.0.0.1.evil.example", "10.0.0.1:8099"])
@pytest.mark.parametrize("path", ["/", "/api/runs", "/static/page.js", "/metrics"])
def test_on_loopback_a_strange_name_is_refused(client, host, path):
    assert client.get(path, headers={"host": host}).status_code == 400
    assert client.get(path, headers={"host": "localhost:8099"}).status_code == 200


def test_elsewhere_any_name_will_do(finished):
    assert client_of(finished.parent, None).get("/api/runs", headers={"host": "node-3:8099"}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/", "/api/runs", "/static/page.js", "/metrics", "/healthz"])
def test_it_only_reads(client, method, path):
    assert client.request(method, path).status_code == 405


def test_a_run_that_grows_is_told_as_a_whole_reading_would(finished, tmp_path):
    with growing(finished, tmp_path) as run:
        run.until(5.0)
        follower = Follower(run.log)
        for time_s in (5.0, 10.0, 10.2, 15.0):
            run.until(time_s)
            follower.refresh()
        so_far = read_run(metrics_path(run.log))
        assert so_far.begin is not None
        assert follower.record.intervals == tuple(probed_intervals(so_far.ticks, epoch_s(so_far.begin)))
        assert len(follower.record.intervals) == 15
        assert (follower.state, follower.complete) == ("in progress", False)
        assert max(s.end_s for stretches in follower.record.timeline.jobs.values() for s in stretches) > 14
        told = list(follower.lines)
        assert all(line.change.reason for line in told if line.change and line.change.kind != "end")
        run.finish()
        follower.refresh()
    assert follower.complete
    assert follower.lines[: len(told)] == told
    assert [line.event.line_number for line in follower.lines] == list(
        range(1, len(finished.read_text().splitlines()) + 1)
    )
    summary = json.loads(summary_path(finished).read_text())
    assert follower.record.told == {key: value for key, value in summary.items() if value is not None}


def test_a_line_waits_until_the_metrics_know_its_reason(finished, tmp_path):
    with growing(finished, tmp_path) as run:
        run.until(0.0)
        count = run.until(10.0)
        log = metrics_path(run.log)
        whole = log.read_text()
        log.write_text("")
        follower = Follower(run.log)
        follower.refresh()
        assert follower.lines == []
        log.write_text(whole)
        follower.refresh()
        assert len(follower.lines) >= count - 3


def test_a_run_that_does_not_answer_is_told_of_by_its_files(finished, tmp_path):
    with growing(finished, tmp_path) as run:
        run.until(10.0)
        found = Runs(tmp_path).find(run.log.stem)
        assert found is not None
        feed = Feed(found)
        feed.refresh(None)
    status, verdict = (json.loads(feed.latest[name].data) for name in ("status", "verdict"))
    assert set(status["cores"]) == {"0", "1", "2", "3"}
    assert any("memcached" in core["holders"] for core in status["cores"].values())
    assert {job["state"] for job in status["jobs"].values()} <= {"waiting", "starting", "running", "paused", "finished"}
    assert {"one", "two", "memcached"} <= verdict["colours"].keys()
    assert (verdict["final"], verdict["state"]) == (False, "in progress")


def test_a_run_that_answers_is_told_of_in_its_own_words(finished, tmp_path):
    with growing(finished, tmp_path) as run:
        run.until(10.0)
        found = Runs(tmp_path).find(run.log.stem)
        assert found is not None
        feed = Feed(found)
        answer = {"log": str(run.log), "cores": {}, "jobs": {"one": {"state": "running", "progress": 0.4}}}
        feed.refresh(answer)
        assert json.loads(feed.latest["status"].data) == answer
        version = feed.latest["status"].version
        feed.refresh(answer)
        assert feed.latest["status"].version == version


def test_a_run_that_answers_is_in_progress_however_silent_its_files_are(finished, tmp_path):
    log = tmp_path / finished.name
    log.write_text("".join(finished.read_text().splitlines(keepends=True)[:4]))
    os.utime(log, (0, 0))
    state = tmp_path / "state"
    server = ControlServer(state, {"status": lambda *_: {"log": str(log)}, "figures": lambda *_: {}})
    try:
        client = TestClient(make_app(tmp_path, state, None), base_url=ORIGIN)
        assert [run["state"] for run in client.get("/api/runs").json()] == ["in progress"]
        assert client.get("/metrics").status_code == 200
    finally:
        server.close()
    assert [run["state"] for run in client_of(tmp_path).get("/api/runs").json()] == ["broken"]


@pytest.mark.parametrize(
    ("text", "ip", "port", "loopback"),
    [
        ("127.0.0.1:8099", "127.0.0.1", 8099, True),
        ("localhost:0", "127.0.0.1", 0, True),
        ("[::1]:80", "::1", 80, True),
        ("10.0.16.4:8099", "10.0.16.4", 8099, False),
        ("[::]:8099", "::", 8099, False),
    ],
)
def test_addresses(text, ip, port, loopback):
    address = parse_address(text)
    assert (address.port, address.loopback) == (port, loopback)
    assert address.ip == ip or text.startswith("localhost")
    assert str(address) == text
    assert bool(address.warning) is not loopback


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8099",
        ":8099",
        "127.0.0.1",
        "127.0.0.1:http",
        "127.0.0.1:65536",
        "::1:80",
        "[127.0.0.1]:80",
        "[::1]",
        "no.such.host.invalid:80",
        "1.2.3.4.5:80",
    ],
)
def test_what_is_no_address_is_said_in_one_line(text):
    with pytest.raises(UserError) as raised:
        parse_address(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("command", ["serve", "run", "demo"])
def test_a_port_in_use_is_one_line_and_nothing_is_touched(command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other, running_memcached() as server:
        web = ["--web", f"127.0.0.1:{other.getsockname()[1]}"]
        (tmp_path / "runs").mkdir()
        words = {
            "serve": ["serve", "runs"],
            "run": ["run", "--memcached-ip", server.ip, "--port", str(server.port), "--runtime", "process"],
            "demo": ["demo", "--runtime", "process"],
        }[command]
        assert main([*words, *web]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "in use" in line
    assert not (tmp_path / "logs").exists()


def test_a_folder_that_is_not_there_is_one_line(tmp_path, capsys):
    assert main(["serve", str(tmp_path / "nothing"), "--web", "127.0.0.1:0"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_server_although_somebody_watches(finished, tmp_path, number, code):
    with growing(finished, tmp_path / "logs") as run:
        run.until(5.0)
        with (
            dashboard(tmp_path / "logs", tmp_path / "said") as served,
            socket.create_connection(("127.0.0.1", served.port)) as watching,
        ):
            request = f"GET /runs/{run.log.stem}/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
            watching.sendall(request.encode())
            assert watching.recv(4096).startswith(b"HTTP/1.1 200 ")
            assert served.end(number) == code


@pytest.mark.live
def test_the_dashboard_of_a_run_does_not_outlive_it(tmp_path, behave_binary):
    jobs = catalogue(tmp_path / "jobs.toml", "none", {"spin": "./behave spin 1"}, behave_binary.parent)
    port = free_port()
    web = ("--runtime", "process", "--jobs", str(jobs), "--web", f"127.0.0.1:{port}")
    with running_memcached() as server, running(tmp_path, server, *web) as run:
        run.until("start spin")
        assert answers(port)
        run.process.kill()
        run.process.wait()
        eventually(lambda: not answers(port), "its server is gone")
        eventually(lambda: not (tmp_path / "state/state.json").exists(), "the guard has put everything back")
