"""Headless Chromium, and pages in it that tell what they load and what their policy forbids."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, sync_playwright

from support.cli import invoke
from support.tables import drawn_table, make_data_dir

ROWS, DIM = 30, 4
WORDS = ("king", "queen")
# What a page's policy forbids, as the page itself sees it.
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


@dataclass
class Watched:
    """A page, with every URL that it asked for."""

    page: Page
    asked: list[str] = field(default_factory=list)

    def note(self, request: Request) -> None:
        self.asked.append(request.url)

    def elsewhere(self, url: str) -> list[str]:
        """What it asked other servers than that of `url` for."""
        here = urlsplit(url).netloc
        return [one for one in self.asked if urlsplit(one).netloc not in (here, "")]

    def violations(self) -> list[str]:
        told: list[str] = self.page.evaluate("window.violations")
        return told


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium; make test-browser installs Debian's")
    with sync_playwright() as playwright:
        # A container's root has no sandbox.
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield browser
        browser.close()


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, color_scheme="light")
    page = context.new_page()
    page.add_init_script(WATCH)
    watched = Watched(page)
    page.on("request", watched.note)
    yield watched
    context.close()


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data dir with a table that takes updates, one that has keys, and one that is open."""
    folder = tmp_path_factory.mktemp("browsed")
    make_data_dir(folder / "data", drawn_table("items", ROWS, DIM, init="uniform"))
    lines = (f"{word} 0.5 1.5\n" for word in WORDS)
    (folder / "words.txt").write_text("".join(lines))
    invoke("import", "words", folder / "words.txt", "--data-dir", folder / "data")
    shape = ("--keys", "string", "--dim", str(DIM), "--rows-max", "1000")
    invoke("create", "seen", *shape, "--data-dir", folder / "data")
    return folder
