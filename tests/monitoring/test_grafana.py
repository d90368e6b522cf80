"""The dashboard that Grafana imports: its layout, and that it asks for what is exported."""

import json
import re
from collections.abc import Iterator
from itertools import combinations

import pytest
from typer.testing import CliRunner

from negalign_ray import cli
from negalign_ray.monitoring.grafana import COLUMNS, dashboard
from negalign_ray.monitoring.series import OF_RUNS, SERIES, Kind

ALL = [*SERIES.values(), *OF_RUNS]
EXPORTED = {series.exported for series in ALL if series.kind is not Kind.HISTOGRAM} | {
    f"{series.exported}_{part}"
    for series in ALL
    if series.kind is Kind.HISTOGRAM
    for part in ("bucket", "sum", "count")
}
LABELS = {series.exported: set(series.labels) for series in ALL}


@pytest.fixture(scope="module")
def made() -> dict:
    return json.loads(json.dumps(dashboard()))


def all_panels(made: dict) -> Iterator[dict]:
    """Those of folded rows, too."""
    for panel in made["panels"]:
        yield panel
        yield from panel.get("panels", [])


def drawn(made: dict) -> list[dict]:
    return [panel for panel in all_panels(made) if panel["type"] != "row"]


def test_ids_are_unique(made):
    ids = [panel["id"] for panel in all_panels(made)]
    assert len(set(ids)) == len(ids) > 40


def test_panels_stay_inside_the_grid_and_do_not_overlap(made):
    unfolded = [panel["gridPos"] for panel in made["panels"]]
    groups = [unfolded] + [[inside["gridPos"] for inside in panel.get("panels", [])] for panel in made["panels"]]
    for group in groups:
        for place in group:
            assert 0 <= place["x"] < place["x"] + place["w"] <= COLUMNS, place
            assert place["y"] >= 0
            assert place["h"] >= 1
        for one, other in combinations(group, 2):
            side_by_side = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
            assert side_by_side or above, (one, other)


def test_the_rows_are_what_a_reader_looks_for_and_the_rest_is_folded(made):
    rows = [(panel["title"], panel["collapsed"]) for panel in made["panels"] if panel["type"] == "row"]
    assert rows[:4] == [("Learning", False), ("Roles", False), ("Rewards", False), ("Health", False)]
    assert all(folded and title.startswith("More of ") for title, folded in rows[4:])


def test_every_query_asks_for_exported_series_by_labels_that_they_have(made):
    for panel in drawn(made):
        for target in panel["targets"]:
            names = re.findall(r"\bray_\w+", target["expr"])
            assert names, target
            assert set(names) <= EXPORTED, target
            known = LABELS[re.sub("_bucket$", "", names[0])]
            by = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"])))) - {"le"}
            assert by <= known, target
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= by, target
            assert target["expr"].count('{run=~"$run"}') == len(names), "every series is of the chosen runs"


def test_every_metric_of_the_catalogue_is_on_the_dashboard(made):
    asked = " ".join(target["expr"] for panel in drawn(made) for target in panel["targets"])
    for series in ALL:
        assert re.search(rf"\b{series.exported}(_bucket)?{{", asked), series


def test_every_panel_has_a_unit_a_legend_and_an_explanation(made):
    for panel in drawn(made):
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
    seconds = next(panel for panel in drawn(made) if panel["title"] == "Time of a step")
    assert seconds["fieldConfig"]["defaults"]["unit"] == "s"


def test_variables_choose_the_datasource_the_runs_and_the_window_of_rates(made):
    variables = {variable["name"]: variable for variable in made["templating"]["list"]}
    assert {name: variable["type"] for name, variable in variables.items()} == {
        "datasource": "datasource",
        "run": "query",
        "window": "interval",
    }
    assert variables["run"]["definition"] == "label_values(ray_negalign_run_planned_steps, run)"
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(made["panels"])))
    assert used == set(variables)


def test_the_command_prints_it():
    result = CliRunner().invoke(cli.app, ["grafana"])
    assert result.exit_code == 0
    assert json.loads(result.output) == dashboard()
