"""Links between documents lead somewhere, and what they name of the code is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What is below one of these is named as seen from it.
ROOMS = [ROOT, ROOT / "service/gatherd_server", ROOT / "client/gatherd", ROOT / "deploy"]


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), target
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_of_the_code_is_there(document: Path) -> None:
    for path in re.findall(r"`((?:\w+/)+\w+\.(?:py|proto|yaml|yml|lua))`", document.read_text()):
        assert any((room / path).exists() for room in ROOMS), path


def test_every_document_is_in_the_order_of_reading() -> None:
    listed = (ROOT / "docs/README.md").read_text()
    for document in DOCUMENTS[1:]:
        if document.name != "README.md":
            assert f"]({document.name})" in listed, document.name


def named(document: Path) -> list[tuple[str, str]]:
    """The classes and functions that a document names behind a file: "`a/b.py`, `Class.method`"."""
    text = re.sub(r"\s+", " ", document.read_text())
    return re.findall(r"`((?:\w+/)*\w+\.py)`, `([\w.]+)`", text)


def test_the_tour_names_what_is_there() -> None:
    steps = named(ROOT / "docs/tour.md")
    assert len(steps) > 40
    for path, name in steps:
        (source, *_) = [room / path for room in ROOMS if (room / path).exists()]
        for part in name.split("."):
            assert re.search(
                rf"^\s*(?:async )?(?:def|class) {part}\b", source.read_text(), re.MULTILINE
            ), (
                path,
                name,
            )
