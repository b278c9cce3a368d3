from __future__ import annotations

import datetime as dt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sklearn.naive_bayes import GaussianNB

from serve_app.artifacts.manifest import Manifest
from serve_app.artifacts.signature import Feature, Signature
from serve_app.artifacts.store import Store
from serve_app.inference.predictor import Predictor, open_predictor
from serve_app.inference.slot import Slot
from serve_app.telemetry import collector as module
from serve_app.telemetry.collector import KEPT_VERSIONS, MetricsCollector, age_seconds
from serve_app.telemetry.drift import MAX_FEATURES
from tests.support.bundles import bundle
from tests.support.models import diabetes_signature, forest, iris, iris_signature, linear, publish_iris, without_probabilities
from tests.support.policies import ALLOW_ALL

X, y = iris()


@pytest.fixture
def accounts(tmp_path: Path) -> MetricsCollector:
    return MetricsCollector(Slot(Store(tmp_path), policy=ALLOW_ALL))


def ask(accounts: MetricsCollector, predictor: Predictor, rows: Any) -> Any:
    scores = predictor.scores(rows)
    accounts.predicted(predictor, rows, scores)
    return scores


def values(accounts: MetricsCollector) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample that Prometheus would see, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in accounts.collect()
        for sample in family.samples
    }


def test_rows_are_counted_by_class_and_by_confidence(accounts: MetricsCollector) -> None:
    predictor = open_predictor(bundle(forest()), ALLOW_ALL)
    scores = np.vstack([ask(accounts, predictor, X[:1]), ask(accounts, predictor, X)])
    found = values(accounts)
    chosen = np.array(predictor.signature.classes)[scores.argmax(axis=1)]
    for label in predictor.signature.classes:
        mine = scores[chosen == label].max(axis=1)
        assert found["model_predictions_total", (("predicted_class", str(label)),)] == len(mine)
        for bound in (0.5, 0.9, 1.0):
            counted = found["model_confidence_bucket", (("le", str(bound)), ("predicted_class", str(label)))]
            assert counted == np.count_nonzero(mine <= bound)
        assert found["model_confidence_sum", (("predicted_class", str(label)),)] == pytest.approx(mine.sum())
    assert found["model_rows_per_request_bucket", (("le", "1.0"),)] == 1
    assert found["model_rows_per_request_count", ()] == 2
    assert found["model_rows_per_request_sum", ()] == 151


def test_values_outside_what_training_saw_are_counted_by_feature(accounts: MetricsCollector) -> None:
    predictor = open_predictor(bundle(forest()), ALLOW_ALL)
    ask(accounts, predictor, np.array([[5.1, 3.5, 1.4, 0.2], [19.0, 3.5, 0.0, 0.2], [19.0, 3.5, 1.4, np.nan]]))
    found = values(accounts)
    assert found["model_input_out_of_range_total", (("feature", "sepal_length"),)] == 2
    assert found["model_input_out_of_range_total", (("feature", "petal_length"),)] == 1
    assert ("model_input_out_of_range_total", (("feature", "petal_width"),)) not in found


def test_a_wide_table_does_not_add_a_series_per_feature(accounts: MetricsCollector) -> None:
    wide = Signature(tuple(Feature(f"f{i}", low=0.0, high=1.0) for i in range(MAX_FEATURES + 20)), "regression")
    rows = np.full((3, len(wide.features)), 2.0)
    accounts.predicted(SimpleNamespace(signature=wide, version="1", digest=""), rows, np.zeros((3, 1)))  # type: ignore[arg-type]
    accounts.flush()
    assert len(accounts.out_of_range) == MAX_FEATURES


def test_a_regression_and_a_classifier_without_probabilities_are_counted_too(accounts: MetricsCollector) -> None:
    ask(accounts, open_predictor(bundle(linear(), diabetes_signature()), ALLOW_ALL), np.zeros((3, 10)))
    hard = open_predictor(bundle(without_probabilities(), iris_signature(probabilistic=False)), ALLOW_ALL)
    scores = ask(accounts, hard, X)
    found = values(accounts)
    assert found["model_predictions_total", (("predicted_class", "value"),)] == 3
    assert found["model_predictions_total", (("predicted_class", "setosa"),)] == np.count_nonzero(scores == 0)
    assert not any(name.startswith("model_confidence") for name, _ in found)


def test_requests_and_their_time_are_counted_by_route_kind_of_answer_and_model(accounts: MetricsCollector) -> None:
    for status in (200, 200, 422, 401, 503):
        accounts.answered("/predict", status, "3", 0.003)
    accounts.answered("/predict", 200, "4", 99.0)
    accounts.failed("InvalidInput", "/predict")
    found = values(accounts)

    def requests(version: str, kind: str, **more: str) -> tuple[tuple[str, str], ...]:
        return tuple(sorted({"model_version": version, "route": "/predict", "status_class": kind, **more}.items()))

    assert [found["http_requests_total", requests("3", kind)] for kind in ("2xx", "4xx", "5xx")] == [2, 2, 1]
    assert found["http_requests_total", requests("4", "2xx")] == 1
    assert found["api_errors_total", (("endpoint", "/predict"), ("error_type", "InvalidInput"))] == 1
    assert found["http_request_duration_seconds_bucket", requests("3", "2xx", le="0.0025")] == 0
    assert found["http_request_duration_seconds_bucket", requests("3", "2xx", le="0.005")] == 2
    assert found["http_request_duration_seconds_bucket", requests("4", "2xx", le="10.0")] == 0
    assert found["http_request_duration_seconds_bucket", requests("4", "2xx", le="+Inf")] == 1
    assert found["http_request_duration_seconds_sum", requests("4", "2xx")] == 99


