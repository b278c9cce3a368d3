"""What the operator allows when a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serve_app.artifacts.signing import Verify

BackendChoice = Literal["auto", "onnx", "scikit-learn"]
"""`auto` takes ONNX Runtime for a bundle with an ONNX form; the others allow one backend only."""


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """What the trial of a model may take: seconds, and a share of the container's memory between 0 and 1."""

    seconds: float
    memory_share: float


@dataclass(frozen=True, slots=True)
class LoadPolicy:
    """What the operator allows: pickled models, which backend, and which signatures of bundles (None: none is needed).

    `trial` has the limits of the process in which a slot tries a model first; None loads it without a trial.
    """

    allow_joblib: bool
    backend: BackendChoice
    verify: Verify | None
    trial: TrialLimits | None = None
