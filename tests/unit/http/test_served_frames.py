"""Models that take a frame or texts, served over HTTP: the answers are those of their authors."""

from __future__ import annotations

import asyncio
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.listing import row
from serve_app.artifacts.manifest import Manifest
from serve_app.artifacts.names import GOLDEN
from serve_app.artifacts.signature import TEXT_LENGTH, Feature
from serve_app.artifacts.store import Store
from serve_app.errors import BundleRefused
from serve_app.inference.batching import AdaptiveBatcher
from serve_app.inference.policy import TrialLimits
from serve_app.inference.predictor import open_predictor
from serve_app.inference.slot import Slot
from serve_app.protocols.decode import PIECE_BYTES
from serve_app.telemetry.collector import MetricsCollector
from tests.support.apps import HEADERS, client_of
from tests.support.backends import counting
from tests.support.frame_models import (
    ORDERS,
    TEXTS,
    frame_files,
    frame_manifest,
    json_of,
    orders,
    orders_bundle,
    orders_model,
    text_model,
)
from tests.support.models import bundle_files, bundle_manifest, iris_signature, logistic, publish_iris
from tests.support.policies import ALLOW_ALL, load_policy
from training.reference import reference


def text_bundle(**changes: Any) -> tuple[dict[str, bytes], Manifest]:
    """Files and manifest of the bundle of `text_model`, which takes objects by position."""
    table = orders()[list(TEXTS.names)]
    expected = text_model().predict(table[:20].astype({"pieces": float}).to_numpy(dtype=object))
    return frame_files(text_model(), table[:20], expected), frame_manifest(TEXTS, None, **changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def test_a_frame_model_answers_single_rows_and_batches_as_its_author_would(store: Store) -> None:
    store.publish(*orders_bundle())
    table = orders()[20:60]
    with client_of(store) as client:
        assert client.get("/model", headers=HEADERS).status_code == 200
        assert client.app_state["slot"].predictor.kind == "frame"
        rows = json_of(table)
        batch = client.post("/predict/batch", json={"instances": rows}, headers=HEADERS).json()["predictions"]
        single = [client.post("/predict", json=row, headers=HEADERS).json() for row in rows]
    model = orders_model()
    assert [list(answer["probabilities"].values()) for answer in batch] == model.predict_proba(table).tolist()
    alone = [model.predict_proba(table[at : at + 1])[0].tolist() for at in range(len(table))]
    assert [list(answer["probabilities"].values()) for answer in single] == alone
    assert [answer["prediction"] for answer in single] == model.predict(table).tolist()


def test_a_model_of_texts_by_position_needs_no_frame(store: Store) -> None:
    store.publish(*text_bundle())
    table = orders()[list(TEXTS.names)]
    expected = text_model().predict(table.astype({"pieces": float}).to_numpy(dtype=object))
    with client_of(store) as client:
        assert client.app_state["slot"].predictor.kind == "scikit-learn"
        rows = json_of(table)
        batch = client.post("/predict/batch", json={"instances": rows}, headers=HEADERS).json()["predictions"]
        single = client.post("/predict", json=rows[1], headers=HEADERS).json()
    assert [answer["prediction"] for answer in batch] == expected.tolist()
    assert single["prediction"] == pytest.approx(expected[1], rel=1e-14)


def test_a_large_batch_of_texts_is_read_in_pieces_with_the_same_answers(store: Store) -> None:
    store.publish(*text_bundle())
    rows = json_of(orders()[list(TEXTS.names)])
    large = [{**row, "note": f"{row['note']} {'word ' * 100}"} for row in rows]
    assert len(orjson.dumps({"instances": large})) > PIECE_BYTES
    with client_of(store) as client:
        reply = client.post("/predict/batch", json={"instances": large}, headers=HEADERS).json()["predictions"]
        slow = [{**row, "pieces": str(row["pieces"])} for row in large]  # numbers as texts are read by the careful reader
        again = client.post("/predict/batch", json={"instances": slow}, headers=HEADERS).json()["predictions"]
        some = client.post("/predict/batch", json={"instances": large[150:160]}, headers=HEADERS).json()["predictions"]
    assert again == reply
    assert [answer["prediction"] for answer in reply[150:160]] == pytest.approx(
        [answer["prediction"] for answer in some], rel=1e-12
    )


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"note": "x" * (TEXT_LENGTH + 1)}, "too_long"),
        ({"note": 5}, "type"),
        ({"note": None}, "type"),
        ({"pieces": "many"}, "type"),
    ],
    ids=["long", "number", "null", "other column"],
)
def test_a_wrong_text_is_422_and_names_its_field(store: Store, changes: dict[str, Any], code: str) -> None:
    store.publish(*text_bundle())
    row = {**json_of(orders()[:1][list(TEXTS.names)])[0], **changes}
    with client_of(store) as client:
        for path, body, prefix in (("/predict", row, ""), ("/predict/batch", {"instances": [row]}, "instances[0].")):
            reply = client.post(path, json=body, headers=HEADERS)
            assert reply.status_code == 422
            assert [(error["field"], error["code"]) for error in reply.json()["errors"]] == [(prefix + next(iter(changes)), code)]


