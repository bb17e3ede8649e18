"""local: on a data dir written by hand."""

import asyncio
import json
import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gatherd import (
    AsyncClient,
    BadFile,
    Client,
    ClientClosed,
    DataDirVersion,
    IdOutOfRange,
    InvalidArgument,
    KeyNotFound,
    NoKeys,
    TableNotFound,
    TableRefused,
    VersionNotFound,
)
from gatherd.store.catalog import CATALOG_NAME, Catalog, CatalogEntry, version_dir
from gatherd.store.checksums import encode_document
from gatherd.store.control import CONTROL_NAME, GENERATION_OFFSET, initial_page
from gatherd.store.key_index import KeyKind
from gatherd.store.keys import as_keys
from gatherd_server.storage.files import Files
from gatherd_server.storage.key_index_writer import KeyIndexBuilder

RNG = np.random.default_rng(5)
WORDS = RNG.standard_normal((300, 8), np.float32)


class DataDir:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = 0
        self.entries: dict[str, CatalogEntry] = {}
        (path / CONTROL_NAME).write_bytes(initial_page())
        self.publish()

    def write(
        self, name: str, version: int, rows: Any, default: Any = None, keys: Any = None
    ) -> None:
        folder = version_dir(self.path, name, version)
        folder.mkdir(parents=True)
        dtype = rows.dtype.name
        np.save(folder / "weights.npy", rows)
        if default is not None:
            np.save(folder / "default.npy", default)
        if keys is not None:
            kind = KeyKind.BYTES if isinstance(keys[0], str) else KeyKind.INT64
            with KeyIndexBuilder(Files(), folder, kind) as builder:
                builder.add(as_keys(keys))
                builder.finish()
        manifest = {"format": 1, "uid": name, "name": name, "version": version, "dtype": dtype,
                    "rows": rows.shape[0], "dim": rows.shape[1]}  # fmt: skip
        (folder / "manifest.json").write_bytes(encode_document(manifest))

    def publish(self, *older: int, **live: int) -> None:
        for name, version in live.items():
            self.entries[name] = CatalogEntry(name, version, (*older, version))
        self.generation += 1
        document = Catalog(self.generation, self.entries).to_json()
        temporary = self.path / "catalog.new"
        temporary.write_text(json.dumps(document))
        temporary.rename(self.path / CATALOG_NAME)
        with open(self.path / CONTROL_NAME, "r+b") as control:
            control.seek(GENERATION_OFFSET)
            control.write(struct.pack("<Q", self.generation))


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    data = DataDir(tmp_path)
    words = [f"word{row}" for row in range(300)]
    data.write("words", 1, WORDS, default=np.arange(8, dtype=np.float32), keys=words)
    data.write("brain", 1, WORDS.astype(ml_dtypes.bfloat16), keys=[n * 5 for n in range(300)])
    data.publish(words=1, brain=1)
    return data


def test_lookups_read_the_files(data: DataDir) -> None:
    with Client(f"local:{data.path}") as client:
        for ids in (3, [], [[4], [20]], np.arange(6, dtype=">u2")[::-2]):
            found = client.lookup("words", ids)
            np.testing.assert_array_equal(found, WORDS[np.asarray(ids, np.intp)])
            assert found.flags.writeable
        out = np.empty((2, 8), np.float16)
        assert client.lookup("words", [1, 2], dtype="float16", out=out) is out
        np.testing.assert_array_equal(out, WORDS[[1, 2]].astype(np.float16))
        many = client.lookup_many({"words": [1], "brain": [2]})
        np.testing.assert_array_equal(many["words"], WORDS[[1]])


@pytest.mark.parametrize("table", ["words", "brain"])
@pytest.mark.parametrize("missing", ["zero", "default"])
def test_bfloat16_is_rounded_alike_however_it_is_asked_for(
    data: DataDir, table: str, missing: Any
) -> None:
    ids = [7, 1000, 8]
    with Client(f"local:{data.path}") as client:
        wide = client.lookup(table, ids, dtype="bfloat16", missing=missing)
        narrow = client.lookup(table, ids, dtype=ml_dtypes.bfloat16, missing=missing)
        assert wide.dtype == np.float32
        assert narrow.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(wide, narrow.astype(np.float32))
        np.testing.assert_array_equal(narrow[0], WORDS[7].astype(ml_dtypes.bfloat16))
        for dtype in ("bfloat16", ml_dtypes.bfloat16):
            out = np.empty_like(wide if dtype == "bfloat16" else narrow)
            assert client.lookup(table, ids, dtype=dtype, missing=missing, out=out) is out
            np.testing.assert_array_equal(out.astype(np.float32), wide)


