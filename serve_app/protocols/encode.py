"""From scores to the bytes of an answer, prepared once for a signature.

JSON has no NaN and no infinity; orjson writes them as `null`. No number contains these letters, so a search of the written text
finds results that are not finite without a separate check of the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import orjson

from serve_app.artifacts.decision import decision_bound
from serve_app.artifacts.fields import MAX_PROBLEMS
from serve_app.artifacts.matrix import PIECE_ROWS, Scores, batched
from serve_app.artifacts.signature import Signature
from serve_app.errors import NotFinite
from serve_app.protocols.answer_columns import NULL, Column, answer_columns, json_text
from serve_app.protocols.codec import Buffer

PIECE_SCORES = 16 * 1024
"""A response is written in pieces of so many scores, because all other requests wait while one call runs."""


def row_encoder(signature: Signature) -> Callable[[Scores], bytes]:
    """A function from the scores of one row to the body of its answer.

    The scores have the shape (1, *signature.score_shape); see `Scores`. Raises NotFinite.
    """
    task = signature.task
    if task not in ("regression", "classification") or signature.outputs or signature.quantiles or signature.coverage is not None:
        columns = answer_columns(signature)
        return lambda scores: b"".join(row_pieces(columns(scores), 1))
    return _value() if task == "regression" else _class(signature)


def rows_encoder(signature: Signature) -> Callable[[Scores], Buffer]:
    """A function from the scores of many rows to `{"predictions": [...]}`, order kept. Raises NotFinite."""
    columns = answer_columns(signature)
    piece_rows = min(PIECE_ROWS, max(1, PIECE_SCORES // math.prod(signature.score_shape)))

    def encode_rows(scores: Scores) -> Buffer:
        scores = np.ascontiguousarray(scores)  # some estimators return column-major arrays
        text = bytearray(b'{"predictions":[')
        for piece in batched(scores, piece_rows):  # one join at the end would hold the GIL for milliseconds
            try:
                text += b"".join(row_pieces(_with_comma(columns(piece)), len(piece)))
            except NotFinite:
                raise NotFinite(not_finite(scores)) from None
        text[-1:] = b"]}"  # replaces the last comma
        return text

    return encode_rows


def numbers(values: Scores) -> list[float]:
    """The scores as Python floats; a float32 becomes the number of its shortest text (0.985, not 0.9850000143)."""
    flat: list[float] = orjson.loads(orjson.dumps(np.ascontiguousarray(values).ravel(), option=orjson.OPT_SERIALIZE_NUMPY))
    return flat


def as_printed(scores: Scores) -> npt.NDArray[np.float64]:
    """The scores as float64, of the same shape; a float32 becomes the number of its shortest text."""
    if scores.dtype == np.float64:
        return scores  # type: ignore[return-value]
    pieces = [np.array(numbers(piece), dtype=np.float64) for piece in batched(np.ascontiguousarray(scores).ravel(), PIECE_SCORES)]
    return np.concatenate(pieces).reshape(scores.shape)


def not_finite(scores: Scores) -> list[int]:
    """The positions of the first MAX_PROBLEMS rows whose scores are not finite."""
    finite = np.isfinite(scores.reshape(len(scores), -1)).all(axis=1)
    return [int(row) for row in np.flatnonzero(~finite)[:MAX_PROBLEMS]]


def _value() -> Callable[[Scores], bytes]:
    dumps, option = orjson.dumps, orjson.OPT_SERIALIZE_NUMPY

    def value(scores: Scores) -> bytes:
        text = dumps(scores, option=option)[1:-1]
        if text == NULL:
            raise NotFinite(())
        return b'{"prediction":' + text + b"}"

    return value


def _class(signature: Signature) -> Callable[[Scores], bytes]:
    dumps, option = orjson.dumps, orjson.OPT_SERIALIZE_NUMPY
    labels = [json_text(label) for label in signature.classes]
    if not signature.probabilistic:
        heads = [b'{"prediction":' + label + b',"confidence":null,"probabilities":null}' for label in labels]
        return lambda scores: heads[int(scores[0])]
    starts = [b'{"prediction":' + label + b',"confidence":' for label in labels]
    names = [json_text(name) + b":" for name in signature.class_names]
    first, *others = [b',"probabilities":{' + names[0], *(b"," + name for name in names[1:])]
    bound = decision_bound(signature)
    positive = 0 if bound is None else signature.positive_position

    def answer(scores: Scores) -> bytes:
        texts = dumps(scores[0], option=option)[1:-1].split(b",")
        if NULL in texts:
            raise NotFinite(())
        best = int(scores[0].argmax()) if bound is None else positive if scores[0, positive] >= bound else 1 - positive
        pieces = [starts[best], texts[best], first, texts[0]]
        for name, text in zip(others, texts[1:], strict=True):
            pieces.append(name)
            pieces.append(text)
        pieces.append(b"}}")
        return b"".join(pieces)

    return answer


def _with_comma(columns: list[Column]) -> list[Column]:
    """The columns with a comma after the last column, which is one text for all rows."""
    last = columns[-1]
    assert isinstance(last, bytes)
    return [*columns[:-1], last + b","]


def row_pieces(columns: list[Column], count: int) -> list[bytes]:
    """The pieces of all rows in order, without a Python loop over the rows."""
    pieces = [b""] * (count * len(columns))
    for position, column in enumerate(columns):
        pieces[position :: len(columns)] = [column] * count if isinstance(column, bytes) else column
    return pieces
