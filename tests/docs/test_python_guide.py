"""The examples of docs/python.md run as they are written, and print what they say they do."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.documents import DOCS, python_blocks
from support.server import RunningServer, run_cli

WORDS = "the 1 0 0\nking 0.9 0.1 0.4\nqueen 0.8 0.2 0.5\na 0 1 0\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder: Path = tmp_path_factory.mktemp("guide")
    (folder / "words.txt").write_text(WORDS)
    run_cli("import", "words", folder / "words.txt", "--data-dir", folder / "data")
    with RunningServer("--data-dir", folder / "data") as server:
        yield server


def test_the_guides_examples_run(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = python_blocks("python.md")
    assert len(blocks) > 4
    names: dict[str, object] = {}
    for block in blocks:
        code = compile(block.replace("http://127.0.0.1:8000", server.http), "python.md", "exec")
        exec(code, names)
    printed = capsys.readouterr().out
    said = re.findall(r"print\(error\) +# (.*)$", (DOCS / "python.md").read_text(), re.MULTILINE)
    assert len(said) == 2
    for line in said:
        assert f"{line}\n" in printed
    assert re.search(r"^lookup \('words',\) OK [\d.]+ ms \d+ \d+ 1 0$", printed, re.MULTILINE)
    client = names["client"]
    client.close()  # type: ignore[attr-defined]  # a Client
