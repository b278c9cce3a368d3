"""Models of XGBoost, LightGBM and CatBoost in the formats of their libraries: written into bundles, and read from users' files."""

from __future__ import annotations

import importlib
import io
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.artifacts.manifest import NativeForm
from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.names import CATBOOST, LIGHTGBM, NATIVE, XGBOOST
from serve_app.artifacts.signature import Kind, Label, Signature, Task
from serve_app.errors import UsageError
from serve_app.inference.backends.booster_backend import BoosterBackend
from serve_app.inference.booster_estimators import Booster, BoosterClassifier, BoosterRegressor, library
from serve_app.inference.native_guard import END_OF_TREES, check_native
from serve_app.inference.parity import same_scores
from training import fit
from training.booster_trees import own_object
from training.fit import final_estimator

_FILES = {package: file for file, package in NATIVE.items()}
_DISTRIBUTIONS = {"xgboost": ("xgboost", "xgboost-cpu")}
"""Distribution names of a library that differ from the name of its module."""


@dataclass(frozen=True, slots=True)
class Native:
    """A model in the format of its library; `form` is the entry `native` of the manifest."""

    data: bytes
    form: NativeForm


def is_booster(estimator: Any) -> bool:
    """Whether the estimator belongs to XGBoost, LightGBM or CatBoost, or wraps such an estimator."""
    return isinstance(estimator, Booster) or library(estimator) in _FILES


def native_file(estimator: Any) -> tuple[str, bytes]:
    """The name in a bundle and the bytes of a fitted booster in the format of its library, with the trees up to the best iteration.

    Raises NotImplementedError for other estimators.
    """
    inner = estimator.estimator_ if isinstance(estimator, Booster) else estimator
    package = library(inner)
    if package == "xgboost":
        booster = own_object(inner)
        best = booster.attr("best_iteration")
        return XGBOOST, bytes((booster if best is None else booster[: int(best) + 1]).save_raw("ubj"))
    if package == "lightgbm":
        text: str = own_object(inner).model_to_string()
        return LIGHTGBM, _trees_alone(text).encode()
    if package == "catboost":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, CATBOOST)
            inner.save_model(str(path), format="cbm")
            return CATBOOST, path.read_bytes()
    raise NotImplementedError(f"the format of {type(inner).__name__}")


def on_codes(estimator: Any, signature: Signature, *, gap: str | None = None) -> Booster:
    """A fitted model of a library as an estimator on the coded matrix of this signature, for `convert` and `SklearnBackend`.

    CatBoost gets the texts of the categories, and `gap` for a missing value (None: a text that it does not know). The other
    libraries get the codes, so the categories of the signature must be in their order. `estimator` may be an estimator of the
    library or its own object. The classes come from the estimator, or from the signature if the library has lost them.
    """
    kind = BoosterClassifier if signature.task == "classification" else BoosterRegressor
    columns = [at for at, feature in enumerate(signature.features) if feature.kind == "category"]
    texts: list[tuple[str, ...]] = []
    if library(estimator) == "catboost":
        columns = list(estimator.get_cat_feature_indices())
        texts = [signature.features[at].categories for at in columns]
    booster = kind(None, columns, texts=texts, gap=gap)
    booster.estimator_ = estimator
    booster.n_features_in_ = len(signature.features)
    if isinstance(booster, BoosterClassifier):
        known = list(getattr(estimator, "classes_", ()))
        texts_of_classes = sorted(str(label) for label in known)
        is_known = texts_of_classes == sorted(str(label) for label in signature.classes)
        booster.classes_ = np.array(known if is_known else signature.classes)
    return booster


@dataclass(frozen=True, slots=True)
class NativeModel:
    """The content of a model file of a library.

    `estimator` is the estimator of CatBoost, or the Booster of another library. `names` are the names of the features, None if the
    file has no names; `kinds` tell which of them are categories. `categories` are the values in the order of the file, by position
    of the feature; the position of a value is its code. `classes` are None for a regression, and if the file has lost the labels;
    `n_classes` is their number. `version` is the version of the library that wrote the file, if the file has it.
    """

    library: str
    version: str | None
    estimator: Any
    names: tuple[str, ...] | None
    kinds: tuple[Kind, ...]
    categories: Mapping[int, tuple[Any, ...]]
    task: Task
    classes: tuple[Label, ...] | None
    n_classes: int


