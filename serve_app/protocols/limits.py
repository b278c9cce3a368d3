"""How much one request may hold, derived from the signature of the served model."""

from __future__ import annotations

import math

import orjson

from serve_app.artifacts.signature import Feature, Signature

MAX_CELLS = 4 * 1024 * 1024
"""Numbers in the matrix of one request, at most (32 MB). A row of columns that may be left out takes three bytes of JSON, but
all of its columns in the matrix."""
MAX_SCORES = 1024 * 1024
"""Scores in one response, at most: with a thousand classes each row of a request becomes kilobytes of the response."""
NUMBER_BYTES = 32
"""A number as JSON is shorter."""
CHARACTER_BYTES = 4
"""Bytes of a character in UTF-8, at most."""


def rows_within(signature: Signature, max_rows: int) -> int:
    """The most rows in one request: `max_rows`, or fewer when the rows of this signature or their scores are wide."""
    rows = min(max_rows, MAX_CELLS // len(signature.features), MAX_SCORES // math.prod(signature.score_shape))
    return max(rows, 1)


def row_bytes(signature: Signature, least: int) -> int:
    """The largest size of one row as JSON, in bytes: `least`, or twice what the columns of a wide signature take."""
    return max(least, 2 * sum(len(orjson.dumps(feature.name)) + 2 + _value_bytes(feature) for feature in signature.features))


def least_row_bytes(signature: Signature) -> int:
    """The smallest size of one row as JSON with the comma behind it, in bytes: columns that may be left out are left out."""
    required = [feature for feature in signature.features if not feature.nullable]
    return 3 + sum(len(feature.name.encode()) + 5 for feature in required)


def least_list_bytes(signature: Signature) -> int:
    """The smallest size of one row as values alone, like a line of CSV text, in bytes."""
    return max(2, 2 * sum(not feature.nullable for feature in signature.features))


def _value_bytes(feature: Feature) -> int:
    if feature.kind == "text":
        return CHARACTER_BYTES * feature.longest
    return max([NUMBER_BYTES, *(len(orjson.dumps(category)) for category in feature.categories)])
