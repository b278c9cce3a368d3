"""Results that a client cannot use as they come: not finite, or named by labels that are no text; the same in scoring."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet
from sklearn.linear_model import LinearRegression, LogisticRegression
from starlette.testclient import TestClient

from serve_app.artifacts.signature import Feature, Signature
from serve_app.artifacts.store import Store
from serve_app.batch.pool import in_process
from serve_app.batch.run import Outcome, score
from serve_app.batch.score_options import ScoreOptions
from serve_app.errors import UsageError
from tests.support.apps import HEADERS, client_of
from tests.support.models import METRICS_OF, bundle_manifest, dumped, golden
from tests.support.scoring import as_answers, results

XY = tuple(Feature(name) for name in ("x", "y"))
LARGE = {"x": 1e38, "y": 0.0}
SMALL = {"x": 1e-300, "y": 1.0}


def publish(folder: Path, estimator: Any, signature: Signature) -> Store:
    X = np.array([[0.0, 0.0], [0.5, 1.0]])
    store = Store(folder / "models")
    files = {"model.joblib": dumped(estimator), "metrics.json": json.dumps(METRICS_OF).encode()}
    store.publish({**files, "golden.json": golden(estimator, signature, X)}, bundle_manifest(signature, target_names=None))
    return store


@pytest.fixture
def steep(tmp_path: Path) -> TestClient:
    """A client of a regression whose result for a large `x` is no float64."""
    estimator = LinearRegression().fit([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0.0, 1.0, 1.0])
    estimator.coef_ = np.array([1e300, 1.0])
    return client_of(publish(tmp_path, estimator, Signature(XY, "regression")))


def run(folder: Path, rows: list[dict[str, float]], kind: str = "csv", **options: Any) -> Outcome:
    table, data = pa.Table.from_pylist(rows), folder / f"data.{kind}"
    (csv.write_csv if kind == "csv" else parquet.write_table)(table, data)
    scoring = ScoreOptions(data=str(data), out=str(folder / "out"), model_dir=folder / "models", **options)
    return score(scoring, lambda _: nullcontext(), in_process)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy; a replica ignores all warnings
def test_a_result_that_is_not_finite_is_one_error_that_names_the_rows(steep: TestClient) -> None:
    good = steep.post("/predict", json=SMALL, headers=HEADERS)
    assert (good.status_code, good.json()) == (200, {"prediction": pytest.approx(2.0)})
    refused = steep.post("/predict", json=LARGE, headers=HEADERS)
    assert (refused.status_code, refused.json()["code"]) == (500, "not_finite_result")
    assert "errors" not in refused.json()
    for before in (1, 3000):
        body = {"instances": [SMALL] * before + [LARGE, SMALL]}
        refused = steep.post("/predict/batch", json=body, headers=HEADERS)
        assert (refused.status_code, refused.json()["code"]) == (500, "not_finite_result")
        assert [(error["field"], error["code"]) for error in refused.json()["errors"]] == [(f"instances[{before}]", "not_finite")]
    assert 'api_errors_total{endpoint="/predict",error_type="not_finite_result"} 1.0' in steep.get("/metrics").text


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_scoring_refuses_the_row_whose_result_the_api_refuses_or_keeps_its_message(
    steep: TestClient, tmp_path: Path, form: str
) -> None:
    rows = [SMALL, LARGE, SMALL]
    with pytest.raises(UsageError, match="row 2: the model computed a result that is not a finite number"):
        run(tmp_path, rows, form)
    outcome = run(tmp_path, rows, form, on_error="keep", restart=True)
    assert (outcome.rows, outcome.errors) == (3, 1)
    assert [row["prediction"] for row in results(tmp_path / "out")] == [pytest.approx(2.0), None, pytest.approx(2.0)]


@pytest.mark.parametrize(
    ("labels", "keys"),
    [([False, True], ["false", "true"]), ([1, 2], ["1", "2"]), ([0.5, 1.5], ["0.5", "1.5"]), (["no", "yes"], ["no", "yes"])],
    ids=str,
)
def test_the_predicted_label_finds_its_probability_in_every_answer(tmp_path: Path, labels: list[Any], keys: list[str]) -> None:
    X = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    codes = np.array(labels)[[0, 0, 1, 1]]
    estimator = LogisticRegression().fit(X, codes if labels != [0.5, 1.5] else codes.astype(str))
    store = publish(tmp_path, estimator, Signature(XY, "classification", tuple(labels)))
    client = client_of(store)
    rows = [{"x": 0.0, "y": 0.0}, {"x": 1.0, "y": 0.5}]
    answers = client.post("/predict/batch", json={"instances": rows}, headers=HEADERS).json()["predictions"]
    assert [client.post("/predict", json=row, headers=HEADERS).json() for row in rows] == answers
    for answer, label, key in zip(answers, labels, keys, strict=True):
        assert (answer["prediction"], list(answer["probabilities"])) == (label, keys)
        assert answer["probabilities"][key] == answer["confidence"]
    schema = client.get("/openapi.json").json()["components"]["schemas"]["Prediction"]["properties"]
    assert schema["probabilities"]["required"] == keys
    assert client.get("/model/info", headers=HEADERS).json()["target_names"] == keys
    assert f'model_predictions_total{{predicted_class="{keys[0]}"}}' in client.get("/metrics").text
    run(tmp_path, rows, "parquet", form="parquet")
    assert as_answers(results(tmp_path / "out")) == answers


def test_a_table_without_any_column_of_the_model_is_refused(tmp_path: Path) -> None:
    estimator = LinearRegression().fit([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0.0, 1.0, 1.0])
    features = tuple(Feature(name, nullable=True) for name in ("x", "y"))
    publish(tmp_path, estimator, Signature(features, "regression"))
    for form in ("csv", "parquet"):
        with pytest.raises(UsageError, match=r"no column of the model \(x, y\)"):
            run(tmp_path, [{"X": 1.0, "z": 2.0}], form)


def test_the_setting_that_refuses_unknown_fields_is_in_the_document(tmp_path: Path) -> None:
    estimator = LinearRegression().fit([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0.0, 1.0, 1.0])
    store = publish(tmp_path, estimator, Signature(XY, "regression"))
    strict, lenient = client_of(store, unknown_fields="refuse"), client_of(store)
    row = {**SMALL, "z": 1}
    for client, status in ((strict, 422), (lenient, 200)):
        assert client.post("/predict", json=row, headers=HEADERS).status_code == status
        assert client.post("/predict/batch", json={"instances": [row]}, headers=HEADERS).status_code == status
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
        assert schemas["Row"].get("additionalProperties", True) is (status == 200)
