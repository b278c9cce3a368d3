"""Models from MLflow, for a store that holds none: the run that the store's metadata names, or the registry's alias.

MLflow is imported with the first look, not before. A run of this project's training carries the bundle, which is verified by its
digest like one from the store; another scikit-learn model is loaded as MLflow keeps it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import orjson

from serve_app.artifacts.bundle import Bundle, check_sizes, verify_files
from serve_app.artifacts.legacy import read_description
from serve_app.artifacts.manifest import MAX_MANIFEST_BYTES, Libraries, Manifest, parse_manifest, sha256
from serve_app.artifacts.manifest_bounds import check_bounds
from serve_app.artifacts.memory_limit import max_model_bytes
from serve_app.artifacts.mlflow_download import Download, downloading
from serve_app.artifacts.names import (
    BUNDLE_FOLDER,
    DIGEST_TAG,
    JOBLIB,
    MANIFEST,
    METRICS,
    MODEL_FOLDER,
    SEAL,
    VERSION,
)
from serve_app.artifacts.read_policy import ReadPolicy, check_seal, model_file, used_files
from serve_app.artifacts.regular_file import UnfitFile
from serve_app.artifacts.signing import MAX_SEAL_BYTES
from serve_app.artifacts.skops_format import skops_to_joblib
from serve_app.errors import BundleRefused
from serve_app.mlflow_address import kind_of, refusal

_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""MLflow would wait four minutes for a server that is down; a replica looks again later instead."""

MAX_DESCRIPTION_BYTES = 1024 * 1024
"""Bytes of the file in which MLflow describes a model."""
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

LOOK_SECONDS = 5.0
READ_SECONDS = 30.0
"""How long a look at MLflow and the download of a model may hold up the next look at the store."""


class MlflowSource:
    """A source of models. It looks at MLflow every `poll_seconds` at most, and keeps what it saw in between."""

    def __init__(self, tracking_uri: str, *, model_name: str, alias: str, model_dir: Path, poll_seconds: float) -> None:
        self._uri = tracking_uri
        self._refusal = refusal(tracking_uri)
        if kind_of(tracking_uri) == "database" and importlib.util.find_spec("sqlalchemy"):
            self._refusal = None  # the environment of training opens databases
        self._name = model_name
        self._alias = alias
        self._model_dir = model_dir
        self._poll_seconds = poll_seconds
        self._due = 0.0
        self._pointer: str | None = None
        self._failure: BundleRefused | None = None
        self._read_failure: tuple[str, float, BundleRefused] | None = None  # pointer, when it may be read again, why it was not
        self._pending: tuple[str, Future[Any]] | None = None

    def pointer(self) -> str | None:
        """The run and version to serve; None when nothing is registered. Raises BundleRefused `unreadable`."""
        if self._refusal is not None:
            raise BundleRefused("unreadable", self._refusal)
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._poll_seconds
            try:
                self._pointer, self._failure = self._within(LOOK_SECONDS, "look", self._look), None
            except BundleRefused as error:
                self._failure = error
        if self._failure is not None and self._pointer is None:
            raise self._failure
        return self._pointer

    def read(self, pointer: str, policy: ReadPolicy | None = None) -> Bundle:
        """The model that `pointer` names, verified when the run carries a bundle. Raises BundleRefused.

        With a policy, only what it allows and uses is fetched. A read that failed is tried again after `poll_seconds`.
        """
        if self._read_failure is not None:
            failed, due, error = self._read_failure
            if failed == pointer and time.monotonic() < due:
                raise error
            self._read_failure = None
        try:
            bundle: Bundle = self._within(READ_SECONDS, pointer, lambda: self._read(pointer, policy))
        except BundleRefused as error:
            self._read_failure = pointer, time.monotonic() + self._poll_seconds, error
            raise
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

    def _read(self, pointer: str, policy: ReadPolicy | None) -> Bundle:
        try:
            _, run_id, version = pointer.split(":")
            mlflow, client = self._client()
            run = client.get_run(run_id)
            paths = {item.path for item in client.list_artifacts(run_id, BUNDLE_FOLDER)}
            with (
                tempfile.TemporaryDirectory(prefix="iris-api-") as folder,
                downloading(self._uri, run_id, Path(folder)) as download,
            ):
                if f"{BUNDLE_FOLDER}/{MANIFEST}" in paths:
                    return _read_bundle(download, run, version, policy)
                return _read_model(mlflow, download, run, version, policy)
        except BundleRefused:
            raise
        except Exception as error:
            raise self._unreachable(error) from error

    def _look(self) -> str | None:
        run_id = self._legacy_run()
        if run_id is not None:
            return f"mlflow:{run_id}:0"
        try:
            _, client = self._client()
            registered = client.get_model_version_by_alias(self._name, self._alias)
            run_id, version = str(registered.run_id), str(registered.version)
        except Exception as error:
            if getattr(error, "error_code", None) in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None  # nothing registered yet
            raise self._unreachable(error) from error
        if not _RUN_ID.fullmatch(run_id) or not VERSION.fullmatch(version):
            raise BundleRefused("manifest", "MLflow names a run or a version that is not made of letters, digits and dashes")
        return f"mlflow:{run_id}:{version}"

    def _legacy_run(self) -> str | None:
        """The run that the metadata of a legacy layout names, when its model file is gone."""
        try:
            run_id = read_description(self._model_dir).mlflow_run_id
        except (OSError, UnfitFile, BundleRefused):
            return None
        return run_id if run_id is not None and _RUN_ID.fullmatch(run_id) else None

    def _client(self) -> tuple[Any, Any]:
        for name, value in _TIMEOUTS.items():
            os.environ.setdefault(name, value)
        import mlflow

        for library in ("mlflow", "urllib3"):  # a refusal says once what they would say at each look
            logging.getLogger(library).setLevel(logging.CRITICAL)
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