def load_native(path: Path) -> NativeModel:
    """Read a model file of XGBoost (.ubj, .json), LightGBM (.txt) or CatBoost (.cbm); these formats contain no code.

    Raises UsageError when the library is missing, and for a file that is not one of its models.
    """
    package = _ENDINGS.get(path.suffix.lower())
    if package is None:
        raise UsageError(f"{path.name} is not a known model file: use {', '.join(_ENDINGS)}")
    try:
        importlib.import_module(package)
    except ImportError:
        raise UsageError(f"{path.name} needs a package that is missing: pip install 'iris-api[{package}]'") from None
    try:
        return _LOADERS[package](path)
    except OSError as error:
        raise UsageError(f"{path.name} cannot be read ({error.strerror or error})") from None
    except Exception as error:
        sentence = " ".join(str(error).split())[:200]
        raise UsageError(f"{path.name} cannot be read as a model of {package} ({type(error).__name__}: {sentence})") from None


def _load_xgboost(path: Path) -> NativeModel:
    import xgboost

    booster = xgboost.Booster({"nthread": 1, "verbosity": 0})
    data = path.read_bytes()
    if path.suffix.lower() == ".ubj":
        check_native(XGBOOST, data)
    booster.load_model(bytearray(data))
    learner = json.loads(booster.save_config())["learner"]
    outputs = int(learner["learner_model_param"]["num_class"])
    classifies = learner["objective"]["name"].partition(":")[0] in ("binary", "multi")
    count = max(2, outputs) if classifies else 0
    names, types = booster.feature_names, booster.feature_types or ["q"] * booster.num_features()
    version = json.loads(data)["version"] if path.suffix.lower() == ".json" else None
    return NativeModel(
        library="xgboost",
        version=None if version is None else ".".join(map(str, version)),
        estimator=booster,
        names=None if names is None else tuple(names),
        kinds=tuple("category" if kind == "c" else "number" for kind in types),
        categories=_xgboost_categories(booster) if "c" in types else {},
        task="classification" if classifies else "regression",
        classes=tuple(range(count)) if classifies else None,
        n_classes=count,
    )


def _xgboost_categories(booster: Any) -> dict[int, tuple[Any, ...]]:
    """The values of the categories by column, for a model that was fitted on a table."""
    try:
        columns = booster.get_categories(export_to_arrow=True).to_arrow()
    except (AttributeError, ImportError, ValueError):
        return {}
    return {at: tuple(values.to_pylist()) for at, (_, values) in enumerate(columns) if values is not None}


def _lightgbm_categories(text: str, known: Sequence[Sequence[Any]]) -> tuple[list[int], dict[int, tuple[Any, ...]]]:
    """The positions of the columns of categories, and their values if the model was fitted on a table.

    `text` is the content of the model file, `known` are the values of the columns in their order.
    """
    head = dict(line.split("=", 1) for line in text[: text.index("\n\n")].splitlines() if "=" in line)
    columns = [at for at, info in enumerate(head["feature_infos"].split(" ")) if info != "none" and not info.startswith("[")]
    return columns, {at: tuple(values) for at, values in zip(columns, known, strict=True)} if len(known) == len(columns) else {}


def native_categories(estimator: Any) -> dict[int, tuple[Any, ...] | None]:
    """The columns that a fitted estimator of a library takes as categories, by position: their values in the order of the codes.

    The values are None if the library does not keep them. Raises the errors of the library.
    """
    package = library(estimator)
    if package == "catboost":
        return dict.fromkeys(map(int, estimator.get_cat_feature_indices()))
    own = own_object(estimator)
    if package == "lightgbm":
        columns, known = _lightgbm_categories(own.model_to_string(), own.pandas_categorical or [])
    else:
        columns = [at for at, kind in enumerate(own.feature_types or ()) if kind == "c"]
        known = _xgboost_categories(own) if columns else {}
    return {at: known.get(at) for at in columns}


def _load_lightgbm(path: Path) -> NativeModel:
    import lightgbm

    text = path.read_text(encoding="utf-8")
    trees = _trees_alone(text)
    check_native(LIGHTGBM, trees.encode())
    last = next((line for line in reversed(text.splitlines()) if line.startswith(_PANDAS)), _PANDAS + "null")
    known = json.loads(last.removeprefix(_PANDAS)) or []
    booster = lightgbm.Booster(model_str=trees, params={"verbosity": -1})
    head = dict(line.split("=", 1) for line in text[: text.index("\n\n")].splitlines() if "=" in line)
    columns, categories = _lightgbm_categories(text, known)
    objective = head.get("objective", "").split(" ")[0]
    classifies = objective in ("binary", "multiclass", "multiclassova")
    count = max(2, int(head["num_class"])) if classifies else 0
    names = tuple(booster.feature_name())
    return NativeModel(
        library="lightgbm",
        version=None,
        estimator=booster,
        names=None if names == tuple(f"Column_{at}" for at in range(len(names))) else names,
        kinds=tuple("category" if at in columns else "number" for at in range(len(names))),
        categories=categories,
        task="classification" if classifies else "regression",
        classes=None,
        n_classes=count,
    )


