"""The one map from what went wrong to a status and a problem body (RFC 9457), `detail` kept for clients of old."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

import orjson

from serve_app.errors import InvalidInput, IrisApiError, Malformed, NoModel, Problem, TooManyRows
from serve_app.protocols.decode import Buffer

Headers = tuple[tuple[bytes, bytes], ...]
CONTENT_TYPE = b"application/problem+json"


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole response: status, headers without those that every answer gets, body, and the version that computed it."""

    status: int
    headers: Headers
    body: Buffer
    version: str = ""
    error: str = ""


def problem(status: int, code: str, detail: str, *, errors: Sequence[Problem] = (), headers: Headers = ()) -> HttpResponse:
    """A problem body; `code` is stable and documented, `detail` is one sentence that never repeats the input."""
    document = {
        "type": f"urn:iris-api:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    if errors:
        document["errors"] = [{"field": item.field, "code": item.code, "message": item.message} for item in errors]
    return HttpResponse(status, ((b"content-type", CONTENT_TYPE), *headers), orjson.dumps(document), error=code)


def problem_of(error: IrisApiError) -> HttpResponse:
    """The answer to an error of the core."""
    if isinstance(error, TooManyRows):
        return problem(413, "too_many_rows", "The request holds too many rows.", errors=error.problems)
    if isinstance(error, Malformed):
        return problem(400, "malformed", "The body must be a JSON document in UTF-8.", errors=error.problems)
    if isinstance(error, InvalidInput):
        fields = ", ".join(dict.fromkeys(item.field for item in error.problems[:5]))
        more = " and more" if len(error.problems) > 5 else ""
        return problem(
            422, "invalid_input", f"The input does not fit the model's signature: {fields}{more}.", errors=error.problems
        )
    if isinstance(error, NoModel):
        return problem(503, "no_model", str(error), headers=((b"retry-after", b"5"),))
    return internal_error()


def internal_error() -> HttpResponse:
    return problem(500, "internal_error", "The server failed to answer; the log has the reason under this request's id.")


MISSING_KEY = problem(
    401,
    "missing_key",
    "An API key is required in the X-API-Key header.",
    headers=((b"www-authenticate", b"ApiKey"),),
)
WRONG_KEY = problem(403, "wrong_key", "The API key is not valid.", headers=((b"www-authenticate", b"ApiKey"),))
NOT_JSON = problem(415, "unsupported_media_type", "Send the body as JSON, with Content-Type: application/json.")

TOO_BUSY = problem(429, "too_busy", "Too many requests at once; try again in a second.", headers=((b"retry-after", b"1"),))


def too_large(limit: int) -> HttpResponse:
    return problem(413, "body_too_large", f"The body must not be larger than {limit} bytes.")


def too_slow(seconds: float) -> HttpResponse:
    return problem(408, "body_too_slow", f"The body must arrive within {seconds:g} seconds.")
