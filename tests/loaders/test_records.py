"""CSV, TSV and JSON Lines come in by their named columns, as Python's csv and json wrote them."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatherd.errors import BadFile, InvalidArgument
from loaders.harness import run_import

ROWS = np.random.default_rng(0).normal(size=(5, 3))
KEYS = ["the", 'a "quoted", one', "日本", "line\nfeed", " blank "]


def write_csv(path: Path, rows: list[list[Any]], **options: Any) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file, **options).writerows(rows)
    return path


def write_lines(path: Path, entries: list[Any]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


DIALECTS = [
    {},
    {"delimiter": "\t"},
    {"delimiter": ";"},
    {"delimiter": "|", "lineterminator": "\n"},
    {"quoting": csv.QUOTE_ALL},
]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_column_for_each_dimension(tmp_path: Path, dialect: dict[str, Any], mark: str) -> None:
    header = [mark + "note", "emb_0", "id", "emb_1", "emb_2"]
    rows = [["n", row[0], key, row[1], row[2]] for key, row in zip(KEYS, ROWS, strict=True)]
    path = write_csv(tmp_path / "v.csv", [header, *rows], **dialect)
    for spec in ("emb_*", "emb_0,emb_1,emb_2"):
        done = run_import(tmp_path / "d", path, key_column="id", vector_columns=spec)
        assert done.keys == [key.encode() for key in KEYS]
        np.testing.assert_array_equal(done.rows, ROWS.astype(np.float32))
    done = run_import(tmp_path / "d", path, vector_columns="emb_2,emb_0")
    assert done.table.keys is None
    np.testing.assert_array_equal(done.rows, ROWS[:, [2, 0]].astype(np.float32))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_all_columns_but_the_keys_where_they_are_numbers(
    tmp_path: Path, dialect: dict[str, Any]
) -> None:
    rows = [[key, *row] for key, row in zip(KEYS, ROWS, strict=True)]
    path = write_csv(tmp_path / "v.csv", [["id", "x", "y", "z"], *rows], **dialect)
    done = run_import(tmp_path / "d", path, key_column="id")
    assert done.keys == [key.encode() for key in KEYS]
    np.testing.assert_array_equal(done.rows, ROWS.astype(np.float32))


@pytest.mark.parametrize("written", [str, lambda row: " ".join(map(str, row)), json.dumps])
def test_a_column_of_lists(tmp_path: Path, written: Any) -> None:
    rows = [[key, "note", written(row.tolist())] for key, row in zip(KEYS, ROWS, strict=True)]
    path = write_csv(tmp_path / "v.csv", [["id", "n", "vector"], *rows])
    for source in (str(path), f"{path}#vector"):
        done = run_import(tmp_path / "d", source, key_column="id")
        assert done.keys == [key.encode() for key in KEYS]
        np.testing.assert_array_equal(done.rows, ROWS.astype(np.float32))
    assert run_import(tmp_path / "d", f"{path}#vector").table.keys is None


@pytest.mark.parametrize("delimiter", [",", ";", ", "])
def test_tokens_and_numbers_need_no_header(tmp_path: Path, delimiter: str) -> None:
    (tmp_path / "v.csv").write_text(
        "".join(delimiter.join([f"t {n}", *map(str, row)]) + "\n" for n, row in enumerate(ROWS))
    )
    done = run_import(tmp_path / "d", tmp_path / "v.csv")
    assert done.keys == [b"t %d" % number for number in range(5)]
    np.testing.assert_array_equal(done.rows, ROWS.astype(np.float32))


@pytest.mark.parametrize("keys", [KEYS, [5, -3, 0, 2**60, 9], [2**64 - 1, 1, 2, 3, 4]])
def test_json_lines(tmp_path: Path, keys: list[Any]) -> None:
    entries = [
        {"note": None, "vector": row.tolist(), "id": key, "x": row[0], "y": 1}
        for key, row in zip(keys, ROWS, strict=True)
    ]
    path = write_lines(tmp_path / "v.jsonl", entries)
    expected = [key.encode() if isinstance(key, str) else key for key in keys]
    for source in (str(path), f"{path}#vector"):
        done = run_import(tmp_path / "d", source, key_column="id")
        assert done.keys == expected
        np.testing.assert_array_equal(done.rows, ROWS.astype(np.float32))
        assert done.summary.format == "JSON Lines"
    done = run_import(tmp_path / "d", path, key_column="id", vector_columns="y,x")
    np.testing.assert_array_equal(done.rows[:, 1], ROWS[:, 0].astype(np.float32))


def test_a_json_line_of_one_list_needs_no_option(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "v.jsonl", [{"v": row.tolist()} for row in ROWS])
    np.testing.assert_array_equal(run_import(tmp_path / "d", path).rows, ROWS.astype(np.float32))


@pytest.mark.parametrize("name", ["v.csv", "v.jsonl"])
def test_what_could_be_another_column_has_to_be_said(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "v.csv":
        write_csv(path, [["id", "x", "y"], [1, 2, 3], [4, 5, 6]])
    else:
        write_lines(path, [{"id": 1, "x": 2, "y": 3}, {"id": 4, "x": 5, "y": 6}])
    with pytest.raises(InvalidArgument, match=r"--key-column says .* there are: id, x, y$"):
        run_import(tmp_path / "d", path)
    with pytest.raises(InvalidArgument, match="has no column 'z'; there are: id, x, y"):
        run_import(tmp_path / "d", path, key_column="z")
    with pytest.raises(InvalidArgument, match=r"has no column 'e_\*'; there are: id, x, y"):
        run_import(tmp_path / "d", path, key_column="id", vector_columns="e_*")
    with pytest.raises(InvalidArgument, match="asks for a column twice"):
        run_import(tmp_path / "d", path, vector_columns="x,x")
    with pytest.raises(InvalidArgument, match="are one too many"):
        run_import(tmp_path / "d", f"{path}#x", vector_columns="y")


def test_columns_of_a_file_that_has_none_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    with pytest.raises(InvalidArgument, match="so leave --vector-columns out"):
        run_import(tmp_path / "d", tmp_path / "a.npy", vector_columns="x")
    (tmp_path / "v.bin").write_bytes(b"1 1\na \0\0\0\0")
    with pytest.raises(InvalidArgument, match="has no columns, so leave --key-column out"):
        run_import(tmp_path / "d", tmp_path / "v.bin", key_column="x")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['id,x,y', 'a,1,2', 'b,3', 'c,5,6'], "line 3: has 2 fields, others have 3"),
        (['id,x,y', 'a,1,2', 'b,3,q', 'c,5,6'], "line 3: its 'y' isn't a number but 'q'"),
        (['id,x,y', 'a,1,2', 'b,3,1_0', 'c,5,6'], "line 3: its 'y' isn't a number but '1_0'"),
        (['id,x,y', 'a,1,2', ',3,4', 'c,5,6'], "line 3: its key has 0 bytes"),
        (['id,x,y', '"a\n",1,2', 'b,"3"4,5', 'c,5,6'], "line 4: isn't a record of RFC 4180"),
        (['{"id": "a", "v": [1, 2]}', '{"id": "b", "v": [3]}'], "line 2: its vector has 1 elem"),
        (['{"id": "a", "v": [1, 2]}', '{"id": "b", "v": [3, true]}'], "line 2: element 1 isn't"),
        (['{"id": "a", "v": [1, 2]}', '{"id": "b"}'], "line 2: its 'v' isn't a list"),
        (['{"id": "a", "v": [1, 2]}', '{"id": 3, "v": [1, 2]}'], "line 2: its key isn't a str"),
        (['{"id": 1, "v": [1, 2]}', '{"id": 2.0, "v": [1, 2]}'], "line 2: its key None isn't of"),
        (['{"id": "a", "v": [1, 2]}', '[1]'], "line 2: isn't a JSON object"),
        (['{"id": "a", "v": [1, 2]}', '{"id": "b", "v"'], "line 2: isn't a JSON object"),
        (['{"id": "a", "v": [1, 2]}', '{"id": "b", "v": [1, 1%s]}' % ("0" * 400)], "too large"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named_or_left_out(tmp_path: Path, lines: list[str], message: str) -> None:
    (tmp_path / "v").write_text("\n".join(lines) + "\n")
    with pytest.raises(BadFile, match=f"{message}.*--on-bad-row skip leaves such rows out"):
        run_import(tmp_path / "d", tmp_path / "v", key_column="id")
    done = run_import(tmp_path / "d", tmp_path / "v", key_column="id", on_bad_row="skip")
    assert done.summary.bad_rows == 1
    assert done.table.row_count == len(lines) - 1 - lines[0].startswith("id")
    np.testing.assert_array_equal(done.rows[0], [1, 2])


def test_a_record_that_never_ends_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatherd_server.loaders.delimited.LINE_BYTES_MAX", 1 << 16)
    (tmp_path / "v.csv").write_text('id,x\n"a",1\nb,2\n"c,3\n' + "d,4\n" * 50_000)
    with pytest.raises(BadFile, match="is a quotation mark left open"):
        run_import(tmp_path / "d", tmp_path / "v.csv", key_column="id", on_bad_row="skip")
    monkeypatch.setattr("gatherd_server.loaders.json_lines.LINE_BYTES_MAX", 1 << 16)
    (tmp_path / "v.jsonl").write_text('{"v": [1]}\n{"v": [' + "1," * 100_000)
    with pytest.raises(BadFile, match="a line after line 1 is longer than 65536 bytes"):
        run_import(tmp_path / "d", tmp_path / "v.jsonl")


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(
    keys=st.lists(CELLS, min_size=1, max_size=12, unique=True),
    delimiter=st.sampled_from(",\t;|"),
    end=st.sampled_from(["\n", "\r\n"]),
    size=st.sampled_from([7, 64, 4 << 20]),
)
def test_any_key_round_trips(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], delimiter: str, end: str, size: int
) -> None:
    folder = tmp_path_factory.mktemp("records")
    rows = [[key, number, -number] for number, key in enumerate(keys)]
    path = write_csv(
        folder / "v.csv", [["id", "x", "y"], *rows], delimiter=delimiter, lineterminator=end
    )
    write_lines(folder / "v.jsonl", [{"id": key, "v": row} for key, *row in rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gatherd_server.loaders.json_lines.BATCH_BYTES", size)
        for source in (path, folder / "v.jsonl"):
            done = run_import(folder / "d", source, key_column="id")
            assert done.keys == [key.encode() for key in keys]
            np.testing.assert_array_equal(done.rows, [row[1:] for row in rows])
