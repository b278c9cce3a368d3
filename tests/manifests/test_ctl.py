"""The parts of `make k8s-*` that need no cluster: what is rendered, how a state of the cluster is read, how long is waited."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kuberay.ctl import faults, manifests, readiness, train, waiting
from kuberay.ctl.api_client import ApiClient, Response
from kuberay.ctl.doctor import mebibytes
from kuberay.ctl.kube import KUBERAY, Cluster, CommandError, Json
from tests.manifests.shipped import kustomizations, pod_templates

REGISTRY = "registry.example:5000"
DEFAULT = Cluster(("kubectl",), "mlops")
ELSEWHERE = Cluster(("kubectl",), "team-a", f"{REGISTRY}/iris-api:1.4.0", f"{REGISTRY}/iris-train:1.4.0")
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="NOT TESTED: kubectl is not installed")


def overlay_of(folder: Path, base: str, **fields: object) -> Path:
    """A user's kustomization over a folder of kuberay/."""
    target = folder.resolve()
    relative = Path(*[".."] * (len(target.parts) - 1), *KUBERAY.parts[1:], base)
    (target / "kustomization.yaml").write_text(json.dumps({"resources": [str(relative)], **fields}))
    return target


def images(documents: list[Json]) -> set[str]:
    return {
        container["image"]
        for document in documents
        for _, template in pod_templates(document)
        for container in template["spec"]["containers"] + template["spec"].get("initContainers", [])
    }


def test_the_commands_need_no_package_beside_the_standard_library() -> None:
    process = subprocess.run(
        [sys.executable, "-S", "-m", "kuberay.ctl", "--help"], cwd=KUBERAY.parent, capture_output=True, check=False
    )
    assert process.returncode == 0, process.stderr


# --- rendering


@needs_kubectl
@pytest.mark.parametrize("folder", kustomizations(), ids=lambda path: str(path.relative_to(KUBERAY)))
def test_namespace_and_images_are_the_users_in_every_variant(folder: Path) -> None:
    documents = manifests.build(ELSEWHERE, folder)
    allowed = {ELSEWHERE.serve_image, ELSEWHERE.train_image, "redis:7", "fsouza/fake-gcs-server:1.52.3"}
    assert images(documents) <= allowed
    for document in documents:
        if document["kind"] == "Namespace":
            assert document["metadata"]["name"] == "team-a"
        elif document["kind"] not in ("PersistentVolume", "PriorityClass"):
            assert document["metadata"]["namespace"] == "team-a"
    assert "mlops" not in json.dumps(documents)


@needs_kubectl
def test_a_volume_is_reserved_for_the_claim_of_the_users_namespace() -> None:
    (volume,) = manifests.of_kind(manifests.build(ELSEWHERE, manifests.overlay("hostpath")), "PersistentVolume")
    assert volume["spec"]["claimRef"] == {"namespace": "team-a", "name": "models-pvc"}


@needs_kubectl
def test_scheduled_trainings_are_copies_of_the_training_job_with_the_users_image() -> None:
    (job,) = manifests.of_kind(manifests.build(ELSEWHERE, KUBERAY / "train"), "RayJob")
    (template,) = manifests.of_kind(manifests.build(ELSEWHERE, manifests.overlay("schedule")), "RayJob")
    assert template["spec"].pop("suspend") is True
    assert template["spec"].pop("entrypoint").startswith(job["spec"].pop("entrypoint"))
    assert template["spec"] == job["spec"]
    assert images([template]) == {ELSEWHERE.train_image}


@needs_kubectl
def test_a_single_manifest_is_rendered_like_a_folder() -> None:
    (job,) = manifests.build(ELSEWHERE, KUBERAY / "train" / "store-job.yaml")
    assert (job["metadata"]["namespace"], images([job])) == ("team-a", {ELSEWHERE.train_image})


