"""The record of what was taken up last from MLflow, which others may have written, and the folder of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from serve_app.artifacts.bundle import Bundle, manifest_bytes
from serve_app.artifacts.mlflow_mirror import RECORD, Mirror, put_bundle
from serve_app.artifacts.mlflow_version import RegisteredVersion
from serve_app.artifacts.store import BUNDLES, Entry, Store
from serve_app.errors import BundleRefused, StoreError
from tests.support.models import bundle_files, bundle_manifest, forest, publish_iris

NAME = "Churn"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def mirror(store: Store, tmp_path: Path) -> Mirror:
    return Mirror(store, tmp_path / "cache", name=NAME, alias="champion")


def version_of(entry: Entry, *, changed_at: float = 1.0) -> RegisteredVersion:
    return RegisteredVersion(NAME, str(entry.version), "run", digest=entry.digest, changed_at=changed_at)


def bundle_of(store: Store, entry: Entry) -> Bundle:
    return store.read(f"{BUNDLES}/{entry.folder.name}")


def noted(store: Store, mirror: Mirror, **changes: Any) -> None:
    """The record of a served bundle, with changes of somebody else."""
    entry = publish_iris(store)
    mirror.note(version_of(entry), bundle_of(store, entry), entry.folder.name)
    path = store.root / RECORD
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **changes}))


def test_a_record_names_the_copy_of_a_version(store: Store, mirror: Mirror) -> None:
    noted(store, mirror)
    record = mirror.last()
    assert record is not None
    assert mirror.find(record.pointer) == record
    assert mirror.find("mlflow:9:0123456789abcdef") is None
    bundle = mirror.read(record, None)
    assert (bundle.version, bundle.digest, bundle.source) == ("1", store.entries()[0].digest, "mlflow")


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Other"},
        {"alias": "challenger"},
        {"pointer": "bundles/1-x"},
        {"digest": "short"},
        {"digest": "0" * 63 + "\n"},
        {"bundle": "../../etc"},
        {"bundle": "1-" + "0" * 63},
        {"at": "now"},
        {"version": 1},
    ],
    ids=repr,
)
def test_a_record_that_this_replica_would_not_write_counts_for_nothing(
    store: Store, mirror: Mirror, changes: dict[str, Any]
) -> None:
    noted(store, mirror, **changes)
    assert mirror.last() is None


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", b"x" * 100_000])
def test_rubbish_in_place_of_a_record_counts_for_nothing(store: Store, mirror: Mirror, raw: bytes) -> None:
    store.root.mkdir()
    (store.root / RECORD).write_bytes(raw)
    assert mirror.last() is None


def test_a_record_cannot_give_a_bundle_another_digest_or_version(store: Store, mirror: Mirror) -> None:
    noted(store, mirror, digest="0" * 64, version="9")
    record = mirror.last()
    assert record is not None
    bundle = mirror.read(record, None)
    assert (bundle.version, bundle.digest) == ("1", store.entries()[0].digest)


def test_a_copy_that_is_gone_is_no_copy(store: Store, mirror: Mirror) -> None:
    noted(store, mirror, bundle="7-" + "0" * 64)
    record = mirror.last()
    assert record is not None
    assert mirror.find(record.pointer) is None
    with pytest.raises(BundleRefused) as refused:
        mirror.read(record, None)
    assert not refused.value.final


def test_a_bundle_is_found_by_its_digest_without_a_record(store: Store, mirror: Mirror) -> None:
    entry = publish_iris(store)
    found = mirror.find("mlflow:5:0123456789abcdef", entry.digest)
    assert found is not None
    assert found.bundle == entry.folder.name
    assert mirror.find("mlflow:5:0123456789abcdef", "0" * 64) is None


def test_a_folder_of_somebody_else_is_neither_read_nor_written(store: Store, mirror: Mirror, tmp_path: Path) -> None:
    entry = publish_iris(Store(tmp_path / "elsewhere"))
    source = Store(tmp_path / "elsewhere")
    raw, bundle = manifest_bytes(entry.folder), bundle_of(source, entry)
    files = {path.name: path.read_bytes() for path in entry.folder.iterdir() if path.name != "metadata.json"}
    (tmp_path / "cache").mkdir(mode=0o777)
    (tmp_path / "cache").chmod(0o777)
    publish_iris(store, note="takes the version")
    with pytest.raises(StoreError, match="IRIS_CACHE_DIR"):
        mirror.keep(version_of(entry), bundle, raw, None, files.items)
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="IRIS_CACHE_DIR"):
        mirror.keep(version_of(entry), bundle, raw, None, files.items)
    (tmp_path / "cache").unlink()
    mirror.keep(version_of(entry), bundle, raw, None, files.items)
    record = mirror.last()
    assert record is not None
    assert mirror.read(record, None).digest == entry.digest


def test_a_copy_that_breaks_off_or_is_damaged_leaves_nothing(store: Store, tmp_path: Path) -> None:
    entry = Store(tmp_path / "elsewhere").publish(bundle_files(forest()), bundle_manifest())
    raw = manifest_bytes(entry.folder)
    files = {path.name: path.read_bytes() for path in entry.folder.iterdir() if path.name != "metadata.json"}

    def broken() -> Any:
        yield from list(files.items())[:1]
        raise BundleRefused("unreadable", "MLflow went away", final=False)

    with pytest.raises(BundleRefused):
        put_bundle(store, entry.folder.name, raw, None, broken)
    with pytest.raises(StoreError):
        put_bundle(store, entry.folder.name, raw, None, lambda: [(name, b"other") for name in files])
    assert store.entries() == []
    put_bundle(store, entry.folder.name, raw, None, files.items)
    assert [held.digest for held in store.entries()] == [entry.digest]
