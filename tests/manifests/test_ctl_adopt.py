"""`make k8s-adopt` with folders for claims: the Job that kustomize renders runs here, with its own command, settings and paths."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import joblib
import pytest

from kuberay.ctl import adopt, data, doctor, faults, short_job, waiting
from kuberay.ctl.kube import KUBERAY, Cluster, CommandError, Json
from serve_app.artifacts.store import Store
from tests.manifests.shipped import one
from tests.support.fitted_models import CLASSIFIERS, FITTED, MIXED, table
from training import mlflow_model

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="NOT TESTED: kubectl is not installed")
READY = {"metadata": {"name": "files"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
OWN_CODE = KUBERAY.parent / "tests" / "support" / "own_sizes.py"


@dataclass(frozen=True, slots=True)
class Folders(Cluster):
    """A cluster whose claims are folders below `root`. A Job runs at once when it is applied."""

    root: Path = Path()

    def command(self, *arguments: str, namespaced: bool = True) -> list[str]:
        if arguments[0] != "exec":
            return Cluster.command(self, *arguments, namespaced=namespaced)
        words = [self.here(word) for word in arguments[arguments.index("--") + 1 :]]
        return [sys.executable, *words[1:]] if words[0] == "python" else words

    def run(self, *arguments: str, text: str | None = None, namespaced: bool = True) -> str:
        match arguments:
            case ["kustomize" | "patch" | "exec", *_]:
                return Cluster.run(self, *arguments, text=text, namespaced=namespaced)
            case ["apply", *_]:
                for document in json.loads(text or "")["items"]:
                    self.start(document)
            case ["get", "pods", *_]:
                return json.dumps({"items": [READY | self.ended()]})
            case ["get", "job", *_]:
                failed = self.ended()["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
                condition = (
                    {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"} if failed else {"type": "Complete"}
                )
                return json.dumps({"status": {"failed" if failed else "succeeded": 1, "conditions": [condition]}})
            case ["logs", *_]:
                return (self.root / "log").read_text()
        return ""

    def here(self, word: str) -> str:
        """A path or a script of a pod, for the folders of this machine."""
        return word.replace("/data", f"{self.root}/data-pvc")

    def start(self, job: Json) -> None:
        if job["kind"] != "Job":
            return
        (self.root / "job.json").write_text(json.dumps(job))
        (container,) = job["spec"]["template"]["spec"]["containers"]
        words = [self.here(word).replace("$$", "$") for word in (*container["command"], *container["args"])]
        assert words[0] == "iris-api"
        settings = one("ConfigMap", "iris-api-config")["data"] | {"MODEL_DIR": str(self.root / "models-pvc")}
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("IRIS_", "MLFLOW_"))}
        process = subprocess.run(
            [sys.executable, "-m", "serve_app", *words[1:], "--no-tracking"],
            cwd=KUBERAY.parent,
            env=keep | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        (self.root / "log").write_text(process.stdout)
        (self.root / "code").write_text(str(process.returncode))

    def ended(self) -> Json:
        code = self.root / "code"
        terminated = {"exitCode": int(code.read_text()) if code.exists() else 0}
        conditions = READY["status"]["conditions"]  # type: ignore[index]
        return {"status": {"conditions": conditions, "containerStatuses": [{"name": "adopt", "state": {"terminated": terminated}}]}}

    @property
    def arguments(self) -> list[str]:
        """The args of the Job that was applied last."""
        job = json.loads((self.root / "job.json").read_text())
        return list(job["spec"]["template"]["spec"]["containers"][0]["args"])

    def versions(self) -> list[str]:
        return [str(entry.version) for entry in Store(self.root / "models-pvc").entries()]


def diagnosis(cluster: Cluster) -> list[faults.Fault]:
    """What the doctor finds wrong with the Job that adopts."""
    return list(dict(doctor.CHECKS)["adopting job"](cluster))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    monkeypatch.chdir(KUBERAY.parent)
    for claim in ("models-pvc", "data-pvc"):
        (tmp_path / claim).mkdir()
    return Folders(("kubectl",), "team-a", root=tmp_path)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    table()[FITTED:][[*MIXED, "label"]].to_csv(tmp_path / "rows.csv", index=False)
    return tmp_path / "rows.csv"


def saved(folder: Path, model: object) -> Path:
    path = folder / "model.joblib"
    joblib.dump(model, path)
    return path


@needs_kubectl
def test_a_model_of_this_machine_is_carried_adopted_and_published(
    cluster: Folders, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = CLASSIFIERS["one-hot and logistic regression"]().fit(table()[MIXED][:FITTED], table().label[:FITTED])
    path = saved(tmp_path, model)
    adopt.adopt(cluster, "kuberay/adopt", str(path), str(rows), "--target label --held-out")
    assert cluster.versions() == ["1"]
    assert cluster.arguments == ["/data/in/model.joblib", "--sample", "/data/in/rows.csv", "--target", "label", "--held-out"]
    assert (tmp_path / "data-pvc" / "in" / "model.joblib").read_bytes() == path.read_bytes()
    output = capsys.readouterr().out
    assert "ONNX Runtime" in output
    assert output.count("version 1 (") == 1, "each line of the report is shown once"
    # Again, with the paths in the claim: nothing is carried, and the report alone is shown.
    adopt.adopt(cluster, "kuberay/adopt", "/data/in/model.joblib", "/data/in/rows.csv", "--target label --dry-run")
    assert "sha256" not in capsys.readouterr().out.partition("model\n")[0]
    assert cluster.versions() == ["1"]
    assert diagnosis(cluster) == []


@needs_kubectl
def test_a_model_that_replicas_would_refuse_is_refused_before_it_is_published(
    cluster: Folders, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings are those of kuberay/base/config.yaml, where no pickle may be opened."""
    monkeypatch.syspath_prepend(str(OWN_CODE.parent))
    own_sizes = importlib.import_module("own_sizes")

    path = saved(tmp_path, own_sizes.Sizes().fit(table(), table().label))
    package = shlex.quote(str(OWN_CODE))
    with pytest.raises(CommandError) as error:
        adopt.adopt(cluster, "kuberay/adopt", str(path), str(rows), f"--target label --package {package}")
    assert f"exit code {adopt.REFUSED}" in str(error.value)
    assert "IRIS_ALLOW_JOBLIB" in str(error.value), "the sentence names what would allow it"
    assert "\n" not in str(error.value)
    assert cluster.arguments[-2:] == ["--package", "/data/in/own_sizes.py"]
    assert cluster.versions() == []
    (fault,) = diagnosis(cluster)
    assert fault.cause == str(error.value)[:300]


