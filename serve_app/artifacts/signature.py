"""What a model takes and gives: names, kinds, ranges and categories of the features; the task and its classes."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import msgspec

from serve_app.artifacts.dates import DateForm, as_sent

Kind = Literal["number", "boolean", "category", "date"]
Task = Literal["classification", "regression"]
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
    `date` is the form of a column of dates, whose `low` and `high` are codes: days since 1970-01-01.
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

    def __post_init__(self) -> None:
        if (self.kind == "date") != (self.date is not None):
            raise ValueError("a date, and no other feature, has a form of dates")

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
class Signature:
    """The features in the model's column order, and what comes out.

    `classes` are the labels in the order of the probabilities (empty for a regression); `probabilistic` is
    False for a classifier that gives no probabilities. `missing` are the texts that training read as a missing
    value, the empty text among them (None: a manifest from before they were kept). With a `threshold`, a classifier
    of two classes predicts `positive` (None: the second class) from this probability of it on, else the other class;
    without one, the class of the highest probability.
    """

    features: tuple[Feature, ...]
    task: Task
    classes: tuple[Label, ...] = ()
    target: str = "target"
    probabilistic: bool = True
    missing: tuple[str, ...] | None = None
    threshold: float | None = None
    positive: Label | None = None

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        if not names:
            raise ValueError("a signature needs at least one feature")
        if len(set(names)) != len(names):
            raise ValueError("feature names must be unique")
        if self.task == "classification" and len(self.classes) < 2:
            raise ValueError("a classification needs at least two classes")
        if len(set(self.class_names)) != len(self.classes):
            raise ValueError("class names must be unique when they are written as text")
        if self.threshold is not None:
            _check_threshold(self.threshold, self)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in the order of the matrix's columns."""
        return tuple(feature.name for feature in self.features)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes as text, in the order of the probabilities: see `label_text`."""
        return tuple(label_text(label) for label in self.classes)

    @property
    def positive_position(self) -> int:
        """The position of the class that the threshold is for; raises ValueError when `positive` is no class."""
        return 1 if self.positive is None else [str(label) for label in self.classes].index(str(self.positive))

    @property
    def missing_texts(self) -> tuple[str, ...]:
        """The texts that mean a missing value."""
        return MISSING if self.missing is None else self.missing

    def to_dict(self) -> dict[str, Any]:
        """The signature as plain Python objects, for JSON."""
        document = asdict(self)
        for name in ("missing", "threshold", "positive"):
            if document[name] is None:
                del document[name]
        for feature in document["features"]:
            for name in ("unit", "date"):
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
