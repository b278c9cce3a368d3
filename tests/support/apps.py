"""The whole HTTP side over a real store, in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.testclient import TestClient

from serve_app.artifacts.store import Store
from serve_app.http.app import Options, create_app
from serve_app.http.gateway import ASGIApp
from serve_app.inference.predictor import LoadPolicy
from serve_app.inference.slot import Slot
from tests.support.policies import ALLOW_ALL

KEY = "k" * 32
HEADERS = {"X-API-Key": KEY}


def client_of(
    store: Store, *, policy: LoadPolicy = ALLOW_ALL, around: Callable[[ASGIApp], ASGIApp] | None = None, **options: Any
) -> TestClient:
    """A client of an app that has looked at the store once. Errors inside the app become answers, as on a server."""
    slot = Slot(store, policy=policy)
    slot.refresh()
    app = create_app(slot, Options(**{"api_key": KEY, **options}), around=around)
    client = TestClient(app, raise_server_exceptions=False)
    client.app_state["slot"] = slot
    return client
