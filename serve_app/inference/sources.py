"""The sources of models: the store, and the alias in MLflow."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import Literal, Protocol

import msgspec

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.manifest import describe
from serve_app.artifacts.mlflow_mirror import ORIGIN, Mirror, Record, Unkept
from serve_app.artifacts.mlflow_source import MlflowSource
from serve_app.artifacts.mlflow_version import PREFIX, RegisteredVersion
from serve_app.artifacts.names import JOBLIB, METRICS
from serve_app.artifacts.signature import Signature
from serve_app.artifacts.store import CURRENT, Store
from serve_app.errors import BundleRefused
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.predictor import Predictor

log = logging.getLogger("iris_api.sources")

ModelSource = Literal["store", "mlflow", "newest"]
"""What decides which model is served: the store's pointer, the alias in MLflow, or the one that changed last."""


class Source(Protocol):
    """A source of models: the store, or a registry."""

    def pointer(self) -> str | None:
        """A string that names the model to serve and changes with it; None without a model. Raises BundleRefused."""

    def read(self, pointer: str, policy: LoadPolicy) -> Bundle:
        """The verified bundle that `pointer` names, with the files that the policy uses. Raises BundleRefused."""


class AliasSource:
    """A source that follows the alias in MLflow. It needs MLflow only for a version without a copy.

    With `mlflow`, the alias decides. With `newest`, the last change decides: the registration of the version or the move of the
    store's pointer. While MLflow has not answered or does not know the alias, the replica serves the version that it last took from
    MLflow, otherwise that of the store. `served` copies each version that the replica serves.
    """

    def __init__(self, store: Store, registry: MlflowSource, mirror: Mirror, *, decides: ModelSource) -> None:
        self.decides = decides
        self.problem: str | None = None
        """Why MLflow names no version now; None when it names one."""
        self._store = store
        self._registry = registry
        self._mirror = mirror
        self._served: str | None = None
        self._last: Record | None = None  # used while MLflow names no version
        self._is_last_read = False
        self._copying: threading.Thread | None = None

    def pointer(self) -> str | None:
        """The pointer of the model to serve; see Source."""
        alias, digest, changed_at = self._alias()
        if self.decides == "mlflow":
            return self._store.pointer() if alias is None else alias
        store = self._store.pointer()
        if alias is None or store is None:
            return store or alias
        if digest is not None and store.endswith(digest):  # the same bundle: keep the served pointer
            return self._served if self._served in (alias, store) else store
        return alias if changed_at > self._moved_at() else store

    def read(self, pointer: str, policy: LoadPolicy) -> Bundle:
        """The verified bundle, from a copy if possible; see Source."""
        if not pointer.startswith(PREFIX):
            return self._store.read(pointer, policy)
        version = self._version(pointer)
        copy = self._mirror.find(pointer, version.digest if version else None)
        if copy is not None:
            try:
                return self._mirror.read(copy, policy)
            except BundleRefused as error:
                if version is None or error.reason in ("unsigned", "forbidden"):
                    raise
                log.warning("the copy of a model is damaged; the replica downloads it again", extra={"why": str(error)})
        return self._registry.read(pointer, policy)

    def served(self, pointer: str, predictor: Predictor) -> None:
        """Copy the version that the replica now serves, in a separate thread. Never raises."""
        self._served = pointer
        version = self._version(pointer)
        if version is None:
            return
        bundle, signature = predictor.bundle, predictor.signature
        self._copying = threading.Thread(target=self._copy, args=(version, bundle, signature), name="mirror", daemon=True)
        self._copying.start()

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds` for a running copy; returns whether no copy is running."""
        if self._copying is not None:
            self._copying.join(seconds)
        return self._copying is None or not self._copying.is_alive()

    def _alias(self) -> tuple[str | None, str | None, float]:
        """Pointer, digest of the copy or the bundle, and time of the version that the alias names or last named."""
        try:
            pointer = self._registry.pointer()
            self._report(self._registry.failure, "MLflow does not know the alias" if pointer is None else None)
        except BundleRefused as error:
            pointer = None
            self._report(error, None)
        version = self._registry.version
        if pointer is not None and version is not None:
            copy = self._record()
            is_copied = copy is not None and copy.pointer == pointer
            return pointer, copy.bundle if is_copied and copy is not None else version.digest, version.changed_at
        last = self._record()
        if last is not None:
            return last.pointer, last.bundle, last.changed_at
        is_served = self._served is not None and self._served.startswith(PREFIX)  # a served version without a copy stays
        return (self._served if is_served else None), None, 0.0

    def _record(self) -> Record | None:
        if not self._is_last_read:
            self._last, self._is_last_read = self._mirror.last(), True
        return self._last

    def _report(self, failure: BundleRefused | None, otherwise: str | None) -> None:
        """Store the reason why MLflow names no version, and log each change once."""
        problem = otherwise if failure is None else str(failure)
        if problem != self.problem:
            if problem is not None:
                log.warning("the replica cannot follow the alias in MLflow", extra={"why": problem})
            elif self.problem is not None:
                log.info("the replica follows the alias in MLflow again")
        self.problem = problem

    def _version(self, pointer: str) -> RegisteredVersion | None:
        version = self._registry.version
        return version if version is not None and version.pointer == pointer else None

    def _moved_at(self) -> float:
        """The time of the last move of the store's pointer, or of the last change of a legacy model, in seconds since 1970."""
        for name in (CURRENT, JOBLIB):
            with contextlib.suppress(OSError):
                return os.lstat(self._store.root / name).st_mtime
        return 0.0

    def _copy(self, version: RegisteredVersion, served: Bundle, signature: Signature) -> None:
        try:
            copy = self._mirror.find(version.pointer, version.digest or served.digest)
            place = self._fetched(version, served, signature) if copy is None else self._mirror.note(version, served, copy.bundle)
        except Unkept as error:
            log.warning(
                "the replica could not copy the model in MLflow", extra={"model_version": version.version, "why": str(error)}
            )
            return
        finally:
            self._is_last_read = False
        log.info("the replica copied the model in MLflow", extra={"model_version": version.version, "place": place})

    def _fetched(self, version: RegisteredVersion, served: Bundle, signature: Signature) -> str:
        bundle = self._registry.copy(version)
        if bundle is not None:
            return self._mirror.keep(version, served, *bundle)
        model = self._registry.model(version)
        files = {JOBLIB: model.files[JOBLIB], METRICS: model.files[METRICS]}
        number = int(version.version) if version.version.isdigit() else 0
        manifest = msgspec.structs.replace(model.manifest, signature=signature, origin=ORIGIN, version=number)
        return self._mirror.keep(version, served, describe(files, manifest), None, files.items)
