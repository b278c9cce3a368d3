"""The counts of a replica as Prometheus metric families: the name, the labels and the help text of each metric.

The names `model_predictions_total`, `model_confidence`, `model_loaded` and `api_errors_total` are those of the
plain-Kubernetes system; `http_requests_total` and `http_request_duration_seconds` are the names that HTTP exporters use.
No label takes a value that a client can choose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from serve_app import __version__
from serve_app.artifacts.volume import VERDICTS, Volume
from serve_app.errors import BundleRefused
from serve_app.inference.slot import Slot
from serve_app.telemetry import histogram
from serve_app.telemetry.drift import Bins
from serve_app.telemetry.histogram import CONFIDENCE_BOUNDS, ROWS_BOUNDS, SECONDS_BOUNDS, Histogram
from serve_app.telemetry.state import BinCounts, MetricsState


def families(state: MetricsState, slot: Slot, *, in_flight: int, age_seconds: float | None) -> Iterator[Metric]:
    """The public metric families of a replica for `/metrics`, in a fixed order.

    `in_flight` is the number of requests in progress; `age_seconds` is the age of the model in use, None when it is unknown or when
    there is no model.
    """
    yield _info("iris_api_build_info", "Version of the program; the value is always 1.", {"version": __version__})
    yield from _http(state, in_flight)
    yield from _model(slot, state.refusals, age_seconds)
    yield from _predictions(state)
    yield from _volume(state.volume)


def training_families(state: MetricsState) -> Iterator[Metric]:
    """The metric families with the distribution of the training rows; only Ray's metrics port has them."""
    outside = {(name,): count for name, count in state.out_of_range.items()}
    yield _counter("model_input_out_of_range", "Number of values outside the range of the training rows.", ("feature",), outside)
    yield from _drift(state.bins)


def _http(state: MetricsState, in_flight: int) -> Iterator[Metric]:
    labels = ("route", "protocol", "status_class", "model_version")
    counts = {(*key, body_format): count for (key, body_format), count in state.requests.items()}
    yield _counter("http_requests", "Number of answered requests.", (*labels, "format"), counts)
    duration = HistogramMetricFamily(
        "http_request_duration_seconds", "Time to answer a request, measured in the replica.", labels=labels
    )
    for key, seconds in state.seconds.items():
        duration.add_metric(key, *histogram.buckets(seconds, SECONDS_BOUNDS))
    yield duration
    yield _gauge("http_requests_in_flight", "Number of requests that the replica is answering now.", in_flight)
    yield _counter("api_errors", "Number of requests that ended in an error.", ("error_type", "endpoint"), state.errors)


def _model(slot: Slot, refusals: int, age_seconds: float | None) -> Iterator[Metric]:
    predictor = slot.predictor
    yield _gauge("model_loaded", "1 while the replica has a model, 0 while it has none.", predictor is not None)
    swaps = {("swapped",): slot.swaps, ("refused",): refusals}
    yield _counter("model_swaps", "Number of candidate models that the replica took into use or refused.", ("result",), swaps)
    refused = GaugeMetricFamily(
        "model_refused", "1 while the replica refuses a candidate model for this reason.", labels=["reason"]
    )
    for reason in BundleRefused.REASONS:
        refused.add_metric([reason], float(slot.refusal is not None and slot.refusal.reason == reason))
    yield refused
    if slot.model_source != "store":
        yield _gauge(
            "model_registry_unreachable",
            "1 while MLflow has no version for the followed alias, 0 while it has one.",
            slot.registry_problem is not None,
        )
    yield _gauge("model_load_seconds", "Duration of the last load of a model.", slot.load_seconds)
    yield _gauge(
        "model_refresh_age_seconds",
        "Time since the replica last read the pointer and served or refused its version.",
        slot.refresh_age_seconds(),
    )
    if predictor is not None:
        labels = {
            "version": predictor.version,
            "digest": predictor.digest[:12],
            "predictor": predictor.kind,
            "source": predictor.bundle.source,
            "model_source": slot.model_source,
        }
        yield _info("model_info", "The model in use; the value is always 1.", labels)
    if age_seconds is not None:
        yield _gauge("model_age_seconds", "Time since the model in use was trained.", age_seconds)


def _predictions(state: MetricsState) -> Iterator[Metric]:
    predictions = {(label,): count for label, count in state.predictions.items()}
    yield _counter("model_predictions", "Number of predicted rows, by predicted class.", ("predicted_class",), predictions)
    confidence = HistogramMetricFamily("model_confidence", "Probability of the predicted class.", labels=["predicted_class"])
    for label, probabilities in state.confidence.items():
        confidence.add_metric([label], *histogram.buckets(probabilities, CONFIDENCE_BOUNDS))
    yield confidence
    rows = HistogramMetricFamily("model_rows_per_request", "Number of rows in a request.")
    rows.add_metric([], *histogram.buckets(state.rows, ROWS_BOUNDS))
    yield rows


def _drift(bin_counts: Mapping[str, BinCounts]) -> Iterator[Metric]:
    inputs = CounterMetricFamily(
        "model_input_bin",
        "Number of rows whose value of the feature falls into the bin of the training rows.",
        labels=["model_version", "feature", "bin"],
    )
    expected_inputs = GaugeMetricFamily(
        "model_input_bin_expected",
        "Share of the training rows whose value of the feature falls into the bin.",
        labels=["model_version", "feature", "bin"],
    )
    predictions = CounterMetricFamily(
        "model_prediction_bin",
        "Number of predictions by class or cluster, or by the bins of the training target or of the scores of outliers.",
        labels=["model_version", "bin"],
    )
    expected_predictions = GaugeMetricFamily(
        "model_prediction_bin_expected",
        "Share of the training rows whose target falls into the bin.",
        labels=["model_version", "bin"],
    )
    reference_rows = GaugeMetricFamily(
        "model_reference_rows", "Number of training rows behind the expected shares.", labels=["model_version"]
    )
    for version, counts in bin_counts.items():
        reference = counts.reference
        reference_rows.add_metric([version], float(reference.rows))
        for bins, rows in zip(reference.features, counts.features, strict=True):
            _add_bins(inputs, expected_inputs, [version, bins.name], bins, rows)
        if reference.predictions is not None and counts.predictions is not None:
            _add_bins(predictions, expected_predictions, [version], reference.predictions, counts.predictions)
    yield from (inputs, expected_inputs, predictions, expected_predictions, reference_rows)


def _volume(volume: Volume) -> Iterator[Metric]:
    if volume.free is not None and volume.size is not None:
        yield _gauge("model_store_free_bytes", "Free bytes of the volume that holds the models.", volume.free)
        yield _gauge("model_store_size_bytes", "Size in bytes of the volume that holds the models.", volume.size)
    if volume.verdict is not None and volume.verdict_at is not None:
        verdict = GaugeMetricFamily(
            "training_last_verdict", "1 for the verdict of the last training, 0 for the others.", labels=["verdict"]
        )
        for name in VERDICTS:
            verdict.add_metric([name], float(name == volume.verdict))
        yield verdict
        yield _gauge(
            "training_last_timestamp_seconds", "Unix time at which the last training ended with a verdict.", volume.verdict_at
        )


def _add_bins(counts: CounterMetricFamily, expected: GaugeMetricFamily, labels: list[str], bins: Bins, rows: Histogram) -> None:
    for label, share, value in zip(bins.labels, bins.expected, rows, strict=True):
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
