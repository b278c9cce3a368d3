"""The hot path and FastAPI's route give the same answer to every request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from serve_app.artifacts.store import Store
from serve_app.http.gateway import SEND_BYTES
from tests.support.apps import KEY, client_of
from tests.support.models import A_FLOWER, logistic, publish_iris
from tests.support.signatures import anything

OWN = ("x-request-id",)


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> tuple[TestClient, TestClient]:
    store = Store(tmp_path_factory.mktemp("store"))
    publish_iris(store, logistic(), onnx=True)
    return client_of(store, hot_path=True), client_of(store, hot_path=False)


values = st.one_of(
    st.floats(0, 20), st.integers(-1, 21), st.sampled_from(["5.1", "", "nan", None, True, float("nan"), float("inf")])
)
flowers = st.dictionaries(st.sampled_from([*A_FLOWER, "other"]), values, max_size=5)
whole = st.fixed_dictionaries({name: st.floats(0, 20) for name in A_FLOWER})
bodies = st.one_of(whole, flowers, anything).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=80)
keys = st.sampled_from([{"X-API-Key": KEY}, {"Authorization": f"bearer {KEY}"}, {"Authorization": KEY}, {"X-API-Key": "wrong"}, {}])
types = st.sampled_from(
    ["application/json", "application/json;charset=utf-8", "application/vnd.api+json", "text/plain", "", "APPLICATION/JSON"]
)


batches = st.lists(st.one_of(whole, flowers), max_size=4).map(lambda rows: json.dumps({"instances": rows}).encode())


@given(body=bodies | batches, key=keys, content_type=types, path=st.sampled_from(["/predict", "/predict/batch"]))
def test_status_headers_and_body_are_the_same(
    clients: tuple[TestClient, TestClient], body: bytes, key: dict[str, str], content_type: str, path: str
) -> None:
    headers = {**key, "Content-Type": content_type}
    hot, routed = (client.post(path, content=body, headers=headers) for client in clients)
    assert hot.status_code == routed.status_code
    assert hot.content == routed.content
    assert sorted(item for item in hot.headers.items() if item[0] not in OWN) == sorted(
        item for item in routed.headers.items() if item[0] not in OWN
    )
    assert len(hot.headers["x-request-id"]) == len(routed.headers["x-request-id"])


def test_a_compressed_body_and_a_browser_are_left_to_the_route(tmp_path: Path) -> None:
    import gzip

    store = Store(tmp_path)
    publish_iris(store, logistic())
    client = client_of(store, cors_origins=("http://localhost:3000",))
    plain = json.dumps(A_FLOWER).encode()
    headers = {"X-API-Key": KEY, "Content-Type": "application/json"}
    expected = client.post("/predict", content=plain, headers=headers)
    packed = client.post("/predict", content=gzip.compress(plain), headers={**headers, "Content-Encoding": "gzip"})
    assert (packed.status_code, packed.content) == (200, expected.content)
    broken = client.post("/predict", content=b"no gzip", headers={**headers, "Content-Encoding": "gzip"})
    assert broken.status_code == 400
    assert client.post("/predict", content=plain, headers={**headers, "Content-Encoding": "br"}).status_code == 415
    browser = client.post("/predict", content=plain, headers={**headers, "Origin": "http://localhost:3000"})
    assert browser.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "access-control-allow-credentials" not in browser.headers
    assert "X-Model-Version" in browser.headers["access-control-expose-headers"]
    stranger = client.post("/predict", content=plain, headers={**headers, "Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in stranger.headers


def test_a_small_gzip_body_that_grows_over_the_limit_is_413(tmp_path: Path) -> None:
    import gzip

    store = Store(tmp_path)
    publish_iris(store, logistic())
    client = client_of(store, max_body_bytes=4096)
    bomb = gzip.compress(b" " * 1_000_000)
    assert len(bomb) < 4096
    headers = {"X-API-Key": KEY, "Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert client.post("/predict", content=bomb, headers=headers).status_code == 413


async def test_a_long_answer_is_sent_in_pieces_and_a_long_body_is_read_in_pieces(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store, onnx=True)
    client = client_of(store, hot_path=True)
    body = orjson.dumps({"instances": [A_FLOWER] * 5000})
    pieces = [body[start : start + 65536] for start in range(0, len(body), 65536)]
    incoming = iter({"body": piece, "more_body": piece is not pieces[-1]} for piece in pieces)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", **next(incoming)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict/batch", "headers": [(b"x-api-key", KEY.encode())]}
    with client:
        app: Any = client.app
        assert await app.state.gate.answer(scope, receive, send)
    head, *parts = sent
    assert [part["more_body"] for part in parts] == [True] * (len(parts) - 1) + [False]
    assert len(parts) > 2
    assert max(len(part["body"]) for part in parts) <= SEND_BYTES
    answer = b"".join(part["body"] for part in parts)
    assert dict(head["headers"])[b"content-length"] == b"%d" % len(answer)
    assert len(orjson.loads(answer)["predictions"]) == 5000
