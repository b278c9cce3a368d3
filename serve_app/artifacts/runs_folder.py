"""A folder of MLflow runs in the place of a store. Deployments on plain Kubernetes served models from such a folder of the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serve_app.artifacts.bundle import Bundle
from serve_app.errors import BundleRefused

RUNS = "mlruns"
DESCRIPTION = "meta.yaml"
"""The file that MLflow writes into the folder of each experiment."""


class RunsFolder:
    """The last source of models. It has no models, and only explains why when the store's folder holds MLflow's runs instead."""

    def __init__(self, model_dir: Path) -> None:
        self._model_dir = model_dir

    def pointer(self) -> None:
        """None; raises BundleRefused `pointer` when the folder holds MLflow's runs."""
        for folder in (self._model_dir, self._model_dir / RUNS):
            if is_runs_folder(folder):
                raise BundleRefused(
                    "pointer",
                    f"MODEL_DIR {self._model_dir} holds MLflow's runs ({folder}) and no models: publish a model into it with `make "
                    f"train`, and migrate the runs to a database with `mlflow migrate-filestore --source {folder} --target "
                    "sqlite:///mlflow.db`",
                )

    def read(self, pointer: str, policy: Any = None) -> Bundle:
        """Never called, because `pointer` never returns a pointer."""
        raise BundleRefused("unreadable", "a folder of runs holds no bundle")


def is_runs_folder(folder: Path) -> bool:
    """Whether a child of the folder is an experiment of MLflow's file store."""
    try:
        return any((child / DESCRIPTION).is_file() for child in folder.iterdir() if child.is_dir())
    except OSError:
        return False
