"""What a model takes and gives: names, kinds, ranges and categories of the features; the task and its classes."""

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
"""Up to it every whole number is a float64 of its own; JavaScript writes such numbers without a point and without an exponent."""

UNSEEN = -1.0
"""Code of a category that training never saw; one-hot encoders turn it into all zeros."""


MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)
"""Texts that mean a missing value unless training is told others; the same as in pandas (a test compares them)."""

LONGEST_TEXT = 100_000
"""Characters of one text, at most, whatever a signature says."""
TEXT_LENGTH = 10_000
"""Characters of one text, at most, where a signature does not say it."""
EXAMPLE_TEXT = "text"
"""The example of a text where a signature has none."""

LARGEST = 3.4028234663852886e38
"""The largest float32: trees compare float32, so a number beyond it has no answer."""


def json_label(label: Label) -> Label:
    """The label as a response has it: a whole number is an integer, because languages differ in how they write 1.0."""
    return int(label) if isinstance(label, float) and label.is_integer() and abs(label) < EXACT else label


def label_text(label: Label) -> str:
    """The label as text: as JSON writes it (`true`, `1`, `1.5`), and a string as it is.

    It is the name of a class wherever a name must be a string: keys of `probabilities`, columns of scores, labels of metrics. So
    a client finds the probability of the predicted class in any language.
    """
    return label if isinstance(label, str) else msgspec.json.encode(json_label(label)).decode()


@dataclass(frozen=True, slots=True)
class Feature:
    """One input column.

    `minimum`/`maximum` are the contract: a value outside is refused (None: no bound). `low`/`high` are what
    training saw: a value outside is answered, and counted. `categories` are sorted; a category's code is its
    position. `nullable` columns take null, and may be left out. `example` is a value that training saw. `unit` is the sign beside
    the numbers of a table, like % or €, empty for thousands separators alone (None: tables hold plain numbers, as requests do).
    `date` is the form of a column of dates, whose `low` and `high` are codes: days since 1970-01-01. `max_length` is the contract
    of a column of texts, in characters (None: TEXT_LENGTH).
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
            raise ValueError("a date, and no other feature, has a form of dates")
        if self.max_length is not None and not (self.kind == "text" and 1 <= self.max_length <= LONGEST_TEXT):
            raise ValueError(f"a text, and no other feature, has a length of 1 to {LONGEST_TEXT} characters")

    @property
    def longest(self) -> int:
        """The most characters of a text that is answered."""
        return TEXT_LENGTH if self.max_length is None else self.max_length

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest number that is answered: the contract, within float32."""
        least = -LARGEST if self.minimum is None else max(self.minimum, -LARGEST)
        most = LARGEST if self.maximum is None else min(self.maximum, LARGEST)
        return least, most

    @property
    def is_compared(self) -> bool:
        """Whether requests should have the distribution of the training rows: dates go on, times of day come again."""
        return self.date is None or self.date.is_time

    @property
    def usual(self) -> tuple[float, float]:
        """A range of numbers to try the model with: what training saw as far as it is known, inside the bounds."""
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
    """Which share of the answers holds the true value, and the bound that split conformal prediction found for it.

    A regression answers the interval of `bound` on both sides of the prediction, in units of the target. A classification answers
    the set of the classes with a probability of at least 1 - `bound`, and the predicted class.
    """

    level: float
    bound: float

    def __post_init__(self) -> None:
        if not 0.0 < self.level < 1.0:
            raise ValueError("a coverage is a share between 0 and 1")
        if not 0.0 <= self.bound <= LARGEST:
            raise ValueError("the bound of a coverage is a finite number of at least 0")


