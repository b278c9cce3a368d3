"""The autoscaling policy: the resource that needs most replicas decides, damped."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from serve_app.rayserve import autoscaling
from serve_app.rayserve.autoscaling import Usage, autoscale, desired_replicas

TARGETS = {"cpu": 70.0, "memory": 80.0, "in_flight": 8.0}


@pytest.mark.parametrize(
    ("current", "usage", "replicas"),
    [
        (2, {"cpu": 70.0}, 2),
        (2, {"cpu": 75.0}, 2),
        (2, {"cpu": 105.0}, 3),
        (4, {"cpu": 400.0}, 8),
        (1, {"cpu": 400.0}, 3),
        (4, {"cpu": 35.0, "memory": 79.0}, 4),
        (4, {"cpu": 10.0, "memory": 60.0, "in_flight": 16.0}, 8),
        (8, {"cpu": 1.0, "memory": 1.0, "in_flight": 0.0}, 4),
        (3, {}, 3),
    ],
)
def test_the_largest_ratio_decides_within_a_doubling_and_a_halving(current: int, usage: dict[str, float], replicas: int) -> None:
    assert desired_replicas(current, usage, TARGETS) == replicas


def context(**attributes: object) -> SimpleNamespace:
    """Serve's context of a deployment with two replicas, with these attributes replaced."""
    complete = {
        "target_num_replicas": 5,
        "current_num_replicas": 2,
        "aggregated_metrics": {"cpu": {"a": 100.0, "b": 110.0}},
        "total_num_requests": 0,
        "config": SimpleNamespace(target_ongoing_requests=8),
    }
    return SimpleNamespace(**{**complete, **attributes})


def test_the_policy_takes_the_means_of_the_replicas() -> None:
    assert autoscale(context()) == (3, {})
    assert autoscale(context(aggregated_metrics=None, total_num_requests=32)) == (4, {})


def test_an_error_keeps_the_number_of_replicas_and_is_logged_once_per_type(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(autoscaling, "_logged_errors", set())
    without_config = context()
    del without_config.config
    monkeypatch.setattr(autoscaling, "log", logging.Logger("policy"))  # Serve's logger does not propagate once it is imported
    autoscaling.log.addHandler(caplog.handler)
    for _ in range(3):
        assert autoscale(without_config) == (5, {})
        assert autoscale(context(aggregated_metrics={"cpu": {"a": "many"}})) == (5, {})
    types = [record.exc_info[0] for record in caplog.records if record.exc_info is not None]
    assert types == [AttributeError, TypeError]


def test_usage_is_in_percent_of_what_a_replica_may_use() -> None:
    usage = Usage(cpus=1.0)
    sum(i * i for i in range(2_000_000))
    percent = usage.read()
    assert percent["cpu"] > 0
    assert 0 < percent["memory"] < 100