def test_missing_ids(data: DataDir) -> None:
    with Client(f"local:{data.path}") as client:
        with pytest.raises(IdOutOfRange, match=r"ids\[1\]=300 is out of range"):
            client.lookup("words", [1, 300])
        vectors, status = client.lookup("words", [1, -1], missing="default", return_status=True)
        np.testing.assert_array_equal(vectors[1], np.arange(8))
        np.testing.assert_array_equal(status, [0, 1])
        _, status = client.lookup("words", [[1]], return_status=True)
        np.testing.assert_array_equal(status, [[0]])


def test_a_publish_is_seen_at_the_next_call(data: DataDir) -> None:
    with Client(f"local:{data.path}") as client:
        before = client.table("words")
        np.testing.assert_array_equal(client.lookup("words", [1]), WORDS[[1]])
        data.write("words", 2, -WORDS[:10])
        np.testing.assert_array_equal(client.lookup("words", [1]), WORDS[[1]])
        data.publish(words=2)
        np.testing.assert_array_equal(client.lookup("words", [1]), -WORDS[[1]])
        assert (before.version, client.table("words").version) == (1, 2)
        del data.entries["words"]
        data.publish()
        with pytest.raises(TableNotFound):
            client.lookup("words", [1])
        assert [table.name for table in client.tables()] == ["brain"]


def test_kept_versions_can_be_asked_for(data: DataDir) -> None:
    words = [f"other{row}" for row in range(300)]
    data.write("words", 2, -WORDS, keys=words)
    data.publish(1, words=2)
    with Client(f"local:{data.path}") as client:
        for version, rows, key in ((None, -WORDS, "other4"), (1, WORDS, "word4")):
            np.testing.assert_array_equal(client.lookup("words", [4], version=version), rows[[4]])
            found = client.lookup("words", keys=[key], version=version)
            np.testing.assert_array_equal(found, rows[[4]])
            found = client.lookup_bags("words", [[4, 5]], mode="sum", version=version)
            np.testing.assert_allclose(found, rows[[4]] + rows[[5]], rtol=1e-6)
            assert client.keys_of("words", [4], version=version).tolist() == [key]
        for call in (client.lookup, client.keys_of):
            with pytest.raises(VersionNotFound, match="no version 3; it has 1, 2; version 2 is"):
                call("words", [1], version=3)
        info = client.table("words")
        assert (info.version, info.versions, info.lsn) == (2, (1, 2), 0)


def test_unknown_tables_are_answered_with_those_there_are(data: DataDir) -> None:
    with Client(f"local:{data.path}") as client:
        for call in (lambda: client.lookup("nope", [1]), lambda: client.table("nope")):
            with pytest.raises(TableNotFound, match=r"no table 'nope'; there are: brain, words"):
                call()
        with pytest.raises(InvalidArgument, match="has dim 8"):
            client.lookup("words", [1], out=np.empty((1, 9), np.float32))


def test_a_damaged_table_is_refused_and_the_others_go_on(data: DataDir) -> None:
    os.truncate(version_dir(data.path, "brain", 1) / "weights.npy", 200)
    with Client(f"local:{data.path}") as client:
        with pytest.raises(TableRefused, match=r"weights\.npy"):
            client.lookup("brain", [1])
        brain, words = client.tables()
        assert brain.refused
        assert not words.refused
        np.testing.assert_array_equal(client.lookup("words", [1]), WORDS[[1]])


def test_a_path_that_is_no_data_dir_is_a_clear_error(data: DataDir, tmp_path: Path) -> None:
    with Client(f"local:{tmp_path}/nowhere") as client, pytest.raises(BadFile, match="control"):
        client.tables()
    (data.path / CATALOG_NAME).write_text('{"format": 99}')
    with Client(f"local:{data.path}") as client, pytest.raises(DataDirVersion, match="99"):
        client.tables()


def test_a_closed_client_says_so(data: DataDir) -> None:
    client = Client(f"local:{data.path}")
    client.lookup("words", [1])
    client.close()
    with pytest.raises(ClientClosed):
        client.lookup("words", [1])


def test_the_awaited_client_reads_short_and_long_lookups(data: DataDir) -> None:
    async def main() -> None:
        async with AsyncClient(f"local:{data.path}") as client:
            short, ids = [1, 2], RNG.integers(0, 300, 20_000)
            found = await asyncio.gather(client.lookup("words", short), client.lookup("words", ids))
            np.testing.assert_array_equal(found[0], WORDS[short])
            np.testing.assert_array_equal(found[1], WORDS[ids])
            with pytest.raises(IdOutOfRange):
                await client.lookup("words", np.full(20_000, 300))
            assert (await client.tables())[1].rows == 300

    asyncio.run(main())