def _read_bundle(download: Download, run: Any, version: str, policy: ReadPolicy | None) -> Bundle:
    """The bundle that a training of this project left in its run: the manifest, the seal, then the files that are used."""
    digest = run.data.tags.get(DIGEST_TAG)
    if digest is None:
        raise BundleRefused("digest", "the MLflow run has no digest tag to compare its bundle with")
    raw = download.fetch(f"{BUNDLE_FOLDER}/{MANIFEST}", MAX_MANIFEST_BYTES)
    if sha256(raw) != digest:
        raise BundleRefused("digest", f"{MANIFEST} in MLflow does not have the digest of the run")
    seal = None
    if policy is not None and policy.verify is not None:
        with contextlib.suppress(BundleRefused):
            seal = download.fetch(f"{BUNDLE_FOLDER}/{SEAL}", MAX_SEAL_BYTES)
        check_seal(digest, seal, policy.verify)
    manifest = parse_manifest(raw)
    used = used_files(manifest.files, policy)
    check_sizes(manifest.files, used)
    files = {name: download.fetch(f"{BUNDLE_FOLDER}/{name}", manifest.files[name].size) for name in sorted(used)}
    named = str(manifest.version or version)
    return verify_files(named, digest, raw, files, source="mlflow", seal=seal, policy=policy)


def _read_model(mlflow: Any, download: Download, run: Any, version: str, policy: ReadPolicy | None) -> Bundle:
    """A model without our bundle: its pickle becomes the `model.joblib` of a plain bundle, its run's metrics the metrics.

    Nothing proves it and it is unpickled in the end, so the policy is asked before anything is fetched.
    """
    import yaml  # MLflow brings it

    if policy is not None:
        check_seal("", None, policy.verify)
        model_file((JOBLIB,), policy)
    description = yaml.safe_load(download.fetch(f"{MODEL_FOLDER}/MLmodel", MAX_DESCRIPTION_BYTES))
    model = mlflow.models.Model.from_dict(description)
    flavor = model.flavors.get("sklearn")
    if flavor is None:
        raise BundleRefused("format", "the model in MLflow is not a scikit-learn model")
    name = Path(flavor.get("pickled_model") or "model.pkl").name
    data = download.fetch(f"{MODEL_FOLDER}/{name}", max_model_bytes())
    if flavor.get("serialization_format") == "skops":
        with tempfile.NamedTemporaryFile(prefix="iris-api-", suffix=".skops") as file:
            file.write(data)
            file.flush()
            data = skops_to_joblib(Path(file.name), max_model_bytes())
    names = model.signature.inputs.input_names() if model.signature and model.signature.inputs else []
    params = run.data.params
    document = {
        "feature_names": [str(name) for name in names],
        "model_type": params.get("model_type", "unknown"),
        "mlflow_run_id": run.info.run_id,
    }
    check_bounds(document, "the model in MLflow")
    manifest = msgspec.structs.replace(
        Manifest.from_legacy(document), libraries=Libraries(scikit_learn=flavor.get("sklearn_version"))
    )
    metrics = orjson.dumps(dict(run.data.metrics))
    return Bundle(version, sha256(data), manifest, orjson.loads(metrics), {JOBLIB: data, METRICS: metrics}, "mlflow")
