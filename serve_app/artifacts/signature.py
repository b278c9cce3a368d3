"""The inputs and outputs of a model: names, kinds, ranges and categories of the features; the task and its classes."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import msgspec

from serve_app.artifacts.dates import DateForm, as_sent

Kind = Literal["number", "boolean", "category", "date", "text"]
Task = Literal["classification", "regression", "outlier detection", "clustering"]
Label = str | int | float | bool

EXACT = 2**53
"""float64 represents every whole number up to it exactly; JavaScript writes these numbers without a point or an exponent."""

UNSEEN = -1.0
"""Code of a category that training did not see; one-hot encoders turn it into all zeros."""


MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)
"""Texts that mean a missing value, unless options of training name others; they are those of pandas (a test compares them)."""

LONGEST_TEXT = 100_000
"""Maximum number of characters in one text for every signature."""
TEXT_LENGTH = 10_000
"""Maximum number of characters in one text when the signature sets no limit."""
EXAMPLE_TEXT = "text"
"""The example of a text when the signature has no example."""

LARGEST = 3.4028234663852886e38
"""The largest float32. Trees compare numbers as float32, so a replica refuses larger numbers."""


def json_label(label: Label) -> Label:
    """The label in a response: a whole number becomes an integer, because languages write 1.0 differently."""
    return int(label) if isinstance(label, float) and label.is_integer() and abs(label) < EXACT else label


def label_text(label: Label) -> str:
    """The label as text: as JSON writes it (`true`, `1`, `1.5`), and a string as it is.

    The text is the name of a class where a name must be a string: keys of `probabilities`, columns of scores, labels of metrics.
    Clients in any language can use it to find the probability of the predicted class.
    """
    return label if isinstance(label, str) else msgspec.json.encode(json_label(label)).decode()


@dataclass(frozen=True, slots=True)
class Feature:
    """One input column.

    `minimum` and `maximum` are the contract: a replica refuses a value outside (None: no bound). `low` and `high` are the range in
    training: a replica answers a value outside and counts it. `categories` are sorted; a category's code is its position.
    `nullable` columns accept null, and a row may leave them out. `example` is a value from training. `unit` is the sign at the
    numbers of a table, like % or €; it is empty for numbers with thousands separators only (None: tables hold plain numbers, like
    requests). `date` is the form of a column of dates, whose `low` and `high` are codes: days since 1970-01-01. `max_length` is the
    maximum number of characters in a column of texts (None: TEXT_LENGTH).
    """

    name: str
    kind: Kind = "number"
    minimum: float | None = None
    maximum: float | None = None
    low: float | None = None
    high: float | None = None
    categories: tuple[str, ...] = ()
    nullable: bool = False
    example: Label | None = None
    unit: str | None = None
    date: DateForm | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        if (self.kind == "date") != (self.date is not None):
            raise ValueError("a feature of kind date needs a form of dates, and other kinds cannot have one")
        if self.max_length is not None and not (self.kind == "text" and 1 <= self.max_length <= LONGEST_TEXT):
            raise ValueError(f"max_length must be between 1 and {LONGEST_TEXT} and is only for features of kind text")

    @property
    def longest(self) -> int:
        """The maximum number of characters in an accepted text."""
        return TEXT_LENGTH if self.max_length is None else self.max_length

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest accepted number: the contract, within float32."""
        least = -LARGEST if self.minimum is None else max(self.minimum, -LARGEST)
        most = LARGEST if self.maximum is None else min(self.maximum, LARGEST)
        return least, most

    @property
    def is_compared(self) -> bool:
        """Whether drift compares requests with training. Dates advance, so only times of day are comparable."""
        return self.date is None or self.date.is_time

    @property
    def usual(self) -> tuple[float, float]:
        """A range of typical numbers: the range in training if known, within the bounds."""
        least, most = self.bounds
        low = next((bound for bound in (self.low, self.minimum) if bound is not None), 0.0)
        high = next((bound for bound in (self.high, self.maximum) if bound is not None), max(low, 1.0))
        low = min(low, high)
        return min(max(low, least), most), min(max(high, least), most)


@dataclass(frozen=True, slots=True)
class Output:
    """One of several targets: its name, and its classes as in `Signature` (empty for a number)."""

    name: str
    classes: tuple[Label, ...] = ()
    probabilistic: bool = True


