"""Every prediction takes one way through one gateway, whatever its headers."""

from __future__ import annotations

import asyncio
import gc
import gzip
import pickle
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from starlette.testclient import TestClient

from serve_app.artifacts.fields import UnknownFields
from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.signature import Signature
from serve_app.artifacts.store import Store
from serve_app.http import body as bodies
from serve_app.http.rate_window import Rate
from serve_app.http.responses import SEND_BYTES, HttpResponse, send_response
from serve_app.http.routes.predictions import PREDICTION_ROUTES
from serve_app.protocols.codec import Batch, Buffer, Codec, CodecContext, Headers, Operation, ProblemDetails
from serve_app.protocols.native import NativeBatchCodec, NativeRowCodec
from tests.support.apps import DEFAULTS, KEY, client_of, rate_limits
from tests.support.asgi import ask
from tests.support.models import A_FLOWER, bundle_files, bundle_manifest, logistic, logistic_store, publish_iris, slow_model
from tests.support.waiting import until

FLOWER = orjson.dumps(A_FLOWER)
BATCH = orjson.dumps({"instances": [A_FLOWER] * 3000})
PAGE = "http://localhost:3000"
RIGHT = {"X-API-Key": KEY, "Content-Type": "application/json"}
PAIRS = [(b"x-api-key", KEY.encode()), (b"content-type", b"application/json")]
ORIGIN = (b"origin", PAGE.encode())
GZIP = (b"content-encoding", b"gzip")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return logistic_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def page(store: Store) -> TestClient:
    """A client of an app that a page from PAGE may call."""
    return client_of(store, cors_origins=(PAGE,))


# --- one gateway


@pytest.mark.parametrize("header", [None, ORIGIN, GZIP, (b"x-other", b"1")], ids=["plain", "origin", "gzip", "other"])
@pytest.mark.parametrize("path", list(PREDICTION_ROUTES))
async def test_a_prediction_never_reaches_the_app(store: Store, path: str, header: tuple[bytes, bytes] | None) -> None:
    app: Any = client_of(store, cors_origins=(PAGE,)).app
    body = FLOWER if path == "/predict" else orjson.dumps({"instances": [A_FLOWER]})
    headers = [*PAIRS, header] if header else PAIRS
    reply = await ask(app.state.gateway.answer, "POST", path, headers, [gzip.compress(body) if header == GZIP else body])
    assert (reply.status, reply.starts, reply.ends) == (200, 1, 1)
    assert path not in {getattr(route, "path", "") for route in app.routes}


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "OPTIONS", "BREW"])
async def test_any_other_method_on_a_prediction_route_is_405_with_what_is_allowed(store: Store, method: str) -> None:
    app: Any = client_of(store, cors_origins=(PAGE,)).app
    for path in PREDICTION_ROUTES:
        reply = await ask(app.state.gateway.answer, method, path, PAIRS)
        assert (reply.status, reply.header(b"allow")) == (405, b"POST")
        assert orjson.loads(reply.body)["code"] == "method_not_allowed"


class Slow:
    """A `receive` that gives a first piece of a body and then waits until `go`."""

    def __init__(self, first: bytes, rest: bytes) -> None:
        self.pieces = [first, rest]
        self.first_given, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> dict[str, Any]:
        if len(self.pieces) == 1:
            self.first_given.set()
            await self.go.wait()
        return {"type": "http.request", "body": self.pieces.pop(0), "more_body": bool(self.pieces)}


async def post(app: Any, receive: Any, headers: Sequence[tuple[bytes, bytes]], path: str = "/predict") -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "root_path": "", "query_string": b"", "http_version": "1.1"}
    await app({**scope, "scheme": "http", "headers": list(headers), "client": ("203.0.113.7", 1)}, receive, send)
    return sent


