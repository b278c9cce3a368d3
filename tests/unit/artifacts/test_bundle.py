from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from serve_app.artifacts.bundle import Bundle, folder_name, parse_folder, read_bundle, read_manifest, verify_files
from serve_app.artifacts.manifest import MAX_MANIFEST_BYTES, Manifest, describe, parse_manifest, sha256
from serve_app.artifacts.names import MANIFEST
from serve_app.errors import BundleRefused
from tests.support.models import bundle_manifest

FILES = {"model.joblib": b"not a pickle, and nobody will look", "metrics.json": b'{"accuracy": 1}', "golden.json": b"{}"}


def write(parent: Path, files: dict[str, bytes], manifest: bytes, version: int = 3) -> Path:
    folder = parent / folder_name(version, sha256(manifest))
    folder.mkdir(parents=True)
    for name, data in {**files, MANIFEST: manifest}.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path, FILES, describe(FILES, bundle_manifest(version=3)))


def why(folder: Path) -> tuple[str, bool]:
    with pytest.raises(BundleRefused) as refused:
        read_bundle(folder)
    return refused.value.reason, refused.value.final


def with_manifest(parent: Path, **changes: Any) -> Path:
    """A folder whose name proves its manifest, though the manifest is odd."""
    document = {**orjson.loads(describe(FILES, bundle_manifest(version=3))), **changes}
    return write(parent / "odd", FILES, orjson.dumps(document))


