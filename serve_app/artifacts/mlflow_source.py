"""Models from MLflow's registry: the version with the alias, or the run that the metadata of a legacy layout name.

MLflow is imported with the first look, not before. A run of this project's training carries the bundle, which is verified by its
digest like one from the store; another scikit-learn model is loaded as MLflow keeps it. pandas is not needed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from serve_app.artifacts.mlflow_description import MAX_DESCRIPTION_BYTES, MLMODEL, NUMBERS, Description, parse_description
from serve_app.artifacts.mlflow_download import Download, MissingArtifact, downloading
from serve_app.artifacts.mlflow_version import RUN_ID, UNKNOWN, RegisteredVersion, look_up
from serve_app.artifacts.names import (
    BUNDLE_FOLDER,
    DIGEST_TAG,
    JOBLIB,
    MANIFEST,
    METRICS,
    MODEL_FOLDER,
    SEAL,
)
from serve_app.artifacts.read_policy import ReadPolicy, check_seal, model_file, used_files
from serve_app.artifacts.regular_file import UnfitFile
from serve_app.artifacts.signing import MAX_SEAL_BYTES
from serve_app.artifacts.skops_format import skops_to_joblib
from serve_app.errors import BundleRefused
from serve_app.mlflow_address import kind_of, refusal

_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""MLflow would wait four minutes for a server that is down; a replica looks again later instead."""

LEGACY_VERSION = "0"
"""The version of a model whose run the metadata of a legacy layout name."""
ADOPTABLE = frozenset({"format", "signature", "forbidden", "load", "golden"})
"""Reasons for which a model cannot be served as MLflow keeps it, and can be served as a bundle."""
_LOOK = "look"
LOOK_SECONDS = 5.0
READ_SECONDS = 30.0
"""How long a look at MLflow and the download of a model may hold up the next look at the store."""


Files = Callable[[], Iterable[tuple[str, bytes]]]
"""Gives the files of a bundle one by one, each time from the first one on."""