@pytest.mark.parametrize("header", [ORIGIN, GZIP], ids=["origin", "gzip"])
async def test_bodies_share_one_budget_whatever_their_headers(
    store: Store, header: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BUDGET_BODIES", 1)
    app: Any = client_of(store, cors_origins=(PAGE,), max_body_bytes=10_000).app
    slow = Slow(b" " * 9_000, FLOWER)
    first = asyncio.create_task(post(app, slow, PAIRS))
    await slow.first_given.wait()
    second = await ask(app, "POST", "/predict", [*PAIRS, header], [b" " * 2_000, FLOWER])
    hook = await ask(app.state.gateway.answer, "POST", "/predict", [*PAIRS, header], [b" " * 2_000, FLOWER])
    assert (second.status, hook.status) == (429, 429)
    assert orjson.loads(second.body)["code"] == "too_busy"
    slow.go.set()
    assert (await first)[0]["status"] == 200
    assert app.state.gateway._budget.bytes == 0
    assert (await ask(app, "POST", "/predict", PAIRS, [b" " * 2_000, FLOWER])).status == 200


async def test_requests_in_flight_are_counted_once_for_every_route_and_entrance(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.publish(bundle_files(slow_model()), bundle_manifest())
    client = client_of(store, cors_origins=(PAGE,), max_in_flight=1, max_wait_seconds=60)
    app: Any = client.app
    running = asyncio.create_task(ask(app.state.gateway.answer, "POST", "/predict", [*PAIRS, ORIGIN], [FLOWER]))
    while not app.state.collector.in_flight:
        await asyncio.sleep(0)
    for entrance in (app, app.state.gateway.answer):
        assert (await ask(entrance, "POST", "/predict", [*PAIRS, ORIGIN], [FLOWER])).status == 429
    assert (await ask(app, "GET", "/model", PAIRS)).status == 429
    for path in ("/livez", "/readyz", "/metrics", "/health"):
        assert (await ask(app, "GET", path)).status == 200
    assert (await running).status == 200
    assert app.state.collector.in_flight == 0
    assert (await ask(app, "GET", "/model", PAIRS)).status == 200


async def test_ids_are_counted_once_for_both_entrances(store: Store) -> None:
    app: Any = client_of(store).app
    entrances = (app, app.state.gateway.answer) * 3
    replies = [await ask(entrance, "POST", "/predict", PAIRS, [FLOWER]) for entrance in entrances]
    numbers = [int(reply.header(b"x-request-id")[16:], 16) for reply in replies]
    assert numbers == list(range(numbers[0], numbers[0] + 6))
    assert len({reply.header(b"x-request-id")[:16] for reply in replies}) == 1


async def test_a_long_response_is_sent_in_pieces_and_a_long_body_is_read_in_pieces(store: Store) -> None:
    body = orjson.dumps({"instances": [A_FLOWER] * 5000})
    pieces = [body[start : start + 65536] for start in range(0, len(body), 65536)]
    incoming = iter({"type": "http.request", "body": piece, "more_body": piece is not pieces[-1]} for piece in pieces)

    async def receive() -> dict[str, Any]:
        return next(incoming)

    client = client_of(store)
    with client:
        head, *parts = await post(client.app, receive, PAIRS, "/predict/batch")
    assert [part["more_body"] for part in parts] == [True] * (len(parts) - 1) + [False]
    assert len(parts) > 2
    assert max(len(part["body"]) for part in parts) <= SEND_BYTES
    answer = b"".join(part["body"] for part in parts)
    assert dict(head["headers"])[b"content-length"] == b"%d" % len(answer)
    assert len(orjson.loads(answer)["predictions"]) == 5000


# --- what belongs to a predictor


def test_a_replaced_predictor_goes_without_the_garbage_collector_or_a_further_request(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store, logistic(), onnx=True)
    client = client_of(store, cors_origins=(PAGE,), poll_seconds=0.02)
    slot = client.app_state["slot"]
    gc.collect()
    gc.disable()  # reference counts alone have to be enough
    try:
        with client:
            for headers in (RIGHT, {**RIGHT, "Origin": PAGE}):
                assert client.post("/predict", content=FLOWER, headers=headers).status_code == 200
                assert client.post("/predict/batch", content=BATCH, headers=headers).status_code == 200
            assert client.get("/model", headers=RIGHT).status_code == client.get("/openapi.json").status_code == 200
            replaced = weakref.ref(slot.predictor)
            publish_iris(store, logistic(2.0), onnx=True)
            until(lambda: slot.swaps == 2, what="the swap")
            until(lambda: replaced() is None, seconds=10, what="the end of the replaced predictor")
    finally:
        gc.enable()


def test_codec_and_headers_are_made_once_for_a_predictor(store: Store) -> None:
    made: list[str] = []

    class Counted(NativeRowCodec):
        def __init__(self, context: CodecContext) -> None:
            made.append(context.model_version)
            super().__init__(context)

    client = client_of(store, routes={"/predict": Counted})
    assert [client.post("/predict", content=FLOWER, headers=RIGHT).status_code for _ in range(5)] == [200] * 5
    assert made == ["1"]


# --- content encoding


def test_a_gzip_body_is_answered_like_a_plain_one(page: TestClient) -> None:
    plain = page.post("/predict", content=FLOWER, headers=RIGHT)
    packed = page.post("/predict", content=gzip.compress(FLOWER), headers={**RIGHT, "Content-Encoding": "GZIP"})
    assert (packed.status_code, packed.content) == (200, plain.content)


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip",
        b"",
        gzip.compress(FLOWER)[:-9],
        gzip.compress(FLOWER)[:-1] + b"x",
        gzip.compress(FLOWER) + b"more",
        zlib.compress(FLOWER),
        gzip.compress(FLOWER[:9]) + gzip.compress(FLOWER[9:]),
        gzip.compress(FLOWER) + b"\0" * 500,
        gzip.compress(FLOWER)[:30] + b"\xff" * 20 + gzip.compress(FLOWER)[50:],
    ],
    ids=[
        *("no gzip", "empty", "cut off", "wrong checksum", "bytes behind it", "zlib"),
        *("two members", "zeros behind it", "a broken block"),
    ],
)
def test_a_broken_gzip_body_is_400(page: TestClient, content: bytes) -> None:
    answer = page.post("/predict", content=content, headers={**RIGHT, "Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")


def test_deflate_is_the_zlib_format_and_every_other_stream_is_400(page: TestClient) -> None:
    headers = {**RIGHT, "Content-Encoding": "Deflate"}
    packed = zlib.compress(FLOWER)
    raw = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    answer = page.post("/predict", content=packed, headers=headers)
    assert (answer.status_code, answer.content) == (200, page.post("/predict", content=FLOWER, headers=RIGHT).content)
    for broken in (b"", packed[:-1], packed + b"\0", packed + packed, gzip.compress(FLOWER), raw.compress(FLOWER) + raw.flush()):
        answer = page.post("/predict", content=broken, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed")


@pytest.mark.parametrize("coding", ["x-gzip", "X-GZIP", " gzip "])
def test_every_name_of_gzip_is_gzip(page: TestClient, coding: str) -> None:
    answer = page.post("/predict", content=gzip.compress(FLOWER), headers={**RIGHT, "Content-Encoding": coding})
    assert (answer.status_code, answer.content) == (200, page.post("/predict", content=FLOWER, headers=RIGHT).content)


@pytest.mark.parametrize("coding", ["zstd", "br", "compress"])
def test_a_known_content_coding_is_refused_by_name(page: TestClient, coding: str) -> None:
    answer = page.post("/predict", content=FLOWER, headers={**RIGHT, "Content-Encoding": coding})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, deflate, identity")
    assert f"`{coding}`" in answer.json()["detail"]
    secret = page.post("/predict", content=FLOWER, headers={**RIGHT, "Content-Encoding": "my-secret"})
    assert (secret.status_code, "my-secret" in secret.text) == (415, False)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "gzip, deflate", "zstd", "my-own"])
