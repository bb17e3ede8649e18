"""Progress is one line on a terminal that is gone at the end, and nothing anywhere else."""

import io
import os
import pty
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from gatherd_server.cli.progress import Progress
from support.cli import invoke
from support.server import clean_environment, wait_until


class Terminal(io.StringIO):
    """A terminal of one line, as far as progress uses it."""

    def isatty(self) -> bool:
        return True

    def frames(self) -> list[str]:
        """What was on the line, one after the other; the last is what is left."""
        return self.getvalue().split("\r\x1b[K")


def test_a_terminal_sees_what_is_done_and_nothing_at_the_end() -> None:
    terminal = Terminal()
    with Progress("reading", 200e6, "B", stream=terminal, silent_seconds=0) as shown:
        wait_until(lambda: "reading: 0%" in terminal.getvalue(), "the first frame")
        shown.done = 50e6
        wait_until(lambda: "reading: 25% (50.0 M of 200.0 MB)" in terminal.getvalue(), "a quarter")
    *_, last = terminal.frames()
    assert last == ""


def test_an_error_clears_the_line_too() -> None:
    terminal = Terminal()

    def fail() -> None:
        with Progress("reading", unit="B", stream=terminal, silent_seconds=0):
            wait_until(lambda: "reading: 0 s" in terminal.getvalue(), "a frame")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert terminal.frames()[-1] == ""


def test_what_is_quick_shows_nothing() -> None:
    terminal = Terminal()
    with Progress("reading", stream=terminal):
        pass
    assert terminal.getvalue() == ""


def test_a_file_or_pipe_sees_nothing() -> None:
    stream = io.StringIO()
    with Progress("reading", stream=stream, silent_seconds=0):
        time.sleep(0.3)
    assert stream.getvalue() == ""


def test_a_line_is_never_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    with Progress("x" * 100, stream=terminal, silent_seconds=0):
        wait_until(lambda: "xxx" in terminal.getvalue(), "a frame")
    assert {len(frame) for frame in terminal.frames() if frame} == {19}


def test_an_import_on_a_terminal_clears_it_before_its_last_line(tmp_path: Path) -> None:
    """A pipe is the source, so that the import takes longer than a second."""
    source = tmp_path / "words.txt"
    os.mkfifo(source)
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    importing = subprocess.Popen(
        [sys.executable, "-m", "gatherd_server", "import", "words", str(source),
         "--data-dir", str(tmp_path / "data")],
        env={**clean_environment(), "TERM": "xterm"}, stderr=theirs, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    os.close(theirs)
    shown = bytearray()

    def seen() -> bytes:
        with suppress(OSError):  # nothing to read, or the other end is closed
            shown.extend(os.read(ours, 65536))
        return bytes(shown)

    with open(source, "w") as text:
        text.write("king 1 2\n")
        text.flush()
        wait_until(lambda: b"opening" in seen(), "it is shown")
        text.write("queen 3 4\n")
    told, _ = importing.communicate(timeout=60)
    frames = seen().decode().split("\r\x1b[K")
    os.close(ours)
    assert re.fullmatch(r"opening words.txt: \d+ s", frames[1]), frames
    assert frames[-1] == ""
    assert told.startswith("words: 2 rows of 2 float32")


def test_commands_that_go_into_a_pipe_are_quiet(tmp_path: Path) -> None:
    size = ("--rows", "100", "--dim", "8", "--data-dir", tmp_path / "data")
    assert invoke("create", "t", *size).stderr == ""
    assert invoke("verify", "--data-dir", tmp_path / "data").stderr == ""
    out = invoke("export", "t", tmp_path / "t.npy", "--data-dir", tmp_path / "data")
    assert out.stderr == ""
