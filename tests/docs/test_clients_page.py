"""docs/clients.md shows the programs that `make test-clients` runs, word for word.

`python -m docs.test_clients_page` in tests/ writes them into the page anew.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/clients.md"
FOLDER = ROOT / "tests/clients"
LANGUAGES = {
    ".cc": "cpp",
    ".go": "go",
    ".java": "java",
    ".mjs": "js",
    ".sh": "sh",
    ".yaml": "yaml",
}
# A mark, and behind it the program as it was shown last.
SHOWN = re.compile(r"<!-- (tests/clients/\S+) -->\n(?:\n```\w+\n.*?\n```\n)?", re.DOTALL)


def shown(path: str) -> str:
    source = ROOT / path
    return f"<!-- {path} -->\n\n```{LANGUAGES[source.suffix]}\n{source.read_text()}```\n"


def written() -> str:
    return SHOWN.sub(lambda found: shown(found[1]), PAGE.read_text())


def test_the_page_shows_the_programs_as_they_are() -> None:
    assert PAGE.read_text() == written()


def test_the_page_shows_every_program() -> None:
    languages = ("cpp", "curl", "go", "java", "node")
    programs = {
        str(path.relative_to(ROOT))
        for language in languages
        for path in (FOLDER / language).iterdir()
        if path.suffix in LANGUAGES
    }
    assert set(re.findall(r"<!-- (\S+) -->", PAGE.read_text())) == programs


if __name__ == "__main__":
    PAGE.write_text(written())
