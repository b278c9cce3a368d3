"""The console in a browser: what it shows is what the API answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import orjson
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from serve_app.artifacts.names import REPORT
from serve_app.artifacts.store import Store
from tests.browser.conftest import OpenPage
from tests.support.apps import HEADERS, KEY
from tests.support.browser import Application, application, stripping
from tests.support.hostile_names import LONG, MARKUP, NAMES, QUOTES, publish_hostile
from tests.support.models import A_FLOWER, forest, iris, iris_signature, logistic, publish_iris
from training.reference import reference

PHONE = {"viewport": {"width": 390, "height": 844}}
REFRESH = 40_000
"""Milliseconds in which a page has refreshed itself, on a busy machine too."""


def enter(page: Any, app: Application, key: str = KEY) -> None:
    """Open the console with a key."""
    page.goto(f"{app.url}/ui")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Open").click()


def entered(page: Any, app: Application, key: str = KEY) -> None:
    enter(page, app, key)
    page.wait_for_selector("#row")


def answer_of(app: Application, path: str) -> Any:
    response = httpx2.get(f"{app.url}{path}", headers=HEADERS)
    assert response.status_code == 200
    return response.json()


def violations(page: Any) -> list[str]:
    """The rules of axe that the page breaks, each with the element."""
    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]


def with_reference(store: Store, estimator: Any, **more: Any) -> None:
    X, y = iris()
    signature = iris_signature()
    publish_iris(store, estimator, reference=reference(pd.DataFrame(X, columns=list(signature.names)), y, signature), **more)


# --- what is shown


def test_every_part_shows_what_the_api_answers(running: Application, open_page: OpenPage) -> None:
    rows = [dict(zip(A_FLOWER, map(float, row), strict=True)) for row in iris()[0]]
    for row in rows[::10]:
        assert httpx2.post(f"{running.url}/predict", json=row, headers=HEADERS).status_code == 200
    assert httpx2.post(f"{running.url}/predict", json={}, headers=HEADERS).status_code == 422
    httpx2.post(f"{running.url}/predict/batch", json={"instances": rows * 4}, headers=HEADERS)
    page, _ = open_page(running)
    entered(page, running)
    model, data = answer_of(running, "/model"), answer_of(running, "/ui/data")
    assert page.locator("h1").inner_text() == model["name"]
    assert page.locator("#version").inner_text() == model["version"]
    assert page.locator("#serving").inner_text() == "1 of 1"
    shown = page.locator("#part-model").inner_text()
    for text in (model["digest"], model["data"]["sha256"], model["code"]["version"], model["info"]["model_type"], "accepted"):
        assert text in shown
    metrics = page.locator("#part-model tbody tr").all_inner_texts()
    assert len(metrics) == len(data["model"]["measured"])
    for name in ("accuracy", "f1_score", "roc_auc"):
        line = next(line for line in metrics if line.startswith(name))
        assert f"{model['metrics'][name]:.4g}" in line
    assert page.locator("#replicas tbody tr").count() == len(data["replicas"]) == 1
    assert model["version"] in page.locator("#replicas tbody tr").inner_text()
    total = page.locator("#traffic-total").inner_text()
    assert total.startswith(f"{data['total']['requests']:.0f} requests")
    assert f"{data['total']['4xx']:.0f} refused" in total
    features = page.locator("figure.drift").evaluate_all("all => all.map((each) => each.dataset.feature)")
    assert features == [*model["info"]["feature_names"], model["signature"]["target"]]
    for column, figure in zip(data["drift"]["features"], page.locator("figure.drift").all(), strict=False):
        assert column["level"] in figure.locator("figcaption").inner_text()
        assert figure.locator("rect").count() == 2 * len(column["bins"])
    assert page.locator("#versions tbody tr").count() == len(data["store"]["versions"]) == 1
    line = page.locator("#versions tbody tr").inner_text()
    assert "served" in line
    assert model["digest"][:12] in line


def test_the_form_gets_the_answer_of_the_api(running: Application, open_page: OpenPage) -> None:
    page, _ = open_page(running)
    entered(page, running)
    values = {name: page.get_by_label(name, exact=True).input_value() for name in A_FLOWER}
    example = answer_of(running, "/model")["signature"]["features"]
    assert [float(value) for value in values.values()] == [feature["example"] for feature in example]
    for row in (A_FLOWER, {**A_FLOWER, "petal_length": 6.1, "petal_width": 2.3}):
        for name, value in row.items():
            page.get_by_label(name, exact=True).fill(str(value))
        page.get_by_role("button", name="Predict", exact=True).click()
        answer = httpx2.post(f"{running.url}/predict", json=row, headers=HEADERS).json()
        expect(page.locator("#answer .prediction")).to_have_text(answer["prediction"])
        shares = page.locator("#answer td.number").all_inner_texts()
        assert shares == [f"{share:.4f}" for share in answer["probabilities"].values()]
        assert json.loads(page.locator("#answer pre").last.text_content()) == answer


def test_a_value_that_is_refused_shows_the_problem_of_the_api(running: Application, open_page: OpenPage) -> None:
    page, noticed = open_page(running)
    noticed.allowed.append("422")
    entered(page, running)
    page.get_by_label("sepal_length", exact=True).fill("-4")
    page.get_by_role("button", name="Predict", exact=True).click()
    problem = httpx2.post(f"{running.url}/predict", json={**A_FLOWER, "sepal_length": -4}, headers=HEADERS).json()
    page.wait_for_selector("#answer .refused")
    shown = page.locator("#answer").inner_text()
    assert problem["detail"] in shown
    assert problem["errors"][0]["message"] in shown


def test_a_table_is_scored_and_its_answers_are_those_of_the_api(running: Application, open_page: OpenPage, tmp_path: Path) -> None:
    X, _ = iris()
    table = tmp_path / "flowers.csv"
    pd.DataFrame(X, columns=list(A_FLOWER)).to_csv(table, index=False)
    page, _ = open_page(running)
    entered(page, running)
    page.get_by_label("Choose a table").set_input_files(table)
    assert page.locator("#rows tr").first.inner_text().split() == list(A_FLOWER)
    page.get_by_role("button", name="Predict every row").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the answers").click()
    assert download.value.suggested_filename == "flowers-answers.csv"
    headers = {**HEADERS, "Content-Type": "text/csv", "Accept": "text/csv"}
    expected = httpx2.post(f"{running.url}/predict/batch", content=table.read_bytes(), headers=headers)
    assert Path(download.value.path()).read_bytes() == expected.content
    assert page.locator("#answers tr").count() == 6


def test_a_parquet_file_is_scored(running: Application, open_page: OpenPage, tmp_path: Path) -> None:
    table = tmp_path / "flowers.parquet"
    pd.DataFrame(iris()[0], columns=list(A_FLOWER)).to_parquet(table)
    page, _ = open_page(running)
    entered(page, running)
    page.get_by_label("Choose a table").set_input_files(table)
    page.get_by_role("button", name="Predict every row").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the answers").click()
    headers = {**HEADERS, "Content-Type": "application/vnd.apache.parquet", "Accept": "text/csv"}
    expected = httpx2.post(f"{running.url}/predict/batch", content=table.read_bytes(), headers=headers)
    assert expected.status_code == 200
    assert Path(download.value.path()).read_bytes() == expected.content


def test_a_table_can_be_dropped_and_a_quoted_cell_is_one_cell(running: Application, open_page: OpenPage) -> None:
    page, noticed = open_page(running)
    noticed.allowed.append("422")
    entered(page, running)
    text = 'sepal_length,note\r\n5.1,"a ""quoted"", cell\nof two lines"\r\n'
    transfer = page.evaluate_handle(
        """text => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([text], 'notes.csv'));
            return transfer;
        }""",
        text,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    page.wait_for_selector("#rows table")
    assert page.locator("#rows td").all_text_contents() == ["5.1", 'a "quoted", cell\nof two lines']
    page.get_by_role("button", name="Predict every row").click()
    page.wait_for_selector("#answers .refused")
    assert "sepal_width" in page.locator("#answers").inner_text()


def test_the_model_card_is_shown_in_a_frame_that_can_do_nothing(running: Application, open_page: OpenPage) -> None:
    page, _ = open_page(running)
    entered(page, running)
    page.get_by_role("button", name="Show the card of the served model").click()
    frame = page.frame_locator("iframe")
    metrics = answer_of(running, "/model")["metrics"]
    assert "Accepted" in frame.locator("body").inner_text()
    assert f"{metrics['accuracy']:.4f}" in frame.locator("body").inner_text()
    assert frame.locator("img").count() >= 1
    assert page.locator("iframe").get_attribute("sandbox") == ""
    color = frame.locator(".accepted").evaluate("element => getComputedStyle(element).color")
    assert color == "rgb(26, 127, 55)"  # the style of the card


# --- the key


def test_a_wrong_key_shows_nothing_and_is_not_kept(running: Application, open_page: OpenPage) -> None:
    page, noticed = open_page(running)
    noticed.allowed.append("403")
    enter(page, running, "wrong")
    expect(page.locator("#message")).not_to_be_empty()
    problem = httpx2.get(f"{running.url}/model", headers={"X-API-Key": "wrong"}).json()
    assert page.locator("#message").inner_text() == problem["detail"]
    assert page.locator("#content").is_hidden()
    assert page.evaluate("sessionStorage.length") == 0
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Open").click()
    page.wait_for_selector("#row")


def test_the_key_stays_in_its_tab_until_it_is_forgotten(running: Application, open_page: OpenPage) -> None:
    page, _ = open_page(running)
    entered(page, running)
    page.reload()
    page.wait_for_selector("#row")
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    other = page.context.new_page()
    other.goto(f"{running.url}/ui")
    assert other.get_by_label("API key").is_visible()
    page.get_by_role("button", name="Forget the key").click()
    assert page.locator("#content").is_hidden()
    assert "setosa" not in page.content()
    page.reload()
    assert page.get_by_label("API key").is_visible()


def test_without_keys_the_page_opens_at_once(trained: Path, open_page: OpenPage) -> None:
    with application(Store(trained), api_key=None) as app:
        page, _ = open_page(app)
        page.goto(f"{app.url}/ui")
        page.wait_for_selector("#row")
        assert page.get_by_label("API key").is_hidden()


# --- the model changes


def test_a_model_that_is_replaced_while_the_page_is_open_is_shown(tmp_path: Path, open_page: OpenPage) -> None:
    store = Store(tmp_path)
    with_reference(store, logistic())
    with application(store) as app:
        page, _ = open_page(app)
        entered(page, app)
        page.get_by_label("sepal_length", exact=True).fill("6.5")
        page.locator("#minutes summary").click()
        page.locator("#minutes summary").focus()
        with_reference(store, forest())
        expect(page.locator("#version")).to_have_text("2", timeout=REFRESH)
        expect(page.locator("#message")).to_contain_text("version 2")
        assert page.get_by_label("sepal_length", exact=True).input_value() == "6.5"
        assert page.locator("#minutes").get_attribute("open") is not None
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
        row = {**A_FLOWER, "sepal_length": 6.5}
        for name, value in row.items():
            page.get_by_label(name, exact=True).fill(str(value))
        page.get_by_role("button", name="Predict", exact=True).click()
        answer = httpx2.post(f"{app.url}/predict", json=row, headers=HEADERS)
        assert answer.headers["x-model-version"] == "2"
        page.wait_for_selector("#answer .prediction")
        assert page.locator("#answer .lead").inner_text() == f"Version 2 predicts {answer.json()['prediction']}."


def test_a_refused_candidate_and_every_refused_version_have_their_reasons(tmp_path: Path, open_page: OpenPage) -> None:
    store = Store(tmp_path)
    with_reference(store, logistic())
    publish_iris(
        store, forest(), verdict={"accepted": False, "reasons": ["accuracy 0.5 is below 0.9"], "comparison": {}}, forced=True
    )
    store.promote(1)
    report = {"accepted": False, "reasons": ["worse than version 1"], "forced": False, "trained_at": "2026-02-01T00:00:00+00:00"}
    (store.root / REPORT).write_bytes(orjson.dumps(report))
    with application(store) as app:
        page, _ = open_page(app)
        entered(page, app)
        entry = publish_iris(store, forest(1))
        (entry.folder / "model.joblib").write_bytes(b"something else")
        page.wait_for_selector(".refusal", timeout=REFRESH)
        refused = answer_of(app, "/model")["refused"]
        shown = page.locator(".refusal").inner_text()
        assert refused["candidate"] in shown
        assert refused["message"] in shown
        assert page.locator("#version").inner_text() == "1"
        assert "accuracy 0.5 is below 0.9" in page.locator('#versions tr[data-version="2"]').inner_text()
        assert "make promote VERSION=2" in page.locator('#versions tr[data-version="2"]').inner_text()
        assert "worse than version 1" in page.locator("#part-versions").inner_text()


def test_the_page_waits_for_the_first_model(tmp_path: Path, open_page: OpenPage) -> None:
    store = Store(tmp_path)
    with application(store) as app:
        page, _ = open_page(app)
        enter(page, app)
        page.wait_for_selector("#parts")
        assert "no model has been published yet" in page.locator("#part-model").inner_text()
        with_reference(store, logistic())
        page.wait_for_selector("#row", timeout=REFRESH)


# --- hostile names


@pytest.mark.parametrize("options", [{}, PHONE], ids=["desktop", "phone"])
def test_hostile_names_are_shown_and_do_nothing(tmp_path: Path, open_page: OpenPage, options: dict[str, Any]) -> None:
    store = Store(tmp_path)
    publish_hostile(store)
    with application(store) as app:
        page, _ = open_page(app, **options)
        entered(page, app)
        page.get_by_role("button", name="Predict", exact=True).click()
        page.wait_for_selector("#answer .prediction")
        row = dict(zip(NAMES, map(float, np.round(iris()[0][0], 1)), strict=True))
        answer = httpx2.post(f"{app.url}/predict", json=row, headers=HEADERS).json()
        assert page.locator("#answer .prediction").text_content() == answer["prediction"]
        text = page.locator("body").inner_text()
        for name in (MARKUP, QUOTES, LONG):
            assert name in text
        assert page.locator("img, main script").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert violations(page) == []


# --- below a path


@pytest.mark.parametrize("strips", [True, False], ids=["proxy strips", "setting"])
def test_everything_works_below_a_path(trained: Path, open_page: OpenPage, strips: bool) -> None:
    path = "/team/iris"
    options: dict[str, Any] = {"proxy": stripping(path)} if strips else {"root_path": path}
    with application(Store(trained), path=path, **options) as app:
        page, noticed = open_page(app)
        entered(page, app)
        page.get_by_role("button", name="Predict", exact=True).click()
        page.wait_for_selector("#answer .prediction")
        page.get_by_role("button", name="Show the card of the served model").click()
        assert "Accepted" in page.frame_locator("iframe").locator("body").inner_text()
        page.get_by_role("link", name="API", exact=True).click()
        page.wait_for_selector(".swagger-ui .opblock")
        assert [url for url in noticed.requests if not url.startswith((f"{app.url}/", "blob:", "data:", "about:"))] == []


# --- access for everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("options", [{}, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_violation(
    running: Application, open_page: OpenPage, scheme: str, options: dict[str, Any], tmp_path: Path
) -> None:
    page, _ = open_page(running, color_scheme=scheme, **options)
    page.goto(f"{running.url}/ui")
    assert violations(page) == []
    entered(page, running)
    page.get_by_role("button", name="Predict", exact=True).click()
    page.wait_for_selector("#answer .prediction")
    table = tmp_path / "flowers.csv"
    pd.DataFrame(iris()[0], columns=list(A_FLOWER)).to_csv(table, index=False)
    page.get_by_label("Choose a table").set_input_files(table)
    page.get_by_role("button", name="Predict every row").click()
    page.wait_for_selector("#answers a")
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_console_is_used_with_the_keyboard_alone(running: Application, open_page: OpenPage) -> None:
    page, _ = open_page(running)
    page.goto(f"{running.url}/ui")
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "key":
            break
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector("#row")
    page.get_by_label("sepal_length", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer .prediction")
    page.locator("#minutes summary").focus()
    page.keyboard.press("Space")
    assert page.locator("#minutes table").is_visible()


# --- the other pages


def test_try_it_out_in_the_docs_answers(running: Application, open_page: OpenPage) -> None:
    page, _ = open_page(running)
    page.goto(f"{running.url}/docs")
    page.locator(".btn.authorize").first.click()
    page.locator(".auth-container input").first.fill(KEY)
    page.locator(".auth-btn-wrapper .authorize").first.click()
    page.locator(".auth-btn-wrapper .btn-done").first.click()
    block = page.locator("#operations-prediction-predict, [id$='-predict']").first
    block.locator(".opblock-summary").first.click()
    block.get_by_role("button", name="Try it out").click()
    block.get_by_role("button", name="Execute").click()
    status = block.locator(".live-responses-table .response-col_status").last
    status.wait_for()
    assert status.inner_text().split()[0] == "200"
    row = json.loads(block.locator("textarea").first.input_value())
    answer = httpx2.post(f"{running.url}/predict", json=row, headers=HEADERS).json()
    assert str(answer["prediction"]) in block.locator(".live-responses-table").inner_text()


def test_the_reference_shows_the_operations(running: Application, open_page: OpenPage) -> None:
    page, _ = open_page(running)
    page.goto(f"{running.url}/redoc")
    page.get_by_role("heading", name="Predict one row").first.wait_for()
