"""`make k8s-backup` and `k8s-restore` with folders for claims. The commands of the Jobs are real; the transfer may break."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from kuberay.ctl import backup, manifests
from kuberay.ctl.kube import Cluster, CommandError, Json
from serve_app.artifacts.archive import verify
from serve_app.artifacts.store import Store
from tests.manifests.shipped import one, pod_templates
from tests.support.archives import mlflow_folder, runs_of
from tests.support.models import publish_iris
from tests.support.stores import publish, served

PROGRAM = Path(__file__).resolve().parents[1] / "support" / "kubectl_of_folders.py"


def namespace(root: Path) -> Cluster:
    return Cluster((sys.executable, str(PROGRAM), str(root)), "team-a")


@pytest.fixture(autouse=True)
def rendered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The Jobs without kustomize, and a folder to work in."""

    def build(_: Cluster, source: Path) -> list[Json]:
        return [{"kind": "Job", "metadata": {"name": f"iris-backup-{source.stem.removesuffix('-job')}"}}]

    monkeypatch.setattr(manifests, "build", build)
    for name in ("IRIS_VERIFY_KEY", "IRIS_PREDICTOR", "IRIS_ALLOW_JOBLIB"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A namespace with two models, two runs and a table."""
    root = tmp_path / "full"
    for _ in range(2):
        publish_iris(Store(root / "models-pvc"))
    mlflow_folder(root / "mlflow-pvc", runs=["r1", "r2"])
    (root / "data-pvc").mkdir()
    (root / "data-pvc" / "t.csv").write_text("a\n1\n")
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, (1, 1))
    return root


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A namespace that was deployed and never trained in."""
    root = tmp_path / "empty"
    for claim in ("models-pvc", "data-pvc"):
        (root / claim).mkdir(parents=True)
    mlflow_folder(root / "mlflow-pvc")
    return root


def archive_of(root: Path, **options: bool) -> str:
    backup.backup(namespace(root), "all.tar", **{"data": False, "secrets_to": "", **options})  # type: ignore[arg-type]
    return "all.tar"


def test_a_namespace_comes_back_in_another(full: Path, empty: Path) -> None:
    archive = archive_of(full, data=True)
    backup.restore(namespace(empty), archive, merge=False)
    before, after = Store(full / "models-pvc"), Store(empty / "models-pvc")
    assert [(e.version, e.digest, e.served) for e in after.entries()] == [(e.version, e.digest, e.served) for e in before.entries()]
    assert runs_of(empty / "mlflow-pvc") == ["r1", "r2"]
    assert (empty / "data-pvc" / "t.csv").read_text() == "a\n1\n"


def test_an_archive_is_for_its_owner_alone_and_named_by_namespace_and_time(full: Path) -> None:
    backup.backup(namespace(full), "", data=False, secrets_to="")
    (file,) = Path().iterdir()
    assert file.match("iris-api-team-a-*T*Z.tar")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with open(file, "rb") as stream:
        assert [summary.part for summary in verify(stream)] == ["models", "mlflow"]


@pytest.mark.parametrize("fault", ["cut", "flip"])
def test_a_transfer_that_breaks_is_tried_again(fault: str, full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (full / "faults").write_text(fault)
    archive = archive_of(full)
    with open(archive, "rb") as stream:
        assert len(verify(stream)) == 2
    assert "attempt 2" in capsys.readouterr().out


def test_a_transfer_that_breaks_each_time_leaves_no_file(full: Path) -> None:
    (full / "faults").write_text("cut " * 9)
    with pytest.raises(CommandError, match="transfer failed"):
        archive_of(full)
    assert list(Path().iterdir()) == []


def test_the_jobs_are_removed_whatever_happens(full: Path) -> None:
    (full / "faults").write_text("cut " * 9)
    with pytest.raises(CommandError):
        archive_of(full)
    deleted = [call for call in (full / "calls").read_text().splitlines() if "delete job" in call]
    assert len(deleted) == 1
    assert all(name in deleted[0] for name in ("iris-backup-models-", "iris-backup-mlflow-"))


def test_a_file_that_exists_is_not_written_over(full: Path) -> None:
    Path("all.tar").write_text("precious")
    with pytest.raises(CommandError, match="exists already"):
        archive_of(full)
    assert Path("all.tar").read_text() == "precious"


def test_volumes_that_are_not_empty_are_refused_before_one_is_changed(full: Path, empty: Path) -> None:
    archive = archive_of(full)
    publish(Store(empty / "models-pvc"), "own")
    with pytest.raises(CommandError, match="--merge"):
        backup.restore(namespace(empty), archive, merge=False)
    assert (runs_of(empty / "mlflow-pvc"), served(Store(empty / "models-pvc"))) == ([], "own")


def test_a_damaged_archive_is_not_sent(full: Path, empty: Path) -> None:
    archive = Path(archive_of(full))
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    with pytest.raises(CommandError, match="damaged"):
        backup.restore(namespace(empty), str(archive), merge=False)
    assert not (empty / "calls").exists()


def test_a_variant_without_the_claims_of_the_archive_is_refused(full: Path, empty: Path) -> None:
    archive = archive_of(full)
    (empty / "mlflow-pvc" / "mlflow.db").unlink()
    (empty / "mlflow-pvc").rmdir()
    with pytest.raises(CommandError, match="mlflow-pvc"):
        backup.restore(namespace(empty), archive, merge=False)
    assert Store(empty / "models-pvc").pointer() is None


def test_a_variant_with_a_bucket_says_what_is_backed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mlflow_folder(tmp_path / "gcs" / "mlflow-pvc", runs=["r"])
    for path in (tmp_path / "gcs").rglob("*.onnx"):
        os.utime(path, (1, 1))
    archive_of(tmp_path / "gcs")
    assert "stay in their bucket" in capsys.readouterr().out
    with pytest.raises(CommandError, match="nothing to back up"):
        backup.backup(namespace(tmp_path / "nowhere"), "x.tar", data=False, secrets_to="")


def test_secrets_go_into_a_file_of_their_own_and_only_on_request(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = {"name": "iris-api-secrets", "labels": {"app": "x"}, "uid": "1", "resourceVersion": "2", "namespace": "mlops"}
    owned = {"name": "made-by-an-operator", "ownerReferences": [{"kind": "RayCluster"}]}
    items = [{"metadata": metadata, "type": "Opaque", "data": {"API_KEY": "azE="}}, {"metadata": owned, "data": {"t": "eA=="}}]
    (full / "secrets.json").write_text(json.dumps({"items": items}))
    archive_of(full)
    assert "does not hold the Secrets" in capsys.readouterr().out
    assert b"azE=" not in Path("all.tar").read_bytes()
    backup.backup(namespace(full), "second.tar", data=False, secrets_to="secrets.json")
    (secret,) = json.loads(Path("secrets.json").read_text())["items"]
    assert secret["data"] == {"API_KEY": "azE="}
    assert secret["metadata"] == {"name": "iris-api-secrets", "labels": {"app": "x"}}
    assert stat.S_IMODE(os.stat("secrets.json").st_mode) == 0o600


def test_each_job_mounts_its_own_claim_where_its_command_looks() -> None:
    for part in backup.BACKUP_ORDER:
        ((_, template),) = pod_templates(one("Job", f"iris-backup-{part.name}"))
        (claim,) = [volume for volume in template["spec"]["volumes"] if "persistentVolumeClaim" in volume]
        assert claim["persistentVolumeClaim"] == {"claimName": part.claim}
        (mount,) = [m for m in template["spec"]["containers"][0]["volumeMounts"] if m["name"] == claim["name"]]
        assert mount["mountPath"] == (part.flags[-1] if part.flags else "/app/models")
        assert f"--part {part.name} {' '.join(part.flags)}".strip() in part.job.read_text()
