"""The whole API and the Open Inference Protocol against their OpenAPI documents, by schemathesis, with a key and without."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from serve_app.artifacts.store import Store
from serve_app.http.responses import ASGIApp, Receive, Scope, Send
from tests.support.apps import HEADERS, client_of
from tests.support.arrow_bodies import file, stream
from tests.support.figures import note
from tests.support.models import A_FLOWER, logistic, publish_iris

EXAMPLES = int(os.environ.get("IRIS_TEST_EXAMPLES", "40"))
OPERATIONS = {
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/model"),
    ("GET", "/model/info"),
    ("POST", "/predict"),
    ("POST", "/predict/batch"),
}


def _flowers(head: str, row: str) -> Any:
    """Bodies of some flowers as text: JSON Schema cannot say which texts are right, so any other text would count as valid."""
    sizes = st.lists(st.floats(0.1, 10.0).map(lambda number: round(number, 3)), min_size=4, max_size=4)
    return st.lists(sizes.map(lambda sizes: row % tuple(sizes)), min_size=1, max_size=20).map(
        lambda rows: (head + "\n".join(rows)).encode()
    )


schemathesis.openapi.media_type("text/csv", _flowers(",".join(A_FLOWER) + "\n", "%s,%s,%s,%s"))
schemathesis.openapi.media_type("application/x-ndjson", _flowers("", "{" + ",".join(f'"{name}":%s' for name in A_FLOWER) + "}"))

_table = pa.table({name: [number] for name, number in A_FLOWER.items()})
schemathesis.openapi.media_type("application/vnd.apache.arrow.stream", st.just(stream(_table)))
schemathesis.openapi.media_type("application/vnd.apache.parquet", st.just(file(_table)))


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> ASGIApp:
    store = Store(tmp_path_factory.mktemp("store"))
    publish_iris(store, logistic(), onnx=True)
    app = client_of(store).app

    async def outliving(scope: Scope, receive: Receive, send: Send) -> None:
        """The app, whose threads are not stopped when the document has been read."""
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})

    return outliving


@pytest.fixture(scope="module")
def schema(app: ASGIApp) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def test_the_document_names_every_operation(schema: Any) -> None:
    found = {(operation.ok().method.upper(), operation.ok().path) for operation in schema.get_all_operations()}
    assert found == OPERATIONS


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")  # of schemathesis' own strategies
@pytest.mark.parametrize("keyed", [True, False], ids=["with a key", "without"])
@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        (method, path, mode)
        for method, path in sorted(OPERATIONS)
        for mode in GenerationMode
        if mode is GenerationMode.POSITIVE or method == "POST"  # else there is no input that could be wrong
    ],
    ids=str,
)
def test_every_answer_is_as_documented(schema: Any, method: str, path: str, keyed: bool, mode: GenerationMode) -> None:
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
    )
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        answer = case.call(headers=dict(HEADERS) if keyed else None)  # schemathesis adds to what it gets
        statuses[answer.status_code] += 1
        case.validate_response(answer)

    run()
    note(f"{method} {path}: {dict(statuses)}")
    assert statuses


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
@pytest.mark.parametrize("keyed", [True, False], ids=["with a key", "without"])
@pytest.mark.parametrize("mode", GenerationMode)
def test_every_answer_below_v2_is_as_its_document_says(app: ASGIApp, keyed: bool, mode: GenerationMode) -> None:
    document: Any = schemathesis.openapi.from_asgi("/v2/openapi.json", app, headers=dict(HEADERS))
    statuses: Counter[int] = Counter()

    for operation in document.get_all_operations():

        @settings(
            max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
        )
        @given(case=operation.ok().as_strategy(generation_mode=mode))
        def run(case: Any) -> None:
            answer = case.call(headers=dict(HEADERS) if keyed else None)  # schemathesis adds to what it gets
            statuses[answer.status_code] += 1
            # A schema cannot say that as many values come as the shape has places.
            case.validate_response(answer, excluded_checks=[positive_data_acceptance])

        if mode is GenerationMode.POSITIVE or operation.ok().method.upper() == "POST":
            run()
    note(f"below /v2: {dict(statuses)}")
    assert statuses