@dataclass(frozen=True, slots=True)
class Signature:
    """The features in the model's column order, and what comes out.

    `classes` are the labels in the order of the probabilities (empty for a regression); `probabilistic` is
    False for a classifier that gives no probabilities. `missing` are the texts that training read as a missing
    value, the empty text among them (None: a manifest from before they were kept). With a `threshold`, a classifier
    of two classes predicts `positive` (None: the second class) from this probability of it on, else the other class;
    without one, the class of the highest probability.

    `outputs` are the targets of a model with several; `classes` are empty then. `quantiles` are the levels of a regression that
    predicts quantiles, ascending. Of a clustering, `classes` are the numbers of the clusters; it gives their probabilities when it
    is `probabilistic`, and the distance to the nearest centre when it has a `distance`. `coverage` adds an interval or a set of
    classes to each answer.
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
        """Whether rows hold texts besides numbers: their matrix is one of objects then (serve_app/artifacts/matrix.py)."""
        return any(feature.kind == "text" for feature in self.features)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes as text, in the order of the probabilities: see `label_text`."""
        return tuple(label_text(label) for label in self.classes)

    @property
    def positive_position(self) -> int:
        """The position of the class that the threshold is for; raises ValueError when `positive` is no class."""
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
        """Read what `to_dict` wrote, also after a trip through JSON; ValueError when it is something else."""
        return msgspec.convert(raw, cls)

    def example(self) -> dict[str, Label | None]:
        """A row that is answered when it is pasted into a request."""
        return {feature.name: _example(feature) for feature in self.features}


def _check_threshold(threshold: float, signature: Signature) -> None:
    if len(signature.classes) != 2 or not signature.probabilistic:
        raise ValueError("only a classifier of two classes with probabilities has a threshold")
    if not 0.0 < threshold <= 1.0:
        raise ValueError("a threshold is a probability above 0, at most 1")
    _ = signature.positive_position


def _check_answer(signature: Signature) -> None:
    """Raises ValueError for parts of an answer that do not belong to the task."""
    task, several = signature.task, bool(signature.outputs)
    if several:
        _check_outputs(signature)
    if signature.quantiles and (task != "regression" or several):
        raise ValueError("only a regression of one target has quantiles")
    if list(signature.quantiles) != sorted(set(signature.quantiles)) or not all(0.0 < level < 1.0 for level in signature.quantiles):
        raise ValueError("quantiles are different levels between 0 and 1, ascending")
    if task == "clustering" and not signature.classes:
        raise ValueError("a clustering needs at least one cluster")
    if task == "clustering" and not all(type(label) is int for label in signature.classes):
        raise ValueError("a cluster is a whole number")
    if task in ("outlier detection", "regression") and signature.classes:
        raise ValueError(f"a model for {task} has no classes")
    if signature.distance and (task != "clustering" or signature.probabilistic):
        raise ValueError("only a clustering without probabilities has a distance")
    covered = task == "regression" or (task == "classification" and signature.probabilistic)
    if signature.coverage is not None and (several or signature.quantiles or not covered):
        raise ValueError("only a regression of one target, or a classification with probabilities, has a coverage")


def _check_outputs(signature: Signature) -> None:
    names = [output.name for output in signature.outputs]
    if len(names) < 2 or len(set(names)) != len(names):
        raise ValueError("several targets have different names")
    if signature.task not in ("classification", "regression") or signature.classes:
        raise ValueError("several targets have classes of their own, or are numbers")
    if any(bool(output.classes) != (signature.task == "classification") for output in signature.outputs):
        raise ValueError("several targets are all classes, or all numbers")
    labels = [
        f"{part.target}_{name}" for _, part in signature.parts for name in part.class_names
    ]  # makes every part, and checks it
    if len(set(labels)) != len(labels):
        raise ValueError("names of targets and their classes must differ when they are joined")


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
"""The contract of the built-in example, in cm: it outlives any table the model was trained on."""


def legacy_name(name: str) -> str:
    """`sepal length (cm)` as a client writes it: `sepal_length`."""
    return "_".join(name.split("(")[0].split()).lower()


def legacy_signature(feature_names: Sequence[str], classes: Sequence[Label]) -> Signature:
    """The signature of a model that came without one: plain numbers in the order of `feature_names`."""
    names = list(feature_names)
    if {legacy_name(name) for name in names} == set(IRIS_BOUNDS):
        names = [legacy_name(name) for name in names]
    features = tuple(
        Feature(name=name, minimum=bounds[0], maximum=bounds[1]) if (bounds := IRIS_BOUNDS.get(name)) else Feature(name=name)
        for name in names
    )
    return Signature(features=features, task="classification" if classes else "regression", classes=tuple(classes))
