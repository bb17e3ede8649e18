"""The exit status tells a script why a command failed."""

from pathlib import Path

import numpy as np
import pytest

from gatherd.errors import (
    ClientClosed,
    ClientError,
    ForkedClient,
    GatherdError,
    InternalError,
)
from gatherd_server.cli.exit_codes import MEANINGS, ExitCode, exit_code
from support.cli import invoke
from support.error_classes import ERROR_CLASSES

ROOT = Path(__file__).parent.parent.parent


def test_the_documented_table_is_the_one_in_code() -> None:
    document = (ROOT / "docs/cli.md").read_text()
    section = document.partition("## Exit status")[2].partition("## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if "| " in line]
    listed = {row[0]: row[1] for row in rows if row[0].isdigit()}
    assert listed == {str(int(code)): meaning for code, meaning in MEANINGS.items()}


def test_every_error_class_has_a_status_that_says_it_failed() -> None:
    for cls in ERROR_CLASSES:
        assert exit_code(cls) is not ExitCode.DONE, cls
    faults = {cls for cls in ERROR_CLASSES if exit_code(cls) is ExitCode.FAILED}
    own = (GatherdError, InternalError, ClientError, ClientClosed, ForkedClient)
    assert faults == set(own)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    np.save(folder / "rows.npy", np.arange(12, dtype=np.float32).reshape(4, 3))
    (folder / "words.txt").write_text("king 1 2\nqueen 3 4\n")
    invoke("import", "ids", folder / "rows.npy", "--data-dir", folder / "data")
    invoke("import", "words", folder / "words.txt", "--data-dir", folder / "data")
    return folder / "data"


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        (("lookup", "words"), ExitCode.USAGE),
        (("lookup", "words", "king"), ExitCode.USAGE),
        (("lokup", "words"), ExitCode.USAGE),
        (("lookup", "words", "0", "--url", "http://127.0.0.1:1"), ExitCode.UNAVAILABLE),
        (("lookup", "word", "0"), ExitCode.NOT_FOUND),
        (("lookup", "words", "2"), ExitCode.NOT_FOUND),
        (("lookup", "words", "kong", "--by-key"), ExitCode.NOT_FOUND),
        (("lookup", "words", "0", "--version", "9"), ExitCode.NOT_FOUND),
        (("create", "words", "--rows", "1", "--dim", "1"), ExitCode.REFUSED),
        (("publish", "words", "--if-version", "9"), ExitCode.REFUSED),
        (("import", "new", "/nowhere.npy"), ExitCode.STORAGE),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value.name,
)
def test_a_command_ends_with_the_status_of_its_error(
    typed: tuple[str, ...], code: ExitCode, data: Path
) -> None:
    target = () if "--url" in typed or typed[0] == "lokup" else ("--data-dir", data)
    assert invoke(*typed, *target, check=False).returncode == code
