"""From the tensors of a request to the matrix of the model, by the rules of the signature.

A request has one of two forms. Tensor form: one input of shape [rows, features], for a model that takes only numbers. Column form:
one input for each feature, of shape [rows] or [rows, 1], in any order.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from serve_app.artifacts.fields import MAX_PROBLEMS, Rule, Unknown, first_names, read_value
from serve_app.artifacts.matrix import PIECE_ROWS, Matrix, batched, matrix_type
from serve_app.artifacts.number_columns import check_numbers, rounded_bounds
from serve_app.artifacts.signature import Feature, Signature, missing_numbers
from serve_app.errors import InvalidInput, Problem, TooManyRows
from serve_app.protocols.decode import NotFastPath, column_reader
from serve_app.protocols.limits import rows_within
from serve_app.protocols.oip_body import RowTensor
from serve_app.protocols.tensors import (
    BYTES,
    NUMBERS,
    Tensor,
    check_datatype,
    check_size,
    json_values,
    numbers,
    precision_of,
    problem,
    texts,
)

FEW_VALUES = 16
"""Up to so many numbers in one row, a comparison one by one is faster than a comparison of arrays."""


class Bounds(NamedTuple):
    """The bounds of all features, each of shape (features,), and the range that lies within the bounds of every feature."""

    lows: Matrix
    highs: Matrix
    highest_low: float
    lowest_high: float
    pairs: list[tuple[float, float]]


class TensorRows:
    """Reads the rows of requests for one signature; created once for a model version.

    It reads at most `rows_within` rows. A JSON value or the list of a row has at most `max_row_bytes` characters.
    """

    def __init__(self, signature: Signature, *, max_rows: int, max_row_bytes: int, unknown: Unknown) -> None:
        self._signature = signature
        self._features = {feature.name: (at, feature) for at, feature in enumerate(signature.features)}
        self._max_rows = rows_within(signature, max_rows)
        self._max_row_bytes = max_row_bytes
        self._unknown = unknown
        self._width = len(signature.features)
        self._dtype = matrix_type(has_texts=signature.has_texts)
        self._takes_tensor = all(_takes_numbers(feature) for feature in signature.features)
        self._is_plain = all(
            feature.kind == "number" and not _has_gap_numbers(feature, signature) for feature in signature.features
        )
        self._takes_row = self._is_plain and self._width > 1  # with one feature, the name of the input decides
        self._bounds: dict[Any, Bounds] = {}
        self._readers: dict[str, Any] = {
            feature.name: column_reader(feature, unknown, signature.missing_texts)
            for feature in signature.features
            if feature.kind in ("category", "text", "date")
        }

    def count(self, tensors: Sequence[Tensor]) -> int:
        """The number of rows in the tensors, after a check of their names, datatypes, shapes and sizes.

        The values are not read. Raises InvalidInput and TooManyRows.
        """
        if self._is_tensor_form(tensors):
            rows = self._tensor_rows(tensors[0])
        else:
            self._check_names(tensors)
            rows = self._column_rows(tensors)
        for tensor in tensors:
            check_datatype(tensor)
            check_size(tensor)
        return rows

    def matrix(self, tensors: Sequence[Tensor], rows: int) -> Matrix:
        """The matrix of counted tensors, shape (rows, features). Raises InvalidInput, Malformed and TooLarge."""
        if self._is_tensor_form(tensors):
            return self._read_tensor(tensors[0])
        return self._read_columns(tensors, rows)

    def row(self, tensor: RowTensor) -> Matrix | None:
        """The matrix of one row of valid numbers, shape (1, features); None for any other row, which must be read in full."""
        datatype, data = tensor.datatype, tensor.data
        if not (self._takes_row and tensor.shape == (1, self._width) and datatype in NUMBERS and datatype != "BOOL"):
            return None
        try:
            matrix: Matrix = np.array(data if len(data) == 1 else [data], np.float64)
        except (ValueError, TypeError):  # a mixture of numbers and lists
            return None
        return matrix if matrix.shape == tensor.shape and self._fits(matrix, precision_of(datatype)) else None

    def _is_tensor_form(self, tensors: Sequence[Tensor]) -> bool:
        """Whether one input holds whole rows. Such an input may have any name."""
        if len(tensors) != 1:
            return False
        (tensor,) = tensors
        return tensor.name not in self._features or (len(tensor.shape) == 2 and tensor.shape[1] == self._width > 1)

    def _tensor_rows(self, tensor: Tensor) -> int:
        if not self._takes_tensor:
            names = first_names(self._signature)
            raise problem(
                tensor,
                "name",
                "unknown_input",
                f"must be a feature, because not all features are numbers; send one input for each of: {names}",
            )
        if len(tensor.shape) != 2 or tensor.shape[1] != self._width:
            raise problem(tensor, "shape", "shape", f"must be [rows, {self._width}], also for one row")
        if tensor.datatype == BYTES:
            raise problem(tensor, "datatype", "datatype", "must not be BYTES: the values of all features are numbers")
        for feature in self._signature.features:
            _check_flags(feature, tensor)
        return self._checked(tensor)

    def _check_names(self, tensors: Sequence[Tensor]) -> None:
        seen: set[str] = set()
        for tensor in tensors:
            if tensor.name not in self._features:
                raise problem(
                    tensor, "name", "unknown_input", f"must be one of the model's features: {first_names(self._signature)}"
                )
            if tensor.name in seen:
                raise problem(tensor, "name", "duplicate_input", "must not be repeated")
            seen.add(tensor.name)
        missing = [feature for feature in self._signature.features if feature.name not in seen and not feature.nullable]
        if missing:
            raise InvalidInput([Problem(feature.name, "missing", "this input is required") for feature in missing[:MAX_PROBLEMS]])

    def _column_rows(self, tensors: Sequence[Tensor]) -> int:
        for tensor in tensors:
            if len(tensor.shape) not in (1, 2) or (len(tensor.shape) == 2 and tensor.shape[1] != 1):
                raise problem(tensor, "shape", "shape", "must be [rows] or [rows, 1] for an input that is one feature")
            _check_flags(self._features[tensor.name][1], tensor)
            self._checked(tensor)
            if tensor.shape[0] != tensors[0].shape[0]:
                raise problem(tensor, "shape", "shape", "must have as many rows as the first input")
        return tensors[0].shape[0]

    def _checked(self, tensor: Tensor) -> int:
        rows = tensor.shape[0]
        if rows < 1:
            raise problem(tensor, "shape", "too_short", "must have at least one row")
        if rows > self._max_rows:
            raise TooManyRows([Problem(f"{tensor.where}.shape", "too_long", f"must have at most {self._max_rows} rows")])
        return rows

    def _read_tensor(self, tensor: Tensor) -> Matrix:
        values = numbers(tensor)
        if values is None:
            return self._read_values(tensor)
        matrix = values.reshape(-1, self._width)
        if self._is_plain and self._fits(matrix, tensor.precision):
            return matrix
        wrong: dict[str, Mapping[int, Rule]] = {}
        for at, feature in enumerate(self._signature.features):
            matrix[:, at], wrong[feature.name] = check_numbers(
                feature, matrix[:, at], self._signature.missing_texts, precision=tensor.precision
            )
        _raise_problems(wrong)
        return matrix

    def _fits(self, matrix: Matrix, precision: Any) -> bool:
        """Whether every number is finite, present and within its bounds. Then no column needs a separate check."""
        bounds = self._bounds.get(precision)
        if bounds is None:
            pairs = [rounded_bounds(feature, precision) for feature in self._signature.features]
            finite = np.clip(np.array(pairs), np.finfo(np.float64).min, np.finfo(np.float64).max)
            lows, highs = finite[:, 0].copy(), finite[:, 1].copy()
            pairs = list(map(tuple, finite.tolist()))
            bounds = self._bounds[precision] = Bounds(lows, highs, float(lows.max()), float(highs.min()), pairs)
        if matrix.size <= FEW_VALUES and len(matrix) == 1:
            return all(least <= value <= most for value, (least, most) in zip(matrix[0].tolist(), bounds.pairs, strict=True))
        if matrix.min() >= bounds.highest_low and matrix.max() <= bounds.lowest_high:  # false for NaN
            return True
        pieces = batched(matrix, PIECE_ROWS)  # a piece fits into the processor's cache
        return all(((piece >= bounds.lows) & (piece <= bounds.highs)).all() for piece in pieces)

    def _read_values(self, tensor: Tensor) -> Matrix:
        """The rows of a JSON list with other values than numbers: numbers as text, booleans, or values that break a rule."""
        values, problems = array("d"), list[Problem]()
        for position, value in enumerate(json_values(tensor, self._max_row_bytes)):
            row, at = divmod(position, self._width)
            feature = self._signature.features[at]
            number, rule = self._read(feature, value, tensor)
            assert not isinstance(number, str)
            values.append(number)
            if rule is not None:
                problems.append(Problem(f"{feature.name}[{row}]", *rule))
                if len(problems) >= MAX_PROBLEMS:
                    break
        if problems:
            raise InvalidInput(problems)
        return np.frombuffer(values, np.float64).reshape(-1, self._width)

    def _read_columns(self, tensors: Sequence[Tensor], rows: int) -> Matrix:
        columns, wrong = {}, {}
        for tensor in tensors:
            at, feature = self._features[tensor.name]
            columns[at], wrong[feature.name] = self._read_column(feature, tensor)
        _raise_problems(wrong)
        if len(columns) == self._width == 1 and not self._dtype.hasobject:
            column: Matrix = columns[0]
            return column.reshape(rows, 1)
        matrix = np.empty((rows, self._width), self._dtype)
        for at in range(self._width):
            matrix[:, at] = columns.get(at, np.nan)
        return matrix

    def _read_column(self, feature: Feature, tensor: Tensor) -> tuple[Any, Mapping[int, Rule]]:
        missing = self._signature.missing_texts
        values = numbers(tensor)
        if values is not None:
            return check_numbers(feature, values, missing, precision=tensor.precision)
        column = texts(tensor)
        if column is None:
            return self._read_column_values(feature, tensor)
        reader = self._readers.get(feature.name)
        if reader is not None and (feature.kind != "text" or all(text is None or len(text) <= feature.longest for text in column)):
            try:
                if feature.nullable or None not in column:
                    return _column_of([reader(text) for text in column], feature), {}
            except NotFastPath:
                pass
        read = [read_value(feature, text, self._unknown, missing) for text in column]
        wrong = {row: rule for row, (_, rule) in enumerate(read) if rule is not None}
        return _column_of([value for value, _ in read], feature), wrong

    def _read_column_values(self, feature: Feature, tensor: Tensor) -> tuple[Any, Mapping[int, Rule]]:
        """The column of a JSON list of any values, and the broken rules by row. Raises InvalidInput after MAX_PROBLEMS rows."""
        values: Any = [] if feature.kind == "text" else array("d")
        wrong: dict[int, Rule] = {}
        for row, item in enumerate(json_values(tensor, self._max_row_bytes)):
            value, rule = self._read(feature, item, tensor)
            values.append(value)
            if rule is not None:
                wrong[row] = rule
                if len(wrong) >= MAX_PROBLEMS:
                    _raise_problems({feature.name: wrong})
        return _column_of(values, feature), wrong

    def _read(self, feature: Feature, value: Any, tensor: Tensor) -> tuple[Any, Rule | None]:
        """The value in the matrix for a JSON value of any type, and the rule that the value breaks."""
        if value != value:
            value = None  # clients send NaN for a missing value
        if feature.kind == "boolean" and type(value) in (int, float) and value in (0, 1):
            value = bool(value)
        if tensor.precision != np.float64 and type(value) in (int, float) and feature.kind == "number":
            (number,), wrong = check_numbers(feature, np.array([value]), self._signature.missing_texts, precision=tensor.precision)
            return number, wrong.get(0)
        return read_value(feature, value, self._unknown, self._signature.missing_texts)


def _takes_numbers(feature: Feature) -> bool:
    return feature.kind in ("number", "boolean") or (feature.date is not None and feature.date.takes_numbers)


def _check_flags(feature: Feature, tensor: Tensor) -> None:
    """Raise InvalidInput for a BOOL tensor when the feature is not a boolean."""
    if tensor.datatype == "BOOL" and feature.kind != "boolean":
        raise problem(tensor, "datatype", "datatype", "must not be BOOL: the input has a feature that is not a boolean")


def _has_gap_numbers(feature: Feature, signature: Signature) -> bool:
    return feature.nullable and bool(missing_numbers(signature.missing_texts))


def _column_of(values: Any, feature: Feature) -> Any:
    """A column of the matrix: float64, or objects for texts."""
    if isinstance(values, array):
        return np.frombuffer(values, np.float64)
    if feature.kind != "text":
        return np.array(values, np.float64)
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _raise_problems(wrong: Mapping[str, Mapping[int, Rule]]) -> None:
    """Raise InvalidInput when a row breaks a rule; the problems are sorted by row and then by feature."""
    if not any(wrong.values()):
        return
    first = sorted((row, at, name) for at, (name, rules) in enumerate(wrong.items()) for row in sorted(rules)[:MAX_PROBLEMS])
    raise InvalidInput([Problem(f"{name}[{row}]", *wrong[name][row]) for row, _, name in first[:MAX_PROBLEMS]])