class MlflowSource:
    """A source of models. It looks at MLflow every `poll_seconds` at most, and keeps what it saw in between.

    `legacy` is the folder whose metadata may name a run instead of the alias; None: the alias alone decides.
    """

    def __init__(self, tracking_uri: str, *, model_name: str, alias: str, legacy: Path | None, poll_seconds: float) -> None:
        self.version: RegisteredVersion | None = None
        """What MLflow named when it was looked at last."""
        self.failure: BundleRefused | None = None
        """Why the last look had no result."""
        self._uri = tracking_uri
        self._refusal = refusal(tracking_uri)
        if kind_of(tracking_uri) == "database" and importlib.util.find_spec("sqlalchemy"):
            self._refusal = None  # the environment of training opens databases
        self._name = model_name
        self._alias = alias
        self._legacy = legacy
        self._poll_seconds = poll_seconds
        self._due = 0.0
        self._read_failure: tuple[str, float, BundleRefused] | None = None  # pointer, when it may be read again, why it was not
        self._pending: tuple[str, Future[Any]] | None = None

    def pointer(self) -> str | None:
        """The version to serve; None when nothing is registered. Raises BundleRefused `unreadable`."""
        if self._refusal is not None:
            raise BundleRefused("unreadable", self._refusal)
        if time.monotonic() >= self._due and not self._is_reading():
            self._due = time.monotonic() + self._poll_seconds
            try:
                self.version, self.failure = self._within(LOOK_SECONDS, _LOOK, self._look), None
            except BundleRefused as error:
                self.failure = error
        if self.failure is not None and self.version is None:
            raise self.failure
        return None if self.version is None else self.version.pointer

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
            version = self._named(pointer)
            bundle: Bundle = self._within(READ_SECONDS, pointer, lambda: self._read(version, policy))
        except BundleRefused as error:
            self._read_failure = pointer, time.monotonic() + self._poll_seconds, error
            raise
        return bundle

    def copy(self, version: RegisteredVersion) -> tuple[bytes, bytes | None, Files] | None:
        """The bundle of a version, to be stored: its manifest, its seal, and its files, each compared with its digest.

        None for a model without a bundle. Raises BundleRefused, also while the files are fetched.
        """
        if version.run_id is None:
            return None
        root, seal = f"runs:/{version.run_id}", None
        try:
            with downloading(self._uri, root) as download:
                found = self._manifest(version, download)
                if found is None:
                    return None
                with contextlib.suppress(MissingArtifact):
                    seal = download.fetch(f"{BUNDLE_FOLDER}/{SEAL}", MAX_SEAL_BYTES)
        except BundleRefused:
            raise
        except Exception as error:
            raise self._unreachable(error) from error
        raw, _ = found
        entries = parse_manifest(raw).files

        def files() -> Iterator[tuple[str, bytes]]:
            with downloading(self._uri, root) as download:
                for name, entry in sorted(entries.items()):
                    data = download.fetch(f"{BUNDLE_FOLDER}/{name}", entry.size)
                    if sha256(data) != entry.sha256:
                        raise BundleRefused("digest", f"{name} does not have the published digest")
                    yield name, data

        return raw, seal, files

    def model(self, version: RegisteredVersion) -> Bundle:
        """A model without a bundle once more, to be stored; raises BundleRefused."""
        try:
            return self._read_model(version, None)
        except BundleRefused:
            raise
        except Exception as error:
            raise self._unreachable(error) from error

    @property
    def advice(self) -> str:
        """The command that adopts a model which cannot be served as it is."""
        return f"adopt it with `iris-api adopt {_quoted(f'models:/{self._name}@{self._alias}')} --sample FILE`"

    def _named(self, pointer: str) -> RegisteredVersion:
        if self.version is None or self.version.pointer != pointer:
            raise BundleRefused("unreadable", "MLflow does not name this version now", final=False)
        return self.version

    def _is_reading(self) -> bool:
        """Whether a model is being fetched: one thing is asked of MLflow at a time, and a look that has to wait is no failure."""
        return self._pending is not None and self._pending[0] != _LOOK and not self._pending[1].done()

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

    def _read(self, version: RegisteredVersion, policy: ReadPolicy | None) -> Bundle:
        try:
            if version.run_id is not None:
                with downloading(self._uri, f"runs:/{version.run_id}") as download:
                    found = self._manifest(version, download)
                    if found is not None:
                        return _read_bundle(download, *found, version, policy)
            return self._read_model(version, policy)
        except BundleRefused:
            raise
        except Exception as error:
            raise self._unreachable(error) from error

    def _manifest(self, version: RegisteredVersion, download: Download) -> tuple[bytes, str] | None:
        """The manifest of the run's bundle and its digest; None without a bundle. Raises BundleRefused, and what MLflow raises."""
        _, client = self._client()
        try:
            run = client.get_run(version.run_id)
            paths = {item.path for item in client.list_artifacts(version.run_id, BUNDLE_FOLDER)}
        except Exception as error:
            if getattr(error, "error_code", None) not in UNKNOWN:
                raise
            return None  # the run is gone, the version has its own files
        if f"{BUNDLE_FOLDER}/{MANIFEST}" not in paths:
            return None
        digests = {version.digest, run.data.tags.get(DIGEST_TAG)} - {None}
        if not digests:
            raise BundleRefused("digest", "the MLflow run has no digest tag to compare its bundle with")
        raw = download.fetch(f"{BUNDLE_FOLDER}/{MANIFEST}", MAX_MANIFEST_BYTES)
        if digests != {sha256(raw)}:
            raise BundleRefused("digest", f"{MANIFEST} in MLflow does not have the digest of the run and of the version")
        return raw, sha256(raw)

    def _read_model(self, version: RegisteredVersion, policy: ReadPolicy | None) -> Bundle:
        """A model without our bundle, whose files are those of the version, or of the folder `model` of a legacy run."""
        try:
            if policy is not None:  # nothing proves the model and it is unpickled in the end: asked before anything is fetched
                check_seal("", None, policy.verify)
                model_file((JOBLIB,), policy)
            is_registered = version.version != LEGACY_VERSION
            root = f"models:/{version.name}/{version.version}" if is_registered else f"runs:/{version.run_id}"
            with downloading(self._uri, root) as download:
                return self._foreign(download, "" if is_registered else f"{MODEL_FOLDER}/", version)
        except MissingArtifact as error:
            where = f"version {version.version} of {version.name} was registered from {version.source[:200] or 'a run'}"
            raise BundleRefused("manifest", f"{where}, and {error}: register it from the address that log_model returned") from None
        except BundleRefused as error:
            if error.reason in ADOPTABLE:
                raise BundleRefused(error.reason, f"{error}: {self.advice}") from error
            raise

    def _foreign(self, download: Download, folder: str, version: RegisteredVersion) -> Bundle:
        """A model of scikit-learn over columns of numbers, as the `model.joblib` of a plain bundle, with its run's metrics."""
        description = parse_description(download.fetch(f"{folder}{MLMODEL}", MAX_DESCRIPTION_BYTES))
        file = description.model_file()
        if file.flavor != "sklearn":
            raise BundleRefused("format", f"version {version.version} of {version.name} has the flavor {file.flavor}")
        names = _names_of_numbers(description)
        data = download.fetch(f"{folder}{file.path}", max_model_bytes())
        if file.format == "skops":
            with tempfile.NamedTemporaryFile(prefix="iris-api-", suffix=".skops") as packed:
                packed.write(data)
                packed.flush()
                data = skops_to_joblib(Path(packed.name), max_model_bytes())
        params, metrics = self._params_and_metrics(version)
        document = {
            "feature_names": names,
            "model_type": params.get("model_type", "unknown"),
            "mlflow_run_id": version.run_id,
            **(
                {}
                if version.version == LEGACY_VERSION
                else {"mlflow_model_name": version.name, "mlflow_model_version": version.version}
            ),
        }
        check_bounds(document, "the model in MLflow")
        manifest = msgspec.structs.replace(
            Manifest.from_legacy(document), libraries=Libraries(scikit_learn=file.libraries.get("scikit-learn"))
        )
        raw = orjson.dumps(metrics)
        files = {JOBLIB: data, METRICS: raw}
        return Bundle(version.version, sha256(data), manifest, orjson.loads(raw), files, "mlflow", advice=self.advice)

    def _params_and_metrics(self, version: RegisteredVersion) -> tuple[Mapping[str, str], Mapping[str, float]]:
        """Those of the run; empty for a version without a run, and for a run that is gone."""
        if version.run_id is None:
            return {}, {}
        try:
            _, client = self._client()
            data = client.get_run(version.run_id).data
        except Exception as error:
            if getattr(error, "error_code", None) not in UNKNOWN:
                raise
            return {}, {}
        return dict(data.params), dict(data.metrics)

    def _look(self) -> RegisteredVersion | None:
        run_id = self._legacy_run()
        if run_id is not None:
            return RegisteredVersion(self._name, LEGACY_VERSION, run_id)
        try:
            _, client = self._client()
            return look_up(client, self._name, self._alias)
        except BundleRefused:
            raise
        except Exception as error:
            raise self._unreachable(error) from error

    def _legacy_run(self) -> str | None:
        """The run that the metadata of a legacy layout names, when its model file is gone."""
        if self._legacy is None:
            return None
        try:
            run_id = read_description(self._legacy).mlflow_run_id
        except (OSError, UnfitFile, BundleRefused):
            return None
        return run_id if run_id is not None and RUN_ID.fullmatch(run_id) else None

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


