"""Every protocol and format as one entry of a table: how it sends rows, and how it says predictions and refusals.

A new protocol is one more entry of PROTOCOLS; the tests of the contract run it without further code.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.artifacts.signature import Feature, Signature
from serve_app.protocols.codec import Codec
from serve_app.protocols.grpc.message_codec import InferMessageCodec
from serve_app.protocols.grpc.open_inference_pb2 import ModelInferResponse
from serve_app.protocols.instances import KServeV1Codec, VertexCodec
from serve_app.protocols.mlflow import MlflowCodec
from serve_app.protocols.native import NativeBatchCodec, NativeRowCodec
from serve_app.protocols.oip import OpenInferenceCodec
from tests.support.calls import INFERENCE, infer, values_of
from tests.support.oip import INFER, NUMPY, binary, outputs, request, tensor, unpacked

Row = Mapping[str, Any]
ARROW_STREAM = "application/vnd.apache.arrow.stream"
MODEL = "IrisClassifier"
MODEL_INFER = f"/{INFERENCE}/ModelInfer"
VERTEX_ROUTE = "/v1/endpoints/1/deployedModels/2:predict"


class CannotCarry(Exception):
    """The format has no way to say these rows, so there is nothing to compare."""


class Sent(NamedTuple):
    """A request: its body, and its headers."""

    body: bytes
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """The predictions of all rows: labels or numbers, and the probabilities by row where the protocol has them."""

    predictions: list[Any]
    probabilities: list[list[float]] | None = None


class Refused(NamedTuple):
    """A value that broke a rule: its row, its field (empty for the whole row), and the code where the protocol says it."""

    row: int
    field: str
    code: str = ""


Encode = Callable[[Signature, Sequence[Row]], Sent]
Decode = Callable[[bytes, Mapping[str, str]], Answer]
Refusals = Callable[[bytes], list[Refused]]


@dataclass(frozen=True)
class Protocol:
    """One protocol with one format of requests and one of responses.

    `place` reads the field of a problem of the codec. `status` is that of a refusal, over gRPC its name; `codes`: whether a refusal
    has codes. `lenient`: NaN is null, and 1 and 0 are booleans, which the native protocol refuses. `single`: a request holds one
    row. `precision` is the type of its numbers.
    """

    name: str
    path: str
    codec: type[Codec]
    encode: Encode
    decode: Decode
    refusals: Refusals
    place: Callable[[str, str], Refused]
    lenient: bool = True
    codes: bool = True
    single: bool = False
    precision: Any = np.float64
    status: int | str = 400
    accept: str = ""

    @property
    def streams(self) -> bool:
        """Whether rows are answered while further rows arrive."""
        return self.accept == "application/x-ndjson" and self.name.partition(", ")[2].startswith("lines")


# --- requests


def _json(document: Any) -> Sent:
    return Sent(json.dumps(document, ensure_ascii=False).encode(errors="surrogatepass"), {"content-type": "application/json"})


def _values(signature: Signature, rows: Sequence[Row]) -> list[list[Any]]:
    """Rows as lists in the order of the signature; a list has no way to leave a value out."""
    if any(name not in row for row in rows for name in signature.names):
        raise CannotCarry
    return [[row[name] for name in signature.names] for row in rows]


def _columns(signature: Signature, rows: Sequence[Row]) -> dict[str, list[Any]]:
    return {name: list(column) for name, column in zip(signature.names, zip(*_values(signature, rows), strict=True), strict=True)}


def _one_object(signature: Signature, rows: Sequence[Row]) -> Sent:
    (row,) = rows
    return _json(row)


def _objects(member: str) -> Encode:
    return lambda signature, rows: _json({member: list(rows)})


def _lists(member: str) -> Encode:
    def encode(signature: Signature, rows: Sequence[Row]) -> Sent:
        values = _values(signature, rows)
        if any(isinstance(row[0], dict) for row in values):
            raise CannotCarry
        return _json({member: values})

    return encode


def _input_columns(signature: Signature, rows: Sequence[Row]) -> Sent:
    columns = _columns(signature, rows)
    if any(isinstance(value, list) for column in columns.values() for value in column):
        raise CannotCarry  # a list with one value is this value: shape [rows, 1]
    return _json({"inputs": columns})


def _split(member: str) -> Encode:
    def encode(signature: Signature, rows: Sequence[Row]) -> Sent:
        names = list(reversed(signature.names))
        data = [list(reversed(row)) for row in _values(signature, rows)]
        return _json({member: {"columns": names, "index": list(range(len(rows))), "data": data}})

    return encode


def _lines(*, lists: bool) -> Encode:
    def encode(signature: Signature, rows: Sequence[Row]) -> Sent:
        documents = _values(signature, rows) if lists else rows
        text = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
        return Sent(text.encode(errors="surrogatepass"), {"content-type": "application/x-ndjson"})

    return encode


def _csv(*, header: bool) -> Encode:
    def encode(signature: Signature, rows: Sequence[Row]) -> Sent:
        values = _values(signature, rows)
        gaps = {"", *signature.missing_texts}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if header:
            if any(name != name.strip() or not name or "\0" in name or "\r" in name for name in signature.names):
                raise CannotCarry
            writer.writerow(signature.names)
        for row in values:
            writer.writerow([_cell(feature, value, gaps) for feature, value in zip(signature.features, row, strict=True)])
        if not header and not frozenset(next(csv.reader(io.StringIO(text.getvalue(), newline="")))).isdisjoint(signature.names):
            raise CannotCarry
        kind = f"text/csv; header={'present' if header else 'absent'}"
        return Sent(text.getvalue().encode(), {"content-type": kind})

    return encode


def _cell(feature: Feature, value: Any, gaps: set[str]) -> str:
    """A value as a cell; a cell does not say whether it is a text, and blanks around it say nothing."""
    if value is None:
        if "" in feature.categories:
            raise CannotCarry
        return ""
    if isinstance(value, bool):
        if feature.kind in ("category", "text"):
            raise CannotCarry
        return str(value).lower()
    if isinstance(value, str):
        if value in gaps or value != value.strip() or feature.kind in ("boolean", "number") or "\r" in value or "\0" in value:
            raise CannotCarry
        if feature.date is not None and feature.date.takes_numbers:
            raise CannotCarry
        try:
            value.encode()
        except UnicodeEncodeError:
            raise CannotCarry from None
        return value
    if isinstance(value, int | float) and feature.kind == "number" and math.isfinite(value):
        return repr(float(value))
    raise CannotCarry


def _arrow(*, parquet: bool = False, dictionary: bool = False) -> Encode:
    """Rows as columns of one type each, in two pieces; texts may stand in a dictionary."""

    def encode(signature: Signature, rows: Sequence[Row]) -> Sent:
        columns = _columns(signature, rows)
        arrays = [_arrow_column(feature, columns[feature.name], dictionary=dictionary) for feature in signature.features]
        table = pa.table(dict(zip(signature.names, arrays, strict=True)))
        sink, piece_rows = pa.BufferOutputStream(), max(1, len(rows) // 2)
        if parquet:
            pq.write_table(table, sink, row_group_size=piece_rows)
        else:
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=piece_rows)
        kind = "application/vnd.apache.parquet" if parquet else ARROW_STREAM
        return Sent(sink.getvalue().to_pybytes(), {"content-type": kind})

    return encode


def _arrow_column(feature: Feature, column: Sequence[Any], *, dictionary: bool) -> Any:
    given = [value for value in column if value is not None]
    numbers = feature.kind == "number" or (feature.kind == "date" and any(not isinstance(value, str) for value in given))
    if any(_is_flag(feature, value) for value in given):
        raise CannotCarry
    kind = pa.float64() if numbers else pa.bool_() if feature.kind == "boolean" else pa.string()
    if not all(isinstance(value, int | float if numbers else bool if feature.kind == "boolean" else str) for value in given):
        raise CannotCarry
    try:
        array = pa.array([None if value is None else float(value) if numbers else value for value in column], kind)
    except (OverflowError, UnicodeEncodeError):
        raise CannotCarry from None
    return array.dictionary_encode() if dictionary and kind == pa.string() else array


def _datatype(feature: Feature, column: Sequence[Any]) -> str:
    if feature.kind == "boolean":
        return "BOOL"
    is_text = feature.kind in ("category", "text", "date") and any(isinstance(value, str) for value in column)
    return "BYTES" if is_text or feature.kind in ("category", "text") else "FP64"


def _plain(values: Sequence[Any]) -> bool:
    return not any(isinstance(value, list | dict) for value in values)


def _tensor(*, datatype: str, nested: bool, is_binary: bool) -> Encode:
    def encode(signature: Signature, rows: Sequence[Row]) -> Sent:
        values = _values(signature, rows)
        flat = [value for row in values for value in row]
        if not all(takes_numbers(feature) for feature in signature.features) or not _plain(flat):
            raise CannotCarry
        if any(_is_flag(feature, value) for row in values for feature, value in zip(signature.features, row, strict=True)):
            raise CannotCarry
        shape = [len(rows), len(signature.features)]
        if not is_binary:
            return Sent(request(tensor(values if nested else flat, name="rows", shape=shape, datatype=datatype)), {})
        numbers = np.array([_number(value) for value in flat])
        body, headers = binary(tensor(numbers, name="rows", shape=shape, datatype=datatype))
        return Sent(body, headers)

    return encode


def _is_flag(feature: Feature, value: Any) -> bool:
    """Whether a value is true or false where it should be something else; among numbers it would be 1 or 0."""
    return isinstance(value, bool) and feature.kind != "boolean"


def takes_numbers(feature: Feature) -> bool:
    """Whether numbers alone say every value of a feature."""
    return feature.kind in ("number", "boolean") or (feature.date is not None and feature.date.takes_numbers)


def _number(value: Any) -> float:
    """A value as a number of a binary tensor."""
    if value is None:
        return math.nan
    if not isinstance(value, int | float):
        raise CannotCarry
    try:
        return float(value)
    except OverflowError:
        raise CannotCarry from None


def _columns_of_tensors(*, nested: bool, is_binary: bool) -> Encode:
    def encode(signature: Signature, rows: Sequence[Row]) -> Sent:
        columns = _columns(signature, rows)
        inputs = []
        for feature in reversed(signature.features):
            column = columns[feature.name]
            if not _plain(column):
                raise CannotCarry
            datatype = _datatype(feature, column)
            if not is_binary:
                data = [[value] for value in column] if nested else column
                inputs.append(tensor(data, name=feature.name, datatype=datatype))
                continue
            if datatype == "BYTES":
                in_json = any(value is None for value in column)  # bytes have no missing text
                if not all(isinstance(value, str) or value is None for value in column):
                    raise CannotCarry
            else:
                in_json = False
                if datatype == "BOOL" and not all(isinstance(value, bool) for value in column):
                    datatype = "FP64"
                if any(_is_flag(feature, value) for value in column):
                    raise CannotCarry
                column = [_number(value) for value in column]
            inputs.append({**tensor(column, name=feature.name, datatype=datatype), "json": in_json})
        if not is_binary:
            return Sent(request(*inputs), {})
        try:
            body, headers = binary(*inputs)
        except UnicodeEncodeError:
            raise CannotCarry from None
        return Sent(body, headers)

    return encode


def _binary_out(encode: Encode) -> Encode:
    """The same request; it asks for outputs as bytes."""

    def asking(signature: Signature, rows: Sequence[Row]) -> Sent:
        body, headers = encode(signature, rows)
        at = next((int(value) for name, value in headers.items() if name.lower().startswith("inference-header")), len(body))
        head = body[: at - 1] + b',"parameters":{"binary_data_output":true}}'
        return Sent(
            head + body[at:], {**headers, **({} if at == len(body) else {"Inference-Header-Content-Length": str(len(head))})}
        )

    return asking


def _message(encode: Encode, *, raw: bool) -> Encode:
    """The tensors of a request with binary values as a message; these have no missing texts."""

    def message(signature: Signature, rows: Sequence[Row]) -> Sent:
        body, headers = encode(signature, rows)
        at = int(headers["Inference-Header-Content-Length"])
        inputs = []
        for each in json.loads(body[:at])["inputs"]:
            if "data" in each:
                raise CannotCarry
            size = each["parameters"]["binary_data_size"]
            values, at = body[at : at + size], at + size
            data = unpacked(values) if each["datatype"] == "BYTES" else np.frombuffer(values, NUMPY[each["datatype"]]).tolist()
            inputs.append({**each, "data": data})
        return Sent(infer(*inputs, raw=raw).SerializeToString(), {})

    return message


# --- responses


def _native(documents: Sequence[Mapping[str, Any]]) -> Answer:
    shares = [list(document["probabilities"].values()) for document in documents if "probabilities" in document]
    return Answer([document["prediction"] for document in documents], shares or None)


def _of_row(body: bytes, headers: Mapping[str, str]) -> Answer:
    return _native([json.loads(body)])


def _of_batch(body: bytes, headers: Mapping[str, str]) -> Answer:
    return _native(json.loads(body)["predictions"])


def _of_lines(body: bytes, headers: Mapping[str, str]) -> Answer:
    assert headers["content-type"] == "application/x-ndjson"
    return _native([json.loads(line) for line in body.decode().split("\n")[:-1]])


def _of_csv(body: bytes, headers: Mapping[str, str]) -> Answer:
    assert headers["content-type"] == "text/csv"
    names, *cells = csv.reader(io.StringIO(body.decode(), newline=""))
    rows = [dict(zip(names, row, strict=True)) for row in cells]
    columns = [name for name in names if name.startswith("probability_")]
    shares = [[float(row[name]) for name in columns] for row in rows] if columns else None
    return Answer([row["prediction"] if columns else float(row["prediction"]) for row in rows], shares)


def _of_arrow(body: bytes, headers: Mapping[str, str]) -> Answer:
    assert headers["content-type"] == ARROW_STREAM
    table = pa.ipc.open_stream(body).read_all()
    names = [name for name in table.column_names if name.startswith("probability_")]
    shares = [list(row) for row in zip(*(table[name].to_pylist() for name in names), strict=True)]
    return Answer(table["prediction"].to_pylist(), shares or None)


def _of_predictions(body: bytes, headers: Mapping[str, str]) -> Answer:
    document = json.loads(body)
    return Answer(document["predictions"], document.get("probabilities"))


def _of_outputs(body: bytes, headers: Mapping[str, str]) -> Answer:
    answered = outputs(body, {name.title(): value for name, value in headers.items()})
    shares = answered.get("predict_proba")
    return Answer(answered["predict"].ravel().tolist(), None if shares is None else shares.tolist())


def _of_message(body: bytes, headers: Mapping[str, str]) -> Answer:
    answered = values_of(ModelInferResponse.FromString(body))
    shares = answered.get("predict_proba")
    return Answer(answered["predict"].ravel().tolist(), None if shares is None else shares.tolist())


def _of_columns(body: bytes, headers: Mapping[str, str]) -> Answer:
    columns = json.loads(body)["predictions"]
    shares = list(map(list, zip(*columns["probabilities"].values(), strict=True))) if "probabilities" in columns else None
    return Answer(columns["prediction"], shares)


# --- refusals

_IN_TABLE = re.compile(r"instances\[(\d+)\](?:\.(.*))?", re.DOTALL)
_IN_TENSOR = re.compile(r"(.*)\[(\d+)\]", re.DOTALL)
_IN_SENTENCE = re.compile(r"(?:\. |; )instances\[(\d+)\](?:\.(\w+))? ")
"""A place with its rule behind it; the sentence before them lists the first places alone."""


def _problems(body: bytes) -> list[tuple[str, str]]:
    return [(problem["field"], problem["code"]) for problem in json.loads(body)["errors"]]


def _problems_of_row(body: bytes) -> list[Refused]:
    return [Refused(0, "" if name == "body" else name, code) for name, code in _problems(body)]


def of_table(name: str, code: str) -> Refused:
    """The place that the field of a table's problem names."""
    found = _IN_TABLE.fullmatch(name)
    assert found, name
    return Refused(int(found[1]), found[2] or "", code)


