"""The decoders of files: every format that is imported, and what a data dir itself consists of."""

import bz2
import io
import json
import lzma
import pickle
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
from backports import zstd
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from fuzz.target import Target
from gatherd.errors import BadFile, GatherdError
from gatherd.store.catalog import open_table, read_catalog, version_dir
from gatherd.store.checksums import encode_document, read_document
from gatherd.store.control import ControlPage
from gatherd.store.dtypes import DType
from gatherd.store.key_index import KeyIndex, KeyKind, StringKeys
from gatherd.store.keys import Keys
from gatherd_server.access.token_file import read_tokens
from gatherd_server.data_dir.verify import verify_version
from gatherd_server.loaders.batches import OnBadRow
from gatherd_server.loaders.limits import UnpackLimits
from gatherd_server.loaders.opening import OpenOptions, open_sources
from gatherd_server.snapshots.snapshot import decode_snapshot
from gatherd_server.storage.files import Files
from gatherd_server.storage.key_index_writer import KeyIndexBuilder, rebuild_slots
from loaders.test_fasttext import model as fasttext_model
from loaders.test_models import gguf, keyed_vectors
from loaders.test_packed import tarred
from loaders.test_torch import mapping, program, tensor, torch_file
from loaders.test_word2vec_binary import binary
from support.tables import drawn_table, make_data_dir

LIMITS = UnpackLimits(bytes_max=32 << 20)
ROWS = np.random.default_rng(5).normal(size=(6, 3)).astype(np.float32)
WORDS = [b"king", b"queen", "œuf".encode(), b"two words", b"x", b"y"]


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(w: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=w)
    return buffer.getvalue()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def text(header: bool) -> bytes:
    lines = [b"%d %d" % ROWS.shape] if header else []
    lines += [b" ".join([word, *(repr(float(x)).encode() for x in row)])
              for word, row in zip(WORDS, ROWS, strict=True)]  # fmt: skip
    return b"\n".join(lines) + b"\n"


def columnar(folder: Path) -> dict[str, bytes]:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(ROWS.reshape(-1)), 3)
    table = pa.table({"word": pa.array(WORDS, pa.binary()), "vector": vectors})
    found = {}
    writers: tuple[tuple[str, Callable[[Path], Any]], ...] = (
        ("parquet", lambda path: pa.parquet.write_table(table, path)),
        ("feather", lambda path: pa.feather.write_feather(table, path, compression="zstd")),
        ("arrow", lambda path: pa.feather.write_feather(table, path, compression="uncompressed")),
    )
    for name, write in writers:
        path = folder / name
        write(path)
        found[name] = path.read_bytes()
    return found


def hdf5(folder: Path) -> list[bytes]:
    found = []
    for number, options in enumerate(({}, {"chunks": (2, 2), "compression": "gzip"})):
        path = folder / f"{number}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("layers/embedding/0", data=ROWS, **options)
        found.append(path.read_bytes())
    return found


class Loader:
    """Reads a source as an import does, without writing the table.

    The bytes are put into the file `name` of `folder`, and all of it is read if `is_folder`.
    """

    def __init__(
        self, folder: Path, name: str = "source", is_folder: bool = False, **options: Any
    ) -> None:
        self._folder = folder
        self._path = folder / "model" / name
        self._source = self._path.parent if is_folder else self._path
        self._path.parent.mkdir()
        self._options = options
        self._numbers = count()

    @property
    def folder(self) -> Path:
        """Where the file is, for others to be put beside it."""
        return self._path.parent

    def read(self, data: bytes) -> tuple[NDArray[Any], DType, Any] | None:
        """Rows, their type and keys; None when the source is refused."""
        self._path.write_bytes(data)
        spooled = self._folder / "spooled"
        shutil.rmtree(spooled, ignore_errors=True)
        spooled.mkdir()

        def spool(name: str, chunks: Any) -> Path:
            copy = spooled / str(next(self._numbers))
            with open(copy, "wb") as file:
                file.writelines(chunks)
            return copy

        options = OpenOptions(spool, limits=LIMITS, **self._options)
        rows: list[NDArray[Any]] = []
        keys: list[Any] = []
        try:
            with open_sources([str(self._source)], options) as source:
                for batch in source.read():
                    assert batch.rows.shape[1] == source.dim
                    assert len(batch.numbers) == len(batch.rows)
                    rows.append(batch.rows.copy())
                    if batch.keys is not None:
                        assert batch.keys.size == len(batch.rows)
                        keys += batch.keys.tolist()
        except GatherdError:
            return None
        found = np.concatenate(rows) if rows else np.empty((0, source.dim), source.dtype.storage)
        assert source.row_count is None or len(found) == source.row_count
        assert (source.key_kind is None) == (not keys) or not len(found)
        return found, source.dtype, keys

    def check(self, data: bytes) -> None:
        """Right in its own terms."""
        self.read(data)