def _read_bundle(download: Download, raw: bytes, digest: str, version: RegisteredVersion, policy: ReadPolicy | None) -> Bundle:
    """The bundle that a training of this project left in its run: the seal, then the files that are used."""
    seal = None
    if policy is not None and policy.verify is not None:
        with contextlib.suppress(MissingArtifact):
            seal = download.fetch(f"{BUNDLE_FOLDER}/{SEAL}", MAX_SEAL_BYTES)
        check_seal(digest, seal, policy.verify)
    manifest = parse_manifest(raw)
    used = used_files(manifest.files, policy)
    check_sizes(manifest.files, used)
    files = {name: download.fetch(f"{BUNDLE_FOLDER}/{name}", manifest.files[name].size) for name in sorted(used)}
    named = str(manifest.version or version.version)
    return verify_files(named, digest, raw, files, source="mlflow", seal=seal, policy=policy)


def _names_of_numbers(description: Description) -> list[str]:
    """The names of the columns, all of which are numbers; raises BundleRefused `signature`."""
    if description.columns is None:
        raise BundleRefused("signature", "the model in MLflow was logged without a signature of named columns")
    others = [column for column in description.columns if column.type not in NUMBERS]
    if others:
        names = ", ".join(f"{column.name} ({column.type})" for column in others)[:300]
        raise BundleRefused("signature", f"the model in MLflow takes columns that are not numbers, {names}")
    return [column.name for column in description.columns]


def _quoted(address: str) -> str:
    return f'"{address}"' if " " in address else address
