"""The limits of one request that follow from the signature of the served model."""

from __future__ import annotations

import math

import orjson

from serve_app.artifacts.signature import Feature, Signature

MAX_CELLS = 4 * 1024 * 1024
"""Most numbers in the matrix of one request (32 MB). A row without its optional columns takes three bytes of JSON, but the matrix
has all of its columns."""
MAX_SCORES = 1024 * 1024
"""Most scores in one response. With a thousand classes each row of a request takes kilobytes of the response."""
NUMBER_BYTES = 32
"""An upper bound of the length of a number in JSON."""
CHARACTER_BYTES = 4
"""Most bytes of a character in UTF-8."""


def rows_within(signature: Signature, max_rows: int) -> int:
    """The largest number of rows in one request: `max_rows`, or less when a row of this signature or its scores are wide."""
    rows = min(max_rows, MAX_CELLS // len(signature.features), MAX_SCORES // math.prod(signature.score_shape))
    return max(rows, 1)


def row_bytes(signature: Signature, least: int) -> int:
    """The largest size of one row as JSON, in bytes: `least`, or twice the size of the columns of a wide signature."""
    return max(least, 2 * sum(len(orjson.dumps(feature.name)) + 2 + _value_bytes(feature) for feature in signature.features))


def least_row_bytes(signature: Signature) -> int:
    """The smallest size of one row as JSON, without its optional columns and with the comma after it, in bytes."""
    required = [feature for feature in signature.features if not feature.nullable]
    return 3 + sum(len(feature.name.encode()) + 5 for feature in required)


def least_list_bytes(signature: Signature) -> int:
    """The smallest size of one row without names, like a line of CSV text, in bytes."""
    return max(2, 2 * sum(not feature.nullable for feature in signature.features))


def _value_bytes(feature: Feature) -> int:
    if feature.kind == "text":
        return CHARACTER_BYTES * feature.longest
    return max([NUMBER_BYTES, *(len(orjson.dumps(category)) for category in feature.categories)])