@needs_kubectl
def test_an_image_that_an_overlay_pins_stays_when_the_user_names_none(tmp_path: Path) -> None:
    folder = overlay_of(tmp_path, "overlays/api", images=[{"name": "iris-api", "newTag": "1.2"}])
    assert images(manifests.build(DEFAULT, folder)) == {"iris-api:1.2"}
    assert images(manifests.build(ELSEWHERE, folder)) == {ELSEWHERE.serve_image}


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("iris-api:2", {"newName": "iris-api", "newTag": "2"}),
        (f"{REGISTRY}/team/iris-api", {"newName": f"{REGISTRY}/team/iris-api", "newTag": "latest"}),
        (f"{REGISTRY}/iris-api:2", {"newName": f"{REGISTRY}/iris-api", "newTag": "2"}),
        (f"{REGISTRY}/iris-api@sha256:00", {"newName": f"{REGISTRY}/iris-api", "digest": "sha256:00"}),
        ("iris-api:2@sha256:00", {"newName": "iris-api", "newTag": "2", "digest": "sha256:00"}),
    ],
)
def test_a_reference_to_an_image_is_split_as_kustomize_wants_it(reference: str, expected: dict[str, str]) -> None:
    assert manifests.image_override("iris-api:latest", reference) == {"name": "iris-api", **expected}


@needs_kubectl
def test_generated_names_reach_the_pods_of_every_ray_kind(tmp_path: Path) -> None:
    """What kuberay/kustomizeconfig is for: a ConfigMap or Secret with a hash in its name, a prefix before the name of a claim."""
    folder = overlay_of(
        tmp_path,
        "overlays/mlflow",
        namePrefix="a-",
        configMapGenerator=[{"name": "iris-api-overrides", "literals": ["LOG_LEVEL=DEBUG"]}],
        secretGenerator=[{"name": "iris-api-secrets", "literals": ["API_KEY=k"]}],
    )
    documents = manifests.build(DEFAULT, folder)
    names = {(one["kind"], one["metadata"]["name"]) for one in documents}
    (service,) = manifests.of_kind(documents, "RayService")
    for where, template in pod_templates(service):
        sources = [source for entry in template["spec"]["containers"][0]["envFrom"] for source in entry.items()]
        references = {("ConfigMap" if kind == "configMapRef" else "Secret", source["name"]) for kind, source in sources}
        # mlflow-replica is optional and not a part of this overlay.
        assert references - names == {("Secret", "mlflow-replica")}, where
        assert any(name.startswith("a-iris-api-overrides-") for _, name in references), where
        claims = {
            one["persistentVolumeClaim"]["claimName"] for one in template["spec"]["volumes"] if "persistentVolumeClaim" in one
        }
        assert claims <= {"a-models-pvc", "a-head-state-pvc"}, where
        assert "a-models-pvc" in claims, where


@needs_kubectl
@pytest.mark.parametrize("folder", ["train", "score", "adopt", "overlays/raycronjob"])
def test_a_prefix_reaches_the_claims_of_jobs_beside_them(tmp_path: Path, folder: str) -> None:
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models-pvc"}}
    (tmp_path / "claim.yaml").write_text(json.dumps(claim))
    overlay = overlay_of(tmp_path, folder, namePrefix="a-")
    document = json.loads((overlay / "kustomization.yaml").read_text())
    document["resources"].append("claim.yaml")
    (overlay / "kustomization.yaml").write_text(json.dumps(document))
    jobs = [one for one in manifests.build(DEFAULT, overlay) if one["kind"] in ("RayJob", "RayCronJob", "Job")]
    assert jobs
    assert '"claimName": "a-models-pvc"' in json.dumps(jobs)


def test_an_unknown_overlay_is_answered_with_the_known_ones() -> None:
    with pytest.raises(CommandError) as error:
        manifests.overlay("nonsense")
    assert {"nonsense", "api", "gcs", "mlflow"} <= {word.strip("',:") for word in str(error.value).split()}


# --- a model that the replicas refuse


class Refusing(ApiClient):
    """An API whose replicas refuse version 2."""

    def request(self, path: str, row: Json | None = None) -> Response:
        refused = {"candidate": f"2-{'a' * 64}", "reason": "unsigned", "message": "it has no signature"}
        return Response(200, {"x-model-version": "1"}, {"version": "1", "refused": refused} if path == "/model" else {})


def test_waiting_for_a_model_that_the_replicas_refuse_ends_with_their_reason() -> None:
    client = Refusing("http://127.0.0.1", "key")
    (fault,) = readiness.refusals(client, "2")
    assert fault.final
    assert "unsigned" in str(fault)
    assert readiness.refusals(client, "20") == readiness.refusals(client, "1") == []


# --- the checksum of the settings


