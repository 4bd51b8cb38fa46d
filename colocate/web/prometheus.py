"""What Prometheus is told of a run: one table of definitions, of which the exposition and docs/metrics.md are made.

Names and units are as https://prometheus.io/docs/practices/naming/ wants them. What a run does not know is left out.
`python -m colocate.web.prometheus` prints the table for docs/metrics.md.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from colocate import __version__
from colocate.errors import needs
from colocate.jobs import JobState

with needs("web"):
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # which every Prometheus reads
STATES = ("starting", "running", "safe")

Kind = Literal["counter", "gauge", "histogram"]
Figures = Mapping[str, object]
Found = Iterable[tuple[tuple[str, ...], object]]  # the labels' values, and what there is under them
Read = Callable[[Figures], Found]
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric.

    Attributes:
        name: in full, but for what a histogram appends.
        kind: its type.
        unit: what one is; empty for a flag.
        labels: their names.
        help: one sentence.
        read: where it stands in the figures; what is no finite number or histogram there, is left out.
    """

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    help: str
    read: Read


def _at(document: object, path: str) -> object:
    """What stands in nested mappings under the keys of a dotted path; None where nothing does."""
    for key in filter(None, path.split(".")):
        document = document.get(key) if isinstance(document, Mapping) else None
    return document


def _table(document: object, path: str) -> Mapping[str, object]:
    found = _at(document, path)
    return found if isinstance(found, Mapping) else {}


def _times(value: object, scale: float) -> object:
    return value * scale if isinstance(value, int | float) and scale != 1 else value


def _one(path: str, scale: float = 1.0) -> Read:
    return lambda figures: [((), _times(_at(figures, path), scale))]


def _each(path: str, inner: str = "") -> Read:
    """A sample for each key of a mapping, which is its label."""
    return lambda figures: [((key,), _at(found, inner)) for key, found in _table(figures, path).items()]


def _tally(name: str) -> Read:
    """One of the controller's counts; what it does not have did not happen."""
    return lambda figures: [((), _table(figures, "counts").get(name, 0))] if "counts" in figures else []


def _by_percentile(path: str) -> Read:
    def read(figures: Figures) -> Found:
        percentile = _at(figures, "status.percentile")
        if isinstance(percentile, int | float):
            yield (f"{percentile:g}",), _times(_at(figures, path), 1e-3)

    return read


def _state(figures: Figures) -> Found:
    now = _at(figures, "status.state")
    return [((state,), state == now) for state in STATES] if isinstance(now, str) else []


def _run(figures: Figures) -> Found:
    run, policy = _at(figures, "status.run"), _at(figures, "status.policy")
    return [((run, policy), 1)] if isinstance(run, str) and isinstance(policy, str) else []


def _moves(figures: Figures) -> Found:
    found = _at(figures, "meter.moves")
    return [((str(kind), str(why)), count) for kind, why, count in found] if isinstance(found, list | tuple) else []


def _jobs_by_state(figures: Figures) -> Found:
    jobs = _at(figures, "status.jobs")
    if not isinstance(jobs, Mapping):
        return []
    states = [_at(job, "state") for job in jobs.values()]
    return [((state.value,), states.count(state.value)) for state in JobState]


def _over_slo(figures: Figures) -> Found:
    latency_ms, slo_ms = _at(figures, "status.service.p95_ms"), _at(figures, "status.slo_ms")
    if isinstance(latency_ms, int | float) and isinstance(slo_ms, int | float):
        return [((), latency_ms / slo_ms)]
    return []


