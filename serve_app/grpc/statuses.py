"""The map from a response of the gateway to the status of a call."""

from __future__ import annotations

from http import HTTPStatus

from grpc import StatusCode

from serve_app.http.responses import HttpResponse

MAX_DETAILS = 1000
"""Most characters in the details of a status. They are sent in a header, which takes three bytes for each byte outside ASCII."""

_BY_ERROR = {
    "body_too_large": StatusCode.RESOURCE_EXHAUSTED,
    "disconnected": StatusCode.CANCELLED,
    "not_supported": StatusCode.UNIMPLEMENTED,
}
_BY_STATUS = {
    HTTPStatus.OK: StatusCode.OK,
    HTTPStatus.UNAUTHORIZED: StatusCode.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: StatusCode.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: StatusCode.NOT_FOUND,
    HTTPStatus.REQUEST_TIMEOUT: StatusCode.DEADLINE_EXCEEDED,
    HTTPStatus.TOO_MANY_REQUESTS: StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.SERVICE_UNAVAILABLE: StatusCode.UNAVAILABLE,
}


def status_code(response: HttpResponse) -> StatusCode:
    """The status of a response: a specific code, else INVALID_ARGUMENT for an error of the client and INTERNAL for the server."""
    other = StatusCode.INTERNAL if response.status >= 500 else StatusCode.INVALID_ARGUMENT
    return _BY_ERROR.get(response.error) or _BY_STATUS.get(HTTPStatus(response.status), other)


def details(response: HttpResponse) -> str:
    """The sentence of an error; empty for a success."""
    if response.status == HTTPStatus.OK:
        return ""
    text = bytes(response.body).decode()
    return text if len(text) <= MAX_DETAILS else f"{text[: MAX_DETAILS - 1]}…"
