"""/docs at work: every operation is sent by the page's own form, as it is filled in."""

import os
import shutil
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from browser.conftest import Watched
from support.cli import invoke
from support.forms import in_order
from support.server import RunningServer

OPENED_SECONDS = 30
IMAGES = os.environ.get("SCREENSHOTS")
"""The folder that screenshots are written into."""


def form(page: Page, operation: str) -> Locator:
    return page.locator(f".opblock[id$='-{operation}']")


def sent_as_filled_in(page: Page, operation: str) -> str:
    """Send the form of an operation as it is; the status of the answer that the page shows."""
    block = form(page, operation)
    block.locator(".opblock-summary-control").click()
    expect(block.locator(".try-out__btn")).to_be_visible()
    if not block.locator(".btn.execute").is_visible():  # the page remembers forms that were open
        block.locator(".try-out__btn").click()
    block.locator(".btn.execute").click()
    shown = block.locator(".live-responses-table .response-col_status").last
    expect(shown).to_have_text("200")
    text: str = shown.inner_text()
    block.locator(".opblock-summary-control").click()
    return text


def operations(server: RunningServer, **headers: str) -> list[str]:
    document = httpx.get(f"{server.http}/openapi.json", headers=headers).json()
    names = [
        operation["operationId"]
        for methods in document["paths"].values()
        for operation in methods.values()
    ]
    return in_order(names)


def picture(page: Page, name: str) -> None:
    if IMAGES is not None:
        page.screenshot(path=Path(IMAGES) / name)


def open_docs(watched: Watched, url: str) -> Page:
    page = watched.page
    page.set_default_timeout(OPENED_SECONDS * 1000)
    expect.set_options(timeout=OPENED_SECONDS * 1000)
    page.goto(f"{url}/docs")
    return page


@pytest.mark.parametrize("root_path", ["", "/tables"])
def test_every_form_is_answered_as_it_is_filled_in(
    tables: Path, watched: Watched, tmp_path: Path, root_path: str
) -> None:
    # A copy of its own: a committed upload stays, and can't be made again.
    data_dir = shutil.copytree(tables / "data", tmp_path / "data")
    options = ("--data-dir", data_dir, "--snapshot-dir", tmp_path / "snapshots")
    prefixed = ("--root-path", root_path) if root_path else ()
    with RunningServer(*options, *prefixed, log_path=tmp_path / "log") as server:
        page = open_docs(watched, server.http + root_path)
        expect(form(page, "lookup")).to_be_visible()
        expect(page.locator(".btn.authorize")).to_have_count(0)
        if not root_path:
            picture(page, "docs.png")
        for name in operations(server) if not root_path else ["lookup", "listTables"]:
            assert sent_as_filled_in(page, name) == "200", name
        assert watched.elsewhere(server.http) == []
        assert watched.violations() == []
        if not root_path:
            form(page, "lookup").locator(".opblock-summary-control").click()
            form(page, "lookup").evaluate("element => element.scrollIntoView()")
            picture(page, "docs-lookup.png")
        else:
            below = [url.removeprefix(server.http) for url in watched.asked if "data:" not in url]
            assert all(url.startswith(root_path + "/") for url in below), below


def test_a_server_with_tokens_shows_its_operations_to_a_token(
    tables: Path, watched: Watched, tmp_path: Path
) -> None:
    scopes = [
        part for scope in ("read", "update", "admin", "metrics") for part in ("--scope", scope)
    ]
    tokens = tmp_path / "tokens"
    token = invoke("token", "all", "--tokens", tokens, *scopes, "--table", "*").stdout.strip()
    options = ("--data-dir", tables / "data", "--snapshot-dir", tmp_path / "snapshots")
    with RunningServer(*options, "--tokens", tokens, log_path=tmp_path / "log") as server:
        page = open_docs(watched, server.http)
        expect(page.locator(".info")).to_contain_text("this server takes a token")
        expect(form(page, "get_healthz")).to_be_visible()
        expect(page.locator(".opblock")).to_have_count(2)
        assert sent_as_filled_in(page, "get_healthz") == "200"

        authorize(page, "gatherd_" + "x" * 43)
        expect(page.locator(".info")).to_contain_text("the token isn't one of this server's")
        expect(page.locator(".opblock")).to_have_count(2)
        page.locator(".btn.authorize").click()
        page.locator(".modal-btn.auth", has_text="Logout").click()
        page.locator(".btn-done").click()
        expect(page.locator(".info")).to_contain_text("this server takes a token")

        authorize(page, token)
        expect(form(page, "lookup")).to_be_visible()
        for name in operations(server, Authorization=f"Bearer {token}"):
            assert sent_as_filled_in(page, name) == "200", name
        assert watched.elsewhere(server.http) == []
        assert watched.violations() == []
        # It was kept nowhere: the page forgets it when it is loaded again.
        page.reload()
        expect(page.locator(".opblock")).to_have_count(2)


def authorize(page: Page, token: str) -> None:
    page.locator(".btn.authorize").click()
    page.locator(".auth-container input").fill(token)
    page.locator(".modal-btn.auth.authorize").click()
    page.locator(".btn-done").click()


def test_the_root_links_to_the_page(tables: Path, watched: Watched, tmp_path: Path) -> None:
    with RunningServer("--data-dir", tables / "data", log_path=tmp_path / "log") as server:
        page = watched.page
        page.goto(server.http)
        expect(page.locator("h1")).to_have_text("gatherd")
        page.locator("a", has_text="docs").first.click()
        expect(form(page, "lookup")).to_be_visible(timeout=OPENED_SECONDS * 1000)
        page.goto(f"{server.http}/redoc")
        assert page.url == f"{server.http}/docs"
        assert watched.violations() == []