@dataclass(frozen=True, slots=True)
class Coverage:
    """The share of answers that contain the true value, and the bound from split conformal prediction.

    A regression answers the prediction plus and minus `bound`, in units of the target. A classification answers the set of classes
    with a probability of at least 1 - `bound`, and the predicted class.
    """

    level: float
    bound: float

    def __post_init__(self) -> None:
        if not 0.0 < self.level < 1.0:
            raise ValueError("the level of a coverage must be between 0 and 1")
        if not 0.0 <= self.bound <= LARGEST:
            raise ValueError("the bound of a coverage must be a finite number of at least 0")


@dataclass(frozen=True, slots=True)
class Signature:
    """The features in the model's column order, and the outputs of the model.

    `classes` are the labels in the order of the probabilities (empty for a regression). `probabilistic` is False for a classifier
    without probabilities. `missing` are the texts that training read as a missing value, including the empty text (None: the
    manifest does not record them). With a `threshold`, a classifier of two classes predicts `positive` (None: the second class)
    when its probability reaches the threshold, otherwise the other class. Without a threshold, it predicts the class with the
    highest probability.

    `outputs` are the targets of a model with several targets; `classes` are empty then. `quantiles` are the ascending levels of a
    regression that predicts quantiles. For a clustering, `classes` are the numbers of the clusters. A `probabilistic` clustering
    gives their probabilities, and a clustering with `distance` gives the distance to the nearest centre. `coverage` adds an
    interval or a set of classes to each answer.
    """

    features: tuple[Feature, ...]
    task: Task
    classes: tuple[Label, ...] = ()
    target: str = "target"
    probabilistic: bool = True
    missing: tuple[str, ...] | None = None
    threshold: float | None = None
    positive: Label | None = None
    outputs: tuple[Output, ...] = ()
    quantiles: tuple[float, ...] = ()
    distance: bool = False
    coverage: Coverage | None = None

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        if not names:
            raise ValueError("a signature needs at least one feature")
        if len(set(names)) != len(names):
            raise ValueError("feature names must be unique")
        if self.task == "classification" and len(self.classes) < 2 and not self.outputs:
            raise ValueError("a classification needs at least two classes")
        if len(set(self.class_names)) != len(self.classes):
            raise ValueError("class names must be unique when they are written as text")
        if self.threshold is not None:
            _check_threshold(self.threshold, self)
        _check_answer(self)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in the order of the matrix's columns."""
        return tuple(feature.name for feature in self.features)

    @property
    def has_texts(self) -> bool:
        """Whether rows hold texts besides numbers; the matrix then holds objects (serve_app/artifacts/matrix.py)."""
        return any(feature.kind == "text" for feature in self.features)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes as text, in the order of the probabilities: see `label_text`."""
        return tuple(label_text(label) for label in self.classes)

    @property
    def positive_position(self) -> int:
        """The position of the class that the threshold applies to; raises ValueError when `positive` is not a class."""
        return 1 if self.positive is None else [str(label) for label in self.classes].index(str(self.positive))

    @property
    def score_shape(self) -> tuple[int, ...]:
        """The shape of the scores of one row: () for one number, (columns,) for several; see `Scores`."""
        if self.outputs:
            return (sum(math.prod(part.score_shape) for _, part in self.parts),)
        if self.task == "clustering":
            return (1 + (len(self.classes) if self.probabilistic else int(self.distance)),)
        if self.task == "classification" and self.probabilistic:
            return (len(self.classes),)
        return (len(self.quantiles),) if len(self.quantiles) > 1 else ()

    @property
    def parts(self) -> tuple[tuple[int | slice, Signature], ...]:
        """For each of several targets: its column or columns of the scores, and its signature alone."""
        parts: list[tuple[int | slice, Signature]] = []
        at = 0
        for output in self.outputs:
            part = replace(
                self,
                outputs=(),
                classes=output.classes,
                probabilistic=output.probabilistic or not output.classes,
                target=output.name,
            )
            columns = part.score_shape
            parts.append((slice(at, at + columns[0]) if columns else at, part))
            at += columns[0] if columns else 1
        return tuple(parts)

    @property
    def missing_texts(self) -> tuple[str, ...]:
        """The texts that mean a missing value."""
        return MISSING if self.missing is None else self.missing

    def to_dict(self) -> dict[str, Any]:
        """The signature as plain Python objects, for JSON."""
        document = asdict(self)
        for name in ("missing", "threshold", "positive", "coverage"):
            if document[name] is None:
                del document[name]
        for name in ("outputs", "quantiles", "distance"):
            if not document[name]:
                del document[name]
        for feature in document["features"]:
            for name in ("unit", "date", "max_length"):
                if feature[name] is None:
                    del feature[name]
        return document

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Signature:
        """Read the output of `to_dict`, also after a round trip through JSON; raises ValueError for other input."""
        return msgspec.convert(raw, cls)

    def example(self) -> dict[str, Label | None]:
        """An example row that a request can contain."""
        return {feature.name: _example(feature) for feature in self.features}


def _check_threshold(threshold: float, signature: Signature) -> None:
    if len(signature.classes) != 2 or not signature.probabilistic:
        raise ValueError("only a classifier of two classes with probabilities can have a threshold")
    if not 0.0 < threshold <= 1.0:
        raise ValueError("a threshold must be a probability above 0 and at most 1")
    _ = signature.positive_position


def _check_answer(signature: Signature) -> None:
    """Raise ValueError for parts of an answer that do not belong to the task."""
    task, several = signature.task, bool(signature.outputs)
    if several:
        _check_outputs(signature)
    if signature.quantiles and (task != "regression" or several):
        raise ValueError("only a regression of one target can have quantiles")
    if list(signature.quantiles) != sorted(set(signature.quantiles)) or not all(0.0 < level < 1.0 for level in signature.quantiles):
        raise ValueError("quantiles must be different levels between 0 and 1 in ascending order")
    if task == "clustering" and not signature.classes:
        raise ValueError("a clustering needs at least one cluster")
    if task == "clustering" and not all(type(label) is int for label in signature.classes):
        raise ValueError("a cluster must be a whole number")
    if task in ("outlier detection", "regression") and signature.classes:
        raise ValueError(f"a model for {task} cannot have classes")
    if signature.distance and (task != "clustering" or signature.probabilistic):
        raise ValueError("only a clustering without probabilities can have a distance")
    covered = task == "regression" or (task == "classification" and signature.probabilistic)
    if signature.coverage is not None and (several or signature.quantiles or not covered):
        raise ValueError("only a regression of one target, or a classification with probabilities, can have a coverage")


def _check_outputs(signature: Signature) -> None:
    names = [output.name for output in signature.outputs]
    if len(names) < 2 or len(set(names)) != len(names):
        raise ValueError("several targets must have different names")
    if signature.task not in ("classification", "regression") or signature.classes:
        raise ValueError("a model with several targets must be a classification or a regression, with classes in its outputs only")
    if any(bool(output.classes) != (signature.task == "classification") for output in signature.outputs):
        raise ValueError("several targets must all be classes or all be numbers")
    labels = [
        f"{part.target}_{name}" for _, part in signature.parts for name in part.class_names
    ]  # `parts` also checks the signature of each target
    if len(set(labels)) != len(labels):
        raise ValueError("the joined names of targets and classes must be unique")


@functools.cache
def missing_numbers(missing: tuple[str, ...]) -> frozenset[float]:
    """The numbers among the texts that mean a missing value, like -999."""
    numbers = set()
    for text in missing:
        with contextlib.suppress(ValueError):
            numbers.add(float(text))
    return frozenset(number for number in numbers if math.isfinite(number))


def _example(feature: Feature) -> Label | None:
    if feature.example is not None:
        return feature.example
    if feature.kind == "category":
        return feature.categories[0] if feature.categories else ""
    if feature.kind == "boolean":
        return True
    if feature.kind == "text":
        return EXAMPLE_TEXT[: feature.longest]
    low, high = feature.usual
    middle = low / 2 + high / 2
    if feature.date is not None:
        return as_sent(feature.date.nearest(low), feature.date)
    rounded = round(middle, 6)
    return rounded if low <= rounded <= high else min(max(middle, low), high)


IRIS_BOUNDS: Mapping[str, tuple[float, float]] = dict.fromkeys(
    ("sepal_length", "sepal_width", "petal_length", "petal_width"), (0.0, 20.0)
)
"""The contract of the built-in example, in cm, for every table that the model is trained on."""


def legacy_name(name: str) -> str:
    """The name of a feature in requests: `sepal_length` for `sepal length (cm)`."""
    return "_".join(name.split("(")[0].split()).lower()


def legacy_signature(feature_names: Sequence[str], classes: Sequence[Label]) -> Signature:
    """The signature of a model without a signature: plain numbers in the order of `feature_names`."""
    names = list(feature_names)
    if {legacy_name(name) for name in names} == set(IRIS_BOUNDS):
        names = [legacy_name(name) for name in names]
    features = tuple(
        Feature(name=name, minimum=bounds[0], maximum=bounds[1]) if (bounds := IRIS_BOUNDS.get(name)) else Feature(name=name)
        for name in names
    )
    return Signature(features=features, task="classification" if classes else "regression", classes=tuple(classes))
