"""The command line tells what it has, and tells errors in a line."""

import json
from pathlib import Path

import numpy as np
import pytest

from gatherd_server.cli.main import cli
from gatherd_server.settings import ServeSettings
from support.cli import invoke
from support.server import run_cli

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    rows = np.arange(20, dtype=np.float32).reshape(2, 10)
    np.save(tmp_path / "a.npy", rows)
    invoke("import", "words", tmp_path / "a.npy", "--data-dir", tmp_path / "data")
    invoke("create", "items", "--rows", "5", "--dim", "3", "--data-dir", tmp_path / "data")
    return tmp_path / "data"


def test_tables_lists_what_a_data_dir_has(data_dir: Path) -> None:
    listed = run_cli("tables", "--url", f"local:{data_dir}").stdout
    assert listed.splitlines()[0].split() == [
        "NAME",
        "ROWS",
        "DIM",
        "DTYPE",
        "KEYS",
        "ROWS",
        "MB",
        "KEYS",
        "MB",
        "RESIDENT",
        "VERSION",
        "OPTIMIZER",
        "LSN",
    ]
    assert ["words", "2", "10", "float32", "-", "0.0", "0.0", "100%", "1", "none", "2"] in [
        line.split() for line in listed.splitlines()
    ]
    documents = json.loads(run_cli("tables", "--url", f"local:{data_dir}", "--json").stdout)
    assert [(one["name"], one["rows"], one["dim"]) for one in documents] == [
        ("items", 5, 3),
        ("words", 2, 10),
    ]


def test_lookup_prints_vectors(data_dir: Path) -> None:
    url = f"local:{data_dir}"
    shown = run_cli("lookup", "words", "1", "0", "--url", url).stdout.splitlines()
    assert shown[0] == "1: 10 11 12 13 14 15 16 17 … (10 elements)"
    document = json.loads(run_cli("lookup", "words", "1", "--url", url, "--json").stdout)
    assert document["vectors"] == [list(range(10, 20))]


def test_lookup_of_a_bad_id_names_it_and_fails(data_dir: Path) -> None:
    done = run_cli("lookup", "words", "-1", "--url", f"local:{data_dir}", check=False)
    assert done.returncode > 1
    assert done.stderr.startswith("Error: table 'words' has 2 rows; ids[0]=-1 is out of range")
    shown = run_cli(
        "lookup", "words", "2", "--missing", "zero", "--url", f"local:{data_dir}"
    ).stdout
    assert shown.rstrip().endswith("(missing)")


def test_a_server_that_is_not_there_is_an_error_in_a_line() -> None:
    done = run_cli("tables", "--url", "http://127.0.0.1:1", check=False)
    assert done.returncode > 1
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str) -> None:
    assert "_GATHERD_COMPLETE" in run_cli("completion", shell).stdout


def test_every_command_has_help_with_an_example_or_its_meaning() -> None:
    for name, command in cli.commands.items():
        shown = invoke(name, "--help").stdout
        assert f"Usage: cli {name}" in shown
        assert command.help
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert getattr(parameter, "help", None), f"{name} {parameter.name} has no help"


def test_help_cuts_nothing_off() -> None:
    shown = invoke("--help").stdout
    listed = " ".join(shown.partition("Commands:")[2].split())
    assert "..." not in listed
    for command in cli.commands.values():
        paragraph = " ".join((command.help or "").partition("\n\n")[0].split())
        assert paragraph.partition(". ")[0].rstrip(".") in listed


def test_the_options_of_serve_are_the_settings() -> None:
    options = {parameter.name for parameter in cli.commands["serve"].params}
    assert options - {"config", "check"} == set(ServeSettings.model_fields)


def test_every_setting_and_command_is_documented() -> None:
    document = (ROOT / "docs/configuration.md").read_text()
    documented = {
        line.split("|")[1].strip().strip("`")
        for line in document.splitlines()
        if line.startswith("| `")
    }
    assert documented == set(ServeSettings.model_fields)
    for name, field in ServeSettings.model_fields.items():
        (row,) = [line for line in document.splitlines() if line.startswith(f"| `{name}` |")]
        default = field.default.value if hasattr(field.default, "value") else field.default
        assert f"| `{json.dumps(default) if default != () else '[]'}` |" in row, name
        assert field.description
        assert field.description in row, name
    commands = (ROOT / "docs/cli.md").read_text()
    for name in cli.commands:
        assert f"`gatherd {name}" in commands, name
