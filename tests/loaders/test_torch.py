"""torch files are read without torch, and nothing in them is ever run.

The files here are written by hand, opcode by opcode; tests/peers has those that torch writes.
"""

import contextlib
import os
import pickle
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatherd.errors import BadFile, InvalidArgument
from gatherd_server.loaders import batches, strided
from gatherd_server.loaders.torch_pickle import read_tensors
from loaders.harness import run_import

ROWS = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def storage(key: str = "0", kind: str = "FloatStorage", count: int = 18) -> bytes:
    parts = (text("storage"), name("torch", kind), text(key), text("cpu"), number(count))
    return tuple_of(*parts) + b"Q"


def tensor(
    shape: tuple[int, ...] = (6, 3),
    strides: tuple[int, ...] = (3, 1),
    offset: int = 0,
    stored: bytes | None = None,
) -> bytes:
    arguments = tuple_of(
        stored if stored is not None else storage(),
        number(offset),
        tuple_of(*map(number, shape)),
        tuple_of(*map(number, strides)),
        b"\x89",
        name("collections", "OrderedDict") + b")R",
    )
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def mapping(items: dict[str, bytes], ordered: bool = True) -> bytes:
    start = name("collections", "OrderedDict") + b")R" if ordered else b"}"
    return start + b"(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def torch_file(
    path: Path, body: bytes, data: bytes = ROWS.tobytes(), packing: int = 0, order: str = "little"
) -> Path:
    with zipfile.ZipFile(path, "w", packing) as file:
        file.writestr("model/data.pkl", program(body))
        file.writestr("model/byteorder", order)
        file.writestr("model/data/0", data)
        file.writestr("model/version", "3\n")
    return path


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_tensor_of_a_state_dict_is_found_by_its_path(tmp_path: Path, packing: int) -> None:
    body = mapping(
        {"epoch": number(3), "state_dict": mapping({"emb.weight": tensor()}, ordered=True)},
        ordered=False,
    )
    path = torch_file(tmp_path / "m.pt", body, packing=packing)
    for source in (f"{path}#state_dict.emb.weight", str(path)):
        done = run_import(tmp_path / "d", source)
        np.testing.assert_array_equal(done.rows, ROWS)
    assert done.summary.format == "torch"


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(st.integers(0, 6), st.integers(1, 5)),
    strides=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    offset=st.integers(0, 8),
    batch_bytes=st.sampled_from([4, 16, 64, 4096]),
)
def test_every_view_of_a_storage_comes_in(
    tmp_path: Path,
    packing: int,
    shape: tuple[int, int],
    strides: tuple[int, int],
    offset: int,
    batch_bytes: int,
) -> None:
    flat = np.arange(64, dtype=np.float32)
    data = flat.tobytes()
    body = tensor(shape, strides, offset)
    path = torch_file(tmp_path / "m.pt", body, data, packing)
    expected = np.lib.stride_tricks.as_strided(flat[offset:], shape, [4 * s for s in strides])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "BATCH_BYTES", batch_bytes)
        patch.setattr(strided, "BATCH_BYTES", batch_bytes)
        patch.setattr(strided, "GAP_BYTES_MAX", batch_bytes // 2)
        done = run_import(tmp_path / "d", path)
    np.testing.assert_array_equal(done.rows, expected)


def test_a_row_that_is_repeated_for_ever_is_a_bomb(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "m.pt", tensor((2**31 - 1, 3), (0, 1)))
    with pytest.raises(BadFile, match=r"m.pt#tensor repeats its elements: 25769803764 bytes"):
        run_import(tmp_path / "d", path)


def test_the_tensor_has_to_be_named_when_there_are_several(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "m.pt", mapping({"a": tensor(), "b": tensor((18,), (1,))}))
    with pytest.raises(InvalidArgument, match=r"holds 2 tensors.*\n  a  float32 \(6, 3\)\n  b  fl"):
        run_import(tmp_path / "d", path)
    with pytest.raises(BadFile, match=r"#b has shape \(18,\)"):
        run_import(tmp_path / "d", f"{path}#b")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (tensor(stored=storage(kind="LongStorage")), "dtype int64; a table is of"),
        (tensor(stored=storage(kind="TrojanStorage")), "asks for torch.TrojanStorage"),
        (tensor((7, 3)), "ends at byte 84 of its storage, which has 72"),
        (tensor(offset=1), "ends at byte 76 of its storage"),
        (tensor(offset=-1), "is damaged"),
        (tensor((-6, 3)), "is damaged"),
        (tensor((6, 3), (3,)), "is damaged"),
        (tensor(stored=storage("1")), "model/data/1 isn't there"),
        (tensor(stored=storage("../../etc/passwd")), "isn't there"),
        (tensor(stored=number(3)), "a tensor is built from"),
        (number(3), "holds no tensor"),
        (mapping({}), "holds no tensor"),
        (b"]q\x00h\x00a", "deeper than 32"),
        (b"r\xff\xff\xff\x7f", "memo slot 2147483647"),
        (b"", "damaged pickle"),
        (b"(" * 100, "damaged pickle"),
        (b"N" + b"\x85" * 100_000, "deeper than 32"),
    ],
)
def test_a_file_that_lies_is_refused(tmp_path: Path, body: bytes, message: str) -> None:
    path = torch_file(tmp_path / "m.pt", body)
    with pytest.raises(BadFile, match=message):
        run_import(tmp_path / "d", path)


