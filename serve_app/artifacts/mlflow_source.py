"""Models from MLflow, for a store that holds none: the run that the store's metadata names, or the registry's alias.

MLflow is imported with the first look, not before. A run of this project's training carries the bundle, which is verified by its
digest like one from the store; another scikit-learn model is loaded as MLflow keeps it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import orjson

from serve_app.artifacts.bundle import Bundle, verify_files
from serve_app.artifacts.manifest import (
    MAX_BUNDLE_BYTES,
    MAX_MANIFEST_BYTES,
    Libraries,
    Manifest,
    json_object,
    parse_manifest,
    sha256,
)
from serve_app.artifacts.names import BUNDLE_FOLDER, DIGEST_TAG, JOBLIB, MANIFEST, METRICS, MODEL_FOLDER, SEAL
from serve_app.artifacts.signing import MAX_SEAL_BYTES
from serve_app.errors import BundleRefused

_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""MLflow would wait four minutes for a server that is down; a replica looks again later instead."""

MAX_ARTIFACTS = 1000
MAX_UNPACKED = 100
"""How many times its size a packed model may grow; one that wants more was made to fill the memory."""

LOOK_SECONDS = 5.0
READ_SECONDS = 30.0
"""How long a look at MLflow and the download of a model may hold up the next look at the store."""


class MlflowSource:
    """A source of models. It looks at MLflow every `poll_seconds` at most, and keeps what it saw in between."""

    def __init__(self, tracking_uri: str, *, model_name: str, alias: str, model_dir: Path, poll_seconds: float) -> None:
        self._uri = tracking_uri
        self._name = model_name
        self._alias = alias
        self._metadata = model_dir / MANIFEST
        self._poll_seconds = poll_seconds
        self._due = 0.0
        self._pointer: str | None = None
        self._failure: BundleRefused | None = None
        self._pending: tuple[str, Future[Any]] | None = None

    def pointer(self) -> str | None:
        """The run and version to serve; None when nothing is registered. Raises BundleRefused `unreadable`."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._poll_seconds
            try:
                self._pointer, self._failure = self._within(LOOK_SECONDS, "look", self._look), None
            except BundleRefused as error:
                self._failure = error
        if self._failure is not None and self._pointer is None:
            raise self._failure
        return self._pointer

    def read(self, pointer: str) -> Bundle:
        """The model that `pointer` names, verified when the run carries a bundle. Raises BundleRefused."""
        bundle: Bundle = self._within(READ_SECONDS, pointer, lambda: self._read(pointer))
        return bundle

    def _within(self, seconds: float, what: str, ask: Callable[[], Any]) -> Any:
        """The result of `ask`, from a thread that goes on when it takes longer; the next call for the same `what` gets its result.

        MLflow's own limits are between two bytes: a server that sends one now and then would hold up the store, too.
        """
        if self._pending is None or (self._pending[0] != what and self._pending[1].done()):
            self._pending = what, _in_thread(ask)
        if self._pending[0] != what:
            raise self._unreachable(TimeoutError())
        try:
            result = self._pending[1].result(seconds)
        except TimeoutError as error:
            if not self._pending[1].done():
                raise self._unreachable(error) from None
            self._pending = None
            raise
        except BaseException:
            self._pending = None
            raise
        self._pending = None
        return result

    def _read(self, pointer: str) -> Bundle:
        _, run_id, version = pointer.split(":")
        mlflow, client = self._client()
        try:
            run = client.get_run(run_id)
            paths = {item.path for item in client.list_artifacts(run_id, BUNDLE_FOLDER)}
            with tempfile.TemporaryDirectory(prefix="iris-api-") as folder:
                if f"{BUNDLE_FOLDER}/{MANIFEST}" in paths:
                    return _read_bundle(mlflow, run, version, Path(folder))
                return _read_model(mlflow, run, version, Path(folder))
        except BundleRefused:
            raise
        except Exception as error:
            raise self._unreachable(error) from error

    def _look(self) -> str | None:
        mlflow, client = self._client()
        run_id = self._legacy_run()
        if run_id is not None:
            return f"mlflow:{run_id}:0"
        try:
            registered = client.get_model_version_by_alias(self._name, self._alias)
        except mlflow.exceptions.MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None  # nothing registered yet
            raise self._unreachable(error) from error
        except Exception as error:
            raise self._unreachable(error) from error
        return f"mlflow:{registered.run_id}:{registered.version}"

    def _legacy_run(self) -> str | None:
        """The run that the metadata of a legacy layout names, when its model file is gone."""
        try:
            run_id = Manifest.from_legacy(json_object(self._metadata.read_bytes(), MANIFEST)).mlflow_run_id
        except (OSError, BundleRefused):
            return None
        return run_id if run_id is not None and run_id.isalnum() else None

    def _client(self) -> tuple[Any, Any]:
        for name, value in _TIMEOUTS.items():
            os.environ.setdefault(name, value)
        import mlflow

        mlflow.set_tracking_uri(self._uri)
        return mlflow, mlflow.MlflowClient(tracking_uri=self._uri)

    def _unreachable(self, error: Exception) -> BundleRefused:
        return BundleRefused("unreadable", f"MLflow did not give the model ({type(error).__name__})", final=False)


def _in_thread(ask: Callable[[], Any]) -> Future[Any]:
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(ask())
        except BaseException as error:  # the caller that waits gets it
            future.set_exception(error)

    threading.Thread(target=run, name="mlflow", daemon=True).start()
    return future


def _read_bundle(mlflow: Any, run: Any, version: str, folder: Path) -> Bundle:
    artifacts = _download(mlflow, f"runs:/{run.info.run_id}/{BUNDLE_FOLDER}", folder)
    raw = (artifacts / MANIFEST).read_bytes()
    digest = run.data.tags.get(DIGEST_TAG)
    if digest is None:
        raise BundleRefused("digest", "the MLflow run has no digest tag to compare its bundle with")
    if len(raw) > MAX_MANIFEST_BYTES or sha256(raw) != digest:
        raise BundleRefused("digest", f"{MANIFEST} in MLflow does not have the digest of the run")
    manifest = parse_manifest(raw)
    files = {name: (artifacts / name).read_bytes() for name in manifest.files if (artifacts / name).is_file()}
    named = str(manifest.version or version)
    seal = artifacts / SEAL
    sealed = seal.read_bytes()[:MAX_SEAL_BYTES] if seal.is_file() else None
    return verify_files(named, digest, raw, files, source="mlflow", seal=sealed)


def _read_model(mlflow: Any, run: Any, version: str, folder: Path) -> Bundle:
    """A model without our bundle: its pickle becomes the `model.joblib` of a plain bundle, its run's metrics the metrics."""
    artifacts = _download(mlflow, f"runs:/{run.info.run_id}/{MODEL_FOLDER}", folder)
    model = mlflow.models.Model.load(str(artifacts))
    flavor = model.flavors.get("sklearn")
    if flavor is None:
        raise BundleRefused("format", "the model in MLflow is not a scikit-learn model")
    file = artifacts / Path(flavor.get("pickled_model") or "model.pkl").name
    data = file.read_bytes() if flavor.get("serialization_format") != "skops" else _skops_to_joblib(file)
    names = model.signature.inputs.input_names() if model.signature and model.signature.inputs else []
    params = run.data.params
    manifest = Manifest(
        feature_names=tuple(str(name) for name in names),
        model_type=params.get("model_type", "unknown"),
        mlflow_run_id=run.info.run_id,
        libraries=Libraries(scikit_learn=flavor.get("sklearn_version")),
    )
    metrics = orjson.dumps(dict(run.data.metrics))
    files = {JOBLIB: data, METRICS: metrics}
    shutil.rmtree(artifacts, ignore_errors=True)
    return Bundle(version, sha256(data), manifest, orjson.loads(metrics), files, "mlflow")


