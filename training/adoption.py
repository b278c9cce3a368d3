"""Adopting: a model that was fitted elsewhere becomes a candidate, and passes the same gate as a trained one.

First, this module records the answers of the given model. Then it rewrites the model to take the coded matrix (`recoding`); the
rewritten model must give the same answers. It is converted to ONNX if the ONNX form is proven equal. The published model is the
rewritten one behind the step `encode`, which turns a table into the matrix, as in a trained model.
"""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from serve_app.artifacts.code_package import read_packages, top_modules
from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.manifest import Adopted, Frame, OnnxConversion
from serve_app.artifacts.matrix import matrix_type
from serve_app.artifacts.signature import Kind, Label, Signature, label_text
from serve_app.errors import UsageError
from serve_app.inference.backends import Score
from serve_app.inference.backends.booster_backend import BoosterBackend
from serve_app.inference.backends.onnx_backend import OnnxBackend
from serve_app.inference.backends.sklearn_backend import ENCODE, SklearnBackend
from serve_app.inference.code_import import is_installed
from serve_app.inference.parity import same_scores
from serve_app.progress import Progress
from training import column_report, fit, proof
from training.boosters import NativeModel
from training.candidate import Candidate, measured_candidate
from training.coded_booster import CodedBooster, with_names
from training.convert import Converted, convert
from training.dataset import Dataset, json_rows
from training.derived_signature import Declared, DerivedSignature, derive
from training.frames import frame_model
from training.model_columns import read_columns
from training.original import Original, original, plain
from training.pickle_contents import PickleContents, look
from training.proof import Expected, Proof
from training.recoding import NotRecodable, bare, recode
from training.unlabelled import UNLABELLED

