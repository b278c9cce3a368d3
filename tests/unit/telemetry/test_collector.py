from __future__ import annotations

import datetime as dt
import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sklearn.naive_bayes import GaussianNB

from serve_app.artifacts.manifest import Manifest
from serve_app.artifacts.signature import Feature, Output, Signature
from serve_app.artifacts.store import Store
from serve_app.inference.backends.sklearn_backend import SklearnBackend
from serve_app.inference.predictor import Predictor, open_predictor
from serve_app.inference.slot import Slot
from serve_app.telemetry import collector as module
from serve_app.telemetry.collector import KEPT_VERSIONS, PREDICT, MetricsCollector, age_seconds
from serve_app.telemetry.drift import MAX_FEATURES
from serve_app.telemetry.state import RequestLabels
from tests.support import answers
from tests.support.bundles import bundle
from tests.support.models import diabetes_signature, forest, iris, iris_signature, linear, publish_iris, without_probabilities
from tests.support.policies import ALLOW_ALL

X, y = iris()


@pytest.fixture
def collector(tmp_path: Path) -> MetricsCollector:
    return MetricsCollector(Slot(Store(tmp_path), policy=ALLOW_ALL))


def predict(collector: MetricsCollector, predictor: Predictor, rows: Any) -> Any:
    scores = predictor.scores(rows)
    collector.predicted(predictor, rows, scores)
    return scores


def values(collector: MetricsCollector) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample that Prometheus would see, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in collector.collect()
        for sample in family.samples
    }


def test_rows_are_counted_by_class_and_by_confidence(collector: MetricsCollector) -> None:
    predictor = open_predictor(bundle(forest()), ALLOW_ALL)
    scores = np.vstack([predict(collector, predictor, X[:1]), predict(collector, predictor, X)])
    samples = values(collector)
    predicted_classes = np.array(predictor.signature.classes)[scores.argmax(axis=1)]
    for label in predictor.signature.classes:
        probabilities = scores[predicted_classes == label].max(axis=1)
        assert samples["model_predictions_total", (("predicted_class", str(label)),)] == len(probabilities)
        for bound in (0.5, 0.9, 1.0):
            count = samples["model_confidence_bucket", (("le", str(bound)), ("predicted_class", str(label)))]
            assert count == np.count_nonzero(probabilities <= bound)
        assert samples["model_confidence_sum", (("predicted_class", str(label)),)] == pytest.approx(probabilities.sum())
    assert samples["model_rows_per_request_bucket", (("le", "1.0"),)] == 1
    assert samples["model_rows_per_request_count", ()] == 2
    assert samples["model_rows_per_request_sum", ()] == 151


def test_values_outside_what_training_saw_are_counted_by_feature(collector: MetricsCollector) -> None:
    predictor = open_predictor(bundle(forest()), ALLOW_ALL)
    predict(collector, predictor, np.array([[5.1, 3.5, 1.4, 0.2], [19.0, 3.5, 0.0, 0.2], [19.0, 3.5, 1.4, np.nan]]))
    samples = values(collector)
    assert samples["model_input_out_of_range_total", (("feature", "sepal_length"),)] == 2
    assert samples["model_input_out_of_range_total", (("feature", "petal_length"),)] == 1
    assert ("model_input_out_of_range_total", (("feature", "petal_width"),)) not in samples


def test_a_wide_table_does_not_add_a_series_per_feature(collector: MetricsCollector) -> None:
    wide = Signature(tuple(Feature(f"f{i}", low=0.0, high=1.0) for i in range(MAX_FEATURES + 20)), "regression")
    rows = np.full((3, len(wide.features)), 2.0)
    collector.predicted(SimpleNamespace(signature=wide, version="1", digest=""), rows, np.zeros((3, 1)))  # type: ignore[arg-type]
    collector.flush()
    assert len(collector.state.out_of_range) == MAX_FEATURES


def test_a_regression_and_a_classifier_without_probabilities_are_counted_too(collector: MetricsCollector) -> None:
    predict(collector, open_predictor(bundle(linear(), diabetes_signature()), ALLOW_ALL), np.zeros((3, 10)))
    hard = open_predictor(bundle(without_probabilities(), iris_signature(probabilistic=False)), ALLOW_ALL)
    scores = predict(collector, hard, X)
    samples = values(collector)
    assert samples["model_predictions_total", (("predicted_class", "value"),)] == 3
    assert samples["model_predictions_total", (("predicted_class", "setosa"),)] == np.count_nonzero(scores == 0)
    assert not any(name.startswith("model_confidence") for name, _ in samples)


