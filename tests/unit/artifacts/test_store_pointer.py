"""Where the pointer goes, and who may move it."""

from __future__ import annotations

import errno
import os
import threading
from functools import partial
from pathlib import Path

import pytest

from serve_app.artifacts.manifest import Manifest
from serve_app.artifacts.names import JOBLIB, MANIFEST, METRICS
from serve_app.artifacts.store import CURRENT, PointerMoved, Store
from serve_app.errors import BundleRefused, StoreError
from tests.support.models import bundle_manifest
from tests.support.stores import damage, publish, served, versions, what_is_there


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", keep=3)


def test_promote_and_roll_back_move_the_pointer(store: Store) -> None:
    for text in "abc":
        publish(store, text)
    assert store.roll_back().version == 2
    assert served(store) == "b"
    assert store.roll_back().version == 1
    assert served(store) == (store.root / JOBLIB).read_text() == "a"
    assert store.promote(3).served
    assert served(store) == "c"
    assert versions(store) == [1, 2, 3]


def test_what_cannot_be_promoted_or_rolled_back_to_is_said_in_a_sentence(store: Store) -> None:
    with pytest.raises(StoreError, match="version 1"):
        store.promote(1)
    with pytest.raises(StoreError, match=str(store.root)):
        store.roll_back()
    publish(store, "a")
    publish(store, "b")
    with pytest.raises(StoreError, match=r"version 9\b.*\b1, 2$"):
        store.promote(9)
    store.roll_back()
    with pytest.raises(StoreError, match="version 1 "):
        store.roll_back()
    assert served(store) == "a"


@pytest.mark.parametrize("name", [JOBLIB, METRICS, MANIFEST])
def test_a_damaged_bundle_is_listed_and_not_promoted(store: Store, name: str) -> None:
    damage(publish(store, "a"), name)
    publish(store, "b")
    assert versions(store) == [1, 2]
    for move in (store.roll_back, partial(store.promote, 1)):
        with pytest.raises(StoreError, match="version 1 "):
            move()
    assert served(store) == "b"


def test_a_damaged_manifest_shows_no_metadata(store: Store) -> None:
    damage(publish(store), MANIFEST)
    (entry,) = store.entries()
    assert (entry.served, entry.manifest) == (True, None)


def test_a_damaged_served_bundle_can_be_left_by_publishing_or_rolling_back(store: Store) -> None:
    publish(store, "a")
    damage(publish(store, "b"))
    with pytest.raises(BundleRefused):
        store.current()
    store.roll_back()
    assert served(store) == "a"
    damage(store.entries()[0])
    publish(store, "c")
    assert served(store) == "c"


def test_a_bundle_that_could_not_be_read_back_is_not_published(store: Store) -> None:
    publish(store)
    before = what_is_there(store)
    with pytest.raises(StoreError, match="signature"):
        store.publish({JOBLIB: b"", METRICS: b"{}"}, Manifest())
    with pytest.raises(StoreError, match=r"metrics\.json"):
        store.publish({JOBLIB: b"", METRICS: b"[]"}, bundle_manifest())
    assert what_is_there(store) == before


def test_a_bundle_without_model_or_metrics_is_a_mistake_of_the_caller(store: Store) -> None:
    with pytest.raises(ValueError, match=r"model\.joblib and metrics\.json"):
        store.publish({}, bundle_manifest())
    with pytest.raises(ValueError, match=r"\.\./x"):
        store.publish({JOBLIB: b"", METRICS: b"{}", "../x": b""}, bundle_manifest())
    assert store.current() is None


def test_bytes_of_a_bundle_cannot_be_written_through_the_names_of_old(store: Store) -> None:
    publish(store)
    assert (store.root / JOBLIB).stat().st_mode & 0o222 == 0


def test_a_publisher_that_compared_with_another_model_publishes_nothing(store: Store) -> None:
    expected = store.pointer()
    publish(store, "first", expected=expected, check=True)
    before = what_is_there(store)
    with pytest.raises(PointerMoved):
        publish(store, "second", expected=expected, check=True)
    assert what_is_there(store) == before
    publish(store, "second", expected=store.pointer(), check=True)
    assert served(store) == "second"


def test_of_many_publishers_that_compared_with_the_same_model_one_wins(store: Store) -> None:
    expected = store.pointer()
    start = threading.Barrier(8)
    lost: list[PointerMoved] = []

    def compete(number: int) -> None:
        start.wait()
        try:
            publish(Store(store.root), f"model {number}", expected=expected, check=True)
        except PointerMoved as error:
            lost.append(error)

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 7
    assert versions(store) == [1]


@pytest.mark.parametrize(
    "target", ["", "bundles", "bundles/none", "../outside/1-" + "a" * 64, "/etc", "bundles/../" + "1-" + "a" * 64]
)
def test_a_pointer_out_of_the_store_is_refused_and_healed_by_the_next_publication(store: Store, target: str) -> None:
    publish(store, "a")
    (store.root / CURRENT).unlink()
    os.symlink(target or ".", store.root / CURRENT)
    with pytest.raises(BundleRefused) as refused:
        store.current()
    assert (refused.value.reason, refused.value.final) == ("pointer", True)
    assert [entry.served for entry in store.entries()] == [False]
    publish(store, "b")
    assert served(store) == "b"


def test_a_pointer_that_is_no_link_is_not_an_empty_store(store: Store) -> None:
    (store.root / CURRENT).mkdir(parents=True)
    with pytest.raises(BundleRefused) as refused:
        store.pointer()
    assert not refused.value.final
    assert store.entries() == []
    with pytest.raises(StoreError, match=str(store.root)):
        publish(store)
    assert versions(store) == []


def test_a_file_in_the_place_of_the_store_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("I am a file")
    store = Store(tmp_path / "models")
    with pytest.raises(StoreError, match=os.strerror(errno.ENOTDIR)):
        store.entries()
    with pytest.raises(StoreError, match=str(store.root)):
        publish(store)
