"""The Grafana dashboard asks for metrics that there are, in PromQL that promtool accepts."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

from colocate.web.prometheus import DEFINITIONS
from tests.promtool import promtool

DASHBOARD = json.loads((Path(__file__).parent.parent / "docs/grafana/colocate.json").read_text(encoding="utf-8"))
PANELS = DASHBOARD["panels"]
TARGETS = [(target["expr"], target["legendFormat"]) for panel in PANELS for target in panel["targets"]]
BY_NAME = {definition.name: definition for definition in DEFINITIONS}


def definition_of(series: str):
    name = re.sub("_bucket$", "", series)
    assert (name != series) == (BY_NAME[name].kind == "histogram"), series
    return BY_NAME[name]


def test_every_metric_and_label_that_it_names_exists():
    for expr, legend in TARGETS:
        series = re.findall(r"colocate_\w+", expr)
        assert series, expr
        for name in series:
            labels = {*definition_of(name).labels, "le"}
            named = {word for words in re.findall(r"by \(([^)]*)\)", expr) for word in words.split(", ")}
            assert named | set(re.findall(r"{{(\w+)}}", legend)) <= labels, (expr, legend)


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    cells = [
        {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
        for g in (panel["gridPos"] for panel in PANELS)
    ]
    assert all(not one & other for one, other in combinations(cells, 2))
    assert all(x < 24 for cell in cells for x, _ in cell)


def test_the_data_source_is_the_viewers_choice():
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["DS_PROMETHEUS"]["type"] == "datasource"
    asked = [*PANELS, *(target for panel in PANELS for target in panel["targets"]), variables["instance"]]
    assert {json.dumps(thing["datasource"]) for thing in asked} == {
        json.dumps({"type": "prometheus", "uid": "${DS_PROMETHEUS}"})
    }


def test_promtool_understands_every_expression(tmp_path):
    rules = [
        {"record": f"panel:{n}", "expr": re.sub(r"\$__(rate_interval|range)", "1m", expr)}
        for n, (expr, _) in enumerate(TARGETS)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    done = promtool("rules", str(file))
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    assert f"{len(TARGETS)} rules found" in done.stdout.decode()
