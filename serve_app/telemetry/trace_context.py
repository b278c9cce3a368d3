"""W3C Trace Context: what a caller's `traceparent` says. What is malformed is as good as absent, as the recommendation asks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

SCOPE = "iris_api.trace_id"
"""Where the id of a request's own span is left in the ASGI scope, for its log lines."""

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class Parent(NamedTuple):
    """The span of the caller: ids as lower-case hexadecimals, 32 and 16 of them, and the flags (1: sampled)."""

    trace_id: str
    span_id: str
    flags: int


def parent(headers: Iterable[tuple[bytes, bytes]]) -> Parent | None:
    """The caller's span; None without exactly one valid `traceparent`."""
    values = [value for name, value in headers if name == b"traceparent"]
    found = _TRACEPARENT.fullmatch(values[0]) if len(values) == 1 else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = (part.decode("latin-1") if part is not None else None for part in found.groups())
    assert trace_id is not None
    assert span_id is not None
    assert flags is not None
    # A later version may say more; version 0 may not, and ff is none.
    if version == "ff" or (version == "00" and more is not None) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return Parent(trace_id, span_id, int(flags, 16))


def trace_id(scope: Mapping[str, Any]) -> str:
    """The trace that a request belongs to: that of its own span, else the caller's, else empty."""
    own = scope.get(SCOPE)
    if own:
        return str(own)
    found = parent(scope["headers"])
    return found.trace_id if found is not None else ""
