"""Writes what each panel tells into docs/monitoring.md: `python -m monitoring.page`. A test compares the page with this."""

from __future__ import annotations

import re
from pathlib import Path

from monitoring import dashboards
from monitoring.panels import Json

PAGE = Path(__file__).parents[1] / "docs" / "monitoring.md"
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


def text() -> str:
    """A table of panels for each dashboard, as Markdown."""
    return "\n".join(_table(made) for made in (dashboards.overview(), dashboards.model(), dashboards.ray(), dashboards.training()))


def page(before: str) -> str:
    """The page with the tables in their place."""
    head, _, rest = before.partition(START)
    return f"{head}{START}{text()}{END}{rest.partition(END)[2]}"


def _table(dashboard: Json) -> str:
    lines = [f"### {dashboard['title'].rpartition('/ ')[2]}", "", dashboard["description"]]
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            lines += ["", f"| {panel['title']} | what it tells | unit | colours |", "| --- | --- | --- | --- |"]
        else:
            defaults = panel["fieldConfig"]["defaults"]
            lines.append(f"| {panel['title']} | {panel['description']} | {UNITS[defaults['unit']]} | {_colours(defaults)} |")
    return "\n".join(lines) + "\n"


def _colours(defaults: Json) -> str:
    """From which value on a panel changes its colour."""
    first, *steps = defaults["thresholds"]["steps"]
    if not steps:
        return ""
    named = [f"{step['color']} from {_amount(step['value'], defaults['unit'])}" for step in steps]
    return ", ".join([*([first["color"]] if first["color"] != "green" else []), *named])


def _amount(value: float, unit: str) -> str:
    if unit == "s" and value >= 86400:
        return f"{value / 86400:g} days"
    return re.sub(r"(\.\d+?)0+$", r"\1", f"{value:g}")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
