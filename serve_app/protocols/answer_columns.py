"""The answers to many rows as columns of text, by the signature.

A column is one text for all rows, or a list with the text of each row. The last column of an answer is one text for all rows. An
answer has only members that the model can compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import orjson

from serve_app.artifacts.decision import interval, outliers, predicted_positions, prediction_sets, single_value
from serve_app.artifacts.matrix import Scores
from serve_app.artifacts.signature import Coverage, Label, Signature, json_label
from serve_app.errors import NotFinite

Column = bytes | list[bytes]
Columns = Callable[[Scores], list[Column]]
"""From the scores of some rows to the columns of their answers. Raises NotFinite."""

NULL = b"null"
"""The text that orjson writes for a number that is not finite."""
MANY_NUMBERS = 200
"""From this count on, a check of the array is faster than a search in the text."""


def answer_columns(signature: Signature) -> Columns:
    """A function that returns the columns of the answers; it is selected once for a signature."""
    if signature.outputs:
        return _outputs(signature)
    if signature.task == "outlier detection":
        return _outlier
    if signature.task == "clustering":
        return _cluster(signature)
    if signature.task == "regression":
        return _quantiles(signature) if signature.quantiles else _value(signature.coverage)
    return _classes(signature)


def json_text(label: Label) -> bytes:
    """The label as JSON in a response."""
    return orjson.dumps(json_label(label))


def texts(values: Scores) -> list[bytes]:
    """The numbers as JSON, row by row; raises NotFinite."""
    text = orjson.dumps(np.ascontiguousarray(values).ravel(), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    if NULL in text if values.size < MANY_NUMBERS else not np.isfinite(values).all():
        raise NotFinite(())
    return text.split(b",")


def table_of(values: Sequence[bytes]) -> npt.NDArray[np.object_]:
    """Texts as an array. Indexing an array with an array of positions is twice as fast as indexing a list for each row."""
    table = np.empty(len(values), object)
    table[:] = values
    return table


def picked(scores: Scores, positions: npt.NDArray[np.intp]) -> Scores:
    """The score of each row at its position, shape (rows,)."""
    flat = np.ascontiguousarray(scores).ravel()
    values: Scores = flat[np.arange(0, scores.size, scores.shape[1]) + positions]
    return values


def _value(coverage: Coverage | None) -> Columns:
    if coverage is None:
        return lambda scores: [b'{"prediction":', texts(scores), b"}"]

    def with_interval(scores: Scores) -> list[Column]:
        low, high = interval(scores, coverage)
        return [b'{"prediction":', texts(scores), b',"interval":[', texts(low), b",", texts(high), b"]}"]

    return with_interval


def _quantiles(signature: Signature) -> Columns:
    position = single_value(signature)
    names = _members_of(b"quantiles", [text.decode() for text in texts(np.array(signature.quantiles))])
    if position is None:
        names[0] = b"{" + names[0][1:]  # no prediction before it, so no comma

    def quantiles(scores: Scores) -> list[Column]:
        numbers = texts(scores)
        prediction: list[Column] = [] if position is None else [b'{"prediction":', numbers[position :: len(names)]]
        return [*prediction, *_named(names, numbers), b"}}"]

    return quantiles


def _classes(signature: Signature) -> Columns:
    labels = [json_text(label) for label in signature.classes]
    starts = [b'{"prediction":' + label for label in labels]
    if not signature.probabilistic:
        return lambda scores: [[starts[int(position)] for position in scores], b',"confidence":null,"probabilities":null}']
    heads = table_of([start + b',"confidence":' for start in starts])
    names, count, coverage = _members_of(b"probabilities", signature.class_names), len(labels), signature.coverage

    def classes(scores: Scores) -> list[Column]:
        numbers, best = texts(scores), predicted_positions(scores, signature)
        confidence = [numbers[index] for index in (np.arange(0, len(numbers), count) + best).tolist()]
        predicted: Column = heads[best].tolist()
        columns = [predicted, confidence, *_named(names, numbers)]
        if coverage is None:
            return [*columns, b"}}"]
        members = members_of_sets(labels, prediction_sets(scores, signature, coverage), best)
        return [*columns, b'},"prediction_set":[', *members, b"]}"]

    return classes


def members_of_sets(labels: Sequence[bytes], members: npt.NDArray[np.bool_], best: npt.NDArray[np.intp]) -> list[Column]:
    """The predicted class, then the other classes of the set in their order; `members` has the shape (rows, classes)."""
    others = members.copy()
    others[np.arange(len(best)), best] = False
    further = [b"," + label for label in labels]
    columns: list[Column] = [
        [further[at] if member else b"" for member in column] for at, column in enumerate(others.T.tolist()) if any(column)
    ]
    return [[labels[position] for position in best.tolist()], *columns]


def _outlier(scores: Scores) -> list[Column]:
    flags: Column = [b'{"outlier":true,"score":' if flag else b'{"outlier":false,"score":' for flag in outliers(scores).tolist()]
    return [flags, texts(scores), b"}"]


def _cluster(signature: Signature) -> Columns:
    starts = [b'{"cluster":' + json_text(label) for label in signature.classes]
    probabilistic, distance = signature.probabilistic, signature.distance
    names = _members_of(b"probabilities", signature.class_names)

    def cluster(scores: Scores) -> list[Column]:
        predicted: Column = [starts[position] for position in predicted_positions(scores, signature).tolist()]
        if probabilistic:
            return [predicted, *_named(names, texts(scores[:, 1:])), b"}}"]
        return [predicted, b',"distance":', texts(scores[:, 1]), b"}"] if distance else [predicted, b"}"]

    return cluster


def _outputs(signature: Signature) -> Columns:
    outputs = [(json_text(part.target) + b":", at, answer_columns(part)) for at, part in signature.parts]

    def several(scores: Scores) -> list[Column]:
        columns: list[Column] = []
        for number, (name, at, part) in enumerate(outputs):
            columns += [(b"," if number else b'{"outputs":{') + name, *part(scores[:, at])]
        return [*columns, b"}}"]

    return several


def _members_of(key: bytes, names: Sequence[str]) -> list[bytes]:
    """The text before each number of the object `key` with these names; the object is not the first member of the answer."""
    first, *others = [orjson.dumps(name) + b":" for name in names]
    return [b',"%b":{' % key + first, *(b"," + name for name in others)]


def _named(names: Sequence[bytes], numbers: list[bytes]) -> list[Column]:
    """The names, each followed by its numbers for all rows; `numbers` are in the order of the rows."""
    return [column for at, name in enumerate(names) for column in (name, numbers[at :: len(names)])]
