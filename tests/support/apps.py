"""The whole HTTP side over a real store, in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from starlette.testclient import TestClient

from serve_app.artifacts.store import Store
from serve_app.http.app import create_app
from serve_app.http.options import HttpOptions
from serve_app.http.rate_limit import RateLimits
from serve_app.http.responses import ASGIApp
from serve_app.http.routes.predictions import PREDICTION_ROUTES
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.slot import Slot
from serve_app.protocols.codec import Codec
from serve_app.settings import Settings
from tests.support.policies import ALLOW_ALL

KEY = "k" * 32
HEADERS = {"X-API-Key": KEY}
DEFAULTS = Settings.model_construct()
"""The settings of an empty environment."""


def http_options(**changes: Any) -> HttpOptions:
    """The options that the defaults of the settings give, with changes."""
    return replace(DEFAULTS.http_options(sends_request_id=True), **changes)


def rate_limits(**changes: Any) -> RateLimits:
    """No limits, with changes."""
    return replace(DEFAULTS.rate_limits(), **changes)


def client_of(
    store: Store,
    *,
    policy: LoadPolicy = ALLOW_ALL,
    around: Callable[[ASGIApp], ASGIApp] | None = None,
    routes: Mapping[str, type[Codec]] = PREDICTION_ROUTES,
    **options: Any,
) -> TestClient:
    """A client of an app that has looked at the store once. Errors inside the app become answers, as on a server."""
    slot = Slot(store, policy=policy)
    slot.refresh()
    app = create_app(slot, http_options(**{"api_key": KEY, **options}), around=around, routes=routes)
    client = TestClient(app, raise_server_exceptions=False)
    client.app_state["slot"] = slot
    return client
