import json
import math
import threading

from hypothesis import given
from hypothesis import strategies as st

from colocate.metrics import MetricsWriter, finite, metrics_path, read, sort_out
from tests.memcached_fixture import eventually


def test_records_are_read_back(tmp_path):
    path = metrics_path(tmp_path / "log20260412_111346_2.txt")
    assert path.name == "log20260412_111346_2.jsonl"
    writer = MetricsWriter(path)
    for t in range(100):
        writer.write({"t": t, "wait_us": math.inf if t else 1.5, "cores": [0, 1], "deep": [{"x": math.nan}]})
    writer.close()
    writer.close()
    records = list(read(path))
    assert len(records) == 100
    assert records[0] == {"t": 0, "wait_us": 1.5, "cores": [0, 1], "deep": [{"x": None}]}
    assert records[1]["wait_us"] is None, "what is not finite is null"
    assert writer.lost == 0


def test_what_json_does_not_know_is_no_reason_to_stop(tmp_path):
    writer = MetricsWriter(tmp_path / "m.jsonl")
    writer.write({"cores": frozenset({1}), "path": tmp_path, "bytes": b"x", ("a", 1): 2})
    writer.close()
    assert list(read(writer.path)) == [{"cores": [1], "path": str(tmp_path), "bytes": "b'x'", "('a', 1)": 2}]


def test_a_record_may_change_after_it_was_written(tmp_path):
    writer, cores = MetricsWriter(tmp_path / "m.jsonl"), [0]
    writer.write({"cores": cores})
    cores.append(1)
    writer.close()
    assert list(read(writer.path)) == [{"cores": [0]}]


def test_a_torn_line_is_skipped(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"t": 1}\n[3]\n' + "[" * 100_000 + '\n{"t": 2, "x')
    assert list(read(path)) == [{"t": 1}]


def test_a_disk_that_refuses_costs_records_and_not_the_run(tmp_path):
    writer = MetricsWriter(tmp_path / "none/m.jsonl")
    writer.write({"t": 1})
    eventually(lambda: writer.lost == 1, "a lost record")
    (tmp_path / "none").mkdir()
    writer.write({"t": 2})
    writer.close()
    assert list(read(writer.path)) == [{"t": 2}]
    assert writer.lost == 1


def test_records_reach_the_disk_while_the_run_goes_on(tmp_path):
    writer = MetricsWriter(tmp_path / "m.jsonl")
    writer.write({"t": 1})
    eventually(lambda: writer.path.exists() and list(read(writer.path)) == [{"t": 1}], "a record on disk")
    writer.close()


def test_its_thread_ends(tmp_path):
    before = threading.active_count()
    writer = MetricsWriter(tmp_path / "m.jsonl")
    writer.close()
    assert threading.active_count() == before
    assert not writer.path.exists(), "no record, no file"


numbers = st.floats() | st.integers() | st.none() | st.text() | st.booleans()
documents = st.recursive(numbers, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


@given(documents)
def test_whatever_is_measured_becomes_json(document):
    text = json.dumps(finite(document), allow_nan=False)
    assert finite(json.loads(text)) == json.loads(text)


def test_a_tick_keeps_a_figure_that_was_not_known_and_loses_what_has_another_shape():
    whole = {"t": 1.5, "moves": [["pin", "memcached", [0]]], "qps": None, "latency_ms": 0.3, "rules": [], "reason": "x"}
    broken = whole | {"qps": "many", "latency_ms": float("inf"), "rules": None, "reason": 7}
    nowhere = [whole | {"t": t} for t in (None, "1", -1, 1e300, float("nan"))]
    assert sort_out([whole, broken, *nowhere, whole | {"moves": [["pin"]]}]).ticks == (
        whole,
        {"t": 1.5, "moves": whole["moves"]},
    )
