"""MLflow keeps its server, registry and experiment in its modules and in the environment, which later processes inherit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from unittest.mock import patch

import pytest


@pytest.fixture(autouse=True, scope="module")
def mlflow_as_before() -> Iterator[None]:
    """Leave nothing of MLflow behind a module of tests; fixtures of the module may set it up for all of its tests."""
    with patch.dict(os.environ):
        yield
        if "mlflow" in sys.modules:
            import mlflow

            mlflow.set_tracking_uri(None)
            mlflow.set_registry_uri(None)
            mlflow.tracking.fluent._active_experiment_id = None  # no function of MLflow does it
