"""What tests allow to be loaded."""

from __future__ import annotations

from serve_app.artifacts.read_policy import BackendChoice
from serve_app.artifacts.signing import Verify
from serve_app.inference.policy import LoadPolicy, TrialLimits


def load_policy(
    *, allow_joblib: bool = True, backend: BackendChoice = "auto", verify: Verify | None = None, trial: TrialLimits | None = None
) -> LoadPolicy:
    """A policy that allows everything but what a test changes."""
    return LoadPolicy(allow_joblib=allow_joblib, backend=backend, verify=verify, trial=trial)


ALLOW_ALL = load_policy()
