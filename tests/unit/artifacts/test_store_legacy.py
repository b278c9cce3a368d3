"""A store that holds the three files of the legacy layout."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from serve_app.artifacts.names import JOBLIB, LEGACY_FILES, MANIFEST, METRICS
from serve_app.artifacts.store import CURRENT, PointerMoved, Store
from serve_app.errors import BundleRefused, StoreError
from serve_app.inference.predictor import open_predictor
from tests.support.models import A_FLOWER, METRICS_OF, bundle_files, bundle_manifest, forest, publish_iris, write_legacy
from tests.support.native import answer_row
from tests.support.policies import ALLOW_ALL

BODY = orjson.dumps(A_FLOWER)


def answer(store: Store) -> tuple[str, bytes]:
    bundle = store.current()
    assert bundle is not None
    predictor = open_predictor(bundle, ALLOW_ALL)
    return predictor.version, answer_row(predictor, BODY)


def test_a_plain_model_is_served_and_its_folder_is_not_touched(tmp_path: Path) -> None:
    write_legacy(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    version, body = answer(Store(tmp_path))
    assert version == "7"
    assert orjson.loads(body)["prediction"] == "setosa"
    assert Store(tmp_path).entries() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_pointer_moves_when_a_plain_file_is_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.pointer() is None
    write_legacy(tmp_path)
    first = store.pointer()
    write_legacy(tmp_path)
    assert first is not None
    assert store.pointer() not in (None, first)


def test_the_first_publication_adopts_the_plain_model_and_it_can_be_rolled_back_to(tmp_path: Path) -> None:
    write_legacy(tmp_path)
    raw = (tmp_path / JOBLIB).read_bytes()
    store = Store(tmp_path)
    plain = answer(store)
    entry = publish_iris(store)
    assert [(kept.version, kept.served, kept.manifest and kept.manifest.origin) for kept in store.entries()] == [
        (7, False, "plain"),
        (8, True, None),
    ]
    assert answer(store)[0] == str(entry.version)
    assert store.roll_back().version == 7
    assert answer(store) == plain
    assert (tmp_path / JOBLIB).read_bytes() == raw
    assert orjson.loads((tmp_path / METRICS).read_bytes()) == METRICS_OF
    assert orjson.loads((tmp_path / MANIFEST).read_bytes())["mlflow_run_id"] == "fedcba9876543210fedcba9876543210"


def test_adoption_happens_once(tmp_path: Path) -> None:
    write_legacy(tmp_path)
    store = Store(tmp_path)
    for _ in range(3):
        publish_iris(store)
    assert [entry.version for entry in store.entries()] == [7, 8, 9, 10]


def test_a_publisher_may_compare_with_the_plain_model(tmp_path: Path) -> None:
    write_legacy(tmp_path)
    store = Store(tmp_path)
    before = store.pointer()
    write_legacy(tmp_path, note="trained again")
    with pytest.raises(PointerMoved):
        store.publish(bundle_files(forest()), bundle_manifest(), expected=before, check=True)
    assert store.entries() == []
    assert store.publish(bundle_files(forest()), bundle_manifest(), expected=store.pointer(), check=True).served


@pytest.mark.parametrize("version", [None, "latest", "²", "0", "1" * 30])
def test_a_plain_model_without_a_usable_number_gets_the_first(tmp_path: Path, version: str | None) -> None:
    write_legacy(tmp_path, mlflow_model_version=version)
    store = Store(tmp_path)
    publish_iris(store)
    assert [entry.version for entry in store.entries()] == [1, 2]


@pytest.mark.parametrize("raw", [b"not JSON", b"{}"])
def test_a_plain_model_that_could_not_be_served_is_put_aside(tmp_path: Path, raw: bytes) -> None:
    write_legacy(tmp_path)
    (tmp_path / MANIFEST).write_bytes(raw)
    model = (tmp_path / JOBLIB).read_bytes()
    store = Store(tmp_path)
    assert publish_iris(store).version == 1
    assert answer(store)[0] == "1"
    assert (tmp_path / f"replaced-{JOBLIB}").read_bytes() == model
    assert (tmp_path / f"replaced-{MANIFEST}").read_bytes() == raw
    assert all((tmp_path / name).is_symlink() for name in LEGACY_FILES)


def test_plain_files_beside_lost_pointers_survive_a_promotion(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store)
    for name in (CURRENT, *LEGACY_FILES):
        (tmp_path / name).unlink()
    write_legacy(tmp_path)
    store.promote(1)
    assert [(entry.version, entry.served) for entry in store.entries()] == [(1, True), (7, False)]


def test_a_store_that_lost_its_pointer_has_no_model_until_one_is_promoted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store)
    (tmp_path / CURRENT).unlink()
    assert store.current() is None
    with pytest.raises(StoreError, match=str(tmp_path)):
        store.roll_back()
    assert store.promote(1).served
    assert answer(store)[0] == "1"


def test_who_found_a_plain_model_and_reads_after_it_was_replaced_by_a_bundle_is_told_to_look_again(tmp_path: Path) -> None:
    write_legacy(tmp_path)
    store = Store(tmp_path)
    found = store.pointer()
    assert found is not None
    publish_iris(store)
    with pytest.raises(BundleRefused) as refused:
        store.read(found)
    assert (refused.value.reason, refused.value.final) == ("unreadable", False)
    assert answer(store)[0] == "8"
