"""Links between documents lead somewhere, and what they name of the code is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS = [*TOP, *sorted(DOCS.rglob("*.md"))]


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


# What is below one of these is named as seen from it.
ROOMS = [ROOT, ROOT / "service/gatherd_server", ROOT / "client/gatherd", ROOT / "deploy"]

PACKAGES = [ROOT / "service/gatherd_server", ROOT / "client/gatherd", ROOT / "proto/gatherd_proto"]
GUIDES = [
    *(DOCS / f"{name}.md" for name in ("architecture", "tour", "glossary", "README")),
    ROOT / "CONTRIBUTING.md",
]
# Of a data dir, and of a URL.
NO_CODE = {"staging/", "tables/", "wal/", "http://"}


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), target
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_path_of_the_code_is_there(document: Path) -> None:
    for path in re.findall(r"`((?:\w+/)+\w+\.(?:py|proto|yaml|yml|lua))`", document.read_text()):
        assert any((room / path).exists() for room in ROOMS), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_target_of_make_is_there(document: Path) -> None:
    targets = set(re.findall(r"^([\w./$()-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for named in re.findall(r"`(?:[A-Z_]+=\S+ )*make ([\w-]+)`", document.read_text()):
        assert named in targets, named


def named_paths(document: Path) -> list[str]:
    """Files, folders, patterns and modules that a document has in backticks."""
    spans = re.findall(r"`([^`\s]+)`", document.read_text())
    is_path = re.compile(r"[\w*]+\.py|(?:[\w*]+/)+(?:[\w*]+(?:\.py)?)?")
    is_module = re.compile(r"gatherd(?:_server|_proto)?(?:\.[a-z_]\w*)+")
    return [
        span if is_path.fullmatch(span) else span.replace(".", "/")
        for span in spans
        if span not in NO_CODE and (is_path.fullmatch(span) or is_module.fullmatch(span))
    ]


def is_there(path: str) -> bool:
    """Whether `path` is below a room or, of a bare file name, anywhere in a package."""
    if "/" not in path:
        return any(any(package.rglob(path)) for package in PACKAGES)
    parents = [*ROOMS, *(package.parent for package in PACKAGES), *PACKAGES]
    found = path.rstrip("/")
    return any(any(parent.glob(found)) or any(parent.glob(f"{found}.py")) for parent in parents)


@pytest.mark.parametrize("document", GUIDES, ids=lambda path: path.name)
def test_every_module_and_folder_that_a_guide_names_is_there(document: Path) -> None:
    missing = [path for path in named_paths(document) if not is_there(path)]
    assert not missing


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("http/fast/connection.py", True),
        ("http/fast/gone.py", False),
        ("connection_gone.py", False),
        ("aio.py", True),
        ("_calls/*_aio.py", True),
        ("_calls/*_gone.py", False),
        ("store/kernels", True),
        ("store/gone/", False),
        ("gatherd/store", True),
        ("gatherd_proto/framing", True),
        ("gatherd_server/gone", False),
    ],
)
def test_a_path_that_is_gone_is_found_out(path: str, there: bool) -> None:
    assert is_there(path) is there


def test_every_document_is_in_the_order_of_reading() -> None:
    listed = (DOCS / "README.md").read_text()
    for document in DOCUMENTS[len(TOP) :]:
        if document.name != "README.md":
            assert f"]({document.relative_to(DOCS)})" in listed, document.name


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
