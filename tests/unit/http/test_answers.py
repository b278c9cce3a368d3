"""Every shape of answers, served and scored: the numbers are those of the estimator itself."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pandas as pd
import pytest

from serve_app.artifacts.signature import Signature, label_text
from serve_app.artifacts.store import Store
from serve_app.batch.pool import in_process
from serve_app.batch.run import score
from serve_app.batch.score_options import ScoreOptions
from serve_app.inference.parity import TOLERANCE
from tests.support import answers, tables
from tests.support.answers import CONVERTED, MODELS, NAMES, Fitted, fitted, json_rows, publish, signature_of
from tests.support.apps import HEADERS, client_of
from tests.support.scoring import results

pytestmark = pytest.mark.filterwarnings("ignore:.*precision.*:RuntimeWarning")

ROWS = answers.rows()[:24]


def own(model: Fitted, signature: Signature) -> list[dict[str, Any]]:
    """What the estimator itself says of ROWS, in the shape of answers."""
    estimator = model.estimator
    if signature.outputs:
        return own_outputs(model, signature)
    predicted = estimator.predict(ROWS).tolist()
    if signature.task == "outlier detection":
        scores = estimator.decision_function(ROWS).tolist()
        return [{"outlier": flag == -1, "score": value} for flag, value in zip(predicted, scores, strict=True)]
    if signature.task == "clustering":
        return own_clusters(estimator, predicted)
    if len(signature.quantiles) > 1:
        names = [str(level) for level in signature.quantiles]
        found = [{"quantiles": dict(zip(names, row, strict=True))} for row in predicted]
        return [{"prediction": each["quantiles"]["0.5"], **each} if "0.5" in names else each for each in found]
    if signature.task == "regression":
        named = [{str(level): value for level in signature.quantiles} for value in predicted]
        return [{"prediction": value, "quantiles": levels} for value, levels in zip(predicted, named, strict=True)]
    if not signature.probabilistic:
        return [{"prediction": label, "confidence": None, "probabilities": None} for label in predicted]
    return own_classes(predicted, estimator.predict_proba(ROWS), estimator.classes_)


def own_classes(predicted: list[Any], probabilities: Any, classes: Any) -> list[dict[str, Any]]:
    names = [label_text(label) for label in np.asarray(classes).tolist()]
    answers = []
    for label, row in zip(predicted, probabilities.tolist(), strict=True):
        shares = dict(zip(names, row, strict=True))
        answers.append({"prediction": label, "confidence": shares[label_text(label)], "probabilities": shares})
    return answers


def own_clusters(estimator: Any, predicted: list[int]) -> list[dict[str, Any]]:
    clusters = [{"cluster": label} for label in predicted]
    if hasattr(estimator, "predict_proba"):
        shares = estimator.predict_proba(ROWS).tolist()
        named = [{str(at): share for at, share in enumerate(row)} for row in shares]
        return [{**cluster, "probabilities": row} for cluster, row in zip(clusters, named, strict=True)]
    if not hasattr(estimator, "transform"):
        return clusters
    return [{**each, "distance": low} for each, low in zip(clusters, estimator.transform(ROWS).min(axis=1).tolist(), strict=True)]


def own_outputs(model: Fitted, signature: Signature) -> list[dict[str, Any]]:
    estimator = model.estimator
    columns = np.asarray(estimator.predict(ROWS)).T
    if signature.task == "regression":
        by_target = [[{"prediction": value} for value in column.tolist()] for column in columns]
    elif not signature.outputs[0].probabilistic:
        by_target = [[{"prediction": v, "confidence": None, "probabilities": None} for v in column.tolist()] for column in columns]
    else:
        blocks = estimator.predict_proba(ROWS)
        if not isinstance(blocks, list):
            blocks = [np.column_stack([1 - column, column]) for column in blocks.T]
        classes = estimator.classes_ if isinstance(estimator.classes_, list) else [[0, 1]] * len(blocks)
        by_target = [
            own_classes(
                [type(known[0].item() if hasattr(known[0], "item") else known[0])(v) for v in column.tolist()], block, known
            )
            for column, block, known in zip(columns, blocks, classes, strict=True)
        ]
    return [{"outputs": dict(zip(model.targets, row, strict=True))} for row in zip(*by_target, strict=True)]


def served(store: Store) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """The answers to ROWS, row by row and in one batch, and the schemas of the OpenAPI document."""
    with client_of(store) as client:
        singles = []
        for row in json_rows(ROWS):
            reply = client.post("/predict", json=row, headers=HEADERS)
            assert reply.status_code == 200, reply.text
            singles.append(reply.json())
        reply = client.post("/predict/batch", json={"instances": json_rows(ROWS)}, headers=HEADERS)
        assert reply.status_code == 200, reply.text
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
        info = client.get("/model/info", headers=HEADERS)
        assert info.status_code == 200
    return singles, reply.json()["predictions"], schemas


def flat(answer: Any, path: str = "") -> dict[str, Any]:
    """The leaves of an answer by their path."""
    if not isinstance(answer, dict):
        return {path: answer}
    return {name: leaf for key, value in answer.items() for name, leaf in flat(value, f"{path}/{key}").items()}


def assert_close(expected: list[dict[str, Any]], actual: list[dict[str, Any]]) -> None:
    """Same keys, same labels, numbers within the tolerance of two backends (relative to the largest number)."""
    for one, other in zip(expected, actual, strict=True):
        left, right = flat(one), flat(other)
        assert left.keys() == right.keys()
        for key, value in left.items():
            if isinstance(value, float) and not isinstance(value, bool):
                assert right[key] == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE)
            else:
                assert right[key] == value, key


@pytest.mark.parametrize("name", MODELS)
def test_an_answer_is_what_the_estimator_says_bit_for_bit(tmp_path: Path, name: str) -> None:
    model = fitted(name)
    store, signature = Store(tmp_path), signature_of(model)
    publish(store, model)
    singles, batch, schemas = served(store)
    expected = own(model, signature)
    if (
        "several" in name
        or "linear" in name
        or name in ("ridge of numbers", "chain of classifiers", "indicators", "chain of regressors")
    ):
        assert_close(expected, batch)  # BLAS may round the rows of another call otherwise
        assert_close(expected, singles)
    else:
        assert batch == expected
        assert_close(expected, singles)
    for answer in batch:
        jsonschema.validate(answer, {**schemas["Prediction"], "$defs": schemas})
        assert flat(answer).keys() == flat(expected[0]).keys()


@pytest.mark.parametrize("name", CONVERTED)
def test_the_onnx_form_says_the_same(tmp_path: Path, name: str) -> None:
    model = fitted(name)
    store = Store(tmp_path)
    publish(store, model, onnx=True)
    singles, batch, _ = served(store)
    expected = own(model, signature_of(model))
    assert_close(expected, batch)
    assert_close(expected, singles)
    with client_of(store) as client:
        assert client.get("/model", headers=HEADERS).json()["predictor"] == "onnx"


def as_columns(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer as the columns of a table have it."""
    columns: dict[str, Any] = {}
    for key, value in answer.items():
        if key == "outputs":
            for target, inner in value.items():
                for name, cell in as_columns(inner).items():
                    first, separator, rest = name.partition("_")
                    columns[f"{first}_{target}{separator}{rest}"] = cell
        elif isinstance(value, dict):
            singular = {"probabilities": "probability", "quantiles": "quantile"}[key]
            columns |= {f"{singular}_{name}": cell for name, cell in value.items()}
        elif key != "probabilities":
            columns[key] = value
    return columns


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("name", MODELS)
def test_a_table_is_scored_with_the_numbers_of_the_api(tmp_path: Path, name: str, ending: str) -> None:
    model = fitted(name)
    store = Store(tmp_path / "models")
    publish(store, model)
    table = tables.written(pd.DataFrame(ROWS, columns=list(NAMES)), tmp_path, f"rows.{ending}")
    options = ScoreOptions(data=str(table), out=str(tmp_path / "out"), model_dir=tmp_path / "models", form=ending)  # type: ignore[arg-type]
    score(options, lambda _: nullcontext(), in_process)
    _, batch, _ = served(store)
    scored = results(tmp_path / "out")
    assert [{key: value for key, value in row.items() if key != "model_version"} for row in scored] == [
        {key: table_cell(value, ending) for key, value in as_columns(answer).items()} for answer in batch
    ]


def table_cell(value: Any, ending: str) -> Any:
    """A text of digits comes back from CSV as a number, and an absent number as an empty cell."""
    return int(value) if ending == "csv" and isinstance(value, str) and value.isdigit() else value