def test_errors_of_predictions_are_there_at_zero_before_the_first_one(accounts: MetricsCollector) -> None:
    found = values(accounts)
    for kind in ("4xx", "5xx"):
        assert found["http_requests_total", (("model_version", ""), ("route", "/predict"), ("status_class", kind))] == 0


def test_every_metric_is_explained_in_the_docs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store, onnx=True)
    slot = Slot(store, policy=ALLOW_ALL)
    slot.refresh()
    found = MetricsCollector(slot, tmp_path)
    found.poll_store()
    text = (Path(__file__).parents[3] / "docs" / "monitoring.md").read_text()
    names = {family.name + ("_total" if family.type == "counter" else "") for family in found.collect()}
    assert len(names) > 15
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_counting_twice_counts_nothing_twice(accounts: MetricsCollector) -> None:
    ask(accounts, open_predictor(bundle(forest()), ALLOW_ALL), X)
    accounts.answered("/predict", 200, "1", 0.1)
    assert values(accounts) == values(accounts)


def test_versions_of_long_ago_are_forgotten_so_that_swaps_do_not_add_series_for_ever(tmp_path: Path) -> None:
    store = Store(tmp_path)
    accounts = MetricsCollector(Slot(store, policy=ALLOW_ALL))
    sizes = []
    for _ in range(KEPT_VERSIONS + 3):
        publish_iris(store, reference={"rows": 3, "features": {}, "classes": {"setosa": 1.0}})
        accounts.slot.refresh()
        predictor = accounts.slot.predictor
        assert predictor is not None
        ask(accounts, predictor, X)
        accounts.answered("/predict", 200, predictor.version, 0.001)
        sizes.append(len(values(accounts)))
    assert sizes[-1] == sizes[-2] == sizes[-3]
    versions = {dict(labels).get("model_version") for _, labels in values(accounts)} - {None, ""}
    assert versions == {"4", "5", "6"}


def test_what_is_pending_stays_small_under_any_load(accounts: MetricsCollector) -> None:
    predictor = open_predictor(bundle(forest()), ALLOW_ALL)
    many = np.repeat(X, 40, axis=0)
    scores = predictor.scores(many)
    for _ in range(30):
        accounts.predicted(predictor, many, scores)
        assert sum(len(found) for found in accounts._scores) < module.PENDING_ROWS
    for _ in range(2 * module.PENDING):
        accounts.answered("/predict", 200, "1", 0.1)
        assert sum(map(len, accounts._answered.values())) < module.PENDING
    assert values(accounts)["model_rows_per_request_count", ()] == 30


def test_the_slot_is_told_with_the_model_or_without(tmp_path: Path) -> None:
    store = Store(tmp_path)
    accounts = MetricsCollector(Slot(store, policy=ALLOW_ALL))
    assert values(accounts)["model_loaded", ()] == 0
    entry = publish_iris(store, trained_at=dt.datetime.now(dt.UTC).isoformat())
    accounts.slot.refresh()
    found = values(accounts)
    swaps = {result: found["model_swaps_total", (("result", result),)] for result in ("swapped", "refused")}
    assert (found["model_loaded", ()], swaps) == (1, {"swapped": 1, "refused": 0})
    labels = {"version": "1", "digest": entry.digest[:12], "predictor": "scikit-learn", "source": "store"}
    assert found["model_info", tuple(sorted(labels.items()))] == 1
    assert found["model_age_seconds", ()] >= 0
    assert all(value == 0 for (name, _), value in found.items() if name == "model_refused")
    store.publish({"model.joblib": b"rubbish", "metrics.json": b"{}"}, Manifest(signature=iris_signature()))
    accounts.slot.refresh()
    for _ in range(2):  # a refusal that lasts is one refusal
        found = values(accounts)
        refused = {dict(labels)["reason"]: value for (name, labels), value in found.items() if name == "model_refused"}
        assert [reason for reason, value in refused.items() if value] == ["load"]
        assert found["model_swaps_total", (("result", "refused"),)] == 1


def test_prometheus_reads_what_is_collected_whatever_the_names(accounts: MetricsCollector) -> None:
    odd = {"setosa": 'quote"', "versicolor": "back\\slash", "virginica": "line\nbreak"}
    estimator = GaussianNB().fit(X, [odd[name] for name in y])
    signature = iris_signature(classes=tuple(odd.values()))
    ask(accounts, open_predictor(bundle(estimator, signature), ALLOW_ALL), X)
    registry = CollectorRegistry()
    registry.register(accounts)  # type: ignore[arg-type]
    families = text_string_to_metric_families(generate_latest(registry).decode())
    read = {sample.labels.get("predicted_class") for family in families for sample in family.samples}
    assert set(odd.values()) < read


@pytest.mark.parametrize(
    "told",
    [{}, {"trained_at": None}, {"trained_at": "yesterday"}, {"trained_at": "0001-01-01T00:00:00"}],
    ids=str,
)
def test_a_model_of_unknown_age_has_none(told: dict[str, Any]) -> None:
    assert age_seconds(bundle(forest(), **told)) is None


def test_age_is_counted_from_training() -> None:
    hour_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    age = age_seconds(bundle(forest(), trained_at=hour_ago.isoformat()))
    assert age is not None
    assert 3600 <= age < 7200
