"""What fuzzing found stays found, and every decoder stands some inputs of it in each run."""

import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from starlette.datastructures import QueryParams

from fuzz.files import Loader, snapshot_document, with_crc
from fuzz.fuzz import all_targets, run_batch
from fuzz.log import checkpoint
from fuzz.target import Target
from gatherd.errors import BadFile, MalformedRequest
from gatherd.store.catalog import open_table, read_catalog, version_dir
from gatherd.store.checksums import read_document
from gatherd_server.http.media import NPY
from gatherd_server.http.rest import lookup_bodies
from gatherd_server.snapshots.snapshot import decode_snapshot
from gatherd_server.storage.records import unpack
from gatherd_server.writer.checkpoint import checkpoint_path, read_checkpoint
from loaders.harness import run_import
from support.small_engine import LIMITS
from support.tables import drawn_table, make_data_dir

EXAMPLES = 25
DEEP = b"[" * 100_000


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    with all_targets(tmp_path_factory.mktemp("fuzz")) as found:
        yield {target.name: target for target in found}


@pytest.mark.timeout(120)
def test_every_decoder_takes_what_is_whole_and_stands_what_is_not(
    targets: dict[str, Target],
) -> None:
    assert len(targets) > 30
    for target in targets.values():
        for data in target.seeds:
            target.check(data)
        run_batch(target, 1, EXAMPLES)


def test_a_zip_member_without_a_name_is_no_crash(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("ab", b"x 1 2\n")
    nameless = bytearray(buffer.getvalue())
    # The central directory's entry: its name's length becomes 0, its extra field's what that was.
    entry = nameless.index(b"PK\x01\x02")
    nameless[entry + 28 : entry + 32] = b"\0\0\2\0"
    (tmp_path / "f.zip").write_bytes(nameless)
    with pytest.raises(BadFile):
        run_import(tmp_path / "d", tmp_path / "f.zip")


def test_a_zip_member_whose_name_is_no_text_is_damage(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("wörd.txt", b"x 1 2\n")
    for place in (buffer.getvalue().index(b"w\xc3"), buffer.getvalue().rindex(b"w\xc3")):
        damaged = bytearray(buffer.getvalue())
        damaged[place + 2] = 0xFF
        (tmp_path / "f.zip").write_bytes(damaged)
        with pytest.raises(BadFile):
            run_import(tmp_path / "d", tmp_path / "f.zip")


@pytest.mark.parametrize("member", [b'"lsn": 7', b'"format": 1'])
def test_a_number_beyond_all_is_a_damaged_snapshot(member: bytes) -> None:
    whole = snapshot_document()
    assert decode_snapshot(whole, "s").lsn == 7
    endless = whole.replace(member, member[:-1] + b"1e999")
    with pytest.raises(BadFile, match="can't be read as a snapshot's"):
        decode_snapshot(with_crc(endless), "s")


def test_a_number_beyond_all_is_a_damaged_catalog_or_manifest(tmp_path: Path) -> None:
    make_data_dir(tmp_path, drawn_table("t", 2, 2))
    manifest = version_dir(tmp_path, "t", 1) / "manifest.json"
    endless = manifest.read_bytes().replace(b'"rows": 2', b'"rows": 1e999')
    manifest.write_bytes(with_crc(endless))
    with pytest.raises(BadFile, match=r"manifest\.json is damaged"):
        open_table(tmp_path, "t", 1)
    catalog = tmp_path / "catalog.json"
    endless = catalog.read_bytes().replace(b'"live": 1', b'"live": 1e999')
    catalog.write_bytes(with_crc(endless, 2))
    with pytest.raises(BadFile, match=r"catalog\.json is damaged"):
        read_catalog(tmp_path)


def test_a_parquet_footer_never_makes_fewer_or_more_rows_of_a_file(tmp_path: Path) -> None:
    rows = np.arange(60, dtype=np.float32).reshape(20, 3)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 3)
    pa.parquet.write_table(pa.table({"vector": vectors}), tmp_path / "whole", row_group_size=7)
    whole = (tmp_path / "whole").read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    (tmp_path / "read").mkdir()
    loader = Loader(tmp_path / "read")
    refused = 0
    for position in range(footer, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        # It asserts that there are as many rows as were announced.
        found = loader.read(bytes(damaged))
        refused += found is None
        assert found is None or len(found[0]) == 20
    assert 20 < refused < len(whole) - footer


@pytest.mark.parametrize("shape", [b"[-1]", b"[9223372036854775808]", b"[true]", b"[1e3]", b"7"])
def test_an_array_of_no_possible_shape_is_a_damaged_record(shape: bytes) -> None:
    directory = b'{"arrays":[["<f4",' + shape + b"]]}"
    head = len(directory).to_bytes(4, "little") + directory
    with pytest.raises(BadFile, match="a record is damaged"):
        unpack(memoryview(head + bytes(64)), "a record")


def test_a_checkpoint_that_says_nothing_under_a_right_checksum_is_damaged(tmp_path: Path) -> None:
    checkpoint_path(tmp_path).parent.mkdir()
    whole = checkpoint()
    for old, new in (
        (b'"sessions"', b'"session."'),
        (b'"keys"', b'"key."'),
        (b"[[1,2]]", b"[[1,{]]"),
    ):
        body = whole[24:].replace(old, new, 1)
        assert body != whole[24:]
        crc = zlib.crc32(body, zlib.crc32(whole[:16])).to_bytes(4, "little")
        checkpoint_path(tmp_path).write_bytes(whole[:16] + crc + bytes(4) + body)
        with pytest.raises(BadFile, match="is damaged"):
            read_checkpoint(tmp_path)


def test_json_of_any_depth_is_a_damaged_file(tmp_path: Path) -> None:
    make_data_dir(tmp_path, drawn_table("t", 2, 2))
    manifest = version_dir(tmp_path, "t", 1) / "manifest.json"
    manifest.write_bytes(DEEP)
    with pytest.raises(BadFile, match=r"manifest\.json is damaged"):
        open_table(tmp_path, "t", 1)
    with pytest.raises(BadFile, match=r"manifest\.json is damaged"):
        read_document(manifest)
    (tmp_path / "catalog.json").write_bytes(DEEP)
    with pytest.raises(BadFile, match=r"catalog\.json is damaged"):
        read_catalog(tmp_path)


def test_an_npy_header_has_the_blanks_that_numpy_takes_and_no_others() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(6))
    header = buffer.getvalue().replace(b"}  ", b"}\xa0 ", 1)
    newer = buffer.getvalue()[:6] + b"\x01\x01" + header[8:]
    with pytest.raises(MalformedRequest, match=r"is of version \(1, 1\)"):
        lookup_bodies.lookup_of(NPY, "words", newer, QueryParams(), LIMITS)
    with pytest.raises(ValueError, match="Cannot parse header"):
        np.load(io.BytesIO(header))
    with pytest.raises(MalformedRequest, match="header is damaged"):
        lookup_bodies.lookup_of(NPY, "words", header, QueryParams(), LIMITS)
