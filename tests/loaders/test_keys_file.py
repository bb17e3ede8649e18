"""Keys come from a file of their own for arrays that have none."""

import bz2
import gzip
import json
import lzma
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


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (np.arange(10.0), r"is float64 \(10,\); keys are integers, str or bytes"),
        ([[1, 3], [2, 4]], r"is int64 \(2, 2\); keys are"),
        (3, r"is int64 \(\); keys are"),
        (np.array([True] * 10), "is bool"),
        (np.array(["a", ""]), r"key 1 has 0 bytes; .* \(--on-bad-row skip leaves"),
    ],
)
def test_keys_of_another_type_are_refused(
    tmp_path: Path, source: Path, keys: Any, message: str
) -> None:
    np.save(tmp_path / "keys.npy", keys)
    with pytest.raises(BadFile, match=message):
        run_import(tmp_path / "d", source, keys=tmp_path / "keys.npy")


def test_pickled_keys_are_refused(tmp_path: Path, source: Path) -> None:
    np.save(tmp_path / "keys.npy", np.array(["a", None] * 5, object), allow_pickle=True)
    with pytest.raises(BadFile, match="holds Python objects, which are a pickle, never run here"):
        run_import(tmp_path / "d", source, keys=tmp_path / "keys.npy")


@pytest.mark.parametrize("dtype", ["i1", ">i2", "i4", "u1", "u2", ">u4", ">i8", "U5", ">U5", "S5"])
def test_an_array_of_any_integers_or_strings_has_the_keys(
    tmp_path: Path, source: Path, dtype: str
) -> None:
    keys = np.arange(10).astype(dtype)
    if dtype.endswith("U5"):
        keys[3] = "日本🦆x"
    np.save(tmp_path / "keys.npy", keys)
    done = run_import(tmp_path / "d", source, keys=tmp_path / "keys.npy")
    expected = [key.encode() if isinstance(key, str) else key for key in keys.tolist()]
    assert done.keys == expected


NAMES = ["[PAD]", "##ing", "Ġthe", "▁a", "日本", "</s>", "\ud800", " ", "a b", "x"]
VOCABULARY = {name: row for row, name in enumerate(NAMES)}


def added(*rows: int) -> list[Any]:
    return [{"id": row, "content": NAMES[row], "special": True} for row in rows]


@pytest.mark.parametrize(
    "document",
    [
        NAMES,
        VOCABULARY,
        dict(reversed(VOCABULARY.items())),
        {"model": {"type": "WordPiece", "vocab": VOCABULARY}, "added_tokens": added(0, 5)},
        {"model": {"type": "BPE", "vocab": dict(list(VOCABULARY.items())[:8])},
         "added_tokens": added(9, 8)},
        {"model": {"type": "Unigram", "vocab": [[name, -1.5] for name in NAMES[:9]]},
         "added_tokens": added(0, 9)},
    ],
)  # fmt: skip
@pytest.mark.parametrize("indent", [None, 1])
def test_a_vocabulary_in_json_has_the_keys(
    tmp_path: Path, source: Path, document: Any, indent: int | None
) -> None:
    (tmp_path / "keys").write_text(json.dumps(document, indent=indent))
    done = run_import(tmp_path / "d", source, keys=tmp_path / "keys")
    assert done.keys == [name.encode("utf-8", "surrogatepass") for name in NAMES]


