"""Keys come from a file of their own for arrays that have none."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatherd.errors import BadFile, InvalidArgument
from gatherd_server.loaders import keys_file
from loaders.harness import run_import

ROWS = np.arange(30, dtype=np.float32).reshape(10, 3)
TOKENS = [b"key %d" % number for number in range(9)] + [b"\xff\xfe"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", ROWS)
    return tmp_path / "a.npy"


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [1, 10, 1 << 20])
def test_a_text_file_has_a_key_a_line(
    tmp_path: Path, source: Path, end: bytes, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_file, "BATCH_BYTES", size)
    monkeypatch.setattr("gatherd_server.loaders.batches.BATCH_BYTES", 40)
    for content in (end.join(TOKENS), end.join(TOKENS) + end):
        (tmp_path / "keys").write_bytes(content)
        assert run_import(tmp_path / "d", source, keys=tmp_path / "keys").keys == TOKENS
    (tmp_path / "keys").write_bytes(gzip.compress(content))
    assert run_import(tmp_path / "d", source, keys=tmp_path / "keys").keys == TOKENS


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_an_array_has_the_keys_as_integers(tmp_path: Path, source: Path, dtype: Any) -> None:
    keys = np.random.default_rng(0).integers(0, 2**63 - 1, 10).astype(dtype)
    np.save(tmp_path / "keys.npy", keys)
    done = run_import(tmp_path / "d", source, keys=tmp_path / "keys.npy")
    assert done.keys == keys.tolist()
    assert done.table.keys is not None
    np.testing.assert_array_equal(done.table.keys.rows_of(keys[::-1].copy()), np.arange(10)[::-1])


def test_rows_are_left_out_with_their_keys(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1.0], [np.nan], [3], [4]]))
    (tmp_path / "keys").write_bytes(b"a\nb\nc\na\n")
    done = run_import(
        tmp_path / "d",
        tmp_path / "a.npy",
        keys=tmp_path / "keys",
        on_nonfinite="skip",
        on_duplicate="first",
    )
    assert done.keys == [b"a", b"c"]
    np.testing.assert_array_equal(done.rows, [[1], [3]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n", "has 2 keys; .* has more rows"),
        (b"\n".join([*TOKENS, b"x"]), r"has more keys than .* has rows \(10\)"),
        (b"a\n\nb\n", "line 2 has 0 bytes; a key has 1 to 1024"),
        (b"a\n" + b"x" * 3000, "line 2 is longer than a key's 1024 bytes"),
        (b"a\n" + b"x" * 1025 + b"\n", "line 2 has 1025 bytes"),
        (b"a\nb\na\n" + b"\n".join(TOKENS[:7]), "row 2: the key 'a' stands there already"),
        (b"", "has 0 keys"),
    ],
)
def test_keys_that_do_not_fit_are_refused(
    tmp_path: Path, source: Path, content: bytes, message: str
) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(BadFile, match=message):
        run_import(tmp_path / "d", source, keys=tmp_path / "keys")


@pytest.mark.parametrize("keys", [np.arange(10.0), np.arange(10, dtype=np.int32), [[1], [2]]])
def test_keys_of_another_type_are_refused(tmp_path: Path, source: Path, keys: Any) -> None:
    np.save(tmp_path / "keys.npy", keys)
    with pytest.raises(BadFile, match="keys are int64 or uint64"):
        run_import(tmp_path / "d", source, keys=tmp_path / "keys.npy")


def test_a_truncated_array_of_keys_is_refused(tmp_path: Path, source: Path) -> None:
    np.save(tmp_path / "keys.npy", np.arange(10))
    whole = (tmp_path / "keys.npy").read_bytes()
    for length in range(100, len(whole)):
        (tmp_path / "keys.npy").write_bytes(whole[:length])
        with pytest.raises(BadFile):
            run_import(tmp_path / "d", source, keys=tmp_path / "keys.npy")


def test_keys_are_not_given_twice(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(b"a 1 2\n")
    (tmp_path / "keys").write_bytes(b"b\n")
    with pytest.raises(InvalidArgument, match="has keys of its own"):
        run_import(tmp_path / "d", tmp_path / "v.txt", keys=tmp_path / "keys")
    np.save(tmp_path / "a.npy", ROWS)
    with pytest.raises(InvalidArgument, match="has no columns"):
        run_import(tmp_path / "d", tmp_path / "a.npy", key_column="id")