def service_with(annotation: str) -> Json:
    sources = [{"configMapRef": {"name": "iris-api-config"}}, {"secretRef": {"name": "iris-api-secrets", "optional": True}}]
    spec = {"containers": [{"envFrom": sources}]}
    template = {"metadata": {"annotations": {manifests.CHECKSUM: annotation}}, "spec": spec}
    groups = {"headGroupSpec": {"template": template}, "workerGroupSpecs": [{"template": json.loads(json.dumps(template))}]}
    return {"kind": "RayService", "metadata": {"name": "iris-api"}, "spec": {"rayClusterConfig": groups}}


def secret_with(name: str, value: str, **data: str) -> Json:
    return {"kind": "Secret", "metadata": {"name": name}, "data": {"MLFLOW_TRACKING_URI": value, **data}}


def checksums(level: str, uri: str, annotation: str = manifests.UNSET, other: str = "", key: str = "") -> tuple[str, str]:
    config = {"kind": "ConfigMap", "metadata": {"name": "iris-api-config"}, "data": {"LOG_LEVEL": level}}
    service = service_with(annotation)
    manifests.set_checksum([config, service], [secret_with("iris-api-secrets", uri, API_KEY=key), secret_with("other", other)])
    groups = service["spec"]["rayClusterConfig"]
    head, worker = (
        group["template"]["metadata"]["annotations"] for group in (groups["headGroupSpec"], groups["workerGroupSpecs"][0])
    )
    return head[manifests.CHECKSUM], worker[manifests.CHECKSUM]


def test_the_checksum_changes_with_the_settings_and_with_the_secret() -> None:
    first = checksums("INFO", "a")
    assert first == checksums("INFO", "a")
    assert len(set(first)) == 1
    assert len({first, checksums("DEBUG", "a"), checksums("INFO", "b")}) == 3
    assert checksums("INFO", "a", other="b") == first, "a Secret that its pods do not read starts no upgrade"
    assert checksums("INFO", "a", key="b") == first, "replicas read a changed key from its file"


@needs_kubectl
def test_a_new_password_restarts_the_servers_that_read_it() -> None:
    def annotations(name: str, value: str) -> dict[str, str]:
        documents = [
            *manifests.build(DEFAULT, manifests.overlay("ha-redis")),
            *manifests.build(DEFAULT, manifests.overlay("mlflow-auth")),
        ]
        manifests.set_checksum(documents, [secret_with(name, value)])
        return {
            one["metadata"]["name"]: template["metadata"]["annotations"][manifests.CHECKSUM]
            for one in documents
            for _, template in pod_templates(one)
            if manifests.CHECKSUM in template["metadata"].get("annotations", {})
        }

    for secret, server in (("iris-redis", "iris-redis"), ("mlflow-admin", "mlflow-server"), ("mlflow-trainer", "mlflow-server")):
        first, second = annotations(secret, "a"), annotations(secret, "b")
        assert {name for name in first if first[name] != second[name]} - {"iris-api"} == {server}


def test_a_checksum_of_the_users_own_stays() -> None:
    assert checksums("INFO", "a", "mine") == ("mine", "mine")


# --- the Secret


EXAMPLE = "replace-me-with-openssl-rand-hex-32"
GOOD_KEY = "b7c41e09a5d2f8360e9b14c7d3a86f52"


@needs_kubectl
@pytest.mark.parametrize(
    ("key", "accepted"),
    [
        (GOOD_KEY, True),
        *((key, False) for key in (GOOD_KEY[:31], f"replace-me{GOOD_KEY}", EXAMPLE, "k" * 64, "0123456789abcdef" * 2, "")),
        *((key, False) for key in (f"changeme-{GOOD_KEY}", "correcthorse" * 4, "qwertyuiop" * 4)),
    ],
)
def test_a_secret_is_accepted_with_a_key_of_the_users_own_only(tmp_path: Path, key: str, accepted: bool) -> None:
    file = tmp_path / "secret.yaml"
    text = (KUBERAY / "base" / "secret.yaml.example").read_text()
    file.write_text(text.replace(EXAMPLE, key))
    cluster = Cluster(("kubectl",), "team-a", secret_file=file)
    if not accepted:
        with pytest.raises(CommandError, match="API_KEY"):
            manifests.secret_documents(cluster)
        return
    (secret,) = manifests.secret_documents(cluster)
    assert (secret["metadata"]["namespace"], secret["stringData"]["API_KEY"]) == ("team-a", key)


