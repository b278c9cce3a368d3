"""What decides which model is served is said once, when a replica starts."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.artifacts.store import Store
from serve_app.inference.slot import Slot
from serve_app.settings import Settings, load_settings
from tests.support.models import publish_iris
from tests.support.server import free_port

URI = "MLFLOW_TRACKING_URI"
MakeSlot = Callable[[Settings], Slot]


@pytest.fixture(scope="module")
def make_slot() -> MakeSlot:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray Serve uses what Pydantic will remove
        from serve_app import deployment
    return deployment.make_slot


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("MODEL_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("IRIS_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("decides", ["store", "mlflow", "newest"])
def test_a_replica_says_once_what_decides_when_there_is_a_registry(
    make_slot: MakeSlot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, decides: str
) -> None:
    monkeypatch.setenv(URI, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("IRIS_MODEL_SOURCE", decides)
    caplog.set_level(logging.INFO)
    slot = make_slot(load_settings())
    assert slot.model_source == decides
    said = [record for record in caplog.records if getattr(record, "model_source", None) == decides]
    assert len(said) == 1
    assert ("IRIS_MODEL_SOURCE=mlflow" in said[0].getMessage()) is (decides == "store")


def test_without_a_registry_nothing_is_said(make_slot: MakeSlot, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert make_slot(load_settings()).model_source == "store"
    assert caplog.records == []


@pytest.mark.parametrize("decides", ["mlflow", "newest"])
def test_a_registry_that_never_answers_leaves_the_model_of_the_store(
    make_slot: MakeSlot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, decides: str
) -> None:
    entry = publish_iris(Store(tmp_path / "models"))
    monkeypatch.setenv(URI, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("IRIS_MODEL_SOURCE", decides)
    slot = make_slot(load_settings())
    assert slot.refresh(), slot.problem
    assert slot.predictor is not None
    assert slot.predictor.digest == entry.digest
    assert slot.registry_problem is not None
    assert not slot.refresh()
