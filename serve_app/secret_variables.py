"""The variables of the environment that are secrets, and an environment without them for processes that do not check them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

MLFLOW_SECRETS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""Variables that MLflow's client reads itself."""
SECRETS = ("API_KEY", "API_KEY_PREVIOUS", "MLFLOW_TRACKING_URI", *MLFLOW_SECRETS)
"""What may be a file in IRIS_SECRETS_DIR instead of a variable; an address may have a password in it."""
SECRETS_DIR = "IRIS_SECRETS_DIR"
MOVED_SECRETS_DIR = "IRIS_MOVED_SECRETS_DIR"
"""The folder of the secrets that `iris-api serve` took out of the environment: they still take precedence, as variables do."""


CLOUDS = ("AWS_", "AZURE_", "GOOGLE_")
"""How variables begin with which the libraries of the clouds find buckets and log in to them."""
_SECRET = re.compile(r"PASSW(OR)?D|(^|_)(API_?KEY|KEY|TOKEN|SECRETS?|CREDENTIALS?|AUTH)(_|$)", re.IGNORECASE)
"""What names of variables contain that other programs keep their secrets in."""


def strip_variables() -> None:
    """Take white space and line ends off secrets and settings in the environment: a file or a Secret often ends with a line end."""
    for name, value in os.environ.items():
        if name in SECRETS or name == "MODEL_DIR" or name.startswith("IRIS_"):
            os.environ[name] = value.strip()


def pop_secrets() -> dict[str, str]:
    """Take the secrets out of the environment of this process, and so of the processes that it starts; empty ones are left out."""
    values = {name: os.environ.pop(name, "").strip() for name in SECRETS}
    return {name: value for name, value in values.items() if value}


@contextmanager
def without_secrets() -> Iterator[None]:
    """An environment without the secrets for the block: processes that are started in it do not inherit them."""
    secrets = pop_secrets()
    try:
        yield
    finally:
        os.environ.update(secrets)


def environment_for_model(*, mlflow: bool, buckets: bool) -> dict[str, str]:
    """The environment of this process for one that loads a model of somebody else: without settings of this project, and secrets.

    `mlflow` keeps what MLflow's client reads, `buckets` what the libraries of the clouds read, for a process that needs them.
    """

    def is_kept(name: str) -> bool:
        if name.startswith("IRIS_"):
            return False
        if name.startswith(CLOUDS):
            return buckets
        return (mlflow and name.startswith("MLFLOW_")) or (name not in SECRETS and not _SECRET.search(name))

    return {name: value for name, value in os.environ.items() if is_kept(name)}
