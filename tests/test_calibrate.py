import math
import re
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.calibrate import plan
from colocate.calibration_text import Measured, calibration_text, job_figures
from colocate.jobs import JobSpec, load_catalogue
from colocate.load.curves import Beside, Scan, cpu_figures, curve_figures, pooled
from colocate.load.scan import Point
from colocate.sim.calibration import parse_calibration
from colocate.sim.service import LOADS, ServiceModel, Surroundings
from colocate.topology import Topology
from tests.live import colocate, masks
from tests.memcached_fixture import running_memcached

pytestmark = pytest.mark.live

COLUMNS = {"min": 0.3, "p5": 0.4, "p10": 0.45, "p50": 0.65, "p67": 0.73, "p75": 0.78, "p80": 0.82, "p85": 0.87,
           "p90": 0.92, "p95": 1.0, "p99": 1.6, "p999": 4.0, "p9999": 8.0}  # fmt: skip


def point(qps: float, p95_us: float, *, late: str = "", cpu_cores: float | None = None, lost: int = 0) -> Point:
    latencies = {name: share * p95_us for name, share in COLUMNS.items()}
    used = 0.02 + 10e-6 * qps if cpu_cores is None else cpu_cores
    return Point(round(qps), qps, latencies, used, 5.0 + qps / 1e4, 0.1 + 5e-6 * qps, late, lost)


def scan(cores: int, capacity_qps: float) -> Scan:
    points = [point(share * capacity_qps, 100 + 400 * share**4) for share in LOADS for _ in range(2)]
    return Scan(2, cores, [capacity_qps, 1.1 * capacity_qps, 0.9 * capacity_qps], points, 0)


def measured(topology: Topology | None = None) -> Measured:
    pair = Beside(point(20_000, 100), point(20_000, 110), 1.0)
    return Measured(
        catalogue="demo", host='a "vm"', begun=datetime(2026, 11, 24, tzinfo=UTC), quick=False,
        topology=topology or Topology.flat(2), threads=2, closed_qps=80_000.0,
        scans={1: scan(1, 100_000), 2: scan(2, 160_000)}, shared_with_generator=True,
        beside=[pair], shared_idle=[pair], shared_full=[Beside(point(20_000, 100), point(20_000, 4000), 1.0)],
        shared_full_capacity=0.5, runs={"canneal": {(1, 1): [20.0, 21.0], (2, 2): [11.0, 11.5], (2, 1): [22.0, 22.5]}},
        moves={kind: [0.001, 0.002, 0.003] for kind in
               ("pin", "resize", "pause", "resume", "create", "start", "notice")},
        warnings=("the machine was busy",),
    )  # fmt: skip


def loaded(of: Measured):
    return parse_calibration(tomllib.loads(calibration_text(of)), "made", "made.toml")


def test_what_is_written_is_a_calibration_that_the_simulator_takes():
    made = loaded(measured())
    assert made.machine == 'a "vm"'
    assert made.scenario.open_loop
    assert (made.scenario.qps_min, made.scenario.qps_max) == (3200, 24000)
    assert "shared the last one with the load generator" in made.description
    assert "The machine was busy." in made.description
    assert made.delays.pin.median_s == 0.002
    assert made.jobs["canneal"].alone_s == 20.5


def test_every_figure_tells_value_spread_and_source():
    table = tomllib.loads(calibration_text(measured()))
    figures = [*table["service"].values(), *table["moves"].values(), *table["jobs"]["canneal"].values()]
    figures = [figure for figure in figures if not isinstance(figure, list)] + [
        figure for curve in table["service"]["curves"] for figure in curve.values() if isinstance(figure, dict)
    ]
    assert len(figures) > 30
    for figure in figures:
        assert set(figure) == {"value", "low", "high", "source"}
        assert figure["source"].startswith('colocate calibrate, a "vm", 2026-11-24')


def test_the_model_gives_back_what_was_measured():
    service = ServiceModel(loaded(measured()).service, threads=2)
    state = service.state(50_000, 1, Surroundings())
    assert state.capacity_qps == pytest.approx(100_000)
    assert state.latency.quantile(0.95) == pytest.approx(100 + 400 * 0.5**4, rel=0.01)
    assert state.latency.quantile(0.5) == pytest.approx(0.65 * (100 + 400 * 0.5**4), rel=0.01)
    light = service.state(10_000, 1, Surroundings())
    assert light.cpu_cores == pytest.approx(0.02 + 10e-6 * 10_000, rel=0.01)
    assert service.state(50_000, 2, Surroundings()).capacity_qps == pytest.approx(160_000)


def test_smt_siblings_are_told_by_position_not_by_id():
    pair = frozenset({4, 6})
    cores = Topology(pair, dict.fromkeys(pair, pair), dict.fromkeys(pair, pair), dict.fromkeys(pair, 0))
    table = tomllib.loads(calibration_text(measured(cores)))
    assert table["siblings"] == [[0, 1]]
    assert "sibling" in table["jobs"]["canneal"]


