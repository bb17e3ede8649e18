"""The commands in docs/versions.md run as they are written, and say what it says they do."""

from pathlib import Path

import pytest

from support.cli import invoke

DOCUMENT = Path(__file__).parents[2] / "docs/versions.md"
WORDS = "king 0.1 0.2 0.3\nqueen 0.4 0.5 0.6\nman 0.7 0.8 0.9\n"
BETTER = "king 1 2 3\nqueen 4 5 6\nman 7 8 9\nwoman 10 11 12\n"


def sessions() -> list[tuple[str, str]]:
    """Each command of the document's console blocks, and what it shows."""
    found = []
    for block in DOCUMENT.read_text().split("```console\n")[1:]:
        for entry in block.partition("```")[0].split("$ gatherd ")[1:]:
            command, _, shown = entry.partition("\n")
            found.append((command, shown))
    return found


def test_every_command_says_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text(WORDS)
    Path("better.txt").write_text(BETTER)
    commands = sessions()
    assert len(commands) > 15
    for command, shown in commands:
        assert invoke(*command.split()).stdout == shown, command
