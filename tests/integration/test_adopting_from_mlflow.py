"""A model that somebody logged in MLflow is adopted by its address, and recorded by the gate like a trained one."""

from __future__ import annotations

from pathlib import Path

import joblib
import mlflow
import pytest

from serve_app.artifacts.store import Store
from serve_app.cli import main
from tests.support.fitted_models import MIXED, classifier, table
from tests.support.mlflow_server import mlflow_server


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A server with the registered model `Churn`, whose alias is `champion`; three hundred rows were logged with it."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri)
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment_id=client.create_experiment("authors", artifact_location=str(folder / "files")))
    example = table()[[*MIXED, "unused"]].head(300)
    mlflow.sklearn.log_model(
        classifier("one-hot and logistic regression"),
        name="model",
        input_example=example,
        registered_model_name="Churn",
        serialization_format="cloudpickle",
    )
    client.set_registered_model_alias("Churn", "champion", "1")
    return uri


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_mlflow_is_adopted_by_its_alias_and_recorded_in_a_run(tmp_path: Path, tracking: str) -> None:
    table()[[*MIXED, "unused", "label"]].to_parquet(tmp_path / "rows.parquet", index=False)
    arguments = ["--sample", str(tmp_path / "rows.parquet"), "--target", "label", "--model-dir", str(tmp_path / "models")]
    flags = ["--tracking-uri", tracking, "--model-name", "Adopted", "--importance-seconds", "0"]
    assert main(["adopt", "models:/Churn@champion", *arguments, *flags]) == 0
    entry = Store(tmp_path / "models").entries()[0]
    assert entry.manifest is not None
    assert entry.manifest.mlflow_model_name == "Adopted"
    client = mlflow.MlflowClient(tracking_uri=tracking)
    assert str(client.get_model_version_by_alias("Adopted", "champion").version) == "1"


@pytest.mark.filterwarnings("ignore")
def test_the_address_of_the_run_is_printed_once_and_without_the_password(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = table()[[*MIXED, "unused", "label"]]
    rows.to_parquet(tmp_path / "rows.parquet", index=False)
    joblib.dump(classifier("one-hot and logistic regression"), tmp_path / "model.joblib")
    with mlflow_server(tmp_path / "server") as url:
        named = url.replace("//", "//author:secret-word@")
        flags = ["--target", "label", "--model-dir", str(tmp_path / "models"), "--tracking-uri", named, "--importance-seconds", "0"]
        assert main(["adopt", str(tmp_path / "model.joblib"), "--sample", str(tmp_path / "rows.parquet"), *flags]) == 0
        printed = capfd.readouterr()
        output = printed.out + printed.err
        assert output.count("/runs/") == 1
        assert "View run" not in output
        assert "secret-word" not in output
        address = next(word for word in output.split() if "/runs/" in word)
        assert address.startswith(url)
        run_id = address.rpartition("/")[2]
        assert mlflow.MlflowClient(tracking_uri=url).get_run(run_id).info.status == "FINISHED"


@pytest.mark.filterwarnings("ignore")
def test_the_logged_example_is_the_sample_when_none_is_given(
    tmp_path: Path, tracking: str, capfd: pytest.CaptureFixture[str]
) -> None:
    gate = ["--no-tracking", "--model-dir", str(tmp_path / "models")]
    assert main(["adopt", "models:/Churn/1", "--tracking-uri", tracking, *gate]) == 0
    assert "the sample has no labels" in capfd.readouterr().out


@pytest.mark.parametrize(
    "address", ["models:/Chrun@champion", "models:/Churn@other", "models:/Churn/7", "runs:/0123/model", "models:Churn"]
)
def test_a_wrong_address_is_one_sentence(tmp_path: Path, tracking: str, address: str, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tracking-uri", tracking, "--no-tracking", "--model-dir", str(tmp_path / "models")]
    assert main(["adopt", address, *arguments]) == 2
    assert capfd.readouterr().err.strip().splitlines()[-1].startswith("error: ")
    assert not Store(tmp_path / "models").entries()