def test_the_openapi_document_tells_the_longest_text_and_its_example_is_answered(store: Store) -> None:
    store.publish(*orders_bundle())
    with client_of(store) as client:
        row = client.get("/openapi.json").json()["components"]["schemas"]["Row"]
        assert row["properties"]["note"] == {"type": "string", "maxLength": 200}
        assert client.post("/predict", json=row["example"], headers=HEADERS).status_code == 200


async def test_rows_that_wait_together_share_a_call_on_one_frame() -> None:
    predictor, calls = counting(open_predictor(Bundle("1", "0" * 64, orders_bundle()[1], {}, orders_bundle()[0]), ALLOW_ALL))
    assert predictor.slow
    matrix = read_rows(ORDERS, json_of(orders()[:32]))
    batcher = AdaptiveBatcher()
    found = await asyncio.gather(*(batcher.scores(predictor, matrix[at : at + 1]) for at in range(32)))
    assert len(calls) < 32
    np.testing.assert_allclose(np.concatenate(found), orders_model().predict_proba(orders()[:32]), rtol=1e-13)


def test_the_lengths_of_texts_are_compared_with_those_of_training(store: Store) -> None:
    table = orders()[list(TEXTS.names)]
    document = reference(table, table.pieces.to_numpy(), TEXTS)
    files, manifest = text_bundle(reference=document)
    predictor = open_predictor(Bundle("1", "0" * 64, manifest, {}, files), ALLOW_ALL)
    slot = Slot(store, policy=ALLOW_ALL)
    slot.predictor = predictor
    collector = MetricsCollector(slot)
    matrix = read_rows(TEXTS, json_of(table))
    collector.predicted(predictor, matrix, predictor.scores(matrix))
    collector.flush()
    counts = collector.state.bins["1"]
    assert [bins.name for bins in counts.reference.features] == list(TEXTS.names)
    assert counts.features[0].tolist() == document["features"]["note"]["counts"]
    assert counts.features[2][-1] == table.price.isna().sum()


def test_the_collector_keeps_no_text_of_a_request(store: Store) -> None:
    files, manifest = text_bundle()
    predictor = open_predictor(Bundle("1", "0" * 64, manifest, {}, files), ALLOW_ALL)
    collector = MetricsCollector(Slot(store, policy=ALLOW_ALL))
    matrix = read_rows(TEXTS, json_of(orders()[:3][list(TEXTS.names)]))
    collector.predicted(predictor, matrix, predictor.scores(matrix))
    assert [kept.dtype for kept in collector._matrices] == [np.float64]


def test_the_list_of_models_tells_which_take_a_frame(store: Store) -> None:
    entries = [store.publish(*orders_bundle()), store.publish(*text_bundle()), publish_iris(store, onnx=True)]
    assert [row(entry)["predictor"] for entry in entries] == ["frame", "scikit-learn", "onnx"]


def test_an_onnx_form_that_would_have_to_take_texts_is_refused(store: Store) -> None:
    signature = iris_signature()
    texts = replace(signature, features=(Feature("sepal_length", "text"), *signature.features[1:]))
    files = bundle_files(logistic(), onnx=True)
    for kept in (files, {name: data for name, data in files.items() if name != GOLDEN}):
        with pytest.raises(BundleRefused):
            open_predictor(Bundle("1", "0" * 64, bundle_manifest(texts), {}, kept), ALLOW_ALL)


def test_a_replica_without_pandas_says_what_it_lacks_and_keeps_serving(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_iris(store, onnx=True)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "pandas" else find(name, *more))
    with client_of(store) as client:
        store.publish(*orders_bundle())
        slot = client.app_state["slot"]
        assert not slot.refresh()
        assert slot.predictor.version == "1"
        assert slot.refusal.reason == "libraries"
        assert "pandas" in slot.problem


def test_a_frame_model_passes_its_trial_in_a_process_of_its_own(store: Store) -> None:
    store.publish(*orders_bundle())
    with client_of(store, policy=load_policy(trial=TrialLimits(120.0, memory_share=0.5))) as client:
        slot = client.app_state["slot"]
        assert slot.problem is None
        assert slot.predictor.kind == "frame"
