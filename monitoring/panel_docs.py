"""Writes the tables of panels in docs/reference/dashboards.md: `python -m monitoring.panel_docs`. A test compares them."""

from __future__ import annotations

import re
from pathlib import Path

from monitoring import dashboards
from monitoring.panels import Json

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "dashboards.md"
START, END = "<!-- panels -->\n", "<!-- end of panels -->"

UNITS = {
    "reqps": "requests a second",
    "s": "seconds",
    "ms": "milliseconds",
    "percent": "%",
    "percentunit": "share",
    "bytes": "bytes",
    "short": "",
}


def tables() -> str:
    """One table of panels for each dashboard, as Markdown."""
    return "\n".join(
        _table(dashboard) for dashboard in (dashboards.overview(), dashboards.model(), dashboards.ray(), dashboards.training())
    )


def page(text: str) -> str:
    """The text of the page with new tables between the two marks."""
    head, _, rest = text.partition(START)
    return f"{head}{START}{tables()}{END}{rest.partition(END)[2]}"


def _table(dashboard: Json) -> str:
    lines = [f"## {dashboard['title'].rpartition('/ ')[2]}", "", dashboard["description"]]
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            lines += ["", f"| {panel['title']} | meaning | unit | colours |", "| --- | --- | --- | --- |"]
        else:
            defaults = panel["fieldConfig"]["defaults"]
            lines.append(f"| {panel['title']} | {panel['description']} | {UNITS[defaults['unit']]} | {_colours(defaults)} |")
    return "\n".join(lines) + "\n"


def _colours(defaults: Json) -> str:
    """The values from which on the panel has another colour."""
    first, *steps = defaults["thresholds"]["steps"]
    if not steps:
        return ""
    colours = [f"{step['color']} from {_amount(step['value'], defaults['unit'])}" for step in steps]
    return ", ".join([*([first["color"]] if first["color"] != "green" else []), *colours])


def _amount(value: float, unit: str) -> str:
    if unit == "s" and value >= 86400:
        return f"{value / 86400:g} days"
    return re.sub(r"(\.\d+?)0+$", r"\1", f"{value:g}")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
