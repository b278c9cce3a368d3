"""What is registered with Ray Serve's gRPC servers, and what one of its Python proxies passes on and says."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from serve_app.grpc.calls import Calls
from serve_app.http.app import create_app
from serve_app.inference.slot import Slot
from serve_app.rayserve import call_host, grpc_services
from serve_app.rayserve.grpc_services import PATHS, Call, answer_from_proxy, grpc_options
from tests.support.apps import KEY, http_options
from tests.support.calls import HEALTH, INFERENCE, Client, infer, values_of
from tests.support.models import logistic_store
from tests.support.oip import tensor
from tests.support.policies import ALLOW_ALL
from tests.support.waiting import eventually

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Ray, when it is imported
    from ray.serve._private import default_impl, grpc_util
    from ray.serve._private.grpc_util import gRPCGenericServer
    from ray.serve.config import gRPCOptions

ROW = infer(tensor([[5.1, 3.5, 1.4, 0.2]]), raw=True)
Answer = Callable[[Any, Any], Any]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Calls:
    slot, options = Slot(logistic_store(tmp_path_factory.mktemp("store")), policy=ALLOW_ALL), http_options(api_key=KEY)
    slot.refresh()
    app = create_app(slot, options)
    return Calls(app.state.gateway, app.state.service, options)


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the module changes in Serve and in itself is as before after each test."""
    monkeypatch.setattr(grpc_services, "answer", None)
    options = list(grpc_util.DEFAULT_GRPC_SERVER_OPTIONS)
    yield
    grpc_util.DEFAULT_GRPC_SERVER_OPTIONS[:] = options


class Started:
    """One of Serve's gRPC servers; `replica` stands for what a proxy calls."""

    def __init__(self, replica: Answer | None = None) -> None:
        self._replica = replica
        self.server: Any = None
        self.functions: list[Any] = [grpc_services.add]

    async def __aenter__(self) -> Client:
        async def handler(message: Any, context: Any) -> bytes:
            assert self._replica is not None
            result: bytes = await self._replica(message, context)
            return result

        self.server = gRPCGenericServer(lambda **_: handler)
        for function in self.functions:
            function(None, self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        return Client(self.channel)

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.server.stop(None)


def test_every_call_is_registered(calls: Calls) -> None:
    assert set(PATHS) == set(calls.paths)


def test_the_options_of_serve_name_functions_that_can_be_imported() -> None:
    assert grpc_options(None, reflection=True) is None
    development = gRPCOptions(**(grpc_options(9001, reflection=True) or {}))
    assert (development.port, development.enable_reflection) == (9001, False)
    assert development.grpc_servicer_func_callable == [grpc_services.add, grpc_services.add_reflection]
    production = gRPCOptions(**(grpc_options(9001, reflection=False) or {}))
    assert production.grpc_servicer_func_callable == [grpc_services.add]


# --- a replica


async def test_a_replica_answers_before_serves_wrapper_and_takes_messages_of_its_own_size(calls: Calls) -> None:
    grpc_services.serve(calls.answer, max_bytes=2048)
    async with Started() as client:
        assert values_of((await client.call("ModelInfer", ROW)).message)["predict"].tolist() == [["setosa"]]
        assert (await client.call("Check", service=HEALTH)).code == "OK"
        assert (await client.call("ModelInfer", b"\0" * 2049)).code == "RESOURCE_EXHAUSTED"


async def test_reflection_is_there_when_it_was_added(calls: Calls) -> None:
    grpc_services.serve(calls.answer, max_bytes=2048)
    async with Started() as client:
        listing = await client.call("ServerReflectionInfo", service="grpc.reflection.v1alpha.ServerReflection")
        assert listing.code == "UNIMPLEMENTED"


def test_reflection_describes_services_and_messages(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {}
    monkeypatch.setattr(
        "grpc_reflection.v1alpha.reflection.enable_server_reflection",
        lambda names, server, pool: found.update(names=names, pool=pool),
    )

    class Server:
        def add_passthrough_service(self, name: str) -> None:
            found["passed"] = name

    grpc_services.add_reflection(None, Server())
    assert {INFERENCE, HEALTH} < set(found["names"])
    for name in (INFERENCE, HEALTH, "inference.ModelInferRequest"):
        assert found["pool"].FindFileContainingSymbol(name).serialized_pb
    with pytest.raises(KeyError):
        found["pool"].FindFileContainingSymbol("inference.Nothing")


# --- a proxy


def replica_of(calls: Calls, seen: list[Any]) -> Answer:
    """What passes a call on to a replica as Serve does: the context is another object there."""

    async def answer(call: Call, context: Any) -> bytes:
        seen.append((call, context.invocation_metadata()))
        return (await answer_from_proxy(calls.answer, call, context)).SerializeToString()

    return answer


async def test_a_proxy_passes_on_a_call_with_its_path_and_without_the_metadata_of_serve(calls: Calls) -> None:
    seen: list[Any] = []
    async with Started(replica_of(calls, seen)) as client:
        reply = await client.call("ModelInfer", ROW, application="other", multiplexed_model_id="x", x_request_id="mine-1")
        assert reply.metadata["x-request-id"] == "mine-1"
        assert values_of(reply.message)["predict"].tolist() == [["setosa"]]
        assert (await client.call("ModelInfer", ROW, key=None)).code == "UNAUTHENTICATED"
        assert (await client.call("ModelInfer", b"\xff\xff")).code == "INVALID_ARGUMENT"
    call, metadata = seen[0]
    assert call.path == f"/{INFERENCE}/ModelInfer"
    names = {name for name, _ in metadata}
    assert {"x-api-key", "x-request-id"} <= names
    assert not names & {"application", "multiplexed_model_id"}


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED])
async def test_the_errors_of_serve_get_other_words(code: grpc.StatusCode) -> None:
    async def fail(_: Any, context: Any) -> bytes:
        context.set_code(code)
        context.set_details("Traceback (most recent call last): /app/secret.py, pid=17")
        return b""

    async with Started(fail) as client:
        reply = await client.call("ModelInfer", ROW)
    assert reply.code == code.name
    assert reply.details
    assert "secret" not in reply.details


