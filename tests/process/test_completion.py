"""Shell completion knows commands, options, tables and files."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.shell_completion import ShellComplete

from gatherd_server.cli.main import cli
from support.cli import invoke
from support.server import RunningServer, clean_environment


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    np.save(folder / "rows.npy", np.ones((3, 2), np.float32))
    (folder / "rows").mkdir()
    for name in ("words", "wolves", "items"):
        invoke("import", name, folder / "rows.npy", "--data-dir", folder / "data")
    return folder / "data"


def completed(*typed: str | Path) -> list[tuple[str, str]]:
    """The kinds and values that are proposed for the last word."""
    *before, last = map(str, typed)
    shell = ShellComplete(cli, {}, "gatherd", "_GATHERD_COMPLETE")
    return [(one.type, one.value) for one in shell.get_completions(before, last)]


def test_commands_and_options_are_known() -> None:
    assert ("plain", "set-optimizer") in completed("set")
    assert ("plain", "--data-dir") in completed("tables", "--da")
    assert completed("serve", "--log-format", "j") == [("plain", "json")]


@pytest.mark.parametrize("verb", ["lookup", "versions", "delete", "publish", "verify", "export"])
def test_tables_of_a_data_dir_are_known(verb: str, data: Path) -> None:
    tables = [("plain", "wolves"), ("plain", "words")]
    assert completed(verb, "--data-dir", data, "wo") == tables


def test_tables_of_the_environment_and_of_a_server_are_known(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATHERD_DATA_DIR", str(data))
    assert completed("bench", "--table", "i") == [("plain", "items")]
    with RunningServer("--data-dir", data) as server:
        assert completed("lookup", "--url", server.http, "i") == [("plain", "items")]


def test_a_server_that_is_not_there_completes_nothing() -> None:
    assert completed("lookup", "--url", "http://127.0.0.1:1", "w") == []
    assert completed("lookup", "--url", "nonsense", "w") == []


def test_files_are_known(data: Path) -> None:
    assert completed("import", "words", "ro") == [("file", "ro")]
    assert completed("export", "words", "o") == [("file", "o")]
    assert completed("tables", "--data-dir", "d") == [("dir", "d")]
    start = data.parent / "ro"
    assert completed("serve", f"w={start}") == [
        ("plain", f"w={start}ws/"),
        ("plain", f"w={start}ws.npy"),
    ]


def test_bash_completes_a_table(data: Path, tmp_path: Path) -> None:
    gatherd = tmp_path / "gatherd"
    gatherd.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gatherd_server "$@"\n')
    gatherd.chmod(0o755)
    script = """
        eval "$(gatherd completion bash)"
        COMP_WORDS=(gatherd lookup wor) COMP_CWORD=2
        _gatherd_completion gatherd wor lookup
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    environment = {
        **clean_environment(),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "GATHERD_DATA_DIR": str(data),
    }
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=120
    )
    assert (done.stdout, done.returncode) == ("words\n", 0), done.stderr