def npy_check(loader: Loader) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        found = loader.read(data)
        if found is None or not data.startswith(b"\x93NUMPY"):
            return
        expected = np.load(io.BytesIO(data), allow_pickle=False)
        np.testing.assert_array_equal(found[0].view(np.uint8), expected.view(np.uint8))

    return check


def safetensors_check(loader: Loader) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        found = loader.read(data)
        if found is None or data[8:9] != b"{":
            return
        try:
            tensors = load_safetensors(data)
        except Exception:  # noqa: BLE001  # it is stricter in some ways
            return
        (expected,) = tensors.values()
        assert found[0].tobytes() == expected.tobytes()

    return check


def text_check(loader: Loader) -> Callable[[bytes], None]:
    """Every number is what float() makes of the field it stands in."""

    def check(data: bytes) -> None:
        found = loader.read(data)
        if found is None or data[:2] in (b"\x1f\x8b", b"PK"):
            return
        rows, _, keys = found
        if not keys or data[:1] in b"#{" or any(mark in data for mark in b",;|"):
            return  # numbers alone, CSV, JSON Lines
        lines = [line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.split()]
        if len(lines) == len(rows) + 1:
            del lines[0]
        if len(lines) != len(rows):
            return  # word2vec binary
        for line, row, key in zip(lines, rows, keys, strict=True):
            fields = line.split()[-rows.shape[1] :]
            try:
                expected = [float(field) for field in fields]
            except ValueError:
                return  # word2vec binary
            np.testing.assert_array_equal(row, expected)
            assert key in line

    return check


# --- the data dir


class Index:
    """A key index with one file at a time changed."""

    def __init__(self, folder: Path, kind: KeyKind, keys: Keys) -> None:
        self.folder, self._keys = folder, keys
        folder.mkdir()
        with KeyIndexBuilder(Files(), folder, kind) as builder:
            builder.add(keys)
            builder.finish()
        self.whole = {path.name: path.read_bytes() for path in folder.iterdir()}

    def check(self, name: str, data: bytes) -> None:
        """A key finds its own row, or none, or the index is refused; so is its repair."""
        path = self.folder / name
        try:
            # Files are replaced, never changed in place: that would be SIGBUS, as documented.
            path.unlink()
            path.write_bytes(data)
            with suppress(BadFile):
                self._look()
            with suppress(GatherdError):
                rebuild_slots(Files(), self.folder)
                self._look()
        finally:
            for other, whole in self.whole.items():
                (self.folder / other).unlink(missing_ok=True)
                (self.folder / other).write_bytes(whole)

    def _look(self) -> None:
        index = KeyIndex.open(self.folder)
        if index is None:
            return
        kind_fits = isinstance(self._keys, StringKeys) == (index.kind is KeyKind.BYTES)
        if kind_fits:
            with suppress(GatherdError):
                rows = index.rows_of(self._keys)
                assert rows.shape == self._keys.shape
                found = np.flatnonzero(rows >= 0)
                asked = self._keys.tolist()
                stored = index.keys_of(rows[found]).tolist()
                assert stored == [asked[position] for position in found]
        index.verify()


def with_crc(data: bytes, indent: int = 1) -> bytes:
    """A JSON document whose checksum fits again, when it is one."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    if not isinstance(document, dict):
        return data
    try:
        return encode_document(document, indent)
    except RecursionError:
        return data


class DataDir:
    """A data dir with one file at a time changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        make_data_dir(path, drawn_table("t", 20, 3, init="uniform", optimizer="adam"))
        self.version = version_dir(path, "t", 1)

    def check(self, name: str, data: bytes) -> None:
        """What reads a data dir refuses it, or serves as many rows as it says."""
        path = self.path / name
        whole = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
        try:
            with suppress(GatherdError):
                ControlPage(self.path).close()
            with suppress(GatherdError):
                for table, entry in read_catalog(self.path).tables.items():
                    opened = open_table(self.path, table, entry.live)
                    vectors = opened.lookup(np.arange(opened.row_count)).vectors
                    assert vectors.shape == (opened.row_count, opened.dim)
            with suppress(GatherdError):
                for _ in verify_version(self.path, "t", 1):
                    pass
        finally:
            path.unlink()
            path.write_bytes(whole)


