"""A Grafana dashboard of every series: the important ones in four rows, all others in folded rows below.

datasource and run are variables at its top; every query begins with a name of `series.py`
"""

from collections.abc import Sequence
from itertools import count
from typing import Any

from negalign_ray.monitoring.panels import ROWS, Panel, other_rows
from negalign_ray.monitoring.series import PLANNED_STEPS

Json = dict[str, Any]
UID, SCHEMA_VERSION = "negalign-ray", 39
COLUMNS, PANEL_WIDTH, PANEL_HEIGHT = 24, 8, 8
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
UNITS = {"s": "s", "0..1": "percentunit", "tokens/s": "suffix: tok/s"}  # others are plain numbers, told on the axis


def dashboard() -> Json:
    """Import it by Dashboards > New > Import."""
    ids, y, panels = count(1), 0, []
    for title, row in ROWS.items():
        y += 1
        panels.append(_row(title, next(ids), y - 1))
        for index, panel in enumerate(row):
            panels.append(_panel(panel, next(ids), index, y))
        y += _height(row)
    for title, others in other_rows():
        inside = [_panel(panel, next(ids), index, y + 1) for index, panel in enumerate(others)]
        panels.append(_row(title, next(ids), y, inside))
        y += 1
    return {
        "uid": UID,
        "title": "negalign-ray",
        "description": "Runs of negalign-ray, from Ray's metrics. Made by `negalign-ray grafana`.",
        "tags": ["negalign-ray", "ray"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,  # one crosshair for all panels
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }


# -- Grafana's JSON --------------------------------------------------------------------------------------------


def _height(row: Sequence[Panel]) -> int:
    per_line = COLUMNS // PANEL_WIDTH
    return -(-len(row) // per_line) * PANEL_HEIGHT


def _row(title: str, panel_id: int, y: int, inside: Sequence[Json] = ()) -> Json:
    """With panels inside it is folded."""
    return {
        "id": panel_id,
        "type": "row",
        "title": title,
        "collapsed": bool(inside),
        "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        "panels": list(inside),
    }


def _panel(panel: Panel, panel_id: int, index: int, y: int) -> Json:
    per_line = COLUMNS // PANEL_WIDTH
    position = {"x": index % per_line * PANEL_WIDTH, "y": y + index // per_line * PANEL_HEIGHT}
    return {
        "id": panel_id,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": DATASOURCE,
        "gridPos": {**position, "w": PANEL_WIDTH, "h": PANEL_HEIGHT},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
            }
            for number, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel.kind),
    }


def _field(panel: Panel) -> Json:
    defaults: Json = {"unit": UNITS.get(panel.unit, "short"), "noValue": "none yet"}
    if panel.kind == "stat":
        return defaults
    label = "" if panel.unit in UNITS else panel.unit
    defaults["custom"] = {"drawStyle": "line", "lineWidth": 2, "fillOpacity": 8, "spanNulls": True, "axisLabel": label}
    return defaults


def _options(kind: str) -> Json:
    if kind == "stat":
        return {"colorMode": "value", "graphMode": "area", "reduceOptions": {"calcs": ["lastNotNull"]}}
    legend = {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull"]}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def _variables() -> list[Json]:
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0},
        {
            "name": "run",
            "label": "Run",
            "type": "query",
            "datasource": DATASOURCE,
            "query": {"query": f"label_values({PLANNED_STEPS.exported}, run)", "refId": "run"},
            "definition": f"label_values({PLANNED_STEPS.exported}, run)",
            "refresh": 2,  # whenever the time range changes
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".+",
            "current": {"text": ["All"], "value": ["$__all"]},
            "hide": 0,
        },
        {
            "name": "window",
            "label": "Rates over",  # several steps, or a rate is all peaks
            "type": "interval",
            "query": "1m,5m,10m,30m,2h",
            "current": {"text": "10m", "value": "10m"},
            "hide": 0,
        },
    ]