def of_tensor(name: str, code: str) -> Refused:
    """The place that the field of a tensor's problem names."""
    found = _IN_TENSOR.fullmatch(name)
    assert found, name
    return Refused(int(found[2]), found[1], code)


def of_row(name: str, code: str) -> Refused:
    """The place that the field of a single row's problem names."""
    return Refused(0, "" if name == "body" else name, code)


def _problems_of_table(body: bytes) -> list[Refused]:
    return [of_table(*problem) for problem in _problems(body)]


def _problems_of_tensors(body: bytes) -> list[Refused]:
    document = json.loads(body)
    assert isinstance(document["error"], str)
    return [of_tensor(*problem) for problem in _problems(body)]


def _said(member: str) -> Refusals:
    """Refusals of a protocol whose errors are one sentence."""

    def refusals(body: bytes) -> list[Refused]:
        return [Refused(int(row), name) for row, name in _IN_SENTENCE.findall(json.loads(body)[member])]

    return refusals


def _said_of_tensors(body: bytes) -> list[Refused]:
    """The refusals in the details of a status."""
    return [Refused(int(row), name) for name, row in re.findall(r"(?:^|; )(\w+)\[(\d+)\] ", body.decode())]


def _mlflow(name: str, encode: Encode, decode: Decode = _of_predictions, accept: str = "") -> Protocol:
    refusals = _said("message")
    return Protocol(f"MLflow, {name}", "/invocations", MlflowCodec, encode, decode, refusals, of_table, codes=False, accept=accept)


