"""Builders for Grafana panels, variables and dashboards, so that all dashboards look and behave alike."""

from __future__ import annotations

import re
from typing import Any

Json = dict[str, Any]

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
SCHEMA = 41


def query(expression: str, legend: str = "", *, table: bool = False) -> Json:
    """One PromQL query; `table` asks for the newest values instead of a range."""
    expression = re.sub(r"\s+", " ", expression.strip())
    kind = {"instant": True, "format": "table"} if table else {"range": True}
    return {"datasource": SOURCE, "expr": expression, "legendFormat": legend or "__auto", **kind}


def _panel(kind: str, title: str, description: str, queries: list[Json], size: tuple[int, int], unit: str, **more: Any) -> Json:
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
        "description": description,
        "datasource": SOURCE,
        "targets": [{**target, "refId": chr(ord("A") + index)} for index, target in enumerate(queries)],
        "gridPos": {"w": size[0], "h": size[1]},
        "fieldConfig": {"defaults": defaults, "overrides": more.pop("overrides", [])},
        "options": more.pop("options", {}),
        **more,
    }


def graph(title: str, description: str, *queries: Json, unit: str = "short", width: int = 8, height: int = 8, **more: Any) -> Json:
    """A panel of lines over time; `thresholds` are drawn as lines. `width` is in columns of 24, `height` in Grafana's rows."""
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
    return _panel("timeseries", title, description, list(queries), (width, height), unit, custom=custom, options=options, **more)


def stat(
    title: str, description: str, *queries: Json, unit: str = "short", width: int = 4, named: bool = False, **more: Any
) -> Json:
    """A panel of one number per query; `named` shows the name of the series instead."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "name" if named else "value",
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "center",
    }
    return _panel("stat", title, description, list(queries), (width, 4), unit, options=options, **more)


def bars(title: str, description: str, *queries: Json, unit: str = "percentunit", width: int = 12, **more: Any) -> Json:
    """A panel with the newest value of each series as a bar."""
    options = {
        "displayMode": "basic",
        "orientation": "horizontal",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showUnfilled": True,
    }
    return _panel("bargauge", title, description, list(queries), (width, 8), unit, options=options, **more)


def table(title: str, description: str, expression: str, *, width: int = 12, hidden: tuple[str, ...] = (), **more: Any) -> Json:
    """A panel with the newest samples, their labels as columns; `hidden` labels are left out."""
    excluded = dict.fromkeys(("Time", "Value", "__name__", "instance", "job", *hidden), True)
    organize = {"id": "organize", "options": {"excludeByName": excluded}}
    return _panel(
        "table", title, description, [query(expression, table=True)], (width, 8), "short", transformations=[organize], **more
    )


def variable(name: str, label: str, expression: str, *, every: bool = True) -> Json:
    """A variable of a dashboard whose values are those of a label; `every` allows several of them and all."""
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


def dashboard(uid: str, title: str, description: str, variables: list[Json], rows: list[tuple[str, list[Json]]]) -> Json:
    """A dashboard: rows with a title and panels, which are placed from left to right."""
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
        "description": description,
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
    """An annotation at the time at which a version is first in use."""
    replicas = 'count by (version) (model_info{namespace=~"$namespace"}%s)'
    return {
        "name": "Model swapped",
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "purple",
        "expr": f"{replicas % ''} unless {replicas % ' offset 1m'}",
        "step": "30s",
        "titleFormat": "Model {{version}}",
        "textFormat": "first answers of version {{version}}",
        "tagKeys": "version",
    }
