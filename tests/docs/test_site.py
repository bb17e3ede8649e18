"""What can be said of the site without building it: `make docs` does the rest, strictly."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import gatherd
from site_text import other_names_page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


class Tagless(yaml.SafeLoader):
    """Reads MkDocs' configuration without making the objects that its tags name."""


Tagless.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
CONFIG: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(), Tagless)


def pages_of(nav: Any) -> Iterator[str]:
    """The files in a navigation, however deep."""
    if isinstance(nav, str):
        yield nav
    else:
        for inner in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_of(inner)


def test_every_document_is_in_the_navigation_once() -> None:
    listed = sorted(pages_of(CONFIG["nav"]))
    # Made by docs/site_hooks.py.
    made = [f"project/{name}.md" for name in ("changelog", "contributing", "license", "overview")]
    made += ["reference/commands.md", "reference/values.md"]
    written = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")]
    assert listed == sorted([*written, *made])


def test_every_public_name_is_in_the_reference_once() -> None:
    written = "".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    pages = written + other_names_page(gatherd, written)
    documented = re.findall(r"^::: gatherd\.(\w+)$", pages, re.MULTILINE)
    names = {
        name
        for name in gatherd.__all__
        if getattr(getattr(gatherd, name), "__module__", "") != "gatherd.errors"
    }
    assert sorted(documented) == sorted({*names, "errors"} - {"__version__"})


def test_a_page_that_is_nowhere_in_the_navigation_fails_the_build() -> None:
    assert set(CONFIG["validation"]["nav"].values()) == {"warn"}
    assert set(CONFIG["validation"]["links"].values()) == {"warn"}
    docs = re.search(r"^docs:.*\n\t(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert docs is not None
    assert docs[1].endswith("mkdocs build --strict")
