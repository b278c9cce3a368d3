"""The dashboards are read with Grafana's published schema, and every query with promtool; no Grafana runs here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring import dashboards, panel_docs
from tests.monitoring.tools import run
from tests.support.monitoring import BASE, DASHBOARDS, ROOT, panels, queries

LOADED = {file.stem: json.loads(file.read_text()) for file in DASHBOARDS}
each = pytest.mark.parametrize("document", LOADED.values(), ids=LOADED)

# Settings of the Prometheus data source for annotations, which the schema leaves open.
ANNOTATION_KEYS = {"step", "titleFormat", "textFormat", "tagKeys"}


def test_the_files_are_what_the_program_writes() -> None:
    assert {file.name: file.read_text() for file in DASHBOARDS} == dashboards.files(), "run `make dashboards`"


def test_the_docs_have_the_title_and_the_description_of_each_panel() -> None:
    text = panel_docs.PAGE.read_text()
    assert text == panel_docs.page(text), "run `make dashboards`"
    for document in LOADED.values():
        for panel in panels(document):
            assert f"| {panel['title']} | {panel['description']} |" in text


def test_every_panel_that_the_runbook_names_is_there() -> None:
    titles = {panel["title"] for document in LOADED.values() for panel in panels(document)}
    dashboard_titles = {document["title"].rpartition("/ ")[2] for document in LOADED.values()}
    names = set(re.findall(r'"([^"\n]+)"', (ROOT / "docs" / "how-to" / "runbook.md").read_text()))
    assert len(names) > 5
    assert names <= titles | dashboard_titles


def test_every_file_is_shipped_under_a_name_and_an_id_of_its_own() -> None:
    generators = {entry["name"]: entry for entry in yaml.safe_load((BASE / "kustomization.yaml").read_text())["configMapGenerator"]}
    shipped = {Path(name).name for name in generators["grafana-dashboards"]["files"]}
    assert shipped == {file.name for file in DASHBOARDS}
    for key in ("uid", "title"):
        assert len({document[key] for document in LOADED.values()}) == len(LOADED)
    assert sum(file.stat().st_size for file in DASHBOARDS) < 900_000  # a ConfigMap holds a megabyte


@each
def test_grafanas_schema_knows_every_setting(document: dict[str, Any]) -> None:
    register_default_plugins()
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(document)))
    assert [path for path in lost(document, again) if path.rpartition(".")[2] not in ANNOTATION_KEYS] == []


def lost(document: Any, copy: Any, path: str = "") -> Iterator[str]:
    """Paths of the values in `document` that `copy` lacks, or has with another value."""
    if isinstance(document, dict):
        for key, value in document.items():
            if not isinstance(copy, dict) or key not in copy:
                yield f"{path}.{key}"
            else:
                yield from lost(value, copy[key], f"{path}.{key}")
    elif isinstance(document, list) and isinstance(copy, list) and len(document) == len(copy):
        for index, value in enumerate(document):
            yield from lost(value, copy[index], f"{path}[{index}]")
    elif document != copy:
        yield path


@each
def test_panels_have_a_title_a_meaning_a_unit_and_a_place_of_their_own(document: dict[str, Any]) -> None:
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
    occupied: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & occupied, f"{panel['title']} lies over another panel"
        occupied |= cells
    titles = [panel["title"] for panel in panels(document)]
    assert len(set(titles)) == len(titles)
    for panel in panels(document):
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert {target["refId"] for target in panel["targets"]}


@each
def test_every_variable_is_used_and_every_used_one_is_there(document: dict[str, Any]) -> None:
    there = {variable["name"] for variable in document["templating"]["list"]}
    text = json.dumps([document["panels"], document["annotations"]])
    used = set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval"}
    assert used == there


@each
def test_no_data_source_is_fixed_and_rates_follow_the_zoom(document: dict[str, Any]) -> None:
    assert all(target["datasource"]["uid"] == "${datasource}" for panel in panels(document) for target in panel["targets"])
    for panel in panels(document):
        for target in panel["targets"]:
            assert not re.search(r"rate\([^)]*\[\d", target["expr"]), f"{panel['title']} has a fixed rate interval"


def test_promtool_reads_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"query:{index}", "expr": query.expression} for index, query in enumerate(queries())]
    assert len(rules) > 50
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    run("promtool", "check", "rules", "--lint=none", str(file))


def test_grafana_is_closed_and_reads_only_what_is_shipped() -> None:
    text = (BASE / "grafana" / "grafana.ini").read_text()
    assert "admin_password" not in text
    for line in ("allow_sign_up = false", "enabled = false", "reporting_enabled = false", "allow_embedding = false"):
        assert line in text
    manifests = list(yaml.safe_load_all((BASE / "grafana.yaml").read_text()))
    (container,) = manifests[0]["spec"]["template"]["spec"]["containers"]
    names = {entry["name"]: entry["value"] for entry in container["env"]}
    assert names["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/etc/grafana/secret/password"
    source = yaml.safe_load((BASE / "grafana" / "datasources.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    assert not source["editable"]
