from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.telemetry.trace_context import SCOPE, Parent, parent, trace_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


def one(value: str) -> list[tuple[bytes, bytes]]:
    return [(b"traceparent", value.encode())]


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-01", 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-ff", 255),
        (f"cc-{TRACE}-{SPAN}-01-what-will-be", 1),
        (f"cc-{TRACE}-{SPAN}-01", 1),
    ],
)
def test_a_valid_traceparent_is_taken_also_of_a_later_version(value: str, flags: int) -> None:
    assert parent(one(value)) == Parent(TRACE, SPAN, flags)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01.",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN[1:]}g-01",
        f"00_{TRACE}-{SPAN}-01",
    ],
)
def test_a_malformed_traceparent_is_ignored(value: str) -> None:
    assert parent(one(value)) is None


def test_two_traceparents_or_none_give_no_parent() -> None:
    assert parent([*one(f"00-{TRACE}-{SPAN}-01"), *one(f"00-{TRACE}-{SPAN}-01")]) is None
    assert parent([(b"tracestate", b"a=b")]) is None


@given(st.binary(max_size=80))
def test_any_header_gives_no_parent_or_hexadecimal_ids(value: bytes) -> None:
    caller = parent([(b"traceparent", value)])
    assert caller is None or (len(caller.trace_id), len(caller.span_id)) == (32, 16)


def test_the_trace_id_of_the_own_span_comes_before_the_callers() -> None:
    scope = {"headers": one(f"00-{TRACE}-{SPAN}-01")}
    assert trace_id(scope) == TRACE
    assert trace_id({**scope, SCOPE: "a" * 32}) == "a" * 32
    assert trace_id({"headers": []}) == ""
