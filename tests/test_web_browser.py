"""The dashboard in a real browser: Debian's Chromium, without a screen."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from colocate.report.summary import summary_path
from tests.live import catalogue, running
from tests.memcached_fixture import DEADLINE_S, eventually, free_port, running_memcached
from tests.served import dashboard, growing, simulated_run

_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,900",
)  # fmt: skip
TOTALS = ("makespan_s", "violations", "intervals", "slo_violation_ratio", "core_moves", "pauses", "p95_ms", "jobs")


class Page:
    """The dashboard as a browser shows it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get_log("performance")  # of the page before
        self.driver.get(url)

    def js(self, expression: str) -> object:
        return self.driver.execute_script(f"return {expression}")

    @property
    def points(self) -> int:
        """How many latencies the picture has."""
        traces = "(document.getElementById('picture').data ?? [])"
        return int(self.js(f"{traces}.find((trace) => trace.name === 'p95')?.x.length ?? 0"))

    @property
    def bars_end_s(self) -> float:
        """Until when the picture has jobs."""
        bars = "(document.getElementById('picture').data ?? []).filter((trace) => trace.type === 'bar')"
        return float(self.js(f"Math.max(0, ...{bars}.flatMap((bar) => bar.x.map((x, at) => x + bar.base[at])))"))

    @property
    def lines(self) -> list[int]:
        """The numbers of the event lines, the newest first."""
        return list(self.js("[...document.querySelectorAll('#events tr')].map((row) => Number(row.dataset.n))"))

    @property
    def totals(self) -> dict[str, object]:
        return dict(self.js("JSON.parse(document.getElementById('totals').dataset.totals ?? '{}')"))

    def text(self, place: str) -> str:
        return str(self.js(f"document.getElementById('{place}').textContent"))

    @property
    def gone(self) -> bool:
        return not self.js("document.getElementById('gone').hidden")

    @property
    def hosts(self) -> set[str]:
        """Whom the browser asked for anything, by its own protocol."""
        entries = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]
        return {match[1] for url in urls if (match := re.match(r"(?:https?|wss?)://([^/]+)/", url))}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for option in (*_OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver") or "chromedriver"))
    made.set_page_load_timeout(4 * DEADLINE_S)
    yield made
    made.quit()


@pytest.fixture
def page(driver: webdriver.Chrome) -> Iterator[Page]:
    yield Page(driver)
    driver.get("about:blank")


def assert_totals(page: Page, log: Path) -> None:
    """The page shows what the result file says."""
    summary = json.loads(summary_path(log).read_text())
    eventually(lambda: page.totals.get("final"), "the totals are the result file's")
    assert {name: page.totals[name] for name in TOTALS} == {name: summary[name] for name in TOTALS}
    assert page.text("makespan") == f"{summary['makespan_s']:.1f} s"
    ratio = summary["slo_violation_ratio"]
    assert ratio is None or page.text("ratio") == f"{100 * ratio:.2f} %"
    assert page.text("ratio-note") == f"{summary['violations']} of {summary['intervals']} intervals"
    assert page.text("moves") == str(summary["core_moves"])


def test_the_picture_grows_and_survives_a_restart_of_the_server(page, tmp_path):
    finished = simulated_run(tmp_path / "before", "--policy", "reactive")
    whole = len(finished.read_text().splitlines())
    (tmp_path / "logs").mkdir()
    with dashboard(tmp_path / "logs", tmp_path / "said") as served:
        page.open(served.url)
        eventually(lambda: page.js("window.Plotly !== undefined"), "Plotly is there")
        with growing(finished, tmp_path / "logs") as run:
            run.until(8.0)
            points = run.points
            eventually(lambda: page.points == run.points > 0, "a run that begins is shown by itself")
            assert page.text("state") == "in progress"
            count = run.until(16.0)
            assert run.points > points
            eventually(lambda: page.points == run.points, "the picture grows")
            eventually(lambda: page.bars_end_s > 14, "so do the jobs")
            eventually(lambda: page.lines == list(range(count, 0, -1)), "every line of the log is told")
            assert page.js("document.querySelectorAll('.core').length") == 4

            served.process.kill()
            eventually(lambda: page.gone, "the page says that the server is gone")
            assert page.text("gone") == "server gone, reconnecting"
            points = page.points
            count = run.until(20.0)
            assert page.points == points < run.points
            served.restart()
            eventually(lambda: not page.gone, "the page finds it again")
            eventually(lambda: page.points == run.points, "and goes on")
            eventually(lambda: page.lines == list(range(count, 0, -1)), "without a line doubled or lost")

            run.finish()
            assert_totals(page, run.log)
        eventually(lambda: page.text("state") == "finished", "the run is over")
        eventually(lambda: page.lines == list(range(whole, 0, -1)), "every line is told once")
        report = "document.querySelector('#runs a')?.getAttribute('href')"
        eventually(lambda: page.js(report) == f"/runs/{run.log.stem}/report", "its report is in the list")
        assert page.hosts == {f"127.0.0.1:{served.port}"}
        severe = [entry["message"] for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert [message for message in severe if "ERR_" not in message] == []  # those are of the killed server


def test_a_list_of_past_runs_opens_each(page, tmp_path):
    first = simulated_run(tmp_path, "--seed", "2")
    second = simulated_run(tmp_path, "--seed", "3")
    with dashboard(tmp_path, tmp_path / "said") as served:
        page.open(served.url)
        eventually(lambda: page.totals.get("final"), "a run is shown")
        for log in (first, second):
            page.js(f"document.querySelector('#runs tr[data-name=\"{log.stem}\"]').click()")
            row = f"document.querySelector('#runs tr[data-name=\"{log.stem}\"].shown')"
            eventually(lambda row=row: page.js(f"{row} !== null"), "the list marks it")
            makespan_s = json.loads(summary_path(log).read_text())["makespan_s"]
            eventually(lambda s=makespan_s: page.totals.get("makespan_s") == s, "the other run is shown")
            assert_totals(page, log)


@pytest.mark.live
def test_a_real_run_is_watched_from_its_begin_to_its_end(page, tmp_path, behave_binary):
    lines = {"spin": "./behave spin 1", "short": "./behave exit 0 500"}
    jobs = catalogue(tmp_path / "jobs.toml", "none", lines, behave_binary.parent)
    port = free_port()
    with running_memcached() as server:
        with running(
            tmp_path, server, "--runtime", "process", "--jobs", str(jobs), "--web", f"127.0.0.1:{port}"
        ) as run:  # fmt: skip
            eventually(lambda: f"http://127.0.0.1:{port}/" in run.errors, "its address is printed")
            page.open(f"http://127.0.0.1:{port}/")
            run.until("end short")
            eventually(lambda: page.text("state") == "in progress", "the run is shown")
            eventually(lambda: page.bars_end_s > 1, "its jobs are")
            seen_s = page.bars_end_s
            eventually(lambda: page.bars_end_s > seen_s + 1, "the picture grows")
            owners = "[...document.querySelectorAll('.core')].map((core) => core.title).join()"
            eventually(lambda: "memcached" in str(page.js(owners)), "cores by owner")
            eventually(lambda: "spin" in page.text("jobs"), "jobs")
            eventually(lambda: len(page.lines) >= 5, "events")
            assert run.end(signal.SIGTERM) == 143
        (log,) = run.logs.glob("log*.txt")
        with dashboard(run.logs, tmp_path / "said", port):
            assert_totals(page, log)
            count = len(log.read_text().splitlines())
            eventually(lambda: page.lines == list(range(count, 0, -1)), "every line is told once")
    assert page.hosts == {f"127.0.0.1:{port}"}
