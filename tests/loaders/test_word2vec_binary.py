"""word2vec's binary form comes in whole, or is refused with the record's number."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from gatherd.errors import BadFile, InvalidArgument
from gatherd_server.loaders import word2vec_binary
from loaders.harness import run_import

ROWS = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
TOKENS = [b"the", "日本".encode(), "naïve".encode(), b"x" * 300]


def binary(tokens: list[bytes], rows: NDArray[Any], end: bytes = b"\n") -> bytes:
    records = [
        token + b" " + row.astype("<f4").tobytes() + end
        for token, row in zip(tokens, rows, strict=True)
    ]
    return b"%d %d\n" % rows.shape + b"".join(records)


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("size", [1, 64, 1 << 20])
def test_tokens_are_bytes(
    tmp_path: Path, end: bytes, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word2vec_binary, "BATCH_BYTES", size)
    monkeypatch.setattr(word2vec_binary, "KEY_BYTES_MAX", 300)
    (tmp_path / "v.bin").write_bytes(binary(TOKENS, ROWS, end))
    done = run_import(tmp_path / "d", tmp_path / "v.bin")
    np.testing.assert_array_equal(done.rows, ROWS)
    assert done.keys == TOKENS
    assert done.summary.format == "word2vec binary"


def test_a_truncated_file_is_refused_at_every_byte(tmp_path: Path) -> None:
    whole = binary(TOKENS[:3], ROWS[:3], b"")
    for length in range(len(whole)):
        (tmp_path / "v.bin").write_bytes(whole[:length])
        # Of its first line alone nobody can tell that it isn't a row.
        with pytest.raises((BadFile, InvalidArgument)):
            run_import(tmp_path / "d", tmp_path / "v.bin")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (binary(TOKENS, ROWS).replace(b"4 5", b"5 5", 1), "ends in record 5 of the 5"),
        (binary(TOKENS, ROWS).replace(b"4 5", b"3 5", 1), "promises 3 rows, but there are more"),
        (b"2 2\n" + b"\xfe" * 5000, "record 1 doesn't begin with a token"),
        (b"1 2\n " + b"\xfe" * 8, "record 1 has an empty token"),
        (binary([b"a", b"b", b"a", b"c"], ROWS), "record 3: the key 'a' stands there already"),
        (binary([b"a", b"b"], np.array([[1], [np.nan]])), "record 2 has NaN"),
    ],
)
def test_a_wrong_file_is_refused_and_the_record_named(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "v.bin").write_bytes(content)
    with pytest.raises(BadFile, match=message):
        run_import(tmp_path / "d", tmp_path / "v.bin")


def test_a_token_that_was_cut_in_a_character_is_taken_behind_a_line_feed(tmp_path: Path) -> None:
    tokens = [b"a", "日本".encode()[:4], b"\xff", b"b"]
    (tmp_path / "v.bin").write_bytes(binary(tokens, ROWS))
    assert run_import(tmp_path / "d", tmp_path / "v.bin").keys == tokens
    (tmp_path / "v.bin").write_bytes(binary(tokens, ROWS, b""))
    with pytest.raises(BadFile, match=r"record 1 is damaged: what follows it, .*, is no token"):
        run_import(tmp_path / "d", tmp_path / "v.bin")


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("size", [1, 64, 1 << 20])
def test_a_token_with_a_blank_is_damage_and_its_record_named(
    tmp_path: Path, end: bytes, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word2vec_binary, "BATCH_BYTES", size)
    rows = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    for place in range(6):
        tokens = [b"t%d" % number for number in range(6)]
        tokens[place] = b"new york city"
        (tmp_path / "v.bin").write_bytes(binary(tokens, rows, end))
        with pytest.raises(BadFile, match=rf"record {place + 1}( |:).*blank in it"):
            run_import(tmp_path / "d", tmp_path / "v.bin")
        done = run_import(tmp_path / "d", tmp_path / "v.bin", on_bad_row="skip")
        # What is left has the vectors that it should have.
        expected = dict(zip(tokens, rows, strict=True))
        assert len(done.keys) >= 4
        for key, row in zip(done.keys, done.rows, strict=True):
            np.testing.assert_array_equal(row, expected[key])


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("token", [b"", b"\n"])
def test_an_empty_token_or_a_line_feed_is_left_out_where_that_is_asked_for(
    tmp_path: Path, end: bytes, place: int, token: bytes
) -> None:
    tokens = [b"a", b"b", b"c", b"d"]
    tokens[place] = token
    (tmp_path / "v.bin").write_bytes(binary(tokens, ROWS, end))
    with pytest.raises(BadFile, match=f"record {place + 1} has an empty token.*--on-bad-row skip"):
        run_import(tmp_path / "d", tmp_path / "v.bin")
    done = run_import(tmp_path / "d", tmp_path / "v.bin", on_bad_row="skip")
    assert done.keys == [key for key in tokens if key != token]
    np.testing.assert_array_equal(done.rows, np.delete(ROWS, place, axis=0))
    assert done.summary.bad_rows == 1


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_wrong_promise_is_passed_over_where_bad_rows_are(tmp_path: Path, end: bytes) -> None:
    for promised in (1, 9):
        whole = binary(TOKENS, ROWS, end).replace(b"4 5", b"%d 5" % promised, 1)
        (tmp_path / "v.bin").write_bytes(whole)
        with pytest.raises(BadFile, match="--on-bad-row skip takes"):
            run_import(tmp_path / "d", tmp_path / "v.bin")
        done = run_import(tmp_path / "d", tmp_path / "v.bin", on_bad_row="skip")
        assert done.keys == TOKENS
        np.testing.assert_array_equal(done.rows, ROWS)
    (tmp_path / "v.bin").write_bytes(whole[:-5])
    done = run_import(tmp_path / "d", tmp_path / "v.bin", on_bad_row="skip")
    assert done.keys == TOKENS[:3]
    assert done.summary.bad_rows == 1


@settings(max_examples=50, deadline=None)
@given(
    tokens=st.lists(
        st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters=" "),
                min_size=1, max_size=9).map(str.encode),
        min_size=1, max_size=12, unique=True,
    ),
    dim=st.integers(1, 9),
    end=st.sampled_from([b"", b"\n"]),
    data=st.data(),
)  # fmt: skip
def test_any_token_and_shape_round_trips(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: list[bytes],
    dim: int,
    end: bytes,
    data: st.DataObject,
) -> None:
    rows: NDArray[Any] = data.draw(
        arrays(np.float32, (len(tokens), dim), elements=st.floats(width=32, allow_nan=False,
                                                                  allow_infinity=False))
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("binary")
    (folder / "v").write_bytes(binary(tokens, rows, end))
    done = run_import(folder / "d", folder / "v")
    assert done.keys == tokens
    np.testing.assert_array_equal(done.rows, rows)
