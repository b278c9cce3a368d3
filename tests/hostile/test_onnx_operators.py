"""The list of operators is exactly what conversions give."""

from __future__ import annotations

import pytest

from serve_app.errors import BundleRefused
from serve_app.inference.onnx_guard import ML_DOMAIN, OPERATORS, check_onnx
from tests.support import converted
from tests.support.figures import note
from tests.support.models import iris_signature


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(900)
def test_the_allowed_operators_are_those_that_training_and_common_estimators_need() -> None:
    emitted: set[tuple[str, str]] = set()
    models = 0
    refused = []
    for estimator, signature in converted.fitted():
        for raw in converted.conversions(estimator, signature):
            operators = converted.operators(raw)
            emitted |= operators
            models += 1
            try:
                check_onnx(raw)
            except Exception as error:
                refused.append(f"{estimator}: {error}")
    allowed = {(domain, name) for domain in ("", ML_DOMAIN) for name in OPERATORS[domain]}
    note(f"{models} conversions of estimators and pipelines: {len(emitted)} operators, {len(refused)} refused")
    assert refused == []
    assert emitted == allowed
    assert OPERATORS["ai.onnx"] == OPERATORS[""]


@pytest.mark.filterwarnings("ignore")
def test_a_conversion_that_needs_a_loop_or_functions_is_refused_by_name() -> None:
    for estimator in converted.with_loops():
        models = list(converted.conversions(converted.fit(estimator), iris_signature()))
        assert models
        for raw in models:
            with pytest.raises(BundleRefused) as refusal:
                check_onnx(raw)
            assert refusal.value.reason == "forbidden"
