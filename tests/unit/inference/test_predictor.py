from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import sklearn
from sklearn.linear_model import SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from serve_app.artifacts.names import JOBLIB
from serve_app.artifacts.signature import Signature
from serve_app.artifacts.store import Store
from serve_app.errors import InvalidInput, TooManyRows
from serve_app.inference.backends.onnx_backend import OnnxBackend
from serve_app.inference.backends.sklearn_backend import ENCODE, SklearnBackend, strip_encoder
from serve_app.inference.parity import same_scores
from serve_app.inference.predictor import open_predictor
from tests.support.bundles import IRIS, bundle
from tests.support.models import (
    A_FLOWER,
    IRIS_CLASSES,
    diabetes,
    diabetes_signature,
    dumped,
    forest,
    forest_of_numbers,
    iris,
    iris_signature,
    linear,
    logistic,
    publish_iris,
    without_probabilities,
)
from tests.support.native import answer_row, answer_rows
from tests.support.policies import ALLOW_ALL, load_policy
from training.convert import to_onnx

X, y = iris()
D, d = diabetes()


def table(signature: Signature, rows: Any) -> bytes:
    return orjson.dumps({"instances": [dict(zip(signature.names, map(float, row), strict=True)) for row in rows]})


@pytest.mark.parametrize("model", [forest, logistic], ids=["forest", "logistic regression"])
def test_every_way_of_computing_gives_the_same_answers(model: Any) -> None:
    estimator = model()
    both = bundle(estimator, onnx=True)
    ways = [open_predictor(both, ALLOW_ALL), open_predictor(both, load_policy(backend="scikit-learn"))]
    assert [way.kind for way in ways] == ["onnx", "scikit-learn"]
    expected = estimator.predict_proba(X)
    for way in ways:
        answers = orjson.loads(answer_rows(way, table(IRIS, X)))["predictions"]
        assert [answer["prediction"] for answer in answers] == estimator.predict(X).tolist()
        found = np.array([list(answer["probabilities"].values()) for answer in answers])
        assert same_scores(expected, found, IRIS)
        for row in (0, 77, 149):
            one = orjson.loads(answer_row(way, orjson.dumps(dict(zip(IRIS.names, map(float, X[row]), strict=True)))))
            assert one["prediction"] == answers[row]["prediction"]
            assert list(one["probabilities"].values()) == pytest.approx(list(answers[row]["probabilities"].values()), abs=1e-6)
    np.testing.assert_array_equal(ways[1].scores(X), expected)


@pytest.mark.parametrize(
    ("model", "onnx", "kind"),
    [(linear, True, "onnx"), (linear, False, "scikit-learn"), (forest_of_numbers, False, "scikit-learn")],
)
def test_a_regression_answers_its_value(model: Any, onnx: bool, kind: str) -> None:
    estimator, signature = model(), diabetes_signature()
    found = open_predictor(bundle(estimator, signature, onnx=onnx), ALLOW_ALL)
    assert found.kind == kind
    answers = orjson.loads(answer_rows(found, table(signature, D[:20])))["predictions"]
    assert [answer["prediction"] for answer in answers] == pytest.approx(estimator.predict(D[:20]).tolist(), rel=1e-5)
    assert orjson.loads(answer_row(found, orjson.dumps(signature.example()))).keys() == {"prediction"}


def test_a_classifier_without_probabilities_answers_its_label() -> None:
    signature = iris_signature(probabilistic=False)
    estimator = without_probabilities()
    found = open_predictor(bundle(estimator, signature), ALLOW_ALL)
    answers = orjson.loads(answer_rows(found, table(signature, X)))["predictions"]
    assert [answer["prediction"] for answer in answers] == estimator.predict(X).tolist()
    assert orjson.loads(answer_row(found, orjson.dumps(A_FLOWER))) == {
        "prediction": "setosa",
        "confidence": None,
        "probabilities": None,
    }


def test_classes_are_answered_in_the_order_of_the_signature() -> None:
    order = ("virginica", "setosa", "versicolor")
    turned = open_predictor(bundle(forest(), iris_signature(classes=order)), ALLOW_ALL)
    straight = open_predictor(bundle(forest()), ALLOW_ALL)
    found = orjson.loads(answer_rows(turned, table(IRIS, X)))["predictions"]
    assert [list(answer["probabilities"]) for answer in found] == [list(order)] * len(X)
    assert found == orjson.loads(answer_rows(straight, table(IRIS, X)))["predictions"]


def test_numbers_that_stand_for_classes_are_answered_by_their_names() -> None:
    numbered = sklearn.base.clone(forest()).fit(X, [float(IRIS_CLASSES.index(name)) for name in y])
    found = open_predictor(bundle(numbered, golden=False), ALLOW_ALL)
    assert orjson.loads(answer_row(found, orjson.dumps(A_FLOWER)))["prediction"] == "setosa"


