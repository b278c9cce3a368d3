from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.names import GOLDEN, JOBLIB
from serve_app.artifacts.read_policy import ReadPolicy
from serve_app.artifacts.store import CURRENT, Entry, Store
from serve_app.errors import BundleRefused
from serve_app.inference.slot import Slot
from tests.support.models import (
    A_FLOWER,
    bundle_files,
    bundle_manifest,
    forest,
    iris_signature,
    logistic,
    publish_iris,
    write_legacy,
)
from tests.support.native import answer_row
from tests.support.policies import ALLOW_ALL, load_policy

BODY = orjson.dumps(A_FLOWER)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def slot(store: Store) -> Slot:
    return Slot(store, policy=ALLOW_ALL)


def version(slot: Slot) -> str | None:
    return slot.predictor.version if slot.predictor else None


def publish_wrong(store: Store) -> Entry:
    """A bundle that is whole and must not be served: its golden examples are another model's."""
    files = {**bundle_files(forest()), GOLDEN: bundle_files(forest(seed=9))[GOLDEN]}
    return store.publish(files, bundle_manifest())


def damage(entry: Entry) -> Callable[[], object]:
    """Take the model out of a published bundle; the function puts it back."""
    (entry.folder / JOBLIB).rename(entry.folder / "away")
    return lambda: (entry.folder / "away").rename(entry.folder / JOBLIB)


def refusals(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.getMessage() == "model refused" for record in caplog.records)


def test_an_empty_slot_says_that_there_is_no_model_and_takes_it_when_it_comes(store: Store, slot: Slot) -> None:
    assert not slot.refresh()
    assert (slot.predictor, slot.problem) == (None, "no model has been published yet")
    publish_iris(store)
    assert slot.refresh()
    assert (version(slot), slot.problem, slot.swaps) == ("1", None, 1)
    assert slot.loaded_at is not None
    assert slot.load_seconds > 0


def test_a_new_model_is_swapped_in_once(store: Store, slot: Slot) -> None:
    publish_iris(store)
    slot.refresh()
    first = slot.predictor
    assert not slot.refresh()
    assert slot.predictor is first
    publish_iris(store, logistic(), onnx=True)
    assert slot.refresh()
    assert (version(slot), slot.swaps) == ("2", 2)
    assert first is not None
    assert orjson.loads(answer_row(first, BODY))["prediction"] == "setosa"


def test_rolling_back_swaps_the_old_model_in(store: Store, slot: Slot) -> None:
    for _ in range(2):
        publish_iris(store)
    slot.refresh()
    store.roll_back()
    assert slot.refresh()
    assert version(slot) == "1"


def test_a_refused_candidate_leaves_the_old_model_and_says_why(store: Store, slot: Slot, caplog: pytest.LogCaptureFixture) -> None:
    publish_iris(store)
    slot.refresh()
    wrong = publish_wrong(store)
    assert not slot.refresh()
    assert version(slot) == "1"
    assert slot.refusal is not None
    assert (slot.refusal.candidate, slot.refusal.reason) == (wrong.folder.name, "golden")
    assert slot.problem == "the model does not repeat the answers recorded at training"
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert vars(record)["serving"] == "1"


def test_the_same_refused_candidate_is_not_opened_again(store: Store, slot: Slot, caplog: pytest.LogCaptureFixture) -> None:
    wrong = publish_wrong(store)
    slot.refresh()
    first = slot.refusal
    (wrong.folder / JOBLIB).unlink()  # who opens it again says that it is unreadable
    for _ in range(5):
        assert not slot.refresh()
    assert slot.refusal is first
    assert first is not None
    assert refusals(caplog) == 1


def test_a_candidate_that_cannot_be_read_now_is_taken_when_it_can(
    store: Store, slot: Slot, caplog: pytest.LogCaptureFixture
) -> None:
    repair = damage(publish_iris(store))
    for _ in range(3):
        assert not slot.refresh()
    assert slot.refusal is not None
    assert slot.refusal.reason == "unreadable"
    assert refusals(caplog) == 1
    repair()
    assert slot.refresh()
    assert (version(slot), slot.problem) == ("1", None)


def test_a_pointer_that_moves_back_ends_the_problem(store: Store, slot: Slot) -> None:
    publish_iris(store)
    slot.refresh()
    publish_wrong(store)
    slot.refresh()
    store.promote(1)
    assert not slot.refresh()
    assert (version(slot), slot.problem, slot.swaps) == ("1", None, 1)


def test_a_candidate_that_was_refused_is_looked_at_again_after_the_pointer_was_elsewhere(store: Store) -> None:
    publish_iris(store)
    publish_iris(store)
    strict, lenient = Slot(store, policy=load_policy(backend="onnx")), Slot(store, policy=ALLOW_ALL)
    assert not strict.refresh()
    assert lenient.refresh()
    assert strict.refusal is not None
    assert strict.refusal.reason == "forbidden"
    store.publish(bundle_files(forest(), onnx=True), bundle_manifest())
    assert strict.refresh()
    store.promote(2)
    assert not strict.refresh()
    assert (version(strict), strict.refusal.candidate) == ("3", f"2-{store.entries()[1].digest}")


def test_a_store_that_hiccups_between_does_not_hide_why_the_candidate_is_refused(store: Store, slot: Slot) -> None:
    publish_wrong(store)
    slot.refresh()
    refusal = slot.refusal
    (store.root / CURRENT).rename(store.root / "away")
    (store.root / CURRENT).mkdir()
    slot.refresh()
    assert slot.problem == "the store's pointer cannot be read (Invalid argument)"
    (store.root / CURRENT).rmdir()
    (store.root / "away").rename(store.root / CURRENT)
    slot.refresh()
    assert slot.refusal is refusal


