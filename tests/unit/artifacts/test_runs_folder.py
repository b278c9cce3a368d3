from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.artifacts.runs_folder import RunsFolder
from serve_app.artifacts.store import Store
from serve_app.errors import BundleRefused
from serve_app.inference.slot import Slot
from tests.support.models import publish_iris
from tests.support.policies import ALLOW_ALL


@pytest.mark.parametrize("runs", [".", "mlruns"])
def test_a_folder_of_mlflow_runs_is_named_with_the_command_that_brings_them_into_a_database(tmp_path: Path, runs: str) -> None:
    (tmp_path / runs / "0").mkdir(parents=True)
    (tmp_path / runs / "0" / "meta.yaml").write_text("experiment_id: '0'\n")
    with pytest.raises(BundleRefused) as refused:
        RunsFolder(tmp_path).pointer()
    assert f"mlflow migrate-filestore --source {tmp_path / runs} " in str(refused.value)


def test_a_store_beside_runs_is_served(tmp_path: Path) -> None:
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("experiment_id: '0'\n")
    slot = Slot(Store(tmp_path), RunsFolder(tmp_path), policy=ALLOW_ALL)
    assert not slot.refresh()
    assert "migrate-filestore" in (slot.problem or "")
    publish_iris(Store(tmp_path), onnx=True)
    assert slot.refresh()
    assert slot.problem is None


def test_an_empty_store_and_one_with_bundles_are_no_folder_of_runs(tmp_path: Path) -> None:
    RunsFolder(tmp_path).pointer()
    RunsFolder(tmp_path / "missing").pointer()
    publish_iris(Store(tmp_path))
    RunsFolder(tmp_path).pointer()
