"""The few kinds of panels that the dashboards are made of, so that all of them look and behave alike."""

from __future__ import annotations

import re
from typing import Any

Json = dict[str, Any]

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
SCHEMA = 41


def query(expression: str, legend: str = "", *, table: bool = False) -> Json:
    """One query; `table` asks for the newest values only."""
    expression = re.sub(r"\s+", " ", expression.strip())
    kind = {"instant": True, "format": "table"} if table else {"range": True}
    return {"datasource": SOURCE, "expr": expression, "legendFormat": legend or "__auto", **kind}


def _panel(kind: str, title: str, meaning: str, queries: list[Json], size: tuple[int, int], unit: str, **more: Any) -> Json:
    thresholds = more.pop("thresholds", ())
    steps = [
        {"color": more.pop("base", "green"), "value": None},
        *({"color": color, "value": value} for value, color in thresholds),
    ]
    custom = more.pop("custom", {})
    defaults: Json = {"unit": unit, "thresholds": {"mode": "absolute", "steps": steps}, "custom": custom}
    for name in ("min", "max", "decimals", "noValue", "mappings"):
        if name in more:
            defaults[name] = more.pop(name)
    return {
        "type": kind,
        "title": title,
        "description": meaning,
        "datasource": SOURCE,
        "targets": [{**target, "refId": chr(ord("A") + index)} for index, target in enumerate(queries)],
        "gridPos": {"w": size[0], "h": size[1]},
        "fieldConfig": {"defaults": defaults, "overrides": more.pop("overrides", [])},
        "options": more.pop("options", {}),
        **more,
    }


def graph(title: str, meaning: str, *queries: Json, unit: str = "short", width: int = 8, height: int = 8, **more: Any) -> Json:
    """Lines over time; thresholds are drawn as lines."""
    lines = "line" if more.get("thresholds") else "off"
    custom = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 10,
        "showPoints": "never",
        "spanNulls": 60000,
        "thresholdsStyle": {"mode": lines},
        "stacking": {"mode": "normal" if more.pop("stacked", False) else "none"},
    }
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return _panel("timeseries", title, meaning, list(queries), (width, height), unit, custom=custom, options=options, **more)


def stat(title: str, meaning: str, *queries: Json, unit: str = "short", width: int = 4, named: bool = False, **more: Any) -> Json:
    """One number; `named` shows the name of the series instead."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "name" if named else "value",
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "center",
    }
    return _panel("stat", title, meaning, list(queries), (width, 4), unit, options=options, **more)


def bars(title: str, meaning: str, *queries: Json, unit: str = "percentunit", width: int = 12, **more: Any) -> Json:
    """The newest value of each series as a bar."""
    options = {
        "displayMode": "basic",
        "orientation": "horizontal",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showUnfilled": True,
    }
    return _panel("bargauge", title, meaning, list(queries), (width, 8), unit, options=options, **more)


def table(title: str, meaning: str, expression: str, *, width: int = 12, hidden: tuple[str, ...] = (), **more: Any) -> Json:
    """The newest samples with their labels as columns."""
    away = dict.fromkeys(("Time", "Value", "__name__", "instance", "job", *hidden), True)
    organize = {"id": "organize", "options": {"excludeByName": away}}
    found = query(expression, table=True)
    return _panel("table", title, meaning, [found], (width, 8), "short", transformations=[organize], **more)


def variable(name: str, label: str, expression: str, *, every: bool = True) -> Json:
    """A choice among the values of a label."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": expression, "refId": name},
        "refresh": 2,
        "sort": 1,
        "includeAll": every,
        "multi": every,
        **({"allValue": ".*", "current": {"text": "All", "value": "$__all"}} if every else {"current": {}}),
    }


def dashboard(uid: str, title: str, meaning: str, variables: list[Json], rows: list[tuple[str, list[Json]]]) -> Json:
    """A dashboard of titled rows; panels flow from left to right."""
    panels: list[Json] = []
    top = 0
    for name, content in rows:
        panels.append(
            {"type": "row", "title": name, "collapsed": False, "panels": [], "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1}}
        )
        top += 1
        left = highest = 0
        for panel in content:
            width, height = panel["gridPos"]["w"], panel["gridPos"]["h"]
            if left + width > WIDTH:
                top, left, highest = top + highest, 0, 0
            panels.append({**panel, "gridPos": {"x": left, "y": top, "w": width, "h": height}})
            left, highest = left + width, max(highest, height)
        top += highest
    source = {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "refresh": 1,
    }
    return {
        "uid": uid,
        "title": title,
        "description": meaning,
        "tags": ["iris-api"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,
        "links": [
            {
                "type": "dashboards",
                "title": "iris-api",
                "tags": ["iris-api"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
                "url": "",
            }
        ],
        "templating": {"list": [source, *variables]},
        "annotations": {"list": [_swaps()]},
        "panels": [{**panel, "id": index} for index, panel in enumerate(panels, start=1)],
    }


def _swaps() -> Json:
    """A mark where a version is first seen."""
    seen = 'count by (version) (model_info{namespace=~"$namespace"}%s)'
    return {
        "name": "Model swapped",
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "purple",
        "expr": f"{seen % ''} unless {seen % ' offset 1m'}",
        "step": "30s",
        "titleFormat": "Model {{version}}",
        "textFormat": "first answers of version {{version}}",
        "tagKeys": "version",
    }
