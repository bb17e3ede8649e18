"""What is packed comes in as it would unpacked; bombs are stopped by a limit with a name."""

import bz2
import gzip
import io
import lzma
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gatherd.errors import BadFile, InvalidArgument
from gatherd_server.loaders.limits import UnpackLimits
from loaders.harness import run_import
from loaders.test_word2vec_binary import binary

TEXT = b"2 2\nking 1 2\nqueen 3 4\n"
ROWS = np.array([[1, 2], [3, 4]], np.float32)


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


BINARY = binary([b"king", b"queen"], ROWS)


@pytest.mark.parametrize("whole", [TEXT, BINARY])
def test_text_and_binary_come_in_from_gz_and_zip(tmp_path: Path, whole: bytes) -> None:
    for number, content in enumerate(
        [
            gzip.compress(whole),
            # A .gz may be of several members, one after the other.
            gzip.compress(whole[:10]) + gzip.compress(whole[10:]),
            zipped({"v.txt": whole}),
            gzip.compress(zipped({"v.txt": whole})),
            zipped({"v.txt.gz": gzip.compress(whole)}),
        ]
    ):
        path = tmp_path / f"{number}.packed"
        path.write_bytes(content)
        done = run_import(tmp_path / "d", path)
        np.testing.assert_array_equal(done.rows, ROWS)
        assert done.keys == [b"king", b"queen"]


def test_the_member_has_to_be_named_when_there_are_several(tmp_path: Path) -> None:
    path = tmp_path / "glove.zip"
    array = io.BytesIO()
    np.savez(array, w=ROWS, v=ROWS)
    path.write_bytes(zipped({"v.50d.txt": TEXT, "README": b"hello", "a.npz": array.getvalue()}))
    with pytest.raises(InvalidArgument, match=r"holds 3 members; .*\n  v.50d.txt  23 bytes"):
        run_import(tmp_path / "d", path)
    assert run_import(tmp_path / "d", f"{path}#v.50d.txt").keys == [b"king", b"queen"]
    assert run_import(tmp_path / "d", f"{path}#a.npz#w").table.row_count == 2
    with pytest.raises(InvalidArgument, match="has no member 'x'"):
        run_import(tmp_path / "d", f"{path}#x")
    with pytest.raises(InvalidArgument, match="has no parts"):
        run_import(tmp_path / "d", f"{path}#v.50d.txt#x")


@pytest.mark.parametrize("pack", [gzip.compress, lambda whole: zipped({"v.txt": whole})])
def test_a_truncated_file_is_refused_at_every_byte(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    whole = pack(TEXT)
    for length in range(len(whole)):
        (tmp_path / "v").write_bytes(whole[:length])
        with pytest.raises(BadFile):
            run_import(tmp_path / "d", tmp_path / "v")


def bomb() -> bytes:
    line = b"w" * 100 + b" 1" * 50 + b"\n"
    return b"".join(b"%d" % number + line for number in range(200_000))


@pytest.mark.parametrize("pack", [gzip.compress, lambda whole: zipped({"v.txt": whole})])
def test_a_bomb_is_stopped_by_its_ratio_and_its_size(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    path = tmp_path / "v"
    path.write_bytes(pack(bomb()))
    ratio = len(bomb()) / path.stat().st_size
    with pytest.raises(BadFile, match=r"times its size \(raise --unpacked-ratio-max"):
        run_import(tmp_path / "d", path, limits=UnpackLimits(ratio_max=int(ratio / 2)))
    with pytest.raises(BadFile, match=r"more than 30000000 bytes \(raise --unpacked-bytes-max"):
        run_import(tmp_path / "d", path, limits=UnpackLimits(30_000_000, 10_000))
    assert run_import(tmp_path / "d", path).table.row_count == 200_000


def test_a_bomb_in_a_bomb_is_stopped(tmp_path: Path) -> None:
    inner = gzip.compress(gzip.compress(gzip.compress(TEXT)))
    (tmp_path / "v").write_bytes(inner)
    with pytest.raises(BadFile, match="is packed more than 2 times over"):
        run_import(tmp_path / "d", tmp_path / "v")
    (tmp_path / "z").write_bytes(gzip.compress(zipped({"a.gz": gzip.compress(TEXT)})))
    with pytest.raises(BadFile, match="is packed more than 2 times over"):
        run_import(tmp_path / "d", tmp_path / "z")


def test_a_bomb_that_has_to_be_a_file_is_stopped_before_it_fills_the_disk(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(gzip.compress(b"PK\x03\x04" + bytes(40_000_000)))
    with pytest.raises(BadFile, match="times its size"):
        run_import(tmp_path / "d", tmp_path / "v")
    with pytest.raises(BadFile, match="more than 20000000 bytes"):
        run_import(tmp_path / "d", tmp_path / "v", limits=UnpackLimits(20_000_000, 5000))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bz2.compress(TEXT), "is packed by bzip2; unpack it first"),
        (lzma.compress(TEXT), "is packed by xz; unpack it first"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "is packed by zstd"),
        (b"\xba\x16\x4f\x2f" + bytes(20), r"is a fastText model \(\.bin\)"),
        (b"\x80\x04\x95" + bytes(20), "is a pickle, which is never run here"),
        (gzip.compress(b""), "is empty"),
        (zipped({}), "holds no member"),
        (b"PK\x03\x04 nothing", "damaged or packed in a way we don't read"),
    ],
)
def test_what_is_not_read_says_what_to_do(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "v").write_bytes(content)
    with pytest.raises(BadFile, match=message):
        run_import(tmp_path / "d", tmp_path / "v")


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    whole = bytearray(zipped({"v.txt": TEXT}))
    # The flag in the member's own header, and in the archive's directory.
    whole[6] |= 1
    whole[whole.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "v.zip").write_bytes(whole)
    with pytest.raises(BadFile, match=r"can't be read: .*encrypted"):
        run_import(tmp_path / "d", tmp_path / "v.zip")


def test_a_damaged_member_is_found(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(TEXT))
    whole[-6] ^= 1
    (tmp_path / "v.gz").write_bytes(whole)
    with pytest.raises(BadFile, match="CRC check failed"):
        run_import(tmp_path / "d", tmp_path / "v.gz")
