"""The headers of a request: the checks that refuse a request because of them."""

from __future__ import annotations

from collections.abc import Mapping

from serve_app.http.problems import INVALID_HEADER, REPEATED_HEADER, HttpProblem
from serve_app.http.responses import REQUEST_ID
from serve_app.protocols.codec import Headers
from serve_app.protocols.oip import HEADER_LENGTH

HeaderValues = Mapping[bytes, bytes]
"""The headers of a request by name; a repeated header has its last value."""

SINGLE = frozenset(
    {b"x-api-key", b"authorization", b"content-type", b"content-encoding", b"content-length", b"origin", HEADER_LENGTH}
)
"""Headers that a request may have once. A program before the application could otherwise use another value of them."""


def problem_of_headers(headers: Headers) -> HttpProblem | None:
    """The problem of headers that are repeated or not UTF-8; None for valid headers."""
    if is_repeated(headers):
        return REPEATED_HEADER
    return None if are_utf8(headers) else INVALID_HEADER


def problem_of_prediction_headers(headers: Headers, values: HeaderValues) -> HttpProblem | None:
    """The same for a prediction, where only the request id is decoded. A request without an id costs nothing."""
    if len(values) != len(headers) and is_repeated(headers):
        return REPEATED_HEADER
    request_id = values.get(REQUEST_ID)
    if request_id is None or request_id.isascii() or are_utf8([(REQUEST_ID, request_id)]):
        return None
    return INVALID_HEADER


def is_repeated(headers: Headers) -> bool:
    """Whether a header in SINGLE is repeated."""
    names = [name for name, _ in headers if name in SINGLE]
    return len(set(names)) != len(names)


def are_utf8(headers: Headers) -> bool:
    """Whether every value is UTF-8."""
    values = b"\n".join(value for _, value in headers)
    if values.isascii():
        return True
    try:
        values.decode()
    except UnicodeDecodeError:
        return False
    return True
