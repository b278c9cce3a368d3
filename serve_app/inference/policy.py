"""The rules of the operator for loading models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serve_app.artifacts.read_policy import BackendChoice
from serve_app.artifacts.signing import SigningError, Verify, own_verifier, verifier
from serve_app.errors import UsageError


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """Limits on the trial of a model: seconds, and a share of the container's memory between 0 and 1."""

    seconds: float
    memory_share: float


@dataclass(frozen=True, slots=True)
class LoadPolicy:
    """The rules of the operator: whether to load pickled models, the backends, and the check of seals (None: no seal needed).

    `trial` has the limits of the process in which a slot first tries a model; None loads it without a trial.
    """

    allow_joblib: bool
    backend: BackendChoice
    verify: Verify | None
    trial: TrialLimits | None = None


def load_policy(
    *, allow_joblib: bool, backend: BackendChoice, verify_key: Path | None, signing_key: Path | None = None
) -> LoadPolicy:
    """The policy of the replicas, from the options of a command.

    With a signing key and without public keys, it trusts the seals of the signing key.

    Raises UsageError when a file is not a usable key.
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