_PANDAS = "pandas_categorical:"


def _trees_alone(text: str) -> str:
    """A model of LightGBM without the parameters of its training, which predictions do not need."""
    return text[: text.index(END_OF_TREES) + len(END_OF_TREES)]


def _load_catboost(path: Path) -> NativeModel:
    import catboost

    data = path.read_bytes()
    check_native(CATBOOST, data)
    model = catboost.CatBoostClassifier()
    model.load_model(stream=io.BytesIO(data))
    classes = [label.item() if hasattr(label, "item") else label for label in model.classes_]
    if not classes:
        model = catboost.CatBoostRegressor()
        model.load_model(stream=io.BytesIO(data))
    names = tuple(model.feature_names_)
    columns = set(model.get_cat_feature_indices())
    if model.get_text_feature_indices() or model.get_embedding_feature_indices():
        raise ValueError("features of text or embeddings are not served")
    about = re.search(r"CatBoost release ([0-9.]+)", model.get_metadata().get("catboost_version_info") or "")
    return NativeModel(
        library="catboost",
        version=None if about is None else about[1].rstrip("."),
        estimator=model,
        names=None if names == tuple(map(str, range(len(names)))) else names,
        kinds=tuple("category" if at in columns else "number" for at in range(len(names))),
        categories={},
        task="classification" if classes else "regression",
        classes=tuple(classes) or None,
        n_classes=len(classes),
    )


_ENDINGS = {".ubj": "xgboost", ".json": "xgboost", ".txt": "lightgbm", ".cbm": "catboost"}
_LOADERS: Mapping[str, Callable[[Path], NativeModel]] = {
    "xgboost": _load_xgboost,
    "lightgbm": _load_lightgbm,
    "catboost": _load_catboost,
}


def distribution(package: str) -> str:
    """The name under which a boosting library is installed here."""
    for name in _DISTRIBUTIONS.get(package, ()):
        try:
            version(name)
        except PackageNotFoundError:
            continue
        return name
    return package


def to_native(estimator: Any, signature: Signature, rows: Matrix, expected: Scores) -> Native:
    """The estimator in the format of its library, proven on these rows: its backend gives the expected scores.

    `estimator` is a booster, or a pipeline of the step for dates and a booster. Raises NotImplementedError for another model, and
    ValueError when the answers differ.
    """
    final = final_estimator(estimator)
    steps = [name for name, _ in getattr(estimator, "steps", [])[:-1]]
    if not is_booster(final) or steps not in ([], [fit.DATES]):
        raise NotImplementedError("steps before the booster")
    file, data = native_file(final)
    package = NATIVE[file]
    form = NativeForm(
        file=file,
        library=package,
        version=version(distribution(package)),
        order=_order(final, signature),
        texts=bool(getattr(final, "texts", ())) or None,
        gap=getattr(final, "gap", None),
        dates=bool(steps) or None,
        rows_compared=len(rows),
    )
    scores = BoosterBackend(data, form, signature).scores(rows)
    if scores.shape != expected.shape or not same_scores(expected, scores, signature):
        raise ValueError(f"the format of {package} does not give the answers of the model")
    difference = float(np.max(np.abs(expected - scores), initial=0.0))
    return Native(data, NativeForm(**{**_fields(form), "largest_difference": difference}))


def _fields(form: NativeForm) -> dict[str, Any]:
    return {name: getattr(form, name) for name in form.__struct_fields__}


def _order(estimator: Any, signature: Signature) -> tuple[int, ...] | None:
    """The positions of the signature's classes among those of the estimator; None if they are in its order."""
    known: Sequence[Any] = list(getattr(estimator, "classes_", ()))
    texts = [str(label) for label in known]
    wanted = [str(label) for label in signature.classes]
    if texts == wanted or sorted(texts) != sorted(wanted):
        return None
    return tuple(texts.index(label) for label in wanted)
