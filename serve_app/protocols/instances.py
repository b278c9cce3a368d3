"""The protocols with `{"instances": […]}`: KServe v1 (the protocol of TensorFlow Serving), and the containers of Vertex AI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import orjson

from serve_app.protocols.codec import Codec, ProblemDetails, ProtocolName
from serve_app.protocols.mlflow import MlflowCodec, sentence


class KServeV1Codec(MlflowCodec):
    """`instances` or `inputs` as JSON; the response is `{"predictions": […]}`. `Accept` is ignored."""

    protocol: ClassVar[ProtocolName] = "kserve_v1"
    media_types = ("application/json",)
    response_types = ()
    forms: ClassVar[Sequence[str]] = ("instances", "inputs")

    @classmethod
    def variant(cls, content_type: bytes | None, accept: bytes | None) -> type[Codec] | None:
        """JSON only."""
        return cls

    @classmethod
    def body_format(cls, headers: Mapping[bytes, bytes]) -> str:
        """JSON only."""
        return "json"

    @classmethod
    def problem(cls, problem: ProblemDetails) -> bytes:
        """`{"error": …}`."""
        return orjson.dumps({"error": sentence(problem)})


class VertexCodec(KServeV1Codec):
    """`instances`; `parameters` are ignored."""

    protocol = "vertex"
    forms = ("instances",)
