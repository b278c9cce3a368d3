"""MLflow: where runs are recorded and versions get their numbers. The only module that imports mlflow.

It is imported when tracking is wanted, never before: `--no-tracking`, `list` and `rollback` start without it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import ColSpec, DataType, ParamSchema, Schema

from serve_app.artifacts.signature import Signature
from serve_app.artifacts.store import Store
from serve_app.errors import BackendUnavailable, UsageError
from training.mlflow_retry import cause, fail_fast, first_use, retry_when_locked, shown, translate_errors
from training.tracking_uri import resolve

CHAMPION = "champion"
PREVIOUS = "previous"
BUCKET_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Server:
    """A tracking store that has answered, and the experiment in it."""

    uri: str
    client: mlflow.MlflowClient
    experiment_id: str
    experiment_name: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is being recorded."""

    server: Server
    run_id: str
    name: str
    artifact_uri: str

    @property
    def uri(self) -> str:
        return f"runs:/{self.run_id}/model"

    def tag(self, tags: Mapping[str, object]) -> None:
        for key, value in tags.items():
            with translate_errors("tag the run"):
                retry_when_locked(partial(self.server.client.set_tag, self.run_id, key, str(value)))

    def log(self, *, params: Mapping[str, Any], metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        now = int(time.time() * 1000)
        batch = {
            "metrics": [Metric(_key(name), float(value), now, 0) for name, value in metrics.items()],
            "params": [Param(_key(name), str(value)[:6000]) for name, value in params.items()],
            "tags": [RunTag(_key(name), str(value)) for name, value in tags.items()],
        }
        with translate_errors("record the run"):
            retry_when_locked(partial(self.server.client.log_batch, self.run_id, **batch))

    def upload(self, files: Mapping[str, bytes], folder: str) -> None:
        """Put files under the run's artifacts."""
        with tempfile.TemporaryDirectory() as aside:
            for name, data in files.items():
                (Path(aside) / name).write_bytes(data)
            with translate_errors("store the run's files"):
                retry_when_locked(lambda: self.server.client.log_artifacts(self.run_id, aside, folder))


def connect(uri: str | None, experiment: str) -> Server:
    """The server, after it has answered a real question within seconds; BackendUnavailable otherwise."""
    tracking, root = resolve(uri)
    _quiet()
    try:
        with fail_fast(), first_use(tracking):
            client = mlflow.MlflowClient(tracking_uri=tracking, registry_uri=tracking)
            client.search_registered_models(max_results=1)
            found = retry_when_locked(lambda: client.get_experiment_by_name(experiment))
            experiment_id = (
                retry_when_locked(lambda: _create_experiment(client, experiment, root)) if found is None else found.experiment_id
            )
    except Exception as error:  # requests, SQLAlchemy and MLflow each have their own
        raise BackendUnavailable(
            f"MLflow at {shown(tracking)} cannot be used ({cause(error)}): start it, or use --no-tracking"
        ) from None
    if found is not None and found.lifecycle_stage != "active":
        raise BackendUnavailable(f"the experiment '{experiment}' is deleted in MLflow: restore it, or use --experiment-name")
    if root is not None:
        place = f"{root}/{experiment}"
        if found is not None and found.artifact_location != place:
            raise UsageError(
                f"the experiment '{experiment}' keeps its files at {found.artifact_location}: use another --experiment-name"
            )
        _reach(place)
    return Server(tracking, client, experiment_id, experiment)


@contextlib.contextmanager
def running(server: Server, run_name: str | None) -> Iterator[Run]:
    """A run that ends FINISHED, or FAILED when the block raises."""
    with translate_errors("start a run"):
        made = retry_when_locked(lambda: server.client.create_run(server.experiment_id, run_name=run_name))
    run = Run(server, made.info.run_id, made.info.run_name, made.info.artifact_uri)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    finally:
        with contextlib.suppress(Exception):
            retry_when_locked(lambda: server.client.set_terminated(run.run_id, status))


def log_model(run: Run, model: Any, signature: Signature, example: Any, requirements: Sequence[str]) -> str:
    """Record the model with its signature and example; gives its `models:/m-...` address."""
    from mlflow import sklearn as flavour

    arguments: dict[str, Any] = {
        "name": "model",
        "signature": _signature(signature),
        "input_example": example,
        "pip_requirements": list(requirements),
    }
    # The fluent API logs into the active run of this process, on the URI set here.
    mlflow.set_tracking_uri(run.server.uri)
    mlflow.set_registry_uri(run.server.uri)
    with translate_errors("store the model"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mlflow.start_run(run_id=run.run_id):
            trusted = _types(model)
            formats: list[dict[str, Any]] = [{"serialization_format": "cloudpickle"}]
            if trusted is not None:
                formats.insert(0, {"serialization_format": "skops", "skops_trusted_types": trusted})
            for at, chosen in enumerate(formats):
                try:
                    info = retry_when_locked(partial(flavour.log_model, model, **arguments, **chosen))
                    break
                except MlflowException:
                    if at == len(formats) - 1:
                        raise
    uri: str = info.model_uri
    return uri


def register(run: Run, model_uri: str, name: str) -> str:
    """A new version of the registered model; gives its number."""
    client = run.server.client
    with translate_errors(f"register {name}"):
        with contextlib.suppress(MlflowException):
            retry_when_locked(lambda: client.create_registered_model(name))
        version = retry_when_locked(
            lambda: client.create_model_version(name, source=model_uri, run_id=run.run_id, model_id=_model_id(model_uri))
        )
    return str(version.version)


def tag_version(server: Server, name: str, version: str, tags: Mapping[str, object]) -> None:
    with translate_errors(f"tag version {version} of {name}"):
        for key, value in tags.items():
            retry_when_locked(partial(server.client.set_model_version_tag, name, version, key, str(value)))


def crown(client: mlflow.MlflowClient, name: str, version: str) -> None:
    """Move the alias `champion` to this version; the one that had it becomes `previous`."""
    before = None
    with contextlib.suppress(MlflowException):
        before = str(client.get_model_version_by_alias(name, CHAMPION).version)
    if before == version:
        return
    retry_when_locked(lambda: client.set_registered_model_alias(name, CHAMPION, version))
    if before is not None:
        with contextlib.suppress(MlflowException):
            retry_when_locked(lambda: client.set_registered_model_alias(name, PREVIOUS, before))


def follow(uri: str | None, store: Store) -> str | None:
    """Make the alias name what the store serves, whoever moved it last; gives the version, None when it came without MLflow.

    The store is asked again afterwards: of two that publish at once, the one that looks last puts the alias right.
    """
    _quiet()
    tracking, _ = resolve(uri)
    crowned = None
    try:
        with fail_fast():
            client = mlflow.MlflowClient(tracking_uri=tracking, registry_uri=tracking)
            for _ in range(5):
                manifest = next((entry.manifest for entry in store.entries() if entry.served), None)
                name, version = (None, None) if manifest is None else (manifest.mlflow_model_name, manifest.mlflow_model_version)
                if not name or not version or str(version) == crowned:
                    return crowned
                crown(client, name, str(version))
                crowned = str(version)
    except Exception as error:
        raise BackendUnavailable(f"the alias '{CHAMPION}' in MLflow at {shown(tracking)} was not moved ({cause(error)})") from None
    return crowned


# --- inside


def _reach(place: str) -> None:
    """List a bucket once: without its library, its key or the network, better now than after the training."""
    failed: list[BaseException] = []

    def look() -> None:
        try:
            get_artifact_repository(place).list_artifacts()
        except Exception as error:
            failed.append(error)

    looking = threading.Thread(target=look, daemon=True)  # Google's client tries for minutes
    looking.start()
    looking.join(BUCKET_SECONDS)
    if looking.is_alive() or failed:
        why = cause(failed[0]) if failed else f"no answer in {BUCKET_SECONDS:g} s"
        raise BackendUnavailable(f"the files of the runs cannot be put at {place} ({why}): correct it, or use --no-tracking")


def _create_experiment(client: mlflow.MlflowClient, name: str, root: str | None) -> str:
    made: str
    try:
        made = client.create_experiment(name, artifact_location=f"{root}/{name}" if root else None)
    except MlflowException as error:
        found = client.get_experiment_by_name(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
        if found is None:
            raise
        made = found.experiment_id  # another run was faster
    return made


def _signature(signature: Signature) -> ModelSignature:
    kinds = {"number": DataType.double, "boolean": DataType.boolean, "category": DataType.string}
    columns = [ColSpec(kinds[feature.kind], feature.name, required=not feature.nullable) for feature in signature.features]
    if signature.task == "regression":
        output = DataType.double
    else:
        label = signature.classes[0]
        output = DataType.boolean if isinstance(label, bool) else DataType.long if isinstance(label, int) else DataType.string
        if isinstance(label, float):
            output = DataType.double
    return ModelSignature(inputs=Schema(columns), outputs=Schema([ColSpec(output)]), params=ParamSchema([]))


def _types(model: Any) -> list[str] | None:
    """What skops must trust to load this very model: it was made here a moment ago. None when skops cannot store it."""
    import skops.io

    try:
        found: list[str] = skops.io.get_untrusted_types(data=skops.io.dumps(model))
    except Exception:
        return None
    return found


def _model_id(uri: str) -> str | None:
    name = uri.removeprefix("models:/")
    return name if name.startswith("m-") else None


def _key(name: str) -> str:
    """A metric's or parameter's name as MLflow allows it."""
    return "".join(char if char.isalnum() or char in "_-./ :" else "_" for char in name)[:250]


def _quiet() -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.ERROR)
