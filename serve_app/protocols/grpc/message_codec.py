"""The Open Inference Protocol v2 over gRPC: ModelInferRequest and ModelInferResponse, by the rules of the protocol over REST.

Values are in `raw_input_contents`, with one entry for each input, or in the `contents` of the inputs. The response has the form of
the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from serve_app.artifacts.matrix import Scores
from serve_app.errors import InvalidInput, NotServed, Problem
from serve_app.protocols.codec import Batch, Buffer, CodecContext, Headers, ProblemDetails, Request, Response
from serve_app.protocols.grpc.contents import check_contents, raw_values, typed_texts, typed_values, written_labels
from serve_app.protocols.grpc.measure import check_size
from serve_app.protocols.grpc.open_inference_pb2 import InferParameter, ModelInferRequest
from serve_app.protocols.grpc.wire import field, malformed, varint
from serve_app.protocols.limits import rows_within
from serve_app.protocols.oip import Asked, OpenInferenceCodec, Requested, sentence
from serve_app.protocols.oip_body import WHOLE_BYTES, OutputDocument, OutputParameters, RequestDocument
from serve_app.protocols.tensor_outputs import binary_data, ranked, raw_texts
from serve_app.protocols.tensors import BYTES, Tensor

PROTOBUF = "protobuf"
_OUTPUTS, _RAW_OUTPUT_CONTENTS, _CONTENTS = 5, 6, 5


class Content(NamedTuple):
    """A request after its rows were counted."""

    tensors: tuple[Tensor, ...]
    typed: ModelInferRequest | None
    asked: Asked


class InferMessageCodec(OpenInferenceCodec):
    """Requests and responses of ModelInfer. Errors are sentences for the details of a status."""

    protocol = "open_inference_grpc"
    content_type = b"application/grpc"

    def __init__(self, context: CodecContext) -> None:
        """Prepare inputs and outputs for the signature."""
        super().__init__(context)
        self._model_name, self._model_version = context.model_name, context.model_version
        self._max_values = rows_within(context.signature, context.max_rows) * self._row_values
        self._named = field(1, context.model_name.encode()) + field(2, context.model_version.encode())
        self._heads = {name: field(1, name.encode()) for name in self._by_name}
        self._labels = {name: written_labels(each.output, each.writing) for name, each in self._by_name.items()}

    def read(self, body: Buffer, headers: Headers) -> Request:
        """Names, datatypes, shapes and sizes of the tensors. Raises InvalidInput and its subclasses."""
        message = self._parse(body)
        self._check_model(message)
        is_raw = bool(message.raw_input_contents)
        tensors = _tensors(message, is_raw=is_raw)
        rows = self._rows.count(tensors)
        if not is_raw:
            for tensor, each in zip(tensors, message.inputs, strict=True):
                check_contents(tensor, each.contents)
        outputs = [_output(f"outputs[{at}]", each) for at, each in enumerate(message.outputs)]
        asked = Asked(message.id or None, self._requested(RequestDocument([], outputs=outputs)), is_raw)
        return Request(rows, Content(tensors, None if is_raw else message, asked))

    def batch(self, request: Request) -> Batch:
        """The rows, shape (rows, features). Raises InvalidInput."""
        content: Content = request.content
        tensors = content.tensors
        if content.typed is not None:
            pairs = zip(tensors, content.typed.inputs, strict=True)
            tensors = tuple(tensor._replace(raw=raw_values(tensor, each.contents)) for tensor, each in pairs)
        return Batch(self._rows.matrix(tensors, request.rows), content.asked)

    def respond(self, batch: Batch, scores: Scores) -> Response:
        """A ModelInferResponse with raw values, or with typed values when the request had typed values. Raises NotFinite."""
        asked: Asked = batch.meta
        rows, raw = varint(len(scores)), list[bytes]()
        tail = raw if asked.binary else None
        outputs = [field(_OUTPUTS, self._output_message(each, scores, rows, tail)) for each in asked.requested]
        named = self._named if asked.id is None else self._named + field(3, asked.id.encode())
        return Response(b"".join([named, *outputs, *raw]))

    @classmethod
    def body_format(cls, headers: Mapping[bytes, bytes]) -> str:
        """`protobuf`."""
        return PROTOBUF

    @classmethod
    def problem(cls, problem: ProblemDetails) -> bytes:
        """One sentence, with the first fields at fault."""
        return sentence(problem).encode()

    def _parse(self, body: Buffer) -> ModelInferRequest:
        """The message. Raises Malformed, and TooLarge when it is too large outside its values or has too many typed values."""
        content = bytes(body)
        if len(content) > WHOLE_BYTES:
            check_size(content, most_beside=max(self._max_row_bytes, WHOLE_BYTES), most_values=self._max_values)
        try:
            message: ModelInferRequest = ModelInferRequest.FromString(content)
        except (DecodeError, UnicodeDecodeError):
            raise malformed() from None
        return message

    def _check_model(self, message: ModelInferRequest) -> None:
        if message.model_name != self._model_name:
            raise NotServed
        if message.model_version and message.model_version != self._model_version:
            raise NotServed(self._model_version)

    def _output_message(self, each: Requested, scores: Scores, rows: bytes, tail: list[bytes] | None) -> bytes:
        """One InferOutputTensor; its values are appended to `tail` if it is given."""
        output, writing = each.output, each.writing
        width, datatype = output.width, output.datatype
        if each.classes is not None:
            width, datatype = each.classes, BYTES
            texts = ranked(output, scores, each.classes)
            values = typed_texts(texts) if tail is None else raw_texts(texts)
        elif tail is None:
            values = typed_values(output, writing, self._labels[output.name], scores)
        else:
            values = binary_data(output, writing, scores)
        shape = field(3, rows + varint(width))
        message = self._heads[output.name] + field(2, datatype.encode()) + shape
        if tail is None:
            return message + field(_CONTENTS, values)
        tail.append(field(_RAW_OUTPUT_CONTENTS, values))
        return message


def _tensors(message: ModelInferRequest, *, is_raw: bool) -> tuple[Tensor, ...]:
    """The inputs, with their values if they are raw. Raises InvalidInput."""
    inputs, raw = message.inputs, message.raw_input_contents
    if not inputs:
        raise InvalidInput([Problem("inputs", "too_short", "must hold at least one input")])
    if not is_raw:
        return tuple(
            Tensor(f"inputs[{at}]", each.name, each.datatype, tuple(each.shape), sized_by="contents")
            for at, each in enumerate(inputs)
        )
    if len(raw) != len(inputs):
        wrong = f"must hold one entry for each of the {len(inputs)} inputs"
        raise InvalidInput([Problem("raw_input_contents", "size", wrong)])
    tensors = []
    for at, (each, values) in enumerate(zip(inputs, raw, strict=True)):
        where = f"inputs[{at}]"
        if each.HasField("contents"):
            raise InvalidInput([Problem(f"{where}.contents", "data", "must be left out when raw_input_contents is sent")])
        tensors.append(Tensor(where, each.name, each.datatype, tuple(each.shape), None, memoryview(values), "raw_input_contents"))
    return tuple(tensors)


def _output(where: str, message: ModelInferRequest.InferRequestedOutputTensor) -> OutputDocument:
    """A requested output with its parameter `classification`; other parameters are ignored. Raises InvalidInput."""
    if not message.parameters:
        return OutputDocument(message.name)
    return OutputDocument(message.name, OutputParameters(classification=_whole_number(where, message.parameters, "classification")))


def _whole_number(where: str, parameters: Mapping[str, InferParameter], name: str) -> int | None:
    if name not in parameters:
        return None
    parameter: Any = parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise InvalidInput([Problem(f"{where}.parameters.{name}", "type", "must be a whole number")])
    return int(getattr(parameter, kind))
