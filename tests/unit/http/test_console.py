"""`/ui`: the page, and what it asks for."""

from __future__ import annotations

import html
import json
import threading
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pytest
from starlette.testclient import TestClient

from serve_app.artifacts.manifest import sha256
from serve_app.artifacts.names import CARD, METRICS, REPORT
from serve_app.artifacts.signature import Feature, Signature
from serve_app.artifacts.store import Store
from serve_app.http.console import charts, form, versions
from serve_app.http.console.reports import ENOUGH_ROWS, Report
from serve_app.http.routes import console
from serve_app.inference.slot import Slot
from tests.support.apps import HEADERS, KEY, client_of, http_options
from tests.support.hostile_names import LONG, MARKUP, NAMES, QUOTES, TURNING, publish_hostile
from tests.support.models import A_FLOWER, bundle_files, bundle_manifest, forest, iris, iris_signature, logistic, publish_iris
from tests.support.policies import ALLOW_ALL
from training.reference import reference

WITH_KEY = ("/ui/data", "/ui/view", "/ui/form", "/ui/card")
ASSETS = ("console.css", "console.js", "elements.js", "moves.js", "card.css", "icon.svg")


class Elements(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def iris_reference() -> dict[str, Any]:
    X, y = iris()
    signature = iris_signature()
    return dict(reference(pd.DataFrame(X, columns=list(signature.names)), y, signature))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    card = b"<!doctype html><html><head><style>\nb { color: red }\n</style></head><body><p>The card</p></body></html>"
    manifest = bundle_manifest(reference=iris_reference(), trained_at="2026-01-31T12:00:00+00:00", model_type="Pipeline")
    files = {**bundle_files(logistic()), CARD: card, METRICS: orjson.dumps({"accuracy": 0.9, "f1_score": 0.9, "rows": 30})}
    store.publish(files, manifest)
    return store


def opened(store: Store, **options: Any) -> TestClient:
    """A client of an app whose console reads this store."""
    return client_of(store, **{"model_dir": store.root, **options})


def data_of(client: TestClient) -> dict[str, Any]:
    response = client.get("/ui/data", headers=HEADERS)
    assert response.status_code == 200
    data: dict[str, Any] = response.json()
    return data


def view_of(client: TestClient) -> str:
    response = client.get("/ui/view", headers=HEADERS)
    assert response.status_code == 200
    return response.text


# --- the page


def test_the_page_holds_nothing_of_the_model_and_the_rest_needs_the_key(store: Store) -> None:
    client = opened(store)
    page = client.get("/ui")
    assert page.status_code == 200
    assert store.entries()[0].digest[:12] not in page.text
    assert "sepal" not in page.text
    for path in WITH_KEY:
        assert client.get(path).status_code == 401, path
        assert client.get(path, headers={"X-API-Key": "wrong"}).status_code == 403, path
    for path in WITH_KEY[:-1]:
        assert client.get(path, headers=HEADERS).headers["cache-control"] == "no-store"


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere(store: Store) -> None:
    client = opened(store)
    page = client.get("/ui")
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'")
    for text in (page.text, view_of(client), client.get("/ui/form", headers=HEADERS).text):
        for tag, attributes in Elements(text).found:
            assert tag != "style"
            assert "style" not in attributes
            assert not [name for name in attributes if name.startswith("on")]
            assert tag != "script" or attributes.get("src")
            assert "//" not in (attributes.get("src") or attributes.get("href") or "")


def test_the_assets_are_served_and_their_change_is_asked_for(store: Store) -> None:
    client = opened(store)
    for name in ASSETS:
        asset = client.get(f"/ui/static/{name}")
        assert asset.status_code == 200
        assert asset.headers["cache-control"] == "no-cache"
        again = client.get(f"/ui/static/{name}", headers={"If-None-Match": asset.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert client.get("/ui/static/../page.html").status_code == 404
    assert client.get("/ui/static/").status_code == 404


def test_the_page_asks_for_a_key_only_where_one_is_needed(store: Store) -> None:
    assert 'data-needs-key="yes"' in opened(store).get("/ui").text
    without = opened(store, api_key=None)
    assert 'data-needs-key="no"' in without.get("/ui").text
    assert without.get("/ui/data").status_code == 200


# --- what it shows


def test_the_data_is_what_the_api_says_of_the_model(store: Store) -> None:
    client = opened(store)
    model, data = client.get("/model", headers=HEADERS).json(), data_of(client)
    assert data["model"]["version"] == model["version"]
    assert data["model"]["digest"] == model["digest"]
    assert data["model"]["origin"]["trained_at"] == model["trained_at"]
    assert {metric["name"]: metric["value"] for metric in data["model"]["measured"]} == {"accuracy": 0.9, "f1_score": 0.9}
    assert data["since"] == model["loaded_at"]
    assert [replica["version"] for replica in data["replicas"]] == ["1"]
    assert (data["serving"], data["refusals"]) == (1, [])
    assert [version["version"] for version in data["store"]["versions"]] == [1]


def test_a_share_of_the_rows_has_the_interval_of_wilson_and_another_metric_has_none(store: Store) -> None:
    accuracy, f1 = data_of(opened(store))["model"]["measured"]
    assert (round(accuracy["low"], 4), round(accuracy["high"], 4)) == (0.7438, 0.9654)
    assert (f1["low"], f1["high"]) == (None, None)
    assert versions.wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert versions.wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_the_last_hour_counts_predictions_of_every_status_and_no_page(store: Store) -> None:
    client = opened(store)
    for _ in range(4):
        client.post("/predict", json=A_FLOWER, headers=HEADERS)
    client.post("/predict", json={}, headers=HEADERS)
    client.get("/health")
    total = data_of(client)["total"]
    assert (total["requests"], total["2xx"], total["4xx"], total["5xx"]) == (5, 4, 1, 0)
    assert 0 < total["p50"] <= total["p99"]
    assert sum(minute["requests"] for minute in data_of(client)["minutes"]) == 5


def test_drift_compares_the_rows_with_the_training_and_says_so_from_enough_rows_on(store: Store) -> None:
    client = opened(store)
    client.post("/predict", json=A_FLOWER, headers=HEADERS)
    feature = data_of(client)["drift"]["features"][0]
    assert (feature["name"], feature["rows"], feature["level"]) == ("sepal_length", 1, "too few rows")
    client.post("/predict/batch", json={"instances": [A_FLOWER] * ENOUGH_ROWS}, headers=HEADERS)
    drift = data_of(client)["drift"]
    assert [feature["level"] for feature in drift["features"]] == ["drifted"] * 4
    for column in [*drift["features"], drift["predictions"]]:
        assert sum(each["training"] for each in column["bins"]) == pytest.approx(1)
        assert sum(each["recent"] for each in column["bins"]) == pytest.approx(1)
        assert sum(each["rows"] for each in column["bins"]) == ENOUGH_ROWS + 1


def test_a_model_without_a_reference_has_no_drift(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store)
    client = opened(store)
    assert data_of(client)["drift"] is None
    assert "no distribution of its training rows" in view_of(client)


def test_a_refused_candidate_is_shown_with_its_reason_and_the_served_model_stays(store: Store) -> None:
    client = opened(store)
    entry = publish_iris(store, forest())
    (entry.folder / "model.joblib").write_bytes(b"something else")
    client.app_state["slot"].refresh()
    data = data_of(client)
    refused = client.get("/model", headers=HEADERS).json()["refused"]
    assert data["refusals"] == [{**refused, "replicas": 1}]
    assert data["model"]["version"] == "1"
    text = html.unescape(view_of(client))
    assert refused["candidate"] in text
    assert refused["message"] in text


def test_every_version_says_why_it_is_not_served(store: Store) -> None:
    refused = {"accepted": False, "reasons": ["accuracy 0.5 is below 0.9"], "comparison": {"compared": False, "why": "no rows"}}
    publish_iris(store, forest(), verdict=refused, forced=True)
    damaged = publish_iris(store, forest(1))
    (damaged.folder / "metadata.json").write_bytes(b"{}")
    store.promote(1)
    third, second, first = data_of(opened(store))["store"]["versions"]
    assert (third["damaged"], len(third["reasons"])) == (True, 1)
    assert (second["verdict"], second["reasons"]) == ("forced", ["accuracy 0.5 is below 0.9"])
    assert second["comparison"] == "Not compared with another model: no rows."
    assert (first["served"], first["reasons"], first["card"]) == (True, [], True)


def test_a_refused_training_is_shown_though_the_store_has_no_version_of_it(store: Store) -> None:
    report = {"accepted": False, "reasons": ["worse than version 1"], "forced": False, "trained_at": "2026-02-01T00:00:00+00:00"}
    (store.root / REPORT).write_bytes(orjson.dumps(report))
    client = opened(store)
    training = data_of(client)["store"]["training"]
    assert (training["outcome"], training["reasons"], training["version"]) == ("refused", ["worse than version 1"], None)
    assert "worse than version 1" in view_of(client)


def test_the_page_shows_that_there_is_no_model(tmp_path: Path) -> None:
    client = opened(Store(tmp_path))
    data = data_of(client)
    assert (data["model"], data["serving"], data["since"], data["drift"]) == (None, 0, None, None)
    assert data["problem"] == "no model has been published yet"
    assert "No model answers" in view_of(client)
    assert "no model to try" in client.get("/ui/form", headers=HEADERS).text


def test_a_replaced_model_is_shown_by_the_next_look(store: Store) -> None:
    client = opened(store)
    before = data_of(client)
    publish_iris(store, forest())
    client.app_state["slot"].refresh()
    after = data_of(client)
    assert (before["model"]["version"], after["model"]["version"]) == ("1", "2")
    assert after["replicas"][0]["version"] == "2"
    digest = store.entries()[1].digest
    assert f'data-digest="{digest}"' in client.get("/ui/form", headers=HEADERS).text


# --- all replicas


def console_of(store: Store, reports: console.Reports) -> TestClient:
    from serve_app.http.app import create_app

    slot = Slot(store, policy=ALLOW_ALL)
    slot.refresh()
    app = create_app(slot, http_options(api_key=KEY, model_dir=store.root), replica="own", reports=reports)
    return TestClient(app, raise_server_exceptions=False)


def test_the_counts_of_all_replicas_with_the_same_model_are_added_up(store: Store) -> None:
    other = opened(store)
    for _ in range(3):
        other.post("/predict", json=A_FLOWER, headers=HEADERS)

    async def reports() -> Sequence[Report | str]:
        theirs = {**other.app.state.console.report(), "replica": "other"}  # type: ignore[attr-defined]
        old = {**theirs, "replica": "old", "version": "0", "digest": "0" * 64, "drift": {**theirs["drift"], "digest": "0" * 64}}
        return [{"replica": "own"}, theirs, old, "silent"]

    client = console_of(store, reports)
    client.post("/predict", json=A_FLOWER, headers=HEADERS)
    data = data_of(client)
    assert [(replica["replica"], replica["answered"]) for replica in data["replicas"]] == [
        ("own", True),
        ("other", True),
        ("old", True),
        ("silent", False),
    ]
    assert data["serving"] == 2
    assert data["total"]["requests"] == 1 + 3 + 3
    assert data["drift"]["features"][0]["rows"] == 1 + 3
    text = view_of(client)
    assert "2 of 4" in text
    assert "no answer" in text
    assert "another version" in text


def test_the_page_is_answered_when_the_other_replicas_cannot_be_asked(store: Store) -> None:
    async def reports() -> Sequence[Report | str]:
        raise TimeoutError

    assert data_of(console_of(store, reports))["serving"] == 1


def test_many_open_pages_ask_the_replicas_and_the_store_once(store: Store) -> None:
    asked = []

    async def reports() -> Sequence[Report | str]:
        asked.append(1)
        return [{"replica": "own"}]

    client = console_of(store, reports)
    with client:
        for _ in range(5):
            data_of(client)
    assert len(asked) == 1


def test_a_store_that_does_not_answer_holds_up_neither_page_nor_predictions(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(console, "STORE_SECONDS", 0.2)
    monkeypatch.setattr(console, "read_store", lambda folder: released.wait(30) and {})
    with opened(store) as client:
        data = data_of(client)
        assert data["store"]["problem"]
        assert data["model"]["version"] == "1"
        assert client.post("/predict", json=A_FLOWER, headers=HEADERS).status_code == 200
        released.set()


# --- the form


def test_the_form_has_a_control_for_each_kind_filled_with_a_row_that_is_answered() -> None:
    signature = Signature(
        features=(
            Feature("n", minimum=0, maximum=5, low=1, high=2),
            Feature("c", kind="category", categories=("a", "b"), nullable=True, example="b"),
            Feature("b", kind="boolean", example=False),
            Feature("t", kind="text", example="words", max_length=20),
            Feature("many", kind="category", categories=tuple(f"c{i:04}" for i in range(form.MAX_CHOICES + 1))),
        ),
        task="regression",
    )
    fields = form.fields(signature)
    assert fields is not None
    assert [(field.control, field.value) for field in fields] == [
        ("number", "1.5"),
        ("choice", '"b"'),
        ("choice", "false"),
        ("text", "words"),
        ("line", "c0000"),
    ]
    assert [choice.json for choice in fields[1].choices] == ["null", '"a"', '"b"']
    assert fields[0].hint == "allowed: 0 to 5; training: 1 to 2"
    wide = Signature(features=tuple(Feature(f"x{i}") for i in range(form.MAX_FIELDS + 1)), task="regression")
    assert form.fields(wide) is None
    assert json.loads(form.example_json(wide)) == wide.example()


# --- the model card


def test_the_card_is_that_of_the_digest_with_its_style_from_this_server(store: Store, tmp_path: Path) -> None:
    client = opened(store)
    digest = store.entries()[0].digest
    card = client.get(f"/ui/card?digest={digest}", headers=HEADERS)
    assert card.status_code == 200
    assert "The card" in card.text
    assert "<style>" not in card.text
    assert 'href="ui/static/card.css"' in card.text
    assert "unsafe" not in card.headers["content-security-policy"]
    for wrong in ("", "0" * 64, "../../etc/passwd"):
        assert client.get("/ui/card", params={"digest": wrong}, headers=HEADERS).status_code == 404


def test_a_card_that_is_not_the_published_one_is_not_shown(store: Store) -> None:
    entry = store.entries()[0]
    path = entry.folder / CARD
    raw = path.read_bytes()
    path.unlink()
    path.write_bytes(raw.replace(b"The card", b"Another "))
    assert sha256(path.read_bytes()) != sha256(raw)
    assert opened(store).get(f"/ui/card?digest={entry.digest}", headers=HEADERS).status_code == 404


def test_a_card_in_the_folder_of_copies_is_found(store: Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    client = opened(Store(tmp_path_factory.mktemp("empty")), cache_dir=store.root)
    assert client.get(f"/ui/card?digest={store.entries()[0].digest}", headers=HEADERS).status_code == 200


# --- hostile names


def test_hostile_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_hostile(store)
    client = opened(store)
    for text in (view_of(client), client.get("/ui/form", headers=HEADERS).text):
        elements = Elements(text).found
        assert not [tag for tag, _ in elements if tag in ("img", "script")]
        assert "<script>49" not in html.unescape(text)
        assert "\u202e" not in text.replace(html.escape(TURNING), "")
    shown = html.unescape(view_of(client))
    for name in (MARKUP, QUOTES, LONG):
        assert name in shown
    fields = [
        attributes for _, attributes in Elements(client.get("/ui/form", headers=HEADERS).text).found if "data-name" in attributes
    ]
    assert [attributes["data-name"] for attributes in fields] == list(NAMES)
    row = {name: float(attributes["value"] or 0) for name, attributes in zip(NAMES, fields, strict=True)}
    assert client.post("/predict", json=row, headers=HEADERS).status_code == 200


# --- charts


def test_the_bars_of_a_minute_stand_on_each_other_and_the_highest_fills_the_chart() -> None:
    minutes = [{"at": "2026-01-31T12:00:00", "requests": 4, "2xx": 2, "4xx": 1, "5xx": 1}]
    minutes += [{"at": "2026-01-31T12:01:00", "requests": 0, "2xx": 0, "4xx": 0, "5xx": 0}]
    bars = charts.traffic_bars(minutes)
    assert [bar.kind for bar in bars] == ["status-2xx", "status-4xx", "status-5xx"]
    assert sum(bar.height for bar in bars) == charts.HEIGHT
    assert [bar.y for bar in bars] == [60, 30, 0]


def test_a_line_ends_where_a_minute_has_no_request() -> None:
    minutes = [dict.fromkeys(("p50", "p95", "p99"), value) for value in (0.1, 0.2, None, 0.1)]
    lines, most = charts.latency_lines(minutes)
    assert most == 0.2
    assert [line.kind for line in lines] == ["p99", "p99", "p95", "p95", "p50", "p50"]
    assert charts.latency_lines([dict.fromkeys(("p50", "p95", "p99"))]) == ([], None)
