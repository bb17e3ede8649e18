"""Files are served as they lie, or refused with the reason; a lying header maps nothing."""

import gc
import io
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.catalog import read_default_vector
from gatherd.store.dtypes import DType
from gatherd.store.format import RowLayout, read_layout, read_npy_header
from support.file_tables import open_file_table

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def layout_of(path: Path, tensor: str | None = None) -> RowLayout:
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_layout(fd, path.name, tensor)
    finally:
        os.close(fd)


def npy_bytes(array: np.ndarray[Any, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def safetensors_bytes(header: object, data: bytes = ROWS.tobytes()) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, dtype: str = "F32", shape: object = (4, 3)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", ml_dtypes.bfloat16])
def test_every_float_type_is_read_from_npy_and_safetensors(tmp_path: Path, dtype: Any) -> None:
    rows = ROWS.astype(dtype)
    np.save(tmp_path / "a.npy", rows)
    save_file({"w": rows, "other": np.zeros(5, np.int8)}, tmp_path / "a.safetensors")
    for layout in (layout_of(tmp_path / "a.npy"), layout_of(tmp_path / "a.safetensors", "w")):
        assert (layout.dtype, layout.row_count, layout.dim) == (DType(rows.dtype.name), 4, 3)
    for path, tensor in (("a.npy", None), ("a.safetensors", "w")):
        table = open_file_table("t", tmp_path / path, tensor)
        np.testing.assert_array_equal(table.lookup(np.arange(4)).vectors, rows.astype(np.float32))


@given(
    descr=st.sampled_from(["<f4", "<f2", "<f8", ">f4", "|V2", "<i8", "|b1"]),
    shape=st.lists(st.integers(0, 2**40), max_size=3).map(tuple),
    fortran_order=st.booleans(),
    damage=st.none() | st.tuples(st.integers(0, 127), st.integers(0, 255)),
)
def test_a_npy_header_is_read_as_numpy_reads_it(
    tmp_path_factory: pytest.TempPathFactory,
    descr: str,
    shape: tuple[int, ...],
    fortran_order: bool,
    damage: tuple[int, int] | None,
) -> None:
    stream = io.BytesIO()
    header = {"descr": descr, "fortran_order": fortran_order, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    written = bytearray(stream.getvalue())
    if damage is not None:
        written[damage[0]] = damage[1]
    expected: object = None
    stream = io.BytesIO(bytes(written))
    with suppress(Exception):  # NumPy's parser lets any tokenizer error through
        assert np.lib.format.read_magic(stream) == (1, 0)
        expected = (*np.lib.format.read_array_header_1_0(stream), stream.tell())
    path = tmp_path_factory.getbasetemp() / "header.npy"
    path.write_bytes(written)
    fd = os.open(path, os.O_RDONLY)
    try:
        if expected is None:
            with pytest.raises(BadFile, match=r"header\.npy has a damaged \.npy header"):
                read_npy_header(fd, path.name)
        else:
            assert read_npy_header(fd, path.name) == expected
    finally:
        os.close(fd)


@pytest.fixture
def switches_in_the_collector() -> Iterator[None]:
    """Threads take turns whenever the garbage collector runs, which is often."""

    def take_turns(_phase: str, _info: dict[str, int]) -> None:
        time.sleep(0)

    before = gc.get_threshold()
    gc.callbacks.append(take_turns)
    gc.set_threshold(10)
    yield
    gc.set_threshold(*before)
    gc.callbacks.remove(take_turns)


@pytest.mark.usefixtures("switches_in_the_collector")
def test_files_are_opened_by_many_threads_at_once(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)

    def open_often(depth: int) -> set[RowLayout]:
        if depth:
            return open_often(depth - 1)
        return {layout_of(tmp_path / "a.npy") for _ in range(2000)}

    with ThreadPoolExecutor(6) as pool:
        found = [pool.submit(open_often, 5 * thread) for thread in range(6)]
    assert set.union(*(done.result() for done in found)) == {layout_of(tmp_path / "a.npy")}


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_a_default_vector_is_any_float_array_of_one_dimension(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "default.npy"
    np.save(path, ROWS[1].astype(dtype))
    vector = read_default_vector(path)
    assert vector.dtype == np.float32
    np.testing.assert_array_equal(vector, ROWS[1])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadFile, match=r"default\.npy is truncated"):
        read_default_vector(path)
    np.save(path, np.arange(3))
    with pytest.raises(BadFile, match="isn't a default vector"):
        read_default_vector(path)


def test_the_format_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(npy_bytes(ROWS))
    assert layout_of(tmp_path / "a.safetensors").row_count == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy_bytes(np.array([["a"]], object), allow_pickle=True), "holds Python objects"),
        (npy_bytes(np.asfortranarray(ROWS)), "Fortran order"),
        (npy_bytes(ROWS.astype(">f4")), "big-endian"),
        (npy_bytes(ROWS[0]), r"shape \(3,\); a table has two dimensions"),
        (npy_bytes(ROWS[None]), "two dimensions"),
        (npy_bytes(ROWS.astype(np.int64)), "dtype int64; a table is of"),
        (npy_bytes(np.empty((3, 2), [("a", "u1"), ("b", "u1")])), "dtype .* a table is of"),
        (npy_bytes(np.empty((3, 0), np.float32)), "at least one element"),
        (npy_bytes(ROWS)[:-1], "truncated: its header promises 176 bytes, the file has 175"),
        (npy_bytes(ROWS)[:40], "damaged .npy header"),
        (npy_bytes(ROWS)[:9], "damaged .npy header"),
        (b"\x93NUMPY\x09\x00" + b"{" * 200, "damaged .npy header"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "damaged .npy header"),
        (b"", "neither"),
        (b"PK\x03\x04 something else", "neither"),
    ],
)
def test_a_npy_file_that_cannot_be_served_says_why(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(BadFile, match=message):
        layout_of(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (safetensors_bytes({"w": entry(0, 49, shape=[4, 3])}), "claims bytes 0 to 49"),
        (safetensors_bytes({"w": entry(0, 44)}), "which isn't 44 bytes"),
        (safetensors_bytes({"w": entry(-4, 44)}), "claims bytes -4"),
        (safetensors_bytes({"w": entry(40, 0)}), "claims bytes 40 to 0"),
        (safetensors_bytes({"w": entry(0, 48), "v": entry(4, 8, shape=[1])}), "overlap"),
        (safetensors_bytes({"w": entry(0, 48, shape=[4, -3])}), "has shape"),
        (safetensors_bytes({"w": entry(0, 48, shape=[True, 12])}), "has shape"),
        (safetensors_bytes({"w": entry(0, 48, shape="x")}), "damaged entry"),
        (safetensors_bytes({"w": 3}), "damaged entry"),
        (safetensors_bytes({"w": entry(0, 48, "I32")}), "dtype I32; a table is of"),
        (safetensors_bytes({"w": entry(0, 48, shape=[12])}), "two dimensions"),
        (safetensors_bytes(b'{"w": 1, "w": 2}'), "stands in it twice"),
        (safetensors_bytes(b"{" + b"[" * 100_000), "damaged safetensors header"),
        (safetensors_bytes(b'{"w\xff": 1}'), "damaged safetensors header"),
        ((2**63).to_bytes(8, "little") + b"{}", "claims a header of"),
        ((1000).to_bytes(8, "little") + b"{}", "is truncated"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(BadFile, match=message):
        layout_of(tmp_path / "a.safetensors", "w")


def test_the_tensor_to_serve_has_to_be_named_when_there_are_several(tmp_path: Path) -> None:
    save_file({"a": ROWS, "b": ROWS}, tmp_path / "m.safetensors")
    with pytest.raises(
        InvalidArgument, match=r"holds 2 tensors; name one .*:\n  a  F32 \(\d+, \d+\)\n  b "
    ):
        layout_of(tmp_path / "m.safetensors")
    with pytest.raises(InvalidArgument, match=r"has no tensor 'c'; there are:\n  a  F32 \("):
        layout_of(tmp_path / "m.safetensors", "c")
    save_file({"only": ROWS}, tmp_path / "one.safetensors")
    assert layout_of(tmp_path / "one.safetensors").row_count == 4


def test_a_npy_file_has_no_tensor_to_pick(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    with pytest.raises(InvalidArgument, match="no tensor 'w' to pick"):
        layout_of(tmp_path / "a.npy", "w")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_right_or_refused_and_never_worse(
    tmp_path: Path, data: st.DataObject
) -> None:
    sound = data.draw(st.sampled_from([npy_bytes(ROWS), safetensors_bytes({"w": entry(0, 48)})]))
    damaged = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a"
    path.write_bytes(damaged[: data.draw(st.integers(0, len(sound)))])
    try:
        table = open_file_table("t", path, None)
    except (BadFile, InvalidArgument):
        return
    table.lookup(np.arange(table.row_count))