def test_answers_of_every_shape_are_counted_by_a_few_labels(collector: MetricsCollector) -> None:
    rows = answers.rows()
    expected: dict[str, int] = {}
    for name in ("isolation forest", "k-means", "forest of classes", "forest of numbers", "three quantiles"):
        model = answers.fitted(name)
        signature = answers.signature_of(model)
        scores = SklearnBackend(model.estimator, signature).scores(rows)
        collector.predicted(SimpleNamespace(signature=signature, version="1", digest=""), rows, scores)  # type: ignore[arg-type]
        collector.flush()
        if name == "isolation forest":
            odd = int((model.estimator.predict(rows) == -1).sum())
            expected |= {"outlier": odd, "inlier": len(rows) - odd}
        elif name == "k-means":
            expected |= {str(label): int(n) for label, n in enumerate(np.bincount(model.estimator.predict(rows)))}
        elif name == "forest of classes":
            for target, column in zip(model.targets, model.estimator.predict(rows).T, strict=True):
                labels, counts = np.unique(column, return_counts=True)
                expected |= {f"{target}: {label}": int(n) for label, n in zip(labels, counts, strict=True)}
    expected["value"] = 2 * len(rows)
    assert dict(collector.state.predictions) == expected
    assert set(collector.state.confidence) == {label for label in expected if ": " in label}


def test_many_targets_with_many_classes_do_not_add_a_series_for_each(collector: MetricsCollector) -> None:
    outputs = tuple(Output(f"t{at}", tuple(range(40)), probabilistic=False) for at in range(25))
    signature = Signature((Feature("x"),), "classification", outputs=outputs)
    scores = np.tile(np.arange(40.0)[:, None], (1, 25))
    stub = SimpleNamespace(signature=signature, version="1", digest="")
    collector.predicted(stub, np.zeros((40, 1)), scores)  # type: ignore[arg-type]
    collector.flush()
    assert len(collector.state.predictions) == 20 * 3
    assert collector.state.predictions["t0: other"] == 38


def test_requests_and_their_time_are_counted_by_route_kind_of_answer_and_model(collector: MetricsCollector) -> None:
    for status in (200, 200, 422, 401, 503):
        collector.answered(PREDICT, status, "3", 0.003)
    collector.answered(PREDICT, 200, "4", 99.0)
    collector.failed("InvalidInput", "/predict")
    samples = values(collector)

    def requests(version: str, kind: str, **more: str) -> tuple[tuple[str, str], ...]:
        labels = {"model_version": version, "protocol": "native", "route": "/predict", "status_class": kind, **more}
        return tuple(sorted(labels.items()))

    counts = [samples["http_requests_total", requests("3", kind, format="json")] for kind in ("2xx", "4xx", "5xx")]
    assert counts == [2, 2, 1]
    assert samples["http_requests_total", requests("4", "2xx", format="json")] == 1
    assert samples["api_errors_total", (("endpoint", "/predict"), ("error_type", "InvalidInput"))] == 1
    assert samples["http_request_duration_seconds_bucket", requests("3", "2xx", le="0.0025")] == 0
    assert samples["http_request_duration_seconds_bucket", requests("3", "2xx", le="0.005")] == 2
    assert samples["http_request_duration_seconds_bucket", requests("4", "2xx", le="10.0")] == 0
    assert samples["http_request_duration_seconds_bucket", requests("4", "2xx", le="+Inf")] == 1
    assert samples["http_request_duration_seconds_sum", requests("4", "2xx")] == 99


def test_formats_of_one_route_share_a_histogram(collector: MetricsCollector) -> None:
    for body_format, requests in (("json", 3), ("csv", 2)):
        for _ in range(requests):
            collector.answered(RequestLabels("/invocations", "mlflow", body_format), 200, "1", 0.003)
    samples = values(collector)
    labels = {"model_version": "1", "protocol": "mlflow", "route": "/invocations", "status_class": "2xx"}
    for body_format, requests in (("json", 3), ("csv", 2)):
        assert samples["http_requests_total", tuple(sorted({**labels, "format": body_format}.items()))] == requests
    assert samples["http_request_duration_seconds_count", tuple(labels.items())] == 5
    assert samples["http_request_duration_seconds_sum", tuple(labels.items())] == pytest.approx(0.015)


def test_error_counts_of_predictions_start_at_zero(collector: MetricsCollector) -> None:
    samples = values(collector)
    for kind in ("4xx", "5xx"):
        labels = {"format": "json", "model_version": "", "protocol": "native", "route": "/predict", "status_class": kind}
        assert samples["http_requests_total", tuple(labels.items())] == 0


def test_every_metric_is_explained_in_the_docs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store, onnx=True)
    slot = Slot(store, policy=ALLOW_ALL)
    slot.refresh()
    collector = MetricsCollector(slot, tmp_path)
    collector.poll_store()
    text = (Path(__file__).parents[3] / "docs" / "reference" / "metrics.md").read_text()
    names = {family.name + ("_total" if family.type == "counter" else "") for family in collector.collect()}
    assert len(names) > 15
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_counting_twice_counts_nothing_twice(collector: MetricsCollector) -> None:
    predict(collector, open_predictor(bundle(forest()), ALLOW_ALL), X)
    collector.answered(PREDICT, 200, "1", 0.1)
    first, second = values(collector), values(collector)
    for samples in (first, second):
        del samples["model_refresh_age_seconds", ()]  # it grows by itself
    assert first == second


