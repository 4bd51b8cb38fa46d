"""The panels beside the cores: the run, memcached's figures, the jobs, the last moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from rich.text import Text

from colocate.cores import format_ranges
from colocate.jobs import ENDED, JobState
from colocate.top.chart import chart
from colocate.top.feed import Picture
from colocate.top.marks import ALARM, DIM, SERVICE_COLOUR, STRANGER, bar, cell, clock, joined, lines, marks, title

_LABEL = 25  # columns before a chart
_OLD_S = 3.0  # a latency of that age is told with its age
_WIDE = 70  # columns beyond which names, bars and sets of cores get more room


def header(picture: Picture, width: int, *, paused: bool) -> Text:
    """The run in two lines, and a third one where it does not answer."""
    document = picture.document
    state = "ended" if picture.ended else str(document["state"])
    strikes = f", {document['strikes']} strikes" if document["strikes"] else ""
    first = Text.assemble(
        (" colocate top ", "bold #000000 on #ffffff"),
        (" PICTURE PAUSED ", f"bold #000000 on {ALARM}") if paused else "",
        f" run {document['run']}  ",
        (f"{state}{strikes}", f"bold {ALARM}" if state != "running" or strikes else "bold"),
        f" {clock(document.get('elapsed_s', 0.0))}  SLO p{document['percentile']:g} <= {document['slo_ms']:g} ms",
        f"  policy {document['policy']}",
    )
    second = Text(f" log {_end_of(str(document['log']), width - 5)}", DIM)
    rows = [first, second]
    if picture.remark:
        rows.append(Text(f" {picture.remark}", f"bold #000000 on {ALARM}"))
    for row in rows:
        row.truncate(width, overflow="ellipsis")
    return lines(rows)


def service_panel(document: Mapping[str, Any], width: int, height: int) -> Text:
    """The load, CPU and latency of memcached with the last minute of each; the latency against the SLO."""
    service, history = document.get("service"), document.get("history", {})
    if service is None:
        return title(width, "MEMCACHED")
    cores = f"cores {format_ranges(service['cores'])}, " if service["cores"] else ""
    told = f"{cores}{service['threads']} threads, {service['connections'] or 0} connections, the last minute"
    gone = Text("" if service["alive"] else "NOT RUNNING  ", ALARM)
    rows = [title(width, Text("M ", SERVICE_COLOUR), "MEMCACHED  ", gone, Text(told, "not bold"))]
    per = max(1, (height - 1) // 3)
    for name, key, shape in (("QPS", "qps", ",.0f"), ("CPU", "cpu_cores", ".2f")):
        past = history.get(key, [])
        label = cell(
            f" {name} {_number(service[key], shape):>8} max {_number(max(filter(None, past), default=None), shape)}",
            _LABEL,
        )
        rows += _labelled([label], chart(past, width - _LABEL, per, SERVICE_COLOUR))
    tall = max(2, height - 1 - 2 * per)  # two rows at least, so that the SLO can lie between them
    latency = chart(history.get("latency_ms", []), width - _LABEL, tall, SERVICE_COLOUR, limit=document["slo_ms"])
    around = _latency_labels(document)
    above = [cell("", _LABEL)] * (tall - tall // 2 - 1)  # so that the SLO stands right below its line
    return lines(rows + _labelled([*above, *around], latency))


def _latency_labels(document: Mapping[str, Any]) -> tuple[Text, Text]:
    """What stands right above and right below the line of the SLO."""
    service, slo_ms = document["service"], document["slo_ms"]
    value, age_s = service["p95_ms"], service["p95_age_s"]
    known = [v for v in document["history"].get("latency_ms", []) if v is not None]
    over, late = sum(v > slo_ms for v in known), value is not None and value > slo_ms
    remark = f" {age_s:.0f}s old" if value is not None and age_s > _OLD_S else " OVER" if late else ""
    now = f" p{document['percentile']:<3g}{_number(value, '.2f'):>8} ms{remark}"
    limit = f" SLO {slo_ms:>7.2f} ms{f' {over}/{len(known)} s' if over else ''}"
    alarm = f"bold {ALARM}"
    return cell(now, _LABEL, alarm if late else ""), cell(limit, _LABEL, alarm if over else "")


def jobs_panel(document: Mapping[str, Any], width: int, height: int) -> Text:
    """A row a job; where there is no room for all, those that have ended go first, and a last line counts the rest."""
    jobs, who = document.get("jobs", {}), marks(document)
    ended = sum(job["state"] in ENDED for job in jobs.values())
    long = max([12, *map(len, jobs)])
    name = min(long, 14 if width <= _WIDE + 10 else 24)
    held = 8 if width < 100 else 14
    done = max(4, min(40, width - name - held - 48))
    head = (
        cell(f"JOBS {ended}/{len(jobs)} done", name + 3), cell("state", 9), cell("cores", held),
        cell("thr", 4, right=True), cell("fails", 6, right=True), cell("run", 8, right=True),
        cell("  progress", done + 7), cell("left", 8, right=True),
    )  # fmt: skip
    rows = [title(width, *head)]
    shown = _most_telling(jobs, height - 1)
    for job_name in shown:
        job, mark = jobs[job_name], who.get(job_name, STRANGER)
        alarming = job["state"] in {JobState.FAILED, JobState.STOPPED}
        style = f"bold {ALARM}" if alarming else DIM if job["state"] != JobState.RUNNING else ""
        share = job["progress"]
        rows.append(
            joined(
                Text(f" {mark.letter} ", f"bold {mark.colour}"),
                cell(job_name, name, style if job["state"] in ENDED else mark.colour),
                cell(f" {job['state']}", 10, style),
                cell(_ranges(job["cores"]), held, style),
                cell(str(job["threads"]), 4, style, right=True),
                cell(str(job["failures"] or ""), 6, f"bold {ALARM}", right=True),
                cell(clock(job["run_s"]) if job["run_s"] else "-", 8, style, right=True),
                Text("  "),
                Text(bar(share or 0.0, done), f"{mark.colour} on #2a2a2a"),
                cell(f"{share:.0%}" if share is not None else "?", 5, style, right=True),
                cell(_left(job), 8, style, right=True),
            )
        )
    if missing := len(jobs) - len(shown):
        rest = [job["state"] for name, job in jobs.items() if name not in shown]
        counts = ", ".join(f"{rest.count(state)} {state}" for state in dict.fromkeys(rest))
        rows.append(Text(f"   and {missing} more: {counts}", DIM))
    return lines(rows)


def moves_panel(document: Mapping[str, Any], width: int, height: int) -> Text:
    """The last moves, the newest first: how long ago, what, from which cores to which, why."""
    who, now_s = marks(document), document.get("elapsed_s", 0.0)
    name = 13 if width <= _WIDE + 10 else 16
    held = 13 if width < 100 else 19
    head = (cell("MOVES  ago", 10), cell("  what", 9), cell("whom", name + 2), cell(" cores", held), " why")
    rows = [title(width, *head)]
    for move in document.get("moves", [])[:-height:-1] if height > 1 else []:
        mark = who.get(move["target"], STRANGER)
        rows.append(
            joined(
                cell(clock(max(0.0, now_s - move["t"])), 11, DIM, right=True),
                cell(f"  {move['kind']}", 9),
                Text(f"{mark.letter} ", f"bold {mark.colour}"),
                cell(move["target"], name, mark.colour),
                cell(f" {_ranges(move['before'])} → {_ranges(move['cores'])}", held),
                cell(f" {move['reason']}", max(1, width - name - held - 22)),
            )
        )
    return lines(rows)


def _labelled(labels: Sequence[Text], rows: Sequence[Text]) -> list[Text]:
    """The rows of a chart behind their labels, of which there may be fewer."""
    blank = cell("", _LABEL)
    return [joined(label, row) for label, row in zip_longest(labels, rows, fillvalue=blank)]


def _most_telling(jobs: Mapping[str, Mapping[str, Any]], rows: int) -> list[str]:
    """The names that fit, in the catalogue's order: those of waiting and, before them, of ended jobs are left out."""
    if len(jobs) <= rows:
        return list(jobs)
    worth = {JobState.FAILED: 0, JobState.WAITING: 2, JobState.FINISHED: 3, JobState.STOPPED: 3}
    best = sorted(jobs, key=lambda name: worth.get(jobs[name]["state"], 1))[: max(0, rows - 1)]
    return [name for name in jobs if name in best]


def _left(job: Mapping[str, Any]) -> str:
    if job["state"] in ENDED or job["state"] == JobState.WAITING:
        return ""
    return clock(job["eta_s"]) if job["eta_s"] is not None else "?"


def _ranges(cores: Sequence[int]) -> str:
    return format_ranges(cores) if cores else "-"


def _number(value: float | None, shape: str) -> str:
    return "?" if value is None else format(value, shape)


def _end_of(path: str, width: int) -> str:
    return path if len(path) <= width else f"…{path[-(width - 1) :]}"
