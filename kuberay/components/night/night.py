"""Suspend the RayService iris-api and answer 503 in its place until it serves again (`suspend`), or resume it (`resume`).

The program runs in the pods of both CronJobs and needs only the standard library. Exit code 0: the RayService is resumed or serves
again, or Kubernetes stopped the pod. Exit code 1: this pod could not do its work; Kubernetes starts its container again.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SERVER = "https://kubernetes.default.svc"
RAYSERVICE = "iris-api"
SERVICE = "iris-api-service"
SLICE = "iris-api-night"
SUSPENDED_BY = "iris-api/night"
"""The annotation of the RayService with the uid of the Job that suspended it."""
PORT = 8000
POLL_SECONDS = 2.0

Json = dict[str, Any]


def say(text: str) -> None:
    """Print a line to the log of the pod, without buffering."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class ApiServer:
    """The RayService and the EndpointSlices of one namespace."""

    def __init__(self, server: str = SERVER, account: Path = ACCOUNT) -> None:
        self.namespace = (account / "namespace").read_text().strip()
        self._rayservice = f"{server}/apis/ray.io/v1/namespaces/{self.namespace}/rayservices/{RAYSERVICE}"
        self._slices = f"{server}/apis/discovery.k8s.io/v1/namespaces/{self.namespace}/endpointslices"
        self._account = account
        certificates = account / "ca.crt"
        tls = ssl.create_default_context(cafile=certificates) if certificates.exists() else None
        # The API server is inside the cluster, so the proxies in the environment must not be used.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))

    def rayservice(self) -> Json:
        """The RayService as it is now; raises OSError."""
        return self._request("GET", self._rayservice)

    def change_rayservice(self, change: Json) -> None:
        """Merge a change into the RayService; the API server refuses fields that it does not know. Raises OSError."""
        self._request("PATCH", f"{self._rayservice}?fieldValidation=Strict", change, "application/merge-patch+json")

    def create_slice(self, document: Json) -> None:
        """Create an EndpointSlice; raises OSError."""
        self._request("POST", self._slices, document)

    def delete_slice(self, name: str) -> None:
        """Delete an EndpointSlice if it exists; raises OSError."""
        try:
            self._request("DELETE", f"{self._slices}/{name}")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise

    def _request(self, method: str, url: str, body: Json | None = None, kind: str = "application/json") -> Json:
        # The token is read for each request, because the kubelet renews it.
        headers = {"Authorization": f"Bearer {(self._account / 'token').read_text()}", "Content-Type": kind}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310
        with self._opener.open(request, timeout=30) as response:
            document: Json = json.load(response)
        return document


def set_suspended(server: ApiServer, value: bool, annotations: dict[str, str]) -> None:
    """Suspend or resume the RayService and annotate it; ends the program when the API server refuses. Raises OSError.

    KubeRay 1.7 has `suspend` in the spec of the RayService. 1.6 refuses it there, and has it in the spec of the Ray cluster.
    """
    refusal = ""
    for spec in ({"suspend": value}, {"rayClusterConfig": {"suspend": value}}):
        try:
            server.change_rayservice({"metadata": {"annotations": annotations}, "spec": spec})
        except urllib.error.HTTPError as error:
            refusal = error.read().decode()
            if error.code not in (400, 422):
                sys.exit(f"error: the API server refused the change: {refusal}")
            continue
        say(f"RayService {server.namespace}/{RAYSERVICE}: suspend is {str(value).lower()}")
        return
    sys.exit(f"error: this RayService cannot be suspended: {refusal}")


def is_suspended(service: Json) -> bool:
    """Whether one of the two fields suspends this RayService."""
    return bool(service["spec"].get("suspend") or service["spec"]["rayClusterConfig"].get("suspend"))


def serves(service: Json) -> bool:
    """Whether the operator reports this RayService as ready."""
    conditions = service.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


class StandIn(ThreadingHTTPServer):
    """A server that answers every request in place of the API."""

    def __init__(self, port: int = PORT) -> None:
        super().__init__(("", port), Answer)
        self.suspended = True

    def start(self) -> None:
        """Answer in a thread that ends with the program."""
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    """Answers one request with 503 and the time until the next attempt."""

    protocol_version = "HTTP/1.1"
    timeout = 15
    server: StandIn

    def _answer(self) -> None:
        suspended = self.server.suspended
        body = json.dumps(problem(suspended)).encode()
        self.send_response(503)
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After", "300" if suspended else "10")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Log no requests."""


def problem(suspended: bool) -> Json:
    """The body of a response (RFC 9457)."""
    title = "Suspended" if suspended else "Starting"
    detail = f"The API {'is suspended for the night' if suspended else 'is starting'}: try again later."
    return {"type": "about:blank", "title": title, "status": 503, "detail": detail}


class Pod(NamedTuple):
    """The pod of this program."""

    name: str
    uid: str
    address: str


def endpoint_slice(pod: Pod, namespace: str) -> Json:
    """The pod as an endpoint of the Service, serving but not ready: kube-proxy uses it while the Service has no ready endpoint."""
    reference = {"kind": "Pod", "name": pod.name, "uid": pod.uid}
    labels = {
        "kubernetes.io/service-name": SERVICE,
        "endpointslice.kubernetes.io/managed-by": SLICE,
        "app.kubernetes.io/part-of": "iris-api",
    }
    endpoint = {
        "addresses": [pod.address],
        "conditions": {"ready": False, "serving": True, "terminating": True},
        "targetRef": {**reference, "namespace": namespace},
    }
    return {
        "metadata": {"name": SLICE, "labels": labels, "ownerReferences": [{"apiVersion": "v1", **reference}]},
        "addressType": "IPv6" if ":" in pod.address else "IPv4",
        "endpoints": [endpoint],
        "ports": [{"name": "serve", "port": PORT, "protocol": "TCP"}],
    }


def suspend_once(server: ApiServer, job: str) -> None:
    """Suspend the RayService unless the Job with this uid has done so; raises OSError.

    So a pod that replaces a lost one does not suspend a RayService that was resumed meanwhile.
    """
    if server.rayservice()["metadata"].get("annotations", {}).get(SUSPENDED_BY) != job:
        set_suspended(server, True, {SUSPENDED_BY: job})


def wait(server: ApiServer, stand_in: StandIn) -> None:
    """Return when the RayService is resumed and serves; until then, clients learn whether it is suspended or starting."""
    while True:
        time.sleep(POLL_SECONDS)
        try:
            service = server.rayservice()
        except OSError as error:
            say(f"the API server does not answer: {error}")
            continue
        stand_in.suspended = is_suspended(service)
        if not stand_in.suspended and serves(service):
            return


def suspend(server: ApiServer, stand_in: StandIn, pod: Pod, job: str) -> None:
    """Suspend the RayService for the Job with this uid and send clients to this pod until it serves again; raises OSError."""
    server.delete_slice(SLICE)
    server.create_slice(endpoint_slice(pod, server.namespace))
    suspend_once(server, job)
    wait(server, stand_in)
    server.delete_slice(SLICE)
    say("the API serves again")


def main() -> None:
    """Run with the argument and the environment of the CronJob; raises OSError."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = ApiServer()
    if sys.argv[1] == "resume":
        set_suspended(server, False, {})
        return
    stand_in = StandIn()
    stand_in.start()
    pod = Pod(os.environ["POD_NAME"], os.environ["POD_UID"], os.environ["POD_IP"])
    suspend(server, stand_in, pod, os.environ["JOB_UID"])


if __name__ == "__main__":
    main()
