"""The candidate and the served model on the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from serve_app.artifacts.bundle import read_bundle
from serve_app.artifacts.names import JOBLIB
from serve_app.artifacts.signature import Feature, Signature
from serve_app.artifacts.signing import signer
from serve_app.artifacts.store import Store
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.policy import load_policy as load_policy_of
from tests.support.bundles import bundle
from tests.support.hostile.pickles import Trap
from tests.support.hostile.signatures import key_pair
from tests.support.models import dumped, iris
from tests.support.policies import ALLOW_ALL, load_policy
from tests.support.stores import publish
from training.comparison import Comparison, NotComparable, compare, paired, served_predictions
from training.evaluate import ClassificationMetrics

MATRIX, TARGET = iris()
NAMES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
ROWS = [dict(zip(NAMES, map(float, row), strict=True)) for row in MATRIX]


def signature(**changes: Any) -> Signature:
    names = ("petal_width", "sepal_length", "sepal_width", "petal_length")  # the order is not part of the contract
    arguments = {"task": "classification", "classes": ("setosa", "versicolor", "virginica"), "names": names, **changes}
    return Signature(tuple(Feature(name) for name in arguments.pop("names")), **arguments)


@pytest.mark.parametrize("onnx", [False, True])
def test_the_served_model_is_called_as_clients_call_it(onnx: bool) -> None:
    model = RandomForestClassifier(10, random_state=0).fit(MATRIX, TARGET)
    predictions = served_predictions(bundle(model, onnx=onnx), ROWS, signature(), ALLOW_ALL)
    assert predictions.tolist() == model.predict(MATRIX).tolist()


def test_both_models_are_measured_on_the_same_rows() -> None:
    served = bundle(LogisticRegression(max_iter=500).fit(MATRIX, TARGET))
    constant = np.full(len(TARGET), "setosa", dtype=object)
    comparison = compare(served, ROWS, constant, TARGET, signature(), ALLOW_ALL)
    assert (comparison.compared, comparison.rows, comparison.version) == (True, 150, served.version)
    assert isinstance(comparison.new, ClassificationMetrics)
    assert isinstance(comparison.served, ClassificationMetrics)
    assert comparison.new.accuracy == pytest.approx(1 / 3)
    assert comparison.only_new_right == 0
    assert comparison.only_served_right == pytest.approx((comparison.served.accuracy - comparison.new.accuracy) * 150)


def test_the_document_of_a_comparison_has_the_written_keys() -> None:
    served = bundle(LogisticRegression(max_iter=500).fit(MATRIX, TARGET))
    document = compare(served, ROWS, TARGET.astype(object), TARGET, signature(), ALLOW_ALL).to_dict()
    assert set(document) == {
        *("compared", "version", "digest", "rows", "new", "served", "only_new_right", "only_served_right"),
    }
    assert set(document["new"]) == {"accuracy", "precision", "recall", "f1_score", "balanced_accuracy"}
    nothing = compare(None, ROWS, TARGET, TARGET, signature(), ALLOW_ALL)
    assert nothing.to_dict() == {"compared": False, "why": "no model is served yet"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"names": ("a", "b")}, "other features"),
        ({"classes": ("setosa", "versicolor")}, "other classes"),
        ({"task": "regression", "classes": ()}, "another task"),
    ],
)
def test_a_model_with_another_signature_is_not_compared(changes: dict[str, Any], why: str) -> None:
    served = bundle(LogisticRegression(max_iter=500).fit(MATRIX, TARGET))
    comparison = compare(served, ROWS, TARGET, TARGET, signature(**changes), ALLOW_ALL)
    assert comparison == Comparison(False, f"the served model has {why}", served.version, served.digest)


def test_a_model_that_cannot_be_opened_is_not_compared() -> None:
    broken = bundle(LogisticRegression(max_iter=500).fit(MATRIX, TARGET), libraries={"scikit-learn": "0.1.0"})
    with pytest.raises(NotComparable, match=r"0\.1\.0"):
        served_predictions(broken, ROWS, signature(), ALLOW_ALL)


def test_rows_that_the_served_model_refuses_are_not_compared() -> None:
    served = bundle(LogisticRegression(max_iter=500).fit(MATRIX, TARGET))
    with pytest.raises(NotComparable, match="between"):
        served_predictions(served, [{**row, "sepal_length": 500.0} for row in ROWS], signature(), ALLOW_ALL)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (load_policy(allow_joblib=False), "forbidden"),
        (load_policy(backend="onnx"), "forbidden"),
        (load_policy(verify=lambda digest, seal: False), "unsigned"),
    ],
)
def test_a_served_model_that_the_policy_refuses_is_not_unpickled(tmp_path: Path, policy: LoadPolicy, reason: str) -> None:
    canary = tmp_path / "canary"
    model = LogisticRegression(max_iter=500).fit(MATRIX, TARGET)
    trap = bundle(model, files={JOBLIB: dumped(Trap(Path.touch, canary))})
    comparison = compare(trap, ROWS, TARGET, TARGET, signature(), policy)
    assert (comparison.compared, comparison.refused, canary.exists()) == (False, reason, False)
    assert comparison.to_dict()["refused"] == reason
    compare(trap, ROWS, TARGET, TARGET, signature(), ALLOW_ALL)
    assert canary.exists()  # the trap would spring


def test_a_served_model_that_fails_on_the_rows_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("somebody else's model")

    served = bundle(LogisticRegression(max_iter=500).fit(MATRIX, TARGET))
    monkeypatch.setattr("serve_app.inference.predictor.Predictor.scores", fail)
    assert compare(served, ROWS, TARGET, TARGET, signature(), ALLOW_ALL).refused == "load"


def test_a_trainer_with_a_signing_key_trusts_its_own_bundles_alone(tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "own")
    _, other = key_pair(tmp_path, "other")
    store = Store(tmp_path / "models")
    publish(store)
    unsigned = store.current()
    entry = publish(store, sign=signer(private))
    signed = read_bundle(entry.folder)
    for keys, bundles in (
        ({"signing_key": private, "verify_key": None}, [signed]),
        ({"verify_key": public}, [signed]),
        ({"signing_key": private, "verify_key": other}, []),
        ({"verify_key": None}, [unsigned, signed]),
    ):
        verify = load_policy_of(allow_joblib=True, backend="auto", **keys).verify
        trusted = [one for one in (unsigned, signed) if one is not None and (verify is None or verify(one.digest, one.seal))]
        assert trusted == bundles


def test_rows_that_only_one_of_two_predicts_correctly_are_counted() -> None:
    new, served, target = (np.array(list(texts), dtype=object) for texts in ("aabb", "abbb", "aaab"))
    assert paired(new, served, target) == (1, 0)
