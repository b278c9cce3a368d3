"""An emptied namespace comes back from an archive: signed models, pointer, history, MLflow's runs, versions, alias and users."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.artifacts.archive import verify
from tests.support.cluster import ROOT, CommandResult, kubectl, make
from tests.support.figures import note
from tests.support.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]

NAMESPACE = "backup"
DIGESTS = "cd /app/models; sha256sum bundles/*/* 2>/dev/null; readlink current; ls bundles 2>/dev/null; true"
TABLES = {
    "mlflow.db": (
        "SELECT run_uuid, name, status, artifact_uri FROM runs ORDER BY 1",
        "SELECT key, value, run_uuid FROM latest_metrics ORDER BY 1, 3, 2",
        "SELECT name, version, run_id, source, status FROM model_versions ORDER BY 1, 2",
        "SELECT name, alias, version FROM registered_model_aliases ORDER BY 1, 2",
    ),
    "auth.db": ("SELECT username, is_admin FROM users ORDER BY 1",),
}
PROGRAM = """
import contextlib, hashlib, json, os, sqlite3, sys
state = {}
for name, queries in json.loads(sys.argv[1]).items():
    with contextlib.closing(sqlite3.connect(f"file:/data/{name}?mode=ro", uri=True)) as connection:
        for query in queries:
            state[query] = [list(row) for row in connection.execute(query)]
for parent, _, names in os.walk("/data/artifacts"):
    for name in names:
        with open(os.path.join(parent, name), "rb") as file:
            state[os.path.join(parent, name)] = hashlib.sha256(file.read()).hexdigest()
