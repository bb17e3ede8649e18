"""Vectors as text come in whole, whatever their tokens are; a wrong line is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.dtypes import DType
from gatherd_server.loaders import text
from gatherd_server.loaders.text_shape import FirstField, decimal
from loaders.harness import run_import, text_file
from support.server import run_cli

ROWS = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
TOKENS = [b"the", b". . .", b"\xff\xfe", "naïve\u00a0x".encode()]


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b" \n", b"\t\r\n"])
def test_tokens_are_bytes_and_may_have_blanks(tmp_path: Path, header: bool, end: bytes) -> None:
    path = text_file(tmp_path / "v.txt", TOKENS, ROWS, header=header, end=end)
    done = run_import(tmp_path / "d", path)
    np.testing.assert_array_equal(done.rows, ROWS)
    assert done.keys == TOKENS
    assert done.table.dtype is DType.FLOAT32
    assert done.summary.format == ("word2vec text" if header else "GloVe text")


@pytest.mark.parametrize(
    "content",
    [
        b"a 1 2\nb 3 4",
        b"a 1 2\nb 3 4\n\n\n",
        b"\xef\xbb\xbfa 1 2\nb 3 4\n",
        b"a\t1\t2\nb\t3\t4\n",
        b"  a   1  2\nb 3 4\n",
        b"2 2\n\na 1 2\n\nb 3 4\n",
    ],
)
def test_what_is_no_vector_counts_for_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v").write_bytes(content)
    done = run_import(tmp_path / "d", tmp_path / "v")
    np.testing.assert_array_equal(done.rows, [[1, 2], [3, 4]])
    assert done.keys == [b"a", b"b"]


@pytest.mark.parametrize("token", [b"{", b"{}", b"BZh", b"ORC", b"PK", b"12", b"-", b"."])
def test_a_first_token_that_looks_like_another_format_is_a_token(
    tmp_path: Path, token: bytes
) -> None:
    (tmp_path / "v").write_bytes(token + b" 1 2\nb 3 4\n")
    assert run_import(tmp_path / "d", tmp_path / "v").keys == [token, b"b"]


def test_blocks_join_to_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(200, 7))
    tokens = [b"token%d" % number for number in range(200)]
    path = text_file(tmp_path / "v.txt", tokens, rows, header=True)
    for size in (1, 7, 100, 4096):
        monkeypatch.setattr(text, "BATCH_BYTES", size)
        done = run_import(tmp_path / "d", path, dtype=DType.FLOAT64)
        assert done.keys == tokens
        np.testing.assert_array_equal(np.load(done.folder / "weights.npy"), rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a 1 2\nb 3\nc 1 2\n", "line 2: expected a token and 2 numbers, found 2 fields"),
        (b"a 1 2\nb 3 x\nc 1 2\n", "line 2: .* found 'x' where a number should be"),
        (b"a 1 2\nb 3 1_0\nc 1 2\n", "line 2: .* found '1_0' where"),
        (b"a 1 2\nb 3 0x1\nc 1 2\n", "line 2: .* found '0x1' where"),
        (b"a 1 2\nb 3 4-5\nc 1 2\n", "line 2: .* found '4-5' where"),
        (b"a 1 2\n 3 4\nc 1 2\n", "line 2: .* found 2 fields"),
        (b"a 1 2\nb 0.5 3 4\nc 1 2\n", "line 2: .* found a number more"),
        (b"a 1 2\n" + b"b" * 2000 + b" 1 2\n", "line 2: .* a token of 2000 bytes"),
        (b"a 1 2\nb nan 3\n", "line 2 has NaN or infinity"),
        (b"a 1 2\nb 3 -inf\n", "line 2 has NaN or infinity"),
        (b"a 1 2\nb 3 1e39\n", "line 2 has a number too large for float32"),
        (b"a 1 2\nb 3 4\na 5 6\n", "line 3: the key 'a' stands there already"),
        (b"3 2\na 1 2\nb 3 4\n", "line 1 promises 3 rows, the file ends at line 3 after 2"),
        (b"1 2\na 1 2\nb 3 4\n", "line 1 promises 1 rows, but line 3 is one more"),
        (b"2 3\na 1 2\nb 3 4\n", "line 1 says 3 numbers a line, the lines after it have 2"),
        (b"2 1\na 1 2\nb 3 4\n", "line 1 says 1 numbers a line, the lines after it have 2"),
        (b"", "is empty"),
        (b"\n\n", "of no format we know"),
        (b"just words\nand more\n", "of no format we know"),
        (b",", "of no format we know"),
        ("a 1 2\nb 3 4\n".encode("utf-16"), "is text in UTF-16; make it UTF-8"),
        ("a 1 2\nb 3 4\n".encode("utf-16-be"), "is text in UTF-16; make it UTF-8"),
        ("a 1 2\nb 3 4\n".encode("utf-32"), "is text in UTF-32; make it UTF-8"),
        (b"0.1 2\n" * 70 + b"the 3\n", "line 71: .* found 'the' where .*--first-field key"),
        (b"0.1 2\n3 4 5\n0.5 6\n0.5 6\n", "line 2: expected 2 numbers and nothing else, found m"),
        (b"0.1 2\n3\n0.5 6\n0.5 6\n", "line 2: expected 2 numbers and nothing else, found 1 f"),
    ],
)
def test_a_wrong_file_is_refused_and_the_line_named(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "v").write_bytes(content)
    with pytest.raises(BadFile, match=message):
        run_import(tmp_path / "d", tmp_path / "v")


def test_wrong_rows_are_left_out_where_that_is_asked_for_and_counted(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b"a 1 2\nb 3\na 5 6\nc nan 1\nd 1 x\ne 7 8\na 0 0\nf 1e40 1\n")
    done = run_import(
        tmp_path / "d",
        tmp_path / "v",
        on_bad_row="skip",
        on_duplicate="first",
        on_nonfinite="skip",
    )
    assert done.keys == [b"a", b"e"]
    np.testing.assert_array_equal(done.rows, [[1, 2], [7, 8]])
    summary = done.summary
    assert (summary.row_count, summary.bad_rows, summary.duplicates) == (2, 2, 2)
    assert summary.nonfinite_rows == 2


def test_nonfinite_rows_are_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b"a 1 nan\nb inf 4\n")
    done = run_import(tmp_path / "d", tmp_path / "v", on_nonfinite="keep")
    np.testing.assert_array_equal(done.rows, [[1, np.nan], [np.inf, 4]])


def test_a_line_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LINE_BYTES_MAX", 1 << 20)
    (tmp_path / "v").write_bytes(b"a 1 2\nb 3 4\n" + b"1 " * (5 << 20))
    with pytest.raises(BadFile, match="a line after line 2 is longer than 1048576 bytes"):
        run_import(tmp_path / "d", tmp_path / "v")


@pytest.mark.parametrize("options", [
    {}, {"delimiter": "\t"}, {"delimiter": ","}, {"delimiter": "; "}, {"header": "x y z"},
    {"fmt": "%.3f", "delimiter": ",", "newline": "\r\n"}, {"footer": "# done 1 2"},
])  # fmt: skip
def test_numbers_alone_have_no_keys(tmp_path: Path, options: dict[str, Any]) -> None:
    np.savetxt(tmp_path / "v.tsv", ROWS, **options)
    done = run_import(tmp_path / "d", tmp_path / "v.tsv")
    delimiter = options.get("delimiter", " ").strip(" ") or None
    written = np.loadtxt(tmp_path / "v.tsv", delimiter=delimiter, dtype=np.float32)
    np.testing.assert_array_equal(done.rows, written)
    assert done.table.keys is None
    assert done.summary.format == "text of numbers"


def test_whether_integers_are_keys_has_to_be_said(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b"1 2 3\n4 5 6\n")
    with pytest.raises(InvalidArgument, match="say --first-field key, or --first-field number"):
        run_import(tmp_path / "d", tmp_path / "v")
    done = run_import(tmp_path / "d", tmp_path / "v", first_field=FirstField.KEY)
    assert done.keys == [b"1", b"4"]
    np.testing.assert_array_equal(done.rows, [[2, 3], [5, 6]])
    done = run_import(tmp_path / "d", tmp_path / "v", first_field=FirstField.NUMBER)
    assert done.table.keys is None
    np.testing.assert_array_equal(done.rows, [[1, 2, 3], [4, 5, 6]])


def test_a_header_says_that_integers_are_keys(tmp_path: Path) -> None:
    # As node2vec writes them.
    (tmp_path / "v").write_bytes(b"2 2\n1 0.5 3\n4 5 6\n")
    assert run_import(tmp_path / "d", tmp_path / "v").keys == [b"1", b"4"]
    (tmp_path / "v").write_bytes(b"2 1\n1 3\n4 6\n")
    assert run_import(tmp_path / "d", tmp_path / "v").keys == [b"1", b"4"]


def test_a_first_field_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b"a 1 2\nb 3 4\n")
    with pytest.raises(InvalidArgument, match="leave --first-field number out"):
        run_import(tmp_path / "d", tmp_path / "v", first_field=FirstField.NUMBER)
    np.save(tmp_path / "v.npy", ROWS)
    with pytest.raises(InvalidArgument, match=r"is \.npy, so leave --first-field out"):
        run_import(tmp_path / "d", tmp_path / "v.npy", first_field=FirstField.KEY)


@pytest.mark.parametrize("promised", [1, 5])
def test_a_wrong_promise_is_passed_over_where_bad_rows_are(tmp_path: Path, promised: int) -> None:
    (tmp_path / "v").write_bytes(b"%d 2\na 1 2\nb 3 4\n" % promised)
    with pytest.raises(BadFile, match=r"line 1 promises .*--on-bad-row skip takes"):
        run_import(tmp_path / "d", tmp_path / "v")
    done = run_import(tmp_path / "d", tmp_path / "v", on_bad_row="skip")
    assert done.keys == [b"a", b"b"]
    assert done.summary.bad_rows == 0


def test_a_token_of_blanks_is_a_token(tmp_path: Path) -> None:
    tokens = [b"a", b" ", b"  ", b"b", "\u00a0".encode()]
    text_file(tmp_path / "v", tokens, np.ones((5, 2)), header=True)
    assert run_import(tmp_path / "d", tmp_path / "v").keys == tokens


def test_the_last_of_two_rows_takes_the_place_of_the_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 500, 5000)
    rows = rng.normal(size=(5000, 300)).astype(np.float32)
    tokens = [b"t%d" % token for token in chosen]
    text_file(tmp_path / "v", tokens, rows, header=True)
    done = run_import(tmp_path / "d", tmp_path / "v", on_duplicate="last")
    # A dict is the judge: a key stays where it came first, with the value that came last.
    expected = dict(zip(tokens, rows, strict=True))
    assert done.keys == list(expected)
    np.testing.assert_array_equal(done.rows, np.stack(list(expected.values())))
    assert done.summary.replaced == 5000 - len(expected)
    verified = run_cli("verify", "--data-dir", tmp_path / "d")
    assert verified.returncode == 0


def test_prose_with_some_numbers_is_no_table_even_where_lines_may_be_skipped(
    tmp_path: Path,
) -> None:
    (tmp_path / "v").write_bytes(b"chapter 1\nit was a dark night\nand it rained\nso\n" * 20)
    with pytest.raises(BadFile, match="of no format we know"):
        run_import(tmp_path / "d", tmp_path / "v", on_bad_row="skip")


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_a_limit_takes_the_first_rows(tmp_path: Path, count: int) -> None:
    path = text_file(tmp_path / "v", TOKENS, ROWS, header=True)
    np.save(tmp_path / "v.npy", ROWS)
    for source in (path, tmp_path / "v.npy"):
        done = run_import(tmp_path / "d", source, limit=count)
        np.testing.assert_array_equal(done.rows, ROWS[:count])


NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(lambda x: f"{x:.6f}"),
    st.decimals(allow_nan=False, allow_infinity=False, places=12, min_value=-9, max_value=9).map(
        str
    ),
    st.from_regex(r"[+-]?[0-9]{1,25}(\.[0-9]{0,25})?([eE][+-]?[0-9]{1,2})?", fullmatch=True),
    st.from_regex(r"[+-]?\.[0-9]{1,25}([eE][+-]?[0-9]{1,4})?", fullmatch=True),
)


@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(NUMBERS, min_size=1, max_size=40))
def test_a_number_is_read_as_python_reads_it(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("numbers")
    (folder / "v").write_text("token " + " ".join(numbers) + "\n")
    done = run_import(folder / "d", folder / "v", dtype=DType.FLOAT64, on_nonfinite="keep")
    stored = np.load(done.folder / "weights.npy")[0]
    np.testing.assert_array_equal(stored, [float(number) for number in numbers])
    assert (np.signbit(stored) == [number.startswith("-") for number in numbers]).all()


def _is_token(token: bytes) -> bool:
    parts = token.split()
    return (
        not any(byte in token for byte in b"\n\r")
        and token.strip(b" \t") == token
        and len(token) > 0
        and not (len(parts) > 1 and decimal(parts[-1]) is not None)
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    tokens=st.lists(
        st.one_of(st.text(min_size=1, max_size=6).map(lambda t: t.encode("utf-8", "replace")),
                  st.binary(min_size=1, max_size=6), st.just(b"in 2000 . ."), st.just(b"12")),
        min_size=3, max_size=12, unique=True,
    ).map(lambda tokens: [token for token in tokens if _is_token(token)]),
    dim=st.integers(1, 9),
    header=st.booleans(),
    data=st.data(),
)  # fmt: skip
def test_any_token_and_shape_round_trips(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: list[bytes],
    dim: int,
    header: bool,
    data: st.DataObject,
) -> None:
    # The first lines tell the dim, so most of the tokens have to leave it alone.
    tokens = [b"first", b"second", b"third", *tokens]
    tokens = list(dict.fromkeys(tokens))
    rows: np.ndarray[Any, Any] = data.draw(
        arrays(np.float32, (len(tokens), dim), elements=st.floats(-1e3, 1e3, width=32))
    )
    folder = tmp_path_factory.mktemp("text")
    path = text_file(folder / "v", tokens, rows, header=header)
    done = run_import(folder / "d", path)
    assert done.keys == tokens
    np.testing.assert_array_equal(done.rows, rows)
