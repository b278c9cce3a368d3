"""The folder of a test is its tier."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from serve_app.loopback import keep_loopback_direct
from tests.support.figures import is_promised, keep

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has it ignored in what it starts in the background. Programs of the tests would inherit that, and never stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
keep_loopback_direct()  # of the clients of the tests too, on a machine with a proxy
TESTS = Path(__file__).parent
TIERS = {"unit", "pipelines", "hostile", "timing", "manifests", "monitoring", "browser", "integration", "e2e", "faults", "soak"}

# A busy machine is no failure.
settings.register_profile("iris-api", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("iris-api")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if tier in TIERS:
            item.add_marker(tier)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the outcome of each test that the docs name, for their tables. With pytest-xdist the controller does it."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    if (report.when == "call" or report.failed) and not report.skipped and is_promised(report.nodeid):
        keep(report.nodeid, outcome=report.outcome)
