"""Requests of the Open Inference Protocol, as clients write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serve_app.artifacts.fields import Unknown
from serve_app.artifacts.signature import Signature
from serve_app.protocols.codec import CodecContext
from serve_app.protocols.oip import OpenInferenceCodec

INFER = "/v2/models/IrisClassifier/infer"
LENGTH = "Inference-Header-Content-Length"
NUMPY = {"BOOL": "?", "INT32": "<i4", "INT64": "<i8", "UINT8": "u1", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}


def codec_of(signature: Signature, *, max_rows: int = 1000, unknown: Unknown = "refuse") -> OpenInferenceCodec:
    """The codec of one model version with this signature."""
    return OpenInferenceCodec(
        CodecContext(
            signature=signature,
            model_name="m",
            model_version="1",
            max_rows=max_rows,
            max_row_bytes=65536,
            max_body_bytes=16 * 1024 * 1024,
            unknown=unknown,
            unknown_fields="ignore",
        )
    )


def tensor(data: Any, *, name: str = "x", shape: Sequence[int] | None = None, datatype: str = "FP64") -> dict[str, Any]:
    """One input with its values as JSON; the shape is that of the data unless told."""
    return {"name": name, "shape": list(np.shape(data)) if shape is None else list(shape), "datatype": datatype, "data": data}


def request(*inputs: Mapping[str, Any], **members: Any) -> bytes:
    """A request in JSON; NaN is written as Python writes it."""
    return json.dumps({"inputs": list(inputs), **members}).encode()


def packed(values: Any, datatype: str) -> bytes:
    """The values of a tensor as bytes."""
    if datatype != "BYTES":
        return np.asarray(values).astype(NUMPY[datatype]).tobytes()
    raws = [value if isinstance(value, bytes) else value.encode() for value in np.ravel(np.array(values, object)).tolist()]
    return b"".join(len(raw).to_bytes(4, "little") + raw for raw in raws)


def binary(*inputs: Mapping[str, Any], **members: Any) -> tuple[bytes, dict[str, str]]:
    """A request whose inputs have their values behind the JSON, and the header that says so.

    An input with the member `json` keeps its values in the JSON.
    """
    documents, tail = [], b""
    for each in inputs:
        document = {key: value for key, value in each.items() if key != "json"}
        if not each.get("json"):
            raw = packed(document.pop("data"), document["datatype"])
            document["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        documents.append(document)
    head = request(*documents, **members)
    return head + tail, {LENGTH: str(len(head))}


def outputs(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """The outputs of a response by name, as arrays of their shape; texts of binary outputs are decoded."""
    length = int(headers.get(LENGTH, len(body)))
    document, at, found = json.loads(body[:length]), length, {}
    for each in document["outputs"]:
        size = each.get("parameters", {}).get("binary_data_size")
        values = each.get("data")
        if size is not None:
            raw, at = body[at : at + size], at + size
            values = unpacked(raw) if each["datatype"] == "BYTES" else np.frombuffer(raw, NUMPY[each["datatype"]])
        found[each["name"]] = np.array(values).reshape(each["shape"])
    assert at == len(body)
    return found


def unpacked(raw: bytes) -> list[str]:
    """The texts of a binary BYTES tensor."""
    texts = []
    while raw:
        end = 4 + int.from_bytes(raw[:4], "little")
        texts.append(raw[4:end].decode())
        raw = raw[end:]
    return texts
