"""The autoscaling policy: whichever asks for most, damped."""

from __future__ import annotations

import pytest

from serve_app.rayserve.autoscaling import Usage, autoscale, wanted_replicas

TARGETS = {"cpu": 70.0, "memory": 80.0, "in_flight": 8.0}


@pytest.mark.parametrize(
    ("current", "usage", "wanted"),
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
def test_the_largest_ratio_decides_within_a_doubling_and_a_halving(current: int, usage: dict[str, float], wanted: int) -> None:
    assert wanted_replicas(current, usage, TARGETS) == wanted


def test_a_context_it_cannot_read_keeps_the_number() -> None:
    class Odd:
        target_num_replicas = 5

    assert autoscale(Odd()) == (5, {})


def test_usage_is_in_percent_of_what_a_replica_may_use() -> None:
    usage = Usage(cpus=1.0)
    sum(i * i for i in range(2_000_000))
    read = usage.read()
    assert read["cpu"] > 0
    assert 0 < read["memory"] < 100
