"""What the operator allows when a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serve_app.artifacts.read_policy import BackendChoice
from serve_app.artifacts.signing import SigningError, Verify, own_verifier, verifier
from serve_app.errors import UsageError


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


def load_policy(
    *, allow_joblib: bool, backend: BackendChoice, verify_key: Path | None, signing_key: Path | None = None
) -> LoadPolicy:
    """The policy of the replicas, from the options of a command.

    With a signing key and without public keys, what that key has signed is trusted.

    Raises UsageError when a file is no usable key.
    """
    verify = None
    try:
        if verify_key is not None:
            verify = verifier(verify_key)
        elif signing_key is not None:
            verify = own_verifier(signing_key)
    except SigningError as error:
        raise UsageError(f"--verify-key: {error}") from None
    return LoadPolicy(allow_joblib=allow_joblib, backend=backend, verify=verify)
