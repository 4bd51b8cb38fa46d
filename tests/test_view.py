import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.errors import UserError
from colocate.topology import Topology, load_topology, read_topology
from colocate.view import History, Signal
from tests.builders import view


def test_a_window_has_mean_deviation_and_slope():
    history = History()
    for t in range(11):
        history.add("x", float(t), 3.0 * t + 1)
    window = history.series()["x"].window(5)
    assert (window.samples, window.minimum, window.maximum) == (6, 16.0, 31.0)
    assert window.mean == pytest.approx(23.5)
    assert window.slope == pytest.approx(3.0)
    assert window.std == pytest.approx(statistics.pstdev([16, 19, 22, 25, 28, 31]))


def test_a_view_is_a_picture_that_later_samples_do_not_change():
    history = History(keep_s=5)
    history.add("x", 0.0, 1.0)
    before = history.series()["x"]
    for t in range(1, 100):
        history.add("x", float(t), 100.0)
    assert before.window(60).maximum == 1.0
    assert history.series()["x"].window(60).samples <= 11


def test_what_is_not_known_is_not_counted():
    history = History()
    for value in (None, math.nan, math.inf):
        history.add("x", 0.0, value)
    assert history.series() == {}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_a_windows_figures_are_the_definitions(xs):
    history = History()
    for t, x in enumerate(xs):
        history.add("x", float(t), x)
    window = history.series()["x"].window(1e9)
    assert window.mean == pytest.approx(statistics.fmean(xs), abs=1e-6)
    assert window.std == pytest.approx(statistics.pstdev(xs), abs=1e-3, rel=1e-6)


def test_a_signal_is_fresh_or_not():
    assert not Signal().fresh(1e9)
    assert Signal(1.0, 0.5).fresh(0.5)
    assert not Signal(1.0, 0.6).fresh(0.5)


def sysfs(root, cores="0-3", **files):
    base = root / "sys/devices/system/cpu"
    base.mkdir(parents=True)
    (base / "online").write_text(cores + "\n")
    for name, text in files.items():
        path = base / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_topology_from_sys(tmp_path):
    files = {f"cpu{c}__topology__thread_siblings_list": f"{c % 2},{c % 2 + 2}" for c in range(4)}
    files |= {f"cpu{c}__cache__index3__shared_cpu_list": "0-3" for c in range(4)}
    files |= {f"cpu{c}__cache__index0__shared_cpu_list": f"{c}" for c in range(4)}
    files |= {"cpu3__node1__x": ""}
    topology = read_topology(sysfs(tmp_path, **files))
    assert topology.siblings[0] == {0, 2}
    assert topology.cache[1] == {0, 1, 2, 3}
    assert topology.node == {0: 0, 1: 0, 2: 0, 3: 1}


def test_missing_facts_mean_that_nothing_is_shared(tmp_path):
    topology = read_topology(sysfs(tmp_path, "0,2"))
    assert topology.siblings == {0: {0}, 2: {2}}


def test_only_some_cores_are_managed():
    part = Topology.flat(4).only(frozenset({1, 3}))
    assert part.cores == {1, 3}
    assert part.cache[1] == {1, 3}
    with pytest.raises(UserError, match="core 7 is not on this machine"):
        Topology.flat(4).only(frozenset({1, 7}))


def test_topology_from_a_file(tmp_path):
    file = tmp_path / "t.json"
    file.write_text('{"siblings": {"0": "0-1", "1": "0-1"}, "node": {"1": 1}}')
    topology = load_topology(file)
    assert (topology.cores, topology.siblings[0], topology.node[1]) == ({0, 1}, {0, 1}, 1)
    file.write_text("[]")
    with pytest.raises(UserError, match="no topology"):
        load_topology(file)


@pytest.mark.parametrize("period_s", [0.05, 0.45, 0.55, 1.0, 5.0])
def test_a_rise_shows_however_far_apart_the_ticks_are(period_s):
    history = History()
    for tick in range(20):
        history.add("cpu_cores", tick * period_s, 0.2)
    assert not view(series=history.series()).rising(0.5)
    history.add("cpu_cores", 20 * period_s, 2.0)
    assert view(series=history.series()).rising(0.5)
    for tick in range(21, 40):
        history.add("cpu_cores", tick * period_s, 2.0)
    assert not view(series=history.series()).rising(0.5)
