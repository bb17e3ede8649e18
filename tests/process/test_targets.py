"""Every verb is addressed in one way: --url or --data-dir, by options or by the environment."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from gatherd_server.cli.main import cli
from support.cli import invoke

# Verbs that have a target of another kind, or none.
ELSEWHERE = {"backup", "backups", "completion", "kernels", "plan", "serve", "token", "config"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("targets")
    np.save(folder / "rows.npy", np.arange(12, dtype=np.float32).reshape(4, 3))
    invoke("import", "words", folder / "rows.npy", "--data-dir", folder / "data")
    return folder / "data"


def in_environment(*arguments: str, **environment: str | Path) -> str:
    shown = {name: str(value) for name, value in environment.items()}
    result = CliRunner().invoke(cli, list(arguments), env=shown)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def verbs(group: click.Group, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command, also those of groups."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from verbs(command, *names, name)
        elif name not in ELSEWHERE:
            yield (*names, name), command


def test_every_verb_has_both_options_and_shows_their_variables() -> None:
    for names, command in verbs(cli):
        options = {one.name: one for one in command.params if isinstance(one, click.Option)}
        assert {"url", "data_dir"} <= set(options), names
        shown = invoke(*names, "--help").stdout
        assert "GATHERD_DATA_DIR" in shown, names
        assert options["url"].envvar == "GATHERD_URL", names


@pytest.mark.parametrize(
    "verb",
    [
        ("tables",),
        ("lookup", "words", "1"),
        ("versions", "words"),
        ("verify",),
        ("publish", "words"),
        ("bench", "--seconds", "0.01", "--count", "1", "--json"),
    ],
    ids=lambda verb: verb[0],
)
def test_a_data_dir_is_given_in_four_ways(verb: tuple[str, ...], data: Path) -> None:
    invoke(*verb, "--data-dir", data)
    invoke(*verb, "--url", f"local:{data}")
    in_environment(*verb, GATHERD_DATA_DIR=data)
    in_environment(*verb, GATHERD_URL=f"local:{data}")


def test_the_command_line_wins_and_then_the_url(data: Path) -> None:
    nowhere = "http://127.0.0.1:1"
    in_environment("tables", "--data-dir", str(data), GATHERD_URL=nowhere)
    in_environment("tables", GATHERD_URL=f"local:{data}", GATHERD_DATA_DIR="/nowhere")
    in_environment("tables", "--url", f"local:{data}", GATHERD_DATA_DIR="/nowhere")
    in_environment("verify", GATHERD_URL=nowhere, GATHERD_DATA_DIR=data)
    both = invoke("tables", "--data-dir", data, "--url", nowhere, check=False)
    assert both.returncode == 2
    assert "give one of them" in both.stderr


def test_a_verb_that_needs_files_says_so_of_a_server() -> None:
    for target in ((), ("--url", "http://127.0.0.1:1")):
        done = invoke("create", "t", "--rows", "1", "--dim", "1", *target, check=False)
        assert done.returncode == 2
        assert "give --data-dir DIR" in done.stderr


@pytest.mark.parametrize(
    "typed",
    [
        ("tables", "URL"),
        ("lookup", "URL", "words", "1"),
        ("assign", "URL", "words", "1", "--values", "[1, 2, 3]"),
        ("versions", "URL"),
        ("export", "URL", "words", "w.npy"),
    ],
    ids=lambda typed: typed[0],
)
def test_a_url_instead_of_a_table_is_recognized(typed: tuple[str, ...], data: Path) -> None:
    url = f"local:{data}"
    given = [url if word == "URL" else word for word in typed]
    done = invoke(*given, check=False)
    assert done.returncode == 2
    *_, proposed = done.stderr.strip().partition("; type: ")
    assert f"'{url}' is a URL" in done.stderr
    assert shlex.split(proposed)[-2:] == ["--url", url]
    assert url not in shlex.split(proposed)[:-1]


def test_what_is_proposed_for_a_url_can_be_typed(data: Path) -> None:
    done = invoke("lookup", f"local:{data}", "words", "1", check=False)
    _, *proposed = shlex.split(done.stderr.partition("; type: ")[2])
    assert invoke(*proposed).stdout == "1: 3 4 5\n"


def test_bench_and_top_still_take_a_url_alone(data: Path) -> None:
    short = ("--seconds", "0.01", "--count", "1", "--json")
    assert "words" in invoke("bench", f"local:{data}", *short).stdout
    both = invoke("bench", f"local:{data}", "--data-dir", data, *short, check=False)
    assert both.returncode == 2
    done = invoke("top", "grpc://127.0.0.1:1", "--once", check=False)
    assert "give --url http://" in done.stderr
