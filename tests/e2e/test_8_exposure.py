"""Outside of the cluster: two installations beside each other, the port of the nodes, and an Ingress and a Gateway in front of one.

The controller is the one that E2E_INGRESS starts (see tests/e2e/run); without one the tests behind it are skipped.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import grpc
import pytest
import yaml

from serve_app.protocols.grpc import health_pb2
from serve_app.protocols.grpc import open_inference_pb2 as oip
from tests.support import cluster
from tests.support.cluster import ROOT, ROW, get, kubectl, make, request
from tests.support.figures import note
from tests.support.front_door import Controller, FrontDoor, certificate, controller
from tests.support.load import open_loop
from tests.support.probe import Pod, other_namespace, pod
from tests.support.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

FIRST, SECOND = "iris-front", "iris-team-a"
NODE_PORTS = {FIRST: 30181, SECOND: 30182}
HOST, GRPC_HOST, PATH = "api.iris.test", "grpc.iris.test", "/iris"
LIMIT = 200
"""Requests a minute that one client may send to the installation behind the controller."""
BODY_SECONDS = 4
CONTROLLER_SECONDS = 60
"""Traefik's default `readTimeout`, like that of most controllers."""
MAX_BODY = 16 * 1024 * 1024
FLOWER = json.dumps(ROW).encode()
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Installation:
    """One of several in the cluster."""

    namespace: str
    key: str

    @property
    def port(self) -> int:
        return NODE_PORTS[self.namespace]

    def make(self, target: str, *, folder: Path, **variables: str) -> str:
        """A `make` target for this installation; what it said."""
        variables = {"K8S_NS": self.namespace, "K8S_SECRET": str(folder / f"{self.namespace}.yaml"), **variables}
        result = make(target, **variables)
        assert result.code == 0, result.output
        return result.output

    def predicts(self, key: str | None = None) -> int:
        return request("/predict", key=self.key if key is None else key, row=ROW, port=self.port).status

    def pod(self, component: str) -> Pod:
        name = cluster.pods(f"app=iris-api,component={component}", self.namespace)[0]["metadata"]["name"]
        return Pod(name, f"ray-{component}", self.namespace)


def install(namespace: str, folder: Path) -> Installation:
    """The API without MLflow in a namespace of its own, with a key, a node port and a model of its own."""
    unknown = Installation(namespace, "")
    unknown.make("k8s-clean", folder=folder)
    secret = folder / f"{namespace}.yaml"
    unknown.make("k8s-secrets", folder=folder, OVERLAY="api")
    document = yaml.safe_load(secret.read_text())
    document["stringData"]["MLFLOW_TRACKING_URI"] = ""
    secret.write_text(yaml.safe_dump(document))
    one = Installation(namespace, document["stringData"]["API_KEY"])
    one.make("k8s-deploy", folder=folder, OVERLAY="api")
    one.make("k8s-nodeport", folder=folder, NODE_PORT=str(one.port))
    one.make("k8s-train", folder=folder, ARGS="--no-tracking")
    return one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exposure")


@pytest.fixture(scope="module")
def first(folder: Path) -> Iterator[Installation]:
    try:
        yield install(FIRST, folder)
    finally:
        make("k8s-clean", K8S_NS=FIRST)


# --- beside each other


def test_a_second_installation_works_beside_the_first_and_leaves_it_alone(first: Installation, folder: Path) -> None:
    try:
        second = install(SECOND, folder)
        assert first.key != second.key
        for one, other in ((first, second), (second, first)):
            assert one.predicts() == 200
            assert one.predicts(other.key) == 403
        taken = make("k8s-nodeport", K8S_NS=SECOND, NODE_PORT=str(first.port))
        assert taken.code != 0
        assert f"{FIRST}/iris-api-service-nodeport" in taken.output
        ports = {"api": 8000, "gcs": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080, "stats": 8404, "replica": 30000}
        for one, other in ((first, second), (second, first)):
            head, worker = other.pod("head").ip, other.pod("worker").ip
            pairs = {(address, port) for address in (head, worker) for port in ports.values()}
            assert one.pod("worker").reaches(pairs) == set(), "the pods of the API open connections to their own alone"
            assert other.pod("worker").reaches({(head, 6379), (worker, 30000)}) == {(head, 6379), (worker, 30000)}
        note(f"2 installations: 2 keys, {2 * len(ports)} ports of the other tried from each, none reached")
    finally:
        cleaned = make("k8s-clean", K8S_NS=SECOND)
    assert cleaned.code == 0, cleaned.output
    assert get("namespace", SECOND) == {}
    assert first.predicts() == 200


