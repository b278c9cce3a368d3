"""Every codec against the field checker: any signature and any rows are the same matrix, or the same refusal, in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from serve_app.artifacts.fields import Unknown, read_rows
from serve_app.artifacts.signature import Signature
from serve_app.errors import InvalidInput
from tests.support.protocol_table import (
    MODEL,
    PROTOCOLS,
    CannotCarry,
    Protocol,
    codec_class,
    headers_of,
    of_table,
)
from tests.support.signatures import rows as rows_of
from tests.support.signatures import signatures
from tests.support.table_rows import context

CODECS = [protocol for protocol in PROTOCOLS if protocol.precision == np.float64 and "binary outputs" not in protocol.name]


@st.composite
def tables(draw: st.DrawFn) -> tuple[Signature, list[dict[str, Any]]]:
    """A signature, and rows that are mostly right."""
    signature = draw(signatures())
    return signature, draw(st.lists(rows_of(signature), min_size=1, max_size=4))


@pytest.mark.parametrize("protocol", CODECS, ids=[protocol.name for protocol in CODECS])
@settings(max_examples=25)
@given(table=tables(), unknown=st.sampled_from(("refuse", "unseen")))
def test_any_rows_are_the_same_matrix_or_the_same_refusal(
    protocol: Protocol, table: tuple[Signature, list[dict[str, Any]]], unknown: Unknown
) -> None:
    signature, rows = table
    rows = rows[:1] if protocol.single else rows
    try:
        sent = protocol.encode(signature, rows)
    except CannotCarry:
        return
    note(sent.body)
    headers = [(name.lower().encode(), value.encode()) for name, value in headers_of(protocol, sent).items()]
    known = replace(context(signature, unknown=unknown, max_row_bytes=100_000), model_name=MODEL)
    codec = codec_class(protocol, sent)(known)
    wanted = expected(signature, with_flags(signature, rows) if protocol.lenient else rows, unknown)
    found: Any
    try:
        found = codec.decode(sent.body, headers).matrix
    except InvalidInput as error:
        found = sorted(protocol.place(each.field, each.code) for each in error.problems)
    assert shown(found) == shown(wanted)


def shown(found: Any) -> Any:
    """A matrix with its type, so that gaps in the same places and equal bits are equal; places as they are."""
    return found if isinstance(found, list) else (found.dtype, repr(found.tolist()))


def expected(signature: Signature, rows: Sequence[Any], unknown: Unknown) -> Any:
    """The matrix of these rows, or the places of what is wrong with them, in order."""
    try:
        return read_rows(signature, rows, unknown=unknown)
    except InvalidInput as error:
        return sorted(of_table(f"instances{each.field}", each.code) for each in error.problems)


def with_flags(signature: Signature, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose ones and zeros are true and false where the model takes a boolean."""
    flags = {feature.name for feature in signature.features if feature.kind == "boolean"}
    return [
        {
            name: bool(value) if name in flags and type(value) in (int, float) and value in (0, 1) else value
            for name, value in row.items()
        }
        for row in rows
    ]
