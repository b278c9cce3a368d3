"""`/ui`: the console, a page for users. Every address in it is relative, so it works behind any prefix.

The page itself contains nothing about the model and is as public as `/docs`. It loads its content from the addresses below `/ui`,
which require a key: `data` is JSON; `view`, `form` and `card` are HTML that the page inserts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from serve_app.http import console
from serve_app.http.auth import ANONYMOUS, Key
from serve_app.http.console import form
from serve_app.http.console.pointer_moves import Move, Moved, PointerMoves
from serve_app.http.console.render import STATIC, render
from serve_app.http.console.reports import Report, drift, own_report, totals, traffic
from serve_app.http.console.versions import NO_STORE, measured, provenance, read_card, read_store
from serve_app.http.options import HttpOptions
from serve_app.http.pages import CONSOLE
from serve_app.http.prediction_service import PredictionService
from serve_app.http.problems import KEY_PROBLEMS, problem
from serve_app.http.responses import problem_response, to_starlette
from serve_app.inference.predictor import Predictor
from serve_app.telemetry.history import History

log = logging.getLogger("iris_api.console")

Reports = Callable[[], Awaitable[Sequence[Report | str]]]
"""Returns the reports of all replicas, including this one; for a replica that did not answer, its name."""

Handler = Callable[[Request], Awaitable[Response]]

KEEP_SECONDS = 2.0
"""Seconds for which all open pages share one view of the store and of the replicas."""
STORE_SECONDS = 5.0
"""Most seconds that a page waits for the store's volume."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""The content security policy of the page: only this origin, nothing inline, and the images inside the model card."""
_HEADERS = {"Cache-Control": "no-store", "Content-Security-Policy": POLICY}
_NO_CARD = problem(404, "no_card", "The store holds no model card for this version.")
_SLOW_STORE = "The store does not answer. The page shows its versions as soon as it answers."

Value = TypeVar("Value")


