"""The tutorial, page after page as a reader follows it: each command and each line of Python.

Output is compared as doctest does it: "..." stands for anything.
"""

import contextlib
import doctest
import io
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.cli import invoke
from support.documents import DOCS
from support.server import RunningServer

TUTORIAL = DOCS / "tutorial"
HTTP, GRPC = "127.0.0.1:8000", "127.0.0.1:8001"
FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'text title="(?P<name>[\w.]+)"')


def pages() -> list[Path]:
    """In the order in which the first page lists them."""
    listed = re.findall(
        r"^\d\. \[.*?\]\(([\w-]+\.md)\)", (TUTORIAL / "index.md").read_text(), re.MULTILINE
    )
    return [TUTORIAL / name for name in listed]


@dataclass
class Reader:
    """Does what the pages say, in the current folder."""

    server: RunningServer | None = None
    names: dict[str, Any] = field(default_factory=dict)
    printed: str | None = None
    """What the last block of Python printed, until it was compared."""
    ran: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def follow(self, page: Path) -> None:
        """Each block of the page; AssertionError naming the page and the command."""
        text = page.read_text()
        for block in FENCE.finditer(text):
            where = f"{page.name}:{text.count(chr(10), 0, block.start()) + 1}"
            kind, inside = block["kind"], block["text"]
            if title := TITLE.fullmatch(kind):
                Path(title["name"]).write_text(inside)
            elif kind == "python":
                self.python(inside, where)
            elif kind == "console":
                for entry in inside.split("$ ")[1:]:
                    command, _, shown = entry.partition("\n")
                    self.check(shown, self.command(command), f"{where}: {command}")
            else:
                assert kind == "text", f"{where}: a block of {kind!r} would be run by nobody"
                assert self.printed is not None, f"{where}: output of no Python"
                self.check(inside, self.printed, where)
                self.printed = None
        assert not self.printed, f"{page.name} doesn't show {self.printed!r}"

    def python(self, code: str, where: str) -> None:
        assert not self.printed, f"before {where}: {self.printed!r} isn't shown"
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(self.here(code), where, "exec"), self.names)
        self.printed = output.getvalue()
        self.ran.append(where)

    def command(self, command: str) -> str:
        """What it prints, on standard output and error."""
        program, *arguments = shlex.split(self.here(command))
        self.ran.append(command)
        if program == "gatherd" and arguments[0] == "serve":
            return self.serve(arguments[1:])
        if program == "gatherd":
            address = {} if self.server is None else {"GATHERD_URL": self.server.http}
            done = invoke(*arguments, check=False, environment=address)
            return done.stdout + done.stderr
        assert program in ("mkdir", "curl"), program
        if shutil.which(program) is None:
            self.skipped.append(command)
            return "..."
        told = subprocess.run([program, *arguments], check=True, capture_output=True, text=True)
        return f"{told.stdout}\n" if program == "curl" else told.stdout

    def serve(self, arguments: list[str]) -> str:
        """Stop the server that runs, if one does, and start the next."""
        self.stop()
        self.server = RunningServer(*arguments).__enter__()
        announced = self.server.announced.replace(self.server.http, f"http://{HTTP}")
        return announced.replace(self.server.grpc, f"grpc://{GRPC}")

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()

    def here(self, text: str) -> str:
        """With the server's address instead of the one that the pages have."""
        return text if self.server is None else text.replace(f"http://{HTTP}", self.server.http)

    @staticmethod
    def check(shown: str, got: str, where: str) -> None:
        same = doctest.OutputChecker().check_output(shown, got, doctest.ELLIPSIS)
        assert same, f"{where}\nshown:\n{shown}\nprinted:\n{got}"


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(tmp_path)
    reader = Reader()
    try:
        yield reader
    finally:
        if "client" in reader.names:
            reader.names["client"].close()
        reader.stop()


def test_every_page_is_in_the_list() -> None:
    assert len(pages()) == 4
    assert {*pages(), TUTORIAL / "index.md"} == set(TUTORIAL.glob("*.md"))


def test_a_reader_sees_what_the_tutorial_shows(reader: Reader) -> None:
    for page in pages():
        reader.follow(page)
    assert len(reader.ran) > 25
    if reader.skipped:
        pytest.skip(f"all but what needs a program that isn't here: {reader.skipped}")


def test_a_reader_finds_what_is_not_as_shown(reader: Reader, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:5"):
        reader.follow(page)