print(json.dumps(state))
"""


def command(target: str, **variables: str) -> CommandResult:
    started = time.monotonic()
    result = make(target, K8S_NS=NAMESPACE, **variables)
    print(f"\n$ make {target} {' '.join(f'{name}={value}' for name, value in variables.items())}\n{result.output}")
    print(f"-- {time.monotonic() - started:.1f} s, exit code {result.code}")
    return result


def done(target: str, **variables: str) -> str:
    result = command(target, **variables)
    assert result.code == 0, result.output
    return result.output


def execute(workload: str, *arguments: str) -> str:
    process = subprocess.run(
        ["kubectl", "-n", NAMESPACE, "exec", workload, "--", *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def state() -> dict[str, Any]:
    """Digests of the store and its pointer, rows of MLflow's databases, digests of its artifacts."""
    (worker, *_) = kubectl("-n", NAMESPACE, "get", "pods", "-l", "app=iris-api,component=worker", "-o", "name").split()
    store = subprocess.run(
        ["kubectl", "-n", NAMESPACE, "exec", worker, "-c", "ray-worker", "--", "sh", "-c", DIGESTS],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout.splitlines()
    return {"store": sorted(store), **json.loads(execute("deployment/mlflow-server", "python", "-c", PROGRAM, json.dumps(TABLES)))}


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> str:
    """MLflow with users, signed models, a backup every night, and no port of the node."""
    folder = tmp_path_factory.mktemp("overlay").resolve()
    port = {"type": "ClusterIP", "ports": [{"name": "serve", "port": 8000, "targetPort": 8000}]}
    patch = json.dumps([{"op": "replace", "path": "/spec/serveService/spec", "value": port}])
    document = {
        "resources": [os.path.relpath(ROOT / "kuberay" / "overlays" / "mlflow-auth", folder)],
        "components": [os.path.relpath(ROOT / "kuberay" / "components" / name, folder) for name in ("signing", "backup-schedule")],
        "patches": [{"target": {"kind": "RayService", "name": "iris-api"}, "patch": patch}],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(document))
    return str(folder)


@pytest.fixture(scope="module")
def full(overlay: str, secret_file: Path) -> Iterator[dict[str, Any]]:
    """A namespace with two signed models, of which the first is served again; its state."""
    done("k8s-clean")
    done("k8s-signing-keys")
    done("k8s-deploy", OVERLAY=overlay, K8S_SECRET=str(secret_file))
    for _ in range(2):
        done("k8s-train")
    done("k8s-promote", VERSION="1")
    try:
        yield state()
    finally:
        done("k8s-clean")


def emptied(overlay: str, secrets: Path) -> None:
    """Remove everything, then the Secrets of the backup and the deployment, in the order of docs/how-to/backup.md."""
    done("k8s-clean")
    namespace = (ROOT / "kuberay" / "base" / "namespace.yaml").read_text().replace("name: mlops", f"name: {NAMESPACE}")
    kubectl("apply", "-f", "-", text=namespace)
    kubectl("-n", NAMESPACE, "create", "-f", str(secrets))
    done("k8s-deploy", OVERLAY=overlay, K8S_SECRET="/nowhere")


def test_a_namespace_comes_back_with_make(full: dict[str, Any], overlay: str, tmp_path: Path) -> None:
    archive, secrets = tmp_path / "all.tar", tmp_path / "secrets.json"
    started = time.monotonic()
    output = done("k8s-backup", TO=str(archive), ARGS=f"--secrets {secrets}")
    seconds = time.monotonic() - started
    assert "2 registered versions" in output
    assert archive.stat().st_mode & 0o777 == secrets.stat().st_mode & 0o777 == 0o600
    with open(archive, "rb") as file:
        assert [summary.part for summary in verify(file)] == ["models", "mlflow"]
    emptied(overlay, secrets)
    assert state() != full
    started = time.monotonic()
    output = done("k8s-restore", FROM=str(archive))
    note(f"backup {seconds:.1f} s, restore {time.monotonic() - started:.1f} s, {archive.stat().st_size / 1e6:.1f} MB")
    assert "every replica answers with version 1" in output
    assert state() == full
    done("k8s-test")

    refused = command("k8s-restore", FROM=str(archive))
    assert refused.code != 0
    assert "--merge" in refused.output
    assert state() == full
    merged = done("k8s-restore", FROM=str(archive), ARGS="--merge")
    assert "0 versions added" in merged
    assert "MLflow runs with" not in merged
    assert state() == full


def test_a_training_meanwhile_is_waited_for_by_nothing_and_breaks_nothing(full: dict[str, Any], tmp_path: Path) -> None:
    trained: list[CommandResult] = []
    training = threading.Thread(target=lambda: trained.append(make("k8s-train", K8S_NS=NAMESPACE)))
    training.start()
    count = 0
    while training.is_alive():
        archive = tmp_path / f"{count}.tar"
        done("k8s-backup", TO=str(archive))
        with open(archive, "rb") as file:
            assert len(verify(file)) == 2
        count += 1
    training.join()
    assert trained[0].code == 0, trained[0].output
    note(f"{count} backups during one training")
    assert not kubectl("-n", NAMESPACE, "get", "jobs", "-l", "app.kubernetes.io/part-of=iris-api", "-o", "name").count(
        "iris-backup"
    )


def test_the_nightly_backup_can_be_had_now_and_fetched(full: dict[str, Any], tmp_path: Path) -> None:
    kubectl("-n", NAMESPACE, "create", "job", "--from=cronjob/iris-backup-schedule", "iris-backup-now")
    kubectl("-n", NAMESPACE, "wait", "--for=condition=Complete", "job/iris-backup-now", "--timeout=240s")
    print(kubectl("-n", NAMESPACE, "logs", "job/iris-backup-now"))
    kubectl("apply", "-f", "-", text=here((ROOT / "kuberay" / "backup" / "archives-job.yaml").read_text()))
    kubectl("-n", NAMESPACE, "wait", "--for=condition=Ready", "pod", "-l", "job-name=iris-backup-archives", "--timeout=120s")
    *_, name = sorted(execute("job/iris-backup-archives", "ls", "/backups").split())
    archive = tmp_path / name
    with open(archive, "wb") as file:
        fetch = ["kubectl", "-n", NAMESPACE, "exec", "job/iris-backup-archives", "--", "cat", f"/backups/{name}"]
        subprocess.run(fetch, stdout=file, check=True, timeout=120)
    with open(archive, "rb") as file:
        models, mlflow = verify(file)
    assert {1, 2} <= set(models.details["versions"])
    assert mlflow.details["runs"] >= len(full[TABLES["mlflow.db"][0]])
    kubectl("-n", NAMESPACE, "delete", "job", "iris-backup-now", "iris-backup-archives")


def here(text: str) -> str:
    """A manifest for the namespace and the image of these tests."""
    image = os.environ.get("TRAIN_IMAGE", "iris-train:latest")
    return text.replace("namespace: mlops", f"namespace: {NAMESPACE}").replace("iris-train:latest", image)


def page_commands() -> list[str]:
    """The commands of docs/how-to/backup.md that need kubectl alone, in their order."""
    text = (ROOT / "docs" / "how-to" / "backup.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text[text.index("## With kubectl alone") : text.index("## Every night")], re.DOTALL)
    return [block.replace("-n mlops", f"-n {NAMESPACE}") for block in blocks]


def test_a_namespace_comes_back_with_kubectl_alone(full: dict[str, Any], overlay: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "kuberay", tmp_path / "kuberay")
    for file in (tmp_path / "kuberay" / "backup").iterdir():
        file.write_text(here(file.read_text()))
    secrets = tmp_path / "secrets.json"
    done("k8s-backup", TO=str(tmp_path / "other.tar"), ARGS=f"--secrets {secrets}")
    before = state()
    take, give = page_commands()

    def shell(script: str) -> None:
        process = subprocess.run(["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
        print(f"\n{script}\n{process.stdout}{process.stderr}")
        assert process.returncode == 0, process.stderr

    shell(take)
    emptied(overlay, secrets)
    shell(give)
    until(lambda: state() == before, seconds=60, every=2, what="the state before")
    done("k8s-test")
