"""The parts of `make k8s-*` that need no cluster: what is rendered, and how a state of the cluster is read."""

from __future__ import annotations

import pytest

from kuberay.ctl import faults, manifests, train, waiting
from kuberay.ctl.doctor import mebibytes
from kuberay.ctl.kube import Cluster, CommandError, Json

HERE = Cluster(("kubectl",), "team-a", "registry.example/iris-api:1.4.0", "registry.example/iris-train:1.4.0")


def test_namespace_and_images_are_the_users() -> None:
    text = (
        "  namespace: mlops\n  image: iris-api:latest\n  image: iris-train:latest\n  host: mlflow-server-service.mlops.svc:5000\n"
    )
    assert manifests.place(HERE, text) == (
        "  namespace: team-a\n  image: registry.example/iris-api:1.4.0\n  image: registry.example/iris-train:1.4.0\n"
        "  host: mlflow-server-service.team-a.svc:5000\n"
    )


def test_an_unknown_overlay_is_answered_with_the_known_ones() -> None:
    with pytest.raises(CommandError, match=r"there is no overlay 'nonsense': use one of api, .*gcs, .*mlflow"):
        manifests.overlay("nonsense")


def test_a_service_is_settled_only_when_its_newest_spec_is_what_runs() -> None:
    ready: Json = {
        "metadata": {"generation": 2},
        "status": {
            "observedGeneration": 2,
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "UpgradeInProgress", "status": "False"}],
            "activeServiceStatus": {"applicationStatuses": {"iris-api": {"status": "RUNNING"}}},
        },
    }
    assert waiting.settled(ready)
    assert not waiting.settled({**ready, "metadata": {"generation": 3}})
    assert not waiting.settled(
        changed(ready, conditions=[{"type": "Ready", "status": "True"}, {"type": "UpgradeInProgress", "status": "True"}])
    )
    assert not waiting.settled(
        changed(ready, activeServiceStatus={"applicationStatuses": {"iris-api": {"status": "DEPLOY_FAILED"}}})
    )
    assert not waiting.settled(changed(ready, activeServiceStatus={}))
    assert not waiting.settled(None)


def test_a_service_leads_somewhere_when_one_of_its_endpoints_is_ready() -> None:
    ready, unready = {"conditions": {"ready": True}}, {"conditions": {"ready": False}}
    assert waiting.has_endpoints([{"endpoints": None}, {"endpoints": [unready, ready]}])
    assert not waiting.has_endpoints([{"endpoints": [unready]}, {"endpoints": None}, {}])
    assert not waiting.has_endpoints([])


def test_a_failed_application_is_found_although_the_service_is_ready() -> None:
    trace = "Deploying app failed:\nTraceback (most recent call last):\n  File x\n"
    message = f"{trace}serve_app.settings.SettingsError: API_KEY: production needs a key\n"
    broken = {
        "status": {"activeServiceStatus": {"applicationStatuses": {"iris-api": {"status": "DEPLOY_FAILED", "message": message}}}}
    }
    found = faults.application_fault(broken)
    assert found is not None
    assert found.cause == "DEPLOY_FAILED: SettingsError: API_KEY: production needs a key"
    assert faults.application_fault({"status": {}}) is None


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [("1Gi", 1024), ("512Mi", 512), ("1536Mi", 1536), ("1048576Ki", 1024), ("1G", 953.7), (None, None), ("many", None)],
)
def test_memory_quantities_are_read_as_kubernetes_means_them(quantity: str | None, expected: float | None) -> None:
    assert mebibytes(quantity) == (None if expected is None else pytest.approx(expected, rel=1e-3))


def test_a_job_is_started_by_the_flags_of_the_user() -> None:
    document = "spec:\n  entrypoint: python -m training score --data /data/in --out /data/out\n  backoffLimit: 2\n"
    assert train.started_by(document, "score", r"--data gs://b/*.csv --out \1 --keep a,b") == (
        'spec:\n  entrypoint: "python -m training score --data gs://b/*.csv --out \\\\1 --keep a,b"\n  backoffLimit: 2\n'
    )
    assert 'entrypoint: "python -m training"\n' in train.started_by(document, "", "")


def changed(document: Json, **status: object) -> Json:
    return {**document, "status": {**document["status"], **status}}
