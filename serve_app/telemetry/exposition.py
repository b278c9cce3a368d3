"""The accounts as Prometheus metric families: every metric of ours, its name, its labels and its one line of help.

Names are those of the system this one replaces (`model_predictions_total`, `model_confidence`, `model_loaded`,
`api_errors_total`) and the field's (`http_requests_total`, `http_request_duration_seconds`). No label takes a value that a
client can invent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from serve_app import __version__
from serve_app.artifacts.volume import VERDICTS
from serve_app.errors import BundleRefused
from serve_app.telemetry import histogram
from serve_app.telemetry.histogram import CONFIDENCE_BOUNDS, ROWS_BOUNDS, SECONDS_BOUNDS, Histogram

if TYPE_CHECKING:
    from serve_app.telemetry.collector import MetricsCollector
    from serve_app.telemetry.drift import Bins


def families(accounts: MetricsCollector, age: float | None) -> Iterator[Metric]:
    """Every family, from settled accounts; `age` is that of the model in use."""
    yield _info("iris_api_build_info", "The program.", {"version": __version__})
    yield from _http(accounts)
    yield from _model(accounts, age)
    yield from _predictions(accounts)
    yield from _drift(accounts)
    yield from _volume(accounts)


def _http(accounts: MetricsCollector) -> Iterator[Metric]:
    labels = ("route", "status_class", "model_version")
    counts = {key: histogram.count(found) for key, found in accounts.requests.items()}
    yield _counter("http_requests", "Requests answered.", labels, counts)
    seconds = HistogramMetricFamily("http_request_duration_seconds", "Time to answer, in the replica.", labels=labels)
    for key, found in accounts.requests.items():
        seconds.add_metric(key, *histogram.buckets(found, SECONDS_BOUNDS))
    yield seconds
    yield _gauge("http_requests_in_flight", "Requests being answered now.", accounts.in_flight)
    yield _counter("api_errors", "Requests that ended in an error.", ("error_type", "endpoint"), accounts.errors)


def _model(accounts: MetricsCollector, age: float | None) -> Iterator[Metric]:
    slot = accounts.slot
    predictor = slot.predictor
    yield _gauge("model_loaded", "1 when a model is loaded.", predictor is not None)
    swaps = {("swapped",): slot.swaps, ("refused",): accounts.refusals}
    yield _counter("model_swaps", "Candidates looked at: taken into use, or refused.", ("result",), swaps)
    refused = GaugeMetricFamily("model_refused", "1 while a candidate is refused for this reason.", labels=["reason"])
    for reason in BundleRefused.REASONS:
        refused.add_metric([reason], float(slot.refusal is not None and slot.refusal.reason == reason))
    yield refused
    yield _gauge("model_load_seconds", "Time the last load took.", slot.load_seconds)
    if predictor is not None:
        labels = {
            "version": predictor.version,
            "digest": predictor.digest[:12],
            "predictor": predictor.kind,
            "source": predictor.bundle.source,
        }
        yield _info("model_info", "The model in use.", labels)
    if age is not None:
        yield _gauge("model_age_seconds", "Time since the model was trained.", age)


def _predictions(accounts: MetricsCollector) -> Iterator[Metric]:
    predictions = {(label,): count for label, count in accounts.predictions.items()}
    yield _counter("model_predictions", "Rows predicted, by class.", ("predicted_class",), predictions)
    confidence = HistogramMetricFamily("model_confidence", "Probability of the predicted class.", labels=["predicted_class"])
    for label, found in accounts.confidence.items():
        confidence.add_metric([label], *histogram.buckets(found, CONFIDENCE_BOUNDS))
    yield confidence
    rows = HistogramMetricFamily("model_rows_per_request", "Rows in one request.")
    rows.add_metric([], *histogram.buckets(accounts.rows, ROWS_BOUNDS))
    yield rows
    outside = {(name,): count for name, count in accounts.out_of_range.items()}
    yield _counter("model_input_out_of_range", "Values outside what training saw.", ("feature",), outside)


def _drift(accounts: MetricsCollector) -> Iterator[Metric]:
    inputs = CounterMetricFamily(
        "model_input_bin", "Rows by the bins of the training rows.", labels=["model_version", "feature", "bin"]
    )
    expected = GaugeMetricFamily(
        "model_input_bin_expected", "Share of the training rows in the bin.", labels=["model_version", "feature", "bin"]
    )
    outcomes = CounterMetricFamily(
        "model_prediction_bin", "Predictions by class, or by the bins of the training target.", labels=["model_version", "bin"]
    )
    foreseen = GaugeMetricFamily(
        "model_prediction_bin_expected", "Share of the training target in the bin.", labels=["model_version", "bin"]
    )
    reference_rows = GaugeMetricFamily("model_reference_rows", "Rows the reference was made of.", labels=["model_version"])
    for version, watched in accounts.watched.items():
        reference = watched.reference
        reference_rows.add_metric([version], float(reference.rows))
        for bins, counts in zip(reference.features, watched.features, strict=True):
            _bins(inputs, expected, [version, bins.name], bins, counts)
        if reference.predictions is not None and watched.predictions is not None:
            _bins(outcomes, foreseen, [version], reference.predictions, watched.predictions)
    yield from (inputs, expected, outcomes, foreseen, reference_rows)


def _volume(accounts: MetricsCollector) -> Iterator[Metric]:
    volume = accounts.volume
    if volume.free is not None and volume.size is not None:
        yield _gauge("model_store_free_bytes", "Free bytes of the store's volume.", volume.free)
        yield _gauge("model_store_size_bytes", "Bytes of the store's volume.", volume.size)
    if volume.verdict is not None and volume.verdict_at is not None:
        verdict = GaugeMetricFamily("training_last_verdict", "1 for how the last training ended.", labels=["verdict"])
        for name in VERDICTS:
            verdict.add_metric([name], float(name == volume.verdict))
        yield verdict
        yield _gauge("training_last_timestamp_seconds", "When the last training ended with a verdict.", volume.verdict_at)


def _bins(counts: CounterMetricFamily, expected: GaugeMetricFamily, labels: list[str], bins: Bins, found: Histogram) -> None:
    for label, share, value in zip(bins.labels, bins.expected, found, strict=True):
        counts.add_metric([*labels, label], float(value))
        expected.add_metric([*labels, label], share)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _info(name: str, text: str, labels: Mapping[str, str]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), 1.0)
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], counts: Mapping[Any, Any]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, count in counts.items():
        family.add_metric(key, float(count))
    return family