@needs_kubectl
def test_a_model_that_cannot_be_adopted_is_told_in_the_words_of_the_command(cluster: Folders, rows: Path, tmp_path: Path) -> None:
    path = saved(tmp_path, {"no": "model"})
    with pytest.raises(CommandError) as error:
        adopt.adopt(cluster, "kuberay/adopt", str(path), str(rows), "--target label")
    assert f"exit code {adopt.WRONG_USAGE}" in str(error.value)
    assert (tmp_path / "log").read_text().splitlines()[-1].removeprefix("error: ") in str(error.value)
    assert cluster.versions() == []
    (fault,) = diagnosis(cluster)
    assert (fault.where, fault.cause) == ("Job iris-adopt-job", str(error.value))
    assert "make k8s-adopt" in fault.fix


# --- the arguments


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Where files of this machine get their place in the claim without being carried."""
    monkeypatch.setattr(data, "carry_all", lambda _, sources: [f"carried:{source}" for source in sources])
    return Cluster(("kubectl-that-is-nowhere",), "mlops")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["m.joblib"], ["carried:m.joblib"]),
        (["models:/Churn@champion", "--sample", "r.csv"], ["models:/Churn@champion", "--sample", "carried:r.csv"]),
        (["m.ubj", "--package=a.py", "--package", "b"], ["carried:m.ubj", "--package", "carried:a.py", "--package", "carried:b"]),
        (["m", "--target", "US$", "--na=x=y"], ["carried:m", "--target", "US$", "--na=x=y"]),
        (["m", "--sample", "gs://b/rows"], ["carried:m", "--sample", "carried:gs://b/rows"]),
    ],
)
def test_files_get_their_paths_in_the_claim_and_everything_else_stays(
    plain: Cluster, arguments: Sequence[str], expected: Sequence[str]
) -> None:
    assert adopt.carried(plain, arguments) == expected


@pytest.mark.parametrize(
    "arguments", [["https://host/m.joblib"], ["m", "--package", "https://host/a.whl"], ["m", "--sample="], [""]]
)
def test_a_file_that_the_job_could_not_read_is_refused_before_the_cluster_is_asked(
    plain: Cluster, arguments: Sequence[str]
) -> None:
    with pytest.raises(CommandError):
        adopt.carried(plain, arguments)


@pytest.mark.parametrize(
    "model",
    [
        *("models:/A@b", "models:/A/1", "runs:/0a/model", f"models:/m-{'0' * 32}", f"m-{'0' * 32}", "mlflow-artifacts://host/a"),
        *("model.joblib", "models/m.joblib", "/data/in/m.joblib", "C:/m.joblib", f"m-{'0' * 32}.joblib"),
    ],
)
def test_a_model_in_mlflow_is_told_from_a_file_as_the_command_does(plain: Cluster, model: str) -> None:
    assert (adopt.carried(plain, [model]) == [model]) is mlflow_model.is_address(model)


@needs_kubectl
def test_a_dollar_reaches_the_command_as_it_is(cluster: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folders, "start", lambda self, job: (self.root / "job.json").write_text(json.dumps(job)))
    (cluster.root / "log").write_text("")
    adopt.adopt(cluster, "kuberay/adopt", "models:/A@b", "", "--target 'Price $(HOME) $$'")
    assert cluster.arguments == ["models:/A@b", "--target", "Price $$(HOME) $$$$"]


def test_no_model_and_an_open_quote_are_answered_with_the_fix(cluster: Folders) -> None:
    with pytest.raises(CommandError, match="MODEL="):
        adopt.adopt(cluster, "kuberay/adopt", "", "rows.csv", "")
    with pytest.raises(CommandError, match="each quote"):
        adopt._split("--target 'y")


@pytest.mark.parametrize(
    ("code", "output", "expected"),
    [
        (2, "look into the file\nerror: it names posix.system\n", "it names posix.system"),
        (3, "report\nrefused, nothing was published: too bad\nmetrics: a\n", "too bad"),
        (137, "report\n", "137"),
        (short_job.TIMED_OUT, "", "activeDeadlineSeconds"),
    ],
)
def test_each_end_is_one_sentence(code: int, output: str, expected: str) -> None:
    sentence = adopt.failure(short_job.Ended(code, output))
    assert expected in sentence
    assert "\n" not in sentence
    if code > 0:
        assert f"exit code {code}" in sentence


@dataclass(frozen=True, slots=True)
class Recorder(Cluster):
    """A cluster that takes every object, starts nothing and keeps the verbs of all calls."""

    verbs: list[str] = field(default_factory=list)

    def run(self, *arguments: str, text: str | None = None, namespaced: bool = True) -> str:
        self.verbs.append(arguments[0])
        return ""


@dataclass(frozen=True, slots=True)
class ScriptedCluster(Cluster):
    """A cluster that answers each `get KIND` with one document, and has nothing else."""

    documents: dict[str, Json] = field(default_factory=dict)

    def run(self, *arguments: str, text: str | None = None, namespaced: bool = True) -> str:
        if arguments[0] == "get" and arguments[1] in self.documents:
            return json.dumps(self.documents[arguments[1]])
        if arguments[0] == "logs":
            raise CommandError("no pod")
        return ""


@pytest.mark.parametrize(
    ("reason", "pods"), [("DeadlineExceeded", []), ("BackoffLimitExceeded", []), ("DeadlineExceeded", [{"exitCode": 143}])]
)
def test_the_doctor_has_the_reason_of_kubernetes_for_a_job_whose_log_is_gone(reason: str, pods: list[Json]) -> None:
    condition = {"type": "Failed", "status": "True", "reason": reason, "message": "as Kubernetes says"}
    items = [{"metadata": {"name": "a"}, "status": {"containerStatuses": [{"state": {"terminated": pod}}]}} for pod in pods]
    (fault,) = diagnosis(
        ScriptedCluster(("kubectl",), "mlops", documents={"job": {"status": {"conditions": [condition]}}, "pods": {"items": items}})
    )
    assert fault.cause == f"{reason}: as Kubernetes says"


@pytest.mark.parametrize(
    "job",
    [
        {},
        {"status": {}},
        {"status": {"active": 1}},
        {"status": {"conditions": [{"type": "Failed", "status": "False"}, {"type": "Complete", "status": "True"}]}},
    ],
)
def test_the_doctor_says_nothing_of_a_job_that_is_not_there_runs_or_ended_well(job: Json) -> None:
    assert diagnosis(ScriptedCluster(("kubectl",), "mlops", documents={"job": job} if job else {})) == []


def test_a_job_that_cannot_start_is_deleted_so_that_it_publishes_nothing_later(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = faults.Fault("pod a", "the image is not on the node", "load it", grace=0.0)
    monkeypatch.setattr(short_job, "pod_faults", lambda *_: [broken])
    cluster = Recorder(("kubectl",), "mlops")
    with pytest.raises(CommandError, match="image"):
        short_job.run(cluster, [], name="a", app="a", timeout=60)
    assert cluster.verbs.index("apply") < len(cluster.verbs) - 1
    assert cluster.verbs[-1] == "delete"


def test_a_job_waits_for_a_node_that_takes_its_pod_where_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    full = faults.Fault("pod a", "no node can take it", "add nodes", final=False, grace=0.0)
    monkeypatch.setattr(short_job, "pod_faults", lambda *_: [full])
    with pytest.raises(waiting.DeadlineExceeded):
        short_job.run(Recorder(("kubectl",), "mlops"), [], name="a", app="a", timeout=0.1, waits_for_room=True)
    with pytest.raises(CommandError) as error:
        short_job.run(Recorder(("kubectl",), "mlops"), [], name="a", app="a", timeout=60)
    assert not isinstance(error.value, waiting.DeadlineExceeded)


def test_the_job_has_the_settings_and_the_keys_of_a_training() -> None:
    (adopting,) = one("Job", "iris-adopt-job")["spec"]["template"]["spec"]["containers"]
    training = one("RayJob", "iris-train-job")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    for key in ("image", "imagePullPolicy", "env", "securityContext", "volumeMounts"):
        assert adopting[key] == training[key], key
    assert adopting["envFrom"] == [
        source for source in training["envFrom"] if source.get("configMapRef", {}).get("name") != "iris-training"
    ]
    assert adopting["resources"]["limits"] == training["resources"]["limits"]
