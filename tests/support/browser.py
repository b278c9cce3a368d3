"""A headless Chromium over an application in this process, and what it notices: requests, errors, dialogs."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn

from serve_app.artifacts.store import Store
from serve_app.http.responses import ASGIApp, Receive, Scope, Send
from tests.support.apps import client_of
from tests.support.server import free_port
from tests.support.waiting import until

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
LOCAL = ("blob:", "data:", "about:")


def chromium() -> str:
    """The program: CHROMIUM, or the one of the system. A test without one fails and says what to install."""
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.fail("no Chromium: install one (on Debian `apt-get install chromium`), or name its program in CHROMIUM")
    return program


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    """Chromium without a window. A sandbox of its own is not to be had as root."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"] if os.getuid() == 0 else [])
        yield browser
        browser.close()


@dataclass(slots=True)
class Noticed:
    """What happened in a page; `allowed` are texts of errors that the test expects."""

    base: str
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)

    def watch(self, page: Any) -> None:
        """Note everything that this page does."""
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.errors.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: self._dismiss(dialog))

    def check(self) -> None:
        """Nothing left this server, no script failed, and nothing that was shown has run."""
        assert [url for url in self.requests if not url.startswith((self.base, *LOCAL))] == []
        assert [error for error in self.errors if not any(text in error for text in self.allowed)] == []
        assert self.dialogs == []

    def _dismiss(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()


@dataclass(frozen=True, slots=True)
class Application:
    """A running application: its address with the path below which it is shown, and its state."""

    url: str
    origin: str
    state: Any


@contextlib.contextmanager
def application(
    store: Store, *, path: str = "", proxy: Callable[[ASGIApp], ASGIApp] | None = None, **options: Any
) -> Iterator[Application]:
    """Serve this store over HTTP until the block ends, as the replica's own server does; the pages are below `path`."""
    client = client_of(store, **{"model_dir": store.root, **options})
    port = free_port()
    app: Any = client.app if proxy is None else proxy(client.app)
    server = uvicorn.Server(uvicorn.Config(app, port=port, http="httptools", loop="asyncio", lifespan="on", log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: _listens(port), seconds=30)
        origin = f"http://127.0.0.1:{port}"
        yield Application(f"{origin}{path}", f"{origin}/", client.app_state)
    finally:
        server.should_exit = True
        thread.join(20)


def stripping(prefix: str) -> Callable[[ASGIApp], ASGIApp]:
    """A proxy that shows the application below a path and does not tell it."""

    def around(app: ASGIApp) -> ASGIApp:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                path = str(scope["path"])
                below = path[len(prefix) :] if path.startswith(f"{prefix}/") else "/outside/of/the/proxy"
                scope = {**scope, "path": below, "raw_path": below.encode()}
            await app(scope, receive, send)

        return answer

    return around


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