FEW_ROWS = 200
"""Rows of a sample below which the report warns about ranges and gaps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The model to adopt: the object, and its origin.

    `contents` are the names in its file, None for a format without names. `packages` are the user's modules as files of a bundle.
    `with_cloudpickle`: the model has code from a notebook, which no other program can import.
    """

    model: Any
    name: str
    file_format: str
    sha256: str | None = None
    contents: PickleContents | None = None
    packages: Mapping[str, bytes] = field(default_factory=dict)
    with_cloudpickle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The rows for the examination, with the target if there is one. `held_out`: the model has not learnt from them."""

    frame: pd.DataFrame
    name: str
    sha256: str
    targets: tuple[str, ...] = ()
    held_out: bool = False
    missing: tuple[str, ...] | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rows(Dataset):
    """The sample as a dataset: the same rows serve as the drift reference and for the metrics."""

    @property
    def rows(self) -> int:
        """The number of rows of the sample."""
        return len(self.test)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """The result of the examination, before the gate."""

    given: Given
    sample: Sample
    original: Original
    derived: DerivedSignature
    candidate: Candidate
    converted: Converted
    proof: Proof
    row_seconds: float
    """The shortest time, in seconds, of a call with one row to the backend that will serve."""
    given_row_seconds: float
    """The same for the given model with a table of one row."""
    remarks: tuple[str, ...] = field(default=())

    @property
    def is_labelled(self) -> bool:
        """Whether the sample has labels."""
        return self.candidate.is_labelled and self.signature.task not in UNLABELLED

    @property
    def signature(self) -> Signature:
        """The signature of the model."""
        return self.candidate.signature

    @property
    def record(self) -> Adopted:
        """The origin of the model, for the manifest."""
        contents = self.given.contents
        return Adopted(
            file=self.given.name,
            file_format=self.given.file_format,
            sha256=self.given.sha256,
            model_class=class_path(self.given.model),
            packages=contents.packages if contents is not None else (),
            largest_difference=self.proof.largest_difference,
            rows_compared=self.proof.rows,
            labelled=self.is_labelled,
            held_out=self.sample.held_out,
            unused_columns=self.derived.unused,
        )


def adopt(given: Given, sample: Sample, declared: Declared, progress: Progress) -> Adoption:
    """Examine a model with a sample. Raises UsageError with one sentence when it cannot be adopted; nothing is published here."""
    with fit.threads_for(1):  # rows come one by one, and more threads would only wait for each other
        return _adopt(given, sample, declared, progress)


def _adopt(given: Given, sample: Sample, declared: Declared, progress: Progress) -> Adoption:
    features = _features(sample)
    if isinstance(given.model, NativeModel):
        given = replace(given, model=with_names(given.model, sample.frame, sample.targets[0] if sample.targets else None))
    with progress("ask the model about its columns"):
        read = sorted(read_columns(given.model).intersection(sample.targets))
        if read:
            raise UsageError(f"the model reads the column '{read[0]}', so it cannot be --target: give the column of the labels")
        model = original(given.model, [str(name) for name in features.columns])
        derived = derive(model, features, declared, targets=sample.targets, missing=sample.missing)
        target = _target(sample, derived)
    with progress("ask the model row by row"):
        try:
            expected = proof.ask(model, derived)
        except UsageError:
            raise
        except Exception as error:  # any: the model is of somebody else
            raise UsageError(f"the model does not answer the sample ({type(error).__name__}: {_one_line(error)})") from error
        given_row_seconds = _seconds(lambda: model.scores(derived.asked.head(1), derived.signature))
    with progress("rewrite the model for coded rows, and compare"):
        candidate, compared, why = _candidate(given, sample, model, derived, expected, target)
    if why is not None:
        reason = why if candidate.frame is None else f"the model takes tables: {why}"
        converted = Converted(None, OnnxConversion(available=False, reason=reason))
    else:
        with progress("convert to ONNX and compare"):
            converted = _converted(candidate, expected, derived)
    signature = candidate.signature
    example = read_rows(signature, [signature.example()], unknown="unseen")
    score = _backend(candidate, converted)
    row_seconds = _seconds(lambda: score(example))
    few = (
        [f"{len(derived.plain)} rows say little about ranges and gaps: give {FEW_ROWS} or more"]
        if len(derived.plain) < FEW_ROWS
        else []
    )
    return Adoption(
        given=given,
        sample=sample,
        original=model,
        derived=derived,
        candidate=candidate,
        converted=converted,
        proof=compared,
        row_seconds=row_seconds,
        given_row_seconds=given_row_seconds,
        remarks=tuple(each for each in (*sample.remarks, *derived.remarks, *few) if each),
    )


def class_path(model: Any) -> str:
    """The import path of the class of an object; for a model file of a library, the class of the library's own object."""
    if isinstance(model, CodedBooster):
        return f"{model.native.library}.Booster"
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _features(sample: Sample) -> pd.DataFrame:
    frame = sample.frame
    names = [str(name) for name in frame.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"the sample has two columns '{twice[0]}': rename one")
    frame = frame.set_axis(names, axis=1)
    if not len(frame):
        raise UsageError("the sample has no rows")
    for target in sample.targets:
        if target not in names:
            raise UsageError(f"the sample has no column '{target}' for --target; its columns are: {', '.join(names[:20])}")
    return frame.drop(columns=list(sample.targets))


def _target(sample: Sample, derived: DerivedSignature) -> npt.NDArray[Any] | None:
    """The labels of the kept rows as the model's own classes, or the values; several targets side by side. None without labels.

    Raises UsageError for labels that the model cannot predict.
    """
    signature = derived.signature
    if not sample.targets:
        return None
    if signature.task in UNLABELLED:
        raise UsageError(f"a model for {signature.task} has no labels: omit --target")
    parts = [part for _, part in signature.parts] or [signature]
    if len(parts) != len(sample.targets):
        own, named = len(parts), len(sample.targets)
        raise UsageError(f"the model has {own} targets, but --target names {named}: name all, in the order of the fit")
    columns = [_labels(name, sample.frame[name][derived.kept], part) for name, part in zip(sample.targets, parts, strict=True)]
    return np.column_stack(columns) if signature.outputs else columns[0]


def _labels(name: str, values: pd.Series[Any], signature: Signature) -> npt.NDArray[Any]:
    if values.isna().any():
        row = int(np.flatnonzero(values.isna())[0]) + 1
        raise UsageError(f"the target column '{name}' is empty in row {row}: fill it, or remove the row")
    if signature.task == "regression":
        try:
            return values.to_numpy(dtype=np.float64)
        except (TypeError, ValueError):
            raise UsageError(f"the target column '{name}' must hold numbers, because the model is a regressor") from None
    classes = {label_text(label): label for label in signature.classes}
    labels = np.empty(len(values), dtype=object)
    unknown: dict[str, None] = {}
    for at, value in enumerate(values.tolist()):
        label = _class(plain(value), classes)
        if label is None:
            unknown[str(value)] = None
        labels[at] = label
    if unknown:
        raise UsageError(
            f"the target column '{name}' holds {', '.join(map(repr, list(unknown)[:5]))}, which the model does not know; "
            f"its classes are: {', '.join(list(classes)[:20])}"
        )
    return labels


