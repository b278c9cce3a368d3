"""From scores to the output tensors of the Open Inference Protocol, by the signature.

- classification: `predict`, the labels in their own type; `predict_proba`, columns in the order of the classes; with a coverage
  `prediction_set`, true for the classes in the set
- regression: `predict`; with a coverage `interval`, the lower and the upper end; `quantiles`, columns in the order of the levels
- outlier detection: `predict`, true for an outlier; `decision_function`, below 0 for an outlier
- clustering: `predict`, the number of the cluster; `predict_proba` or `distance` when the model computes it
- several targets: these outputs for each target, with the target and a dot before the name, like `height.predict`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from serve_app.artifacts.decision import interval, outliers, predicted_positions, prediction_sets, single_value
from serve_app.artifacts.matrix import Scores, batched
from serve_app.artifacts.signature import Label, Signature, json_label, label_text
from serve_app.errors import NotFinite
from serve_app.protocols.answer_columns import MANY_NUMBERS, NULL, table_of
from serve_app.protocols.encode import PIECE_SCORES, as_printed, not_finite

PREDICT = "predict"
PREDICT_PROBA = "predict_proba"


class Output(NamedTuple):
    """One output: name, datatype, columns, and a function from scores to its values, shape (rows,) or (rows, columns).

    The values of an output with `labels` are positions in `labels`. `names` are the classes of the columns, if they are classes.
    """

    name: str
    datatype: str
    width: int
    values: Callable[[Scores], Any]
    labels: tuple[Label, ...] = ()
    names: tuple[str, ...] = ()


def outputs_of(signature: Signature) -> tuple[Output, ...]:
    """All outputs of a model with this signature, in the order of the response."""
    if signature.outputs:
        return tuple(
            output._replace(name=f"{part.target}.{output.name}", values=_of_part(output, at))
            for at, part in signature.parts
            for output in outputs_of(part)
        )
    if signature.task == "outlier detection":
        return Output(PREDICT, "BOOL", 1, outliers), Output("decision_function", "FP64", 1, _as_they_are)
    if signature.task == "regression":
        return tuple(_of_regression(signature))
    return tuple(_of_classes(signature))


def _of_part(output: Output, at: int | slice) -> Callable[[Scores], Any]:
    return lambda scores: output.values(scores[:, at])


def _as_they_are(scores: Scores) -> Scores:
    return scores


def _of_regression(signature: Signature) -> list[Output]:
    position, coverage = single_value(signature), signature.coverage
    outputs = []
    if position is not None:
        outputs.append(Output(PREDICT, "FP64", 1, lambda scores: scores.reshape(len(scores), -1)[:, position]))
    if signature.quantiles:
        outputs.append(Output("quantiles", "FP64", len(signature.quantiles), _as_they_are))
    if coverage is not None:
        outputs.append(Output("interval", "FP64", 2, lambda scores: np.column_stack(interval(scores, coverage))))
    return outputs


def _of_classes(signature: Signature) -> list[Output]:
    classes, coverage, clusters = signature.classes, signature.coverage, signature.task == "clustering"
    outputs = [Output(PREDICT, _datatype(classes), 1, lambda scores: predicted_positions(scores, signature), classes)]
    if signature.probabilistic:
        columns = slice(1, None) if clusters else slice(None)
        names = signature.class_names
        outputs.append(Output(PREDICT_PROBA, "FP64", len(classes), lambda scores: scores[:, columns], names=names))
    elif signature.distance:
        outputs.append(Output("distance", "FP64", 1, lambda scores: scores[:, 1]))
    if coverage is not None:
        outputs.append(Output("prediction_set", "BOOL", len(classes), lambda scores: prediction_sets(scores, signature, coverage)))
    return outputs


def _datatype(labels: Sequence[Label]) -> str:
    """The datatype that holds all labels unchanged; BYTES for labels of several types."""
    kinds = {type(json_label(label)) for label in labels}
    if kinds == {bool}:
        return "BOOL"
    if kinds == {int} and all(-(2**63) <= int(label) < 2**63 for label in labels):
        return "INT64"
    return "FP64" if kinds <= {int, float} and all(isinstance(label, float) for label in labels) else "BYTES"


class Written(NamedTuple):
    """The fixed parts of an output: its JSON up to the number of rows, each label as JSON, and each label as bytes."""

    head: bytes
    texts: npt.NDArray[np.object_]
    raw: npt.NDArray[np.object_]


def written(output: Output) -> Written:
    """The fixed parts of an output; computed once for a model version."""
    head = b'{"name":%b,"datatype":"%b","shape":[' % (orjson.dumps(output.name), output.datatype.encode())
    if output.datatype == "BYTES":
        names = [label_text(label) for label in output.labels]
        return Written(head, table_of(list(map(orjson.dumps, names))), table_of([_with_length(name.encode()) for name in names]))
    kind = _BINARY[output.datatype]
    labels = [json_label(label) for label in output.labels]
    raw = [np.array(label, kind).tobytes() for label in labels]
    return Written(head, table_of(list(map(orjson.dumps, labels))), table_of(raw))


_BINARY: dict[str, np.dtype[Any]] = {"BOOL": np.dtype("u1"), "INT64": np.dtype("<i8"), "FP64": np.dtype("<f8")}


def json_data(output: Output, writing: Written, scores: Scores) -> bytes:
    """The values as the inside of a JSON list, row by row. Raises NotFinite."""
    values = output.values(scores)
    if output.labels:
        return _labels(values, writing.texts, b",")
    if len(values) == 1 and values.dtype == np.float64:  # for one row a list is faster than arrays
        text = orjson.dumps(values.ravel().tolist())[1:-1]
        if NULL in text:
            raise NotFinite(not_finite(scores))
        return text
    flat = np.ascontiguousarray(values).ravel()
    pieces = [orjson.dumps(piece, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] for piece in batched(flat, PIECE_SCORES)]
    text = pieces[0] if len(pieces) == 1 else b",".join(pieces)
    if NULL in text if values.size < MANY_NUMBERS else not np.isfinite(values).all():
        raise NotFinite(not_finite(scores))
    return text


def _labels(positions: npt.NDArray[np.intp], labels: npt.NDArray[np.object_], between: bytes) -> bytes:
    """The labels of the rows, with `between` between them."""
    if len(positions) == 1:
        label: bytes = labels[positions[0]]
        return label
    return between.join([between.join(labels[piece].tolist()) for piece in batched(positions, PIECE_SCORES)])


def binary_data(output: Output, writing: Written, scores: Scores) -> bytes:
    """The values as little-endian bytes, row by row. Raises NotFinite."""
    values = output.values(scores)
    if output.labels:
        return _labels(values, writing.raw, b"")
    if output.datatype == "BOOL":
        flags: bytes = np.ascontiguousarray(values).astype(_BINARY["BOOL"]).tobytes()
        return flags
    if not np.isfinite(values).all():
        raise NotFinite(not_finite(scores))
    return as_printed(values).astype(_BINARY[output.datatype], copy=False).tobytes()


def ranked(output: Output, scores: Scores, count: int) -> list[str]:
    """The `count` highest values of each row as `value:index` or `value:index:class`, highest first. Raises NotFinite."""
    values = output.values(scores)
    values = values.reshape(len(scores), -1)
    if not np.isfinite(values).all():
        raise NotFinite(not_finite(scores))
    best = np.argsort(-values, axis=1, kind="stable")[:, :count]
    numbers = as_printed(np.take_along_axis(values, best, axis=1)).ravel().tolist()
    ends = [f":{at}:{name}" for at, name in enumerate(output.names)] or [f":{at}" for at in range(output.width)]
    return [f"{number!r}{ends[at]}" for number, at in zip(numbers, best.ravel().tolist(), strict=True)]


def raw_texts(texts: Sequence[str]) -> bytes:
    """The values of a binary BYTES tensor."""
    return b"".join([_with_length(text.encode()) for text in texts])


def _with_length(text: bytes) -> bytes:
    return len(text).to_bytes(4, "little") + text