def test_a_list_in_json_may_have_integers(tmp_path: Path, source: Path) -> None:
    (tmp_path / "keys").write_text(json.dumps(list(range(5, 15))))
    assert run_import(tmp_path / "d", source, keys=tmp_path / "keys").keys == list(range(5, 15))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ('["a", "b"', "begins as JSON does, but"),
        ('["a", 2]', "key 1 isn't a string, as others are"),
        ('{"a": 0, "b": 2}', "has 2 tokens, but none with id 1"),
        ('{"a": 0, "b": 0}', "has two tokens with id 0: 'a' and 'b'"),
        ('{"a": "x"}', "neither a list of tokens, a dict of token to row"),
        ('{"model": {"vocab": 3}}', "neither a list of tokens, a dict of token to row"),
        ('{"model": {"vocab": {"a": 0}}, "added_tokens": [{}]}', "has no id and content"),
        (json.dumps(NAMES[:9]), r"has 9 keys; .* has more rows \(--limit 9 takes only"),
        (json.dumps([*NAMES, "y"]), r"more keys than .* has rows \(10\)"),
        (json.dumps(["y" * 1025]), "key 0 has 1025 bytes, over 1024"),
        (json.dumps([2**64]), "doesn't fit into uint64"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(
    tmp_path: Path, source: Path, document: str, message: str
) -> None:
    (tmp_path / "keys").write_text(document)
    with pytest.raises(BadFile, match=message):
        run_import(tmp_path / "d", source, keys=tmp_path / "keys")


def test_rows_that_pad_a_vocabulary_are_cut_by_a_limit(tmp_path: Path, source: Path) -> None:
    (tmp_path / "keys").write_text(json.dumps(NAMES[:9]))
    done = run_import(tmp_path / "d", source, keys=tmp_path / "keys", limit=9)
    assert done.table.row_count == 9
    (tmp_path / "keys").write_text(json.dumps(NAMES))
    done = run_import(tmp_path / "d", source, keys=tmp_path / "keys", limit=2)
    assert done.keys == [b"[PAD]", b"##ing"]


def test_metadata_of_the_projector_has_the_keys_in_a_column(tmp_path: Path, source: Path) -> None:
    lines = ["word\tcount"] + [f'"t{row}\t{row * 7}' for row in range(10)]
    (tmp_path / "metadata.tsv").write_text("\r\n".join(lines))
    done = run_import(tmp_path / "d", source, keys=tmp_path / "metadata.tsv")
    assert done.keys == [b'"t%d' % row for row in range(10)]
    done = run_import(tmp_path / "d", source, keys=tmp_path / "metadata.tsv", key_column="count")
    assert done.keys == [b"%d" % (row * 7) for row in range(10)]
    with pytest.raises(InvalidArgument, match="has no column 'x'; there are:\n  word"):
        run_import(tmp_path / "d", source, keys=tmp_path / "metadata.tsv", key_column="x")
    (tmp_path / "metadata.tsv").write_text("\n".join([*lines, "a"]))
    with pytest.raises(BadFile, match="line 12 has 1 columns, line 1 has 2"):
        run_import(tmp_path / "d", source, keys=tmp_path / "metadata.tsv")


@pytest.mark.parametrize("rows", [ROWS, np.arange(30).reshape(10, 3)])
def test_the_projectors_two_files_make_a_table(tmp_path: Path, rows: Any) -> None:
    np.savetxt(tmp_path / "tensors.tsv", rows, delimiter="\t", fmt="%.7g")
    (tmp_path / "metadata.tsv").write_text("".join(f"w{row}\n" for row in range(10)))
    done = run_import(tmp_path / "d", tmp_path / "tensors.tsv", keys=tmp_path / "metadata.tsv")
    assert done.keys == [b"w%d" % row for row in range(10)]
    np.testing.assert_allclose(done.rows, rows, rtol=1e-6)


@pytest.mark.parametrize("packed", [bytes, bz2.compress, lzma.compress])
def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path: Path, source: Path, packed: Any) -> None:
    whole = "\n".join(f"é{row}" for row in range(10))
    (tmp_path / "keys").write_bytes(packed(whole.encode("utf-8-sig")))
    done = run_import(tmp_path / "d", source, keys=tmp_path / "keys")
    assert done.keys == [f"é{row}".encode() for row in range(10)]
    for encoding in ("utf-16", "utf-16-be", "utf-32"):
        (tmp_path / "keys").write_bytes(packed(("x\n" + whole).encode(encoding)))
        with pytest.raises(BadFile, match=f"is text in {encoding[:6].upper()}; make it UTF-8"):
            run_import(tmp_path / "d", source, keys=tmp_path / "keys")


def test_a_row_with_a_blank_key_can_be_left_out(tmp_path: Path, source: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\n".join([b"a", b"", b" ", *TOKENS[:6], b""]) + b"\n")
    with pytest.raises(BadFile, match=r"line 2 has 0 bytes; .*--on-bad-row skip leaves its row"):
        run_import(tmp_path / "d", source, keys=tmp_path / "keys")
    done = run_import(tmp_path / "d", source, keys=tmp_path / "keys", on_bad_row="skip")
    assert done.keys == [b"a", b" ", *TOKENS[:6]]
    np.testing.assert_array_equal(done.rows, np.delete(ROWS, [1, 9], axis=0))
    assert done.summary.bad_rows == 2


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
    with pytest.raises(
        InvalidArgument, match=r"is \.npy, so leave --key-column out: it is for Arrow"
    ):
        run_import(tmp_path / "d", tmp_path / "a.npy", key_column="id")
