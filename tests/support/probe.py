"""What a pod can reach: a program that runs inside it, and a pod of one's own to run it in."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tests.support.cluster import get, kubectl
from tests.support.waiting import until

IMAGE = "iris-api:latest"
OTHER = "iris-e2e"
"""A namespace that is not the product's."""

CONNECT = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def reached(pair):
    try:
        socket.create_connection(pair, timeout=4).close()
    except OSError:
        return False
    return True
pairs = json.loads(sys.argv[1])
with ThreadPoolExecutor(len(pairs)) as pool:
    print(json.dumps([pair for pair, open in zip(pairs, pool.map(reached, pairs)) if open]))
"""

REQUEST = """
import json, sys, urllib.error, urllib.request
method, url, body = sys.argv[1:]
request = urllib.request.Request(url, data=body.encode() or None, method=method, headers={"Content-Type": "application/json"})
try:
    print(urllib.request.urlopen(request, timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError as error:
    print("no answer")
"""

INFER = """
import sys, grpc
from serve_app.protocols.grpc import health_pb2, open_inference_pb2 as oip
target, key, model, *values = sys.argv[1:]
request = oip.ModelInferRequest(model_name=model)
request.inputs.add(name="x", datatype="FP64", shape=[1, len(values)]).contents.fp64_contents.extend(map(float, values))
with grpc.insecure_channel(target) as channel:
    def call(path, message, answer, *metadata):
        method = channel.unary_unary(path, lambda message: message.SerializeToString(), answer.FromString)
        return method(message, metadata=metadata, timeout=15)
    health = call("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse)
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(health.status))
    for metadata in ([], [("x-api-key", key)]):
        try:
            answer = call("/inference.GRPCInferenceService/ModelInfer", request, oip.ModelInferResponse, *metadata)
        except grpc.RpcError as error:
            print(error.code().name)
        else:
            print(answer.model_version, answer.outputs[0].contents.bytes_contents[0].decode())
"""

Pair = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Pod:
    """Where a program runs."""

    name: str
    container: str
    namespace: str = "mlops"

    @property
    def ip(self) -> str:
        return str(get("pod", self.name, self.namespace)["status"]["podIP"])

    def run(self, program: str, *arguments: str) -> str:
        command = ("python", "-c", program, *arguments)
        return kubectl("-n", self.namespace, "exec", self.name, "-c", self.container, "--", *command)

    def reaches(self, pairs: Iterable[Pair]) -> set[Pair]:
        """Those of (host, port) with which a connection comes about within four seconds."""
        output = self.run(CONNECT, json.dumps(sorted(pairs))).splitlines()[-1]
        return {(host, port) for host, port in json.loads(output)}

    def infers(self, target: str, key: str, model: str, values: Iterable[float]) -> list[str]:
        """What gRPC answers at HOST:PORT: the health, a prediction without a key, and one with it, `VERSION CLASS` or a status."""
        return self.run(INFER, target, key, model, *map(str, values)).splitlines()

    def status(self, method: str, url: str, body: str = "") -> str:
        """The status of one HTTP request without any token or key, or `no answer`."""
        return self.run(REQUEST, method, url, body).splitlines()[-1]


@contextlib.contextmanager
def other_namespace() -> Iterator[str]:
    labels = "".join(f"    pod-security.kubernetes.io/{mode}: restricted\n" for mode in ("enforce", "warn"))
    kubectl("apply", "-f", "-", text=f"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {OTHER}\n  labels:\n{labels}")
    try:
        yield OTHER
    finally:
        kubectl("delete", "namespace", OTHER, "--wait=true", "--timeout=120s")


@contextlib.contextmanager
def pod(name: str, labels: Mapping[str, str], namespace: str = "mlops", claims: Mapping[str, str] | None = None) -> Iterator[Pod]:
    """A pod of the test's own that listens on 8080, has no token, and mounts `claims` (claim -> path)."""
    claims = claims or {}
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims],
            "containers": [
                {
                    "name": "probe",
                    "volumeMounts": [{"name": claim, "mountPath": path} for claim, path in claims.items()],
                    "image": IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python", "-m", "http.server", "8080", "--directory", "/nowhere"],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }
    kubectl("apply", "-f", "-", text=json.dumps(document))
    probe = Pod(name, "probe", namespace)
    try:
        until(
            lambda: get("pod", name, namespace).get("status", {}).get("phase") == "Running",
            seconds=90,
            every=0.5,
            what=f"pod {name}",
        )
        until(
            lambda: ("127.0.0.1", 8080) in probe.reaches([("127.0.0.1", 8080)]), seconds=60, every=0.5, what=f"the port of {name}"
        )
        yield probe
    finally:
        kubectl("-n", namespace, "delete", "pod", name, "--ignore-not-found", "--wait=false")
