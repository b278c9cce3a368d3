"""Requests to an Ingress or Gateway controller of the test cluster: by name, with TLS, from a chosen address, byte by byte."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.cluster import Response


@dataclass(frozen=True, slots=True)
class Controller:
    """Where a controller listens on this machine, and its class."""

    name: str
    http: int
    https: int


def controller() -> Controller:
    """The controller that the program E2E_INGRESS starts, else `ingress/up` of E2E_CLUSTER; skips where there is none."""
    program = Path(os.environ.get("E2E_INGRESS") or Path(os.environ.get("E2E_CLUSTER", "/nowhere")) / "ingress" / "up")
    if not program.is_file():
        pytest.skip(f"NOT TESTED: no program {program} (E2E_INGRESS) that starts an Ingress and Gateway controller")
    subprocess.run([str(program)], check=True, capture_output=True, timeout=180)
    ports = os.environ.get("E2E_INGRESS_PORTS", "18080,18443").split(",")
    return Controller(os.environ.get("E2E_INGRESS_CLASS", "traefik"), int(ports[0]), int(ports[1]))


def certificate(folder: Path, *hosts: str) -> tuple[Path, Path]:
    """A key and a certificate for some names, signed by itself: (certificate, key)."""
    certificate, key = folder / "tls.crt", folder / "tls.key"
    names = ",".join(f"DNS:{host}" for host in hosts)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", f"/CN={hosts[0]}", "-addext", f"subjectAltName={names}"]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@dataclass(frozen=True, slots=True)
class FrontDoor:
    """One name of the API outside of the cluster. With `authority`, a certificate, the server must have it for this name."""

    host: str
    port: int
    authority: Path | None = None
    path: str = ""
    source: str = field(default="127.0.0.1")
    """The address of this machine from which the client connects."""

    @contextlib.contextmanager
    def connection(self, timeout: float = 60) -> Iterator[http.client.HTTPConnection]:
        """A connection that a test may use several times."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        connection.sock = self.open(timeout)
        try:
            yield connection
        finally:
            connection.close()

    def open(self, timeout: float = 60) -> socket.socket:
        """A connected socket, after the TLS handshake."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=timeout, source_address=(self.source, 0))
        if self.authority is None:
            return plain
        return ssl.create_default_context(cafile=str(self.authority)).wrap_socket(plain, server_hostname=self.host)

    def request(self, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Response:
        """One request to `path` below the door's own path."""
        with self.connection() as connection:
            return self.send(connection, path, body=body, headers=headers)

    def send(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """One request on an open connection."""
        connection.request("GET" if body is None else "POST", self.path + path, body, {"Host": self.host, **(headers or {})})
        response = connection.getresponse()
        return Response(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())

    def raw(self, target: str, key: str) -> Response:
        """GET of a target that goes into the request line as it is."""
        with self.open(20) as sock:
            head = f"GET {target} HTTP/1.1\r\nHost: {self.host}\r\nX-API-Key: {key}\r\nConnection: close\r\n\r\n"
            sock.sendall(head.encode("latin-1"))
            response = http.client.HTTPResponse(sock)
            response.begin()
            return Response(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
