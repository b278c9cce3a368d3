"""HTTP requests to the API from outside the cluster, through kubectl port-forward and with the key from the Secret."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kuberay.ctl.kube import MLFLOW_SERVICE, SECRET, SERVICE, Cluster, CommandError, Json, echo
from kuberay.ctl.manifests import secret_value


@dataclass(frozen=True, slots=True)
class Response:
    """Status, headers with lower-case names, and the JSON object of the body (empty when the body is not an object)."""

    status: int
    headers: Mapping[str, str]
    body: Json

    @property
    def version(self) -> str | None:
        """Version of the model that answered; None when the response has no version."""
        return self.headers.get("x-model-version")


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens addresses on this machine directly; the proxy of `http_proxy` cannot reach them."""


@dataclass(frozen=True, slots=True)
class ApiClient:
    """A client of the API behind a forwarded port."""

    address: str
    key: str

    def request(self, path: str, row: Json | None = None) -> Response:
        """GET `path`, or POST `row` to it, on a new connection; raises OSError when there is no response."""
        data = None if row is None else json.dumps(row).encode()
        request = urllib.request.Request(  # noqa: S310  always http to 127.0.0.1
            self.address + path,
            data=data,
            headers={"X-API-Key": self.key, "Content-Type": "application/json", "Connection": "close"},
        )
        try:
            with _DIRECT.open(request, timeout=10) as reply:
                return _response(reply.status, dict(reply.headers), reply.read())
        except urllib.error.HTTPError as error:
            return _response(error.code, dict(error.headers), error.read())


@contextlib.contextmanager
def connect(cluster: Cluster) -> Iterator[ApiClient]:
    """A client of the API inside the block; raises CommandError when there is no Service."""
    if cluster.get("service", SERVICE) is None:
        raise CommandError(
            f"there is no Service {SERVICE} yet in {cluster.namespace}: run `make k8s-deploy`, or check `make k8s-status`"
        )
    with port_forward(cluster, SERVICE, 8000) as address:
        yield ApiClient(address, secret_value(cluster.get("secret", SECRET), "API_KEY").strip())


@contextlib.contextmanager
def port_forward(cluster: Cluster, service: str, port: int) -> Iterator[str]:
    """The local address of a Service's port (http://127.0.0.1:…) inside the block; raises CommandError."""
    process = cluster.popen("port-forward", f"service/{service}", f":{port}")
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.search(r"127\.0\.0\.1:\d+", line)
        if match is None:
            reason = line.strip() or "kubectl port-forward ended"
            raise CommandError(f"{service} cannot be reached: {reason}; run `make k8s-doctor`")
        yield f"http://{match.group()}"
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def forward(cluster: Cluster, target: str, port: int) -> None:
    """Forward a port of this machine to the API or to MLflow (`target`: api, mlflow) until Ctrl-C."""
    service, service_port = (MLFLOW_SERVICE, 5000) if target == "mlflow" else (SERVICE, 8000)
    if cluster.get("service", service) is None:
        command = "k8s-deploy-mlflow" if target == "mlflow" else "k8s-deploy"
        raise CommandError(f"there is no Service {service} in {cluster.namespace}: run `make {command}`")
    echo(f"http://127.0.0.1:{port} until Ctrl-C")
    cluster.replace_process("port-forward", f"service/{service}", f"{port}:{service_port}")


def _response(status: int, headers: Mapping[str, str], body: bytes) -> Response:
    try:
        document = json.loads(body)
    except ValueError:
        document = {"text": body[:200].decode(errors="replace")}
    return Response(
        status, {name.lower(): value for name, value in headers.items()}, document if isinstance(document, dict) else {}
    )
