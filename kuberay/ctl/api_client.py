"""Talking to the API from outside the cluster, wherever it is: through kubectl port-forward, with the key from the Secret."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kuberay.ctl.kube import SECRET, SERVICE, Cluster, CommandError, Json, field


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: Json

    @property
    def version(self) -> str | None:
        return self.headers.get("x-model-version")


@dataclass(frozen=True, slots=True)
class Api:
    """The API behind a forwarded port."""

    address: str
    key: str

    def call(self, path: str, row: Json | None = None) -> Answer:
        """One request on a connection of its own; raises OSError when nobody answers."""
        data = None if row is None else json.dumps(row).encode()
        request = urllib.request.Request(  # noqa: S310  always http to 127.0.0.1
            self.address + path,
            data=data,
            headers={"X-API-Key": self.key, "Content-Type": "application/json", "Connection": "close"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310
                return _answer(reply.status, dict(reply.headers), reply.read())
        except urllib.error.HTTPError as error:
            return _answer(error.code, dict(error.headers), error.read())


def api_key(cluster: Cluster) -> str:
    data = field(cluster.get("secret", SECRET), "data", {})
    return base64.b64decode(data.get("API_KEY", "")).decode()


@contextlib.contextmanager
def api(cluster: Cluster) -> Iterator[Api]:
    """The API for as long as the block lasts."""
    if cluster.get("service", SERVICE) is None:
        raise CommandError(
            f"there is no Service {SERVICE} yet in {cluster.namespace}: run `make k8s-deploy`, or look at `make k8s-status`"
        )
    with reached(cluster, SERVICE, 8000) as address:
        yield Api(address, api_key(cluster))


@contextlib.contextmanager
def reached(cluster: Cluster, service: str, port: int) -> Iterator[str]:
    """The address of a Service on this machine for as long as the block lasts: nothing has to be opened for it."""
    forward = cluster.stream("port-forward", f"service/{service}", f":{port}")
    try:
        assert forward.stdout is not None
        line = forward.stdout.readline()
        found = re.search(r"127\.0\.0\.1:\d+", line)
        if found is None:
            reason = line.strip() or "kubectl port-forward ended"
            raise CommandError(f"{service} cannot be reached: {reason}; run `make k8s-doctor`")
        yield f"http://{found.group()}"
    finally:
        forward.terminate()
        forward.wait()
        if forward.stdout is not None:
            forward.stdout.close()


def _answer(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    try:
        document = json.loads(body)
    except ValueError:
        document = {"text": body[:200].decode(errors="replace")}
    return Answer(status, {name.lower(): value for name, value in headers.items()}, document if isinstance(document, dict) else {})