def _class(value: Any, classes: Mapping[str, Label]) -> Label | None:
    """The class of the model for a value of the target: 0 equals 0.0, and a boolean equals its text."""
    text = label_text(value) if isinstance(value, str | bool | int | float) else str(value)
    for form in (text, text.lower() if text in ("True", "False") else text):
        if form in classes:
            return classes[form]
    if isinstance(value, bool) and label_text(int(value)) in classes:
        return classes[label_text(int(value))]
    with suppress(ValueError):
        return classes.get(label_text(float(text)))
    return None


def _candidate(
    given: Given,
    sample: Sample,
    model: Original,
    derived: DerivedSignature,
    expected: Expected,
    target: npt.NDArray[Any] | None,
) -> tuple[Candidate, Proof, str | None]:
    """The candidate with the proof that it answers like the given model, and the reason against an ONNX form, or None.

    A model that takes the coded matrix is fastest; a model that cannot be rewritten for it gets a table while serving.
    """
    why, form = _on_matrix(model, derived, expected)
    if form is None:
        form = _on_table(model, derived, expected, str(why))
    pickled = _pickled(form.model, with_cloudpickle=given.with_cloudpickle)
    candidate = measured_candidate(
        _dataset(sample, derived, target, expected),
        derived.signature,
        form.model,
        pickled,
        is_labelled=target is not None,
        golden=expected.golden,
        frame=form.frame,
        packages=_named_packages(pickled, given.packages),
    )
    return candidate, form.proof, why


@dataclass(frozen=True, slots=True)
class _Form:
    """A form of the model for the pickle, its proof, and the frame that it takes, None for the coded matrix."""

    model: Any
    proof: Proof
    frame: Frame | None = None


def _on_matrix(model: Original, derived: DerivedSignature, expected: Expected) -> tuple[str | None, _Form | None]:
    """The model for the coded matrix, behind the step `encode`; or the reason why it cannot be rewritten."""
    signature = derived.signature
    if dates := _named(signature, "date"):
        return dates, None
    try:
        estimator = recode(model.model, model.columns, signature)
        encode = fit.encoder(signature).fit(derived.plain)
        matrix = np.asarray(encode.transform(derived.plain), dtype=matrix_type(has_texts=signature.has_texts))
        if not model.columns.named and signature.has_texts:
            estimator = _on_column(estimator, matrix, 0)
        compared = proof.compare(expected, SklearnBackend(estimator, signature).scores, matrix, signature)
    except NotRecodable as error:
        return str(error), None
    except MemoryError:
        raise
    except Exception as error:  # any: a step of somebody else's that wants a table
        return f"rewritten for coded rows, it raises {type(error).__name__}: {_one_line(error)}", None
    if compared.why is not None:
        return f"rewritten for coded rows, {compared.why}", None
    return _named(signature, "text"), _Form(Pipeline([(ENCODE, encode), ("model", estimator)]), compared)


def _named(signature: Signature, kind: Kind) -> str | None:
    """A text about the features of this kind that the model reads; None when it reads none."""
    names = [feature.name for feature in signature.features if feature.kind == kind]
    return f"it reads the {kind}s of {', '.join(map(repr, names[:5]))}" if names else None


def _on_table(model: Original, derived: DerivedSignature, expected: Expected, why: str) -> _Form:
    """The unchanged model, called with a table while serving. Raises UsageError."""
    signature = derived.signature
    names = [feature.name for feature in signature.features]
    try:
        estimator = bare(copy.deepcopy(model.model), keep_output=True)
        if not model.columns.named and signature.has_texts:
            estimator = _on_column(estimator, derived.asked[names], names[0])
        backend, frame = frame_model(estimator, derived.asked[names], signature)
        matrix = read_rows(signature, json_rows(derived.plain.head(proof.ROWS), signature), unknown="unseen")
        compared = proof.compare(expected, backend.scores, matrix, signature)
    except UsageError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # any: the model is of somebody else
        raise UsageError(
            f"replicas cannot serve the model: {why}, and with a table it raises {type(error).__name__}: {_one_line(error)}"
        ) from error
    if compared.why is not None:
        raise UsageError(f"replicas cannot serve the model: {why}, and with a table of one row {compared.why}")
    return _Form(estimator, compared, frame)