def _download(mlflow: Any, uri: str, folder: Path) -> Path:
    """The artifacts below `uri`, in `folder`; refused before anything is fetched when MLflow lists more than a bundle may hold."""
    listed, folders, size = 0, [uri], 0
    while folders:
        root = folders.pop()
        for item in mlflow.artifacts.list_artifacts(artifact_uri=root):
            listed += 1
            size += item.file_size or 0
            if item.is_dir:
                folders.append(f"{root}/{Path(item.path).name}")
            if size > MAX_BUNDLE_BYTES or listed > MAX_ARTIFACTS:
                raise BundleRefused("manifest", "the model in MLflow has more bytes or files than a bundle may")
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))


def _skops_to_joblib(file: Path) -> bytes:
    """Load skops' format, which executes nothing, with the types it trusts by itself and no other."""
    import io
    import zipfile

    import joblib
    import skops.io

    with zipfile.ZipFile(file) as packed:
        unpacked = sum(entry.file_size for entry in packed.infolist())  # zipfile reads no entry further than it says
    if unpacked > min(MAX_BUNDLE_BYTES, MAX_UNPACKED * file.stat().st_size):
        raise BundleRefused("forbidden", f"the model in MLflow would grow to {unpacked} bytes when it is unpacked")
    unknown = skops.io.get_untrusted_types(file=file)
    if unknown:
        raise BundleRefused("forbidden", "the model in MLflow holds types that skops does not trust")
    buffer = io.BytesIO()
    joblib.dump(skops.io.load(file), buffer)
    return buffer.getvalue()
