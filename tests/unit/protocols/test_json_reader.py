"""The stepwise reader reads what `json` reads, wherever its windows end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.errors import InvalidInput, Malformed, TooLarge
from serve_app.protocols import json_reader
from serve_app.protocols.json_reader import JsonReader, load_object

LONGEST = 2000
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers(-(10**6), 10**6) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=5), values, max_size=5)


def read(body: bytes, longest: int = LONGEST) -> Any:
    """The object in `body`, or the type of the error."""
    try:
        reader = JsonReader(body, longest)
        document = {name: reader.value() for name in reader.members()}
        reader.end()
    except InvalidInput as error:
        return type(error)
    return document


def expected(body: bytes) -> Any:
    try:
        return load_object(body)
    except InvalidInput as error:
        return type(error)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    init = JsonReader.__init__

    def with_small_windows(self: JsonReader, body: bytes, longest: int) -> None:
        init(self, body, longest)
        self._window_bytes = 7

    monkeypatch.setattr(JsonReader, "__init__", with_small_windows)


@pytest.mark.usefixtures("small_windows")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=300)
@given(document=objects, indent=st.sampled_from((None, 0, 2)), ascii_only=st.booleans(), data=st.data())
def test_it_reads_what_json_reads(document: Any, indent: int | None, ascii_only: bool, data: st.DataObject) -> None:
    body = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    assert read(body) == expected(body)
    broken = bytearray(body)
    at = data.draw(st.integers(0, len(body) - 1))
    broken[at : at + data.draw(st.integers(0, 3))] = data.draw(
        st.sampled_from((b"", b"[", b'"', b"}", b"1", b"e", b",", b"\\", b"\xff"))
    )
    assert read(bytes(broken)) == expected(bytes(broken))


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize(
    "number", ["1", "-0.5e+10", "1e-5", "123456789.25", "NaN", "-Infinity", "1e400", "9" * 500, "1e", "1.", "-", "01"]
)
@pytest.mark.parametrize("indent", range(9))
def test_a_number_may_lie_across_windows(number: str, indent: int) -> None:
    body = b'{"a":' + b" " * indent + number.encode() + b',"b":2}'
    assert str(read(body)) == str(expected(body))


def test_a_value_that_is_too_long_is_refused_and_what_is_broken_is_malformed() -> None:
    filler = b'"x":"' + b"y" * 300_000 + b'"'
    assert read(b"{" + filler + b"}") is TooLarge
    assert read(b'{"a":[' + b"[]," * 100_000 + b"[]]}") is TooLarge
    assert read(b'{"a":' + b"1" * 300_000 + b"}") is TooLarge
    assert read(b'{"a":tru,' + filler + b"}") is Malformed
    assert read(b'{"a":' + b"[" * 300_000) is Malformed
    assert read(b'{"a":1}' + b" " * 300_000) == {"a": 1}
    assert read(b'{"a":1}' + b" " * 300_000 + b"x") is Malformed


def test_no_call_of_the_parser_gets_more_than_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    decoder = json_reader._DECODER

    class Recorded(json.JSONDecoder):
        def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
            sizes.append(len(s))
            return decoder.raw_decode(s, idx)

    monkeypatch.setattr(json_reader, "_DECODER", Recorded())
    body = b'{"instances":[' + b'{"a":"1"},' * 100_000 + b"{}]}"
    reader = JsonReader(body, LONGEST)
    assert [sum(1 for _ in reader.items()) for name in reader.members()] == [100_001]
    reader.end()
    assert max(sizes) <= json_reader.WINDOW_BYTES + LONGEST
