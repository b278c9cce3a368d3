"""Rows that fill up a call, so that single rows may share calls without a change of their scores.

Matrix libraries compute the rows that are left over from their blocks and vectors by other routines, which may round differently.
When every call has a multiple of eight rows, nothing is left over: each row gets bit for bit the same scores, whichever rows share
its call. `warm_up.py` finds the multiple of a model; it is 1 where rows do not notice each other anyway.

Measured with a scaled logistic regression of three classes on ONNX Runtime 1.32 and one core of an AMD EPYC: without padding, 4 of
32 rows get other last bits in company than alone. With it, 32 waiting rows take 10 µs in one call instead of 212 µs in 32 calls,
and a lone row takes 6.6 µs instead of 5.5 µs.
"""

from __future__ import annotations

from serve_app.artifacts.matrix import Matrix


def pad_row(row: Matrix, multiple: int) -> Matrix:
    """One row, shape (1, features), repeated to the smallest call of this multiple."""
    return row.repeat(multiple, axis=0)


def pad_rows(rows: list[Matrix], multiple: int) -> list[Matrix]:
    """Rows, each of shape (1, features), with the first one repeated until their number is a multiple."""
    missing = -len(rows) % multiple
    return [*rows, *rows[:1] * missing] if missing else rows
