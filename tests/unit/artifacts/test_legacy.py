"""The three files of the legacy layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from serve_app.artifacts.legacy import adopt, legacy_stamp, read_legacy, signature_of
from serve_app.artifacts.manifest import FORMAT, Manifest
from serve_app.artifacts.names import JOBLIB, MANIFEST, METRICS
from serve_app.errors import BundleRefused
from tests.support.models import IRIS_CLASSES, METRICS_OF, write_legacy


def read(folder: Path) -> Any:
    bundle = read_legacy(folder)
    assert bundle is not None
    return bundle


def test_the_plain_files_are_read_and_named(tmp_path: Path) -> None:
    write_legacy(tmp_path)
    bundle = read(tmp_path)
    assert (bundle.version, bundle.source, bundle.signature) == ("7", "plain", None)
    assert bundle.metrics == METRICS_OF
    assert set(bundle.files) == {JOBLIB, MANIFEST, METRICS}
    assert signature_of(bundle.manifest).classes == IRIS_CLASSES


@pytest.mark.parametrize("name", [JOBLIB, MANIFEST])
def test_without_model_or_metadata_there_is_no_model(tmp_path: Path, name: str) -> None:
    write_legacy(tmp_path)
    (tmp_path / name).unlink()
    assert read_legacy(tmp_path) is None
    assert legacy_stamp(tmp_path) is None


def test_without_metrics_it_is_served_all_the_same(tmp_path: Path) -> None:
    write_legacy(tmp_path)
    (tmp_path / METRICS).unlink()
    assert read(tmp_path).metrics == {}
    assert legacy_stamp(tmp_path) is not None
    assert adopt(read(tmp_path))[0][METRICS] == b"{}\n"


@pytest.mark.parametrize("name", [JOBLIB, MANIFEST, METRICS])
def test_a_change_of_any_file_changes_stamp_and_digest(tmp_path: Path, name: str) -> None:
    write_legacy(tmp_path)
    stamp, digest = legacy_stamp(tmp_path), read(tmp_path).digest
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b" ")
    assert legacy_stamp(tmp_path) != stamp
    assert read(tmp_path).digest != digest


@pytest.mark.parametrize(
    ("told", "version"),
    [
        ("7", "7"),
        (7, "7"),
        ("v1.2", "v1.2"),
        (None, "0"),
        ("", "0"),
        (" ", "0"),
        ("1\r\nX-Evil: 1", "0"),
        ("²", "0"),
        (1.5, "0"),
        (["1"], "0"),
    ],
    ids=repr,
)
def test_a_version_that_would_break_a_header_is_not_used(tmp_path: Path, told: Any, version: str) -> None:
    write_legacy(tmp_path, mlflow_model_version=told)
    assert read(tmp_path).version == version


@pytest.mark.parametrize("raw", [b"", b"[]", b"{"])
def test_metadata_that_is_no_json_object_is_refused(tmp_path: Path, raw: bytes) -> None:
    write_legacy(tmp_path)
    (tmp_path / MANIFEST).write_bytes(raw)
    with pytest.raises(BundleRefused) as refused:
        read_legacy(tmp_path)
    assert refused.value.reason == "manifest"


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"feature_names": []},
        {"feature_names": "abc"},
        {"feature_names": [1]},
        {"feature_names": ["a", "a"]},
        {"feature_names": ["a"], "target_names": "ab"},
        {"feature_names": ["a"], "target_names": [None, "b"]},
        {"feature_names": ["a"], "target_names": ["one"]},
    ],
    ids=str,
)
def test_metadata_that_tells_no_signature_is_refused(metadata: dict[str, Any]) -> None:
    with pytest.raises(BundleRefused) as refused:
        signature_of(Manifest.from_legacy(metadata))
    assert refused.value.reason == "signature"


def test_adoption_keeps_what_was_known_and_writes_down_what_was_guessed(tmp_path: Path) -> None:
    write_legacy(tmp_path, note="kept", files="not ours", format=99, signature=3, version="5")
    bundle = read(tmp_path)
    files, manifest = adopt(bundle)
    assert files == {JOBLIB: bundle.files[JOBLIB], METRICS: bundle.files[METRICS]}
    assert manifest.signature == signature_of(bundle.manifest)
    assert (manifest.extra, manifest.origin) == ({"note": "kept"}, "plain")
    assert manifest.mlflow_run_id == orjson.loads(bundle.files[MANIFEST])["mlflow_run_id"]
    assert (manifest.files, manifest.format, manifest.version) == ({}, FORMAT, None)