def test_two_classes_are_answered_in_a_batch_too() -> None:
    rows = y != "virginica"
    estimator = SGDClassifier(loss="log_loss", random_state=0).fit(X[rows], y[rows])
    found = open_predictor(bundle(estimator, iris_signature(classes=("versicolor", "setosa")), golden=False), ALLOW_ALL)
    answers = orjson.loads(answer_rows(found, table(IRIS, X[:60])))["predictions"]
    assert [answer["prediction"] for answer in answers] == estimator.predict(X[:60]).tolist()


def test_our_pipeline_is_served_behind_the_step_that_reads_tables() -> None:
    import pandas as pd

    frame = pd.DataFrame(X, columns=list(IRIS.names))
    pipeline = Pipeline([(ENCODE, FunctionTransformer(lambda rows: rows)), ("model", sklearn.base.clone(forest()))]).fit(frame, y)
    (_, step), (_, last) = pipeline.steps
    assert strip_encoder(pipeline) is last
    assert not hasattr(last, "feature_names_in_")
    longer = Pipeline([(ENCODE, step), *logistic().steps])
    assert [name for name, _ in strip_encoder(longer).steps] == ["standardscaler", "logisticregression"]


def test_a_model_that_was_fitted_on_a_table_with_names_answers_without_a_warning() -> None:
    import pandas as pd

    estimator = GaussianNB().fit(pd.DataFrame(X, columns=list(IRIS.names)), y)
    found = open_predictor(bundle(forest(), golden=False, files={JOBLIB: dumped(estimator)}), ALLOW_ALL)
    assert orjson.loads(answer_row(found, orjson.dumps(A_FLOWER)))["prediction"] == "setosa"


def test_a_wrong_row_is_refused_before_the_model_sees_it() -> None:
    found = open_predictor(bundle(forest()), ALLOW_ALL)
    for body in (b"{}", orjson.dumps({**A_FLOWER, "sepal_length": 21}), b"no"):
        with pytest.raises(InvalidInput):
            answer_row(found, body)
    with pytest.raises(TooManyRows, match=r"\b2\b"):
        answer_rows(found, table(IRIS, X[:3]), max_rows=2)


def test_parity_means_equal_labels_and_close_probabilities() -> None:
    scores = np.array([[0.5, 0.5 - 1e-7, 1e-7], [0.1, 0.2, 0.7]])
    assert same_scores(scores, scores + 9e-6, IRIS)
    assert not same_scores(scores, scores + 2e-5, IRIS)
    assert not same_scores(scores, scores + np.array([[0, 2e-7, 0], [0, 0, 0]]), IRIS)
    assert not same_scores(scores, np.full_like(scores, np.nan), IRIS)
    hard = iris_signature(probabilistic=False)
    assert same_scores(np.array([0.0, 1.0]), np.array([0.0, 1.0]), hard)
    assert not same_scores(np.array([0.0, 1.0]), np.array([0.0, 2.0]), hard)


def test_parity_of_a_regression_is_relative_to_its_scale() -> None:
    signature = diabetes_signature()
    assert same_scores(np.array([1e6, 0.0]), np.array([1e6 + 9, 9.0]), signature)
    assert not same_scores(np.array([1e6, 0.0]), np.array([1e6 + 11, 0.0]), signature)
    assert not same_scores(np.array([0.0]), np.array([2e-5]), signature)
    assert not same_scores(np.array([0.0]), np.array([np.nan]), signature)


def test_trees_need_their_inputs_rounded_as_scikit_learn_rounds_them() -> None:
    raw = to_onnx(forest(), IRIS, "float64", float64_operators=False)
    rows = np.random.default_rng(0).uniform(0, 8, (2000, 4))
    thresholds = np.concatenate([tree.tree_.threshold[tree.tree_.feature >= 0] for tree in forest().estimators_])
    rows[: len(thresholds)] = thresholds[:2000, None] + 1e-9  # beside the edge in float64, on it in float32
    expected = SklearnBackend(forest(), IRIS).scores(rows)
    assert same_scores(expected, OnnxBackend(raw, IRIS, rounded=True).scores(rows), IRIS)
    assert not same_scores(expected, OnnxBackend(raw, IRIS, rounded=False).scores(rows), IRIS)


def test_a_converted_model_is_served_without_importing_scikit_learn(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store, forest(), onnx=True)
    program = f"""
import sys
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.slot import Slot
from serve_app.artifacts.store import Store
slot = Slot(Store({str(tmp_path)!r}), policy=LoadPolicy(allow_joblib=True, backend="auto", verify=None))
slot.refresh()
assert slot.predictor.kind == "onnx"
import serve_app.http.app
print([name for name in ("sklearn", "scipy", "joblib", "pandas") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", ["backend", "bundle", "profile", "slow", "version"])
def test_a_predictor_never_changes(name: str) -> None:
    found = open_predictor(bundle(logistic(), onnx=True), ALLOW_ALL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(found, name, None)
