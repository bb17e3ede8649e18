"""What a notebook shows, as IPython renders it."""

from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from client.clients import WORDS
from client.fakes import FakeService, connect_server
from gatherd import Client


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    keys: dict[str, list[Any]] = {"words": [b"word%d" % row for row in range(len(WORDS))]}
    with connect_server(FakeService({"words": WORDS}, keys)) as url, Client(url) as client:
        yield client


@pytest.fixture
def shell(client: Client) -> Iterator[InteractiveShell]:
    shell = InteractiveShell.instance()
    shell.user_ns["client"] = client
    yield shell
    InteractiveShell.clear_instance()


def shown(shell: InteractiveShell, cell: str) -> list[str]:
    with capture_output() as captured:
        shell.run_cell(cell)
    return list(filter(None, captured.stdout.splitlines()))


def test_a_wrong_key_shows_two_lines(shell: InteractiveShell) -> None:
    cell = "x = 1\nclient.lookup('words', keys=['wrod7'])"
    assert shown(shell, cell) == [
        "Cell In[1], line 2: client.lookup('words', keys=['wrod7'])",
        "KeyNotFound: table 'words' has no key keys[0]='wrod7'",
    ]


def test_each_function_of_the_callers_adds_one(shell: InteractiveShell) -> None:
    shown(shell, "def load(ids):\n    return client.lookup('words', ids)")
    assert shown(shell, "load([1, 9999])")[:2] == [
        "Cell In[1], line 1: load([1, 9999])",
        "Cell In[1], line 2, in load: return client.lookup('words', ids)",
    ]


def test_deep_recursion_is_cut(shell: InteractiveShell) -> None:
    shown(shell, "def deep(n):\n    return deep(n - 1) if n else client.lookup('words', [9999])")
    lines = shown(shell, "deep(300)")
    assert len(lines) < 15
    assert "more" in lines[1]


def test_everything_is_shown_when_it_is_asked_for(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATHERD_FULL_TRACEBACKS", "1")
    lines = shown(shell, "client.lookup('words', keys=['wrod7'])")
    assert len(lines) > 20
    assert lines[0].startswith("Traceback")


def test_an_error_of_the_callers_that_was_being_handled_is_shown_too(
    shell: InteractiveShell,
) -> None:
    cell = "try:\n    {}['mine']\nexcept KeyError:\n    client.lookup('words', [9999])"
    lines = "\n".join(shown(shell, cell))
    assert "KeyError: 'mine'" in lines
    assert "IdOutOfRange" in lines
