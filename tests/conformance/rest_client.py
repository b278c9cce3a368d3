"""A server of the protocol over HTTP, as the checks talk to it: no header is sent that a check does not name."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.conformance.points import Broken, Inapplicable, expect
from tests.conformance.tensors import Tensor, of_document, packed, unpacked

HEADER_LENGTH = "Inference-Header-Content-Length"
JSON = {"Content-Type": "application/json"}


class Reply(NamedTuple):
    """A response; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON, without the tokens NaN and Infinity, which are none."""
        try:
            return json.loads(self.body, parse_constant=_no_constant)
        except ValueError:
            body = self.body[:60].decode(errors="replace")
            raise Broken(
                f"{self.status} with a body that is not JSON: {body}" if body else f"{self.status} without a body"
            ) from None

    def document(self) -> dict[str, Any]:
        """The JSON object of a response with status 200."""
        expect(self.status == 200, f"status {self.status}: {self.body[:80].decode(errors='replace')}")
        document = self.json()
        expect(isinstance(document, dict), "the body is not a JSON object")
        return dict(document)

    def outputs(self) -> dict[str, Tensor]:
        """The outputs of a prediction by name, from JSON and from the bytes behind it."""
        expect(self.status == 200, f"status {self.status}: {self.body[:80].decode(errors='replace')}")
        length = int(self.headers.get(HEADER_LENGTH.lower(), len(self.body)))
        head, at, outputs = self._replace(body=self.body[:length]).document(), length, {}
        expect(isinstance(head.get("model_name"), str), "model_name is missing")
        expect(isinstance(head.get("outputs"), list) and head["outputs"], "outputs is missing or empty")
        for each in head["outputs"]:
            expect({"name", "datatype", "shape"} <= set(each), "an output lacks name, datatype or shape")
            size = (each.get("parameters") or {}).get("binary_data_size")
            if size is None:
                expect("data" in each, "an output lacks data")
                tensor = of_document(each)
            else:
                expect("data" not in each, "an output has data and binary_data_size")
                raw, at = self.body[at : at + size], at + size
                tensor = Tensor(each["name"], each["datatype"], tuple(each["shape"]), unpacked(raw, each["datatype"]))
            expect(len(tensor.values) == prod(tensor.shape), f"output {tensor.name} does not fill its shape {tensor.shape}")
            outputs[tensor.name] = tensor
        expect(at == len(self.body), "the body is longer or shorter than its binary outputs")
        return outputs


@dataclass
class RestServer:
    """Where the server is, which model is asked, a request that it answers, and the headers of every request."""

    url: str
    model: str
    request: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 30.0

    @property
    def path(self) -> str:
        """The path of the model."""
        return f"/v2/models/{self.model}"

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        """One request on a connection of its own; `body` is bytes, or a document that is sent as JSON."""
        address = urlsplit(self.url)
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        connection = kind(address.hostname or "", address.port, timeout=self.timeout)
        try:
            content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            named = JSON if headers is None and content is not None else headers or {}
            connection.request(method, address.path + path, content, {**self.headers, **named})
            response = connection.getresponse()
            return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
        finally:
            connection.close()

    def infer(self, changes: Mapping[str, Any] | None = None, **more: Any) -> Reply:
        """The response to the example request with changed members; a member that becomes None is left out."""
        request = {**self.request, **(changes or {})}
        return self.ask("POST", f"{self.path}/infer", {name: value for name, value in request.items() if value is not None}, **more)

    def tensors(self) -> list[Tensor]:
        """The inputs of the example request."""
        return [of_document(each) for each in self.request["inputs"]]

    def first_input(self, **changes: Any) -> dict[str, Any]:
        """The inputs of the example, the first of them changed, as the member of a request."""
        first, *others = self.request["inputs"]
        return {"inputs": [{name: value for name, value in {**first, **changes}.items() if value is not None}, *others]}

    def binary(self, **members: Any) -> tuple[bytes, dict[str, str]]:
        """The example with its values behind the JSON, and the header that says so. Raises Inapplicable."""
        inputs, tail = [], b""
        for tensor in self.tensors():
            if any(value is None for value in tensor.values):
                raise Inapplicable("the example request has missing values, which bytes do not have")
            raw = packed(tensor)
            inputs.append(
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": tensor.shape,
                    "parameters": {"binary_data_size": len(raw)},
                }
            )
            tail += raw
        head = json.dumps({"inputs": inputs, **members}).encode()
        return head + tail, {HEADER_LENGTH: str(len(head))}

    def metadata(self) -> dict[str, Any]:
        """The metadata of the model."""
        return self.ask("GET", self.path).document()

    def version(self) -> str:
        """The first version that the metadata names. Raises Inapplicable."""
        versions = self.metadata().get("versions")
        if not versions:
            raise Inapplicable("the metadata names no version")
        return str(versions[0])

    def announces(self, extension: str) -> bool:
        """Whether the server names an extension in its metadata."""
        return extension in self.ask("GET", "/v2").document().get("extensions", [])


def refused(reply: Reply, status: int | None = None) -> None:
    """Check an error: this status, or any of 400 and above, and `{"error": text}` in JSON."""
    right = reply.status >= 400 if status is None else reply.status == status
    expect(right, f"status {reply.status}: {reply.body[:60].decode(errors='replace')}")
    document = reply.json()
    says = isinstance(document, dict) and isinstance(document.get("error"), str) and document["error"]
    expect(says, f"{reply.status} without a text in `error`: {reply.body[:60].decode(errors='replace')}")


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Check that two answers have the same outputs."""
    expect(list(found) == list(wanted), f"outputs {list(found)} in place of {list(wanted)}")
    for name, tensor in wanted.items():
        expect(found[name] == tensor, f"output {name} differs")


def _no_constant(token: str) -> Any:
    raise ValueError(f"the token {token}")
