"""The slot: the predictor that a replica serves, and its replacement.

`slot.predictor` is one attribute: a request reads it once and keeps that predictor. `refresh()` asks the sources. When the pointer
has moved, it loads the candidate beside the served predictor and then swaps the reference. After a refusal, the old predictor
stays, and `problem` has the reason. The slot watches the pointer during a load, and gives up the load when the pointer moves.
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
"""Interval between two looks at the pointer during a load."""
LOAD_SECONDS = 120.0
"""Time limit for a load without a trial."""
MAX_NAME = 200
"""Maximum number of characters of a candidate's name in logs and answers."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The refusal of a candidate: its pointer or version, a reason of BundleRefused.REASONS, a message, and the time in UTC."""

    candidate: str
    reason: str
    message: str
    at: str


class Slot:
    """Holds the served predictor. Only `refresh` changes it, from one thread at a time.

    It serves the model of the first of `sources` that has one. `loaded_at` is an ISO 8601 text in UTC; `load_seconds` is the
    duration of the last load; `swaps` counts the swaps.
    """

    def __init__(self, *sources: Source, policy: LoadPolicy) -> None:
        self.predictor: Predictor | None = None
        self.loaded_at: str | None = None
        self.refusal: Refusal | None = None
        self.swaps = 0
        self.load_seconds = 0.0
        self.refreshed_at = time.monotonic()
        """The time of the last refresh that ended with a decision (served or finally refused), initially that of the start."""
        self._sources = sources
        self._alias_source = next((source for source in sources if isinstance(source, AliasSource)), None)
        self.policy = policy
        self._abandoned: list[Loading] = []  # given up, but their threads may still run
        self._closed = threading.Event()
        self._pointer: str | None = None  # of the served predictor
        self._final_refusal: tuple[str, Refusal] | None = None  # the slot does not read its candidate again until the pointer moves

    @property
    def model_source(self) -> ModelSource:
        """The store or the alias in MLflow, or the newest of both: the one that decides which model is served."""
        return self._alias_source.decides if self._alias_source is not None else "store"

    @property
    def registry_problem(self) -> str | None:
        """Why the slot cannot follow the alias in MLflow now; None when it can, and when only the store decides."""
        return self._alias_source.problem if self._alias_source is not None else None

    @property
    def problem(self) -> str | None:
        """Why the slot serves no model, or does not serve the newest one; None without a problem."""
        if self.refusal is not None:
            return self.refusal.message
        return None if self.predictor is not None else "no model has been published yet"

    def refresh(self) -> bool:
        """Ask the sources once and load a new model; returns True after a swap. Never raises for an invalid candidate.

        It returns within the time limits of the policy. When the pointer moves during a load, it starts the load of the new
        candidate.
        """
        candidate = "current"  # until a source names one
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
            except Exception as error:  # an error of a model must not end the replica
                refusal = BundleRefused("load", f"the model cannot be loaded ({type(error).__name__})")
                if not self._is_repeated(candidate, refusal):
                    log.exception("loading failed", extra={"candidate": _name(candidate)})
                self._refuse(candidate, refusal)
                return False

    def refresh_age_seconds(self) -> float:
        """Seconds since the last refresh that ended with a decision, initially since the start. Any thread may call it."""
        return time.monotonic() - self.refreshed_at

    def close(self) -> None:
        """Stop a running load, and start no new load."""
        self._closed.set()

    def _find(self) -> tuple[Source | None, str | None]:
        """The first source that has a model, and its pointer; (None, None) without a model."""
        for source in self._sources:
            pointer = source.pointer()
            if pointer is not None:
                return source, pointer
        return None, None

    def _is_new(self, pointer: str) -> bool:
        """Whether the candidate is neither served nor finally refused."""
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
            raise BundleRefused("unreadable", "an earlier load still reads the bundle", final=False)
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
        """The time limit in seconds for reading, the trial and the load; the trial has a shorter limit of its own."""
        return LOAD_SECONDS if self.policy.trial is None else 2 * self.policy.trial.seconds

    def _moved(self, pointer: str) -> bool:
        """Whether the sources name another candidate now; False when a source fails."""
        try:
            return self._find()[1] != pointer
        except Exception:
            return False

    def _abandon(self, loading: Loading) -> None:
        loading.stop()
        self._abandoned.append(loading)

    def _swap(self, source: Source, pointer: str, predictor: Predictor) -> None:
        """Swap the predictor.

        The slot no longer asks the sources after this one. When the pointer of the store is missing for a while, the model of the
        store continues to answer, and the slot does not wait for MLflow.
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
        """Whether the last refusal had the same candidate and reason, and is therefore already in the log."""
        return self.refusal is not None and (self.refusal.candidate, self.refusal.reason) == (_name(candidate), error.reason)

    def _clear(self) -> None:
        self.refusal = None
        self._final_refusal = None


def _name(candidate: str) -> str:
    """The candidate's name for logs and answers, made printable because other programs write pointers."""
    return printable(candidate.rpartition("/")[2][:MAX_NAME])
