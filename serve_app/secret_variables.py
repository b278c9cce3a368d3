"""The environment variables that are secrets, and an environment without them for processes that do not need them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

MLFLOW_SECRETS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""Variables that MLflow's client reads."""
SECRETS = ("API_KEY", "API_KEY_PREVIOUS", "MLFLOW_TRACKING_URI", *MLFLOW_SECRETS)
"""Secrets that may be files in IRIS_SECRETS_DIR instead of variables; an address may contain a password."""
SECRETS_DIR = "IRIS_SECRETS_DIR"
MOVED_SECRETS_DIR = "IRIS_MOVED_SECRETS_DIR"
"""The folder of the secrets that `iris-api serve` moved out of the environment; like variables, they take precedence."""


CLOUDS = ("AWS_", "AZURE_", "GOOGLE_")
"""Prefixes of the variables with which cloud libraries find buckets and log in."""
_SECRET = re.compile(r"PASSW(OR)?D|(^|_)(API_?KEY|KEY|TOKEN|SECRETS?|CREDENTIALS?|AUTH)(_|$)", re.IGNORECASE)
"""Parts of the names of variables in which other programs keep secrets."""


def strip_variables() -> None:
    """Strip white space from secrets and settings in the environment, because a file or a Secret often ends with a line end."""
    for name, value in os.environ.items():
        if name in SECRETS or name == "MODEL_DIR" or name.startswith("IRIS_"):
            os.environ[name] = value.strip()


def pop_secrets() -> dict[str, str]:
    """Remove the secrets from the environment of this process and of processes that it starts; return those that are not empty."""
    values = {name: os.environ.pop(name, "").strip() for name in SECRETS}
    return {name: value for name, value in values.items() if value}


@contextmanager
def without_secrets() -> Iterator[None]:
    """Remove the secrets from the environment inside the block, so that processes started there do not inherit them."""
    secrets = pop_secrets()
    try:
        yield
    finally:
        os.environ.update(secrets)


def environment_for_model(*, mlflow: bool, buckets: bool) -> dict[str, str]:
    """The environment for a process that loads an untrusted model: without secrets and without the settings of this project.

    `mlflow` keeps the variables of MLflow's client, and `buckets` those of the cloud libraries, for a process that needs them.
    """

    def is_kept(name: str) -> bool:
        if name.startswith("IRIS_"):
            return False
        if name.startswith(CLOUDS):
            return buckets
        return (mlflow and name.startswith("MLFLOW_")) or (name not in SECRETS and not _SECRET.search(name))

    return {name: value for name, value in os.environ.items() if is_kept(name)}
