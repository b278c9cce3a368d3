"""Problem details as JSON (RFC 9457): the body of error responses in protocols without their own format."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import orjson

from serve_app.errors import Problem

PROBLEM_JSON = b"application/problem+json"

_TEXT = {"type": "string"}
PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": _TEXT,
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": _TEXT,
        "code": _TEXT,
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "code", "message"],
                "properties": {"field": _TEXT, "code": _TEXT, "message": _TEXT},
            },
        },
    },
}
"""JSON Schema of the document that `problem_json` writes."""


def problem_json(status: int, code: str, detail: str, errors: Sequence[Problem] = ()) -> bytes:
    """The document for an HTTP status; `code` is stable and documented, `errors` lists the fields at fault."""
    document: dict[str, Any] = {
        "type": f"urn:iris-api:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    if errors:
        document["errors"] = [{"field": error.field, "code": error.code, "message": error.message} for error in errors]
    return orjson.dumps(document)
