"""The actions of the console in a browser: a question before each, with the mouse and with the keyboard alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect

from serve_app.artifacts.store import Store
from serve_app.http.console import versions
from tests.browser.conftest import OpenPage
from tests.browser.test_console import PHONE, REFRESH, entered, violations
from tests.support.apps import HEADERS
from tests.support.browser import Application, application
from tests.support.keys import add_key
from tests.support.models import A_FLOWER, three_versions


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def manager(keys: Path) -> str:
    """The key of a client that may manage."""
    return add_key(keys, "olga", "manage")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return three_versions(tmp_path / "models")


@pytest.fixture
def managed(store: Store, keys: Path, manager: str) -> Iterator[Application]:
    with application(store, console_actions=True, api_keys_file=keys) as started:
        yield started


def version_of(app: Application) -> str:
    """The version that answers a prediction."""
    return httpx2.post(f"{app.url}/predict", json=A_FLOWER, headers=HEADERS).headers["x-model-version"]


def row(page: Any, version: int) -> Any:
    return page.locator(f'#versions tr[data-version="{version}"]')


def test_a_version_is_served_after_the_question_is_confirmed(managed: Application, manager: str, open_page: OpenPage) -> None:
    page, _ = open_page(managed)
    entered(page, managed, manager)
    assert row(page, 3).get_by_role("button", name="Serve this version").count() == 0
    row(page, 1).get_by_role("button", name="Serve this version (1)").click()
    dialog = page.get_by_role("dialog", name="Serve version 1?")
    expect(dialog).to_contain_text("Version 3 is served now.")
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    assert version_of(managed) == "3"
    row(page, 1).get_by_role("button", name="Serve this version").click()
    dialog.get_by_role("button", name="Serve version 1").click()
    expect(page.get_by_role("status").first).to_contain_text("Version 1 is served from now on")
    expect(row(page, 1)).to_contain_text("served", timeout=REFRESH)
    expect(page.locator("#version")).to_have_text("1", timeout=REFRESH)
    assert version_of(managed) == "1"
    assert page.get_by_role("button", name="Roll back").count() == 0


def test_a_roll_back_is_done_with_the_keyboard_alone_and_the_focus_stays_on_the_page(
    managed: Application, manager: str, open_page: OpenPage
) -> None:
    page, _ = open_page(managed)
    entered(page, managed, manager)
    button = page.get_by_role("button", name="Roll back to version 2")
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Roll back to version 2?")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button).to_be_focused()
    assert version_of(managed) == "3"
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    expect(dialog.get_by_role("button", name="Roll back to version 2")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_contain_text("Version 2 is served from now on")
    expect(page.locator("#version")).to_have_text("2", timeout=REFRESH)
    assert page.evaluate("document.activeElement !== document.body")
    assert version_of(managed) == "2"


def test_a_key_without_the_scope_sees_the_commands_and_why(managed: Application, keys: Path, open_page: OpenPage) -> None:
    alice = add_key(keys, "alice")
    page, _ = open_page(managed)
    page.wait_for_timeout(3000)  # until the application has read the file again
    entered(page, managed, alice)
    assert page.locator("[data-move]").count() == 0
    expect(page.locator("#why-no-actions")).to_contain_text("this key does not have the scope manage")
    expect(row(page, 1)).to_contain_text("make promote VERSION=1")


def test_a_store_that_cannot_be_written_and_a_setting_that_is_off_show_the_commands(
    store: Store, keys: Path, manager: str, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "_is_writable", lambda folder: False)
    for actions, why in ((True, "cannot write to the store"), (False, "IRIS_CONSOLE_ACTIONS is off")):
        with application(store, console_actions=actions, api_keys_file=keys) as app:
            page, _ = open_page(app)
            entered(page, app, manager)
            assert page.locator("[data-move]").count() == 0
            expect(page.locator("#why-no-actions")).to_contain_text(why)


def test_a_change_that_another_client_made_meanwhile_is_not_overrun(
    managed: Application, store: Store, manager: str, open_page: OpenPage
) -> None:
    page, noticed = open_page(managed)
    noticed.allowed.append("409")
    entered(page, managed, manager)
    page.locator("#refresh").uncheck()
    store.promote(2)
    page.get_by_role("button", name="Roll back to version 2").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back to version 2").click()
    expect(page.locator("#message")).to_contain_text("was not changed")
    expect(page.locator("#message")).to_contain_text("Version 2 is served by now, not version 3")
    expect(page.get_by_role("button", name="Roll back to version 1")).to_be_visible(timeout=REFRESH)
    assert page.locator("#content").is_visible()


def test_a_key_that_lost_the_scope_keeps_the_page_and_changes_nothing(
    managed: Application, store: Store, keys: Path, manager: str, open_page: OpenPage
) -> None:
    page, noticed = open_page(managed)
    noticed.allowed.append("403")
    entered(page, managed, manager)
    page.locator("#refresh").uncheck()
    keys.write_text(keys.read_text().replace('"manage"', '"predict"'))
    page.wait_for_timeout(3000)
    row(page, 1).get_by_role("button", name="Serve this version").click()
    page.get_by_role("dialog").get_by_role("button", name="Serve version 1").click()
    expect(page.locator("#message")).to_contain_text("scope `manage`")
    expect(page.locator("#why-no-actions")).to_contain_text("does not have the scope")
    assert page.locator("#content").is_visible()
    assert store.entries()[-1].served


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("options", [{}, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_violation_in_buttons_and_question(
    managed: Application, manager: str, open_page: OpenPage, scheme: str, options: dict[str, Any]
) -> None:
    page, _ = open_page(managed, color_scheme=scheme, **options)
    entered(page, managed, manager)
    assert violations(page) == []
    page.get_by_role("button", name="Roll back to version 2").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_actions_work_below_a_path(store: Store, keys: Path, manager: str, open_page: OpenPage) -> None:
    with application(store, path="/team/iris", root_path="/team/iris", console_actions=True, api_keys_file=keys) as app:
        page, _ = open_page(app)
        entered(page, app, manager)
        page.get_by_role("button", name="Roll back to version 2").click()
        page.get_by_role("dialog").get_by_role("button", name="Roll back to version 2").click()
        expect(page.locator("#message")).to_contain_text("Version 2 is served from now on")


def test_a_page_of_another_site_cannot_show_the_console_in_a_frame(managed: Application, open_page: OpenPage) -> None:
    page, noticed = open_page(managed)
    noticed.allowed += ["frame", "X-Frame-Options", "ancestor"]
    page.set_content(f'<iframe src="{managed.url}/ui"></iframe>')
    page.wait_for_timeout(2000)
    assert [frame.url for frame in page.frames if frame.url.startswith(managed.url)] == []