def memo(body: bytes) -> bytes:
    return body + b"q\x01"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        # A long list that each of many calls copies.
        (
            memo(b"](" + b"K\x01" * 4000 + b"e")
            + b"0" + (name("torch", "Size") + b"h\x01\x85R0") * 100 + b"N",
            "a shape is",
        ),
        (
            memo(b"}(" + b"".join(number(n) + b"N" for n in range(50_000)) + b"u")
            + b"0" + (name("collections", "OrderedDict") + b"h\x01\x85R0") * 100 + b"N",
            "copies more than 2000000 elements",
        ),
        (b"}0" * 2_000_001 + b"N", "makes more than 2000000 objects"),
        # What an error would show is as large as 2**60 lists.
        (
b"]q\x000" + b"".join(b"](h%ch%ceq%c0" % (n, n, n + 1) for n in range(60))
            + name("torch", "Size") + b"h<N\x86R",
            "a size is built from",
        ),
    ],
    ids=["sizes", "ordered dicts", "empty dicts", "doubling lists"],
)  # fmt: skip
def test_a_short_pickle_makes_no_large_object(tmp_path: Path, body: bytes, message: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadFile, match=message):
        read_tensors(program(body), "m.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_two_tensors_of_one_path_are_neither(tmp_path: Path) -> None:
    body = mapping({"a.b": tensor(), "a": mapping({"b": tensor((3, 3))}), "c": tensor((2, 3))})
    path = torch_file(tmp_path / "m.pt", body)
    with pytest.raises(BadFile, match=r"#a.b is a two tensors of this name; rename one"):
        run_import(tmp_path / "d", f"{path}#a.b")
    assert run_import(tmp_path / "d", f"{path}#c").table.row_count == 2


class Hostile:
    """Pickles to a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "function", [os.system, os.mkdir, eval, exec, getattr, __import__, pickle.loads, open, print]
)
def test_pickled_code_is_never_run(tmp_path: Path, function: Any, protocol: int) -> None:
    ran = tmp_path / "ran"
    argument = f"touch {ran}" if function is os.system else str(ran)
    data = pickle.dumps({"w": Hostile(function, argument)}, protocol)
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as file:
        file.writestr("model/data.pkl", data)
    with pytest.raises(BadFile, match=r"asks for .*, and pickled code is never run here"):
        run_import(tmp_path / "d", tmp_path / "m.pt")
    assert not ran.exists()


@pytest.mark.parametrize(
    "body",
    [
        # The opcodes that make instances of classes, and extensions.
        b"(ios\nsystem\n",
        b"(cos\nsystem\no",
        b"\x82\x01",
        # A dotted name that walks from a module that is allowed.
        b"\x80\x04\x8c\x0bcollections\x8c\x18OrderedDict.__init__.__a\x93",
        name("collections", "abc.sys"),
        # Attributes set on what stands for a function, or for a dtype.
        name("torch._utils", "_rebuild_tensor_v2") + b"}" + text("__call__") + number(1) + b"sb",
        name("torch", "float32") + b"N}" + text("value") + text("float16") + b"s\x86b",
        # A dict's own methods put away.
        name("torch", "FloatStorage") + b")R",
    ],
)
def test_no_way_around_the_list_of_names(tmp_path: Path, body: bytes) -> None:
    before = read_tensors(program(tensor()), "sound")
    with pytest.raises(BadFile):
        read_tensors(program(body), "hostile")
    assert read_tensors(program(tensor()), "sound") == before


def test_attributes_on_a_dict_change_nothing() -> None:
    state = b"}" + text("items") + number(1) + b"sb"
    found = read_tensors(program(mapping({"w": tensor()}) + state), "m.pt")
    assert list(found) == ["w"]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_damaged_pickle_is_read_or_refused_and_never_worse(data: st.DataObject) -> None:
    sound = program(mapping({"a": tensor(), "b": mapping({"c": tensor()}, ordered=False)}))
    damaged = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadFile):
        read_tensors(bytes(damaged[: data.draw(st.integers(0, len(sound)))]), "m.pt")


def test_other_ways_to_save_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
    with pytest.raises(BadFile, match=r"of before 1.6, .*torch.save\(state_dict"):
        run_import(tmp_path / "d", path)
    torch_file(path, tensor(), order="big")
    with pytest.raises(BadFile, match="big-endian"):
        run_import(tmp_path / "d", path)


def test_a_truncated_file_is_refused_at_every_byte(tmp_path: Path) -> None:
    whole = torch_file(tmp_path / "m.pt", tensor()).read_bytes()
    for length in range(0, len(whole), 3):
        (tmp_path / "m.pt").write_bytes(whole[:length])
        with pytest.raises(BadFile):
            run_import(tmp_path / "d", tmp_path / "m.pt")


def test_flipped_bits_of_the_rows_are_found(tmp_path: Path) -> None:
    whole = bytearray(torch_file(tmp_path / "m.pt", tensor()).read_bytes())
    whole[whole.index(ROWS.tobytes()) + 7] ^= 8
    (tmp_path / "m.pt").write_bytes(whole)
    with pytest.raises(BadFile, match="Bad CRC-32"):
        run_import(tmp_path / "d", tmp_path / "m.pt")