def test_a_store_that_is_emptied_keeps_the_loaded_model_and_has_no_problem(store: Store, slot: Slot) -> None:
    publish_iris(store)
    slot.refresh()
    publish_wrong(store)
    slot.refresh()
    (store.root / CURRENT).unlink()
    assert not slot.refresh()
    assert (version(slot), slot.problem) == ("1", None)


def test_a_damaged_bundle_is_refused_for_good_and_the_next_one_is_taken(store: Store, slot: Slot) -> None:
    entry = publish_iris(store)
    (entry.folder / JOBLIB).unlink()
    (entry.folder / JOBLIB).write_bytes(b"something else")
    slot.refresh()
    assert slot.refusal is not None
    assert slot.refusal.reason == "digest"
    publish_iris(store)
    assert slot.refresh()
    assert version(slot) == "2"


def test_a_plain_model_is_followed_file_by_file_and_then_into_the_bundles(store: Store, slot: Slot) -> None:
    write_legacy(store.root)
    assert slot.refresh()
    assert version(slot) == "7"
    write_legacy(store.root, mlflow_model_version="8")
    assert slot.refresh()
    assert version(slot) == "8"
    (store.root / "metadata.json").write_text("{}")
    assert not slot.refresh()
    assert slot.refusal is not None
    assert slot.refusal.reason == "signature"
    write_legacy(store.root, mlflow_model_version="9")
    assert slot.refresh()
    publish_iris(store)
    assert slot.refresh()
    assert version(slot) == "10"


@pytest.mark.parametrize("damaged", [False, True])
def test_the_first_source_that_has_a_model_is_served(store: Store, tmp_path: Path, damaged: bool) -> None:
    second = Store(tmp_path / "second")
    publish_iris(second)
    slot = Slot(store, second, policy=ALLOW_ALL)
    assert slot.refresh()
    assert slot.predictor is not None
    assert slot.predictor.digest == second.entries()[0].digest
    entry = publish_iris(store, note="not the same bytes")
    if damaged:
        damage(entry)
    assert slot.refresh() is not damaged
    assert slot.predictor.digest == (second.entries()[0].digest if damaged else entry.digest)


class Broken:
    """A source whose every answer is a surprise."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def pointer(self) -> str | None:
        raise self.error

    def read(self, pointer: str, policy: ReadPolicy | None = None) -> Bundle:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [OSError("disk"), KeyError("x"), RecursionError(), MemoryError(), BundleRefused("unreadable", "not now", final=False)],
    ids=repr,
)
def test_no_source_can_make_a_refresh_raise(store: Store, error: Exception) -> None:
    publish_iris(store)
    slot = Slot(store, policy=ALLOW_ALL)
    slot.refresh()
    broken = Slot(Broken(error), store, policy=ALLOW_ALL)
    for _ in range(3):
        assert not broken.refresh()
    assert broken.problem
    assert version(slot) == "1"


def test_a_model_that_cannot_be_loaded_never_makes_a_refresh_raise(store: Store, slot: Slot) -> None:
    for files in ({JOBLIB: b"rubbish"}, {GOLDEN: b"rubbish"}, {"model.onnx": b"rubbish"}):
        store.publish({**bundle_files(forest()), **files}, bundle_manifest())
        assert not slot.refresh()
        assert slot.problem
    odd = bundle_manifest(iris_signature(classes=("a", "b")))
    store.publish(bundle_files(forest()), odd)
    assert not slot.refresh()
    store.publish(bundle_files(forest(), onnx=True), bundle_manifest(onnx=None))
    assert not slot.refresh()
    assert slot.predictor is None
    publish_iris(store)
    assert slot.refresh()


@pytest.fixture
def short_turns() -> Iterator[None]:
    """Threads take turns every 0.1 ms, not every 5 ms: more of their interleavings are seen, in less time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("short_turns")
def test_a_request_keeps_the_model_that_it_began_with(store: Store, slot: Slot) -> None:
    """Answers while the model is swapped again and again carry the numbers of the version that they name."""
    models = {str(number): estimator for number, estimator in enumerate((forest(), logistic(0.01)), start=1)}
    for estimator in models.values():
        publish_iris(store, estimator, onnx=True)
    slot.refresh()
    expected = {number: Slot(store, policy=ALLOW_ALL) for number in models}
    for number, other in expected.items():
        store.promote(int(number))
        other.refresh()
    right = {number: answer_row(other.predictor, BODY) for number, other in expected.items() if other.predictor}
    done = threading.Event()
    mixed: list[str] = []
    asked = 0

    def ask() -> None:
        nonlocal asked
        while not done.is_set():
            predictor = slot.predictor
            assert predictor is not None
            if answer_row(predictor, BODY) != right[predictor.version]:
                mixed.append(predictor.version)
            asked += 1

    thread = threading.Thread(target=ask)
    thread.start()
    for turn in range(20):
        store.promote(1 + turn % 2)
        assert slot.refresh()
    done.set()
    thread.join()
    assert mixed == []
    assert asked > 0


class Late:
    """A source that must not be asked."""

    def pointer(self) -> str | None:
        raise AssertionError("asked")

    def read(self, pointer: str, policy: ReadPolicy | None = None) -> Bundle:
        raise AssertionError("asked")


def test_a_store_that_loses_its_pointer_does_not_make_a_serving_slot_ask_elsewhere(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store, logistic(), onnx=True)
    slot = Slot(store, Late(), policy=ALLOW_ALL)
    assert slot.refresh()
    served = slot.predictor
    (tmp_path / CURRENT).unlink()
    assert not slot.refresh()
    assert slot.predictor is served
    assert slot.refusal is None