def snapshot_document() -> bytes:
    files = {"catalog.json": {"bytes": 5, "block_bytes": 4 << 20, "crc32": [zlib.crc32(b"x")]}}
    document: dict[str, Any] = {
        "format": 1, "lsn": 7, "created": "2026-01-01T00:00:00+00:00", "files": files,
    }  # fmt: skip
    return with_crc(json.dumps(document).encode())


def documents_check(folder: Path) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        path = folder / "document"
        path.write_bytes(data)
        for read in (
            lambda: decode_snapshot(data, "snapshot.json"),
            lambda: decode_snapshot(with_crc(data), "snapshot.json"),
            lambda: read_document(path),
            lambda: read_tokens(path),
        ):
            with suppress(GatherdError):
                read()

    return check


TOKENS = (
    b'# comment\n{"name": "ci", "sha256": "' + b"ab" * 32 + b'", "scopes": ["read"], '
    b'"tables": ["*"], "rate": 5, "concurrency": 3}\n'
)


def loader_targets(folder: Path) -> Iterator[Target]:
    def loader(**options: Any) -> Loader:
        own = folder / f"loader-{next(numbers)}"
        own.mkdir()
        return Loader(own, **options)

    numbers = count()
    tables = columnar(folder)
    half, wide = ROWS.astype(np.float16), ROWS.astype(np.float64)
    yield Target("npy", [npy(ROWS), npy(half), npy(wide)], npy_check(loader()))
    tensors = [save_safetensors({"w": rows}) for rows in (ROWS, half)]
    yield Target("safetensors", tensors, safetensors_check(loader()))
    yield Target("text", [text(False), text(True)], text_check(loader()))
    words = [word.replace(b" ", b"_") for word in WORDS]
    word2vec = [binary(words, ROWS), binary(words, ROWS, b"")]
    yield Target("word2vec binary", word2vec, loader().check)
    skipping = loader(on_bad_row=OnBadRow.SKIP)
    yield Target("word2vec binary, skipping", word2vec, skipping.check)
    yield Target("fastText", [fasttext_model()], loader().check)
    lines = [[word.decode(), *row] for word, row in zip(WORDS, ROWS.tolist(), strict=True)]
    records = [
        delimiter.join(map(str, line)) for delimiter in ",\t" for line in (["k", *"xyz"], *lines)
    ]
    csvs = ["\n".join(part).encode() for part in (records[:7], records[7:])]
    jsons = ["\n".join(json.dumps({"k": key, "v": row}) for key, *row in lines).encode()]
    yield Target("CSV and JSON Lines", csvs + jsons, loader(key_column="k").check)
    yield Target("CSV and JSON Lines, skipping", csvs + jsons,
                 loader(key_column="k", on_bad_row=OnBadRow.SKIP).check)  # fmt: skip
    streams = [pack(data) for pack in (bz2.compress, lzma.compress, zstd.compress)
               for data in (text(True), tarred({"v.txt": text(True)}))]  # fmt: skip
    yield Target("bzip2, xz, zstd", streams, loader().check)
    forms = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    tars = [tarred({"d/" * 60 + "é.txt": text(True)}, form)[:4096] for form in forms]
    yield Target("tar", tars, loader().check)
    packed = [npz(w=ROWS), zipped(**{"v.txt": text(True)})]
    packed += [zlib_gzip(data) for data in (text(False), npy(ROWS), zipped(**{"a.npy": npy(ROWS)}))]
    yield Target("npz, zip and gzip", packed, loader().check)
    path = folder / "torch"
    body = program(mapping({"embedding.weight": tensor()}))
    yield Target("torch", [torch_file(path, body).read_bytes()], loader().check)
    yield Target("hdf5", hdf5(folder), loader().check)
    yield Target("parquet", [tables["parquet"]], loader(key_column="word").check)
    yield Target("arrow", [tables["feather"], tables["arrow"]], loader(key_column="word").check)
    yield Target("gguf", [gguf()], loader(key_column="tokenizer.ggml.tokens").check)
    pickled = [pickle.dumps(np.asfortranarray(ROWS), 4), pickle.dumps(ROWS, 2)]
    yield Target("pickled arrays", pickled, loader().check)
    yield from model_targets(loader)
    keys = loader(keys=str(folder / "rows.keys"))

    def keys_check(data: bytes) -> None:
        (folder / "rows.keys").write_bytes(data)
        keys.check(npy(ROWS))

    named = [b"\n".join(WORDS) + b"\n", npy(np.arange(6)), zlib_gzip(b"\n".join(WORDS))]
    texts = [word.decode() for word in WORDS]
    vocabulary = {word: row for row, word in enumerate(texts)}
    added = [{"id": 5, "content": texts[5]}]
    tokenizer = {"model": {"vocab": [[word, 0.5] for word in texts]}, "added_tokens": added}
    named += [json.dumps(document).encode() for document in (texts, vocabulary, tokenizer)]
    named += [npy(np.array(texts)), b"k\tn\n" + b"".join(word + b"\t1\n" for word in WORDS)]
    yield Target("keys", named, keys_check)


