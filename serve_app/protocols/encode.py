"""From scores to the bytes of an answer, shaped once for a signature.

JSON has no NaN and no infinity: orjson writes them as `null`, whose letters are in no number, so that the written text shows a
result that is not finite, at no cost to any other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import orjson

from serve_app.artifacts.decision import decision_bound, predicted_positions
from serve_app.artifacts.fields import MAX_PROBLEMS
from serve_app.artifacts.matrix import PIECE_ROWS, Scores, batched
from serve_app.artifacts.signature import Label, Signature, json_label
from serve_app.errors import NotFinite
from serve_app.protocols.codec import Buffer

PIECE_SCORES = 16 * 1024
"""A response is written in pieces of so many scores, because all other requests wait while a single call runs."""
_NULL = b"null"


def row_encoder(signature: Signature) -> Callable[[Scores], bytes]:
    """A function from the scores of one row to the body of its answer.

    Scores are the probabilities, shape (1, classes), or for a regression the values, shape (1,); a classifier without
    probabilities gives the positions of its classes, shape (1,). Raises NotFinite.
    """
    return _answer(signature)


def rows_encoder(signature: Signature) -> Callable[[Scores], Buffer]:
    """A function from the scores of many rows to `{"predictions": [...]}`, order kept. Raises NotFinite."""
    cells = _cells(signature)
    piece_rows = min(PIECE_ROWS, max(1, PIECE_SCORES // max(1, len(signature.classes))))

    def encode_rows(scores: Scores) -> Buffer:
        scores = np.ascontiguousarray(scores)  # some estimators give columns side by side
        text = bytearray(b'{"predictions":[')
        for piece in batched(scores, piece_rows):  # joining all at the end would keep Python's lock for milliseconds
            try:
                text += b"".join(cells(piece))
            except NotFinite:
                raise NotFinite(not_finite(scores)) from None
        text[-1:] = b"]}"  # in place of the last comma
        return text

    return encode_rows


def numbers(values: Scores) -> list[float]:
    """The scores as Python floats; a float32 becomes the number its shortest text names (0.985, not 0.9850000143)."""
    flat: list[float] = orjson.loads(orjson.dumps(np.ascontiguousarray(values).ravel(), option=orjson.OPT_SERIALIZE_NUMPY))
    return flat


def not_finite(scores: Scores) -> list[int]:
    """The positions of the first MAX_PROBLEMS rows whose scores are not finite."""
    finite = np.isfinite(scores.reshape(len(scores), -1)).all(axis=1)
    return [int(row) for row in np.flatnonzero(~finite)[:MAX_PROBLEMS]]


def _answer(signature: Signature) -> Callable[[Scores], bytes]:
    dumps, option = orjson.dumps, orjson.OPT_SERIALIZE_NUMPY
    if signature.task == "regression":

        def value(scores: Scores) -> bytes:
            text = dumps(scores, option=option)[1:-1]
            if text == _NULL:
                raise NotFinite(())
            return b'{"prediction":' + text + b"}"

        return value
    labels = [_json(label) for label in signature.classes]
    if not signature.probabilistic:
        heads = [b'{"prediction":' + label + b',"confidence":null,"probabilities":null}' for label in labels]
        return lambda scores: heads[int(scores[0])]
    starts = [b'{"prediction":' + label + b',"confidence":' for label in labels]
    names = [_json(name) + b":" for name in signature.class_names]
    first, *others = [b',"probabilities":{' + names[0], *(b"," + name for name in names[1:])]
    bound = decision_bound(signature)
    positive = 0 if bound is None else signature.positive_position

    def answer(scores: Scores) -> bytes:
        texts = dumps(scores[0], option=option)[1:-1].split(b",")
        if _NULL in texts:
            raise NotFinite(())
        best = int(scores[0].argmax()) if bound is None else positive if scores[0, positive] >= bound else 1 - positive
        pieces = [starts[best], texts[best], first, texts[0]]
        for name, text in zip(others, texts[1:], strict=True):
            pieces.append(name)
            pieces.append(text)
        pieces.append(b"}}")
        return b"".join(pieces)

    return answer


def _cells(signature: Signature) -> Callable[[Scores], list[bytes]]:
    """A function from scores to the pieces of all their rows, each with a comma behind it: no Python per row."""
    dumps, option = orjson.dumps, orjson.OPT_SERIALIZE_NUMPY

    def texts(values: Scores) -> list[bytes]:
        text = dumps(values.ravel(), option=option)[1:-1]
        if _NULL in text:
            raise NotFinite(())
        return text.split(b",")

    def interleave(count: int, *columns: bytes | list[bytes]) -> list[bytes]:
        pieces = [b""] * (count * len(columns))
        for position, column in enumerate(columns):
            pieces[position :: len(columns)] = [column] * count if isinstance(column, bytes) else column
        return pieces

    if signature.task == "regression":
        return lambda scores: interleave(len(scores), b'{"prediction":', texts(scores), b"},")
    labels = [b'{"prediction":' + _json(label) + b',"confidence":' for label in signature.classes]
    if not signature.probabilistic:
        whole = [label + b'null,"probabilities":null},' for label in labels]
        return lambda scores: [whole[int(position)] for position in scores]
    names = [_json(name) + b":" for name in signature.class_names]
    names = [b',"probabilities":{' + names[0], *(b"," + name for name in names[1:])]
    classes = len(labels)

    def cells(scores: Scores) -> list[bytes]:
        numbers, best = texts(scores), predicted_positions(scores, signature)
        confidence = [numbers[index] for index in (np.arange(len(scores)) * classes + best).tolist()]
        probabilities = [part for column in range(classes) for part in (names[column], numbers[column::classes])]
        return interleave(len(scores), [labels[position] for position in best.tolist()], confidence, *probabilities, b"}},")

    return cells


def _json(label: Label) -> bytes:
    return orjson.dumps(json_label(label))
