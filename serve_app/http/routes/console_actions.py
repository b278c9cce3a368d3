"""`POST /ui/promote` and `POST /ui/rollback`: a client with the scope `manage` moves the store's pointer.

The addresses exist only with IRIS_CONSOLE_ACTIONS=true. A page of another site cannot use them: the key is in a header that no
browser adds by itself, the content type is one that no form sends, and a browser names the site of a page in `Sec-Fetch-Site`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from serve_app.artifacts.store import PointerMoved, StoreUnavailable
from serve_app.errors import InvalidInput, Malformed, Problem, StoreError
from serve_app.http.auth import Key
from serve_app.http.console.pointer_moves import Move, Moved
from serve_app.http.pages import CONSOLE
from serve_app.http.prediction_service import PredictionService
from serve_app.http.problems import (
    CROSS_SITE,
    INSUFFICIENT_SCOPE,
    HttpProblem,
    problem,
    problem_of,
    unsupported_media_type,
)
from serve_app.http.responses import REQUEST_ID, problem_response, to_starlette
from serve_app.http.routes.console import Console, may_manage, with_key

log = logging.getLogger("iris_api.audit")

_JSON = "application/json"
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_OWN_SITE = (None, "same-origin", "none")
"""Allowed values of `Sec-Fetch-Site`: of a program, of the console, and of an address that a user typed."""
_ALIAS_DECIDES = problem(409, "alias_decides", "The alias in MLflow decides which version is served; move the alias.")
_BUSY = problem(503, "store_busy", "The store does not answer; see which version is served before you try again.")


def install_actions(app: FastAPI, console: Console, service: PredictionService) -> None:
    """Add the two addresses."""

    async def promote(request: Request, key: Key) -> Response:
        return await _answer(request, key, console, service, "promote", {"version", "served"})

    async def roll_back(request: Request, key: Key) -> Response:
        return await _answer(request, key, console, service, "rollback", {"served"})

    for name, answer in {"promote": promote, "rollback": roll_back}.items():
        app.add_api_route(f"{CONSOLE}/{name}", with_key(service, answer), methods=["POST"], include_in_schema=False)


async def _answer(
    request: Request, key: Key, console: Console, service: PredictionService, action: str, fields: set[str]
) -> Response:
    record = {"action": action, "key": key.name, "request_id": request.headers.get(REQUEST_ID.decode(), "")}
    refusal = _refusal(request, may=may_manage(key))
    if refusal is not None:
        log.warning("a change of the served version was refused", extra={**record, "code": refusal.details.code})
        return _failed(refusal)
    if service.slot.model_source == "mlflow":
        return _failed(_ALIAS_DECIDES)
    try:
        moved = await console.move(_parse(await request.body(), fields))
    except (InvalidInput, StoreError, TimeoutError) as error:
        failure = _problem(error)
        log.warning("a change of the served version failed", extra={**record, "code": failure.details.code, "why": str(error)})
        return _failed(failure)
    entry = moved.entry
    log.warning(
        "the served version was changed",
        extra={**record, "before": moved.before, "version": entry.version, "digest": entry.digest},
    )
    return JSONResponse(_document(moved), headers={"Cache-Control": "no-store"})


def _refusal(request: Request, *, may: bool) -> HttpProblem | None:
    """The problem of a request that is not allowed to change anything; None if it is allowed."""
    if request.headers.get("sec-fetch-site") not in _OWN_SITE:
        return CROSS_SITE
    if not may:
        return INSUFFICIENT_SCOPE
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return None if content_type == _JSON else unsupported_media_type((_JSON,))


def _parse(body: bytes, fields: set[str]) -> Move:
    """The change that a body requests; raises Malformed and InvalidInput."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise Malformed([Problem("body", "json", "must be a JSON object")])
    problems = [Problem("body", "unknown_field", f"may only have {', '.join(sorted(fields))}")] if set(document) - fields else []
    version = _version(document, "version", problems, required="version" in fields)
    served = _version(document, "served", problems)
    if problems:
        raise InvalidInput(problems)
    return Move(version, served)


def _version(document: Mapping[str, Any], field: str, problems: list[Problem], *, required: bool = False) -> int | None:
    value = document.get(field)
    if value is None and not required:
        return None
    if isinstance(value, str) and _VERSION.fullmatch(value):
        return int(value)
    problems.append(Problem(field, "version", 'must be the number of a version as text, like "3"'))
    return None


def _problem(error: Exception) -> HttpProblem:
    match error:
        case TimeoutError():
            return _BUSY
        case StoreUnavailable():
            return problem(503, "store_not_writable", _sentence(error))
        case PointerMoved():
            return problem(409, "pointer_moved", _sentence(error))
        case StoreError():
            return problem(409, "not_promoted", _sentence(error))
        case InvalidInput(problems=problems) if not isinstance(error, Malformed):
            return problem(422, "invalid_input", "The body does not name a change of the served version.", errors=problems)
        case _:
            return problem_of(error)


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def _document(moved: Moved) -> dict[str, Any]:
    entry = moved.entry
    notes = list(entry.skipped)
    if entry.manifest is not None and entry.manifest.mlflow_model_version:
        notes.append("the alias in MLflow was not moved; `iris-api promote` moves it")
    before = None if moved.before is None else str(moved.before)
    return {"version": str(entry.version), "digest": entry.digest, "before": before, "notes": notes}


def _failed(failure: HttpProblem) -> Response:
    return to_starlette(problem_response(failure))