def open_handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_bundle_is_read_with_the_bytes_that_were_proven(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert (bundle.version, bundle.source) == ("3", "store")
    assert bundle.files == FILES
    assert bundle.metrics == {"accuracy": 1}
    assert bundle.signature == bundle_manifest().signature
    assert bundle.etag == f'"{folder.name.partition("-")[2]}"'
    assert read_manifest(folder) == bundle.manifest


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_one_changed_bit_anywhere_is_refused(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 40)):
        (folder / name).write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert why(folder) == ("digest", True)
    (folder / name).write_bytes(whole)
    assert read_bundle(folder).version == "3"


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: b"", lambda data: data + b" "], ids=["shorter", "empty", "longer"]
)
def test_a_file_of_another_size_is_refused(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    assert why(folder) == ("digest", True)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_may_still_come(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert why(folder) == ("unreadable", False)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_link_is_not_followed_even_to_the_right_bytes(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to("../elsewhere")
    assert why(folder)[0] == "unreadable"


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_plain_file_is_refused_and_leaves_no_handle_open(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    (folder / name).unlink()
    make(folder / name)
    assert why(folder) == ("digest", True)
    before = open_handles()
    why(folder)
    assert open_handles() == before


def test_a_manifest_without_end_is_refused_before_it_is_read(folder: Path) -> None:
    with open(folder / MANIFEST, "r+b") as file:
        file.truncate(1 << 40)  # a terabyte, without a byte on the disk
    assert why(folder) == ("digest", True)


def test_a_manifest_over_the_limit_is_refused_though_its_digest_fits(tmp_path: Path) -> None:
    manifest = describe(FILES, bundle_manifest(note="x" * MAX_MANIFEST_BYTES))
    assert why(write(tmp_path, FILES, manifest)) == ("digest", True)


@pytest.mark.parametrize("name", ["model.onnx", ".hidden", "a\nline"])
def test_a_folder_with_a_file_that_the_manifest_does_not_list_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"from somebody else")
    assert why(folder) == ("digest", True)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "current",
        "3",
        "0-" + "a" * 64,
        "03-" + "a" * 64,
        "3-" + "A" * 64,
        "3-" + "a" * 63,
        "3-" + "a" * 64 + "\n",
        "../3-" + "a" * 64,
    ],
)
def test_a_name_that_is_no_bundles_is_refused(tmp_path: Path, name: str) -> None:
    assert parse_folder(name) is None
    if "/" not in name:
        assert why(tmp_path / name) == ("pointer", True)
        with pytest.raises(BundleRefused):
            read_manifest(tmp_path / name)


def test_a_folder_that_is_not_there_may_still_come(tmp_path: Path) -> None:
    assert why(tmp_path / folder_name(1, "a" * 64)) == ("unreadable", False)


def test_a_link_to_a_bundle_is_no_bundle(folder: Path) -> None:
    folder.rename(folder.parent / "moved")
    folder.symlink_to("moved")
    assert why(folder) == ("unreadable", False)


LISTED = {"sha256": sha256(b""), "size": 0}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "format"),
        ({"format": None}, "format"),
        ({"files": None}, "manifest"),
        ({"files": {}}, "manifest"),
        ({"files": ["model.joblib"]}, "manifest"),
        ({"files": {"../../etc/passwd": LISTED}}, "manifest"),
        ({"files": {"..": LISTED}}, "manifest"),
        ({"files": {"a/b": LISTED}}, "manifest"),
        ({"files": {"/etc/passwd": LISTED}}, "manifest"),
        ({"files": {".hidden": LISTED}}, "manifest"),
        ({"files": {"": LISTED}}, "manifest"),
        ({"files": {"nul\0": LISTED}}, "manifest"),
        ({"files": {MANIFEST: LISTED}}, "manifest"),
        ({"files": {"a": None}}, "manifest"),
        ({"files": {"a": {**LISTED, "size": -1}}}, "manifest"),
        ({"files": {"a": {**LISTED, "size": 1.0}}}, "manifest"),
        ({"files": {"a": {**LISTED, "size": True}}}, "manifest"),
        ({"files": {"a": {**LISTED, "sha256": "0"}}}, "manifest"),
        ({"files": {"a": {"size": 0}}}, "manifest"),
        ({"files": {"a": {**LISTED, "size": 1 << 50}}}, "manifest"),
        ({"signature": None}, "signature"),
        ({"signature": {"features": []}}, "signature"),
    ],
    ids=str,
)
def test_an_odd_manifest_is_refused_for_good(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    assert why(with_manifest(tmp_path, **changes)) == (reason, True)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff", b'{"format": NaN}'])
def test_a_manifest_that_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(BundleRefused) as refused:
        parse_manifest(raw)
    assert refused.value.reason == "manifest"


def test_metrics_that_are_no_json_object_are_refused(tmp_path: Path) -> None:
    files = {**FILES, "metrics.json": b"[]"}
    assert why(write(tmp_path, files, describe(files, bundle_manifest(version=3)))) == ("manifest", True)


@pytest.mark.parametrize("name", ["../x", "", ".x", MANIFEST, "a/b", "x" * 200])
def test_a_file_that_could_not_be_read_back_is_not_described(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        describe({name: b""}, Manifest())


def fetched(files: dict[str, bytes], manifest: bytes | None = None) -> Bundle:
    right = describe(FILES, bundle_manifest())
    return verify_files("9", sha256(right), right if manifest is None else manifest, files, source="mlflow")


def test_files_from_the_network_are_proven_the_same_way() -> None:
    bundle = fetched({**FILES, "extra": b"left out"})
    assert (bundle.version, bundle.source, bundle.files) == ("9", "mlflow", FILES)
    assert bundle.metrics == {"accuracy": 1}


@pytest.mark.parametrize(
    "files",
    [
        {},
        {**FILES, "golden.json": b"[]"},
        {**FILES, "golden.json": b""},
        {name: data for name, data in FILES.items() if name != "golden.json"},
    ],
    ids=["none", "changed", "empty", "missing"],
)
def test_files_from_the_network_that_differ_are_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(BundleRefused) as refused:
        fetched(files)
    assert refused.value.reason == "digest"


def test_a_manifest_from_the_network_that_differs_is_refused() -> None:
    with pytest.raises(BundleRefused) as refused:
        fetched(FILES, b"{}")
    assert refused.value.reason == "digest"