def model_targets(loader: Callable[..., Loader]) -> Iterator[Target]:
    """Files that name others, each with one of those beside it."""
    texts = [word.decode() for word in WORDS]
    gensim = loader()
    np.save(gensim.folder / "source.vectors.npy", ROWS)
    attributes: list[dict[str, Any]] = [{"vectors": ROWS}, {"__numpys": ["vectors"]}]
    saved = [keyed_vectors({"index_to_key": texts, **part}) for part in attributes]
    yield Target("gensim", saved, gensim.check)
    table = "model.embed_tokens.weight"
    weights = save_safetensors({table: ROWS, "w": ROWS})
    files = {
        "model.safetensors.index.json": json.dumps(
            {"metadata": {"total_size": 1}, "weight_map": {table: "1.bin", "w": "1.bin"}}
        ).encode(),
        "config.json": json.dumps({"tie_word_embeddings": True}).encode(),
        "modules.json": json.dumps([{"idx": 0, "path": "."}, {"idx": 1, "path": "1"}]).encode(),
    }
    for name, data in files.items():
        model = loader(name=name, is_folder=True)
        for other, whole in {**files, "1.bin": weights}.items():
            (model.folder / other).write_bytes(whole)
        yield Target(f"model's folder: {name}", [data], model.check)
    yield Target("shards' index", [files["model.safetensors.index.json"]], loader().check)


def zlib_gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()


def data_dir_targets(folder: Path) -> Iterator[Target]:
    strings = StringKeys.of(WORDS)
    integers = np.array([0, -1, 7, 2**62, 99], np.int64)
    for index in (
        Index(folder / "strings", KeyKind.BYTES, strings),
        Index(folder / "integers", KeyKind.INT64, integers),
    ):
        for name, whole in index.whole.items():

            def check(data: bytes, index: Index = index, name: str = name) -> None:
                index.check(name, data)

            def check_json(data: bytes, index: Index = index, name: str = name) -> None:
                index.check(name, data)
                index.check(name, with_crc(data))

            title = f"key index, {index.folder.name}: {name}"
            yield Target(title, [whole], check_json if name.endswith("json") else check)
    data_dir = DataDir(folder / "data")
    version = data_dir.version.relative_to(data_dir.path)
    for name in ("catalog.json", "control", f"{version}/manifest.json", f"{version}/weights.npy",
                 f"{version}/seq", f"{version}/slot_m.npy"):  # fmt: skip
        if not (data_dir.path / name).exists():
            continue

        def check_file(data: bytes, name: str = name) -> None:
            data_dir.check(name, data)
            if name.endswith("json"):
                data_dir.check(name, with_crc(data))

        yield Target(
            f"data dir: {Path(name).name}", [(data_dir.path / name).read_bytes()], check_file
        )
    documents = [
        snapshot_document(),
        TOKENS,
        (data_dir.path / version / "manifest.json").read_bytes(),
    ]
    yield Target("snapshot.json, tokens and manifests", documents, documents_check(folder))


@contextmanager
def targets(folder: Path) -> Iterator[list[Target]]:
    """Those of this file; `folder` is theirs to write in."""
    yield [*loader_targets(folder), *data_dir_targets(folder)]