DEFINITIONS = (
    Definition("colocate_up", "gauge", "", (), "Whether a run is in progress and answers.", lambda _: [((), 1)]),
    Definition("colocate_build_info", "gauge", "", ("version", "python"), "The program that answers; always 1.",
               lambda _: [((__version__, platform.python_version()), 1)]),
    Definition("colocate_run_info", "gauge", "", ("run", "policy"), "The run in progress and who decides; always 1.",
               _run),
    Definition("colocate_run_elapsed_seconds", "gauge", "seconds", (), "Time since the run's first decision.",
               _one("status.elapsed_s")),
    Definition("colocate_controller_state", "gauge", "", ("state",),
               "1 for the state that the controller is in, 0 for the others; safe: the safe policy has taken over.",
               _state),
    Definition("colocate_controller_cpu_seconds_total", "counter", "seconds", (),
               "CPU time of the controller's process, all its threads.", _one("cpu_s")),
    Definition("colocate_tick_duration_seconds", "histogram", "seconds", (),
               "Work of a tick: looking, deciding, moving.", _one("meter.work")),
    Definition("colocate_tick_lateness_seconds", "histogram", "seconds", (),
               "How late a tick began.", _one("meter.late")),
    Definition("colocate_actuator_latency_seconds", "histogram", "seconds", ("kind",),
               "From asking for a move until it had taken effect.", _each("meter.actuators")),
    Definition("colocate_moves_total", "counter", "moves", ("kind", "reason"),
               "Moves asked for; figures in a reason stand as N, and what comes after 60 series as other.", _moves),
    Definition("colocate_move_errors_total", "counter", "moves", ("kind",), "Moves that failed.",
               _each("meter.errors")),
    Definition("colocate_foreign_changes_total", "counter", "changes", (),
               "Changes by somebody else that were found and put right.", _tally("foreign_changes")),
    Definition("colocate_policy_strikes", "gauge", "strikes", (),
               "Failures of the acting policy; another policy begins at 0.", _one("strikes")),
    Definition("colocate_shadow_strikes", "gauge", "strikes", (), "Failures of the shadow policy.",
               _one("shadow_strikes")),
    Definition("colocate_regulator_interventions_total", "counter", "interventions", ("rule",),
               "Plans that the regulator changed.", _each("interventions")),
    Definition("colocate_signal_age_seconds", "gauge", "seconds", ("signal",),
               "Age of each of memcached's signals; absent until there has been one.", _each("signal_ages_s")),
    Definition("colocate_memcached_up", "gauge", "", (), "Whether memcached's process is there.",
               _one("status.service.alive")),
    Definition("colocate_memcached_restarts_total", "counter", "restarts", (),
               "How often memcached came back as another process.", _tally("service_restarts")),
    Definition("colocate_memcached_cores", "gauge", "cores", (), "Cores that memcached has.",
               _one("status.service.cores")),
    Definition("colocate_memcached_cpu_cores", "gauge", "cores", (), "CPU that memcached uses.",
               _one("status.service.cpu_cores")),
    Definition("colocate_memcached_runqueue_wait_seconds", "gauge", "seconds", (),
               "How long memcached's threads wait for a core, mean of a time slice.",
               _one("status.service.wait_us", 1e-6)),
    Definition("colocate_memcached_requests_per_second", "gauge", "requests per second", (),
               "Gets and sets that memcached serves.", _one("status.service.qps")),
    Definition("colocate_memcached_connections", "gauge", "connections", (), "Open connections of memcached.",
               _one("status.service.connections")),
    Definition("colocate_memcached_latency_seconds", "gauge", "seconds", ("percentile",),
               "The SLO's percentile of memcached's latency, as last measured.",
               _by_percentile("status.service.p95_ms")),
    Definition("colocate_memcached_slo_seconds", "gauge", "seconds", ("percentile",),
               "The SLO: what that percentile must not exceed.", _by_percentile("status.slo_ms")),
    Definition("colocate_memcached_latency_slo_ratio", "gauge", "ratio", (),
               "That percentile over its SLO; above 1 the SLO is broken.", _over_slo),
    Definition("colocate_slo_judged_seconds_total", "counter", "seconds", (),
               "Time in which there was a fresh latency to hold against the SLO.", _one("meter.judged_s")),
    Definition("colocate_slo_violation_seconds_total", "counter", "seconds", (),
               "The part of that time in which the latency was over the SLO.", _one("meter.broken_s")),
    Definition("colocate_jobs", "gauge", "jobs", ("state",), "Batch jobs in each state.", _jobs_by_state),
    Definition("colocate_job_cores", "gauge", "cores", ("job",), "Cores that a job holds.",
               _each("status.jobs", "cores")),
    Definition("colocate_job_progress_ratio", "gauge", "ratio", ("job",),
               "Share of a job's work that is done; absent where its work is not known.",
               _each("status.jobs", "progress")),
    Definition("colocate_job_run_seconds", "gauge", "seconds", ("job",), "How long a job has run, pauses left out.",
               _each("status.jobs", "run_s")),
    Definition("colocate_job_failures_total", "counter", "failures", ("job",), "How often a job has failed.",
               _each("status.jobs", "failures")),
    Definition("colocate_core_busy_ratio", "gauge", "ratio", ("core",), "Share of time in which a core was busy.",
               _each("status.cores", "busy")),
    Definition("colocate_can_share", "gauge", "", (),
               "Whether jobs may run on memcached's cores at idle priority here.", _one("status.can_share")),
)  # fmt: skip
_UP, _BUILD = DEFINITIONS[:2]


class Collector:
    """One scrape: the metrics of one document of figures; None where no run answers."""

    def __init__(self, figures: Figures | None) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Family]:
        """Each metric of which there is something to tell."""
        if self._figures is None:
            down = GaugeMetricFamily(_UP.name, _UP.help)
            down.add_metric((), 0)
            yield from (down, _family(_BUILD, {}))
            return
        for definition in DEFINITIONS:
            family = _family(definition, self._figures)
            if family.samples:
                yield family


def exposition(figures: Figures | None) -> tuple[bytes, str]:
    """The answer to a scrape and its content type.

    Args:
        figures: what the control socket of a run answers to `figures`; None where no run answers.
    """
    registry = CollectorRegistry()
    registry.register(Collector(figures))
    return generate_latest(registry), CONTENT_TYPE


def table() -> str:
    """The definitions as a Markdown table."""
    rows = [f"| `{d.name}` | {d.kind} | {d.unit} | {', '.join(d.labels)} | {d.help} |" for d in DEFINITIONS]
    return "\n".join(["| metric | type | unit | labels | what it tells |", "|---|---|---|---|---|", *rows]) + "\n"


def _family(definition: Definition, figures: Figures) -> Family:
    name, text, labels = definition.name, definition.help, definition.labels
    if definition.kind == "histogram":
        histogram = HistogramMetricFamily(name, text, labels=labels)
        for values, found in definition.read(figures):
            if buckets := _buckets(_at(figures, "meter.bounds_s"), _at(found, "counts")):
                histogram.add_metric(values, buckets, _number(_at(found, "sum_s")))
        return histogram
    family = (CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily)(name, text, labels=labels)
    for values, found in definition.read(figures):
        if (number := _number(found)) is not None:
            family.add_metric(values, number)
    return family


def _number(found: object) -> float | None:
    """A finite number; a list counts its elements."""
    if isinstance(found, list | tuple):
        return len(found)
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def _buckets(bounds_s: object, counts: object) -> list[tuple[str, float]]:
    """Upper bound and how many are under it, the last one without a bound; none where it is no histogram."""
    if not isinstance(bounds_s, list | tuple) or not isinstance(counts, list | tuple):
        return []
    if len(counts) != len(bounds_s) + 1:
        return []
    return list(zip([*(f"{bound:g}" for bound in bounds_s), "+Inf"], accumulate(counts), strict=True))


if __name__ == "__main__":
    sys.stdout.write(table())
