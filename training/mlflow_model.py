"""A model in MLflow as local files, with its description and the files that were logged beside it.

    fetched = fetch("models:/Churn@champion", folder, tracking_uri="http://127.0.0.1:5000")

This module runs no code of the model: it reads `MLmodel` as YAML and the example as JSON, and does not open the model's file.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from serve_app.artifacts.mlflow_description import (
    MAX_DESCRIPTION_BYTES,
    MLMODEL,
    Column,
    Description,
    Format,
    parse_description,
)
from serve_app.artifacts.mlflow_version import STAGES, UNKNOWN
from serve_app.artifacts.names import DIGEST_TAG
from serve_app.artifacts.regular_file import UnfitFile, read_regular
from serve_app.errors import BundleRefused, UsageError
from training.mlflow_retry import cause, fail_fast, redact
from training.tracking_uri import DEFAULT_URI, resolve

if TYPE_CHECKING:
    import pandas as pd

MAX_EXAMPLE_BYTES = 64 * 1024 * 1024
_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DTYPES = {
    "integer": "int64",
    "long": "int64",
    "float": "float64",
    "double": "float64",
    "boolean": "bool",
    "datetime": "datetime64[us]",
}
_FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION, models:/NAME/latest, models:/m-ID or runs:/ID/PATH"


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address: a registered name with an alias, version, stage or `latest`; a logged model; or a run's folder."""

    text: str
    name: str | None = None
    alias: str | None = None
    version: str | None = None
    stage: str | None = None
    model_id: str | None = None
    run_id: str | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A model of MLflow in a local folder.

    `address` is the fetched address (a version in place of an alias). `model_file` has the format `file_format`; the first two
    formats of `Format` execute code when they are read. `columns` is the logged signature, None without named columns; `example` is
    the logged input example, with the types of the signature. `code_paths` holds the folder with logged code, from which MLflow
    imports. `digest` belongs to a bundle of this project in the same run.
    """

    address: str
    folder: Path
    flavor: str
    model_file: Path
    file_format: Format
    model_class: str | None
    libraries: Mapping[str, str]
    columns: tuple[Column, ...] | None
    example: pd.DataFrame | None
    code_paths: tuple[Path, ...]
    name: str | None = None
    version: str | None = None
    run_id: str | None = None
    digest: str | None = None


def is_address(text: str) -> bool:
    """Whether this is the address of a model in MLflow, and not a file."""
    return text.startswith(("models:", "runs:", "mlflow-artifacts:")) or _MODEL_ID.fullmatch(text) is not None


def parse_address(text: str) -> Address:
    """Parse an address; raises UsageError."""
    address = text.strip()
    if _MODEL_ID.fullmatch(address):
        raise UsageError(f"'{address}' lacks its scheme: write models:/{address}")
    scheme, _, rest = address.partition(":")
    if scheme not in ("models", "runs") or not rest.startswith("/") or rest.startswith("//"):
        raise UsageError(f"'{text}' is not an address of a model in MLflow: write {_FORMS}")
    parts = [part for part in rest.split("/") if part]
    return _run_address(address, parts) if scheme == "runs" else _model_address(address, parts)


def fetch(uri: str, folder: Path, *, tracking_uri: str | None = None) -> FetchedModel:
    """Create `folder`, download the model at `uri` into it, and describe the model.

    Raises UsageError for an unknown address, a model without a known flavor, and a server that does not answer.
    """
    address = parse_address(uri)
    tracking, _ = resolve(tracking_uri)
    if tracking == DEFAULT_URI and not Path(DEFAULT_URI.removeprefix("sqlite:///")).exists():
        raise UsageError(
            f"'{uri}' needs the address of an MLflow server: use --tracking-uri http://HOST:PORT or MLFLOW_TRACKING_URI"
        )
    resolved = resolve_address(address, tracking)
    local = _download(resolved, folder, tracking)
    return _described(resolved, local)


def described_folder(folder: Path) -> FetchedModel:
    """Describe the model that MLflow wrote into a local folder; raises UsageError."""
    return _described(Resolved(asked=Address(str(folder)), download=str(folder)), folder)


def resolve_address(address: Address, tracking: str) -> Resolved:
    """Resolve an address with the server `tracking`; raises UsageError with the existing alternatives."""
    return _Resolver(address, tracking).resolve()


@dataclass(frozen=True, slots=True)
class Resolved:
    """A resolved address: the address of the download, and the version or the run behind it."""

    asked: Address
    download: str
    name: str | None = None
    version: str | None = None
    run_id: str | None = None
    digest: str | None = None
    hint: str = ""
    """The alternatives, for the message when the folder holds no model."""


class _Resolver:
    """Resolves an address with MLflow; each error is a UsageError with the existing alternatives."""

    def __init__(self, address: Address, tracking: str) -> None:
        self._address = address
        self._tracking = tracking

    def resolve(self) -> Resolved:
        with _mlflow(self._tracking) as client:
            if self._address.run_id is not None:
                return self._run(client)
            return self._logged(client) if self._address.model_id is not None else self._registered(client)

    def _registered(self, client: Any) -> Resolved:
        address, name = self._address, self._address.name
        if address.alias is not None:
            found = self._ask(client.get_model_version_by_alias, name, address.alias, unknown=lambda: self._no_version(client))
        elif address.version is not None:
            found = self._ask(client.get_model_version, name, address.version, unknown=lambda: self._no_version(client))
        else:
            stages = None if address.stage is None else [address.stage]
            versions = self._ask(client.get_latest_versions, name, stages, unknown=lambda: self._no_version(client))
            found = max(versions, key=lambda version: int(version.version), default=None) or self._no_version(client)
        download = f"models:/{name}/{found.version}"
        digest = (found.tags or {}).get(DIGEST_TAG)
        return Resolved(address, download, str(name), str(found.version), found.run_id or None, digest)

    def _logged(self, client: Any) -> Resolved:
        model_id = self._address.model_id
        found = self._ask(
            client.get_logged_model,
            model_id,
            unknown=lambda: _wrong(f"MLflow has no logged model {model_id}: copy the address that log_model returned"),
        )
        return Resolved(self._address, f"models:/{model_id}", run_id=found.source_run_id or None)

    def _run(self, client: Any) -> Resolved:
        run_id, path = str(self._address.run_id), str(self._address.path)
        run = self._ask(
            client.get_run,
            run_id,
            unknown=lambda: _wrong(f"MLflow has no run {run_id}: give the run's ID (32 digits and letters), not its name"),
        )
        folders = sorted({item.path for item in client.list_artifacts(run_id) if item.is_dir} | self._models_of(client, run))
        if path.partition("/")[0] not in folders:
            near = _near(path, folders)
            what = f"it has {', '.join(folders)}" if folders else "it has no folder and no model"
            _wrong(f"the run {run_id} has no artifact '{path}'{near or f': {what}'}")
        hint = f"; the run has {', '.join(folders)}"
        return Resolved(self._address, f"runs:/{run_id}/{path}", run_id=run_id, digest=run.data.tags.get(DIGEST_TAG), hint=hint)

    @staticmethod
    def _models_of(client: Any, run: Any) -> set[str]:
        """The names of the models that the run logged; they are not artifacts of the run."""
        models = client.search_logged_models(
            experiment_ids=[run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'"
        )
        return {str(model.name) for model in models}

    def _ask(self, call: Callable[..., Any], *arguments: Any, unknown: Callable[[], Any]) -> Any:
        try:
            return call(*arguments)
        except Exception as error:
            if getattr(error, "error_code", None) not in UNKNOWN:
                raise
            return unknown()

    def _no_version(self, client: Any) -> NoReturn:
        """Raise UsageError with the registered models, or with the aliases and versions of this model."""
        address, name = self._address, str(self._address.name)
        names = [str(model.name) for model in client.search_registered_models(max_results=1000)]
        if name not in names:
            near = _near(name, names, lambda other: address.text.replace(name, other, 1))
            _wrong(f"MLflow has no registered model '{name}'{near or _listed('its models', names)}")
        aliases = dict(client.get_registered_model(name).aliases)
        if address.alias is not None:
            near = _near(address.alias, aliases, lambda other: f"models:/{name}@{other}")
            _wrong(
                f"'{name}' has no alias '{address.alias}'{near or _listed('its aliases', aliases, 'set one, or name a version')}"
            )
        if address.stage is not None:
            _wrong(f"'{name}' has no version in the stage {address.stage}{_listed('its aliases', aliases, 'name a version')}")
        versions = [str(version.version) for version in client.search_model_versions(f"name = '{name}'", max_results=20)]
        _wrong(f"'{name}' has no version {address.version or 'at all'}{_listed('its newest versions', versions, 'register one')}")


def _run_address(text: str, parts: Sequence[str]) -> Address:
    if len(parts) < 2:
        raise UsageError(f"'{text}' has no folder of the run: write runs:/ID/PATH, with the name from the call of log_model")
    run_id, path = parts[0], "/".join(parts[1:])
    if not _RUN_ID.fullmatch(run_id) or ".." in parts:
        raise UsageError(f"'{text}' is not an address of a model in MLflow: write runs:/ID/PATH")
    return Address(text, run_id=run_id, path=path)


def _model_address(text: str, parts: Sequence[str]) -> Address:
    if len(parts) == 1 and _MODEL_ID.fullmatch(parts[0]):
        return Address(text, model_id=parts[0])
    if len(parts) == 1 and "@" in parts[0]:
        name, _, alias = parts[0].rpartition("@")
        if name and alias:
            return Address(text, name=name, alias=alias)
    if len(parts) == 1 and "@" not in parts[0]:
        name = parts[0]
        raise UsageError(f"'{text}' has no version: write models:/{name}@champion, models:/{name}/1 or models:/{name}/latest")
    if len(parts) == 2 and "@" not in parts[0]:
        name, version = parts
        if version.isdigit():
            return Address(text, name=name, version=str(int(version)))
        if version.lower() == "latest":
            return Address(text, name=name)
        if version.lower() in STAGES:
            return Address(text, name=name, stage=version.capitalize())
        raise UsageError(
            f"'{version}' is not a version of a model: write a number or `latest`, or models:/{name}@{version} for an alias"
        )
    raise UsageError(f"'{text}' is not an address of a model in MLflow: write {_FORMS}")


@contextmanager
def _mlflow(tracking: str) -> Iterator[Any]:
    """A client of the server inside the block; foreign errors become a UsageError."""
    from training.tracking import quiet

    quiet()
    import mlflow

    mlflow.set_tracking_uri(tracking)
    mlflow.set_registry_uri(tracking)
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    try:
        with fail_fast():
            yield mlflow.MlflowClient(tracking_uri=tracking, registry_uri=tracking)
    except (UsageError, BundleRefused):
        raise
    except Exception as error:  # requests, SQLAlchemy and MLflow have separate classes of errors
        raise UsageError(
            f"MLflow at {redact(tracking)} did not give the model ({cause(error)}): start it, or correct --tracking-uri"
        ) from None


def _download(resolved: Resolved, folder: Path, tracking: str) -> Path:
    """The folder of `MLmodel` below `folder`; raises UsageError."""
    folder.mkdir(parents=True, exist_ok=True)
    with _mlflow(tracking):
        import mlflow

        try:
            local = mlflow.artifacts.download_artifacts(artifact_uri=resolved.download, dst_path=str(folder))
        except Exception as error:
            if getattr(error, "error_code", None) not in UNKNOWN:
                raise
            _wrong(f"'{resolved.asked.text}' is {resolved.download}, whose files are missing in MLflow: register the model again")
    path = Path(local)
    if not path.is_dir() or not (path / MLMODEL).is_file():
        held = ", ".join(sorted(item.name for item in path.iterdir())[:10]) if path.is_dir() else path.name
        _wrong(
            f"'{resolved.asked.text}' holds no {MLMODEL} (it holds {held or 'nothing'}): name the folder that log_model wrote"
            f"{resolved.hint}"
        )
    return path


def _described(resolved: Resolved, folder: Path) -> FetchedModel:
    asked = resolved.asked.text
    try:
        description = parse_description(read_regular(folder / MLMODEL, MAX_DESCRIPTION_BYTES))
        file = description.model_file()
        code = description.code_folder()
    except UnfitFile as error:
        raise UsageError(f"'{asked}' cannot be read: {error}") from None
    except BundleRefused as error:
        raise UsageError(f"'{asked}' cannot be adopted: {error}") from None
    model_file = folder / file.path
    if not model_file.is_file():
        _wrong(f"'{asked}' lacks its file {file.path}, which its {MLMODEL} names: log the model again")
    return FetchedModel(
        address=resolved.download,
        folder=folder,
        flavor=file.flavor,
        model_file=model_file,
        file_format=file.format,
        model_class=file.model_class,
        libraries=file.libraries,
        columns=description.columns,
        example=_example(description, folder),
        code_paths=(folder / code,) if code is not None and (folder / code).is_dir() else (),
        name=resolved.name,
        version=resolved.version,
        run_id=resolved.run_id or description.run_id,
        digest=resolved.digest,
    )


def _example(description: Description, folder: Path) -> pd.DataFrame | None:
    """The logged input example as a frame; None without an example, and for an example that is not a table."""
    import pandas as pd

    info = description.example or {}
    path = info.get("artifact_path")
    if not isinstance(path, str) or "/" in path:
        return None
    try:
        document = json.loads(read_regular(folder / path, MAX_EXAMPLE_BYTES))
        if info.get("type") == "dataframe" and isinstance(document, dict):
            frame = pd.DataFrame(document["data"], columns=document["columns"])
        elif info.get("type") == "ndarray" and isinstance(document, list):
            frame = pd.DataFrame(document)
        else:
            return None
    except (OSError, UnfitFile, ValueError, KeyError, TypeError):
        return None
    for column in description.columns or ():
        if column.name in frame:
            frame[column.name] = _typed(frame[column.name], column)
    return frame


def _typed(values: pd.Series[Any], column: Column) -> pd.Series[Any]:
    """The column with the type of the signature; whole numbers with gaps become float64, as in a table."""
    import pandas as pd

    dtype: Any = _DTYPES.get(column.type)
    if dtype is None:
        return values
    if values.isna().any():
        dtype = {"int64": "float64", "bool": "object"}.get(dtype, dtype)
    try:
        return pd.to_datetime(values) if column.type == "datetime" else values.astype(dtype)
    except (TypeError, ValueError):
        return values


def _near(text: str, names: Iterable[str], address: Callable[[str], str] = str) -> str:
    """`: did you mean …` with the name most similar to the text; empty when no name is similar."""
    near = difflib.get_close_matches(text, list(names), n=1)
    return f": did you mean {address(near[0])}" if near else ""


def _listed(what: str, names: Iterable[str], otherwise: str = "register it") -> str:
    listed = sorted(names)[:10]
    return f": {what} are {', '.join(listed)}" if listed else f" and no others: {otherwise}"


def _wrong(message: str) -> NoReturn:
    raise UsageError(message)
