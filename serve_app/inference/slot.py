"""The slot: the predictor that a replica uses, and how it comes to be replaced.

`slot.predictor` is one attribute: a request reads it once and keeps what it read. `refresh()` looks at the store and, when
the pointer moved, loads the candidate aside and swaps the reference. Any doubt: the old predictor stays and `problem` says why.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from serve_app.artifacts.bundle import Bundle
from serve_app.errors import BundleRefused
from serve_app.inference.predictor import LoadPolicy, Predictor, open_predictor

log = logging.getLogger("iris_api.slot")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a candidate is not served: its pointer or version, a reason of BundleRefused.REASONS, a sentence, when (UTC)."""

    candidate: str
    reason: str
    message: str
    at: str


class Source(Protocol):
    """Where models come from: the store, or a registry."""

    def pointer(self) -> str | None:
        """What should be served, as a string that changes when it does; None when there is no model. Raises BundleRefused."""

    def read(self, pointer: str) -> Bundle:
        """The verified bundle that `pointer` names. Raises BundleRefused."""


class Slot:
    """Holds the predictor in use. Only `refresh` changes it, from one thread at a time.

    The first of `sources` that has a model is served.
    """

    def __init__(self, *sources: Source, terms: LoadPolicy | None = None) -> None:
        self.predictor: Predictor | None = None
        self.loaded_at: str | None = None
        self.refusal: Refusal | None = None
        self.swaps = 0
        self.load_seconds = 0.0
        self._sources = sources
        self._asked = len(sources)  # how many of them are looked at
        self._terms = terms or LoadPolicy()
        self._pointer: str | None = None  # what the predictor in use was loaded from
        self._refused: tuple[str, Refusal] | None = None  # refused for good; not looked at again until the pointer moves

    @property
    def problem(self) -> str | None:
        """Why there is no model, or why a newer one is not served; None when all is well."""
        if self.refusal is not None:
            return self.refusal.message
        return None if self.predictor is not None else "no model has been published yet"

    def refresh(self) -> bool:
        """Look once, load if there is something new; True when the predictor was swapped. Never raises for a bad candidate."""
        pointer: str | None = None
        try:
            for source in self._sources[: self._asked]:
                pointer = source.pointer()
                if pointer is not None:
                    break
            else:
                self._clear()
                return False
            if pointer == self._pointer:
                self._clear()
                return False
            if self._refused is not None and pointer == self._refused[0]:
                self.refusal = self._refused[1]
                return False
            self._load(pointer, source)
        except BundleRefused as error:
            self._refuse(pointer or "current", error)
            return False
        except Exception as error:  # a replica outlives whatever a model does while it is loaded
            log.exception("loading failed", extra={"candidate": pointer})
            self._refuse(pointer or "current", BundleRefused("load", f"the model cannot be loaded ({type(error).__name__})"))
            return False
        return True

    def _load(self, pointer: str, source: Source) -> None:
        """Swap. Sources behind this one are not asked any more: a store whose pointer is gone for a while is no reason to wait for
        MLflow, and the model that it gave goes on answering."""
        started = time.monotonic()
        predictor = open_predictor(source.read(pointer), self._terms)
        self.load_seconds = time.monotonic() - started
        before = self.predictor
        self._pointer = pointer
        self._asked = self._sources.index(source) + 1
        self.loaded_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.predictor = predictor  # the swap
        self.swaps += 1
        self._clear()
        log.info(
            "model swapped",
            extra={
                "model_version": predictor.version,
                "digest": predictor.digest,
                "predictor": predictor.kind,
                "previous": before.version if before else None,
                "seconds": round(self.load_seconds, 3),
            },
        )

    def _refuse(self, candidate: str, error: BundleRefused) -> None:
        name = candidate.rpartition("/")[2]
        repeated = self.refusal is not None and (self.refusal.candidate, self.refusal.reason) == (name, error.reason)
        if not repeated:
            self.refusal = Refusal(name, error.reason, str(error), datetime.now(UTC).isoformat(timespec="milliseconds"))
            serving = self.predictor.version if self.predictor else None
            log.error("model refused", extra={"candidate": name, "reason": error.reason, "why": str(error), "serving": serving})
        if error.final and self.refusal is not None:
            self._refused = (candidate, self.refusal)

    def _clear(self) -> None:
        self.refusal = None
        self._refused = None