def test_counts_of_old_versions_are_dropped_so_that_swaps_do_not_add_series_for_ever(tmp_path: Path) -> None:
    store = Store(tmp_path)
    collector = MetricsCollector(Slot(store, policy=ALLOW_ALL))
    sizes = []
    for _ in range(KEPT_VERSIONS + 3):
        publish_iris(store, reference={"rows": 3, "features": {}, "classes": {"setosa": 1.0}})
        collector.slot.refresh()
        predictor = collector.slot.predictor
        assert predictor is not None
        predict(collector, predictor, X)
        collector.answered(PREDICT, 200, predictor.version, 0.001)
        sizes.append(len(values(collector)))
    assert sizes[-1] == sizes[-2] == sizes[-3]
    versions = {dict(labels).get("model_version") for _, labels in values(collector)} - {None, ""}
    assert versions == {"4", "5", "6"}


def test_the_collector_lets_go_of_a_predictor_that_was_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    collector = MetricsCollector(Slot(store, policy=ALLOW_ALL))
    reference = {"rows": 3, "features": {}, "classes": {"setosa": 1.0}}
    publish_iris(store, reference=reference)
    collector.slot.refresh()
    old = collector.slot.predictor
    assert old is not None
    predict(collector, old, X)
    collector.flush()
    publish_iris(store, reference=reference)
    collector.slot.refresh()
    predict(collector, old, X)  # a request that took the old predictor before the swap
    alive = weakref.ref(old)
    del old
    values(collector)
    gc.collect()
    assert alive() is None
    assert collector.slot.predictor is not None


def test_the_pending_lists_stay_small_under_any_load(collector: MetricsCollector) -> None:
    predictor = open_predictor(bundle(forest()), ALLOW_ALL)
    many = np.repeat(X, 40, axis=0)
    scores = predictor.scores(many)
    for _ in range(30):
        collector.predicted(predictor, many, scores)
        assert sum(map(len, collector._scores)) < module.PENDING_ROWS
    for _ in range(2 * module.PENDING):
        collector.answered(PREDICT, 200, "1", 0.1)
        assert sum(map(len, collector._seconds.values())) < module.PENDING
    assert values(collector)["model_rows_per_request_count", ()] == 30


def test_the_state_of_the_slot_is_exported_with_and_without_a_model(tmp_path: Path) -> None:
    store = Store(tmp_path)
    collector = MetricsCollector(Slot(store, policy=ALLOW_ALL))
    assert values(collector)["model_loaded", ()] == 0
    entry = publish_iris(store, trained_at=dt.datetime.now(dt.UTC).isoformat())
    collector.slot.refresh()
    samples = values(collector)
    swaps = {result: samples["model_swaps_total", (("result", result),)] for result in ("swapped", "refused")}
    assert (samples["model_loaded", ()], swaps) == (1, {"swapped": 1, "refused": 0})
    labels = {"version": "1", "digest": entry.digest[:12], "predictor": "scikit-learn", "source": "store", "model_source": "store"}
    assert samples["model_info", tuple(sorted(labels.items()))] == 1
    assert samples["model_age_seconds", ()] >= 0
    assert 0 <= samples["model_refresh_age_seconds", ()] < 60
    assert all(value == 0 for (name, _), value in samples.items() if name == "model_refused")
    store.publish({"model.joblib": b"rubbish", "metrics.json": b"{}"}, Manifest(signature=iris_signature()))
    collector.slot.refresh()
    for _ in range(2):  # a refusal that lasts is one refusal
        samples = values(collector)
        refused = {dict(labels)["reason"]: value for (name, labels), value in samples.items() if name == "model_refused"}
        assert [reason for reason, value in refused.items() if value] == ["load"]
        assert samples["model_swaps_total", (("result", "refused"),)] == 1


def test_prometheus_reads_the_exposition_with_any_class_name(collector: MetricsCollector) -> None:
    odd = {"setosa": 'quote"', "versicolor": "back\\slash", "virginica": "line\nbreak"}
    estimator = GaussianNB().fit(X, [odd[name] for name in y])
    signature = iris_signature(classes=tuple(odd.values()))
    predict(collector, open_predictor(bundle(estimator, signature), ALLOW_ALL), X)
    registry = CollectorRegistry()
    registry.register(collector)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    read = {sample.labels.get("predicted_class") for family in families for sample in family.samples}
    assert set(odd.values()) < read


@pytest.mark.parametrize(
    "metadata",
    [{}, {"trained_at": None}, {"trained_at": "yesterday"}, {"trained_at": "0001-01-01T00:00:00"}],
    ids=str,
)
def test_the_age_of_a_model_without_a_readable_date_is_unknown(metadata: dict[str, Any]) -> None:
    assert age_seconds(bundle(forest(), **metadata)) is None


def test_age_is_counted_from_training() -> None:
    hour_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    age = age_seconds(bundle(forest(), trained_at=hour_ago.isoformat()))
    assert age is not None
    assert 3600 <= age < 7200
