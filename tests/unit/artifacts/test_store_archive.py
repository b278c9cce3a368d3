from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from serve_app.artifacts.archive import END, write_section
from serve_app.artifacts.names import JOBLIB, LEGACY_FILES, REPORT, SEAL
from serve_app.artifacts.signing import signer
from serve_app.artifacts.staging import unpack
from serve_app.artifacts.store import BUNDLES, CURRENT, Entry, Store
from serve_app.artifacts.store_archive import snapshot
from serve_app.errors import StoreError
from tests.support.archives import restore_store, store_archive
from tests.support.hostile.signatures import key_pair
from tests.support.models import write_legacy
from tests.support.stores import damage, publish, served, versions, what_is_there


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "models", keep=3)
    for text in "abc":
        publish(store, text)
    store.roll_back()
    (store.root / REPORT).write_bytes(b"{}")
    return store


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store(tmp_path / "other", keep=3)


def tree(store: Store) -> dict[str, bytes | str]:
    """Every file and link of a store, without its locks."""
    return {
        name: os.readlink(path) if path.is_symlink() else path.read_bytes()
        for name in what_is_there(store)
        if not (path := store.root / name).is_dir() and not path.name.endswith(".lock")
    }


def test_a_restored_store_is_the_one_that_was_backed_up(store: Store, other: Store) -> None:
    outcome = restore_store(store_archive(store), other)
    assert (outcome.added, outcome.existing) == (3, 0)
    assert tree(other) == tree(store)
    assert served(other) == "b"
    assert publish(other, "d").version == 4


def test_seals_survive(tmp_path: Path, other: Store) -> None:
    private, _ = key_pair(tmp_path, "publisher")
    store = Store(tmp_path / "signed")
    entry = publish(store, sign=signer(private))
    restore_store(store_archive(store), other)
    assert (other.root / BUNDLES / entry.folder.name / SEAL).read_bytes() == (entry.folder / SEAL).read_bytes()


def test_a_legacy_layout_survives(tmp_path: Path, other: Store) -> None:
    write_legacy(tmp_path / "old")
    store = Store(tmp_path / "old")
    restore_store(store_archive(store), other)
    assert {name: (other.root / name).read_bytes() for name in LEGACY_FILES} == {
        name: (store.root / name).read_bytes() for name in LEGACY_FILES
    }
    bundle, original = other.current(), store.current()
    assert bundle is not None
    assert original is not None
    assert bundle.digest == original.digest


def test_a_store_that_holds_models_is_refused_and_unchanged(store: Store, other: Store) -> None:
    publish(other, "own")
    before = tree(other)
    with pytest.raises(StoreError, match="--merge"):
        restore_store(store_archive(store), other)
    assert tree(other) == before


def test_merge_adds_the_missing_versions_and_leaves_the_pointer(store: Store, other: Store) -> None:
    archive = store_archive(store)
    restore_store(archive, other)
    removed = other.entries()[0].folder
    for file in removed.iterdir():
        file.unlink()
    removed.rmdir()
    other.promote(3)
    outcome = restore_store(archive, other, merge=True)
    assert (outcome.added, outcome.existing, versions(other), served(other)) == (1, 2, [1, 2, 3], "c")


def test_merge_refuses_two_models_of_one_version(store: Store, other: Store) -> None:
    publish(other, "own")
    with pytest.raises(StoreError, match="version 1"):
        restore_store(store_archive(store), other, merge=True)
    assert (versions(other), served(other)) == ([1], "own")


def test_a_damaged_version_is_left_out_and_a_damaged_served_one_is_refused(store: Store, other: Store) -> None:
    first, second, _ = store.entries()
    damage(first)
    with contextlib.ExitStack() as handles:
        assert snapshot(store, handles).damaged == (1,)
    restore_store(store_archive(store), other)
    assert versions(other) == [2, 3]
    damage(second)
    with pytest.raises(StoreError, match="version 2"):
        store_archive(store)


def test_a_training_that_publishes_and_prunes_meanwhile_changes_nothing(store: Store, other: Store) -> None:
    out = io.BytesIO()
    with contextlib.ExitStack() as handles:
        taken = snapshot(store, handles)
        for text in "defg":  # the store keeps three: the bundles of the snapshot are removed
            publish(store, text)
        assert versions(store) == [5, 6, 7]
        write_section(out, "models", taken.sources, taken.details)
    restore_store(out.getvalue() + END, other)
    assert (versions(other), served(other)) == ([1, 2, 3], "b")


def test_a_snapshot_does_not_hold_the_lock(store: Store) -> None:
    with contextlib.ExitStack() as handles:
        snapshot(store, handles)
        assert publish(store, "d").version == 4  # would wait for ever


def test_a_version_that_the_replicas_would_refuse_is_not_pointed_to(store: Store, other: Store) -> None:
    def refuse(entry: Entry) -> None:
        raise StoreError(f"version {entry.version} is not signed")

    with pytest.raises(StoreError, match="version 2 is not signed"):
        restore_store(store_archive(store), other, check=refuse)
    assert (other.pointer(), other.entries()) == (None, [])
    assert not [name for name in os.listdir(other.root / BUNDLES) if not name.startswith(".")]


def test_a_training_that_publishes_during_a_restore_wins(store: Store, other: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: Any, **options: Any) -> Any:
        publish(other, "own")
        return unpack(*arguments, **options)

    monkeypatch.setattr("serve_app.artifacts.store_archive.unpack", slow)
    with pytest.raises(StoreError, match="meanwhile"):
        restore_store(store_archive(store), other)
    assert (versions(other), served(other)) == ([1], "own")


def test_a_killed_restore_leaves_nothing_that_the_next_one_minds(store: Store, other: Store) -> None:
    rubbish = other.root / ".restore" / BUNDLES / "half"
    rubbish.mkdir(parents=True)
    (rubbish / JOBLIB).write_bytes(b"half")
    restore_store(store_archive(store), other)
    assert tree(other) == tree(store)


def test_an_empty_store_has_an_archive_too(tmp_path: Path, other: Store) -> None:
    archive = store_archive(Store(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()
    assert restore_store(archive, other).added == 0
    assert other.pointer() is None


def test_the_pointer_of_an_archive_is_in_its_manifest(store: Store) -> None:
    head = json.loads(store_archive(store)[512:].split(b"\n")[0])
    assert head["details"] == {"pointer": os.readlink(store.root / CURRENT), "versions": [1, 2, 3]}
