"""The Open Inference Protocol v2 over REST, with its binary tensor data and classification extensions.

`POST /v2/models/NAME/infer` takes tensors and returns tensors. The codec ignores the content type of a request, because clients
send different content types or none. Only the header `Inference-Header-Content-Length` tells that binary values follow the JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import orjson

from serve_app.artifacts.matrix import Scores
from serve_app.errors import InvalidInput, Malformed, Problem
from serve_app.protocols.codec import (
    Batch,
    Buffer,
    CodecContext,
    CountingCodec,
    Headers,
    ProblemDetails,
    ProtocolName,
    Request,
    Response,
)
from serve_app.protocols.json_reader import malformed
from serve_app.protocols.oip_body import OutputDocument, RequestDocument, RowDocument, read_body, read_row
from serve_app.protocols.tensor_outputs import Output, Written, binary_data, json_data, outputs_of, ranked, raw_texts, written
from serve_app.protocols.tensor_rows import TensorRows
from serve_app.protocols.tensors import Tensor

HEADER_LENGTH = b"inference-header-content-length"
OCTET_STREAM = b"application/octet-stream"
EXTENSIONS = ("binary_tensor_data", "classification", "model_repository")
ROW_BYTES = 4096
"""A body of at most this size is first read as the most common request: one tensor in JSON with one row."""
MAX_NAMED = 5
"""Most fields in the sentence of an error; `errors` lists more of them."""
_WRONG_LENGTH = Problem(
    "Inference-Header-Content-Length",
    "size",
    "must be the length in bytes of the JSON at the start of the body, before compression",
)


class Requested(NamedTuple):
    """An output of a response: as binary values or as JSON, and the number of classes when it is a ranking."""

    output: Output
    writing: Written
    binary: bool = False
    classes: int | None = None


class Asked(NamedTuple):
    """The data of a request that its response needs. `binary` tells whether any output in `requested` is binary."""

    id: str | None
    requested: Sequence[Requested]
    binary: bool


class OpenInferenceCodec(CountingCodec):
    """Requests with tensors. The response has the outputs that the request names, or all outputs when it names none."""

    protocol: ClassVar[ProtocolName] = "open_inference"
    problem_type = b"application/json"

    def __init__(self, context: CodecContext) -> None:
        """Prepare inputs and outputs for the signature."""
        self._rows = TensorRows(
            context.signature, max_rows=context.max_rows, max_row_bytes=context.max_row_bytes, unknown=context.unknown
        )
        self._max_row_bytes = context.max_row_bytes
        self._all = tuple(Requested(output, written(output)) for output in outputs_of(context.signature))
        self._all_binary = tuple(requested._replace(binary=True) for requested in self._all)
        self._by_name = {requested.output.name: requested for requested in self._all}
        name, version = orjson.dumps(context.model_name), orjson.dumps(context.model_version)
        self._head = b'{"model_name":' + name + b',"model_version":' + version
        self._row_values = len(context.signature.features)

    def read(self, body: Buffer, headers: Headers) -> Request:
        """Names, datatypes, shapes and sizes of the tensors. Raises InvalidInput, Malformed, TooManyRows and TooLarge."""
        text, values = _parts(body, headers)
        if values is None and len(body) <= ROW_BYTES:
            usual = read_row(body)
            matrix = None if usual is None else self._rows.row(usual.inputs[0])
            if usual is not None and matrix is not None:
                return Request(1, (matrix, self._asked(usual)))
        try:
            document, data = read_body(text, self._max_row_bytes)
        except Malformed:
            raise (malformed() if values is None else Malformed([_WRONG_LENGTH])) from None
        tensors = _tensors(document, data, values)
        rows = self._rows.count(tensors)
        return Request(rows, (tensors, self._asked(document)))

    def batch(self, request: Request) -> Batch:
        """The rows, shape (rows, features). Raises InvalidInput, Malformed and TooLarge."""
        content, asked = request.content
        return Batch(content if isinstance(content, np.ndarray) else self._rows.matrix(content, request.rows), asked)

    def respond(self, batch: Batch, scores: Scores) -> Response:
        """`{"model_name": …, "model_version": …, "id": …, "outputs": […]}`, followed by the binary values."""
        asked: Asked = batch.meta
        rows = b"%d" % len(scores)
        pieces = [self._head]
        if asked.id is not None:
            pieces += [b',"id":', orjson.dumps(asked.id)]
        pieces.append(b',"outputs":[')
        tail: list[bytes] = []
        for each in asked.requested:
            _write(each, scores, rows, pieces, tail)
        pieces[-1] = pieces[-1][:-1] + b"]}"  # replaces the last comma
        if not asked.binary:
            return Response(b"".join(pieces))
        length = sum(map(len, pieces))
        return Response(b"".join(pieces + tail), ((b"content-type", OCTET_STREAM), (HEADER_LENGTH, b"%d" % length)))

    def rows_in(self, body_bytes: int) -> float:
        """The number of rows if the body were float64 numbers only."""
        return body_bytes / (8 * self._row_values)

    @classmethod
    def accepts(cls, content_type: bytes) -> bool:
        """True for every content type: clients send octet-stream or form types with JSON, and binary values without a type."""
        return True

    @classmethod
    def body_format(cls, headers: Mapping[bytes, bytes]) -> str:
        """`json`, or `binary` for JSON followed by binary tensors."""
        return "binary" if HEADER_LENGTH in headers else "json"

    @classmethod
    def status(cls, problem: ProblemDetails) -> int:
        """The HTTP status; 400 for input that breaks the signature, because the protocol does not use 422."""
        return 400 if problem.status == 422 else problem.status

    @classmethod
    def problem(cls, problem: ProblemDetails) -> bytes:
        """`{"error": "…"}`, the only member that clients of the protocol read, with the code and the fields at fault."""
        document: dict[str, Any] = {"error": sentence(problem), "code": problem.code}
        if problem.status < 500 and problem.errors:
            document["errors"] = [{"field": each.field, "code": each.code, "message": each.message} for each in problem.errors]
        return orjson.dumps(document)

    def _asked(self, document: RequestDocument | RowDocument) -> Asked:
        """The data of a request that its response needs. Raises InvalidInput."""
        requested = self._requested(document)
        return Asked(document.id, requested, requested is not self._all and any(each.binary for each in requested))

    def _requested(self, document: RequestDocument | RowDocument) -> Sequence[Requested]:
        """The outputs of the response. Raises InvalidInput."""
        parameters = document.parameters
        binary = parameters is not None and bool(parameters.binary_data_output)
        if not document.outputs:
            return self._all_binary if binary else self._all
        if len(document.outputs) > len(self._all):
            raise _wrong_output("outputs", "too_long", f"must name at most {len(self._all)} outputs, as many as the model has")
        requested = [self._output(at, each, binary) for at, each in enumerate(document.outputs)]
        if len({each.output.name for each in requested}) < len(requested):
            raise _wrong_output("outputs", "duplicate_output", "must name each output only once")
        return requested

    def _output(self, at: int, document: OutputDocument, binary: bool) -> Requested:
        field = f"outputs[{at}]"
        requested = self._by_name.get(document.name)
        if requested is None:
            raise _wrong_output(f"{field}.name", "unknown_output", f"must be one of: {', '.join(list(self._by_name)[:20])}")
        parameters = document.parameters
        if parameters is None:
            return requested._replace(binary=binary)
        classes = parameters.classification
        if classes is not None:
            if requested.output.datatype != "FP64":
                raise _wrong_output(f"{field}.parameters.classification", "type", "must be left out for an output without numbers")
            if classes < 1:
                raise _wrong_output(f"{field}.parameters.classification", "out_of_range", "must be at least 1")
            classes = min(classes, requested.output.width)
        return requested._replace(binary=binary if parameters.binary_data is None else parameters.binary_data, classes=classes)


def sentence(problem: ProblemDetails) -> str:
    """The rules that the first fields at fault break; the detail of the problem without such fields or for a server error."""
    if problem.status >= 500 or not problem.errors:
        return problem.detail
    fields = "; ".join(f"{error.field} {error.message}" for error in problem.errors[:MAX_NAMED])
    return f"{fields}; and {len(problem.errors) - MAX_NAMED} more" if len(problem.errors) > MAX_NAMED else fields


def _wrong_output(field: str, code: str, message: str) -> InvalidInput:
    return InvalidInput([Problem(field, code, message)])


def _write(each: Requested, scores: Scores, rows: bytes, pieces: list[bytes], tail: list[bytes]) -> None:
    """Append the JSON of an output and a comma to `pieces`, and its binary values to `tail`."""
    output, writing = each.output, each.writing
    width, head = output.width, writing.head
    if each.classes is not None:
        width, texts = each.classes, ranked(output, scores, each.classes)
        head = head.replace(b'"FP64"', b'"BYTES"')
        data = raw_texts(texts) if each.binary else orjson.dumps(texts)[1:-1]
    else:
        data = (binary_data if each.binary else json_data)(output, writing, scores)
    pieces += [head, rows, b",%d]" % width]
    if each.binary:
        pieces.append(b',"parameters":{"binary_data_size":%d}},' % len(data))
        tail.append(data)
    else:
        pieces += [b',"data":[', data, b"]},"]


def _parts(body: Buffer, headers: Headers) -> tuple[Buffer | memoryview, memoryview | None]:
    """The JSON of a request, and the binary values after it (None without the header). Raises InvalidInput."""
    for name, value in headers:
        if name == HEADER_LENGTH:
            length = int(value) if value.isdigit() and len(value) < 20 else -1
            if not 1 <= length <= len(body):
                raise InvalidInput([_WRONG_LENGTH])
            view = memoryview(body)
            return view[:length], view[length:]
    return body, None


def _tensors(document: RequestDocument, data: Sequence[bytes | None], values: memoryview | None) -> tuple[Tensor, ...]:
    """The inputs with their values as JSON text or as bytes. Raises InvalidInput."""
    if not document.inputs:
        raise InvalidInput([Problem("inputs", "too_short", "must hold at least one input")])
    tensors, at = [], 0
    for number, (each, json) in enumerate(zip(document.inputs, data, strict=True)):
        where = f"inputs[{number}]"
        size = None if each.parameters is None else each.parameters.binary_data_size
        if (json is None) == (size is None):
            raise InvalidInput([Problem(where, "data", "must have either data or the parameter binary_data_size")])
        raw = None
        if size is not None:
            left = 0 if values is None else len(values) - at
            if values is None or not 0 <= size <= left:
                message = f"must be at most {left}, the bytes left after the JSON; check Inference-Header-Content-Length"
                raise InvalidInput([Problem(f"{where}.parameters.binary_data_size", "size", message)])
            raw = values[at : at + size]
            at += size
        elif json is not None and not json.lstrip().startswith(b"["):
            raise InvalidInput([Problem(f"{where}.data", "type", "must be a list")])
        tensors.append(Tensor(where, each.name, each.datatype, tuple(each.shape), json, raw))
    if values is not None and at != len(values):
        raise InvalidInput([Problem("body", "size", "must not hold more bytes than the parameters binary_data_size declare")])
    return tuple(tensors)
