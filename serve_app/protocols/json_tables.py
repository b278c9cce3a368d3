"""Tables as JSON in the forms of MLflow, SageMaker, Vertex AI and KServe v1: one reader for all of them.

- `instances`, `inputs`: a list of rows, each an object or a list of values in the order of the signature
- `inputs`: also an object of columns, `{"age": [20.5, 30]}`, or one row, `{"age": 20.5}`
- `dataframe_records`: a list of objects
- `dataframe_split`, `input_data`: `{"columns": [...], "data": [[...]]}`; without `columns` in the order of the signature

Every row goes through the field checker of native requests, with what these clients send besides: NaN is null, and 1 and 0 are
booleans. The names of fields in problems are those of a native batch, `instances[3].age`, in every form.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from serve_app.artifacts.fields import MAX_PROBLEMS, UnknownFields, read_row, read_value
from serve_app.artifacts.matrix import Matrix, Value, matrix_type
from serve_app.artifacts.signature import Feature, Signature, label_text
from serve_app.errors import InvalidInput, Problem
from serve_app.protocols.codec import Buffer, CodecContext
from serve_app.protocols.decode import BatchReader, NotFastPath, Values, column_decoder, list_decoder
from serve_app.protocols.json_reader import JsonReader
from serve_app.protocols.limits import rows_within

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs", "input_data")
"""The members that hold a table in the requests of MLflow."""

ListDecoder = Callable[[Buffer], Matrix]
_NUMBERS = msgspec.json.Decoder(list[float]).decode


def table_decoder(context: CodecContext, forms: Sequence[str] = FORMS) -> Callable[[Buffer], Matrix]:
    """A function from a JSON object with a table in one of these members to a matrix, order kept.

    It raises InvalidInput, Malformed, TooManyRows and TooLarge.
    """
    signature = context.signature
    objects = list_decoder(signature, unknown=context.unknown, unknown_fields=context.unknown_fields)
    lists = list_decoder(signature, unknown=context.unknown, columns=signature.names)

    def decode(body: Buffer) -> Matrix:
        return TableReader(context, forms, objects, lists).read(body)

    return decode


def sent_value(feature: Feature, value: Any) -> Any:
    """What the value of a table in JSON says: NaN is null, and the numbers 1 and 0 are true and false for a boolean."""
    if type(value) is float:
        if value != value:
            return None
        if feature.kind == "boolean" and value in (0.0, 1.0):
            return value == 1.0
    return value


class RowReader:
    """Reads single rows of a table: objects, and lists of the values of `columns` (None: of all features in their order)."""

    def __init__(self, signature: Signature, columns: Sequence[str] | None) -> None:
        self._by_name = {feature.name: feature for feature in signature.features}
        self._columns = signature.names if columns is None else tuple(columns)
        self._is_single = len(self._columns) == 1

    def row(self, row: Any, field: str, problems: list[Problem]) -> dict[str, Any] | None:
        """A row by the names of its values; None, with a problem, for what is no row."""
        if isinstance(row, dict):
            named = row
        else:
            values = [row] if self._is_single and not isinstance(row, list) else row
            width = len(self._columns)
            if not isinstance(values, list):
                problems.append(Problem(field, "type", f"must be a JSON object or a list of {width} values: [[…]] holds one row"))
                return None
            if len(values) != width:
                problems.append(Problem(field, "shape", f"must hold {width} values, as many as there are columns"))
                return None
            named = dict(zip(self._columns, values, strict=True))
        by_name = self._by_name
        return {name: sent_value(by_name[name], value) if name in by_name else value for name, value in named.items()}


class TableReader(BatchReader):
    """Reads the table of one request in bounded steps; see the module."""

    def __init__(self, context: CodecContext, forms: Sequence[str], objects: ListDecoder, lists: ListDecoder) -> None:
        super().__init__(
            context.signature,
            max_rows=rows_within(context.signature, context.max_rows),
            max_row_bytes=context.max_row_bytes,
            unknown=context.unknown,
            unknown_fields=context.unknown_fields,
        )
        self._forms = tuple(forms)
        self._objects = objects
        self._lists = lists
        self._body: Buffer = b""

    def read(self, body: Buffer) -> Matrix:
        """The matrix of a request. Raises InvalidInput, Malformed, TooManyRows and TooLarge."""
        self._body = body
        reader = JsonReader(body, self._max_row_bytes)
        matrix: Matrix | None = None
        for name in reader.members():
            if name not in self._forms:
                _skip(reader)
                continue
            if matrix is not None:
                raise InvalidInput([Problem("body", "ambiguous", f"must hold one of {', '.join(self._forms)}, once")])
            matrix = self._table(name, reader)
        reader.end()
        if matrix is None:
            raise InvalidInput([Problem("body", "missing", f"must hold one of {', '.join(self._forms)}")])
        self.check()
        if not len(matrix):
            raise InvalidInput([Problem("instances", "too_short", "must hold at least one row")])
        return matrix

    def _table(self, form: str, reader: JsonReader) -> Matrix:
        first = reader.peek()
        if form in ("dataframe_split", "input_data") and first == "{":
            return self._split(form, reader)
        if form == "inputs" and first == "{":
            return self._named(reader)
        if first != "[" or form == "dataframe_split":
            takes = {"dataframe_split": "an object with columns and data", "inputs": "a list of rows or an object of columns"}
            raise InvalidInput([Problem(form, "type", f"must be {takes.get(form, 'a list of rows')}")])
        return self._list(reader, RowReader(self._signature, None), self._lists)

    def _list(self, reader: JsonReader, rows: RowReader, lists: ListDecoder) -> Matrix:
        """The rows of a list: many at once where they are right, else one by one."""
        reader.expect("[")
        if reader.take("]"):
            return self._matrix(self._no_values())
        matrices: list[Matrix] = []
        while True:
            run = reader.run()
            if run and (matrix := self._fast(run, lists)) is not None:
                matrices.append(matrix)
                reader.skip(run)
                continue
            stop = reader.offset + (len(run) or reader.left)
            values = self._no_values()
            more = True
            while more and reader.offset < stop:
                self._add(reader.value(), rows, values)
                more = reader.take(",")
            matrices.append(self._matrix(values))
            if not more:
                reader.expect("]")
                return matrices[0] if len(matrices) == 1 else np.concatenate(matrices)

    def _fast(self, run: str, lists: ListDecoder) -> Matrix | None:
        """The matrix of a run whose rows are right; None when they have to be read one by one."""
        try:
            matrix = (lists if run[0] == "[" else self._objects)(f"[{run}]".encode())
        except (NotFastPath, UnicodeEncodeError):
            return None
        self.check_count(len(matrix))
        self.count += len(matrix)
        return matrix

    def _add(self, row: Any, rows: RowReader, values: Values) -> None:
        self.check_count(1)
        field = f"instances[{self.count}]"
        self.count += 1
        named = rows.row(row, field, self._problems)
        if named is not None:
            values.extend(read_row(self._signature, named, f"{field}.", self._problems, self._unknown, self._unknown_fields))
        if len(self._problems) >= MAX_PROBLEMS:
            self.check()

    def _split(self, form: str, reader: JsonReader) -> Matrix:
        matrix: Matrix | None = None
        columns: Any = None
        for name in reader.members():
            if name == "columns":
                columns = reader.value()
            elif name == "data" and matrix is None and reader.peek() == "[":
                matrix = self._data(form, reader, columns if columns is not None else self._columns_of(form))
            else:
                _skip(reader)
        if matrix is None:
            raise InvalidInput([Problem(f"{form}.data", "missing", "must be a list of rows")])
        return matrix

    def _data(self, form: str, reader: JsonReader, columns: Any) -> Matrix:
        names = self._columns(form, columns)
        if names is None:
            return self._list(reader, RowReader(self._signature, None), self._lists)
        check_columns(self._signature, names, f"{form}.columns", self._unknown_fields)
        lists = self._lists if names == self._signature.names else self._lists_of(names)
        return self._list(reader, RowReader(self._signature, names), lists)

    def _lists_of(self, names: Sequence[str]) -> ListDecoder:
        """The decoder of lists of other columns; it is made when there are rows for it."""
        made: list[ListDecoder] = []

        def decode(body: Buffer) -> Matrix:
            if not made:
                made.append(list_decoder(self._signature, unknown=self._unknown, columns=names))
            return made[0](body)

        return decode

    def _columns(self, form: str, columns: Any) -> tuple[str, ...] | None:
        """The names of the columns; None when the table has none, or only numbers as a frame without names has them."""
        field = f"{form}.columns"
        if columns is None:
            return None
        if not isinstance(columns, list) or not all(isinstance(name, str | float) for name in columns):
            raise InvalidInput([Problem(field, "type", "must be a list of names")])
        if columns == list(range(len(self._signature.features))):
            return None
        return tuple(map(label_text, columns))

    def _columns_of(self, form: str) -> Any:
        """The columns that stand behind the data: the request is read once more up to them."""
        reader = JsonReader(self._body, self._max_row_bytes)
        for name in reader.members():
            if name != form:
                _skip(reader)
                continue
            for member in reader.members():
                if member == "columns":
                    return reader.value()
                _skip(reader)
        return None

    def _named(self, reader: JsonReader) -> Matrix:
        """An object of columns, or of the values of one row."""
        row: dict[str, Any] = {}
        columns: dict[str, Values] = {}
        by_name = {feature.name: feature for feature in self._signature.features}
        names: list[str] = []
        for name in reader.members():
            names.append(name)
            if len(names) > 2 * len(by_name) + 1000:
                raise InvalidInput([Problem("inputs", "columns", "must not hold so many columns that the model does not have")])
            if reader.peek() != "[":
                row[name] = reader.value()
            elif name in by_name and name not in columns:
                columns[name] = self._column(by_name[name], reader)
            else:
                _skip(reader)
        if row and columns:
            raise InvalidInput([Problem("inputs", "shape", "must hold lists, one for each column, or values, one row")])
        if not columns:
            values = self._no_values()
            self._add(row, RowReader(self._signature, None), values)
            return self._matrix(values)
        check_columns(self._signature, names, "inputs", self._unknown_fields)
        self.check()
        if len({len(column) for column in columns.values()}) != 1:
            raise InvalidInput([Problem("inputs", "shape", "must hold columns of equal length")])
        return self._side_by_side(columns)

    def _column(self, feature: Feature, reader: JsonReader) -> Values:
        """The values of a column: many at once where they are right, else one by one."""
        values: Values = [] if feature.kind == "text" else array("d")
        decode = column_decoder(feature, self._signature, self._unknown)
        self.count = 0  # every column has the rows of the table
        reader.expect("[")
        if reader.take("]"):
            return values
        while True:
            run = reader.plain_run()
            try:
                values.extend(_decoded(run, decode))
            except (NotFastPath, UnicodeEncodeError):
                stop, more = reader.offset + (len(run) or reader.left), True
                while more and reader.offset < stop:
                    values.append(self._single(feature, reader.value(), len(values)))
                    more = reader.take(",")
            else:
                reader.skip(run)
                more = reader.peek() != "]"
            self.check_count(len(values))
            if not more:
                reader.expect("]")
                return values

    def _single(self, feature: Feature, item: Any, row: int) -> Value:
        self.check_count(row + 1)
        single = item[0] if isinstance(item, list) and len(item) == 1 else item  # shape [rows, 1]
        value, problem = read_value(feature, sent_value(feature, single), self._unknown, self._signature.missing_texts)
        if problem is not None:
            self._problems.append(Problem(f"instances[{row}].{feature.name}", *problem))
            if len(self._problems) >= MAX_PROBLEMS:
                self.check()
        return value

    def _side_by_side(self, columns: dict[str, Values]) -> Matrix:
        count = len(next(iter(columns.values())))
        matrix: Matrix = np.full((count, len(self._signature.features)), math.nan, matrix_type(has_texts=self._has_texts))
        for at, name in enumerate(self._signature.names):
            if name in columns:
                matrix[:, at] = columns[name]
        return matrix


def check_columns(signature: Signature, names: Sequence[str], field: str, unknown_fields: UnknownFields) -> None:
    """Raise InvalidInput for columns that repeat, that the model needs and the table lacks, or that are refused."""
    known = frozenset(names)
    if len(known) != len(names):
        raise InvalidInput([Problem(field, "duplicate", "must name every column once")])
    missing = [feature.name for feature in signature.features if feature.name not in known and not feature.nullable]
    if missing:
        raise InvalidInput([Problem(name, "missing", "this column is required") for name in missing[:MAX_PROBLEMS]])
    if known.isdisjoint(signature.names):  # all of them may be left out, but a row needs one
        raise InvalidInput([Problem(field, "missing", "must name one of the model's columns")])
    if unknown_fields == "refuse" and not known.issubset(signature.names):
        raise InvalidInput([Problem(field, "unknown_field", "must name no other column than the model's")])


def _decoded(run: str, decode: Callable[[Buffer], Any]) -> Any:
    """The values of a run. Raises NotFastPath for an empty one too: behind it is no value, or one that is not whole."""
    if not run:
        raise NotFastPath
    return decode(f"[{run}]".encode())


def _skip(reader: JsonReader) -> None:
    """Read a value that is of no interest, a list item by item."""
    if reader.peek() != "[":
        reader.value()
        return
    reader.expect("[")
    while not reader.take("]"):
        run = reader.plain_run()
        try:
            _decoded(run, _NUMBERS)
        except (NotFastPath, msgspec.MsgspecError, UnicodeEncodeError):
            stop = reader.offset + (len(run) or reader.left)
            while True:
                reader.value()
                if not reader.take(","):
                    reader.expect("]")
                    return
                if reader.offset >= stop:
                    break
        else:
            reader.skip(run)
