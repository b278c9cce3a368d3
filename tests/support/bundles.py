"""Bundles in memory, right or wrong in one part."""

from __future__ import annotations

from typing import Any

import orjson

from serve_app.artifacts.bundle import GOLDEN, Bundle, sha256
from serve_app.artifacts.signature import Signature
from tests.support.models import bundle_files, bundle_metadata, iris_signature

IRIS = iris_signature()


def bundle(
    estimator: Any,
    signature: Signature = IRIS,
    *,
    onnx: bool = False,
    golden: bool = True,
    files: dict[str, bytes] | None = None,
    **metadata: Any,
) -> Bundle:
    """A bundle in memory; `files` go over those of the estimator, `metadata` over what describes it."""
    kept = {**bundle_files(estimator, signature, onnx=onnx), **(files or {})}
    if not golden:
        del kept[GOLDEN]
    described = bundle_metadata(signature, **metadata)
    return Bundle("1", sha256(orjson.dumps(described)), described, {}, kept, signature)
