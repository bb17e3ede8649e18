"""How the repository's documents and docstrings become pages of the site."""

import re

import pytest

from gatherd_server.cli.main import cli
from site_commands import commands_page
from site_text import drawn, linked, listed, loaded


def known(path: str) -> bool:
    return path == "deploy/a.py"


@pytest.mark.parametrize(
    ("uri", "written", "shown"),
    [
        ("cli.md", "[a](formats.md#b)", "[a](formats.md#b)"),
        ("cli.md", "[a](../README.md)", "[a](project/overview.md)"),
        ("how-to/x.md", "[a](../../LICENSE)", "[a](../project/license.md)"),
        ("how-to/x.md", "[a](../cli.md)", "[a](../cli.md)"),
        (
            "project/overview.md",
            "[a](docs/cli.md) ![p](docs/p.png)",
            "[a](../cli.md) ![p](../p.png)",
        ),
        ("project/overview.md", "[a](CHANGELOG.md)", "[a](changelog.md)"),
        ("cli.md", "[the code](../deploy/a.py)", "the code (`deploy/a.py`)"),
        ("cli.md", "[deploy/a.py](../deploy/a.py)", "deploy/a.py"),
        ("cli.md", "[a](#b) [c](https://example.org/d)", "[a](#b) [c](https://example.org/d)"),
        ("cli.md", "```\n[a](../README.md)\n```\n", "```\n[a](../README.md)\n```\n"),
    ],
)
def test_a_link_of_the_repository_leads_to_the_same_on_the_site(
    uri: str, written: str, shown: str
) -> None:
    assert linked(written, uri, known) == shown


def test_a_link_to_nothing_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"docs/cli\.md links to \.\./deploy/gone\.py"):
        linked("[a](../deploy/gone.py)", "cli.md", known)


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example/a.js"></script>',
        "<script defer src=//cdn.example/a.js></script>",
        '<img alt="" src="http://cdn.example/a.png">',
        '<link rel="stylesheet" href="https://cdn.example/a.css">',
        '<link href="https://cdn.example" rel=preconnect crossorigin>',
        "@font-face { src: url('https://cdn.example/a.woff2') }",
        "@import url(//cdn.example/a.css);",
    ],
)
def test_what_is_loaded_from_another_host_is_found(text: str) -> None:
    assert len(loaded(f"<p>{text}")) == 1


def test_links_and_own_files_are_not_taken_for_loads() -> None:
    own = '<script src="../assets/a.js"></script><link rel="canonical" href="https://a.example/">'
    assert loaded(f'{own}<a href="https://a.example/">src="x"</a> url(data:image/png)') == []


def test_arguments_become_a_list_and_other_colons_do_not() -> None:
    docstring = (
        "What it does.\n\nids: of any shape,\ndone: twice.\nmode, out: either\n  a  x\n\nEnd."
    )
    assert listed(docstring, {"ids", "mode", "out"}) == (
        "What it does.\n\n\n- `ids`: of any shape,\n    done: twice.\n- `mode`, `out`: either\n"
        "    - a  x\n\nEnd."
    )


def test_a_tree_keeps_its_lines() -> None:
    assert drawn("All.\n\nA\n├── B\n└── C\n\nEnd.") == (
        "All.\n\n```text\nA\n├── B\n└── C\n```\n\nEnd."
    )


def test_every_command_is_on_its_page_with_its_options() -> None:
    page = commands_page(cli)
    assert re.findall(r"^### gatherd (\S+)$", page, re.MULTILINE) == list(cli.commands)
    assert "| `--by-key` |" in page
    assert "```text\ngatherd serve words=vectors.npy\ngatherd lookup words 4 20\n```" in page
    assert "\b" not in page
