"""The list of operators is exactly what conversions give."""

from __future__ import annotations

import pytest

from serve_app.inference.onnx_guard import ML_DOMAIN, OPERATORS, check_onnx
from tests.support import converted


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(900)
def test_the_allowed_operators_are_those_that_training_and_common_estimators_need() -> None:
    emitted: set[tuple[str, str]] = set()
    refused = []
    for estimator, signature in converted.fitted():
        for raw in converted.conversions(estimator, signature):
            operators = converted.operators(raw)
            emitted |= operators
            try:
                check_onnx(raw)
            except Exception as error:
                refused.append(f"{estimator}: {error}")
    allowed = {(domain, name) for domain in ("", ML_DOMAIN) for name in OPERATORS[domain]}
    assert refused == []
    assert emitted == allowed
    assert OPERATORS["ai.onnx"] == OPERATORS[""]
