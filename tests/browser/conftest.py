"""One browser for all tests, a page for each, and a store with a model that was trained as a user trains one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.artifacts.store import Store
from tests.support.browser import Application, Noticed, application, launched
from tests.support.server import ROOT


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One browser for all tests."""
    with launched() as browser:
        yield browser


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store with the iris model, trained by the command."""
    folder = tmp_path_factory.mktemp("trained")
    environment = {**os.environ, "MODEL_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "serve_app.cli", "train", "--no-tracking"]
    subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True, timeout=280)
    return folder


@pytest.fixture(scope="module")
def running(trained: Path) -> Iterator[Application]:
    """An application over the trained model, which no test changes."""
    with application(Store(trained)) as started:
        yield started


OpenPage = Callable[..., tuple[Any, Noticed]]


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Open the pages of an application: a browser page, and what is noticed there, which is checked at the end."""
    contexts, watched = [], []

    def opened(app: Application, **options: Any) -> tuple[Any, Noticed]:
        context = browser.new_context(base_url=app.url, **options)
        context.set_default_timeout(20_000)
        noticed, page = Noticed(app.origin), context.new_page()
        noticed.watch(page)
        contexts.append(context)
        watched.append(noticed)
        return page, noticed

    yield opened
    for context in contexts:
        context.close()
    for noticed in watched:
        noticed.check()
