"""Calls over gRPC: every method, its status, and the limits, keys and counts that calls share with requests over HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest

from serve_app.artifacts.store import Store
from serve_app.http.rate_window import Rate
from serve_app.protocols.grpc import health_pb2
from serve_app.protocols.grpc import open_inference_pb2 as oip
from serve_app.protocols.grpc.message_codec import InferMessageCodec
from tests.support.apps import KEY, rate_limits
from tests.support.calls import HEALTH, INFERENCE, MODEL, Served, infer, served, values_of
from tests.support.models import A_FLOWER, logistic_store, publish_iris, slow_model
from tests.support.oip import tensor
from tests.support.waiting import eventually

FLOWER = list(A_FLOWER.values())
ROW = infer(tensor([FLOWER]), raw=True)
INFER = f"/{INFERENCE}/ModelInfer"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return logistic_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
async def server(store: Store) -> AsyncIterator[Served]:
    async with served(store) as server:
        yield server


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(Store(tmp_path)) as server:
        yield server


def requests(server: Served) -> dict[tuple[str, str, str], int]:
    """Calls that were counted, by route, class of the status and version."""
    collector = server.app.state.collector
    collector.flush()
    counts = {(key, body_format): count for (key, body_format), count in collector.state.requests.items() if "." in key[0]}
    assert {protocol for (_, protocol, _, _), _ in counts} <= {"open_inference_grpc"}
    assert {body_format for (route, *_), body_format in counts if route == INFER} <= {"protobuf"}
    assert {body_format for (route, *_), body_format in counts if route != INFER} <= {""}
    return {(route, status, version): count for ((route, _, status, version), _), count in counts.items()}


async def over_http(server: Served, path: str, body: Any) -> Any:
    """The JSON of a response of the same application."""
    transport = httpx2.ASGITransport(server.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
        return (await client.post(path, json=body, headers={"X-API-Key": KEY})).json()


# --- what is answered


async def test_a_prediction_is_that_of_the_rest_protocol_with_its_version_in_the_metadata(server: Served) -> None:
    rest = await over_http(server, f"/v2/models/{MODEL}/infer", {"inputs": [tensor([FLOWER])]})
    for message in (ROW, infer(tensor([FLOWER]), id="r7", model_version="1")):
        reply = await server.client.call("ModelInfer", message, x_request_id="mine-1")
        assert reply.code == "OK"
        assert {name: value.tolist() for name, value in values_of(reply.message).items()} == {
            each["name"]: np.reshape(each["data"], each["shape"]).tolist() for each in rest["outputs"]
        }
        assert reply.message.id == message.id
        assert (reply.message.model_name, reply.message.model_version) == (MODEL, "1")
        assert reply.metadata["x-model-version"] == "1"
        assert reply.metadata["x-request-id"] == "mine-1"
        assert len(reply.metadata["x-model-digest"]) == 64


async def test_many_rows_in_one_call(server: Served) -> None:
    rows = np.tile(FLOWER, (20_000, 1))
    for raw in (False, True):
        reply = await server.client.call("ModelInfer", infer(tensor(rows), raw=raw))
        assert values_of(reply.message)["predict"].tolist() == [["setosa"]] * 20_000
        assert values_of(reply.message)["predict_proba"].shape == (20_000, 3)


async def test_what_describes_server_and_model_is_what_rest_says(server: Served) -> None:
    reply = await server.client.call("ServerMetadata", key=None)
    assert reply.message.name == "iris-api"
    assert "model_repository" in reply.message.extensions
    reply = await server.client.call("ModelMetadata", oip.ModelMetadataRequest(name=MODEL, version="1"))
    assert list(reply.message.versions) == ["1"]
    assert [(each.name, each.datatype, list(each.shape)) for each in reply.message.inputs] == [
        (name, "FP64", [-1, 1]) for name in A_FLOWER
    ]
    assert [(each.name, each.datatype, list(each.shape)) for each in reply.message.outputs] == [
        ("predict", "BYTES", [-1, 1]),
        ("predict_proba", "FP64", [-1, 3]),
    ]
    assert json.loads(reply.message.properties["classes"]) == ["setosa", "versicolor", "virginica"]
    for ready in (False, True):
        reply = await server.client.call("RepositoryIndex", oip.RepositoryIndexRequest(ready=ready))
        assert [(each.name, each.version, each.state) for each in reply.message.models] == [(MODEL, "1", "READY")]


async def test_probes_need_no_key(server: Served) -> None:
    assert (await server.client.call("ServerLive", key=None)).message.live is True
    assert (await server.client.call("ServerReady", key=None)).message.ready is True
    for version in ("", "1"):
        assert (await server.client.call("ModelReady", oip.ModelReadyRequest(name=MODEL, version=version), key=None)).message.ready
    for service in ("", INFERENCE):
        request = health_pb2.HealthCheckRequest(service=service)
        assert (await server.client.call("Check", request, service=HEALTH, key=None)).message.status == 1


async def test_without_a_model_probes_answer_and_the_rest_is_unavailable(empty: Served) -> None:
    call = empty.client.call
    assert (await call("ServerLive")).message.live is True
    assert (await call("ServerReady")).message.ready is False
    assert (await call("ModelReady", oip.ModelReadyRequest(name=MODEL))).message.ready is False
    assert (await call("Check", service=HEALTH)).message.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert [each.state for each in (await call("RepositoryIndex")).message.models] == ["UNAVAILABLE"]
    assert not (await call("RepositoryIndex", oip.RepositoryIndexRequest(ready=True))).message.models
    for method, message in (("ModelInfer", ROW), ("ModelMetadata", oip.ModelMetadataRequest(name=MODEL))):
        reply = await call(method, message)
        assert (reply.code, reply.metadata["retry-after"], reply.metadata["x-error-code"]) == ("UNAVAILABLE", "5", "no_model")


# --- what is refused


async def test_a_missing_key_and_a_wrong_one(server: Served) -> None:
    methods = {
        "ModelInfer": ROW,
        "ModelMetadata": oip.ModelMetadataRequest(name=MODEL),
        "RepositoryIndex": b"",
        "RepositoryModelLoad": b"",
        "RepositoryModelUnload": b"",
    }
    for method, message in methods.items():
        assert (await server.client.call(method, message, key=None)).code == "UNAUTHENTICATED"
        assert (await server.client.call(method, message, key="wrong")).code == "PERMISSION_DENIED"
    assert (await server.client.call("ModelInfer", ROW, key=None, authorization=f"Bearer {KEY}")).code == "OK"
    assert (await server.client.call("ModelInfer", ROW, key=None, authorization="Bearer no")).code == "PERMISSION_DENIED"


async def test_a_key_that_comes_twice_is_refused(server: Served) -> None:
    call = server.client.channel.unary_unary(INFER)(ROW.SerializeToString(), metadata=[("x-api-key", KEY), ("x-api-key", "other")])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_pages_that_are_not_public_need_a_key(store: Store) -> None:
    async with served(store, public_pages=False) as server:
        assert (await server.client.call("ServerMetadata", key=None)).code == "UNAUTHENTICATED"
        assert (await server.client.call("ServerMetadata")).code == "OK"


async def test_models_versions_and_services_that_are_not_there(server: Served) -> None:
    call = server.client.call
    for name, version in (("other", ""), (MODEL, "9")):
        for method, message in (
            ("ModelInfer", infer(tensor([FLOWER]), model_name=name, model_version=version)),
            ("ModelMetadata", oip.ModelMetadataRequest(name=name, version=version)),
            ("ModelReady", oip.ModelReadyRequest(name=name, version=version)),
        ):
            reply = await call(method, message)
            assert (reply.code, reply.metadata["x-error-code"]) == (
                "NOT_FOUND",
                "unknown_model" if name == "other" else "unknown_version",
            )
    assert (await call("Check", health_pb2.HealthCheckRequest(service="other"), service=HEALTH)).code == "NOT_FOUND"
    assert (await call("ModelStreamInfer")).code == "UNIMPLEMENTED"


async def test_models_are_not_loaded_by_calls(server: Served) -> None:
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        reply = await server.client.call(method, oip.RepositoryModelLoadRequest(model_name=MODEL))
        assert (reply.code, reply.metadata["x-error-code"]) == ("UNIMPLEMENTED", "not_supported")


async def test_bad_values_are_named_by_their_fields_and_never_repeated(server: Served) -> None:
    reply = await server.client.call("ModelInfer", infer(tensor([[500.0, 3.5, 1.4, 0.2]])))
    assert (reply.code, reply.metadata["x-error-code"]) == ("INVALID_ARGUMENT", "invalid_input")
    assert "sepal_length[0]" in reply.details
    assert "500" not in reply.details
    for method in ("ModelInfer", "ModelMetadata", "ModelReady", "RepositoryIndex"):
        reply = await server.client.call(method, b"\xff\xff")
        assert (reply.code, reply.metadata["x-error-code"]) == ("INVALID_ARGUMENT", "malformed")


async def test_details_fit_into_a_header_whatever_the_names_are(server: Served) -> None:
    name = "ü" * 20_000
    reply = await server.client.call("ModelInfer", infer(tensor([1.0], name="sepal_length"), outputs=[{"name": name}] * 2))
    assert reply.code == "INVALID_ARGUMENT"
    assert len(reply.details) <= 1000


# --- limits


async def test_rows_and_messages_that_are_too_many_or_too_large(store: Store) -> None:
    async with served(store, max_rows=10, max_body_bytes=4096) as server:
        state = server.app.state.collector.state
        reply = await server.client.call("ModelInfer", infer(tensor([FLOWER] * 11), raw=True))
        assert (reply.code, reply.metadata["x-error-code"]) == ("INVALID_ARGUMENT", "too_many_rows")
        assert (await server.client.call("ModelInfer", infer(tensor([FLOWER] * 200), raw=True))).code == "RESOURCE_EXHAUSTED"
        assert (await server.client.call("ModelInfer", ROW)).code == "OK"
        assert server.app.state.collector.in_flight == 0
        assert state.errors == {("too_many_rows", INFER): 1, ("disconnected", INFER): 1}


async def test_a_page_takes_a_small_message_alone(server: Served) -> None:
    reply = await server.client.call("ModelReady", oip.ModelReadyRequest(name="x" * 70_000))
    assert (reply.code, reply.metadata["x-error-code"]) == ("RESOURCE_EXHAUSTED", "body_too_large")


async def test_more_calls_than_are_allowed_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store, slow_model())
    async with served(store, max_in_flight=2) as server:
        replies = await asyncio.gather(*[server.client.call("ModelInfer", ROW) for _ in range(8)])
        codes = [reply.code for reply in replies]
        assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
        refused = next(reply for reply in replies if reply.code != "OK")
        assert (refused.metadata["x-error-code"], refused.metadata["retry-after"]) == ("too_busy", "1")
        assert server.app.state.collector.in_flight == 0
        server.app.state.collector.in_flight = 2
        assert (await server.client.call("ServerReady")).code == "OK"
        assert (await server.client.call("Check", service=HEALTH)).code == "OK"
        assert (await server.client.call("ModelMetadata", oip.ModelMetadataRequest(name=MODEL))).code == "RESOURCE_EXHAUSTED"


async def test_calls_and_requests_over_http_count_in_one_rate(store: Store) -> None:
    async with served(store, rate_limits=rate_limits(per_key=Rate(3, 60.0))) as server:
        assert "outputs" in await over_http(server, f"/v2/models/{MODEL}/infer", {"inputs": [tensor([FLOWER])]})
        replies = [await server.client.call("ModelInfer", ROW) for _ in range(3)]
        assert [reply.code for reply in replies] == ["OK", "OK", "RESOURCE_EXHAUSTED"]
        assert replies[-1].metadata["x-error-code"] == "rate_limited"
        assert int(replies[-1].metadata["retry-after"]) >= 1
        assert (await server.client.call("Check", service=HEALTH)).code == "OK"


async def test_a_message_that_does_not_come_ends_its_call(store: Store) -> None:
    async with served(store, max_body_seconds=0.3) as server:
        call = server.client.channel.stream_unary(INFER)(metadata=[("x-api-key", KEY)])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert requests(server) == {(INFER, "4xx", ""): 1}


async def test_a_client_that_leaves_before_its_message_is_counted_and_holds_nothing(server: Served) -> None:
    call = server.client.channel.stream_unary(INFER)(metadata=[("x-api-key", KEY)])
    await call.wait_for_connection()
    await asyncio.sleep(0.3)
    call.cancel()
    await eventually(lambda: requests(server) == {(INFER, "4xx", ""): 1})
    assert server.app.state.collector.in_flight == 0
    assert (await server.client.call("ModelInfer", ROW)).code == "OK"


async def test_messages_that_do_not_come_are_counted_as_the_largest(store: Store) -> None:
    async with served(store) as server:
        waiting = [server.client.channel.stream_unary(INFER)(metadata=[("x-api-key", KEY)]) for _ in range(12)]
        await eventually(lambda: sum(call.done() for call in waiting) == 4)
        codes = [await call.code() for call in waiting if call.done()]
        assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 4
        assert (await server.client.call("ModelInfer", ROW)).code == "OK"  # it is there at once
        for call in waiting:
            call.cancel()
        late = server.client.channel.stream_unary(INFER)(metadata=[("x-api-key", KEY)])
        await asyncio.sleep(0.3)
        await late.write(ROW.SerializeToString())
        await late.done_writing()
        assert oip.ModelInferResponse.FromString(await late).model_name == MODEL


async def test_a_key_is_checked_before_the_message_has_come(server: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asyncio.wait_for(server.client.channel.stream_unary(INFER)(), 10)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


# --- counts and logs


async def test_every_call_is_counted_with_its_rows(server: Served) -> None:
    await server.client.call("ModelInfer", ROW)
    await server.client.call("ModelInfer", infer(tensor([FLOWER] * 3)))
    await server.client.call("ModelInfer", ROW, key=None)
    await server.client.call("Check", service=HEALTH)
    assert requests(server) == {(INFER, "2xx", "1"): 2, (INFER, "4xx", ""): 1, (f"/{HEALTH}/Check", "2xx", ""): 1}
    state = server.app.state.collector.state
    assert state.predictions["setosa"] == 4
    assert state.errors["missing_key", INFER] == 1


async def test_an_unexpected_error_is_logged_under_its_id_and_says_nothing(
    server: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(server.app.state.service, "served", fail)
    monkeypatch.setattr(InferMessageCodec, "respond", fail)
    with caplog.at_level(logging.INFO):
        for method, message in (("ModelMetadata", oip.ModelMetadataRequest(name=MODEL)), ("ModelInfer", ROW)):
            caplog.clear()
            reply = await server.client.call(method, message)
            assert (reply.code, reply.metadata["x-error-code"]) == ("INTERNAL", "internal_error")
            assert "secret" not in reply.details
            logged = [record for record in caplog.records if record.exc_info or record.message == "request"]
            assert any("a secret of the server" in str(record.exc_info) for record in logged)
            ids = {getattr(record, "request_id", None) for record in logged}
            assert reply.metadata["x-request-id"] in ids


async def test_one_call_in_so_many_is_logged(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    async with served(store, log_every=2) as server:
        with caplog.at_level(logging.INFO, "iris_api.request"):
            for _ in range(4):
                await server.client.call("ModelInfer", ROW)
    lines = [record for record in caplog.records if record.name == "iris_api.request"]
    assert [record.__dict__["route"] for record in lines] == [INFER] * 2
    assert [record.__dict__["status"] for record in lines] == [200, 200]
