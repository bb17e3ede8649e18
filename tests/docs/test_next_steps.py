"""Errors name the next step: the command line's propose a command, which can be typed as it is."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.cli import invoke
from support.next_steps import messages
from support.server import RunningServer

# Raise it when more messages do; `python tests/support/next_steps.py` lists those that don't.
WITH_NEXT_STEP_MIN = 0.42

_PROPOSED = re.compile(r"(?:: |`)(gatherd [^`]+?)(?:`|$)", re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("next")
    np.save(made / "rows.npy", np.arange(12, dtype=np.float32).reshape(4, 3))
    np.save(made / "turned.npy", np.asfortranarray(np.ones((4, 3), np.float32)))
    (made / "words.txt").write_text("king 1 2\nqueen 3 4\n")
    data = ("--data-dir", made / "data")
    invoke("import", "ids", made / "rows.npy", *data)
    invoke("import", "words", made / "words.txt", *data)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with RunningServer("--data-dir", folder / "data") as running:
        yield running


# What was typed, and what its error proposes; {data} and {folder} are the test's.
CASES = {
    "lookup words king": "gatherd lookup words king --data-dir {data} --by-key",
    """lookup words '["king", "queen"]'""": (
        "gatherd lookup words king queen --data-dir {data} --by-key"
    ),
    "lookup ids '[1, 2]'": "gatherd lookup ids 1 2 --data-dir {data}",
    "lookup ids king": "gatherd lookup ids 0 --data-dir {data}",
    "lookup ids king --by-key": "gatherd lookup ids 0 --data-dir {data}",
    "lookup ids 1 2 --by-key --json": "gatherd lookup ids 1 2 --json --data-dir {data}",
    "lookup words kong --by-key": (
        "gatherd lookup words kong --by-key --data-dir {data} --missing zero"
    ),
    "lookup words 0 --version 7": "gatherd versions words --data-dir {data}",
    "lookup nothing 0": "gatherd tables --data-dir {data}",
    "versions nothing": "gatherd tables --data-dir {data}",
    "rollback words --to 7": "gatherd versions words --data-dir {data}",
    "import words {folder}/words.txt --optimizer sgd": (
        "gatherd publish words {folder}/words.txt --data-dir {data}"
    ),
    "create ids --rows 1 --dim 1": "gatherd delete ids --data-dir {data}",
    "serve {folder}/words.txt": "gatherd import words {folder}/words.txt --data-dir ./data",
    "serve {folder}/rows.npy": "gatherd serve rows={folder}/rows.npy",
    "serve w={folder}/words.txt": "gatherd import w {folder}/words.txt --data-dir ./data",
    "serve w={folder}/turned.npy": "gatherd import w {folder}/turned.npy --data-dir ./data",
}


@pytest.mark.parametrize("typed", CASES)
def test_an_error_proposes_a_command(typed: str, folder: Path) -> None:
    names = {"folder": folder, "data": folder / "data"}
    words = shlex.split(typed.replace("{folder}", str(folder)))
    place = () if words[0] == "serve" else ("--data-dir", folder / "data")
    done = invoke(*words, *place, check=False)
    assert done.returncode > 1
    proposed = _PROPOSED.findall(done.stderr)
    expected = CASES[typed]
    assert expected.format(**names) in proposed[0]


@pytest.mark.parametrize(
    "typed", [one for one in CASES if one.startswith(("lookup", "versions", "rollback", "import"))]
)
def test_what_is_proposed_can_be_typed(typed: str, folder: Path) -> None:
    words = shlex.split(typed.replace("{folder}", str(folder)))
    done = invoke(*words, "--data-dir", folder / "data", check=False)
    _, *proposed = shlex.split(_PROPOSED.findall(done.stderr)[0])
    assert invoke(*proposed).returncode == 0


@pytest.mark.parametrize("typed", [("serve", "w="), ("import", "w", "")])
def test_a_misspelled_file_is_answered_with_the_nearest(
    typed: tuple[str, ...], folder: Path
) -> None:
    *words, before = typed
    done = invoke(
        *words, f"{before}{folder}/turnde.npy", "--data-dir", folder / "data", check=False
    )
    assert f"did you mean '{folder}/turned.npy'?" in done.stderr


def test_a_token_file_that_is_not_there_is_made_by_what_is_proposed(folder: Path) -> None:
    tokens = folder / "tokens"
    serve = ("serve", "--data-dir", folder / "data", "--check")
    done = invoke(*serve, "--tokens", tokens, check=False)
    assert done.returncode == 2
    assert f"`gatherd token NAME --tokens {tokens}` makes it" in done.stderr
    make = ("token", "me", "--tokens", tokens)
    assert "give --table PATTERN" in invoke(*make, "--scope", "read", check=False).stderr
    invoke(*make, "--scope", "read", "--table", "*")
    invoke(*serve, "--tokens", tokens)


def test_a_server_that_is_asked_keeps_its_url_in_what_is_proposed(server: RunningServer) -> None:
    done = invoke("lookup", "words", "king", "--url", server.http, check=False)
    _, *proposed = shlex.split(_PROPOSED.findall(done.stderr)[0])
    assert invoke(*proposed).stdout == "king: 1 2\n"


def test_a_misspelled_option_among_ids_is_no_id(folder: Path) -> None:
    typed = ("lookup", "words", "king", "--by_key", "--data-dir", folder / "data")
    assert "Did you mean one of: '--by-key'" in invoke(*typed, check=False).stderr
    done = invoke("lokup", "words", check=False)
    assert "Did you mean 'lookup'?" in done.stderr
    # Behind -- it is a key.
    done = invoke(
        "lookup", "words", "--by-key", "--data-dir", folder / "data", "--", "--x", check=False
    )
    assert "no key keys[0]='--x'" in done.stderr


def test_no_fewer_messages_than_before_name_the_next_step() -> None:
    found = list(messages())
    with_step = [one for one in found if one.has_next_step]
    print(f"{len(with_step)} of {len(found)} error messages name the next step")
    assert len(with_step) / len(found) >= WITH_NEXT_STEP_MIN
