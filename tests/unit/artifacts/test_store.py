from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serve_app.artifacts.bundle import read_bundle
from serve_app.artifacts.names import JOBLIB, LEGACY_FILES, MANIFEST, METRICS
from serve_app.artifacts.store import BUNDLES, CURRENT, MAX_VERSION, Store
from serve_app.errors import StoreError
from tests.support.models import bundle_manifest
from tests.support.stores import damage, publish, served, versions, what_is_there


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", keep=3)


def test_an_empty_store_has_no_model_and_reading_makes_nothing(store: Store) -> None:
    assert (store.pointer(), store.current(), store.entries()) == (None, None, [])
    assert not store.root.exists()


def test_what_was_published_is_served_and_found_under_the_names_of_old(store: Store) -> None:
    entry = publish(store)
    bundle = store.current()
    assert bundle is not None
    assert (bundle.version, bundle.digest) == (str(entry.version), entry.digest)
    assert bundle.manifest.version == entry.version == 1
    assert entry.served
    assert entry.manifest == bundle.manifest
    assert (store.root / JOBLIB).read_bytes() == b"a model"
    assert orjson.loads((store.root / METRICS).read_bytes()) == {"text": "a model"}
    assert orjson.loads((store.root / MANIFEST).read_bytes())["mlflow_run_id"] == bundle_manifest().mlflow_run_id


def test_publishing_leaves_only_the_bundle_the_pointer_and_the_three_names(store: Store) -> None:
    entry = publish(store)
    folder = f"{BUNDLES}/{entry.folder.name}"
    inside = {f"{folder}/{name}" for name in LEGACY_FILES}
    assert what_is_there(store) == {BUNDLES, CURRENT, *LEGACY_FILES, folder, *inside}
    assert all(not path.is_absolute() for path in (Path(os.readlink(store.root / name)) for name in (CURRENT, *LEGACY_FILES)))


def test_a_store_that_is_moved_as_a_whole_still_serves(store: Store, tmp_path: Path) -> None:
    publish(store)
    store.root.rename(tmp_path / "elsewhere")
    assert served(Store(tmp_path / "elsewhere")) == "a model"


def test_each_publication_gets_a_new_number_and_is_served(store: Store) -> None:
    for number, text in enumerate("abc", start=1):
        assert publish(store, text).version == number
        assert served(store) == text
    assert [(entry.version, entry.served) for entry in store.entries()] == [(1, False), (2, False), (3, True)]


def test_a_wanted_number_is_used_when_it_is_free(store: Store) -> None:
    assert publish(store, version=41).version == 41
    assert publish(store, version=41).version == 42
    assert publish(store, version=7).version == 7
    assert publish(store).version == 43


@pytest.mark.parametrize("version", [0, -1, MAX_VERSION + 1])
def test_a_number_that_cannot_be_is_replaced_by_the_next(store: Store, version: int) -> None:
    assert publish(store, version=version).version == 1
    assert served(store) == "a model"


def test_a_store_keeps_the_last_bundles_and_the_served_one(store: Store) -> None:
    for text in "abcde":
        publish(store, text)
    assert versions(store) == [3, 4, 5]
    store.promote(3)
    for text in "fg":
        publish(store, text)
    assert versions(store) == [5, 6, 7]
    assert len(what_is_there(store)) == 1 + 1 + 3 + 3 * 4


def test_the_served_bundle_is_kept_though_it_has_the_oldest_number(store: Store) -> None:
    for version in (10, 11, 12):
        publish(store, version=version)
    publish(store, "old number", version=1)
    assert versions(store) == [1, 11, 12]
    assert served(store) == "old number"


def test_a_store_keeps_at_least_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Store(tmp_path, keep=0)
    store = Store(tmp_path, keep=1)
    publish(store, "a")
    publish(store, "b")
    assert (versions(store), served(store)) == ([2], "b")


def test_rubbish_of_a_killed_writer_is_cleared_by_the_next(store: Store) -> None:
    publish(store)
    before = len(what_is_there(store))
    (store.root / BUNDLES / ".0123").mkdir()
    (store.root / BUNDLES / ".0123" / JOBLIB).write_text("half")
    os.symlink("nowhere", store.root / ".link-0123")
    store.promote(1)
    assert len(what_is_there(store)) == before


def test_other_peoples_files_are_left_alone(store: Store) -> None:
    store.root.mkdir()
    (store.root / "README").write_text("mine")
    (store.root / "mlruns").mkdir()
    for text in "abcde":
        publish(store, text)
    (store.root / BUNDLES / "notes").mkdir()
    publish(store)
    assert (store.root / "README").read_text() == "mine"
    assert (store.root / "mlruns").is_dir()
    assert (store.root / BUNDLES / "notes").is_dir()


operations = st.lists(
    st.sampled_from(["publish", "promote the oldest", "promote the newest", "roll back", "damage the oldest"]), max_size=12
)


@given(operations, st.integers(1, 4))
@example(["publish", "publish", "damage the oldest", "roll back", "promote the oldest", "promote the newest"], 3)
@example(["publish", "publish", "publish", "damage the oldest", "roll back", "roll back", "publish", "publish"], 3)
@settings(max_examples=25)
def test_whatever_is_done_in_whatever_order_the_served_bundle_is_the_one_asked_for(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], keep: int
) -> None:
    store = Store(tmp_path_factory.mktemp("store"), keep=keep)
    texts: dict[int, str] = {}
    damaged: set[int] = set()
    current: int | None = None
    for number, step in enumerate(steps):
        known = versions(store)
        if step == "publish":
            entry = publish(store, f"model {number}")
            assert entry.version not in known
            current, texts[entry.version] = entry.version, f"model {number}"
            assert len(store.entries()) <= keep
        elif step == "damage the oldest" and known and known[0] != current:
            damage(store.entries()[0])
            damaged.add(known[0])
        elif step.startswith(("promote", "roll")) and known:
            older = [version for version in known if current is not None and version < current]
            wanted = {"promote the oldest": known[0], "promote the newest": known[-1]}.get(step, older[-1] if older else None)
            move = store.roll_back if step == "roll back" else partial(store.promote, wanted or 0)
            if wanted is None or wanted in damaged:
                with pytest.raises(StoreError):
                    move()
            else:
                assert move().version == wanted
                current = wanted
        assert [entry.version for entry in store.entries() if entry.served] == ([] if current is None else [current])
        if current is not None:
            assert served(store) == texts[current]
    for entry in store.entries():
        if entry.version not in damaged:
            assert read_bundle(entry.folder).files[JOBLIB].decode() == texts[entry.version]