def test_an_upgrade_loses_no_request_through_the_port_of_the_nodes(first: Installation) -> None:
    change = cluster.roll_out_operations("upgrade")
    before = active_cluster(first)
    url = f"http://127.0.0.1:{first.port}"
    with open_loop(url, ROW, key=first.key, rate=50, check=cluster.predicts, retry=False, keep_alive=False) as record:
        kubectl("-n", first.namespace, "patch", "rayservice", "iris-api", "--type=json", "-p", json.dumps(change))
        until(lambda: active_cluster(first) != before, seconds=300, every=1, what="the new cluster")
        until(lambda: not pods_of(first, before), seconds=300, every=1, what="the end of the old cluster")
    note(str(record))
    assert record.failures == []


def active_cluster(one: Installation) -> str:
    return str(get("rayservice", "iris-api", one.namespace)["status"]["activeServiceStatus"]["rayClusterName"])


def pods_of(one: Installation, ray_cluster: str) -> list[dict[str, Any]]:
    return cluster.pods(f"ray.io/cluster={ray_cluster}", one.namespace)


def test_kubectl_shows_the_log_lines_of_the_replicas(first: Installation) -> None:
    for _ in range(250):  # one request in 100 is logged, by each replica
        assert first.predicts() == 200

    def messages() -> set[str]:
        lines = kubectl("logs", "-l", "app=iris-api", "-n", first.namespace).splitlines()
        return {json.loads(line)["message"] for line in lines if line.startswith('{"time"')}

    until(lambda: "request" in messages(), seconds=20, every=1, what="the line of a request")


# --- behind a controller


def kustomization(target: Path, components: list[str], **values: str) -> Path:
    """An overlay as a user makes it: the API, components, and an exposure.yaml with values of one's own."""
    target.mkdir(exist_ok=True)
    exposure = yaml.safe_load((ROOT / "kuberay" / "overlays" / "gateway" / "exposure.yaml").read_text())
    exposure["data"] |= values
    (target / "exposure.yaml").write_text(yaml.safe_dump(exposure))
    kuberay = os.path.relpath(ROOT / "kuberay", target.resolve())
    document = {
        "resources": [f"{kuberay}/overlays/api", "exposure.yaml"],
        "components": [f"{kuberay}/components/{name}" for name in components],
        "patches": [
            {
                "target": {"kind": "ConfigMap", "name": "iris-api-config"},
                "patch": json.dumps(
                    [
                        {"op": "add", "path": "/data/IRIS_RATE_LIMIT_PER_CLIENT", "value": f"{LIMIT}/minute"},
                        {"op": "add", "path": "/data/IRIS_MAX_BODY_SECONDS", "value": str(BODY_SECONDS)},
                    ]
                ),
            }
        ],
    }
    (target / "kustomization.yaml").write_text(yaml.safe_dump(document))
    return target


@dataclass(frozen=True, slots=True)
class Front:
    """An installation behind a controller, and the certificate of its name."""

    installation: Installation
    controller: Controller
    authority: Path
    folder: Path

    def values(self, path: str) -> dict[str, str]:
        ports = {"httpPort": str(self.controller.http), "httpsPort": str(self.controller.https)}
        network = {"controllerNamespace": "traefik", "controllerNetwork": f"{node_address()}/32"}
        return {"class": self.controller.name, "host": HOST, "grpcHost": GRPC_HOST, "path": path, **ports, **network}

    def objects(self, component: str, path: str) -> list[dict[str, Any]]:
        """The objects of a component, without the API behind them."""
        components = [component, "gateway-grpc"] if component == "gateway" else [component]
        folder = self.folder / f"{component}{path.replace('/', '-')}"
        text = kubectl("kustomize", str(kustomization(folder, components, **self.values(path))))
        documents = [one for one in yaml.safe_load_all(text) if one["kind"] in ("Ingress", "Gateway", "HTTPRoute", "GRPCRoute")]
        for one in documents:
            one["metadata"]["namespace"] = self.installation.namespace
        return documents


def node_address() -> str:
    addresses = json.loads(kubectl("get", "nodes", "-o", "json"))["items"][0]["status"]["addresses"]
    return str(next(one["address"] for one in addresses if one["type"] == "InternalIP"))


