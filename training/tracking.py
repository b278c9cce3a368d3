"""MLflow: records runs and creates versions of the registered model. `mlflow_model.py` reads models from MLflow.

Commands import this module only when they use tracking, because the import takes seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import posixpath
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import orjson
import pandas as pd
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import ColSpec, DataType, ParamSchema, Schema
from mlflow.types.schema import AnyType

from serve_app.artifacts.code_package import read_packages
from serve_app.artifacts.frame_columns import NUMBER, TEXTS
from serve_app.artifacts.manifest import Frame
from serve_app.artifacts.mlflow_version import STAGES
from serve_app.artifacts.names import DIGEST_TAG
from serve_app.artifacts.promotion import check_entry
from serve_app.artifacts.signature import Feature, Signature, label_text
from serve_app.artifacts.store import Store
from serve_app.errors import BackendUnavailable, BundleRefused, StoreError, UsageError
from serve_app.inference.policy import LoadPolicy
from serve_app.progress import note
from training import iris_api_pyfunc
from training.mlflow_retry import cause, fail_fast, first_use, redact, retry_when_locked, translate_errors
from training.tracking_uri import resolve

CHAMPION = "champion"
"""The default alias of the served version; IRIS_MODEL_ALIAS sets another."""

PREVIOUS = "previous"
"""The alias of the previously served version."""

CHALLENGER = "challenger"
"""The alias of a version under test; a version that becomes the champion loses it."""

MAX_KEY = 250
"""Most characters of an MLflow key."""

_PLAIN_DTYPES = {
    "number": NUMBER,
    "boolean": re.compile("bool"),
    **dict.fromkeys(("category", "text"), re.compile("|".join(TEXTS))),
}
"""The pandas dtypes that MLflow accepts, by kind of feature."""

BUCKET_SECONDS = 20.0
"""Seconds for the answer of a bucket before a training starts."""


@dataclass(frozen=True, slots=True)
class Server:
    """A tracking store that answered, and the experiment in it."""

    uri: str
    client: mlflow.MlflowClient
    experiment_id: str
    experiment_name: str


@dataclass(frozen=True, slots=True)
class Run:
    """An active run."""

    server: Server
    run_id: str
    name: str
    artifact_uri: str

    @property
    def uri(self) -> str:
        """The address of the run's model."""
        return f"runs:/{self.run_id}/model"

    def tag(self, tags: Mapping[str, object]) -> None:
        """Set tags of the run; raises BackendUnavailable."""
        for key, value in tags.items():
            with translate_errors("tag the run"):
                retry_when_locked(partial(self.server.client.set_tag, self.run_id, key, str(value)))

    def log(self, *, params: Mapping[str, Any], metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Record parameters, metrics and tags in one call; raises BackendUnavailable."""
        now = int(time.time() * 1000)
        batch = {
            "metrics": [Metric(allowed_key(name), float(value), now, 0) for name, value in metrics.items()],
            "params": [Param(allowed_key(name), str(value)[:6000]) for name, value in params.items()],
            "tags": [RunTag(allowed_key(name), str(value)) for name, value in tags.items()],
        }
        with translate_errors("record the run"):
            retry_when_locked(partial(self.server.client.log_batch, self.run_id, **batch))

    def upload(self, files: Mapping[str, bytes], folder: str) -> None:
        """Put files into a folder of the run's artifacts; raises BackendUnavailable."""
        with tempfile.TemporaryDirectory() as aside:
            for name, data in files.items():
                (Path(aside) / name).write_bytes(data)
            with translate_errors("store the run's files"):
                retry_when_locked(lambda: self.server.client.log_artifacts(self.run_id, aside, folder))


def connect(uri: str | None, experiment: str) -> Server:
    """Connect to the server, and create the experiment if it does not exist.

    Raises BackendUnavailable when the server or the bucket does not answer within seconds, and UsageError when the experiment keeps
    its files elsewhere.
    """
    tracking, root = resolve(uri)
    quiet()
    try:
        with fail_fast(), first_use(tracking):
            client = mlflow.MlflowClient(tracking_uri=tracking, registry_uri=tracking)
            client.search_registered_models(max_results=1)
            known = retry_when_locked(lambda: client.get_experiment_by_name(experiment))
            experiment_id = (
                retry_when_locked(lambda: _create_experiment(client, experiment, root)) if known is None else known.experiment_id
            )
    except Exception as error:  # requests, SQLAlchemy and MLflow have separate classes of errors
        raise BackendUnavailable(
            f"MLflow at {redact(tracking)} cannot be used ({cause(error)}): start it, or use --no-tracking"
        ) from None
    if known is not None and known.lifecycle_stage != "active":
        raise BackendUnavailable(f"the experiment '{experiment}' is deleted in MLflow: restore it, or use --experiment-name")
    if root is not None:
        location = f"{root}/{experiment}"
        if known is not None and known.artifact_location != location:
            raise UsageError(
                f"the experiment '{experiment}' keeps its files at {known.artifact_location}: use another --experiment-name"
            )
        _check_bucket(location)
    return Server(tracking, client, experiment_id, experiment)


@contextlib.contextmanager
def running(server: Server, run_name: str | None) -> Iterator[Run]:
    """Start a run that ends FINISHED, or FAILED when the block raises; raises BackendUnavailable.

    At the end, prints the address of the run if the server has a page for it.
    """
    with translate_errors("start a run"):
        info = retry_when_locked(lambda: server.client.create_run(server.experiment_id, run_name=run_name)).info
    run = Run(server, info.run_id, info.run_name, info.artifact_uri)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    finally:
        with contextlib.suppress(Exception):
            retry_when_locked(lambda: server.client.set_terminated(run.run_id, status))
        if server.uri.startswith(("http://", "https://")):
            note(f"run {run.name}: {redact(server.uri).rstrip('/')}/#/experiments/{server.experiment_id}/runs/{run.run_id}")


def log_model(
    run: Run,
    model: Any,
    signature: Signature,
    requirements: Sequence[str],
    *,
    frame: Frame | None = None,
    packages: Mapping[str, bytes] | None = None,
) -> str:
    """Record the model with its signature and an example; returns its address `models:/m-...`. Raises BackendUnavailable.

    As scikit-learn model, it takes the columns in the form of training; as `python_function`, it takes a table like the training
    table (`training.iris_api_pyfunc`). `frame` and `packages` are those of the bundle; the user's modules are logged as code.
    """
    arguments: dict[str, Any] = {
        "sk_model": model,
        "document": signature.to_dict(),
        "frame": None if frame is None else frame.to_dict(),
        "packages": packages or {},
        "signature": _signature(signature, frame),
        "input_example": example(signature),
        "pip_requirements": list(requirements),
    }
    # The fluent API logs into the active run of this process, with the URI from here.
    mlflow.set_tracking_uri(run.server.uri)
    mlflow.set_registry_uri(run.server.uri)
    with translate_errors("store the model"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mlflow.start_run(run_id=run.run_id):
            trusted = _skops_types(model)
            formats: list[dict[str, Any]] = [{"serialization_format": "cloudpickle"}]
            if trusted is not None:
                formats.insert(0, {"serialization_format": "skops", "skops_trusted_types": trusted})
            for at, serialization in enumerate(formats):
                log = partial(Model.log, artifact_path=None, name="model", flavor=_TableFlavor, flavor_name="sklearn", **arguments)
                try:
                    info = retry_when_locked(partial(log, **serialization))
                    break
                except MlflowException:
                    if at == len(formats) - 1:
                        raise
    uri: str = info.model_uri
    return uri


class _TableFlavor:
    """MLflow's flavor for scikit-learn, with a `python_function` that codes tables as serving does."""

    @staticmethod
    def save_model(
        path: str,
        mlflow_model: Any,
        document: Mapping[str, Any],
        frame: Mapping[str, Any] | None,
        packages: Mapping[str, bytes],
        **arguments: Any,
    ) -> None:
        """Write the model into the folder `path`; `document` is the signature, and `frame` the frame, as JSON objects."""
        from mlflow import pyfunc, sklearn

        with tempfile.TemporaryDirectory() as folder:
            for name, source in read_packages(packages).items():
                file = Path(folder, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(source)
            code = [iris_api_pyfunc.__file__, *map(str, sorted(Path(folder).iterdir()))]
            sklearn.save_model(path=path, mlflow_model=mlflow_model, code_paths=code, **arguments)
        (Path(path) / iris_api_pyfunc.SIGNATURE_FILE).write_bytes(orjson.dumps(document))
        if frame is not None:
            (Path(path) / iris_api_pyfunc.FRAME_FILE).write_bytes(orjson.dumps(frame))
        mlflow_model.flavors[pyfunc.FLAVOR_NAME]["loader_module"] = iris_api_pyfunc.__name__.rpartition(".")[2]
        mlflow_model.save(str(Path(path) / "MLmodel"))


def register(run: Run, model_uri: str, name: str) -> str:
    """Create a version of the registered model from a recorded model; returns its number. Raises BackendUnavailable."""
    client = run.server.client
    with translate_errors(f"register {name}"):
        with contextlib.suppress(MlflowException):
            retry_when_locked(lambda: client.create_registered_model(name))
        version = retry_when_locked(
            lambda: client.create_model_version(name, source=model_uri, run_id=run.run_id, model_id=_model_id(model_uri))
        )
    return str(version.version)


def tag_version(server: Server, name: str, version: str, tags: Mapping[str, object]) -> None:
    """Set tags of a version of the registered model; raises BackendUnavailable."""
    with translate_errors(f"tag version {version} of {name}"):
        for key, value in tags.items():
            retry_when_locked(partial(server.client.set_model_version_tag, name, version, key, str(value)))


def move_alias(client: mlflow.MlflowClient, name: str, version: str, alias: str = CHAMPION) -> None:
    """Move the alias to this version; if `alias` is the name of a stage and no alias has this name, move the version to that stage.

    With `champion`, the former champion gets the alias `previous`, and the new champion loses the alias `challenger`. If versions
    have stages, the champion goes to Production, and the version that was there is archived.
    """
    before = None
    with contextlib.suppress(MlflowException):
        before = str(client.get_model_version_by_alias(name, alias).version)
    if before == version:
        return
    if before is None and alias.lower() in STAGES:
        _move_stage(client, name, version, alias.capitalize())
        return
    retry_when_locked(lambda: client.set_registered_model_alias(name, alias, version))
    if alias != CHAMPION:
        return
    if before is not None:
        with contextlib.suppress(MlflowException):
            retry_when_locked(lambda: client.set_registered_model_alias(name, PREVIOUS, before))
    with contextlib.suppress(MlflowException):
        if str(client.get_model_version_by_alias(name, CHALLENGER).version) == version:
            retry_when_locked(lambda: client.delete_registered_model_alias(name, CHALLENGER))
    with contextlib.suppress(MlflowException):
        if _are_staged(client, name):
            _move_stage(client, name, version, "Production")


def _are_staged(client: mlflow.MlflowClient, name: str) -> bool:
    """Whether a version of the registered model is in a stage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow says that stages are deprecated
        return bool(client.get_latest_versions(name, stages=["Staging", "Production"]))


def _move_stage(client: mlflow.MlflowClient, name: str, version: str, stage: str) -> None:
    """Move the version to the stage, and archive the versions that were there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if client.get_model_version(name, version).current_stage != stage:
            retry_when_locked(lambda: client.transition_model_version_stage(name, version, stage, archive_existing_versions=True))


def follow(uri: str | None, store: Store, model_name: str, policy: LoadPolicy, alias: str = CHAMPION) -> str | None:
    """Move the alias (IRIS_MODEL_ALIAS) of `model_name` to the version that the store serves, and return the version.

    Returns None when the served bundle was published without MLflow. Others may write to the store, so the manifest is not enough:
    the load policy must allow the bundle, and the version in MLflow must have the bundle's digest as tag. The function reads the
    store again after each move, so that the last of two simultaneous trainings corrects the alias. Raises StoreError when the alias
    was not moved because of the served bundle, and BackendUnavailable.
    """
    quiet()
    tracking, _ = resolve(uri)
    moved = None
    try:
        with fail_fast():
            client = mlflow.MlflowClient(tracking_uri=tracking, registry_uri=tracking)
            for _ in range(5):
                version = _served_version(client, store, model_name, policy)
                if version is None or version == moved:
                    return moved
                move_alias(client, model_name, version, alias)
                moved = version
    except (StoreError, BundleRefused) as error:
        raise StoreError(f"the alias '{alias}' of {model_name} in MLflow was not moved: {error}") from None
    except Exception as error:
        raise BackendUnavailable(f"the alias '{alias}' in MLflow at {redact(tracking)} was not moved ({cause(error)})") from None
    return moved


def _served_version(client: mlflow.MlflowClient, store: Store, model_name: str, policy: LoadPolicy) -> str | None:
    """The registered version of the served bundle, None without a version; raises BundleRefused or StoreError."""
    entry = store.served()
    if entry is None or entry.manifest is None or not entry.manifest.mlflow_model_name or not entry.manifest.mlflow_model_version:
        return None
    manifest = check_entry(entry, policy)
    name, version = str(manifest.mlflow_model_name), str(manifest.mlflow_model_version)
    if name != model_name:
        raise StoreError(f"the served version {entry.version} belongs to {name}: use --model-name '{name}' to move its alias")
    if retry_when_locked(lambda: client.get_model_version(name, version)).tags.get(DIGEST_TAG) != entry.digest:
        raise StoreError(f"version {version} in MLflow does not have the digest of the served version {entry.version} as tag")
    return version


def _check_bucket(location: str) -> None:
    """List a bucket once, to report a missing library, key or network before the training and not after it."""
    errors: list[BaseException] = []

    def list_artifacts() -> None:
        try:
            get_artifact_repository(location).list_artifacts()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=list_artifacts, daemon=True)  # Google's client retries for minutes
    thread.start()
    thread.join(BUCKET_SECONDS)
    if thread.is_alive() or errors:
        why = cause(errors[0]) if errors else f"no answer in {BUCKET_SECONDS:g} s"
        raise BackendUnavailable(
            f"MLflow cannot store files of runs at {location} ({why}): correct the cause, or use --no-tracking"
        )


def _create_experiment(client: mlflow.MlflowClient, name: str, root: str | None) -> str:
    experiment_id: str
    try:
        experiment_id = client.create_experiment(name, artifact_location=f"{root}/{name}" if root else None)
    except MlflowException as error:
        created = client.get_experiment_by_name(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
        if created is None:
            raise
        experiment_id = created.experiment_id  # another run created it first
    return experiment_id


def example(signature: Signature) -> pd.DataFrame:
    """A table with one row of typical values; the row is not from the training table."""
    row = replace(signature, features=tuple(replace(feature, example=None) for feature in signature.features)).example()
    values = {
        feature.name: round(float(row[feature.name] or 0.0)) if _whole(feature) else row[feature.name]
        for feature in signature.features
    }
    return pd.DataFrame([values])


def _signature(signature: Signature, frame: Frame | None = None) -> ModelSignature:
    dtypes = {} if frame is None else frame.dtypes
    columns = [
        ColSpec(_column_type(feature, dtypes.get(feature.name)), feature.name, required=not feature.nullable)
        for feature in signature.features
    ]
    return ModelSignature(inputs=Schema(columns), outputs=Schema(_output_columns(signature)), params=ParamSchema([]))


def _output_columns(signature: Signature) -> list[ColSpec]:
    """The output columns of `training.iris_api_pyfunc`: one value for each row, or a column for each target or quantile."""
    if signature.outputs:
        return [ColSpec(_answer_type(part), part.target) for _, part in signature.parts]
    if len(signature.quantiles) > 1:
        return [ColSpec(DataType.double, label_text(level)) for level in signature.quantiles]
    return [ColSpec(_answer_type(signature))]


def _answer_type(signature: Signature) -> DataType:
    if signature.task in ("regression", "outlier detection"):
        return DataType.double if signature.task == "regression" else DataType.boolean
    label = signature.classes[0]
    if isinstance(label, bool):
        return DataType.boolean
    return DataType.long if isinstance(label, int) else DataType.double if isinstance(label, float) else DataType.string


def _column_type(feature: Feature, dtype: str | None) -> DataType | AnyType:
    """The type of the column in a table like the training table, in which pandas reads whole numbers with gaps as float64.

    A table holds dates as texts, timestamps or numbers of an epoch. MLflow refuses columns of a `dtype` like category or Int64 as
    texts or numbers.
    """
    if feature.kind == "date" or (dtype is not None and not _PLAIN_DTYPES[feature.kind].fullmatch(dtype)):
        return AnyType()
    if feature.kind == "number":
        return DataType.long if _whole(feature) else DataType.double
    return DataType.boolean if feature.kind == "boolean" else DataType.string


def _whole(feature: Feature) -> bool:
    """Whether the column had a whole number in every row."""
    return feature.kind == "number" and not feature.nullable and type(feature.example) is int


def _skops_types(model: Any) -> list[str] | None:
    """The types that skops must trust to load this model, which this process fitted; None when skops cannot store the model."""
    import skops.io

    try:
        types: list[str] = skops.io.get_untrusted_types(data=skops.io.dumps(model))
    except Exception:
        return None
    return types


def _model_id(uri: str) -> str | None:
    name = uri.removeprefix("models:/")
    return name if name.startswith("m-") else None


def allowed_key(name: str) -> str:
    """The name as a key of MLflow, of at most 250 characters.

    `_` replaces characters that MLflow does not allow; then a digest of the name follows, so that `<30` and `>30` stay different
    keys and are the same in every run.
    """
    key = "".join(char if char.isalnum() or char in "_-./ :" else "_" for char in name)
    if key.startswith(("/", "..")) or posixpath.normpath(key) != key:  # MLflow reads it as a path outside the folder
        key = key.replace("/", "_").replace("..", "_")
    if key == name and len(key) <= MAX_KEY:
        return key
    mark = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{key[: MAX_KEY - len(mark) - 1]}-{mark}"


def quiet() -> None:
    """Disable MLflow's telemetry, log only errors of its libraries, and hide its lines about runs, which may show a password."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.ERROR)
