"""What is packed comes in as it would unpacked; bombs are stopped by a limit with a name."""

import bz2
import gzip
import io
import lzma
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from backports import zstd

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


def tarred(members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


PACKS: list[Callable[[bytes], bytes]] = [
    gzip.compress,
    bz2.compress,
    lzma.compress,
    zstd.compress,
    lambda whole: zipped({"v.txt": whole}),
    lambda whole: tarred({"v.txt": whole}),
]
IDS = ["gzip", "bzip2", "xz", "zstd", "zip", "tar"]


@pytest.mark.parametrize("pack", PACKS, ids=IDS)
@pytest.mark.parametrize("whole", [TEXT, BINARY, b"".join(b"w%d 1 2\n" % i for i in range(9999))])
def test_what_is_packed_comes_in_as_it_would_unpacked(
    tmp_path: Path, whole: bytes, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "v").write_bytes(whole)
    expected = run_import(tmp_path / "d", tmp_path / "v")
    packed = {"v.packed": pack(whole), "v.twice": gzip.compress(pack(whole))}
    if pack in PACKS[:4]:
        # Of several frames, one after the other.
        packed["v.frames"] = pack(whole[:10]) + pack(whole[10:])
        packed["v.tar.packed"] = pack(tarred({"v.txt": whole}))
        packed["v.zip"] = zipped({"v": pack(whole)})
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
        done = run_import(tmp_path / "d", tmp_path / name)
        assert done.keys == expected.keys
        np.testing.assert_array_equal(done.rows, expected.rows)
        assert done.summary.format == expected.summary.format


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["v", "a/b/v.txt", "x" * 150, "y/" * 120 + "é"])
def test_a_tar_is_read_in_every_form(tmp_path: Path, form: int, name: str) -> None:
    path = tmp_path / "v.tar"
    try:
        path.write_bytes(tarred({"._v": b"mac", name: TEXT}, form))
    except ValueError:
        assert form == tarfile.USTAR_FORMAT  # has no such long names
        return
    # Also where a bad row may be skipped: no header of the archive is a row.
    for on_bad_row in ("error", "skip"):
        done = run_import(tmp_path / "d", path, on_bad_row=on_bad_row)
        assert done.keys == [b"king", b"queen"]
        assert done.summary.bad_rows == 0
    path.write_bytes(tarred({"README": b"hello", name: TEXT, "z": TEXT}, form))
    with pytest.raises(InvalidArgument, match=r"holds 3 members; .*\n  README  5 bytes\n"):
        run_import(tmp_path / "d", path)
    assert run_import(tmp_path / "d", f"{path}#{name}").keys == [b"king", b"queen"]
    with pytest.raises(InvalidArgument, match="has no member 'x'"):
        run_import(tmp_path / "d", f"{path}#x")


def test_links_and_folders_of_a_tar_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "src/sub").mkdir(parents=True)
    (tmp_path / "src/sub/v").write_bytes(TEXT)
    (tmp_path / "src/link").symlink_to("sub/v")
    (tmp_path / "src/hard").hardlink_to(tmp_path / "src/sub/v")
    with tarfile.open(tmp_path / "v.tar.xz", "w:xz") as file:
        for name in ("sub", "sub/v", "link", "hard"):
            file.add(tmp_path / "src" / name, name, recursive=False)
    assert run_import(tmp_path / "d", tmp_path / "v.tar.xz").keys == [b"king", b"queen"]


def test_a_damaged_tar_is_refused(tmp_path: Path) -> None:
    whole = bytearray(tarred({"v": TEXT, "w": TEXT}))
    whole[1024 + 5] ^= 1
    (tmp_path / "v.tar").write_bytes(whole)
    with pytest.raises(BadFile, match="is damaged: no tar header at byte 1024"):
        run_import(tmp_path / "d", f"{tmp_path}/v.tar#v")
    info = tarfile.TarInfo("v")
    info.pax_headers = {"comment": "x" * (2 << 20)}
    (tmp_path / "v.tar").write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    with pytest.raises(BadFile, match=r"has a header of .* bytes; 1048576 are read at most"):
        run_import(tmp_path / "d", tmp_path / "v.tar")


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


