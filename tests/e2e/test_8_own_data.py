"""The user's own table: carried to the cluster, trained, predicted, scored, trained again on the schedule."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuberay.ctl import api_client
from kuberay.ctl.kube import Cluster
from tests.support import cluster
from tests.support.cluster import CommandResult, kubectl
from tests.support.figures import note
from tests.support.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

NAMESPACE = os.environ.get("K8S_NS", "mlops")
FLAT = {"area": 80.0, "rooms": 3, "city": "Ulm"}
SCHEDULE = "iris-train-schedule"


def make(target: str, **variables: str) -> CommandResult:
    return cluster.make(target, K8S_NS=NAMESPACE, **variables)


def mine(*arguments: str, text: str | None = None, check: bool = True) -> str:
    return kubectl("-n", NAMESPACE, *arguments, text=text, check=check)


@pytest.fixture(scope="module", autouse=True)
def scheduled(secret_file: Path) -> Iterator[None]:
    """The overlay `schedule` on an empty namespace."""
    assert make("k8s-clean").code == 0
    result = make("k8s-deploy", OVERLAY="schedule", K8S_SECRET=str(secret_file))
    assert result.code == 0, result.output
    yield
    assert make("k8s-clean").code == 0


@pytest.fixture(scope="module")
def flats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flats(tmp_path_factory.mktemp("tables") / "flats.csv")


def write_flats(file: Path, *, area: str = "area", rows: int = 600) -> Path:
    """A table of flats whose price follows from its columns."""
    rng = random.Random(1)
    lines = [f"id,{area},rooms,city,price"]
    for number in range(rows):
        size, rooms, city = rng.uniform(20, 200), rng.randint(1, 6), rng.choice(["Bern", "Gent", "Ulm"])
        lines.append(f"{number},{size:.1f},{rooms},{city},{size * (3 if city == 'Bern' else 2) + rooms * 10:.1f}")
    file.write_text("\n".join(lines) + "\n")
    return file


def price() -> tuple[float, str | None]:
    """What the API predicts for a flat of 190, and the version of the model."""
    with api_client.connect(Cluster(("kubectl",), NAMESPACE)) as client:
        response = client.request("/predict", FLAT)
    assert response.status == 200, response.body
    return float(response.body["prediction"]), response.version


def ended(kind: str, name: str) -> str:
    """`True` of the condition Complete or Failed of a Job, as its type; empty while it runs."""
    conditions = cluster.get(kind, name, NAMESPACE).get("status", {}).get("conditions", [])
    return next((one["type"] for one in conditions if one["status"] == "True" and one["type"] in ("Complete", "Failed")), "")


def run_schedule(name: str) -> str:
    """Start a run of the schedule by hand; how it ended."""
    mine("create", "job", name, f"--from=cronjob/{SCHEDULE}")
    start = time.monotonic()
    outcome = until(lambda: ended("job", name), seconds=400, every=1, what=f"the end of {name}")
    note(f"{name}: {outcome} after {time.monotonic() - start:.0f} s")
    return outcome


def test_a_table_of_this_machine_is_trained_and_predicted(flats: Path) -> None:
    result = make("k8s-train", DATA=str(flats), ARGS="--target price --drop id")
    assert result.code == 0, result.output
    value, version = price()
    assert version == "1"
    assert value == pytest.approx(190, rel=0.15)
    again = make("k8s-train", DATA=str(flats), ARGS="--target price --drop id --tolerance 1")
    assert again.code == 0, again.output
    assert "is in the claim already" in again.output
    assert price()[1] == "2"


def test_kubectl_alone_shows_the_output_of_a_training(flats: Path) -> None:
    assert "is served from /app/models" in mine("logs", "job/iris-train-job")
    assert make("k8s-train", DATA="/data/in/nothing.csv", ARGS="--target price").code != 0
    assert cluster.get("rayjob", "iris-train-job", NAMESPACE)["status"]["jobStatus"] == "FAILED"
    message = mine("get", "rayjob", "iris-train-job", "-o", "jsonpath={.status.message}")
    assert "error: /data/in/nothing.csv does not exist" in message
    assert "error: /data/in/nothing.csv does not exist" in mine("logs", "job/iris-train-job")
    assert price()[1] == "2"


def test_the_same_works_with_kubectl_alone(flats: Path) -> None:
    """As docs/how-to/own-data.md has it, in the namespace and with the image of this run."""
    image = os.environ.get("TRAIN_IMAGE", "iris-train:latest")
    job = (cluster.ROOT / "kuberay" / "data" / "files-job.yaml").read_text()
    mine("apply", "-f", "-", text=job.replace("mlops", NAMESPACE).replace("iris-train:latest", image))
    mine("wait", "--for=condition=Ready", "pod", "-l", "app=iris-data", "--timeout=120s")
    target = f"kubectl exec -i -n {NAMESPACE} job/iris-data"
    carry = f'{{ cat "$0"; sleep 5; }} | {target} -- sh -c "head -c $(wc -c < "$0") > /data/in/plain.csv"'
    subprocess.run(["bash", "-c", carry, str(flats)], check=True)
    assert mine("exec", "job/iris-data", "--", "sha256sum", "/data/in/plain.csv").split()[0] == digest(flats)
    mine("delete", "job", "iris-data")
    patch = {
        "metadata": {"namespace": NAMESPACE},
        "spec": {"entrypoint": "python -m training --data /data/in/plain.csv --target price --drop id --tolerance 1"},
    }
    rayjob = kubectl(
        "patch", "--local", "-f", "kuberay/train/rayjob.yaml", "--type=merge", "-p", json.dumps(patch), "-o", "json"
    ).replace("iris-train:latest", image)
    mine("replace", "--force", "-f", "-", text=rayjob)
    mine("wait", "--for=jsonpath={.status.jobStatus}=SUCCEEDED", "rayjob/iris-train-job", "--timeout=300s")
    until(lambda: price()[1] == "3", seconds=60, every=1, what="version 3")


def test_an_interrupted_transfer_goes_on_and_one_without_room_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "large.csv"
    with table.open("wb") as stream:
        for _ in range(400):
            stream.write(os.urandom(1 << 20))
    program = "import sys; from kuberay.ctl import data, kube; data.carry(kube.Cluster.from_environment(), sys.argv[1])"
    command = ["python3", "-c", program, str(table)]
    environment = {**os.environ, "K8S_NS": NAMESPACE}
    with subprocess.Popen(command, cwd=cluster.ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("%" in line for line in process.stdout), "no progress"
        process.kill()
    done = subprocess.run(command, cwd=cluster.ROOT, env=environment, capture_output=True, text=True, check=True, timeout=600)
    assert "are in the claim, the rest follows" in done.stdout
    assert digest(table)[:12] in done.stdout
    with table.open("r+b") as stream:
        stream.truncate(1 << 42)
    refused = subprocess.run(command, cwd=cluster.ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert "enlarge the claim" in refused.stderr
    assert make("k8s-data", ARGS="remove in/large.csv").code == 0


def test_a_table_is_scored_and_the_results_are_fetched(flats: Path, tmp_path: Path) -> None:
    result = make("k8s-score", DATA=str(flats), ARGS="--keep id --format csv")
    assert result.code == 0, result.output
    assert re.search(r"out/flats/part-\S+\.csv", make("k8s-data").output)
    fetched = make("k8s-data", ARGS=f"get out/flats {tmp_path}")
    assert fetched.code == 0, fetched.output
    rows = (tmp_path / "flats" / "part-000000.csv").read_text().splitlines()
    assert len(rows) == 601


def test_a_scheduled_run_trains_what_the_configmap_names(flats: Path) -> None:
    data = {
        "IRIS_TRAINING_DATA": "/data/in/flats.csv",
        "IRIS_TRAINING_TARGET": "price",
        "IRIS_TRAINING_FLAGS": "--drop id --tolerance 1",
    }
    mine("patch", "configmap", "iris-training", "--type=merge", "-p", json.dumps({"data": data}))
    assert run_schedule("run-1") == "Complete"
    assert cluster.get("rayjob", "run-1-ray", NAMESPACE)["status"]["jobStatus"] == "SUCCEEDED"
    until(lambda: price()[1] == "4", seconds=60, every=1, what="version 4")
    status = make("k8s-status").output
    assert re.search(r"last run: \S+, succeeded", status)
    # By hand, the settings are the defaults, and a table on the command line stands for itself.
    by_hand = make("k8s-train", ARGS="--tolerance 2")
    assert by_hand.code == 0, by_hand.output
    assert price()[1] == "5"


def test_new_data_that_break_the_contract_leave_the_served_model(tmp_path: Path) -> None:
    program = "import sys; from kuberay.ctl import data, kube; data.carry(kube.Cluster.from_environment(), sys.argv[1])"
    table = write_flats(tmp_path / "flats.csv", area="size")
    subprocess.run(["python3", "-c", program, str(table)], cwd=cluster.ROOT, env={**os.environ, "K8S_NS": NAMESPACE}, check=True)
    assert run_schedule("run-2") == "Failed"
    assert cluster.get("rayjob", "run-2-ray", NAMESPACE)["status"]["jobStatus"] == "FAILED"
    assert "'area' is missing" in mine("logs", "job/run-2")
    status = make("k8s-status").output
    assert re.search(r"last failure: \S+: the table differs .*'area' is missing", status)
    assert re.search(r"last success: \d{4}-", status)
    assert price()[1] == "5"


def test_a_run_that_is_due_while_another_trains_is_left_out() -> None:
    mine(
        "patch",
        "configmap",
        "iris-training",
        "--type=merge",
        "-p",
        json.dumps({"data": {"IRIS_TRAINING_FLAGS": "--drop id --search 20"}}),
    )
    mine("patch", "cronjob", SCHEDULE, "--type=merge", "-p", json.dumps({"spec": {"schedule": "* * * * *"}}))
    try:
        until(lambda: scheduled_jobs(), seconds=90, every=1, what="a scheduled run")
        (first,) = scheduled_jobs()
        deadline = time.monotonic() + 130
        while time.monotonic() < deadline and not ended("job", first):
            assert scheduled_jobs() == [first]
            assert len([name for name in names("rayjobs") if name.startswith(f"{SCHEDULE}-")]) <= 1
            time.sleep(2)
    finally:
        mine("patch", "cronjob", SCHEDULE, "--type=merge", "-p", json.dumps({"spec": {"suspend": True}}))
    mine("delete", "job", first)
    until(lambda: f"{first}-ray" not in names("rayjobs"), seconds=120, every=1, what="the end of the training with its Job")


def names(kind: str) -> list[str]:
    return mine("get", kind, "-o", "jsonpath={.items[*].metadata.name}").split()


def scheduled_jobs() -> list[str]:
    return [name for name in names("jobs") if re.fullmatch(rf"{SCHEDULE}-\d+", name)]


def digest(file: Path) -> str:
    return subprocess.run(["sha256sum", str(file)], capture_output=True, text=True, check=True).stdout.split()[0]
