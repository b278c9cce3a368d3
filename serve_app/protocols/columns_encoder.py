"""The answers to many rows as columns: the object of one answer, with a list for all rows in place of each value.

The names of members and classes occur once instead of once for each row, and one call writes each list of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import orjson

from serve_app.artifacts.decision import interval, outliers, predicted_positions, prediction_sets, single_value
from serve_app.artifacts.matrix import PIECE_ROWS, Scores, batched
from serve_app.artifacts.signature import Coverage, Signature, label_text
from serve_app.errors import NotFinite
from serve_app.protocols.answer_columns import json_text, members_of_sets, picked, table_of
from serve_app.protocols.codec import Buffer
from serve_app.protocols.encode import PIECE_SCORES, not_finite, row_pieces

Member = tuple[bytes, Callable[[Scores], list[bytes]]]
"""The JSON text before a value, and a function from the scores of all rows to the pieces of the value. It raises NotFinite."""


def columns_encoder(signature: Signature) -> Callable[[Scores], Buffer]:
    """A function from the scores of many rows to `{"predictions": {member: [value of each row, …], …}}`. It raises NotFinite.

    Objects stay objects. Every other value becomes a list with one value for each row, in the order of the rows. A member that is
    null in all rows stays null. The numbers have the same digits as in the answers by row.
    """
    members = _object(_members(signature))

    def encode_columns(scores: Scores) -> Buffer:
        text = bytearray(b'{"predictions":')
        try:
            for before, pieces in members:
                text += before
                for piece in pieces(scores):
                    text += piece
        except NotFinite:
            raise NotFinite(not_finite(scores)) from None
        text += b"}"
        return text

    return encode_columns


def _members(signature: Signature) -> dict[str, list[Member]]:
    """The members of an answer by name."""
    if signature.outputs:
        parts = {part.target: _of_part(_object(_members(part)), at) for at, part in signature.parts}
        return {"outputs": _object(parts)}
    if signature.task == "outlier detection":
        return {"outlier": _list(lambda scores: _flags(outliers(scores))), "score": _list(_numbers)}
    return _of_values(signature) if signature.task == "regression" else _of_classes(signature)


def _of_values(signature: Signature) -> dict[str, list[Member]]:
    members: dict[str, list[Member]] = {}
    position, coverage = single_value(signature), signature.coverage
    if position is not None:
        members["prediction"] = _column(position)
    if signature.quantiles:
        members["quantiles"] = _object({label_text(level): _column(at) for at, level in enumerate(signature.quantiles)})
    if coverage is not None:
        members["interval"] = _list(lambda scores: _numbers(np.column_stack(interval(scores, coverage))))
    return members


def _of_classes(signature: Signature) -> dict[str, list[Member]]:
    clusters, coverage = signature.task == "clustering", signature.coverage
    labels = table_of([json_text(label) for label in signature.classes])
    first = 1 if clusters else 0  # the first column of the probabilities
    members = {
        "cluster" if clusters else "prediction": _list(lambda scores: _texts(predicted_positions(scores, signature), labels))
    }
    if signature.probabilistic:
        if not clusters:
            members["confidence"] = _list(lambda scores: _numbers(picked(scores, predicted_positions(scores, signature))))
        members["probabilities"] = _object({name: _column(first + at) for at, name in enumerate(signature.class_names)})
    elif not clusters:
        members["confidence"] = members["probabilities"] = [(b"null", _nothing)]
    elif signature.distance:
        members["distance"] = _column(1)
    if coverage is not None:
        members["prediction_set"] = _list(lambda scores: _sets(scores, signature, coverage, labels.tolist()))
    return members


def _object(members: dict[str, list[Member]]) -> list[Member]:
    """An object with these members as one sequence of texts and pieces."""
    found: list[Member] = []
    for number, (name, inner) in enumerate(members.items()):
        (before, pieces), *others = inner
        found += [((b"," if number else b"{") + orjson.dumps(name) + b":" + before, pieces), *others]
    return [*found, (b"}", _nothing)]


def _list(pieces: Callable[[Scores], list[bytes]]) -> list[Member]:
    return [(b"[", pieces), (b"]", _nothing)]


def _column(at: int) -> list[Member]:
    return _list(lambda scores: _numbers(scores.reshape(len(scores), -1)[:, at]))


def _of_part(members: list[Member], at: int | slice) -> list[Member]:
    """The members of one target, computed from the scores of all targets."""

    def of_part(pieces: Callable[[Scores], list[bytes]]) -> Callable[[Scores], list[bytes]]:
        return lambda scores: pieces(scores[:, at])

    return [(before, of_part(pieces)) for before, pieces in members]


def _nothing(_: Scores) -> list[bytes]:
    return []


def _numbers(values: Scores) -> list[bytes]:
    """The numbers, or lists of numbers, with commas between them."""
    if not np.isfinite(values).all():
        raise NotFinite(())
    values = np.ascontiguousarray(values)
    option = orjson.OPT_SERIALIZE_NUMPY
    return _joined([orjson.dumps(piece, option=option)[1:-1] for piece in batched(values, PIECE_SCORES)])


def _texts(positions: npt.NDArray[np.intp], texts: npt.NDArray[np.object_]) -> list[bytes]:
    return _joined([b",".join(texts[piece].tolist()) for piece in batched(positions, PIECE_SCORES)])


def _flags(flags: npt.NDArray[np.bool_]) -> list[bytes]:
    return _texts(flags.astype(np.intp), _TRUTHS)


_TRUTHS = table_of([b"false", b"true"])


def _sets(scores: Scores, signature: Signature, coverage: Coverage, labels: Sequence[bytes]) -> list[bytes]:
    """A list of classes for each row."""
    pieces = []
    for piece in batched(scores, PIECE_ROWS):
        columns = members_of_sets(labels, prediction_sets(piece, signature, coverage), predicted_positions(piece, signature))
        pieces.append(b"".join(row_pieces([b"[", *columns, b"],"], len(piece)))[:-1])
    return _joined(pieces)


def _joined(pieces: list[bytes]) -> list[bytes]:
    """The pieces with commas between them."""
    return (
        pieces
        if len(pieces) == 1
        else [part for number, piece in enumerate(pieces) for part in ((b",", piece) if number else (piece,))]
    )
