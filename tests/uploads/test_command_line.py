"""`gatherd import` and `publish` with --url: the file is read here, its rows are uploaded."""

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from gatherd import Client
from support.cli import invoke
from uploads.conftest import Uploading

VECTORS = np.random.default_rng(3).normal(size=(900, 6)).astype(np.float32)
WORDS = [f"word{i}é" for i in range(len(VECTORS))]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A GloVe text whose numbers are VECTORS exactly."""
    path = tmp_path / "words.txt"
    lines = (
        f"{word} {' '.join(map(repr, map(float, row)))}\n"
        for word, row in zip(WORDS, VECTORS, strict=True)
    )
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_a_text_is_imported_into_a_server(
    text: Path, uploading: Uploading, names: Iterator[str], wire: str
) -> None:
    name, url = next(names), getattr(uploading.server, wire)
    told = invoke("import", name, text, "--url", url, "--optimizer", "adagrad").stdout
    assert told.startswith(f"{name}: 900 rows of 6 float32")
    assert url in told
    with Client(url) as client:
        np.testing.assert_array_equal(client.lookup(name, keys=WORDS), VECTORS)
        assert client.table(name).optimizer is not None
        invoke("publish", name, text, "--url", url, "--dtype", "float16")
        info = client.table(name)
        assert (info.version, info.dtype) == (2, "float16")
        half = VECTORS.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(client.lookup(name, keys=WORDS), half)
    again = invoke("import", name, text, "--url", url, check=False)
    assert again.returncode != 0
    assert "already" in again.stderr


def test_what_the_import_leaves_out_is_told(
    text: Path, uploading: Uploading, names: Iterator[str]
) -> None:
    name, url = next(names), uploading.server.http
    with text.open("a") as file:
        file.write(f"{WORDS[5]} 1 2 3 4 5 6\nno numbers\nnan 1 2 3 nan 5 6\n")
    refused = invoke("import", name, text, "--url", url, check=False)
    assert refused.returncode != 0
    assert uploading.left() == []
    told = invoke(
        *("import", name, text, "--url", url, "--dtype", "bfloat16"),
        *("--on-duplicate", "last", "--on-bad-row", "skip", "--on-nonfinite", "skip"),
    ).stdout
    assert "replaced: 1 row" in told
    assert "left out: 1 row with NaN" in told
    wanted = VECTORS.copy()
    wanted[5] = [1, 2, 3, 4, 5, 6]
    with Client(url) as client:
        found = client.lookup(name, keys=WORDS)
    np.testing.assert_array_equal(found, wanted.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_an_import_needs_a_place(text: Path) -> None:
    done = invoke("import", "words", text, check=False)
    assert done.returncode == 2
    assert "--url" in done.stderr
