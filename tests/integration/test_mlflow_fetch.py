"""Models fetched from a real MLflow server by every form of address, and every mistake answered with a fix."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from serve_app.artifacts.mlflow_description import Column
from serve_app.errors import UsageError
from tests.support.mlflow_server import mlflow_server
from tests.support.server import free_port
from training.mlflow_model import fetch

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns of itself
TABLE = pd.DataFrame(
    {
        "income": [1000.5, 2000.0, None, 900.0],
        "visits": [1, 2, 3, 4],
        "city": ["Bonn", "Ulm", "Bonn", "Ulm"],
        "member": [True, False, True, False],
        "since": pd.to_datetime(["2024-01-01", "2024-02-01", "2024-03-01", "2024-04-01"]),
    }
)


@dataclass(frozen=True)
class Logged:
    """What the server of these tests holds."""

    uri: str
    run_id: str
    with_run: str
    without_run: str


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    folder = tmp_path_factory.mktemp("mlflow")
    (folder / "own_steps.py").write_text("raise RuntimeError('this file must not run')\n")
    model = LogisticRegression().fit(TABLE[["visits", "member"]], [0, 1, 0, 1])
    with mlflow_server(folder / "server") as uri:
        mlflow.set_tracking_uri(uri)
        free = mlflow.sklearn.log_model(
            model, name="free", serialization_format="skops", input_example=TABLE[["visits"]].to_numpy()
        )
        with mlflow.start_run() as run:
            mlflow.log_text("a note", "notes/readme.txt")
            model_info = mlflow.sklearn.log_model(
                model,
                name="churn",
                input_example=TABLE,
                signature=mlflow.models.infer_signature(TABLE),
                serialization_format="cloudpickle",
                code_paths=[str(folder / "own_steps.py")],
                registered_model_name="Churn",
            )
        client = mlflow.MlflowClient()
        client.set_registered_model_alias("Churn", "champion", "1")
        client.create_model_version("Churn", free.model_uri, model_id=free.model_id)
        client.transition_model_version_stage("Churn", "1", "Production")
        yield Logged(uri, run.info.run_id, model_info.model_id, free.model_id)


@pytest.mark.parametrize(
    "address",
    ["models:/Churn@champion", "models:/Churn/1", "models:/Churn/Production", "models:/{with_run}", "runs:/{run_id}/churn"],
)
def test_a_model_is_found_by_every_form_of_its_address(logged: Logged, tmp_path: Path, address: str) -> None:
    fetched = fetch(address.format(**vars(logged)), tmp_path / "model", tracking_uri=logged.uri)
    assert (fetched.flavor, fetched.file_format, fetched.run_id) == ("sklearn", "cloudpickle", logged.run_id)
    assert fetched.model_file.is_relative_to(tmp_path / "model")
    assert fetched.model_file.stat().st_size > 100
    assert fetched.libraries["scikit-learn"]


def test_signature_example_and_code_come_with_the_model_and_nothing_of_it_runs(logged: Logged, tmp_path: Path) -> None:
    fetched = fetch("models:/Churn@champion", tmp_path, tracking_uri=logged.uri)
    assert (fetched.address, fetched.name, fetched.version) == ("models:/Churn/1", "Churn", "1")
    assert fetched.columns == (
        Column("income", "double", required=False),
        Column("visits", "long"),
        Column("city", "string"),
        Column("member", "boolean"),
        Column("since", "datetime"),
    )
    assert fetched.example is not None
    pd.testing.assert_frame_equal(fetched.example, TABLE, check_dtype=False)
    kinds = {name: dtype.kind for name, dtype in fetched.example.dtypes.items()}
    assert kinds == {"income": "f", "visits": "i", "city": "O", "member": "b", "since": "M"}
    (code,) = fetched.code_paths
    assert (code / "own_steps.py").is_file()
    assert "own_steps" not in sys.modules


def test_a_model_without_a_run_is_the_newest_version_and_its_example_has_no_names(logged: Logged, tmp_path: Path) -> None:
    fetched = fetch("models:/Churn/latest", tmp_path / "1", tracking_uri=logged.uri)
    assert (fetched.version, fetched.run_id, fetched.file_format, fetched.columns) == ("2", None, "skops", None)
    assert fetched.example is not None
    assert fetched.example.shape == (4, 1)
    assert fetch(f"models:/{logged.without_run}", tmp_path / "2", tracking_uri=logged.uri).file_format == "skops"


@pytest.mark.parametrize(
    ("address", "fix"),
    [
        ("models:/Churm@champion", "models:/Churn@champion"),
        ("models:/Churn@chmpion", "models:/Churn@champion"),
        ("models:/Churn@other", "champion"),
        ("models:/Churn/7", "1, 2"),
        ("models:/Churn/Staging", "champion"),
        ("models:/Other/1", "Churn"),
        ("models:/m-" + "0" * 32, "log_model"),
        ("runs:/" + "0" * 32 + "/churn", "ID"),
        ("runs:/{run_id}/chrn", "churn"),
        ("runs:/{run_id}/zzz", "churn, notes"),
        ("runs:/{run_id}/notes", "readme.txt"),
    ],
)
def test_a_mistake_in_an_address_is_answered_with_what_there_is(logged: Logged, tmp_path: Path, address: str, fix: str) -> None:
    with pytest.raises(UsageError, match=fix) as refused:
        fetch(address.format(**vars(logged)), tmp_path, tracking_uri=logged.uri)
    assert "\n" not in str(refused.value)


def test_a_server_that_is_down_is_named(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UsageError, match=uri):
        fetch("models:/Churn@champion", tmp_path, tracking_uri=uri)
