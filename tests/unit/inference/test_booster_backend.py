from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.manifest import NativeForm
from serve_app.artifacts.names import JOBLIB, NATIVE, ONNX
from serve_app.artifacts.read_policy import model_file, used_files
from serve_app.artifacts.store import Store
from serve_app.errors import BundleRefused
from serve_app.inference.backends.booster_backend import open_booster
from serve_app.inference.backends.catboost_rows import UNSEEN_TEXT, catboost_rows
from serve_app.inference.policy import TrialLimits
from serve_app.inference.predictor import open_predictor
from serve_app.inference.slot import Slot
from tests.support import tables
from tests.support.apps import HEADERS, client_of
from tests.support.models import logistic_store
from tests.support.policies import ALLOW_ALL, load_policy
from training import publication as bundles
from training.boosters import to_native
from training.candidate import fit_candidate
from training.convert import Converted, convert
from training.dataset import load
from training.publication import Publication
from training.train_options import TrainOptions

pytest.importorskip("xgboost")
pytest.importorskip("lightgbm")
pytest.importorskip("catboost")
pytestmark = pytest.mark.filterwarnings("ignore")

FILES = {library: file for file, library in NATIVE.items()}
NO_PICKLE = load_policy(allow_joblib=False)


@cache
def customers_table() -> Any:
    return tables.customers()


def publication(folder: Path, library: str) -> Publication:
    """A trained booster of customers, which is to be served by its library."""
    dataset = load(tables.written(customers_table(), folder), target="stays")
    candidate = fit_candidate(dataset, library, {"n_estimators": 20}, random_state=1)
    converted = convert(candidate.estimator, candidate.signature, candidate.train, candidate.held_out)
    native = to_native(candidate.estimator, candidate.signature, candidate.held_out, candidate.scores)
    options = TrainOptions(estimator=library, no_tracking=True)
    return Publication(candidate, options, {}, 1, Converted(None, converted.facts, native), plots={}, importance={})


def published(store: Store, publication: Publication) -> Bundle:
    from tests.unit.training.test_publication import VERDICT

    manifest = bundles.manifest(publication, VERDICT, None)
    store.publish(bundles.files(publication, manifest), manifest)
    bundle = store.current()
    assert bundle is not None
    return bundle