async def test_an_exception_in_a_proxy_says_nothing() -> None:
    async def fail(*_: Any) -> bytes:
        raise RuntimeError("a secret")

    async with Started(fail) as client:
        reply = await client.call("ModelInfer", ROW)
    assert reply.code == "INTERNAL"
    assert "secret" not in reply.details


async def test_messages_that_do_not_come_to_a_proxy_are_bounded() -> None:
    async def never(*_: Any) -> bytes:
        raise AssertionError

    async with Started(never) as client:
        waiting = [client.channel.stream_unary(f"/{INFERENCE}/ModelInfer")() for _ in range(9)]
        await eventually(lambda: any(call.done() for call in waiting))
        (refused,) = [call for call in waiting if call.done()]
        assert await refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in waiting:
            call.cancel()


# --- the address


@pytest.mark.parametrize(("haproxy", "expected"), [("1", "127.0.0.1:9"), ("0", "10.0.0.1:9")])
def test_servers_in_python_listen_where_clients_are_only_without_haproxy(
    monkeypatch: pytest.MonkeyPatch, haproxy: str, expected: str
) -> None:
    addresses: list[str] = []
    monkeypatch.setattr(default_impl, "add_grpc_address", lambda _, address: addresses.append(address))
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", haproxy)
    monkeypatch.setenv(call_host.CALL_HOST, "")
    call_host.choose_call_host("10.0.0.1")
    call_host.bind_calls()
    default_impl.add_grpc_address(None, "[::]:9")
    assert addresses == [expected]


def test_on_a_cluster_servers_listen_on_all_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    add = default_impl.add_grpc_address
    monkeypatch.delenv(call_host.CALL_HOST, raising=False)
    call_host.bind_calls()
    assert default_impl.add_grpc_address is add