def test_another_content_encoding_is_415_and_identity_is_none(page: TestClient, encoding: str) -> None:
    answer = page.post("/predict", content=FLOWER, headers={**RIGHT, "Content-Encoding": encoding})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_encoding")
    assert page.post("/predict", content=FLOWER, headers={**RIGHT, "Content-Encoding": "identity"}).status_code == 200


async def test_a_small_gzip_body_that_grows_over_the_limit_is_413_and_is_not_inflated_whole(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 3 * bodies.INFLATE_BYTES // 2
    packed = gzip.compress(b" " * 100_000_000)
    assert len(packed) < limit
    inflated: list[int] = []

    class Counting(bodies.Inflater):
        def read(self) -> bytes:
            piece = super().read()
            inflated.append(len(piece))
            return piece

    monkeypatch.setattr(bodies, "Inflater", Counting)
    app: Any = client_of(store, max_body_bytes=limit).app
    reply = await ask(app, "POST", "/predict/batch", [*PAIRS, GZIP], [packed])
    assert (reply.status, orjson.loads(reply.body)["code"]) == (413, "body_too_large")
    assert inflated == [bodies.INFLATE_BYTES] * 2
    assert app.state.gateway._budget.bytes == 0


def test_a_gzip_body_is_inflated_in_pieces_of_a_bounded_size() -> None:
    content = orjson.dumps({"instances": [A_FLOWER] * 40_000})
    inflater = bodies.Inflater(gzip.compress(content))
    pieces = []
    while not inflater.finished:
        pieces.append(inflater.read())
    assert max(map(len, pieces)) <= bodies.INFLATE_BYTES
    assert len(pieces) > 2
    assert b"".join(pieces) == content


async def test_what_a_gzip_body_inflates_to_is_counted_in_the_budget(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BUDGET_BODIES", 1)
    app: Any = client_of(store, max_body_bytes=100_000, max_row_bytes=100_000).app
    slow = Slow(b" " * 60_000, FLOWER)
    first = asyncio.create_task(post(app, slow, PAIRS))
    await slow.first_given.wait()
    packed = gzip.compress(FLOWER + b" " * 90_000)
    assert (await ask(app, "POST", "/predict", [*PAIRS, GZIP], [packed])).status == 429
    slow.go.set()
    await first
    assert (await ask(app, "POST", "/predict", [*PAIRS, GZIP], [packed])).status == 200


# --- the size of a row


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_single_row_has_a_small_limit_of_its_own(store: Store, packed: bool) -> None:
    client = client_of(store)
    limit = DEFAULTS.iris_max_row_bytes
    for size, status in ((limit, 200), (limit + 1, 413)):
        body = FLOWER + b" " * (size - len(FLOWER))
        headers = {**RIGHT, "Content-Encoding": "gzip"} if packed else RIGHT
        answer = client.post("/predict", content=gzip.compress(body) if packed else body, headers=headers)
        assert answer.status_code == status
    assert (answer.json()["code"], str(limit) in answer.json()["detail"]) == ("body_too_large", True)


async def test_a_single_row_that_is_too_large_is_refused_before_it_is_read_whole(store: Store) -> None:
    app: Any = client_of(store).app
    given: list[int] = []

    async def receive() -> dict[str, Any]:
        given.append(10_000)
        return {"type": "http.request", "body": b" " * 10_000, "more_body": len(given) < 1000}

    statuses: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
            assert sum(given) <= DEFAULTS.iris_max_row_bytes + 10_000

    scope = {"type": "http", "method": "POST", "path": "/predict", "root_path": "", "query_string": b"", "scheme": "http"}
    await app({**scope, "http_version": "1.1", "headers": PAIRS}, receive, send)
    assert statuses == [413]


# --- other origins


@pytest.mark.parametrize(("method", "path"), [("POST", "/predict"), ("GET", "/model"), ("GET", "/livez"), ("GET", "/nothing")])
def test_a_page_from_an_allowed_origin_may_read_every_response_and_a_stranger_none(
    page: TestClient, method: str, path: str
) -> None:
    allowed = page.request(method, path, content=FLOWER, headers={**RIGHT, "Origin": PAGE})
    assert allowed.headers.get_list("access-control-allow-origin") == [PAGE]
    assert "access-control-allow-credentials" not in allowed.headers
    assert "X-Model-Version" in allowed.headers["access-control-expose-headers"]
    assert allowed.headers["vary"] == "Origin"
    stranger = page.request(method, path, content=FLOWER, headers={**RIGHT, "Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in stranger.headers


def test_a_page_may_read_why_its_request_was_refused(store: Store) -> None:
    client = client_of(store, cors_origins=(PAGE,), max_body_bytes=1024)
    for content, headers, status in (
        (FLOWER, {"Origin": PAGE}, 401),
        (b"{", {**RIGHT, "Origin": PAGE}, 400),
        (b" " * 2000, {**RIGHT, "Origin": PAGE}, 413),
    ):
        answer = client.post("/predict", content=content, headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, PAGE)


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status"),
    [
        ("POST", "/predict", {}, FLOWER, 401),
        ("POST", "/predict", {"X-API-Key": "wrong"}, FLOWER, 403),
        ("GET", "/model", {}, b"", 401),
        ("GET", "/metrics", {}, b"", 401),
        ("GET", "/nothing", {}, b"", 404),
        ("PUT", "/health", {}, b"", 405),
        ("GET", "/predict", RIGHT, b"", 405),
        ("POST", "/predict", RIGHT, b"{}", 422),
        ("POST", "/predict", RIGHT, b" " * 2000, 413),
        ("POST", "/livez", {}, b" " * 2000, 413),
        ("POST", "/predict/batch", {**RIGHT, "Content-Encoding": "br"}, b"", 415),
        ("POST", "/predict", {**RIGHT, "Content-Type": "text/csv"}, b"", 415),
        ("HEAD", "/nothing", {}, b"", 404),
        ("OPTIONS", "/nothing", {"Access-Control-Request-Method": "PUT"}, b"", 400),
    ],
    ids=str,
)
def test_a_page_may_read_every_refusal(
    store: Store, method: str, path: str, headers: dict[str, str], content: bytes, status: int
) -> None:
    client = client_of(store, cors_origins=(PAGE,), max_body_bytes=1024, public_pages=False)
    answer = client.request(method, path, content=content, headers={**headers, "Origin": PAGE})
    assert (answer.status_code, answer.headers.get_list("access-control-allow-origin")) == (status, [PAGE])
    assert answer.headers["vary"].startswith("Origin")


async def test_a_page_may_read_the_refusal_of_a_body_that_does_not_end(store: Store) -> None:
    client = client_of(store, cors_origins=(PAGE,), max_body_bytes=1024, max_body_seconds=0.05)
    long = await ask(client.app, "POST", "/predict", [*PAIRS, ORIGIN, (b"transfer-encoding", b"chunked")], [b" " * 999] * 9)
    assert (long.status, long.header(b"access-control-allow-origin")) == (413, PAGE.encode())
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "root_path": "", "query_string": b"", "scheme": "http"}
    reading: asyncio.Task[None] = asyncio.create_task(
        client.app({**scope, "http_version": "1.1", "headers": [*PAIRS, ORIGIN]}, asyncio.Event().wait, send)  # type: ignore[arg-type]
    )
    while not messages:
        await asyncio.sleep(0.01)
    reading.cancel()
    assert messages[0]["status"] == 408
    assert dict(messages[0]["headers"])[b"access-control-allow-origin"] == PAGE.encode()


@pytest.mark.parametrize("path", ["/predict", "/livez"])
@pytest.mark.parametrize("asks", [{}, {"Access-Control-Request-Method": "POST"}], ids=["request", "preflight"])
def test_a_page_may_read_that_it_sent_too_many_requests(store: Store, path: str, asks: dict[str, str]) -> None:
    limits = rate_limits(per_client=Rate(1, 3600.0), per_route={"/livez": Rate(1, 3600.0)})
    client = client_of(store, cors_origins=(PAGE,), rate_limits=limits)
    method = "OPTIONS" if asks else "POST" if path == "/predict" else "GET"
    answers = [client.request(method, path, content=FLOWER, headers={**RIGHT, "Origin": PAGE, **asks}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    for answer in answers:
        assert answer.headers.get_list("access-control-allow-origin") == [PAGE]
        assert answer.headers["vary"].startswith("Origin")
    if not asks:
        assert "Retry-After" in answers[1].headers["access-control-expose-headers"]


@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/model"])
def test_a_preflight_request_is_answered_without_a_key(page: TestClient, path: str) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    allowed = page.options(path, headers={"Origin": PAGE, **asks})
    assert (allowed.status_code, allowed.headers.get_list("access-control-allow-origin")) == (200, [PAGE])
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert allowed.headers["x-content-type-options"] == "nosniff"
    assert page.options(path, headers={"Origin": "http://evil.example", **asks}).status_code == 400


def test_preflight_requests_are_within_the_rate_limits(store: Store) -> None:
    client = client_of(store, cors_origins=(PAGE,), rate_limits=rate_limits(per_client=Rate(2, 3600.0)))
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    assert [client.options("/predict", headers=headers).status_code for _ in range(3)] == [200, 200, 429]


# --- the seam for protocols


class SemicolonCodec(Codec):
    """Rows as lines of numbers with semicolons; the response has one number for each line."""

    single_row = False
    content_type = b"text/csv"
    problem_type = b"text/plain"

    def __init__(self, context: CodecContext) -> None:
        self.model = f"{context.model_name} {context.model_version}"

    def decode(self, body: Buffer, headers: Headers) -> Batch:
        rows: Matrix = np.loadtxt(body.decode().splitlines(), delimiter=";", ndmin=2)
        return Batch(rows, dict(headers).get(b"x-note", b""))

    def encode(self, batch: Batch, scores: Scores) -> Buffer:
        best = [str(int(row.argmax())) for row in scores]
        return "\n".join([self.model, batch.meta.decode(), *best]).encode()

    def rows_in(self, body_bytes: int) -> float:
        return body_bytes / 16

    @classmethod
    def accepts(cls, content_type: bytes) -> bool:
        return content_type == cls.content_type

    @classmethod
    def problem(cls, problem: ProblemDetails) -> bytes:
        return f"{problem.status} {problem.code}".encode()

    @classmethod
    def operation(cls, signature: Signature | None, *, max_rows: int, unknown_fields: UnknownFields = "ignore") -> Operation:
        schemas = {"Lines": {"type": "string"}}
        return Operation(operation_id="lines", summary="Predict lines", request="Lines", response="Lines", schemas=schemas)


def test_a_further_protocol_is_one_codec_and_one_line_in_the_table_of_routes(store: Store) -> None:
    client = client_of(store, routes={**PREDICTION_ROUTES, "/lines": SemicolonCodec}, cors_origins=(PAGE,))
    headers = {"X-API-Key": KEY, "Content-Type": "text/csv", "X-Note": "n7", "Origin": PAGE}
    answer = client.post("/lines", content=b"5.1;3.5;1.4;0.2\n6.7;3.0;5.2;2.3", headers=headers)
    assert (answer.status_code, answer.text) == (200, "IrisClassifier 1\nn7\n0\n2")
    assert answer.headers["content-type"] == "text/csv"
    assert answer.headers["x-model-version"] == "1"
    assert answer.headers["access-control-allow-origin"] == PAGE
    packed = client.post("/lines", content=gzip.compress(b"5.1;3.5;1.4;0.2"), headers={**headers, "Content-Encoding": "gzip"})
    assert packed.text.endswith("\n0")
    refused = client.post("/lines", content=b"", headers={"Content-Type": "text/csv"})
    assert (refused.status_code, refused.text, refused.headers["content-type"]) == (401, "401 missing_key", "text/plain")
    assert client.post("/lines", content=FLOWER, headers=RIGHT).text == "415 unsupported_media_type"
    assert client.get("/lines").text == "405 method_not_allowed"
    assert client.post("/predict", content=FLOWER, headers=RIGHT).json()["prediction"] == "setosa"
    document = client.get("/openapi.json").json()
    assert document["paths"]["/lines"]["post"]["requestBody"]["content"] == {
        "text/csv": {"schema": {"$ref": "#/components/schemas/Lines"}}
    }
    samples = client.get("/metrics").text
    labels = 'format="json",model_version="1",protocol="unknown",route="/lines",status_class="2xx"'
    assert f"http_requests_total{{{labels}}} 2.0" in samples


@pytest.mark.parametrize("max_rows", [3, DEFAULTS.iris_max_rows])
def test_the_document_says_the_limit_of_rows_that_the_decoder_has(store: Store, max_rows: int) -> None:
    client = client_of(store, max_rows=max_rows)
    rows = client.get("/openapi.json").json()["components"]["schemas"]["Rows"]
    limit = rows["properties"]["instances"]["maxItems"]
    assert limit == max_rows
    for count, status in ((limit, 200), (limit + 1, 413)):
        body = b'{"instances":[' + b",".join([FLOWER] * count) + b"]}"
        assert client.post("/predict/batch", content=body, headers=RIGHT).status_code == status


def test_every_codec_of_the_table_knows_its_operation() -> None:
    operations = [codec.operation(None, max_rows=1) for codec in PREDICTION_ROUTES.values()]
    assert len({operation.operation_id for operation in operations if operation}) == len(PREDICTION_ROUTES)
    assert NativeBatchCodec.operation(None, max_rows=7).schemas["Rows"]["properties"]["instances"]["maxItems"] == 7


async def test_a_long_answer_is_sent_in_pieces_that_the_proxy_of_serve_can_pickle() -> None:
    text = bytes(range(256)) * (SEND_BYTES * 5 // 512)
    for body in (text, bytearray(text)):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(pickle.loads(pickle.dumps(message)))

        await send_response(HttpResponse(200, (), body), send, request_id=None, must_close=False)
        assert [len(message["body"]) for message in sent[1:]] == [SEND_BYTES, SEND_BYTES, SEND_BYTES // 2]
        assert b"".join(message["body"] for message in sent[1:]) == text
