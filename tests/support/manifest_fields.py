"""The page `docs/reference/manifest.md`: the keys of `metadata.json`. Types and defaults come from the code, meanings from here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from serve_app.artifacts import manifest as manifests
from serve_app.artifacts import manifest_bounds as bounds
from serve_app.artifacts.dates import DateForm
from serve_app.artifacts.manifest import Manifest
from serve_app.artifacts.signature import Coverage, Feature, Label, Output, Signature

REQUIRED, ABSENT = "required", "absent"
WORDS: Mapping[Any, str] = {str: "text", int: "whole number", float: "number", bool: "boolean", Any: "any value", Label: "label"}

SECTIONS: Mapping[type, tuple[str, str]] = {
    Manifest: ("The manifest", "The keys of the document itself."),
    manifests.FileEntry: ("File", "One file of the bundle."),
    Signature: ("Signature", "What the model takes and gives."),
    Feature: (
        "Feature",
        "One column that the model reads. A replica refuses a number outside of `minimum` and `maximum`.\n"
        "It answers a number outside of `low` and `high`, and counts it.",
    ),
    DateForm: ("Date form", "How a column writes its dates. ISO 8601 is always read."),
    Output: ("Output", "One of several targets."),
    Coverage: (
        "Coverage",
        "How often the answer holds the true value: see [intervals and sets](answers.md#intervals-and-prediction-sets).",
    ),
    manifests.DataSource: ("Data", "The training table."),
    manifests.SourceCode: ("Code", "The code that trained the model."),
    manifests.Libraries: (
        "Libraries",
        "Versions of the libraries that trained and converted the model.\n"
        "An adopted model has a further key for each library that its file names.",
    ),
    manifests.OnnxConversion: ("ONNX conversion", "The result of the conversion to ONNX."),
    manifests.Frame: ("Frame", "The pandas frame that a pickled model takes in place of the matrix. Its columns are the features."),
    manifests.NativeForm: ("Native form", "The model in the format of its library, for a bundle without an ONNX form."),
    manifests.Verdict: ("Verdict", "The result of the rules."),
    manifests.Adopted: ("Adopted", "The origin of a model that was fitted elsewhere."),
}
"""The heading and the first paragraph of each object, in the order of the page."""

MEANINGS: Mapping[type, Mapping[str, str]] = {
    Manifest: {
        "format": "the format of the bundle; a replica refuses a format that it does not know",
        "version": "the number of the version in the store",
        "files": "every file of the bundle by name, without the manifest and its signature; never empty",
        "signature": "what the model takes and gives",
        "feature_names": "the names of the features, for programs that read the legacy layout",
        "target_names": "the classes, for programs that read the legacy layout",
        "model_type": "the class name of the final estimator",
        "n_estimators": "the parameter of this name, for programs that read the legacy layout",
        "max_depth": "the parameter of this name, for programs that read the legacy layout",
        "random_state": "the seed of the training",
        "n_features": "the number of features",
        "n_samples": "the number of rows of the table",
        "local_model_path": "the name of the pickled model",
        "mlflow_run_uri": "the address of the run in MLflow",
        "mlflow_experiment_name": "the experiment of the run",
        "mlflow_run_name": "the name of the run",
        "mlflow_run_id": "the ID of the run",
        "mlflow_relative_path": "the path of the model below the artifacts of MLflow",
        "mlflow_model_name": "the name of the registered model",
        "mlflow_model_version": "the version of the registered model",
        "mlflow_model_uri": "the address of the model in MLflow",
        "estimator": "the built-in name or the `package.module:factory` of the estimator; the class of an adopted model",
        "parameters": "the parameters of the estimator",
        "data": "the training table",
        "code": "the code that trained",
        "libraries": "versions of the libraries",
        "onnx": "the result of the conversion to ONNX",
        "frame": "the frame that the pickled model takes; null for a model that takes the matrix",
        "native": "the model in the format of its library",
        "trained_at": "the time of the training",
        "test_size": "the share of the rows that the training held out",
        "reference": "histograms of the training rows, for the drift",
        "importance": "permutation importance by feature; null for a feature that was not measured in time",
        "search": "the search of parameters: `metric`, `folds`, `candidates`, and `chosen`, the position of the best",
        "decision": "how the threshold was decided: `positive`, `threshold` and, if they decided, the costs",
        "calibration": "the `method` that corrected the probabilities; the `rows` that gave the bound of the coverage",
        "limits": "the floors and ceilings of metrics that the verdict applied",
        "verdict": "the result of the rules",
        "forced": "whether the model was published although the rules refused it",
        "tags": "the tags that the command gave",
        "tracking": "`mlflow`, or `none` for a training without tracking",
        "origin": "`plain` for a bundle from the legacy layout, `mlflow` for one from a model in MLflow without a bundle",
        "adopted": "the origin of a model that was fitted elsewhere; null for a trained one",
    },
    manifests.FileEntry: {
        "sha256": "the SHA-256 of the file, in lower-case hexadecimal digits",
        "size": "the size of the file in bytes",
    },
    Signature: {
        "features": "the features, in the order of the model's columns",
        "task": "what the model does",
        "classes": "the labels in the order of the probabilities; the numbers of the clusters of a clustering",
        "target": "the name of the target",
        "probabilistic": "whether a classifier or a clustering gives probabilities",
        "missing": "the texts that training read as a missing value",
        "threshold": "the probability from which on a classifier of two classes predicts `positive`",
        "positive": "the class of the threshold; absent for the second class",
        "outputs": "the targets of a model with several",
        "quantiles": "the levels of a regression of quantiles, ascending",
        "distance": "whether a clustering gives the distance to the nearest centre",
        "coverage": "adds an interval or a set of classes to each answer",
    },
    Feature: {
        "name": "the name of the column",
        "kind": "the kind of the values",
        "minimum": "the smallest number that is answered; null for no bound",
        "maximum": "the largest number that is answered; null for no bound",
        "low": "the smallest number of the training rows",
        "high": "the largest number of the training rows",
        "categories": "the categories, sorted; the code of a category is its position",
        "nullable": "whether the value may be null or absent",
        "example": "a value of the training rows",
        "unit": "the sign beside the numbers of a table, such as `%`; empty for thousands separators alone",
        "date": "the form of a column of dates; `low` and `high` are days since 1970-01-01 then",
        "max_length": "the most characters of a text",
    },
    DateForm: {
        "parts": "the numbers that the model computes from a date",
        "formats": "further forms, with the directives of `strptime`; or `epoch s` or `epoch ms`",
        "zoned": "whether dates name their time zone",
    },
    Output: {
        "name": "the name of the target",
        "classes": "the classes; empty for a number",
        "probabilistic": "whether the model gives probabilities of this target",
    },
    Coverage: {
        "level": "the share of the answers that hold the true value",
        "bound": "half the width of an interval; or a class with a probability of at least 1 - `bound` is in the set",
    },
    manifests.DataSource: {
        "name": "the name of the table",
        "sha256": "the SHA-256 of the file",
        "rows": "the number of rows",
        "columns": "the number of columns, with the target",
        "held_out": "the number of rows that the training held out",
    },
    manifests.SourceCode: {
        "version": "the version of the package",
        "commit": "the commit",
        "changed": "whether the working tree had changes; null when this is not known",
    },
    manifests.Libraries: {
        "scikit-learn": "version",
        "numpy": "version",
        "onnxruntime": "version",
        "skl2onnx": "version",
        "python": "version",
    },
    manifests.OnnxConversion: {
        "available": "whether the bundle has an ONNX form",
        "reason": "why the bundle has no ONNX form",
        "input": "the type of the graph's input: `float64` or `float32`",
        "rounded": "whether rows are rounded to float32 first",
        "largest_difference": "the largest difference from scikit-learn on the compared rows",
        "tolerance": "the difference that was allowed",
        "rows_compared": "the number of compared rows",
    },
    manifests.Frame: {
        "dtypes": "the dtype of each column when the model was fitted",
        "values": "the value of each code, for a column of categories that are not texts",
        "order": "for a column of dtype category: the codes in the order of the dtype, where it is another one",
        "ordered": "the columns whose dtype has an order",
    },
    manifests.NativeForm: {
        "file": "the name of the file in the bundle",
        "library": "the library that computes the model",
        "version": "the version of the library that wrote the file",
        "order": "the positions of the signature's classes in the library's answer; absent for the same order",
        "texts": "whether CatBoost gets the texts of categories; otherwise it gets their codes",
        "gap": "what CatBoost gets where there is no text",
        "dates": "whether the library takes the parts of dates in their place",
        "largest_difference": "the largest difference from the trained model on the compared rows",
        "rows_compared": "the number of compared rows",
    },
    manifests.Verdict: {
        "accepted": "whether the rules accepted the model",
        "reasons": "why the rules refused the model",
        "comparison": "the comparison with the served model",
    },
    manifests.Adopted: {
        "file": "the name of the given file",
        "file_format": "the format of the given file",
        "sha256": "the SHA-256 of the given file",
        "model_class": "the class of the given model",
        "packages": "the libraries that the file names",
        "largest_difference": "the largest difference of the model in the bundle from the given one, on the compared rows",
        "rows_compared": "the number of compared rows",
        "labelled": "whether the sample had labels",
        "held_out": "whether its owner says that the model has not learnt from the sample",
        "unused_columns": "the columns of the sample that the model does not read",
    },
}


def lines() -> Iterator[str]:
    """The page, line by line. Raises KeyError for a key of the code that has no meaning here."""
    yield from (
        "# Manifest",
        "",
        "With this page you can read `metadata.json`, the [manifest](glossary.md) of a version.",
        "",
        "On one machine the manifest of the served version is `models/current/metadata.json`.",
        "[`GET /model`](api.md#the-model-in-use) answers the main parts of it.",
        "",
        "The file is one JSON object:",
        "",
        "- A **label** is a text, a number or a boolean.",
        "- Times are texts in ISO 8601, in UTC.",
        "- A key whose default is `required` must be there. A key whose default is `absent` is left out when it has no value.",
        "- A release keeps keys that it does not know. So a manifest of a newer release loses nothing when an older one copies it.",
        "",
        "A replica refuses a manifest that is larger than any of these limits:",
        "",
        "| part | at most |",
        "| --- | --- |",
        f"| the file | {manifests.MAX_MANIFEST_BYTES // 1024**2} MB |",
        f"| all files of the bundle together | {manifests.MAX_BUNDLE_BYTES // 1024**3} GB |",
        f"| values | {bounds.MAX_VALUES:,} |",
        f"| features | {bounds.MAX_FEATURES:,} |",
        f"| classes | {bounds.MAX_CLASSES:,} |",
        f"| targets | {bounds.MAX_OUTPUTS} |",
        f"| quantiles | {bounds.MAX_QUANTILES} |",
        f"| categories of one feature | {bounds.MAX_CATEGORIES:,} |",
        f"| characters of a name | {bounds.MAX_NAME:,} |",
        f"| characters of another text | {bounds.MAX_TEXT:,} |",
    )
    for kind, (title, text) in SECTIONS.items():
        yield from ("", f"## {title}", "", text, "", "| key | type | default | meaning |", "| --- | --- | --- | --- |")
        for key in keys_of(kind):
            yield f"| `{key.name}` | {_type(key.hint)} | {key.default} | {MEANINGS[kind][key.name]} |"


class Key(NamedTuple):
    """A key of an object: its name in JSON, its type in the code, and its default as the page writes it."""

    name: str
    hint: Any
    default: str


def keys_of(kind: Any) -> Iterator[Key]:
    """Each key with its type and its default."""
    hints = get_type_hints(kind)
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            default = _default(field.default, dataclasses.MISSING, omits=field.name in _omitted(kind))
            yield Key(field.name, hints[field.name], default)
        return
    for info in msgspec.structs.fields(kind):
        if info.name != "extra":
            value = info.default if info.default_factory is msgspec.NODEFAULT else info.default_factory()
            omits = kind.__struct_config__.omit_defaults and value is None
            yield Key(info.encode_name, hints[info.name], _default(value, msgspec.NODEFAULT, omits=omits))


def _omitted(kind: Any) -> set[str]:
    """The keys of a part of the signature that are left out without a value."""
    document = Signature(features=(Feature(name="length"),), task="regression").to_dict()
    if kind is Feature:
        document = document["features"][0]
    elif kind is not Signature:
        return set()
    return {field.name for field in dataclasses.fields(kind)} - document.keys()


def _default(default: Any, none: Any, *, omits: bool) -> str:
    if default is none:
        return REQUIRED
    if omits:
        return ABSENT
    return "all but `hour`" if default == DateForm().parts else f"`{json.dumps(default)}`"


def _type(hint: Any, plural: str = "") -> str:
    """The type of a key in words, with a link to the object of this type."""
    if hint in WORDS:
        return WORDS[hint] + (plural if hint is not Any else "")
    if hint in SECTIONS:
        title = SECTIONS[hint][0]
        return f"[{title}](#{title.lower().replace(' ', '-')})"
    arguments = [part for part in get_args(hint) if part is not NoneType]
    origin = get_origin(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list{plural} of {_type(arguments[0], 's')}"
    if origin is not None and issubclass(origin, Mapping):
        return "object" if arguments[1] is Any else f"object of {_type(arguments[1], 's')}"
    if set(get_args(Label)) == set(arguments):
        return WORDS[Label] + plural
    return " or ".join(_type(part, plural) for part in arguments)