class Console:
    """The content of the page, over the slot of one replica. It reads nothing before a page requests it.

    `reports` returns the reports of all replicas. Without it, the page shows this replica only.
    """

    def __init__(
        self, service: PredictionService, history: History, options: HttpOptions, *, name: str, reports: Reports | None
    ) -> None:
        self._service = service
        self._history = history
        self._options = options
        self._name = name
        self._reports = reports
        self._logged = False  # whether a failure of `reports` was logged
        self._thread: ThreadPoolExecutor | None = None
        self._moves = PointerMoves(options.model_dir, service.slot.policy)
        self._recent: dict[str, tuple[float, Any]] = {}
        self._running: dict[str, asyncio.Task[Any]] = {}

    def report(self) -> Report:
        """The report of this replica."""
        return own_report(self._service.slot, self._service.collector, self._history, self._name)

    async def data(self, key: Key) -> dict[str, Any]:
        """Everything that the page shows to a client with this key, as JSON types."""
        replicas, store = await asyncio.gather(self._once("replicas", self._ask_replicas), self._once("store", self._ask_store))
        own = self.report()
        answered = [own if _name(each) == self._name else each for each in replicas] or [own]
        reports = [each for each in answered if isinstance(each, dict)]
        predictor = self._service.slot.predictor
        digest = None if predictor is None else predictor.digest
        serving = [report for report in reports if digest is not None and report["digest"] == digest]
        minutes = traffic(reports)
        return {
            "name": self._options.model_name,
            "own": self._name,
            "model": self._model(),
            "serving": len(serving),
            "since": min((report["loaded_at"] for report in serving if report["loaded_at"]), default=None),
            "problem": own["problem"],
            "registry_problem": own["registry_problem"],
            "refusals": _refusals(reports),
            "replicas": [_replica(each) for each in answered],
            "minutes": minutes,
            "total": totals(reports),
            "most": max(minute["requests"] for minute in minutes),
            "drift": drift(reports, None if digest is None else self._history.recent(digest)),
            "store": store,
            "actions": self._actions(key, store),
        }

    async def card(self, digest: str) -> str | None:
        """The model card of the bundle with this digest; None when it does not exist or the store does not answer."""
        folders: list[Path] = [self._options.model_dir, self._options.cache_dir]
        try:
            return await asyncio.wait_for(self._run(read_card, folders, digest, f"{STATIC}/card.css"), STORE_SECONDS)
        except TimeoutError:
            return None

    async def move(self, move: Move) -> Moved:
        """Move the store's pointer; raises StoreError, and TimeoutError when the store does not answer."""
        try:
            return await self._moves.run(move)
        finally:
            self._recent.pop("store", None)

    def close(self) -> None:
        """End the threads that read and write the store."""
        self._moves.close()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _actions(self, key: Key, store: Mapping[str, Any]) -> dict[str, Any]:
        """Whether the page may move the pointer with this key, else why not; `back` is the version that a roll-back serves."""
        why = None
        if not self._options.console_actions:
            why = "the setting IRIS_CONSOLE_ACTIONS is off"
        elif not may_manage(key):
            why = "no API key is configured" if key is ANONYMOUS else "this key does not have the scope manage"
        elif self._service.slot.model_source == "mlflow":
            why = "the alias in MLflow decides which version is served"
        elif not store["writable"]:
            why = "this replica cannot write to the store"
        return {"allowed": why is None, "why": why, "back": _version_before(store["versions"])}

    def _model(self) -> dict[str, Any] | None:
        predictor = self._service.slot.predictor
        if predictor is None:
            return None
        signature = predictor.signature
        return {
            "version": predictor.version,
            "digest": predictor.digest,
            "predictor": predictor.kind,
            "source": predictor.bundle.source,
            "model_source": self._service.slot.model_source,
            "task": signature.task,
            "target": signature.target,
            "features": len(signature.features),
            "measured": measured(predictor.bundle.metrics),
            "origin": provenance(predictor.bundle.manifest),
        }

    async def _ask_replicas(self) -> Sequence[Report | str]:
        if self._reports is None:
            return [self.report()]
        try:
            return await self._reports()
        except Exception:
            if not self._logged:
                log.exception("the console cannot get the reports of the other replicas")
            self._logged = True
            return [self.report()]

    async def _ask_store(self) -> dict[str, Any]:
        return await self._run(read_store, self._options.model_dir)

    async def _once(self, name: str, ask: Callable[[], Awaitable[Any]]) -> Any:
        """The result of `ask`. Pages share a call that still runs or has just ended, so many pages do not add load."""
        recent = self._recent.get(name)
        if recent is not None and time.monotonic() - recent[0] < KEEP_SECONDS:
            return recent[1]
        task = self._running.get(name)
        if task is None:
            task = self._running[name] = asyncio.create_task(self._ask(name, ask))
        try:
            return await asyncio.wait_for(asyncio.shield(task), STORE_SECONDS)
        except TimeoutError:
            return {**NO_STORE, "problem": _SLOW_STORE} if name == "store" else [self.report()]

    async def _ask(self, name: str, ask: Callable[[], Awaitable[Any]]) -> Any:
        try:
            value = await ask()
            self._recent[name] = (time.monotonic(), value)
            return value
        finally:
            del self._running[name]

    async def _run(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """Call a function that reads the store in a separate thread, so a volume that hangs does not block anything else."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "console")
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


class _Static(StaticFiles):
    """Styles and scripts. The browser checks each time whether they changed, so it never mixes the files of two releases."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """A file, or 304."""
        response = super().file_response(*arguments, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


def install_console(app: FastAPI, view: Console, service: PredictionService, options: HttpOptions) -> None:
    """Add the page, its styles and scripts, and the addresses that it loads."""

    async def page() -> Response:
        needs_key = service.refuse_key(None, None) is not None
        return HTMLResponse(render("page.html", name=options.model_name, needs_key=needs_key), headers=_HEADERS)

    async def data(_: Request, key: Key) -> Response:
        return JSONResponse(await view.data(key), headers=_HEADERS)

    async def parts(_: Request, key: Key) -> Response:
        return HTMLResponse(render("view.html", **await view.data(key)), headers=_HEADERS)

    async def fields(_: Request, key: Key) -> Response:
        return HTMLResponse(_form(service.slot.predictor), headers=_HEADERS)

    async def card(request: Request, key: Key) -> Response:
        text = await view.card(request.query_params.get("digest", ""))
        return to_starlette(problem_response(_NO_CARD)) if text is None else HTMLResponse(text, headers=_HEADERS)

    app.add_api_route(CONSOLE, page, include_in_schema=False)
    for name, answer in {"data": data, "view": parts, "form": fields, "card": card}.items():
        app.add_api_route(f"{CONSOLE}/{name}", with_key(service, answer), include_in_schema=False)
    app.mount(f"/{STATIC}", _Static(directory=Path(console.__file__).parent / "static"), name="console")


def with_key(service: PredictionService, answer: Callable[[Request, Key], Awaitable[Response]]) -> Handler:
    """A handler that checks the key of a request once: it answers a request with a valid key, and refuses the others."""

    async def handle(request: Request) -> Response:
        headers = dict(request.scope["headers"])
        key = service.check_key(headers.get(b"x-api-key"), headers.get(b"authorization"))
        return to_starlette(problem_response(KEY_PROBLEMS[key])) if isinstance(key, str) else await answer(request, key)

    return handle


def may_manage(key: Key) -> bool:
    """Whether a key allows to move the store's pointer."""
    return "manage" in key.scopes


def _version_before(versions: Sequence[Mapping[str, Any]]) -> int | None:
    """The newest undamaged version that is older than the served one; `versions` begins with the newest."""
    served = next((at for at, version in enumerate(versions) if version["served"]), len(versions))
    return next((version["version"] for version in versions[served + 1 :] if not version["damaged"]), None)


def _form(predictor: Predictor | None) -> str:
    """The form for one prediction of this model."""
    if predictor is None:
        return render("form.html", fields=None, example=None, digest="", features=0)
    signature = predictor.signature
    fields = form.fields(signature)
    example = form.example_json(signature) if fields is None else None
    return render("form.html", fields=fields, example=example, digest=predictor.digest, features=len(signature.features))


def _name(report: Report | str) -> str:
    return report if isinstance(report, str) else str(report["replica"])


def _replica(report: Report | str) -> dict[str, Any]:
    """One row of the table of replicas."""
    if isinstance(report, str):
        return {"replica": report, "answered": False}
    keys = ("replica", "version", "digest", "predictor", "loaded_at", "in_flight", "problem", "refused")
    return {"answered": True, **{key: report[key] for key in keys}}


def _refusals(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Each refused candidate once, with the number of replicas that refuse it."""
    refused = [report["refused"] for report in reports if report["refused"]]
    counts = Counter((each["candidate"], each["reason"]) for each in refused)
    return [
        {**next(each for each in refused if (each["candidate"], each["reason"]) == (candidate, reason)), "replicas": count}
        for (candidate, reason), count in counts.items()
    ]