def _oip(name: str, encode: Encode, precision: Any = np.float64) -> Protocol:
    return Protocol(
        f"Open Inference Protocol, {name}",
        INFER,
        OpenInferenceCodec,
        encode,
        _of_outputs,
        _problems_of_tensors,
        of_tensor,
        precision=precision,
    )


def _grpc(name: str, encode: Encode) -> Protocol:
    return Protocol(
        f"gRPC, {name}",
        MODEL_INFER,
        InferMessageCodec,
        encode,
        _of_message,
        _said_of_tensors,
        of_tensor,
        codes=False,
        status="INVALID_ARGUMENT",
    )


def _batch(name: str, encode: Encode, decode: Decode = _of_batch, accept: str = "", *, lenient: bool = False) -> Protocol:
    return Protocol(
        f"native, {name}",
        "/predict/batch",
        NativeBatchCodec,
        encode,
        decode,
        _problems_of_table,
        of_table,
        status=422,
        accept=accept,
        lenient=lenient,
    )


REFERENCE = _batch("batch", _objects("instances"))

PROTOCOLS = (
    Protocol(
        "native, row",
        "/predict",
        NativeRowCodec,
        _one_object,
        _of_row,
        _problems_of_row,
        of_row,
        lenient=False,
        single=True,
        status=422,
    ),
    REFERENCE,
    _batch("columns of answers", _objects("instances"), _of_columns, "application/json; orient=columns"),
    _batch("CSV", _csv(header=True), _of_csv, "text/csv"),
    _batch("CSV to JSON", _csv(header=True)),
    _batch("JSON to CSV", _objects("instances"), _of_csv, "text/csv"),
    _batch("Arrow", _arrow(), _of_arrow, ARROW_STREAM, lenient=True),
    _batch("Arrow with dictionaries to JSON", _arrow(dictionary=True), lenient=True),
    _batch("JSON to Arrow", _objects("instances"), _of_arrow, ARROW_STREAM),
    _batch("Parquet", _arrow(parquet=True), lenient=True),
    _batch("lines", _lines(lists=False), _of_lines, "application/x-ndjson"),
    _batch("lines to JSON", _lines(lists=False)),
    _batch("CSV to lines", _csv(header=True), _of_lines, "application/x-ndjson"),
    _mlflow("dataframe_split", _split("dataframe_split")),
    _mlflow("dataframe_records", _objects("dataframe_records")),
    _mlflow("instances of lists", _lists("instances")),
    _mlflow("instances of objects", _objects("instances")),
    _mlflow("inputs of lists", _lists("inputs")),
    _mlflow("inputs of objects", _objects("inputs")),
    _mlflow("inputs of columns", _input_columns),
    _mlflow("input_data", _split("input_data")),
    _mlflow("CSV", _csv(header=True)),
    _mlflow("CSV without header", _csv(header=False), _of_csv, "text/csv"),
    _mlflow("Parquet", _arrow(parquet=True, dictionary=True)),
    _mlflow("Arrow", _arrow(), _of_arrow, ARROW_STREAM),
    _mlflow("lines of objects", _lines(lists=False), _of_lines, "application/x-ndjson"),
    _mlflow("lines of lists", _lines(lists=True), _of_lines, "application/x-ndjson"),
    Protocol(
        "KServe v1, instances",
        f"/v1/models/{MODEL}:predict",
        KServeV1Codec,
        _lists("instances"),
        _of_predictions,
        _said("error"),
        of_table,
        codes=False,
    ),
    Protocol(
        "KServe v1, inputs",
        f"/v1/models/{MODEL}:predict",
        KServeV1Codec,
        _objects("inputs"),
        _of_predictions,
        _said("error"),
        of_table,
        codes=False,
    ),
    Protocol("Vertex AI", VERTEX_ROUTE, VertexCodec, _objects("instances"), _of_predictions, _said("error"), of_table, codes=False),
    _oip("JSON columns", _columns_of_tensors(nested=False, is_binary=False)),
    _oip("JSON columns of [rows, 1]", _columns_of_tensors(nested=True, is_binary=False)),
    _oip("binary columns", _columns_of_tensors(nested=False, is_binary=True)),
    _oip("binary columns, binary outputs", _binary_out(_columns_of_tensors(nested=False, is_binary=True))),
    _oip("JSON tensor", _tensor(datatype="FP64", nested=False, is_binary=False)),
    _oip("JSON tensor, nested", _tensor(datatype="FP64", nested=True, is_binary=False)),
    _oip("JSON tensor, binary outputs", _binary_out(_tensor(datatype="FP64", nested=True, is_binary=False))),
    _oip("binary tensor", _tensor(datatype="FP64", nested=True, is_binary=True)),
    _oip("binary tensor of float32", _tensor(datatype="FP32", nested=True, is_binary=True), np.float32),
    _oip(
        "binary tensor of float32, binary outputs", _binary_out(_tensor(datatype="FP32", nested=True, is_binary=True)), np.float32
    ),
    _grpc("typed columns", _message(_columns_of_tensors(nested=False, is_binary=True), raw=False)),
    _grpc("raw columns", _message(_columns_of_tensors(nested=False, is_binary=True), raw=True)),
    _grpc("typed tensor", _message(_tensor(datatype="FP64", nested=True, is_binary=True), raw=False)),
    _grpc("raw tensor", _message(_tensor(datatype="FP64", nested=True, is_binary=True), raw=True)),
)


def headers_of(protocol: Protocol, sent: Sent) -> dict[str, str]:
    """The headers of a request of this protocol."""
    return {**sent.headers, **({"accept": protocol.accept} if protocol.accept else {})}


def codec_class(protocol: Protocol, sent: Sent) -> type[Codec]:
    """The codec that reads such a request."""
    kind, accept = sent.headers.get("content-type"), protocol.accept
    variant = protocol.codec.variant(None if kind is None else kind.encode(), accept.encode() if accept else None)
    assert variant is not None
    return variant
