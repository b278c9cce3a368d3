"""Limits on the contents of a manifest, because each entry costs a replica memory, metrics or text.

The limits are several times what training writes: 100 classes, 500 categories of a column, 10 bins of a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any

from serve_app.errors import BundleRefused
from serve_app.printable import printable

MAX_VALUES = 200_000
"""Values in one JSON file, counted by its commas: a file of 4 MB can hold a million lists, which need 25 times as much memory."""
MAX_FEATURES = 10_000
MAX_CLASSES = 1_000
MAX_OUTPUTS = 100
"""Targets of one model."""
MAX_QUANTILES = 100
MAX_CATEGORIES = 10_000
"""Categories of one feature."""
MAX_BINS = 100
"""Bins of one number in the drift reference."""
MAX_GOLDEN_VALUES = 1_000_000
"""Values in the golden examples; rows times features has the same limit."""
MAX_GOLDEN_BYTES = 32 * 1024 * 1024
MAX_METRICS_BYTES = 4 * 1024 * 1024
MAX_NAME = 1_000
"""Characters in a key, and in the name of a feature, class or category."""
MAX_TEXT = 20_000
"""Characters in any other text."""


def check_bounds(document: Mapping[str, Any], name: str) -> None:
    """Refuse a JSON object that exceeds the limits of a manifest; raises BundleRefused `manifest`. `name` is that of its file."""
    for what, count, most in (*_texts(document), *_lists(document)):
        if count > most:
            raise BundleRefused("manifest", f"{name}: {printable(what[:100])} has {count}, more than {most}")


Size = tuple[str, int, int]
"""A description of the counted items, their number, and the maximum."""


def _texts(document: Mapping[str, Any]) -> Iterator[Size]:
    """The lengths of the longest key and of the longest text."""
    key = text = 0
    values: list[Any] = [document]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            key = max(key, max(map(len, value), default=0))
            values.extend(value.values())
        elif isinstance(value, list):
            values.extend(value)
        elif isinstance(value, str):
            text = max(text, len(value))
    yield "characters of a key: the longest", key, MAX_NAME
    yield "characters of a text: the longest", text, MAX_TEXT


def _lists(document: Mapping[str, Any]) -> Iterator[Size]:
    yield "the list of feature_names", _size(document.get("feature_names")), MAX_FEATURES
    yield "the list of target_names", _size(document.get("target_names")), MAX_CLASSES
    yield from _names("feature_names", document.get("feature_names"))
    yield from _names("target_names", document.get("target_names"))
    yield from _signature(document.get("signature"))
    yield from _reference(document.get("reference"))
    yield from _frame(document.get("frame"))


def _signature(signature: Any) -> Iterator[Size]:
    if not isinstance(signature, dict):
        return
    features, classes = signature.get("features"), signature.get("classes")
    yield "the list of features", _size(features), MAX_FEATURES
    yield "the list of classes", _size(classes), MAX_CLASSES
    yield from _names("classes", classes)
    yield from _outputs(signature.get("outputs"))
    yield "the list of quantiles", _size(signature.get("quantiles")), MAX_QUANTILES
    for feature in features if isinstance(features, list) else ():
        if isinstance(feature, dict):
            categories = feature.get("categories")
            yield "the list of categories", _size(categories), MAX_CATEGORIES
            yield from _names("features", [feature.get("name")])
            yield from _names("categories", categories)


def _frame(frame: Any) -> Iterator[Size]:
    if not isinstance(frame, dict):
        return
    yield "the dtypes of the frame", _size(frame.get("dtypes")), MAX_FEATURES
    yield "the ordered columns of the frame", _size(frame.get("ordered")), MAX_FEATURES
    for name in ("values", "order"):
        columns = frame.get(name)
        yield f"the {name} of the frame", _size(columns), MAX_FEATURES
        for values in columns.values() if isinstance(columns, dict) else ():
            yield f"the {name} of a column of the frame", _size(values), MAX_CATEGORIES
            yield from _names(f"the {name} of the frame", values)


def _outputs(outputs: Any) -> Iterator[Size]:
    """The sizes of several targets; the limit on classes applies to all targets together."""
    targets = [output for output in outputs if isinstance(output, dict)] if isinstance(outputs, list) else []
    yield "the list of outputs", _size(outputs), MAX_OUTPUTS
    yield "the list of classes", sum(_size(output.get("classes")) for output in targets), MAX_CLASSES
    yield from _names("outputs", [output.get("name") for output in targets])
    for output in targets:
        yield from _names("classes", output.get("classes"))


def _reference(reference: Any) -> Iterator[Size]:
    if not isinstance(reference, dict):
        return
    features = reference.get("features")
    columns = features.values() if isinstance(features, dict) else ()
    yield "the drift reference", _size(features), MAX_FEATURES
    outputs = reference.get("outputs")
    answers = [reference, *(outputs.values() if isinstance(outputs, dict) else ())]
    answers = [answer for answer in answers if isinstance(answer, dict)]
    yield "the targets of the drift reference", _size(outputs), MAX_OUTPUTS
    yield "the classes of the drift reference", sum(_size(answer.get("classes")) for answer in answers), MAX_CLASSES
    for column in (*columns, *(answer.get("target") for answer in answers)):
        if isinstance(column, dict):
            yield "the bins of a column", _size(column.get("edges")) + 1, MAX_BINS
            counts = column.get("counts")
            yield "the bins of a column", _size(counts), MAX_CATEGORIES if isinstance(counts, dict) else MAX_BINS


def _names(what: str, names: Any) -> Iterator[Size]:
    if isinstance(names, list):
        longest = max((len(name) for name in names if isinstance(name, str)), default=0)
        yield f"characters of a name in {what}: the longest", longest, MAX_NAME


def _size(value: Any) -> int:
    return len(value) if isinstance(value, Sized) else 0