def test_rows_by_key_and_keys_by_row(data: DataDir) -> None:
    data.write("plain", 1, WORDS)
    data.publish(plain=1)
    with Client(f"local:{data.path}") as client:
        found = client.lookup("words", keys=[["word3"], ["word299"]])
        np.testing.assert_array_equal(found, WORDS[[[3], [299]]])
        many = client.lookup_many({"words": [1]}, keys={"brain": [10, 0]}, dtype="bfloat16")
        brain = WORDS[[2, 0]].astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(many["brain"], brain)
        vectors, status = client.lookup(
            "words", keys=["word1", "no"], missing="default", return_status=True
        )
        np.testing.assert_array_equal(vectors, [WORDS[1], np.arange(8)])
        np.testing.assert_array_equal(status, [0, 1])
        words = client.keys_of("words", [[4, 5]])
        assert words.tolist() == [["word4", "word5"]]
        np.testing.assert_array_equal(client.keys_of("brain", [4, 5]), [20, 25])
        with pytest.raises(KeyNotFound, match=r"keys\[1\]='no'"):
            client.lookup("words", keys=["word1", "no"])
        with pytest.raises(InvalidArgument, match="strings"):
            client.lookup("words", keys=[1])
        with pytest.raises(IdOutOfRange):
            client.keys_of("words", [300])
        with pytest.raises(NoKeys):
            client.lookup("plain", keys=["a"])
        with pytest.raises(NoKeys):
            client.keys_of("plain", [0])
        infos = {info.name: info for info in client.tables()}
        assert [infos[name].key_kind for name in ("words", "brain", "plain")] == [
            "bytes", "int64", "",
        ]  # fmt: skip
        assert infos["words"].rows_bytes == WORDS.nbytes
        assert infos["words"].keys_bytes > sum(len(f"word{row}") for row in range(300))
        assert 0 <= infos["words"].resident_bytes <= WORDS.nbytes
        assert infos["plain"].keys_bytes == 0


def test_bags_are_pooled_from_the_files(data: DataDir) -> None:
    bags = [[1, 2, 2], [], [299]]
    expected = np.zeros((3, 8), np.float32)
    expected[0], expected[2] = WORDS[[1, 2, 2]].mean(axis=0), WORDS[299]
    named = [[f"word{row}" for row in bag] for bag in bags]
    with Client(f"local:{data.path}") as client:
        for found in (
            client.lookup_bags("words", bags),
            client.lookup_bags("words", [1, 2, 2, 299], [0, 3, 3]),
            client.lookup_bags("words", keys=named),
            client.lookup_bags_many(keys={"words": named})["words"],
            client.lookup_bags("words", bags, out=np.empty((3, 8), np.float32)),
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        exact = client.lookup_bags("words", bags)
        for dtype in ("bfloat16", ml_dtypes.bfloat16):
            low = client.lookup_bags("words", bags, dtype=dtype)
            rounded = exact.astype(ml_dtypes.bfloat16).astype(np.float32)
            np.testing.assert_array_equal(low.astype(np.float32), rounded)
            out = np.empty_like(low)
            assert client.lookup_bags("words", bags, dtype=dtype, out=out) is out
            np.testing.assert_array_equal(out, low)
        found, status = client.lookup_bags(
            "words", [[1, 900, -1]], missing="skip", padding_id=-1, return_status=True
        )
        np.testing.assert_array_equal(found, WORDS[[1]])
        np.testing.assert_array_equal(status, [0, 1, 0])
        weighted = client.lookup_bags("words", [[1, 2]], mode="sum", weights=[[2, 0]])
        np.testing.assert_array_equal(weighted, 2 * WORDS[[1]])
        with pytest.raises(IdOutOfRange):
            client.lookup_bags("words", [[300]])


def test_the_awaited_client_reads_keys_and_bags(data: DataDir) -> None:
    async def main() -> None:
        async with AsyncClient(f"local:{data.path}") as client:
            for _ in range(2):
                found = await client.lookup_bags("words", keys=[["word1", "word1"]])
                np.testing.assert_allclose(found, WORDS[[1]], rtol=1e-6)
                assert (await client.keys_of("brain", [2])).tolist() == [10]

    asyncio.run(main())
