"""The interface between the prediction service and a wire protocol: bytes to a matrix, scores to bytes.

A protocol is one module with a subclass of `Codec` and one line in the table of routes (`serve_app.http.routes.predictions`).
A codec knows no model, no Ray and no ASGI.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from serve_app.artifacts.fields import Unknown, UnknownFields
from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.signature import Signature
from serve_app.errors import Problem
from serve_app.protocols.problem_json import PROBLEM_JSON, problem_json

Buffer = bytes | bytearray
"""A body; a long body is a bytearray that grows piece by piece."""

ProtocolName = Literal["native", "open_inference", "open_inference_grpc", "mlflow", "kserve_v1", "vertex", "unknown"]
"""The values of the label `protocol` of the metrics."""

FORMATS = ("json", "csv", "ndjson", "arrow", "parquet", "binary", "protobuf", "unknown")
"""The formats of request bodies in the metrics; `binary` is JSON followed by binary tensors."""

Headers = Sequence[tuple[bytes, bytes]]
"""The headers of a request: names in lower case, and values."""


class Batch(NamedTuple):
    """The rows of one request: the matrix, shape (rows, features), and data that the codec keeps for the response."""

    matrix: Matrix
    meta: Any = None


@dataclass(frozen=True, slots=True)
class ProblemDetails:
    """Why a request failed: HTTP status, stable code, one sentence that never repeats the input, and the fields at fault."""

    status: int
    code: str
    detail: str
    errors: Sequence[Problem] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecContext:
    """The data about the served version that a codec gets, and the limits of a request."""

    signature: Signature
    model_name: str
    model_version: str
    max_rows: int
    max_row_bytes: int
    max_body_bytes: int
    unknown: Unknown
    unknown_fields: UnknownFields


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """The OpenAPI description of a route: the names of its schemas, and the schemas.

    `other_responses` names the schemas of further content types of the response; a content type without a schema is text.
    """

    operation_id: str
    summary: str
    request: str
    response: str
    schemas: Mapping[str, Any]
    other_responses: Mapping[str, str] = field(default_factory=dict)


class RowReader(Protocol):
    """Reads the rows of one request from the pieces of its body as they arrive."""

    def feed(self, piece: bytes | memoryview) -> Matrix:
        """The rows that end in this piece, shape (rows, features), possibly none. Raises the errors of `Codec.decode`."""

    def end(self) -> Matrix:
        """The rows that remain at the end of the body. Raises the same errors."""


class Codec(ABC):
    """One wire protocol for the signature of one model version.

    The service makes one instance for each version; it lives as long as the version is in memory.
    """

    protocol: ClassVar[ProtocolName] = "unknown"
    """The name under which requests are counted."""
    single_row: ClassVar[bool]
    """Whether a body always holds one row. The adaptive batcher gathers such rows."""
    content_type: ClassVar[bytes] = b"application/json"
    """The content type of a prediction."""
    media_types: ClassVar[tuple[str, ...]] = ("application/json",)
    """The content types of a request, as a refusal names them."""
    response_types: ClassVar[tuple[str, ...]] = ()
    """The content types from which `Accept` selects; empty when the codec ignores `Accept`."""
    streams: ClassVar[bool] = False
    """Whether rows are answered while further rows arrive; see `open`."""
    problem_type: ClassVar[bytes] = PROBLEM_JSON
    """The content type of the result of `problem`."""

    @abstractmethod
    def __init__(self, context: CodecContext) -> None:
        """Prepare everything that depends on the signature alone."""

    @abstractmethod
    def decode(self, body: Buffer, headers: Headers) -> Batch:
        """The rows of a request. Raises InvalidInput, Malformed and TooManyRows."""

    @abstractmethod
    def encode(self, batch: Batch, scores: Scores) -> Buffer:
        """The body of the response; `scores` has one entry for each row of `batch`, in its order."""

    def open(self) -> RowReader:
        """A reader for the pieces of one body, for a codec that `streams`. The results of `encode` for its rows are joined."""
        raise NotImplementedError

    @abstractmethod
    def rows_in(self, body_bytes: int) -> float:
        """The estimated number of rows in a body of this size; used to estimate the time of its prediction."""

    def most_rows_in(self, body_bytes: int) -> float:
        """The largest number of rows in a body of this size; used to limit computations on the event loop."""
        return self.rows_in(body_bytes)

    @classmethod
    def status(cls, problem: ProblemDetails) -> int:
        """The HTTP status of an error response."""
        return problem.status

    @classmethod
    def accepts(cls, content_type: bytes) -> bool:
        """Whether a request with this `Content-Type` can be decoded."""
        if content_type == b"application/json":
            return True
        media_type = content_type.partition(b";")[0].strip().lower()
        return media_type == b"application/json" or (media_type.startswith(b"application/") and media_type.endswith(b"+json"))

    @classmethod
    def body_format(cls, headers: Mapping[bytes, bytes]) -> str:
        """The format of a request with these headers, one of `FORMATS`."""
        return "json"

    @classmethod
    def missing_extra(cls, content_type: bytes) -> str:
        """The missing extra of this package that decodes this `Content-Type`; empty when no extra is missing."""
        return ""

    @classmethod
    def variant(cls, content_type: bytes | None, accept: bytes | None) -> type[Codec] | None:
        """The codec for an accepted content type and an `Accept` header; None when `accept` names no supported content type."""
        return cls

    @classmethod
    def problem(cls, problem: ProblemDetails) -> bytes:
        """The body of an error response; problem+json (RFC 9457) unless the protocol has a format of its own."""
        return problem_json(problem.status, problem.code, problem.detail, problem.errors)

    @classmethod
    def operation(cls, signature: Signature | None, *, max_rows: int, unknown_fields: UnknownFields = "ignore") -> Operation | None:
        """The OpenAPI description of the route; None for other protocols than the native one.

        `signature` is None while no model is loaded.
        """
        return None


class Request(NamedTuple):
    """The number of rows in a body, and the content that the codec needs to read them."""

    rows: int
    content: Any


class Response(NamedTuple):
    """The body of a response, and the headers that replace its usual content type, if any."""

    body: Buffer
    headers: tuple[tuple[bytes, bytes], ...] = ()


class CountingCodec(Codec):
    """A codec whose bodies hold one row or many rows. It counts the rows of a body before it reads their values.

    The adaptive batcher gathers bodies with one row. A body with many rows is predicted as a batch.
    """

    single_row = False

    @abstractmethod
    def read(self, body: Buffer, headers: Headers) -> Request:
        """Count the rows of a request. Raises InvalidInput, Malformed, TooManyRows and TooLarge."""

    @abstractmethod
    def batch(self, request: Request) -> Batch:
        """The rows of a counted request. Raises InvalidInput, Malformed and TooLarge."""

    @abstractmethod
    def respond(self, batch: Batch, scores: Scores) -> Response:
        """The response; `scores` has one entry for each row of `batch`, in its order. Raises NotFinite."""

    def decode(self, body: Buffer, headers: Headers) -> Batch:
        """The rows of a request."""
        return self.batch(self.read(body, headers))

    def encode(self, batch: Batch, scores: Scores) -> Buffer:
        """The body of the response."""
        return self.respond(batch, scores).body
