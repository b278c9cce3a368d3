"""W3C Trace Context (https://www.w3.org/TR/trace-context/): the `traceparent` header of a caller.

As the recommendation requires, a malformed header counts as absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

SCOPE = "iris_api.trace_id"
"""The key of the ASGI scope with the trace id of the request's own span, for its log lines."""

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class Parent(NamedTuple):
    """The span of the caller: trace id and span id as 32 and 16 lower-case hexadecimal digits, and the flags (1: sampled)."""

    trace_id: str
    span_id: str
    flags: int


def parent(headers: Iterable[tuple[bytes, bytes]]) -> Parent | None:
    """The caller's span; None unless the headers hold exactly one valid `traceparent`."""
    values = [value for name, value in headers if name == b"traceparent"]
    match = _TRACEPARENT.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = (part.decode("latin-1") if part is not None else None for part in match.groups())
    assert trace_id is not None
    assert span_id is not None
    assert flags is not None
    # Later versions may have further fields, version 00 must not have any, and ff is not a version.
    if version == "ff" or (version == "00" and more is not None) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return Parent(trace_id, span_id, int(flags, 16))


def trace_id(scope: Mapping[str, Any]) -> str:
    """The trace id of a request: from its own span, else from the caller, else an empty text."""
    own = scope.get(SCOPE)
    if own:
        return str(own)
    caller = parent(scope["headers"])
    return caller.trace_id if caller is not None else ""