def test_a_job_that_scales_perfectly_has_no_serial_part_and_one_that_does_not_scale_all_of_it():
    flat = Topology.flat(4)
    perfect = {(n, n): [40.0 / n] for n in (1, 2, 3, 4)} | {(4, 1): [52.0]}
    figures = job_figures(perfect, flat, "here")
    assert figures["serial"].value == pytest.approx(0.0)
    assert figures["crowding"].value == pytest.approx(0.1)
    assert figures["spread"].value == 0.0
    assert "not known" in figures["spread"].source
    stuck = {(n, n): [40.0] for n in (1, 2, 3, 4)}
    assert job_figures(stuck, flat, "here")["serial"].value == 0.99


def test_a_core_beside_a_busy_sibling_is_slower():
    pairs = [frozenset({0, 1}), frozenset({2, 3})]
    siblings = {core: pair for pair in pairs for core in pair}
    smt = Topology(frozenset(range(4)), siblings, siblings, dict.fromkeys(range(4), 0))
    runs = {(1, 1): [40.0], (2, 2): [20.0], (4, 4): [40.0 / 4 / 0.6]}
    assert job_figures(runs, smt, "here")["sibling"].value == pytest.approx(0.6)


def test_points_between_the_measured_loads_are_read_off_a_line_and_never_fall():
    few = Scan(2, 1, [100_000.0], [point(10_000, 120), point(50_000, 100), point(100_000, 500)], 2)
    curve = curve_figures(few, "here")["p95_us"]
    assert curve.value[0] == 110  # the first two are pooled
    assert curve.value[LOADS.index(0.5)] == 110
    assert curve.value[LOADS.index(0.6)] == pytest.approx(110 + 0.2 * 390)
    assert list(curve.value) == sorted(curve.value)


@given(st.lists(st.floats(1.0, 1e6), min_size=1, max_size=20))
def test_pooling_never_falls_and_keeps_the_mean(values):
    found = pooled(values)
    assert len(found) == len(values)
    assert all(b >= a * (1 - 1e-9) for a, b in pairwise(found))
    assert math.isclose(sum(found), sum(values), rel_tol=1e-6)


def test_the_cpu_line_holds_in_the_scenarios_range():
    # Towards the capacity a request costs less: those points must not tilt the line.
    points = [point(qps, 100) for qps in (5_000, 10_000, 20_000)] + [point(90_000, 100, cpu_cores=0.5)]
    figures = cpu_figures(Scan(2, 1, [100_000.0], points, 0), 4_000, 24_000, "here")
    assert figures["cpu_us"].value == pytest.approx(10.0)
    assert figures["cpu_idle_cores"].value == pytest.approx(0.02)


def test_a_load_that_is_lost_or_queues_is_not_kept_up_with():
    assert point(1000, 200).kept_up
    assert not point(1000, 200, lost=1).kept_up
    assert not point(1000, 6000).kept_up


def test_the_estimate_is_the_sum_of_what_will_be_done():
    jobs = load_catalogue("demo")
    full, quick = plan(jobs, 2, 2, quick=False), plan(jobs, 2, 2, quick=True)
    alone_s = sum(job.runtime_s[1] + job.runtime_s[2] + job.runtime_s[1] for job in jobs)
    assert full.runs["canneal"] == ((1, 1), (2, 2), (2, 1))
    assert full.jobs_s == pytest.approx(2 * (alone_s + 0.6 * 12))
    assert quick.total_s < 0.6 * full.total_s
    assert full.told().startswith(f"about {round(full.total_s / 60)} min: ")
    assert plan(jobs, 4, 2, quick=False).widths == (1, 2)


def test_an_unknown_run_time_is_told():
    jobs = [JobSpec("secret", "image", ("./x",))]
    assert "run time unknown, taken as 60 s: secret" in plan(jobs, 2, 1, quick=True).told()


@pytest.fixture
def server():
    with running_memcached() as made:
        yield made


def calibrating(tmp_path, server, *more):
    words = [
        "calibrate",
        "--memcached-ip",
        server.ip,
        "--port",
        str(server.port),
        "--state-dir",
        str(tmp_path / "state"),
    ]
    return colocate(*words, "--runtime", "process", *more, cwd=tmp_path)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--jobs", "nonsense"], "jobs 'nonsense'"),
        (["--jobs", "demo", "--output", "/nowhere/x.toml"], "--output /nowhere/x.toml: cannot be written"),
        (["--jobs", "demo", "--output", "x.txt"], "--output x.txt: no .toml"),
        (["--jobs", "demo", "--runtime", "magic"], "--runtime"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_touched(tmp_path, server, more, said):
    before = masks(server.pid)
    done = calibrating(tmp_path, server, *more)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert re.search(said, done.stderr)
    assert masks(server.pid) == before
    assert not list(tmp_path.glob("*.toml"))


def test_a_measurement_with_one_late_point_dropped_still_makes_a_curve():
    good = [p for p in scan(1, 100_000).points if p.target_qps != 50_000]
    made = loaded(
        replace(measured(), scans={1: replace(scan(1, 100_000), points=good, dropped=2), 2: scan(2, 160_000)})
    )
    assert ServiceModel(made.service, 2).state(50_000, 1, Surroundings()).latency.quantile(0.95) > 100