@pytest.fixture(params=sorted(FILES))
def library(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_library_computes_the_very_numbers_of_the_pickle(tmp_path: Path, library: str) -> None:
    done = publication(tmp_path, library)
    bundle = published(Store(tmp_path / "models"), done)
    predictor = open_predictor(bundle, NO_PICKLE)
    pickled = open_predictor(bundle, load_policy(backend="scikit-learn"))
    assert (predictor.kind, pickled.kind) == (library, "scikit-learn")
    rows = np.vstack([done.candidate.train, np.full((1, done.candidate.train.shape[1]), np.nan)])
    rows[:5, [feature.kind == "category" for feature in predictor.signature.features]] = -1.0
    assert np.array_equal(predictor.scores(rows), pickled.scores(rows))
    alone = np.concatenate([predictor.row_scores(row[None]) for row in rows[:50]])
    assert np.array_equal(alone, predictor.scores(rows[:50]))
    assert not predictor.bundle.files.keys() & {JOBLIB, *NATIVE}


def test_requests_are_answered_without_a_pickle(tmp_path: Path, library: str) -> None:
    done = publication(tmp_path, library)
    store = Store(tmp_path / "models")
    published(store, done)
    rows = done.candidate.rows[:20]
    with client_of(store, policy=NO_PICKLE) as client:
        assert client.get("/model", headers=HEADERS).json()["predictor"] == library
        reply = client.post("/predict/batch", json={"instances": rows}, headers=HEADERS)
        single = client.post("/predict", json=rows[3], headers=HEADERS)
    assert reply.status_code == 200, reply.text
    classes = done.candidate.signature.class_names
    probabilities = [[answer["probabilities"][name] for name in classes] for answer in reply.json()["predictions"]]
    assert np.abs(np.array(probabilities) - done.candidate.scores[:20]).max() < 1e-7
    assert single.json()["prediction"] == reply.json()["predictions"][3]["prediction"]


def test_the_policy_decides_from_the_names_of_the_files() -> None:
    for file in NATIVE:
        names = (JOBLIB, file)
        assert model_file(names, NO_PICKLE) == file
        assert model_file((*names, ONNX), ALLOW_ALL) == ONNX
        assert model_file(names, load_policy(backend="scikit-learn")) == JOBLIB
        assert used_files(names, NO_PICKLE) == {file}
        assert used_files(names, None) == set(names)
        for policy in (load_policy(backend="onnx"), load_policy(backend="scikit-learn", allow_joblib=False)):
            with pytest.raises(BundleRefused) as refusal:
                model_file(names, policy)
            assert refusal.value.reason == "forbidden"


def test_a_replica_without_the_library_names_it_and_keeps_its_model(
    tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = logistic_store(tmp_path / "models")
    slot = Slot(store, policy=load_policy(allow_joblib=False))
    assert slot.refresh()
    published(store, publication(tmp_path, library))
    monkeypatch.setitem(sys.modules, library, None)
    assert not slot.refresh()
    assert slot.refusal is not None
    assert slot.refusal.reason == "libraries"
    assert f"iris-api[{library}]" in slot.refusal.message
    assert slot.predictor is not None
    assert slot.predictor.version == "1"
    assert slot.predictor.kind == "onnx"


def test_a_pickle_without_its_library_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = published(Store(tmp_path / "models"), publication(tmp_path, "xgboost"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "xgboost"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BundleRefused) as refusal:
        open_predictor(bundle, load_policy(backend="scikit-learn"))
    assert refusal.value.reason == "libraries"
    assert "xgboost" in str(refusal.value)


def test_a_booster_passes_its_trial(tmp_path: Path, library: str) -> None:
    store = Store(tmp_path / "models")
    published(store, publication(tmp_path, library))
    slot = Slot(store, policy=load_policy(allow_joblib=False, trial=TrialLimits(120, memory_share=0.5)))
    assert slot.refresh(), slot.problem
    assert slot.predictor is not None
    assert slot.predictor.kind == library


def changed(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle with another description of its native form."""
    assert bundle.manifest.native is not None
    form = msgspec.structs.replace(bundle.manifest.native, **changes)
    return replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, native=form))


def test_a_wrong_description_is_refused(tmp_path: Path, library: str) -> None:
    bundle = published(Store(tmp_path / "models"), publication(tmp_path, library))
    assert bundle.signature is not None
    narrow = replace(bundle.signature, features=bundle.signature.features[:-1])
    no_form = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, native=None))
    cases = [
        (changed(bundle, order=(0, 0)), "manifest"),
        (changed(bundle, order=(0, 2)), "manifest"),
        (changed(bundle, dates=True), "manifest"),
        (changed(bundle, file="model.onnx"), "manifest"),
        (no_form, "manifest"),
        (replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, signature=narrow)), "signature"),
        (replace(bundle, files={**bundle.files, FILES[library]: b"not a model"}), "load"),
        (replace(bundle, files={**bundle.files, FILES[library]: bundle.files[FILES[library]][:-40]}), "load"),
    ]
    for wrong, reason in cases:
        with pytest.raises(BundleRefused) as refusal:
            open_booster(wrong, FILES[library])
        assert refusal.value.reason == reason, str(refusal.value)
    reversed_order = open_booster(changed(bundle, order=(1, 0)), FILES[library])[0]
    straight = open_booster(bundle, FILES[library])[0]
    rows = np.zeros((4, len(bundle.signature.features)))
    assert np.array_equal(reversed_order.scores(rows), straight.scores(rows)[:, ::-1])


def test_a_manifest_with_a_wrong_form_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        NativeForm.from_dict({"file": "model.cbm", "library": "catboost", "version": 1})
    form = NativeForm.from_dict({"file": "model.cbm", "library": "catboost", "version": "1.2", "order": [1, 0], "later": 3})
    assert (form.order, form.extra) == ((1, 0), {"later": 3})
    assert form.to_dict() == {"file": "model.cbm", "library": "catboost", "version": "1.2", "order": [1, 0], "later": 3}


def test_rows_of_catboost_hold_whole_numbers_or_texts() -> None:
    matrix = np.array([[0.5, 1.0], [np.nan, -1.0], [2.0, np.nan]])
    assert catboost_rows(matrix, []) is matrix
    rows = catboost_rows(matrix, [1])
    assert [row[1] for row in rows] == [1, -1, -2]
    assert {type(row[1]) for row in rows} == {int}
    assert np.isnan(rows[1][0])
    assert [row[1] for row in catboost_rows(matrix, [1], [["a", "b"]])] == ["b", UNSEEN_TEXT, UNSEEN_TEXT]
    assert [row[1] for row in catboost_rows(matrix, [1], [["a", "b"]], "none")] == ["b", UNSEEN_TEXT, "none"]