def test_a_value_of_a_secret_is_read_in_both_forms() -> None:
    assert manifests.secret_value({"data": {"API_KEY": "aw=="}}, "API_KEY") == "k"
    assert manifests.secret_value({"stringData": {"API_KEY": "k"}, "data": {}}, "API_KEY") == "k"
    assert manifests.secret_value({"data": None}, "API_KEY") == manifests.secret_value(None, "API_KEY") == ""


# --- the state of a cluster


def test_a_service_is_settled_only_when_its_newest_spec_is_what_runs() -> None:
    ready: Json = {
        "metadata": {"generation": 2},
        "status": {
            "observedGeneration": 2,
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "UpgradeInProgress", "status": "False"}],
            "activeServiceStatus": {"applicationStatuses": {"iris-api": {"status": "RUNNING"}}},
        },
    }
    assert readiness.is_settled(ready)
    assert not readiness.is_settled({**ready, "metadata": {"generation": 3}})
    assert not readiness.is_settled(
        changed(ready, conditions=[{"type": "Ready", "status": "True"}, {"type": "UpgradeInProgress", "status": "True"}])
    )
    assert not readiness.is_settled(
        changed(ready, activeServiceStatus={"applicationStatuses": {"iris-api": {"status": "DEPLOY_FAILED"}}})
    )
    assert not readiness.is_settled(changed(ready, activeServiceStatus={}))
    assert not readiness.is_settled(None)


def changed(document: Json, **status: object) -> Json:
    return {**document, "status": {**document["status"], **status}}


def test_a_service_leads_somewhere_when_one_of_its_endpoints_is_ready() -> None:
    ready, unready = {"conditions": {"ready": True}}, {"conditions": {"ready": False}}
    assert readiness.has_endpoints([{"endpoints": None}, {"endpoints": [unready, ready]}])
    assert not readiness.has_endpoints([{"endpoints": [unready]}, {"endpoints": None}, {}])
    assert not readiness.has_endpoints([])


def test_a_failed_application_is_found_although_the_service_is_ready() -> None:
    trace = "Deploying app failed:\nTraceback (most recent call last):\n  File x\n"
    message = f"{trace}serve_app.settings.SettingsError: API_KEY: production needs a key\n"
    broken = {
        "status": {"activeServiceStatus": {"applicationStatuses": {"iris-api": {"status": "DEPLOY_FAILED", "message": message}}}}
    }
    fault = faults.application_fault(broken)
    assert fault is not None
    assert fault.cause == "DEPLOY_FAILED: SettingsError: API_KEY: production needs a key"
    assert faults.application_fault({"status": {}}) is None


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [("1Gi", 1024), ("512Mi", 512), ("1536Mi", 1536), ("1048576Ki", 1024), ("1G", 953.7), (None, None), ("many", None)],
)
def test_memory_quantities_are_read_as_kubernetes_means_them(quantity: str | None, expected: float | None) -> None:
    assert mebibytes(quantity) == (None if expected is None else pytest.approx(expected, rel=1e-3))


# --- the command of a job


class Recorder(Cluster):
    """A cluster that takes every object and starts nothing."""

    def run(self, *arguments: str, text: str | None = None, namespaced: bool = True) -> str:
        if arguments[0] in ("kustomize", "patch"):
            return super().run(*arguments, text=text, namespaced=namespaced)
        applied[arguments[0]] = json.loads(text or "{}")
        return ""


applied: dict[str, Json] = {}


