"""A version of a registered model in MLflow, and the pointer that names it."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve_app.artifacts.names import DIGEST_TAG, VERSION
from serve_app.errors import BundleRefused

PREFIX = "mlflow:"
"""Prefix of the pointer of a version in MLflow; pointers of the store have another prefix."""
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
STAGES = ("production", "staging")
"""Names of stages, the predecessors of aliases in MLflow; `look_up` uses them when no alias has the name."""
UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""Error codes of MLflow for a model, a version, an alias or a run that does not exist."""


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version as MLflow describes it. `run_id` is None without a run, `digest` without a bundle.

    `changed_at` is the time of its registration or of the last change of its stage, in seconds since 1970.
    """

    name: str
    version: str
    run_id: str | None = None
    source: str = ""
    digest: str | None = None
    changed_at: float = 0.0
    pointer: str = field(init=False)
    """`mlflow:<version>:<key>`. The key changes with everything that decides which bytes are served."""

    def __post_init__(self) -> None:
        if not VERSION.fullmatch(self.version) or (self.run_id is not None and not RUN_ID.fullmatch(self.run_id)):
            raise BundleRefused("manifest", "MLflow names a run or a version that is not made of letters, digits and dashes")
        key = hashlib.sha256("\n".join([self.name, self.run_id or "", self.source, self.digest or ""]).encode()).hexdigest()[:16]
        object.__setattr__(self, "pointer", f"{PREFIX}{self.version}:{key}")


def look_up(client: Any, name: str, alias: str) -> RegisteredVersion | None:
    """The version with this alias, otherwise the newest version in the stage of this name, or None. Raises the errors of MLflow."""
    try:
        found = client.get_model_version_by_alias(name, alias)
    except Exception as error:
        if getattr(error, "error_code", None) not in UNKNOWN:
            raise
        found = _in_stage(client, name, alias)
    return None if found is None else registered(found)


def registered(found: Any) -> RegisteredVersion:
    """The version from MLflow's `ModelVersion`; raises BundleRefused `manifest` for a name that a header cannot hold."""
    tags: Mapping[str, str] = found.tags or {}
    changed = found.last_updated_timestamp or found.creation_timestamp or 0
    return RegisteredVersion(
        str(found.name), str(found.version), found.run_id or None, str(found.source or ""), tags.get(DIGEST_TAG), changed / 1000
    )


def _in_stage(client: Any, name: str, stage: str) -> Any:
    if stage.lower() not in STAGES:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow says that stages are deprecated
            versions = client.get_latest_versions(name, stages=[stage.capitalize()])
    except Exception as error:
        if getattr(error, "error_code", None) not in UNKNOWN:
            raise
        return None
    return max(versions, key=lambda version: int(version.version), default=None)
