"""The manifest: what is written is read again, by this release and by the ones before and after it."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest

from serve_app.artifacts.manifest import (
    DataSource,
    FileEntry,
    Libraries,
    Manifest,
    OnnxConversion,
    SourceCode,
    Verdict,
    describe,
    parse_manifest,
    sha256,
)
from serve_app.artifacts.names import JOBLIB, METRICS
from serve_app.errors import BundleRefused
from tests.support.models import bundle_manifest, iris_signature

WRITTEN_BY_1_0_0 = b"""
{
  "code": {"changed": false, "commit": "8e09234e1d8d95b0307dce0c4217ad005a209d88", "version": "1.0.0"},
  "data": {"columns": 5, "held_out": 30, "name": "iris", "rows": 150, "sha256":
  "9cc1c345c71bcc9b486b74cbf6063fa66f4bb5e0f603a4b3c3471ec2e5e8e355"},
  "estimator": "random-forest",
  "feature_names": ["sepal_length", "sepal_width", "petal_length", "petal_width"],
  "files": {"model.joblib": {"sha256": "44956bb798a12bdf213e29cc22beb2ae241d6278fac9574db3e94f055c1b1097", "size": 1550},
  "metrics.json": {"sha256": "06e717fdd00dc7cfba37d350c15458952b94c9862f7fb0aed8d5a29fd3a900fc", "size": 703}},
  "forced": false,
  "format": 1,
  "importance": {"petal_length": 0.28, "petal_width": 0.273333, "sepal_length": 0.0, "sepal_width": 0.0},
  "libraries": {"numpy": "2.4.6", "onnxruntime": "1.32.0", "python": "3.11.7", "scikit-learn": "1.9.1", "skl2onnx": "1.20.0"},
  "limits": {"accuracy": 0.85},
  "local_model_path": "model.joblib",
  "max_depth": 2,
  "mlflow_experiment_name": null,
  "mlflow_model_name": null,
  "mlflow_model_uri": null,
  "mlflow_model_version": null,
  "mlflow_relative_path": null,
  "mlflow_run_id": null,
  "mlflow_run_name": null,
  "mlflow_run_uri": null,
  "model_type": "RandomForestClassifier",
  "n_estimators": 2,
  "n_features": 4,
  "n_samples": 150,
  "onnx": {"available": true, "input": "float64", "largest_difference": 0.0, "rounded": false, "rows_compared": 497,
  "tolerance": 1e-05},
  "parameters": {"bootstrap": true, "ccp_alpha": 0.0, "class_weight": null, "criterion": "gini", "max_depth": 2,
  "max_features": "sqrt", "max_leaf_nodes": null, "max_samples": null, "min_impurity_decrease": 0.0, "min_samples_leaf": 1,
  "min_samples_split": 2, "min_weight_fraction_leaf": 0.0, "monotonic_cst": null, "n_estimators": 2, "n_jobs": null,
  "oob_score": false, "random_state": 42, "verbose": 0, "warm_start": false},
  "random_state": 42,
  "reference": {"classes": {"setosa": 0.3333333333333333, "versicolor": 0.3333333333333333, "virginica": 0.3333333333333333},
  "features": {"petal_width": {"counts": [5, 26, 16, 5, 17, 14, 13, 12, 12], "edges": [0.2, 0.4, 1.2, 1.3, 1.5, 1.8,
  1.9200000000000002, 2.210000000000001], "kind": "number", "missing": 0}}, "rows": 120},
  "search": null,
  "signature": {"classes": ["setosa", "versicolor", "virginica"], "features": [{"categories": [], "example": 4.4, "high": 7.9,
  "kind": "number", "low": 4.3, "maximum": 20.0, "minimum": 0.0, "name": "sepal_length", "nullable": false}, {"categories":
  [], "example": 2.9, "high": 4.4, "kind": "number", "low": 2.0, "maximum": 20.0, "minimum": 0.0, "name": "sepal_width",
  "nullable": false}, {"categories": [], "example": 1.4, "high": 6.9, "kind": "number", "low": 1.1, "maximum": 20.0,
  "minimum": 0.0, "name": "petal_length", "nullable": false}, {"categories": [], "example": 0.2, "high": 2.5, "kind":
  "number", "low": 0.1, "maximum": 20.0, "minimum": 0.0, "name": "petal_width", "nullable": false}], "probabilistic": true,
  "target": "species", "task": "classification"},
  "tags": {"team": "flowers"},
  "target_names": ["setosa", "versicolor", "virginica"],
  "test_size": 0.2,
  "tracking": "none",
  "trained_at": "2026-11-25T18:24:35+00:00",
  "verdict": {"accepted": true, "comparison": {"compared": false, "why": "no model is served yet"}, "reasons": []},
  "version": 1
}
"""
"""The manifest of a training with release 1.0.0, with fewer files and a shorter reference."""

FILES = {JOBLIB: b"model", METRICS: b"{}"}


def first_release() -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(WRITTEN_BY_1_0_0)
    return document


def written(manifest: Manifest) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(describe(FILES, manifest))
    return document


def refused(**changes: Any) -> str:
    with pytest.raises(BundleRefused) as error:
        parse_manifest(orjson.dumps({**first_release(), **changes}))
    return error.value.reason


def test_the_manifest_of_the_first_release_is_read() -> None:
    manifest = parse_manifest(WRITTEN_BY_1_0_0)
    assert (manifest.version, manifest.format, manifest.extra) == (1, 1, {})
    assert manifest.files[METRICS] == FileEntry("06e717fdd00dc7cfba37d350c15458952b94c9862f7fb0aed8d5a29fd3a900fc", 703)
    assert manifest.signature is not None
    assert manifest.signature.names == manifest.feature_names == tuple(iris_signature().names)
    assert (manifest.target_names, manifest.n_estimators, manifest.max_depth) == (("setosa", "versicolor", "virginica"), 2, 2)
    assert manifest.data == DataSource(
        name="iris",
        sha256="9cc1c345c71bcc9b486b74cbf6063fa66f4bb5e0f603a4b3c3471ec2e5e8e355",
        rows=150,
        columns=5,
        held_out=30,
    )
    assert manifest.libraries == Libraries(
        scikit_learn="1.9.1", numpy="2.4.6", onnxruntime="1.32.0", skl2onnx="1.20.0", python="3.11.7"
    )
    assert manifest.code == SourceCode(version="1.0.0", commit="8e09234e1d8d95b0307dce0c4217ad005a209d88", changed=False)
    assert manifest.onnx == OnnxConversion(
        available=True, input="float64", rounded=False, largest_difference=0.0, tolerance=1e-5, rows_compared=497
    )
    assert manifest.verdict == Verdict(accepted=True, comparison={"compared": False, "why": "no model is served yet"})
    assert (manifest.tags, manifest.tracking, manifest.mlflow_run_id) == ({"team": "flowers"}, "none", None)


def test_the_manifest_of_the_first_release_is_written_as_it_was() -> None:
    document = written(parse_manifest(WRITTEN_BY_1_0_0))
    assert [document.pop(name) for name in ("origin", "decision", "frame", "native", "adopted", "calibration")] == [None] * 6
    assert document == {**first_release(), "files": document["files"]}


def test_a_manifest_is_written_with_sorted_keys_and_the_list_of_its_files() -> None:
    raw = describe(FILES, bundle_manifest(version=3))
    assert raw == orjson.dumps(orjson.loads(raw), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"
    assert orjson.loads(raw)["files"] == {name: {"sha256": sha256(data), "size": len(data)} for name, data in FILES.items()}
    assert parse_manifest(raw).files == {name: FileEntry(sha256(data), len(data)) for name, data in FILES.items()}


def test_keys_of_a_newer_release_are_kept_through_reading_and_writing() -> None:
    unknown = dict.fromkeys(("origin", "decision", "frame", "native", "adopted", "calibration"))
    newer = first_release() | {"extra": {"a": 1}, **unknown, "receipts": [1, {"b": None}]}
    newer["onnx"]["opset"] = 24
    newer["verdict"]["rule"] = "no worse than the champion"
    newer["libraries"]["scipy"] = "1.17.0"
    newer["data"]["url"] = "s3://bucket/iris.csv"
    manifest = parse_manifest(orjson.dumps(newer))
    assert manifest.extra == {"extra": {"a": 1}, "receipts": [1, {"b": None}]}
    changed = written(msgspec.structs.replace(manifest, tags={"team": "trees"}))
    assert changed == {**newer, "files": changed["files"], "tags": {"team": "trees"}}


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "1"},
        {"version": 1.5},
        {"feature_names": "sepal_length"},
        {"feature_names": [1]},
        {"target_names": [None]},
        {"trained_at": 3},
        {"onnx": "converted"},
        {"onnx": {"rounded": "no"}},
        {"libraries": []},
        {"libraries": {"scikit-learn": 1.9}},
        {"data": {"rows": "150"}},
        {"verdict": {"accepted": 1}},
        {"verdict": {}},
        {"forced": "yes"},
        {"reference": []},
        {"tags": {"team": 3}},
        {"limits": {"accuracy": "high"}},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_refused(changes: dict[str, Any]) -> None:
    assert refused(**changes) == "manifest"


@pytest.mark.parametrize("signature", [None, "x", {}, {"features": [], "task": "regression"}], ids=str)
def test_a_signature_that_is_none_is_refused_by_its_own_reason(signature: Any) -> None:
    assert refused(signature=signature) == "signature"


def test_a_legacy_description_gives_what_can_be_read_and_keeps_the_rest() -> None:
    manifest = Manifest.from_legacy(
        {
            "feature_names": ["a", "b"],
            "n_samples": 120,
            "mlflow_model_version": 7,
            "data": "iris.csv",
            "trained_at": 1769644800,
            "version": 3,
            "files": {},
            "signature": 5,
            "note": {"by": "hand"},
        }
    )
    assert manifest == Manifest(feature_names=("a", "b"), n_samples=120, mlflow_model_version=7, extra={"note": {"by": "hand"}})