@pytest.fixture(scope="module")
def front(first: Installation, folder: Path) -> Front:
    started = controller()
    authority, key = certificate(folder, HOST, GRPC_HOST)
    kubectl("-n", first.namespace, "delete", "secret", "iris-api-tls", "--ignore-not-found")
    kubectl("-n", first.namespace, "create", "secret", "tls", "iris-api-tls", f"--cert={authority}", f"--key={key}")
    result = Front(first, started, authority, folder)
    overlay = kustomization(folder / "deployment", ["gateway", "proxy-only"], **result.values(PATH))
    first.make("k8s-deploy", folder=folder, OVERLAY=str(overlay))
    return result


DOORS = ("ingress", "ingress below a path", "gateway", "gateway below a path", "gateway that strips the path")
sources = (f"127.0.1.{number}" for number in itertools.count(1))
"""A client of its own for each test: the limit is per client."""


@pytest.fixture(scope="module", params=DOORS)
def opened(front: Front, request: pytest.FixtureRequest) -> Iterator[FrontDoor]:
    """Each way in turn; the objects of one are deleted before the next."""
    component, _, path = request.param.partition(" ")
    stripped = "strips" in path
    documents = front.objects(component, PATH if path and not stripped else "")
    if stripped:
        for document in documents:
            if document["kind"] == "HTTPRoute" and document["metadata"]["name"] == "iris-api":
                rewrite = {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}}
                (backend,) = document["spec"]["rules"][0]["backendRefs"]
                matches = [{"path": {"type": "PathPrefix", "value": PATH}}]
                document["spec"]["rules"] = [{"matches": matches, "filters": [rewrite], "backendRefs": [backend]}]
    text = yaml.safe_dump_all(documents)
    kubectl("-n", front.installation.namespace, "delete", "ingress,httproute,grpcroute,gateway", "--all")
    kubectl("apply", "-f", "-", text=text)
    door = FrontDoor(HOST, front.controller.https, front.authority, PATH if path else "", next(sources))
    try:
        until(lambda: answers(door), seconds=60, every=0.5, what="the way in")
        yield door
    finally:
        kubectl("delete", "-f", "-", text=text)


def answers(door: FrontDoor) -> bool:
    try:
        return door.request("/health").status == 200
    except OSError:  # the controller does not have the certificate yet
        return False


@pytest.fixture
def door(opened: FrontDoor) -> FrontDoor:
    return replace(opened, source=next(sources))


def test_it_predicts_by_tls_and_wants_the_key(door: FrontDoor, front: Front) -> None:
    key = {"X-API-Key": front.installation.key}
    response = door.request("/predict", body=FLOWER, headers={**JSON, **key})
    assert (response.status, json.loads(response.body)["prediction"]) == (200, "setosa")
    assert door.request("/predict", body=FLOWER, headers={**JSON, "X-API-Key": "wrong"}).status == 403
    assert door.request("/predict", body=FLOWER, headers=JSON).status == 401
    assert door.request("/model/info", headers=key).version == "1"


def test_clients_of_other_protocols_find_their_paths(door: FrontDoor, front: Front) -> None:
    headers = {**JSON, "X-API-Key": front.installation.key}
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP64", "data": list(ROW.values())}
    response = door.request("/v2/models/IrisClassifier/infer", body=json.dumps({"inputs": [tensor]}).encode(), headers=headers)
    assert (response.status, json.loads(response.body)["outputs"][0]["data"]) == (200, ["setosa"])
    instances = json.dumps({"instances": [ROW]}).encode()
    for path in ("/invocations", "/v1/models/IrisClassifier:predict"):
        response = door.request(path, body=instances, headers=headers)
        assert (response.status, json.loads(response.body)["predictions"]) == (200, ["setosa"])
    for path in ("/v2", "/v2/health/ready", "/v2/models/IrisClassifier", "/v1/models", "/ping"):
        assert door.request(path, headers=headers).status == 200, path
    assert door.request("/v2/models/IrisClassifier").status == 401