def _on_column(estimator: Any, rows: pd.DataFrame | npt.NDArray[Any], column: str | int) -> Any:
    """A pipeline that selects a column for a vectorizer, which takes a list of texts."""
    steps = list(estimator.steps) if isinstance(estimator, Pipeline) else []
    if len(steps) < 2 or rows.shape[1] != 1:
        return estimator
    choice = ColumnTransformer([(steps[0][0], FrozenEstimator(steps[0][1]), column)], sparse_threshold=1.0)
    return Pipeline([("column", choice.fit(rows)), *steps[1:]])


def _named_packages(pickled: bytes, packages: Mapping[str, bytes]) -> dict[str, bytes]:
    """The user's packages that a pickle names. Raises UsageError for code that replicas cannot import."""
    contents = look(pickled)
    tops = {name.partition(".")[0] for name in contents.foreign if not name.startswith("__main__")}
    brought: set[str] = set()
    named = False
    for file, data in packages.items():
        modules = top_modules(read_packages({file: data}))
        brought |= modules
        named = named or bool(modules & tops)
    for name in sorted(tops - brought):
        if not is_installed(name):
            raise UsageError(f"the model needs the module {name}, which replicas do not have: add it with --package {name}.py")
    return dict(packages) if named else {}


def _dataset(sample: Sample, derived: DerivedSignature, target: npt.NDArray[Any] | None, expected: Expected) -> Rows:
    signature = derived.signature
    if target is None:  # drift of the answers is then measured against the model's own answers
        answers = proof.labels_of(expected.scores, signature)
        target = np.resize(answers, (len(derived.plain), *answers.shape[1:]))
    sources: dict[str, column_report.Source] = {
        column.feature.name: "declared" if column.kind_source == "declared" else "by the model" for column in derived.columns
    }
    columns = {column.feature.name: derived.plain[column.feature.name] for column in derived.columns}
    return Rows(
        name=sample.name,
        sha256=sample.sha256,
        signature=signature,
        train=derived.plain,
        train_target=target,
        test=derived.plain,
        test_target=target,
        remarks=sample.remarks,
        columns=column_report.describe(columns, target, signature, sources),
    )


def _pickled(model: Any, *, with_cloudpickle: bool) -> bytes:
    """The joblib file of a model; cloudpickle adds code from a notebook."""
    if with_cloudpickle:
        import cloudpickle

        pickled: bytes = cloudpickle.dumps(model)
        return pickled
    import joblib

    buffer = io.BytesIO()
    joblib.dump(model, buffer, compress=("zlib", 3))
    return buffer.getvalue()


def _converted(candidate: Candidate, expected: Expected, derived: DerivedSignature) -> Converted:
    """The ONNX form, if it also gives the answers of the given model to the examples."""
    signature = candidate.signature
    try:
        converted = convert(
            candidate.estimator, signature, candidate.train, candidate.held_out, refuses_unknown=derived.refuses_unknown
        )
    except Exception as error:  # any: the estimator is asked with values next to those of the sample
        why = f"the model raises for values outside the sample ({type(error).__name__}: {_one_line(error)})"
        return Converted(None, OnnxConversion(available=False, reason=why))
    if converted.model is None:
        return converted
    score = OnnxBackend(converted.model, signature, rounded=bool(converted.facts.rounded)).scores
    examples = read_rows(signature, expected.golden.rows, unknown="unseen")
    if same_scores(expected.golden.scores, score(examples), signature):
        return converted
    return Converted(None, OnnxConversion(available=False, reason="the ONNX form differs on rows with gaps or unknown categories"))


def _backend(candidate: Candidate, converted: Converted) -> Score:
    if converted.native is not None:
        return BoosterBackend(converted.native.data, converted.native.form, candidate.signature).scores
    if converted.model is None:
        return SklearnBackend(candidate.estimator, candidate.signature).scores
    return OnnxBackend(converted.model, candidate.signature, rounded=bool(converted.facts.rounded)).scores


def _seconds(call: Any, budget: float = 0.4) -> float:
    """The shortest of several calls."""
    best, deadline = float("inf"), time.perf_counter() + budget
    for _ in range(200):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
        if time.perf_counter() > deadline:
            break
    return best


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]
