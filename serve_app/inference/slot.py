"""The slot: the predictor that a replica serves, and its replacement.

`slot.predictor` is one attribute: a request reads it once and keeps that predictor. `refresh()` asks the sources and, when the
pointer has moved, loads the candidate aside and swaps the reference. A candidate that is refused leaves the old predictor in place,
and `problem` says why. While a candidate is loaded, the pointer is watched: when it moves, the load is given up.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from serve_app.errors import BundleRefused
from serve_app.inference.loading import Loading
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.predictor import Predictor
from serve_app.inference.sources import AliasSource, ModelSource, Source
from serve_app.printable import printable

log = logging.getLogger("iris_api.slot")

WATCH_SECONDS = 0.25
"""Between two looks at the pointer while a candidate is loaded."""
LOAD_SECONDS = 120.0
"""Most time for a load without limits of its own."""
MAX_NAME = 200
"""Characters of a candidate's name in logs and answers."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a candidate is not served: its pointer or version, a reason of BundleRefused.REASONS, a sentence, when (UTC)."""

    candidate: str
    reason: str
    message: str
    at: str


class Slot:
    """Holds the served predictor. Only `refresh` changes it, from one thread at a time.

    The first of `sources` that has a model is served. `loaded_at` is an ISO 8601 text in UTC; `load_seconds` is how long the last
    load took; `swaps` counts the predictors that were taken up.
    """

    def __init__(self, *sources: Source, policy: LoadPolicy) -> None:
        self.predictor: Predictor | None = None
        self.loaded_at: str | None = None
        self.refusal: Refusal | None = None
        self.swaps = 0
        self.load_seconds = 0.0
        self.refreshed_at = time.monotonic()
        """When the last refresh ended with a decision (the candidate is served, or refused for good); at first, the start."""
        self._sources = sources
        self._alias_source = next((source for source in sources if isinstance(source, AliasSource)), None)
        self.policy = policy
        self._abandoned: list[Loading] = []  # given up; their threads still run
        self._closed = threading.Event()
        self._pointer: str | None = None  # of the served predictor
        self._final_refusal: tuple[str, Refusal] | None = None  # its candidate is not read again until the pointer moves

    @property
    def model_source(self) -> ModelSource:
        """What decides which model is served."""
        return self._alias_source.decides if self._alias_source is not None else "store"

    @property
    def registry_problem(self) -> str | None:
        """Why the alias in MLflow cannot be followed now; None when it can, and when the store alone decides."""
        return self._alias_source.problem if self._alias_source is not None else None

    @property
    def problem(self) -> str | None:
        """Why there is no model, or why a newer one is not served; None when all is well."""
        if self.refusal is not None:
            return self.refusal.message
        return None if self.predictor is not None else "no model has been published yet"

    def refresh(self) -> bool:
        """Ask the sources once and load a new model; True when the predictor was swapped. Never raises for a bad candidate.

        It returns within the time limits of the policy. A pointer that moves meanwhile is followed at once.
        """
        candidate = "current"  # until a source has named one
        while True:
            try:
                source, pointer = self._find()
                candidate = pointer or candidate
                if source is None or pointer is None:
                    self._clear()
                if source is None or pointer is None or not self._is_new(pointer):
                    self.refreshed_at = time.monotonic()
                    return False
                predictor = self._load(source, pointer)
                if predictor is not None:
                    self._swap(source, pointer, predictor)
                    return True
                if self._closed.is_set():
                    return False
            except BundleRefused as error:
                self._refuse(candidate, error)
                return False
            except Exception as error:  # a replica outlives whatever a model does while it is loaded
                refusal = BundleRefused("load", f"the model cannot be loaded ({type(error).__name__})")
                if not self._is_repeated(candidate, refusal):
                    log.exception("loading failed", extra={"candidate": _name(candidate)})
                self._refuse(candidate, refusal)
                return False

    def refresh_age_seconds(self) -> float:
        """Seconds since the last refresh that ended with a decision, at first since the start; any thread may ask."""
        return time.monotonic() - self.refreshed_at

    def close(self) -> None:
        """End a load that is under way, and load nothing any more."""
        self._closed.set()

    def _find(self) -> tuple[Source | None, str | None]:
        """The first source that has a model, and its pointer; None twice when no source has one."""
        for source in self._sources:
            pointer = source.pointer()
            if pointer is not None:
                return source, pointer
        return None, None

    def _is_new(self, pointer: str) -> bool:
        """Whether the candidate is neither served nor refused for good."""
        if pointer == self._pointer:
            self._clear()
            return False
        if self._final_refusal is not None and pointer == self._final_refusal[0]:
            self.refusal = self._final_refusal[1]
            return False
        return True

    def _load(self, source: Source, pointer: str) -> Predictor | None:
        """The predictor; None when the pointer moved meanwhile. Raises BundleRefused."""
        self._abandoned = [loading for loading in self._abandoned if not loading.finished.is_set()]
        if any(loading.pointer == pointer and loading.is_reading for loading in self._abandoned):
            raise BundleRefused("unreadable", "the bundle is still being read", final=False)
        started = time.monotonic()
        loading = Loading(source, pointer, self.policy)
        while not loading.finished.wait(WATCH_SECONDS):
            if self._closed.is_set() or self._moved(pointer):
                self._abandon(loading)
                return None
            if time.monotonic() - started > self._max_seconds():
                self._abandon(loading)
                if loading.is_reading:
                    raise BundleRefused("unreadable", "the bundle could not be read in time", final=False)
                raise BundleRefused("load", f"the model was not loaded within {self._max_seconds():g} seconds")
        predictor = loading.result()
        self.load_seconds = time.monotonic() - started
        return predictor

    def _max_seconds(self) -> float:
        """For reading, the trial, and the load after it; the trial ends before by its own limit."""
        return LOAD_SECONDS if self.policy.trial is None else 2 * self.policy.trial.seconds

    def _moved(self, pointer: str) -> bool:
        """Whether the sources name another candidate now; False while they cannot be asked."""
        try:
            return self._find()[1] != pointer
        except Exception:
            return False

    def _abandon(self, loading: Loading) -> None:
        loading.stop()
        self._abandoned.append(loading)

    def _swap(self, source: Source, pointer: str, predictor: Predictor) -> None:
        """Take the predictor into use.

        The sources behind this one are not asked any more: a store whose pointer is gone for a while is no reason to wait for
        MLflow, and the model of the store continues to answer.
        """
        previous = self.predictor
        self._pointer = pointer
        self._sources = self._sources[: self._sources.index(source) + 1]
        self.loaded_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.predictor = predictor  # the swap
        self.swaps += 1
        self.refreshed_at = time.monotonic()
        self._clear()
        log.info(
            "model swapped",
            extra={
                "model_version": predictor.version,
                "digest": predictor.digest,
                "predictor": predictor.kind,
                "previous": previous.version if previous else None,
                "seconds": round(self.load_seconds, 3),
            },
        )
        if self._alias_source is not None:
            self._alias_source.served(pointer, predictor)

    def _refuse(self, candidate: str, error: BundleRefused) -> None:
        name = _name(candidate)
        if not self._is_repeated(candidate, error):
            self.refusal = Refusal(name, error.reason, str(error), datetime.now(UTC).isoformat(timespec="milliseconds"))
            serving = self.predictor.version if self.predictor else None
            log.error("model refused", extra={"candidate": name, "reason": error.reason, "why": str(error), "serving": serving})
        if error.final and self.refusal is not None:
            self._final_refusal = (candidate, self.refusal)
            self.refreshed_at = time.monotonic()

    def _is_repeated(self, candidate: str, error: BundleRefused) -> bool:
        """Whether the last refusal was of the same candidate for the same reason: it was logged then."""
        return self.refusal is not None and (self.refusal.candidate, self.refusal.reason) == (_name(candidate), error.reason)

    def _clear(self) -> None:
        self.refusal = None
        self._final_refusal = None


def _name(candidate: str) -> str:
    """The candidate for logs and answers: a pointer is a text that others write."""
    return printable(candidate.rpartition("/")[2][:MAX_NAME])
