"""What a person sees while something goes on: a table of the run, a bar for what takes long."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from colocate.controller import Controller
from colocate.cores import format_ranges
from colocate.host.runtime import Progress as Report
from colocate.jobs import JobState
from colocate.move import SERVICE
from colocate.view import JobView, View

_STYLES = {
    JobState.RUNNING: "green", JobState.STARTING: "cyan", JobState.PAUSED: "yellow",
    JobState.FINISHED: "dim", JobState.FAILED: "bold red", JobState.STOPPED: "red", JobState.WAITING: "dim",
}  # fmt: skip


class RunView:
    """The live picture of a run on standard error: a table on a terminal, else a line every few seconds.

    A thread draws, so that a terminal that takes nothing more (Ctrl-S, a full pipe) never holds up the loop.

    Args:
        console: where to draw.
        verbose: also a line for every move, with its reason.
    """

    def __init__(self, console: Console, *, verbose: bool = False) -> None:
        self._console = console
        self._verbose = verbose
        self._every_s = 0.5 if console.is_terminal else 5.0
        self._view: View | None = None
        self._reason = ""
        self._begin_s = 0.0
        self._lines: deque[str] = deque(maxlen=1000)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="live-view", daemon=True)

    def __enter__(self) -> RunView:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=1.0)

    def show(self, controller: Controller) -> None:
        """Take what there is to draw; costs next to nothing."""
        decision = controller.decision
        if decision is None:
            return
        if self._view is None:
            self._begin_s = decision.view.time_s
        self._view, self._reason = decision.view, decision.plan.reason
        if self._verbose:
            for move in decision.moves:
                cores = f" {format_ranges(move.cores)}" if move.cores else ""
                self._lines.append(f"{move.kind} {move.target}{cores}: {move.reason}")

    def _draw(self) -> None:
        live = Live(console=self._console, auto_refresh=False, transient=True) if self._console.is_terminal else None
        with live or nullcontext():
            next_s = 0.0
            while not self._stop.wait(0.1 if self._verbose else 0.5):
                while self._lines:
                    self._console.print(self._lines.popleft(), highlight=False, markup=False, soft_wrap=True)
                view = self._view
                if view is None or view.time_s < next_s:
                    continue
                next_s = view.time_s + self._every_s
                elapsed_s = view.time_s - self._begin_s
                if live is not None:
                    live.update(_table(view, elapsed_s, self._reason), refresh=True)
                else:
                    self._console.print(_line(view, elapsed_s), highlight=False, markup=False, soft_wrap=True)
            while self._lines:
                self._console.print(self._lines.popleft(), highlight=False, markup=False, soft_wrap=True)


def _service(view: View) -> str:
    service = view.service
    parts = [
        f"CPU {service.cpu_cores.value:.2f}" if service.cpu_cores.value is not None else "CPU ?",
        f"{service.qps.value:,.0f} QPS" if service.qps.value is not None else "? QPS",
        f"p{view.slo.percentile:g} {service.latency_ms.value:.2f} ms" if service.latency_ms.value is not None else "",
    ]
    return "  ".join(filter(None, parts))


def _ranges(view: View, job: JobView | None = None) -> str:
    cores = job.cores if job else view.service.cores
    return format_ranges(cores) if cores else "-"


def _table(view: View, elapsed_s: float, reason: str) -> Table:
    table = Table(title=f"{elapsed_s:.0f} s  {reason}", title_justify="left", title_style="dim", box=None)
    for name in ("job", "cores", "state", "run", "CPU"):
        table.add_column(name, justify="left" if name in {"job", "state"} else "right")
    late = view.service.latency_ms.value is not None and view.service.latency_ms.value > view.slo.latency_ms
    table.add_row(SERVICE, _ranges(view), _service(view), "", "", style="bold red" if late else "bold")
    for job in view.jobs.values():
        cpu = f"{job.cpu_cores:.2f}" if job.cpu_cores is not None else ""
        run_s = f"{job.run_s:.0f} s" if job.run_s else ""
        table.add_row(job.name, _ranges(view, job), str(job.state), run_s, cpu, style=_STYLES[job.state])
    return table


def _line(view: View, elapsed_s: float) -> str:
    jobs = " ".join(f"{job.name}={job.state}[{_ranges(view, job)}]" for job in view.jobs.values())
    return f"{elapsed_s:5.0f} s  {SERVICE}[{_ranges(view)}] {_service(view)}  {jobs}"


@contextmanager
def reporting(console: Console) -> Iterator[Report]:
    """A callback (what, share done) that draws a bar on a terminal, and a line for each thing elsewhere."""
    if not console.is_terminal:
        said: set[str] = set()
        last_s = [0.0]

        def say(what: str, share: float) -> None:
            if what not in said or (share < 1 and time.monotonic() - last_s[0] > 5):
                said.add(what)
                last_s[0] = time.monotonic()
                console.print(f"{what} {share:.0%}" if share < 1 else what, highlight=False, markup=False)

        yield say
        return
    share_column = TextColumn("{task.percentage:.0f} %")
    columns = (TextColumn("{task.description}"), BarColumn(), share_column, TimeElapsedColumn())
    bars = Progress(*columns, console=console, transient=True)
    tasks: dict[str, TaskID] = {}

    def draw(what: str, share: float) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=1.0)
            bars.start()
        bars.update(tasks[what], completed=share)
        if bars.finished:  # the terminal is the run's from now on
            bars.stop()

    try:
        yield draw
    finally:
        bars.stop()
