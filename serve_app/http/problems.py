"""The map from an error to the status, code and headers of its response. The codec of the route writes the body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.errors import InvalidInput, Malformed, NoModel, NotFinite, NotServed, Problem, TooLarge, TooManyRows
from serve_app.http.body import BodyBudgetExceeded, BodyMiscoded, BodyTimeout, BodyTooLarge
from serve_app.protocols.codec import ProblemDetails

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class HttpProblem:
    """Why a request is refused or failed, and the additional headers of its response."""

    details: ProblemDetails
    headers: Headers = ()


def problem(status: int, code: str, detail: str, *, errors: Sequence[Problem] = (), headers: Headers = ()) -> HttpProblem:
    """A problem; `code` is stable and documented, `detail` is one sentence that never repeats the input."""
    return HttpProblem(ProblemDetails(status, code, detail, errors), headers)


def problem_of(error: Exception) -> HttpProblem:
    """The problem of an error that was raised while a request was read or answered."""
    match error:
        case NotServed():
            return UNKNOWN_MODEL if error.served is None else unknown_version(error.served)
        case TooManyRows():
            return problem(413, "too_many_rows", "The request holds too many rows.", errors=error.problems)
        case TooLarge():
            return problem(413, "row_too_large", "A row or another part of the body is too large.", errors=error.problems)
        case Malformed():
            detail = _MALFORMED.get(error.problems[0].code, "The body must be a JSON document in UTF-8.")
            return problem(400, "malformed", detail, errors=error.problems)
        case InvalidInput():
            return _invalid_input(error)
        case NotFinite():
            return _not_finite(error)
        case NoModel():
            return problem(503, "no_model", str(error), headers=((b"retry-after", b"5"),))
        case _:
            return _problem_of_body(error)


_MALFORMED = {
    "arrow": "The body must be a complete and valid Arrow IPC stream.",
    "csv": "The body must be CSV text in UTF-8.",
    "parquet": "The body must be a complete and valid Parquet file.",
    "protobuf": "The message must have the type of the call.",
    "ndjson": "Every line of the body must be a JSON document in UTF-8.",
}
"""The details for bodies in other formats than JSON, by the code of their problem."""


def _problem_of_body(error: Exception) -> HttpProblem:
    match error:
        case BodyTooLarge():
            return problem(413, "body_too_large", f"The body must not be larger than {error.limit} bytes.")
        case BodyTimeout():
            return problem(408, "body_too_slow", f"The body must arrive within {error.seconds:g} seconds.")
        case BodyMiscoded():
            detail = f"The body is not one complete {error.coding.decode()} stream; compress it again or omit Content-Encoding."
            return problem(400, "malformed", detail)
        case BodyBudgetExceeded():
            return TOO_BUSY
        case _:
            return INTERNAL_ERROR


def _not_finite(error: NotFinite) -> HttpProblem:
    rows = [Problem(f"instances[{row}]", "not_finite", error.MESSAGE) for row in error.rows]
    detail = "The model computed a result that is not a finite number from valid features; a retry gives the same result."
    return problem(500, "not_finite_result", detail, errors=rows)


def _invalid_input(error: InvalidInput) -> HttpProblem:
    fields = ", ".join(dict.fromkeys(problem.field for problem in error.problems[:5]))
    more = " and more" if len(error.problems) > 5 else ""
    detail = f"The input does not fit the model's signature: {fields}{more}."
    return problem(422, "invalid_input", detail, errors=error.problems)


_API_KEY = ((b"www-authenticate", b"ApiKey"),)

MISSING_KEY = problem(401, "missing_key", "An API key is required in the X-API-Key header.", headers=_API_KEY)
WRONG_KEY = problem(403, "wrong_key", "The API key is not valid.", headers=_API_KEY)
KEY_PROBLEMS = {"missing": MISSING_KEY, "wrong": WRONG_KEY}
"""The problem of a request without a valid key, by the verdict of `Keys.check`."""
INSUFFICIENT_SCOPE = problem(403, "insufficient_scope", "This address needs an API key with the scope `manage`.")
CROSS_SITE = problem(403, "cross_site", "Pages of other sites must not use this address.")
REPEATED_HEADER = problem(
    400, "invalid_header", "Send X-API-Key, Authorization, Origin and the headers that describe the body only once."
)
INVALID_HEADER = problem(400, "invalid_header", "Header values must be UTF-8.")


def unsupported_media_type(media_types: Sequence[str], extra: str = "") -> HttpProblem:
    """415 that names the supported media types, and the extra of this package that adds the media type of the request."""
    if len(media_types) == 1:
        return problem(415, "unsupported_media_type", f"Send the body as JSON, with Content-Type: {media_types[0]}.")
    detail = f"Send the body with one of the content types {', '.join(media_types)}; text must be UTF-8."
    if extra:
        detail = f"This server cannot read the body: install iris-api[{extra}] on it, or send one of {', '.join(media_types)}."
    return problem(415, "unsupported_media_type", detail)


def not_acceptable(media_types: Sequence[str]) -> HttpProblem:
    """406 that names the media types of a response."""
    return problem(406, "not_acceptable", f"Accept names no supported content type; use one of {', '.join(media_types)}.")


NOT_FOUND = problem(404, "not_found", "This address does not exist; /docs lists the addresses of this API.")
TOO_BUSY = problem(429, "too_busy", "Too many requests at once; try again in a second.", headers=((b"retry-after", b"1"),))
UNKNOWN_MODEL = problem(404, "unknown_model", "No served model has this name; the repository index lists the served models.")
INTERNAL_ERROR = problem(500, "internal_error", "The server failed to answer; its log has the reason under the id of this request.")


def unknown_version(served: str) -> HttpProblem:
    """404 for a request that names a version that is not served."""
    return problem(404, "unknown_version", f"This version is not served; the served version is {served}.")


_ENCODINGS = (b"zstd", b"br", b"compress", b"x-compress", b"dcb", b"dcz")
"""Registered content codings that are not supported. The response may repeat their names."""


def unsupported_encoding(encoding: bytes) -> HttpProblem:
    """415 that names the content coding, with the `Accept-Encoding` of RFC 9110, section 12.5.3."""
    name = "A list" if b"," in encoding else f"`{encoding.decode()}`" if encoding in _ENCODINGS else "This value"
    detail = f"{name} is not supported in Content-Encoding: send gzip or deflate, or the body without a content coding."
    return problem(415, "unsupported_encoding", detail, headers=((b"accept-encoding", b"gzip, deflate, identity"),))


def method_not_allowed(headers: Headers) -> HttpProblem:
    """405, with the `Allow` header that lists the methods of the address."""
    detail = "This address does not support this method; the Allow header lists the supported methods."
    return problem(405, "method_not_allowed", detail, headers=headers)