def test_grpc_comes_through_a_gateway_by_tls_under_its_own_host(
    door: FrontDoor, front: Front, request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.params["opened"] != "gateway":
        pytest.skip("gRPC has no path, and an Ingress no standard way for it")
    credentials = grpc.ssl_channel_credentials(front.authority.read_bytes())
    options = [("grpc.ssl_target_name_override", GRPC_HOST), ("grpc.default_authority", GRPC_HOST)]
    message = oip.ModelInferRequest(model_name="IrisClassifier")
    message.inputs.add(name="x", datatype="FP64", shape=[1, 4]).contents.fp64_contents.extend(ROW.values())
    with grpc.secure_channel(f"127.0.0.1:{front.controller.https}", credentials, options) as channel:

        def call(path: str, message: Any, answer: Any, key: str | None = None) -> Any:
            metadata = [("x-api-key", key)] if key is not None else []
            method = channel.unary_unary(path, lambda message: message.SerializeToString(), answer.FromString)
            return method(message, metadata=metadata, timeout=10)

        def status(path: str, key: str | None = None) -> str:
            with pytest.raises(grpc.RpcError) as refused:
                call(path, message, oip.ModelInferResponse, key)
            return str(refused.value.code().name)

        infer = "/inference.GRPCInferenceService/ModelInfer"
        until(lambda: status(infer) == "UNAUTHENTICATED", seconds=30, every=0.5, what="the route of gRPC")
        check = call("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse)
        assert check.status == health_pb2.HealthCheckResponse.SERVING
        answer = call(infer, message, oip.ModelInferResponse, front.installation.key)
        assert list(answer.outputs[0].contents.bytes_contents) == [b"setosa"]
        assert status(infer, "wrong") == "PERMISSION_DENIED"
        for path in ("/ray.serve.RayServeAPIService/ListApplications", "/ray.serve.RayServeAPIService/Healthz"):
            assert status(path, front.installation.key) == "UNIMPLEMENTED", "a service of Ray Serve is open"


def test_the_pages_find_their_scripts_and_the_document_names_the_address(door: FrontDoor, front: Front) -> None:
    base = f"https://{HOST}{door.path}"

    def load(address: str) -> bytes:
        assert address.startswith(f"{base}/"), address
        response = door.request(address.removeprefix(base))
        assert response.status == 200, address
        return response.body

    count = 0
    for page in ("/docs", "/redoc"):
        assets = re.findall(r"""(?:src|href|url)[=:] ?["']([^"']+)["']""", load(base + page).decode())
        assert len(assets) >= 3
        for asset in assets:
            assert load(urljoin(base + page, asset))
            count += 1
    document = json.loads(load(f"{base}/openapi.json"))
    if door.path:  # the installation behind it has the setting
        assert {urljoin(f"{base}/openapi.json", server["url"]).rstrip("/") for server in document["servers"]} == {base}
    note(f"{count} scripts, styles and documents of the two pages below {door.path or '/'}")


CLOSED = (
    *("/metrics", "/livez", "/-/routes", "/-/healthz", "/-/", "/api/jobs/", "/api/version", "/api/serve/applications/", "/nothing"),
    *("//metrics", "/./metrics", "/metrics/", "/METRICS", "/metrics;x", "/metrics%00", "/%6detrics", "/%2fmetrics", "/%2e/metrics"),
    *("/%2d/routes", "/-%2froutes", "/%2D%2Fhealthz", "//-/routes", "/-//routes", "/x/../-/routes", "/..;/-/routes", "/;/-/routes"),
    *("/predict/../metrics", "/predict/..;/metrics", "/predict/%2e%2e/metrics", "/docs/..%2fmetrics", "/docs%2f..%2fmetrics"),
    *("/static-offline-docs/../metrics", "/static-offline-docs/%2e%2e/metrics", "/static-offline-docs/..%2fmetrics"),
    *("/static-offline-docs/..;/metrics", "/static-offline-docs//../../metrics", "/static-offline-docs/%2e%2e%2f-%2froutes"),
    *("/ui/../metrics", "/ui/%2e%2e/metrics", "/ui/..%2fmetrics", "/ui/../-/routes", "/uimetrics"),
    *("/static-offline-docs/..%5cmetrics", "/static-offline-docs/../-/routes", "/static-offline-docs/..%252f..%252fmetrics"),
    *("/v2/../metrics", "/v2/%2e%2e/metrics", "/v2/..%2fmetrics", "/v2/..;/-/routes", "/v2/%2e%2e%2f-%2froutes", "/v2x", "/v1"),
    *("/v1/models/../../metrics", "/v1/models/%2e%2e/%2e%2e/-/routes", "/v1/models/..%2f..%2fmetrics", "/v1/modelsx"),
    *("/predict%20", "/predict/", "/health/../-/healthz", "/model/..%2f..%2fapi%2fjobs", "/\\metrics", "/model/info/../../metrics"),
)
SECRETS = (b"# HELP", b"# TYPE", b"ray_", b'"iris-api"', b"success", b"submission_id", b"session_dir")
"""Parts of what is behind the closed paths."""


def test_no_path_is_open_that_should_be_closed(door: FrontDoor, front: Front, request: pytest.FixtureRequest) -> None:
    if "strips" in request.node.name:
        pytest.skip("a prefix that is stripped opens every path below it: docs/how-to/exposure.md")
    tried = 0
    for path in CLOSED:
        for prefix in {door.path, ""}:
            response = door.raw(prefix + path, front.installation.key)
            tried += 1
            if response.status in (301, 302, 307, 308):
                location = urlsplit(response.headers["location"])
                response = door.raw(location.path, front.installation.key)
            assert response.status in (400, 401, 403, 404, 405), (prefix + path, response)
            assert not [part for part in SECRETS if part in response.body], (prefix + path, response.body[:200])
    note(f"{tried} closed paths tried, none open")


def test_bodies_up_to_the_limit_pass_and_larger_ones_get_an_answer(door: FrontDoor, front: Front) -> None:
    headers = {**JSON, "X-API-Key": front.installation.key}
    batch = json.dumps({"instances": [ROW]}).encode()
    response = door.request("/predict/batch", body=batch + b" " * (MAX_BODY - len(batch)), headers=headers)
    assert (response.status, json.loads(response.body)["predictions"][0]["prediction"]) == (200, "setosa")
    for _ in range(5):  # a connection that is closed with bytes unread would be reset now and then
        response = door.request("/predict/batch", body=batch + b" " * 17_000_000, headers=headers)
        assert (response.status, json.loads(response.body)["code"]) == (413, "body_too_large")


def test_a_slow_body_gets_an_answer_when_the_controller_gives_it_up(door: FrontDoor, front: Front) -> None:
    """The API answers after BODY_SECONDS; the controller first waits for the rest of the body, as long as its own time-out is."""
    if door.path:
        pytest.skip("the same with and without a path")
    head = f"POST {door.path}/predict HTTP/1.1\r\nHost: {HOST}\r\nX-API-Key: {front.installation.key}\r\nContent-Length: 100\r\n"
    started = time.monotonic()
    with door.open(60) as sock:
        sock.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
        response = http.client.HTTPResponse(sock)
        response.begin()
        body = json.loads(response.read())
    seconds = time.monotonic() - started
    assert (response.status, body["code"]) == (408, "body_too_slow")
    assert BODY_SECONDS <= seconds < CONTROLLER_SECONDS + 10


def test_a_connection_may_rest_for_longer_than_those_behind_it(door: FrontDoor) -> None:
    if door.path:
        pytest.skip("the same with and without a path")
    with door.connection() as connection:
        assert door.send(connection, "/health").status == 200
        time.sleep(17)  # the API's own proxy closes a resting connection after 15 s
        assert door.send(connection, "/health").status == 200


def test_http_is_redirected_to_https_by_a_gateway(door: FrontDoor, front: Front, request: pytest.FixtureRequest) -> None:
    if "ingress" in request.node.name:
        pytest.skip("the Ingress API knows no redirect: the controller decides")
    plain = replace(door, port=front.controller.http, authority=None)
    for path in ("/predict", "/metrics"):
        response = plain.request(path)
        assert (response.status, response.headers["location"]) == (301, f"https://{HOST}:{front.controller.https}{door.path}{path}")


def test_limits_count_the_address_of_the_client_whatever_it_claims(door: FrontDoor, front: Front) -> None:
    key = {"X-API-Key": front.installation.key}
    with door.connection() as connection:
        statuses = [
            door.send(connection, "/model/info", headers={**key, "X-Forwarded-For": f"198.51.100.{number}"}).status
            for number in range(1, LIMIT + 31)
        ]
    assert statuses == [200] * LIMIT + [429] * 30
    other = replace(door, source=next(sources))
    assert other.request("/model/info", headers=key).status == 200
    victim = {**key, "X-Forwarded-For": door.source}
    assert other.request("/model/info", headers=victim).status == 200


def test_pods_of_others_do_not_get_past_the_controller(front: Front) -> None:
    worker = front.installation.pod("worker")
    targets = {(worker.ip, port) for port in (8000, 9000)}
    assert worker.reaches(targets) == targets
    with other_namespace() as other, pod("stranger", {}, other) as stranger:
        assert stranger.reaches(targets) == set()
