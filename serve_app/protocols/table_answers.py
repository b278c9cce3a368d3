"""The answers to many rows in the formats of tables: plain predictions as JSON, CSV text, and lines of JSON."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.decision import interval, outliers, predicted_positions, prediction_sets, single_value
from serve_app.artifacts.matrix import PIECE_ROWS, Scores, batched
from serve_app.artifacts.signature import Signature, label_text
from serve_app.errors import NotFinite
from serve_app.protocols.answer_columns import Column, Columns, answer_columns, json_text, texts
from serve_app.protocols.codec import Buffer
from serve_app.protocols.encode import PIECE_SCORES, not_finite, row_pieces
from serve_app.tables.csv_format import without_formula

Encoder = Callable[[Scores], Buffer]
"""From the scores of many rows to the body of their answer. Raises NotFinite."""


def lines_encoder(signature: Signature) -> Encoder:
    """One line for each row, with the answer of `/predict`."""
    return _in_pieces(signature, answer_columns(signature), b"\n")


def csv_encoder(signature: Signature, *, header: bool = True) -> Encoder:
    """CSV text with the columns of `iris-api score` except `model_version`."""
    encode = _in_pieces(signature, _cells(signature), b"\n", between=b",")
    first = ",".join(_quoted(without_formula(name)) for name in cell_names(signature)).encode() + b"\n" if header else b""

    def encode_csv(scores: Scores) -> Buffer:
        return bytearray(first) + encode(scores)

    return encode_csv


def predictions_encoder(signature: Signature) -> Encoder:
    """`{"predictions": [...]}` with the results of the estimator's `predict` for each row, like MLflow.

    A single target with classes and probabilities also has `probabilities`, a list for each row, and `classes`, which gives the
    order of the probabilities.
    """
    predict = _in_pieces(signature, _predictions(signature), b",")
    if not (signature.classes and signature.probabilistic):
        return lambda scores: b'{"predictions":[' + predict(scores)[:-1] + b"]}"
    first = 1 if signature.task == "clustering" else 0  # the first column of the probabilities
    shares = _in_pieces(signature, lambda scores: [b"[", *_listed(scores[:, first:]), b"]"], b",")
    classes = b",".join(map(json_text, signature.classes))

    def encode_predictions(scores: Scores) -> Buffer:
        text = bytearray(b'{"predictions":[')
        text += predict(scores)
        text[-1:] = b'],"probabilities":['
        text += shares(scores)
        text[-1:] = b'],"classes":[%b]}' % classes
        return text

    return encode_predictions


def cell_names(signature: Signature) -> list[str]:
    """The names of the columns of an answer as CSV text; they are the same as in `iris-api score`."""
    if signature.outputs:
        return [_of_target(name, part) for _, part in signature.parts for name in cell_names(part)]
    if signature.task == "outlier detection":
        return ["outlier", "score"]
    names = [] if single_value(signature) is None else ["cluster" if signature.task == "clustering" else "prediction"]
    if signature.task == "clustering":
        names += ["distance"] if signature.distance else []
    elif signature.task == "classification":
        names.append("confidence")
    else:
        names += [f"quantile_{label_text(level)}" for level in signature.quantiles]
    if signature.classes and signature.probabilistic:
        names += [f"probability_{name}" for name in signature.class_names]
    if signature.coverage is not None:
        classes = [f"in_set_{name}" for name in signature.class_names]
        names += classes if signature.classes else ["interval_low", "interval_high"]
    return names


def _cells(signature: Signature) -> Columns:
    """The cells of the columns in `cell_names`."""
    if signature.outputs:
        parts = [(at, _cells(part)) for at, part in signature.parts]
        return lambda scores: [column for at, cells in parts for column in cells(scores[:, at])]
    if signature.task == "outlier detection":
        return lambda scores: [_truths(outliers(scores)), texts(scores)]
    if signature.task == "regression":
        return _value_cells(signature)
    labels = [_label_cell(signature, at) for at in range(len(signature.classes))]

    def cells(scores: Scores) -> list[Column]:
        best = predicted_positions(scores, signature)
        columns: list[Column] = [[labels[position] for position in best.tolist()]]
        if signature.task == "clustering":
            return [*columns, *_by_column(scores[:, 1:])]
        if not signature.probabilistic:
            return [*columns, [b""] * len(best)]
        shares = _by_column(scores)
        columns.append([shares[position][row] for row, position in enumerate(best.tolist())])
        columns += shares
        if signature.coverage is not None:
            columns += [_truths(column) for column in prediction_sets(scores, signature, signature.coverage).T]
        return columns

    return cells


def _value_cells(signature: Signature) -> Columns:
    position, coverage = single_value(signature), signature.coverage

    def cells(scores: Scores) -> list[Column]:
        numbers = _by_column(scores.reshape(len(scores), -1))
        columns: list[Column] = [] if position is None else [numbers[position]]
        columns += numbers if signature.quantiles else []
        return columns if coverage is None else [*columns, *map(texts, interval(scores, coverage))]

    return cells


def _predictions(signature: Signature) -> Columns:
    """The results of `predict` for each row, as JSON."""
    if signature.outputs:
        parts = [(at, _predictions(part)) for at, part in signature.parts]

        def several(scores: Scores) -> list[Column]:
            columns: list[Column] = []
            for number, (at, predict) in enumerate(parts):
                columns += [b"," if number else b"[", *predict(scores[:, at])]
            return [*columns, b"]"]

        return several
    if signature.task == "outlier detection":
        return lambda scores: [_checked(scores, [b"-1" if flag else b"1" for flag in outliers(scores).tolist()])]
    if signature.task == "regression":
        return lambda scores: [texts(scores)] if scores.ndim == 1 else [b"[", *_listed(scores), b"]"]
    labels = [json_text(label) for label in signature.classes]
    return lambda scores: [_checked(scores, [labels[at] for at in predicted_positions(scores, signature).tolist()])]


def _checked(scores: Scores, column: Column) -> Column:
    """The column, if all scores are finite; raises NotFinite."""
    if not np.isfinite(scores).all():
        raise NotFinite(())
    return column


def _in_pieces(signature: Signature, columns: Columns, end: bytes, *, between: bytes = b"") -> Callable[[Scores], bytearray]:
    """A function from scores to the columns of each row, with `between` between two columns and `end` after a row."""
    piece_rows = min(PIECE_ROWS, max(1, PIECE_SCORES // math.prod(signature.score_shape)))

    def encode(scores: Scores) -> bytearray:
        scores = np.ascontiguousarray(scores)
        text = bytearray()
        for piece in batched(scores, piece_rows):
            try:
                found = columns(piece)
            except NotFinite:
                raise NotFinite(not_finite(scores)) from None
            if between:
                found = [each for column in found for each in (between, column)][1:]
            text += b"".join(row_pieces([*found, end], len(piece)))
        return text

    return encode


def _by_column(scores: Scores) -> list[list[bytes]]:
    """The numbers of each column as text."""
    width = scores.shape[1]
    numbers = texts(scores) if width else []
    return [numbers[at::width] for at in range(width)]


def _listed(scores: Scores) -> list[Column]:
    """The numbers of each row with commas between them."""
    columns: list[Column] = []
    for at, column in enumerate(_by_column(scores)):
        columns += [b",", column] if at else [column]
    return columns


def _truths(flags: npt.NDArray[np.bool_]) -> list[bytes]:
    return [b"true" if flag else b"false" for flag in flags.tolist()]


def _label_cell(signature: Signature, position: int) -> bytes:
    label = signature.classes[position]
    return _quoted(without_formula(label)).encode() if isinstance(label, str) else json_text(label)


def _quoted(text: str) -> str:
    """A text as a CSV cell."""
    if not text or text != text.strip() or any(mark in text for mark in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def _of_target(name: str, part: Signature) -> str:
    """`probability_yes` of the target `a` is `probability_a_yes`."""
    first, separator, rest = name.partition("_")
    return f"{first}_{part.target}{separator}{rest}"