@needs_kubectl
@pytest.mark.parametrize(
    ("command", "folder", "flags", "entrypoint"),
    [
        (train.train, "kuberay/train", "", "python -m training"),
        (train.train, "kuberay/train", "--n-estimators 50", "python -m training --n-estimators 50"),
        (train.train, "search", "", "python -m training --search 8"),
        (train.train, "search", "--seed 1", "python -m training --search 8 --seed 1"),
        (train.score, "kuberay/score", "", "python -m training score --data /data/in --out /data/out"),
        (
            train.score,
            "kuberay/score",
            r"--data gs://b/*.csv --out \1 --keep a,b",
            r"python -m training score --data gs://b/*.csv --out \1 --keep a,b",
        ),
    ],
)
def test_a_job_is_started_with_the_flags_of_the_user(
    command: Callable[[Cluster, str, str], None], folder: str, flags: str, entrypoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(KUBERAY.parent)
    monkeypatch.setattr(train, "require_operator", lambda _: None)
    monkeypatch.setattr(train, "follow", lambda *_: "")
    applied.clear()
    command(Recorder(("kubectl",), "mlops"), folder, flags)
    (job,) = applied["replace"]["items"]
    assert job["spec"]["entrypoint"] == entrypoint
    # The claim of an installation that has none is applied: to replace it would lose what is in it.
    assert [one["kind"] for one in applied["apply"]["items"]] == ["PersistentVolumeClaim"]


def test_the_output_of_a_job_grows_by_whole_lines_while_a_progress_bar_is_rewritten() -> None:
    log = (
        "2026-11-26 01:02:25,649\tINFO job_manager.py:581 -- Runtime env is setting up.\nRunning entrypoint for job a: python\n"
        "1.0 s  read\n\rsearch:  0%\rsearch: 88%\r           \r2.0 s  search\r\ndone\n"
        "2026-11-26 01:02:35,893\tERR cli.py:75 -- Job 'a' failed\n"
        "2026-11-26 01:02:35,894\tINFO cli.py:89 -- Status message: twice\ndone\n"
    )
    outputs = [train.finished_lines(log[:length]) for length in range(len(log) + 1)]
    assert all(after.startswith(before) for before, after in itertools.pairwise(outputs))
    assert outputs[-1] == "1.0 s  read\n2.0 s  search\ndone\n"


# --- waiting


def fault(**fields: object) -> faults.Fault:
    return faults.Fault(**{"where": "pod a", "cause": "cause", "fix": "fix", "grace": 0.05, **fields})  # type: ignore[arg-type]


def test_polling_returns_the_first_result_and_reports_each_change_once(capsys: pytest.CaptureFixture[str]) -> None:
    results = iter([None, None, 0])

    def condition(progress: waiting.Progress) -> int | None:
        progress("state")
        return next(results)

    assert waiting.poll(condition, timeout=60, failure="no result", interval=0.001) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_polling_ends_at_its_deadline_and_names_the_faults_of_the_moment() -> None:
    with pytest.raises(waiting.DeadlineExceeded) as error:
        waiting.poll(lambda _: None, timeout=0.05, failure="no result", interval=0.001, faults=lambda: [fault(grace=60)])
    assert "no result" in str(error.value)
    assert str(fault()) in str(error.value)


def test_a_final_fault_ends_polling_after_its_grace_period_and_a_passing_one_does_not() -> None:
    with pytest.raises(CommandError) as error:
        waiting.poll(lambda _: None, timeout=60, failure="no result", interval=0.001, faults=lambda: [fault()])
    assert not isinstance(error.value, waiting.DeadlineExceeded)

    attempts = iter(range(200))
    flapping = iter([[fault()], []] * 200)
    reached = waiting.poll(
        lambda _: True if next(attempts) == 100 else None,
        timeout=60,
        failure="no result",
        interval=0.002,
        faults=lambda: next(flapping),
    )
    assert reached is True


def test_a_fault_that_may_pass_is_reported_once_and_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    attempts = iter(range(200))

    def condition(progress: waiting.Progress) -> bool | None:
        progress("state")
        return True if next(attempts) == 100 else None

    assert waiting.poll(condition, timeout=60, failure="no", interval=0.002, faults=lambda: [fault(final=False)])
    assert capsys.readouterr().out.count("cause") == 1


# --- a second installation in the same cluster


@needs_kubectl
def test_volumes_of_two_installations_have_different_names_and_each_claim_names_its_own() -> None:
    names = {}
    for cluster in (DEFAULT, ELSEWHERE):
        documents = manifests.build(cluster, manifests.overlay("hostpath"))
        (volume,) = manifests.of_kind(documents, "PersistentVolume")
        (claim,) = [one for one in manifests.of_kind(documents, "PersistentVolumeClaim") if one["metadata"]["name"] == "models-pvc"]
        assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
        names[cluster.namespace] = volume["metadata"]["name"]
    assert names == {"mlops": "iris-models", "team-a": "iris-models-team-a"}


def test_each_installation_has_a_file_for_its_own_secret_that_git_ignores(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("K8S_SECRET", "K8S_NS"):
        monkeypatch.delenv(variable, raising=False)
    assert Cluster.from_environment().secret_file == KUBERAY / "base" / "secret.yaml"
    monkeypatch.setenv("K8S_NS", "team-a")
    own = Cluster.from_environment().secret_file
    assert own == KUBERAY / "base" / "team-a" / "secret.yaml"
    assert subprocess.run(["git", "check-ignore", "-q", str(own)], cwd=KUBERAY, check=False).returncode == 0
