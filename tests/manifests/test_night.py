"""The program of the night's pods against an API server that speaks HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kuberay.components.night import night
from kuberay.components.night.night import SUSPENDED_BY, ApiServer, Pod, StandIn, set_suspended, suspend
from tests.support.kube_api import JsonHandler, running

POD = Pod("evening-x", "7", "10.0.0.9")
READY = {"conditions": [{"type": "Ready", "status": "True"}]}


class Cluster(ThreadingHTTPServer):
    """One RayService, whose reads give the `reads` in turn (a number is an error), and EndpointSlices."""

    def __init__(self, *reads: dict[str, Any] | int, refusals: tuple[int, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reads = list(reads)
        self.refusals = list(refusals)
        self.calls: list[tuple[str, str]] = []
        self.changes: list[Any] = []
        self.slices: dict[str, Any] = {}


class Handler(JsonHandler):
    server: Cluster

    def do_GET(self) -> None:
        read = self.server.reads.pop(0)
        self.answer(*((read, {}) if isinstance(read, int) else (200, read)))

    def do_PATCH(self) -> None:
        assert self.headers["Content-Type"] == "application/merge-patch+json"
        assert self.path.endswith("/rayservices/iris-api?fieldValidation=Strict")
        self.server.changes.append(self.body())
        self.answer(self.server.refusals.pop(0) if self.server.refusals else 200, {"message": "unknown field"})

    def do_POST(self) -> None:
        document = self.body()
        taken = document["metadata"]["name"] in self.server.slices
        self.server.slices.setdefault(document["metadata"]["name"], document)
        self.answer(409 if taken else 201, document)

    def do_DELETE(self) -> None:
        found = self.server.slices.pop(self.path.rpartition("/")[2], None)
        self.answer(200 if found else 404, found or {})

    def answer(self, code: int, document: Any) -> None:
        self.server.calls.append((self.command, self.path.partition("?")[0].rpartition("/namespaces/mlops/")[2]))
        super().answer(code, document)


@contextlib.contextmanager
def client(cluster: Cluster, tmp_path: Path) -> Iterator[ApiServer]:
    with running(cluster, tmp_path) as address:
        yield ApiServer(address, tmp_path)


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    server = StandIn(0)
    server.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(night, "POLL_SECONDS", 0.01)


def rayservice(*, old: bool = False, new: bool = False, by: str = "", status: Any = None) -> dict[str, Any]:
    metadata = {"annotations": {SUSPENDED_BY: by}} if by else {}
    spec = {"rayClusterConfig": {"suspend": True} if old else {}, **({"suspend": True} if new else {})}
    return {"metadata": metadata, "spec": spec, "status": status or {}}


def ask(server: StandIn, method: str) -> tuple[int, str | None, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, "/predict", body=b"{}" if method in ("POST", "PUT", "PATCH") else None)
        response = connection.getresponse()
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.headers["Connection"] == "close"
        return response.status, response.headers["Retry-After"], response.read()


def test_the_night_is_a_suspended_rayservice_with_the_pod_as_an_endpoint_until_it_serves(tmp_path: Path, stand_in: StandIn) -> None:
    cluster = Cluster(rayservice(), rayservice(old=True, status=READY), 500, rayservice(), rayservice(status=READY))
    with client(cluster, tmp_path) as server:
        suspend(server, stand_in, POD, "42")
    assert cluster.changes == [{"metadata": {"annotations": {SUSPENDED_BY: "42"}}, "spec": {"suspend": True}}]
    own, rayservices = "endpointslices/iris-api-night", "rayservices/iris-api"
    assert cluster.calls == [
        ("DELETE", own),
        ("POST", "endpointslices"),
        ("GET", rayservices),
        ("PATCH", rayservices),
        *[("GET", rayservices)] * 4,
        ("DELETE", own),
    ]
    assert cluster.slices == {}
    assert stand_in.suspended is False


def test_a_second_pod_of_the_job_takes_the_endpoint_over_and_suspends_nothing(tmp_path: Path, stand_in: StandIn) -> None:
    cluster = Cluster(rayservice(by="42"), rayservice(by="42", status=READY))
    cluster.slices["iris-api-night"] = {"metadata": {"name": "iris-api-night"}}
    with client(cluster, tmp_path) as server:
        suspend(server, stand_in, POD, "42")
    assert cluster.changes == []
    assert [call for call, _ in cluster.calls] == ["DELETE", "POST", "GET", "GET", "DELETE"]


@pytest.mark.parametrize(("address", "family"), [("10.0.0.9", "IPv4"), ("fd00::9", "IPv6")])
def test_the_endpoint_is_not_ready_but_serving_and_is_deleted_with_its_pod(address: str, family: str) -> None:
    document = night.endpoint_slice(POD._replace(address=address), "mlops")
    (endpoint,) = document["endpoints"]
    assert endpoint["conditions"] == {"ready": False, "serving": True, "terminating": True}
    assert (document["addressType"], endpoint["addresses"]) == (family, [address])
    assert endpoint["targetRef"] == {"kind": "Pod", "name": "evening-x", "uid": "7", "namespace": "mlops"}
    assert document["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "Pod", "name": "evening-x", "uid": "7"}]
    assert document["ports"] == [{"name": "serve", "port": 8000, "protocol": "TCP"}]


@pytest.mark.parametrize("code", [400, 422])
def test_an_operator_that_does_not_know_the_newer_field_gets_the_older_one(tmp_path: Path, code: int) -> None:
    cluster = Cluster(refusals=(code,))
    with client(cluster, tmp_path) as server:
        set_suspended(server, False, {})
    assert [change["spec"] for change in cluster.changes] == [{"suspend": False}, {"rayClusterConfig": {"suspend": False}}]


@pytest.mark.parametrize(("refusals", "message"), [((403,), "refused the change"), ((400, 422), "cannot be suspended")])
def test_a_refused_change_ends_the_program_with_its_reason(tmp_path: Path, refusals: tuple[int, ...], message: str) -> None:
    cluster = Cluster(refusals=refusals)
    with client(cluster, tmp_path) as server, pytest.raises(SystemExit, match=f"error: .*{message}: .*unknown field"):
        set_suspended(server, True, {})
    assert len(cluster.changes) == len(refusals)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_every_request_is_told_when_to_come_back(stand_in: StandIn, method: str) -> None:
    for suspended, seconds, title in ((True, "300", "Suspended"), (False, "10", "Starting")):
        stand_in.suspended = suspended
        status, wait, body = ask(stand_in, method)
        assert (status, wait) == (503, seconds)
        assert body == b"" if method == "HEAD" else json.loads(body)["title"] == title


def test_the_rayservice_is_suspended_by_either_field() -> None:
    assert night.is_suspended(rayservice(old=True))
    assert night.is_suspended(rayservice(new=True))
    assert not night.is_suspended(rayservice())
