"""The recent past of a replica: minutes of traffic, and the inputs of the last hours, from the counts alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from serve_app.artifacts.store import Store
from serve_app.inference.slot import Slot
from serve_app.telemetry import histogram
from serve_app.telemetry.collector import PREDICT, MetricsCollector
from serve_app.telemetry.drift import stability_index
from serve_app.telemetry.histogram import SECONDS_BOUNDS
from serve_app.telemetry.history import MINUTES, STEP_SECONDS, STEPS, History
from serve_app.telemetry.state import RequestLabels
from tests.support.models import forest, iris, iris_signature, logistic, publish_iris
from tests.support.policies import ALLOW_ALL
from training.reference import reference


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    X, y = iris()
    signature = iris_signature()
    store = Store(tmp_path)
    publish_iris(store, logistic(), reference=reference(pd.DataFrame(X, columns=list(signature.names)), y, signature))
    return store


def collector_of(store: Store) -> MetricsCollector:
    slot = Slot(store, policy=ALLOW_ALL)
    slot.refresh()
    return MetricsCollector(slot)


def sample(history: History, collector: MetricsCollector) -> None:
    collector.flush()
    predictor = collector.slot.predictor
    history.sample(collector.state, None if predictor is None else predictor.version)


def predict(collector: MetricsCollector, rows: int) -> None:
    assert collector.slot.predictor is not None
    X = np.repeat(iris()[0][:1], rows, axis=0)
    collector.predicted(collector.slot.predictor, X, collector.slot.predictor.scores(X))


def test_each_request_is_counted_in_the_minute_of_the_next_sample_once(store: Store, clock: Clock) -> None:
    collector, history = collector_of(store), History(clock)
    for status, count in ((200, 5), (422, 2), (503, 1)):
        for _ in range(count):
            collector.answered(PREDICT, status, "1" if status == 200 else "", 0.003)
    collector.answered(RequestLabels("/health", "native"), 200, "", 0.5)
    sample(history, collector)
    sample(history, collector)
    clock.now += 60
    collector.answered(PREDICT, 200, "1", 0.02)
    sample(history, collector)
    first, second = history.minutes()
    assert (first.requests, second.requests) == ({"2xx": 5, "4xx": 2, "5xx": 1}, {"2xx": 1})
    assert second.start == first.start + 1
    assert histogram.count(first.seconds) == 8
    assert first.seconds[-1] == pytest.approx(8 * 0.003)


def test_an_hour_is_kept_and_no_more(store: Store, clock: Clock) -> None:
    collector, history = collector_of(store), History(clock)
    for _ in range(3 * MINUTES):
        collector.answered(PREDICT, 200, "1", 0.001)
        sample(history, collector)
        clock.now += 60
    minutes = history.minutes()
    assert len(minutes) == MINUTES - 1  # the clock has just begun the next one
    clock.now += 3600
    assert history.minutes() == []


def test_a_clock_that_is_set_back_loses_no_request(store: Store, clock: Clock) -> None:
    collector, history = collector_of(store), History(clock)
    for _ in range(3):
        collector.answered(PREDICT, 200, "1", 0.001)
        sample(history, collector)
        clock.now -= 90
    clock.now += 270
    assert sum(sum(minute.requests.values()) for minute in history.minutes()) == 3


def test_counts_of_an_old_version_that_are_dropped_are_not_counted_again(store: Store, clock: Clock) -> None:
    collector, history = collector_of(store), History(clock)
    for number in range(6):
        publish_iris(store, forest() if number % 2 else logistic())
        collector.slot.refresh()
        assert collector.slot.predictor is not None
        collector.answered(PREDICT, 200, collector.slot.predictor.version, 0.001)
        sample(history, collector)
    assert sum(sum(minute.requests.values()) for minute in history.minutes()) == 6


def test_the_inputs_of_the_last_hours_are_those_since_the_oldest_step(store: Store, clock: Clock) -> None:
    collector, history = collector_of(store), History(clock)
    digest = store.entries()[0].digest
    assert history.recent(digest) is None
    predict(collector, 7)
    sample(history, collector)
    recent = history.recent(digest)
    assert recent is not None
    assert [rows.sum() for rows in recent.features] == [7.0] * 4
    assert recent.predictions is not None
    assert recent.predictions.tolist() == [7.0, 0.0, 0.0]
    for _ in range(STEPS):
        clock.now += STEP_SECONDS
        predict(collector, 2)
        sample(history, collector)
    recent = history.recent(digest)
    assert recent is not None
    assert clock.now - recent.since <= STEPS * STEP_SECONDS
    assert recent.features[0].sum() == 2 * (STEPS - 1)


def test_a_new_version_begins_with_no_rows_and_one_that_comes_back_counts_from_then(store: Store, clock: Clock) -> None:
    collector, history = collector_of(store), History(clock)
    predict(collector, 3)
    sample(history, collector)
    X, y = iris()
    signature = iris_signature()
    second = publish_iris(store, forest(), reference=reference(pd.DataFrame(X, columns=list(signature.names)), y, signature))
    collector.slot.refresh()
    predict(collector, 4)
    sample(history, collector)
    recent = history.recent(second.digest)
    assert recent is not None
    assert recent.features[0].sum() == 4
    store.promote(1)
    collector.slot.refresh()
    sample(history, collector)
    predict(collector, 5)
    sample(history, collector)
    assert history.recent(second.digest) is None
    first = history.recent(store.entries()[0].digest)
    assert first is not None
    assert first.features[0].sum() == 5


def test_the_stability_index_is_that_of_the_recording_rules() -> None:
    assert stability_index(np.array([10.0, 10.0]), [0.5, 0.5]) == pytest.approx(0.0)
    shares = np.array([10.5, 0.5]) / 11
    expected = float(sum((share - 0.5) * np.log(share / 0.5) for share in shares))
    assert stability_index(np.array([10.0, 0.0]), [0.5, 0.5]) == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95, 0.99])
def test_a_quantile_lies_in_the_bucket_of_the_true_one(share: float) -> None:
    values = np.random.default_rng(0).exponential(0.02, 5000)
    counts = histogram.empty(SECONDS_BOUNDS)
    histogram.add(counts, SECONDS_BOUNDS, values)
    found, true = histogram.quantile(counts, SECONDS_BOUNDS, share), float(np.quantile(values, share))
    assert found is not None
    assert np.searchsorted(SECONDS_BOUNDS, found) == np.searchsorted(SECONDS_BOUNDS, true)


def test_a_quantile_of_nothing_is_none_and_of_values_above_all_bounds_the_last_bound() -> None:
    counts = histogram.empty(SECONDS_BOUNDS)
    assert histogram.quantile(counts, SECONDS_BOUNDS, 0.5) is None
    histogram.add(counts, SECONDS_BOUNDS, np.array([1000.0]))
    assert histogram.quantile(counts, SECONDS_BOUNDS, 0.5) == SECONDS_BOUNDS[-1]