@pytest.mark.parametrize("pack", PACKS, ids=IDS)
def test_a_truncated_file_is_refused_at_every_byte(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    # Of the zeros that end a tar one block is enough.
    whole = pack(TEXT)[:1536]
    # What is shorter than a tar's header can't be told from text.
    is_tar = whole.startswith(b"v.txt")
    for length in range(512 if is_tar else 0, len(whole), 7 if is_tar else 1):
        (tmp_path / "v").write_bytes(whole[:length])
        with pytest.raises(BadFile):
            run_import(tmp_path / "d", tmp_path / "v")


def bomb() -> bytes:
    line = b"w" * 100 + b" 1" * 50 + b"\n"
    return b"".join(b"%d" % number + line for number in range(200_000))


@pytest.mark.parametrize("pack", [PACKS[0], PACKS[4]], ids=["gzip", "zip"])
def test_a_bomb_is_stopped_by_its_ratio_and_its_size(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "v"
    path.write_bytes(pack(bomb()))
    ratio = len(bomb()) / path.stat().st_size
    with pytest.raises(BadFile, match=r"times its size \(raise --unpacked-ratio-max"):
        run_import(tmp_path / "d", path, limits=UnpackLimits(ratio_max=int(ratio / 2)))
    with pytest.raises(BadFile, match=r"more than 30000000 bytes \(raise --unpacked-bytes-max"):
        run_import(tmp_path / "d", path, limits=UnpackLimits(30_000_000, 10_000))
    assert run_import(tmp_path / "d", path).table.row_count == 200_000


@pytest.mark.parametrize("pack", PACKS[1:4], ids=IDS[1:4])
def test_a_bomb_of_any_packing_is_stopped(
    tmp_path: Path, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatherd_server.loaders.streams.RATIO_FREE_BYTES", 1 << 16)
    (tmp_path / "v").write_bytes(pack(bomb()[: 2 << 20]))
    with pytest.raises(BadFile, match=r"times its size \(raise --unpacked-ratio-max"):
        run_import(tmp_path / "d", tmp_path / "v", limits=UnpackLimits(ratio_max=3))
    with pytest.raises(BadFile, match=r"more than 1000000 bytes \(raise --unpacked-bytes-max"):
        run_import(tmp_path / "d", tmp_path / "v", limits=UnpackLimits(1_000_000, 100_000))


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
        (b"\x04\x22\x4d\x18" + bytes(20), "is packed by lz4; unpack it first"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(20), "is a 7z archive; unpack it first"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 20, "is damaged, or packed in a way we don't read"),
        (bz2.compress(TEXT) + b"x", "is damaged, or packed in a way we don't read"),
        (b"\x80\x04\x95" + bytes(20), "has a damaged pickle"),
        (gzip.compress(b"", mtime=0), "is empty"),
        (zipped({}), "holds no member"),
        (b"PK\x03\x04 nothing", "damaged or packed in a way we don't read"),
    ],
)
def test_what_is_not_read_says_what_to_do(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "v").write_bytes(content)
    with pytest.raises(BadFile, match=message):
        run_import(tmp_path / "d", tmp_path / "v")


def test_xz_that_wants_too_much_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 512 << 20}]
    (tmp_path / "v.xz").write_bytes(lzma.compress(TEXT, filters=filters))
    with pytest.raises(BadFile, match="takes more memory to unpack than 256 MiB"):
        run_import(tmp_path / "d", tmp_path / "v.xz")


def test_zstd_that_wants_too_much_memory_is_refused(tmp_path: Path) -> None:
    options = {int(zstd.CompressionParameter.window_log): 28}
    # Of unknown length, or the window would be the file's.
    packer = zstd.ZstdCompressor(options=options)
    (tmp_path / "v.zst").write_bytes(packer.compress(TEXT) + packer.flush())
    with pytest.raises(BadFile, match="a window of 128 MiB"):
        run_import(tmp_path / "d", tmp_path / "v.zst")


def test_zstd_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    (tmp_path / "v.zst").write_bytes(zstd.compress(TEXT))
    with pytest.raises(InvalidArgument, match=r"pip install 'gatherd\[formats\]'"):
        run_import(tmp_path / "d", tmp_path / "v.zst")


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
