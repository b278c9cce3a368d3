"""The charts, the pages and the JSON of the benchmark have the same figures."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import charts, report

ROOT = Path(__file__).parents[2]
FIGURES: dict[str, Any] = json.loads((ROOT / "docs" / "explanation" / "benchmarks.json").read_text())
PICTURES = charts.pictures(FIGURES)


@pytest.mark.parametrize("name", PICTURES)
def test_a_chart_in_the_docs_is_the_one_made_from_the_figures(name: str) -> None:
    assert (ROOT / "docs" / "images" / name).read_text() == PICTURES[name], "run make pictures"


def test_the_page_has_the_tables_of_the_figures() -> None:
    page, made = ((ROOT / "docs" / "explanation" / "benchmarks.md").read_text(), report.text(FIGURES))
    # The last cell of a line is a ratio of figures that the page has rounded.
    rows, expected = ({line.rsplit(" | ", 1)[0] for line in text.splitlines() if line} for text in (page, made))
    assert len(expected) > 20
    assert expected - rows == set()


def test_the_readme_compares_servers_with_these_ratios() -> None:
    text = (ROOT / "README.md").read_text()
    rows = [[cell.strip(" *`") for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    names = next(row for row in rows if row[:2] == ["", charts.OURS])[1:]
    table = {row[0]: row[1:] for row in rows}
    for load, ratios in FIGURES["servers"].items():
        assert dict(zip(names, map(float, table[load]), strict=True)) == ratios


def test_a_run_replaces_the_parts_that_it_measured(tmp_path: Path) -> None:
    file, models = tmp_path / "benchmarks.json", [{"model": "one", "predictor": "onnx", "loads": {}}]
    file.write_text(json.dumps(FIGURES))
    report.keep({"machine": {"cpus": "8"}, "models": models, "life": {}}, file)
    assert json.loads(file.read_text()) == {**FIGURES, "models": models, "machine": {"cpus": "8"}}


def test_a_chart_draws_only_what_was_measured_and_shows_names_as_text() -> None:
    load = {"ratio": 0.5}
    found = {"models": [{"model": "<b>&", "predictor": "onnx", "loads": {"1 connection": load}}], "batches": []}
    ((name, svg),) = charts.pictures(found).items()
    texts = [element.text for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert name == "benchmarks.svg"
    assert {"<b>& (onnx)", "1 connection", f"0.50 {charts.TIMES}"} <= set(texts)


@pytest.mark.parametrize("name", PICTURES)
def test_no_bar_and_no_text_leaves_the_chart(name: str) -> None:
    for element in ET.fromstring(PICTURES[name]).iter():
        left = float(element.get("x", 0))
        assert 0 <= left <= charts.WIDTH - 40 * (element.tag.endswith("text"))
        assert left + float(element.get("width", 0)) <= charts.WIDTH
