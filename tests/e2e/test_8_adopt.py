"""Models that were fitted on this machine: adopted in the cluster, signed, served, or refused before they are published."""

from __future__ import annotations

import importlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import mlflow
import pytest

from kuberay.ctl import api_client
from kuberay.ctl.kube import MLFLOW_SERVICE, Cluster, Json
from tests.support import cluster
from tests.support.cluster import CommandResult, kubectl
from tests.support.figures import note
from tests.support.fitted_models import CLASSIFIERS, FITTED, MIXED, table
from tests.support.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

NAMESPACE = os.environ.get("K8S_NS", "mlops")
CLUSTER = Cluster(("kubectl",), NAMESPACE)
JOB = "iris-adopt-job"
ROWS = table()[FITTED:]
OWN_CODE = cluster.ROOT / "tests" / "support" / "own_sizes.py"


def make(target: str, **variables: str) -> CommandResult:
    return cluster.make(target, K8S_NS=NAMESPACE, **variables)


def mine(*arguments: str, text: str | None = None, check: bool = True) -> str:
    return kubectl("-n", NAMESPACE, *arguments, text=text, check=check)


@pytest.fixture(scope="module", autouse=True)
def signing(secret_file: Path) -> Iterator[None]:
    """The overlay `signing` on an empty namespace: MLflow, a signing key, and replicas that refuse unsigned models."""
    assert make("k8s-clean").code == 0
    keys = make("k8s-signing-keys")
    assert keys.code == 0, keys.output
    result = make("k8s-deploy", OVERLAY="signing", K8S_SECRET=str(secret_file))
    assert result.code == 0, result.output
    yield
    assert make("k8s-clean").code == 0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.joblib and rows.csv."""
    folder = tmp_path_factory.mktemp("files")
    joblib.dump(fitted(), folder / "model.joblib")
    ROWS[[*MIXED, "label"]].to_csv(folder / "rows.csv", index=False)
    return folder


def fitted(name: str = "one-hot and logistic regression") -> Any:
    return CLASSIFIERS[name]().fit(table()[MIXED][:FITTED], table().label[:FITTED])


def answers(count: int = 5) -> tuple[list[Json], set[str | None]]:
    """What the API answers for rows of the sample without gaps, and the versions of the model that did."""
    with api_client.connect(CLUSTER) as client:
        replies = [client.request("/predict", row) for row in json.loads(complete(count).to_json(orient="records"))]
    assert {reply.status for reply in replies} == {200}, replies
    return [reply.body for reply in replies], {reply.version for reply in replies}


def complete(count: int) -> Any:
    return ROWS[MIXED].dropna().head(count)


def test_a_model_of_this_machine_is_served_with_its_own_answers(files: Path) -> None:
    start = time.monotonic()
    result = make("k8s-adopt", MODEL=str(files / "model.joblib"), SAMPLE=str(files / "rows.csv"), ARGS="--target label --held-out")
    note(f"make k8s-adopt, until every replica answers with the model: {time.monotonic() - start:.0f} s")
    assert result.code == 0, result.output
    assert "every replica answers with version 1" in result.output
    assert "ONNX Runtime" in result.output
    bodies, versions = answers()
    assert versions == {"1"}
    model = joblib.load(files / "model.joblib")
    expected = model.predict_proba(complete(5))
    for body, row in zip(bodies, expected, strict=True):
        assert body["probabilities"] == pytest.approx(dict(zip(model.classes_, row, strict=True)), abs=1e-6)


def test_the_report_stays_in_the_log_of_the_job_and_a_carried_file_is_not_sent_again(files: Path) -> None:
    assert "version 1 (" in mine("logs", f"job/{JOB}")
    result = make("k8s-adopt", MODEL=str(files / "model.joblib"), SAMPLE="/data/in/rows.csv", ARGS="--target label --dry-run")
    assert result.code == 0, result.output
    assert "is in the claim already" in result.output
    assert answers(1)[1] == {"1"}


def test_a_model_that_replicas_would_refuse_is_not_published(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(OWN_CODE.parent))
    own_sizes = importlib.import_module("own_sizes")

    joblib.dump(own_sizes.Sizes().fit(table(), table().label), tmp_path / "own.joblib")
    flags = f"--target label --package {OWN_CODE}"
    result = make("k8s-adopt", MODEL=str(tmp_path / "own.joblib"), SAMPLE=str(files / "rows.csv"), ARGS=flags)
    assert result.code != 0
    sentence = [line for line in result.output.splitlines() if line.startswith("error: ")][-1]
    assert "exit code 3" in sentence
    assert "IRIS_ALLOW_JOBLIB" in sentence
    assert answers(1)[1] == {"1"}
    assert re.findall(r"^\*? +(\d+) ", make("k8s-models").output, re.MULTILINE) == ["1"]


def test_a_file_that_is_no_model_is_told_in_one_sentence(files: Path, tmp_path: Path) -> None:
    joblib.dump({"no": "model"}, tmp_path / "no.joblib")
    result = make("k8s-adopt", MODEL=str(tmp_path / "no.joblib"), SAMPLE=str(files / "rows.csv"), ARGS="--target label")
    assert result.code != 0
    sentence = [line for line in result.output.splitlines() if line.startswith("error: ")][-1]
    assert "exit code 2" in sentence
    assert answers(1)[1] == {"1"}


@pytest.mark.filterwarnings("ignore")  # MLflow warns of its own modules
def test_a_model_of_mlflow_in_the_cluster_is_adopted_by_its_alias(files: Path) -> None:
    with api_client.port_forward(CLUSTER, MLFLOW_SERVICE, 5000) as address:
        mlflow.set_tracking_uri(address)
        with mlflow.start_run():
            mlflow.sklearn.log_model(
                fitted("imputed texts"), name="model", registered_model_name="Own", serialization_format="pickle"
            )
        mlflow.MlflowClient().set_registered_model_alias("Own", "champion", "1")
    result = make("k8s-adopt", MODEL="models:/Own@champion", SAMPLE="/data/in/rows.csv", ARGS="--target label --tolerance 1")
    assert result.code == 0, result.output
    assert "every replica answers with version 2" in result.output
    assert answers(1)[1] == {"2"}


def test_the_same_works_with_kubectl_alone(files: Path) -> None:
    """As docs/how-to/adopt.md has it, in the namespace and with the image of this run; both files are in the claim."""
    image = os.environ.get("TRAIN_IMAGE", "iris-train:latest")
    arguments = ["/data/in/model.joblib", "--sample", "/data/in/rows.csv", "--target", "label", "--tolerance", "1"]
    patch = [
        {"op": "replace", "path": "/metadata/namespace", "value": NAMESPACE},
        {"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": arguments},
    ]
    job = kubectl("patch", "--local", "-f", "kuberay/adopt/job.yaml", "--type=json", "-p", json.dumps(patch), "-o", "json")
    mine("replace", "--force", "-f", "-", text=job.replace("iris-train:latest", image))
    mine("wait", "--for=condition=Complete", f"job/{JOB}", "--timeout=300s")
    assert "version 3 (" in mine("logs", f"job/{JOB}")
    until(lambda: answers(3)[1] == {"3"}, seconds=60, every=1, what="version 3")
