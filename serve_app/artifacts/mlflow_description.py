"""The file `MLmodel`, in which MLflow describes a model. This module reads it with PyYAML: `mlflow.models.Model` imports pandas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import orjson

from serve_app.errors import BundleRefused

MLMODEL = "MLmodel"
MAX_DESCRIPTION_BYTES = 1024 * 1024
MAX_COLUMNS = 10_000

Format = Literal["pickle", "cloudpickle", "skops", "xgboost", "lightgbm", "catboost"]
"""The format of a model's bytes. The first two execute code when they are loaded; the last three are those of the libraries."""
_PICKLES: dict[str, Format] = {"pickle": "pickle", "cloudpickle": "cloudpickle", "skops": "skops"}
_NATIVE: dict[str, Format] = {
    ".ubj": "xgboost",
    ".json": "xgboost",
    ".xgb": "xgboost",
    ".lgb": "lightgbm",
    ".txt": "lightgbm",
    ".cb": "catboost",
    ".cbm": "catboost",
    ".skops": "skops",
    ".pkl": "cloudpickle",
}
NUMBERS = frozenset({"integer", "long", "float", "double", "boolean"})
"""Types of MLflow's schema that are numbers for scikit-learn."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the logged signature; `type` is a name of MLflow's schema, as `double` or `string`."""

    name: str
    type: str
    required: bool = True


@dataclass(frozen=True, slots=True)
class ModelFile:
    """The file of a model: its flavor, its path below the folder of `MLmodel`, and the format of its bytes.

    `model_class` is the class that the flavor names, and `libraries` the versions that it was written with.
    """

    flavor: str
    path: str
    format: Format
    model_class: str | None
    libraries: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Description:
    """The contents of `MLmodel`. `columns` is None without a signature of named columns, `example` without an input example."""

    flavors: Mapping[str, Mapping[str, Any]]
    columns: tuple[Column, ...] | None
    example: Mapping[str, Any] | None
    model_id: str | None
    run_id: str | None

    def model_file(self) -> ModelFile:
        """The model's file; raises BundleRefused `format` for flavors without one, `manifest` for a path that leads elsewhere."""
        for flavor, read in _READERS.items():
            fields = self.flavors.get(flavor)
            if fields is not None:
                return read(fields)
        names = ", ".join(sorted(self.flavors)) or "no flavor"
        raise BundleRefused("format", f"it has {names[:200]}; the supported flavors are sklearn, xgboost, lightgbm and catboost")

    def code_folder(self) -> str | None:
        """The folder of the code that was logged beside the model, below the folder of `MLmodel`."""
        folders = (fields.get("code") for fields in self.flavors.values())
        return next((_inside(folder) for folder in folders if isinstance(folder, str) and folder), None)


def parse_description(raw: bytes) -> Description:
    """Read the bytes of `MLmodel`; raises BundleRefused `manifest`."""
    import yaml  # a dependency of MLflow

    try:
        document = yaml.safe_load(raw)  # the loader in Python, because the one in C crashes at deep nesting
    except (yaml.YAMLError, ValueError, RecursionError):
        raise BundleRefused("manifest", f"its {MLMODEL} is not YAML") from None
    if not isinstance(document, dict) or not isinstance(document.get("flavors"), dict):
        raise BundleRefused("manifest", f"its {MLMODEL} lists no flavors")
    example = document.get("saved_input_example_info")
    return Description(
        flavors={str(name): fields for name, fields in document["flavors"].items() if isinstance(fields, dict)},
        columns=_columns(document.get("signature")),
        example=example if isinstance(example, dict) else None,
        model_id=_text(document.get("model_id")),
        run_id=_text(document.get("run_id")),
    )


def _columns(signature: Any) -> tuple[Column, ...] | None:
    """The named columns in the JSON text of the signature's inputs; None for tensors and for columns without names."""
    inputs = signature.get("inputs") if isinstance(signature, dict) else None
    if not isinstance(inputs, str):
        return None
    try:
        specs = orjson.loads(inputs)
    except orjson.JSONDecodeError:
        raise BundleRefused("manifest", f"the signature in its {MLMODEL} is not JSON") from None
    if not isinstance(specs, list) or not specs:
        return None
    if len(specs) > MAX_COLUMNS:
        raise BundleRefused("manifest", f"the signature in its {MLMODEL} has more than {MAX_COLUMNS} columns")
    columns = tuple(_each_column(specs))
    return columns if len(columns) == len(specs) else None


def _each_column(specs: list[Any]) -> Iterator[Column]:
    for spec in specs:
        if isinstance(spec, dict) and isinstance(spec.get("name"), str) and spec.get("type") != "tensor":
            yield Column(spec["name"], str(spec.get("type")), spec.get("required") is not False)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _inside(path: Any, default: str = "") -> str:
    """The path relative to the model's folder; raises BundleRefused `manifest` when it leads out of the folder."""
    text = path if isinstance(path, str) and path else default
    parts = PurePosixPath(text).parts
    if not parts or ".." in parts or text.startswith("/") or len(text) > 250:
        raise BundleRefused("manifest", f"its {MLMODEL} names a file outside the model's folder")
    return "/".join(parts)


def _sklearn(fields: Mapping[str, Any]) -> ModelFile:
    name = str(fields.get("serialization_format") or "pickle")
    if name not in _PICKLES:
        raise BundleRefused("format", f"its format is {name[:50]!r}; use pickle, cloudpickle or skops")
    path = _inside(fields.get("pickled_model"), "model.pkl")
    return ModelFile("sklearn", path, _PICKLES[name], None, _versions(fields, scikit_learn="sklearn_version"))


def _native(flavor: str, default: str, version_key: str) -> Callable[[Mapping[str, Any]], ModelFile]:
    def read(fields: Mapping[str, Any]) -> ModelFile:
        path = _inside(fields.get("data"), default)
        kind = _NATIVE.get(PurePosixPath(path).suffix)
        if kind is None or (kind not in (flavor, "skops", "cloudpickle")):
            raise BundleRefused("format", f"its file {PurePosixPath(path).name[:100]!r} has no known format of {flavor}")
        name = _text(fields.get("model_class")) or _text(fields.get("model_type"))
        return ModelFile(flavor, path, kind, name, _versions(fields, **{flavor: version_key}))

    return read


def _versions(fields: Mapping[str, Any], **keys: str) -> dict[str, str]:
    return {library.replace("_", "-"): str(fields[key])[:50] for library, key in keys.items() if fields.get(key)}


_READERS: Mapping[str, Callable[[Mapping[str, Any]], ModelFile]] = {
    "sklearn": _sklearn,
    "xgboost": _native("xgboost", "model.ubj", "xgb_version"),
    "lightgbm": _native("lightgbm", "model.lgb", "lgb_version"),
    "catboost": _native("catboost", "model.cb", "catboost_version"),
}
"""Readers by flavor. The flavor `python_function`, which every model has, is not listed because it names a program, not a model."""
