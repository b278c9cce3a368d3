"""The pictures of pages in the docs: `python -m tests.support.screenshots FOLDER [MINUTES]`.

The console is that of a real application with two replicas, which answers requests for some minutes. /docs and the model card are
those of the model that the tutorial for a laptop trains, in this process. With 0 minutes only these are taken.
"""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image

from serve_app.artifacts.names import CARD
from serve_app.artifacts.store import Store
from tests.support.browser import application, launched
from tests.support.keys import add_key
from tests.support.models import A_FLOWER, iris
from tests.support.pages import blocks_of
from tests.support.server import HEADERS, KEY, ROOT, serving

TUTORIAL = ROOT / "docs" / "tutorial" / "laptop.md"
FLAT = {"area": 64, "rooms": 2, "city": "Bern", "balcony": True, "built": 1998}
COLORS = 200
"""Of a picture, so that it is small."""


def train(folder: Path, *arguments: str) -> None:
    """Train and publish as a user does."""
    environment = {**os.environ, "MODEL_DIR": str(folder / "models"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "serve_app.cli", "train", "--no-tracking", *arguments]
    subprocess.run(command, env=environment, cwd=folder, check=False, capture_output=True, timeout=600)


def send_requests(url: str, minutes: float) -> None:
    """Rows of the training table, those of larger flowers more often; some with a value that is refused."""
    rows, source = iris()[0].tolist(), random.Random(0)
    ends = time.monotonic() + 60 * minutes
    with httpx2.Client(headers=HEADERS, timeout=60) as client:
        while time.monotonic() < ends:
            for _ in range(source.randint(5, 40)):
                row = dict(zip(A_FLOWER, rows[source.randint(30, 149)], strict=True))
                client.post(f"{url}/predict", json=row if source.random() > 0.03 else {**row, "petal_width": -1})
            time.sleep(1)


def save(part: Any, file: Path, *, until: Any = None) -> None:
    """Write the picture of a page, or of a part of it; of a long page, down to the end of `until`."""
    options: dict[str, Any] = {}
    if until is not None:
        end = part.evaluate("(element) => element.getBoundingClientRect().bottom + window.scrollY", until.element_handle())
        options = {"full_page": True, "clip": {"x": 0, "y": 0, "width": part.viewport_size["width"], "height": end + 2}}
    picture = Image.open(io.BytesIO(part.screenshot(**options)))
    picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(file, optimize=True)
    sys.stdout.write(f"{file}: {file.stat().st_size // 1024} KiB\n")


def open_console(browser: Any, url: str, key: str = KEY, **options: Any) -> Any:
    """A page with the console, opened with the key."""
    page = browser.new_context(**options).new_page()
    page.goto(f"{url}/ui")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Open").click()
    page.wait_for_selector("#row")
    return page


def take_tutorial(folder: Path, target: Path) -> None:
    """Take /docs with one answered request, and the model card, of the model of the tutorial."""
    table = next(block.commands for block in blocks_of(TUTORIAL) if "flats.csv" in block.commands)
    subprocess.run(["bash", "-c", table], cwd=folder, check=True, capture_output=True)
    train(folder, "--data", "flats.csv", "--target", "rent")
    store = Store(folder / "models")
    with application(store, api_key=None) as app, launched() as browser:
        page = browser.new_context(color_scheme="light", viewport={"width": 1000, "height": 1000}).new_page()
        page.goto(f"{app.url}/docs")
        block = page.locator("[id$='-predict']").first
        block.locator(".opblock-summary").first.click()
        block.get_by_role("button", name="Try it out").click()
        block.locator("textarea").first.fill(json.dumps(FLAT, indent=2))
        block.locator("textarea").first.evaluate("(element) => { element.style.minHeight = element.style.height = '140px' }")
        block.get_by_role("button", name="Execute").click()
        block.locator(".live-responses-table .response-col_status").last.wait_for()
        save(page, target / "docs-try.png", until=block.locator(".live-responses-table"))
        page = browser.new_context(color_scheme="light", viewport={"width": 900, "height": 1000}).new_page()
        page.goto((store.root / "current" / CARD).resolve().as_uri())
        save(page, target / "card.png", until=page.locator("img").first)


def take(url: str, folder: Path, manager: str) -> None:
    """The pictures: the page, its dark form, one prediction, the question before a roll-back, and the page on a phone."""
    wide: Any = {"viewport": {"width": 1100, "height": 1250}}
    with launched() as browser:
        page = open_console(browser, url, color_scheme="light", **wide)
        save(page, folder / "console.png")
        page.get_by_role("button", name="Predict", exact=True).click()
        page.wait_for_selector("#answer .prediction")
        save(page.locator("section", has=page.locator("#try-title")), folder / "console-try.png")
        page.get_by_role("button", name="Show the card of the served model").click()
        page.frame_locator("iframe").locator("img").first.wait_for()
        save(page.locator("section", has=page.locator("#card")), folder / "console-card.png")
        page = open_console(browser, url, color_scheme="dark", **wide)
        page.evaluate("document.querySelector('#part-drift').scrollIntoView()")
        save(page, folder / "console-drift.png")
        page = open_console(browser, url, manager, color_scheme="light", viewport={"width": 1100, "height": 700})
        page.get_by_role("button", name="Roll back").click()
        save(page, folder / "console-roll-back.png")
        page = open_console(browser, url, viewport={"width": 390, "height": 844})
        save(page, folder / "console-phone.png")


def main() -> None:
    """Train, serve, send requests, take the pictures."""
    target = Path(sys.argv[1]).absolute()
    minutes = float(sys.argv[2]) if len(sys.argv) > 2 else 5.0
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        take_tutorial(Path(name), target)
    if not minutes:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(folder)
        train(folder, "--estimator", "logistic-regression")
        key = add_key(folder / "keys.json", "olga", "manage")
        actions = {"IRIS_API_KEYS_FILE": str(folder / "keys.json"), "IRIS_CONSOLE_ACTIONS": "true"}
        with serving(folder / "models", folder, replicas=2, **actions) as server:
            send_requests(server.url, minutes)
            take(server.url, target, key)


if __name__ == "__main__":
    main()
