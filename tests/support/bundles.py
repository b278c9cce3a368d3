"""Bundles in memory, right or wrong in one part."""

from __future__ import annotations

from typing import Any

import orjson

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.manifest import sha256
from serve_app.artifacts.names import GOLDEN
from serve_app.artifacts.signature import Signature
from tests.support.models import bundle_files, bundle_manifest, iris_signature

IRIS = iris_signature()


def bundle(
    estimator: Any,
    signature: Signature = IRIS,
    *,
    onnx: bool = False,
    golden: bool = True,
    files: dict[str, bytes] | None = None,
    **changes: Any,
) -> Bundle:
    """A bundle in memory; `files` go over those of the estimator, `changes` over the keys of its manifest."""
    kept = {**bundle_files(estimator, signature, onnx=onnx), **(files or {})}
    if not golden:
        del kept[GOLDEN]
    manifest = bundle_manifest(signature, **changes)
    return Bundle("1", sha256(orjson.dumps(manifest.to_dict())), manifest, {}, kept)
