"""`gatherd export`: a table's rows, and keys, in a file that other programs read.

    .npy           the rows; bfloat16 as V2, as ml_dtypes saves it
    .safetensors   the rows, as a tensor called like the table
    .bin           word2vec binary: a line "ROWS DIM", then key, blank, float32, line feed
    .vec, .txt     word2vec text: a line "ROWS DIM", then a line a row: key and decimals, the
                   shortest that give the same float32

The first two have no place for keys. Keys go to OUT.keys, a line each, or, if they are integers, to
OUT.keys.npy; `gatherd import --keys` reads either.

Rows are asked for in chunks, all of one version, so that memory stays bounded. The rows of a live,
trainable version change meanwhile: each row is whole, but the rows may be of several LSNs. For rows
of one LSN, export from a snapshot or a superseded version.
"""

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np
import orjson
from numpy.typing import NDArray

from gatherd import Client, TableInfo
from gatherd.errors import AlreadyExists, BadFile, InvalidArgument, StorageError
from gatherd.store.dtypes import REPLY_DTYPES, DType
from gatherd.store.format import npy_header
from gatherd_server.cli.progress import Progress
from gatherd_server.cli.target import CommandTarget, target_options
from gatherd_server.cli.typed import TABLE
from gatherd_server.storage.files import Files
from gatherd_server.storage.table_writer import NPY_DESCR

CHUNK_BYTES = 4 << 20
EXPORT_SECONDS_MAX = 60.0
KEYS_SUFFIX = ".keys"
PARTIAL_SUFFIX = ".partial"

_TENSOR_DTYPES = {DType.FLOAT32: "F32", DType.FLOAT16: "F16", DType.BFLOAT16: "BF16"}
# The bytes that separate keys from numbers in word2vec's files, or end a line.
_BLANKS = b" \t\n\r\v\f"


class Format(Enum):
    """The format of a file."""

    NPY = "npy"
    SAFETENSORS = "safetensors"
    WORD2VEC_BINARY = "word2vec-binary"
    WORD2VEC_TEXT = "word2vec-text"


_SUFFIXES = {
    ".npy": Format.NPY,
    ".safetensors": Format.SAFETENSORS,
    ".bin": Format.WORD2VEC_BINARY,
    ".vec": Format.WORD2VEC_TEXT,
    ".txt": Format.WORD2VEC_TEXT,
}


@click.command()
@click.argument("table", type=TABLE)
@click.argument("out", type=click.Path(path_type=Path))
@target_options
@click.option("--version", type=click.IntRange(1), help="Instead of the live one.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice([member.value for member in Format]),
    help="By default what the suffix says: .npy, .safetensors, .bin, .vec or .txt.",
)
@click.option(
    "--dtype",
    type=click.Choice([dtype.value for dtype in REPLY_DTYPES]),
    help="By default that of the live version for it, and float32 else.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT where it is there.")
def export(
    table: str,
    out: Path,
    target: CommandTarget,
    version: int | None,
    file_format: str | None,
    dtype: str | None,
    overwrite: bool,
) -> None:
    """Write the rows of TABLE, and its keys, to the file OUT.

    \b
        gatherd export words words.npy --data-dir ./data
        gatherd export words words.vec --version 3
        gatherd export words words.safetensors --dtype float16 --url http://127.0.0.1:8000

    .npy and .safetensors leave the keys to OUT.keys, or OUT.keys.npy for integers, which
    `gatherd import --keys` reads.
    """
    kind = _format(out, file_format)
    with target.connect(timeout=EXPORT_SECONDS_MAX) as client:
        source = _Source(client, client.table(table), version, _dtype_given(kind, dtype))
        with ExitStack() as stack:
            if kind in (Format.WORD2VEC_BINARY, Format.WORD2VEC_TEXT):
                if not source.key_kind:
                    raise InvalidArgument(
                        f"table {table!r} has no keys, which {kind.value} is made of; "
                        "export it to .npy or .safetensors"
                    )
                written = [_write(stack, out, overwrite, _WRITERS[kind], source)]
            else:
                written = [_write(stack, out, overwrite, _WRITERS[kind], source)]
                if source.key_kind:
                    written.append(_write_keys(stack, out, overwrite, source))
            files = Files()
            for path in written:
                files.rename(_partial(path), path)
    rows = f"{source.row_count} rows of {source.dim} {source.dtype.value}"
    click.echo(f"{' and '.join(map(str, written))}: {rows}, version {source.version} of {table}")


class _Source:
    """One version of a table, read in chunks."""

    def __init__(
        self, client: Client, info: TableInfo, version: int | None, dtype: DType | None
    ) -> None:
        if info.refused:
            raise BadFile(f"table {info.name!r} can't be read: {info.refused}")
        is_live = version in (None, info.version)
        self.name = info.name
        self.version = version or info.version
        self.dim = info.dim
        self.key_kind = info.key_kind
        self._client = client
        stored = DType(info.dtype)
        if dtype is None and is_live:
            if stored not in REPLY_DTYPES:
                raise InvalidArgument(
                    f"table {info.name!r} is {stored.value}, which lookups don't answer in; "
                    "say --dtype float32 to have its rows rounded"
                )
            dtype = stored
        self.dtype = dtype or DType.FLOAT32
        # A table's description is of its live version; the row counts of others may differ.
        self.row_count = info.rows if is_live else self._find_row_count()
        self.chunk_rows = max(1, CHUNK_BYTES // (self.dim * 4))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in the file's dtype."""
        return self.dim * self.dtype.itemsize

    def chunks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Ids, (n,), and rows, (n, dim) in the dtype's storage, in order; shows the progress."""
        with Progress(f"exporting {self.name}", self.row_count, "rows") as shown:
            for ids in self.ids():
                yield ids, self._rows(ids)
                shown.done += ids.size

    def ids(self) -> Iterator[NDArray[np.int64]]:
        """All ids, a chunk at a time."""
        for start in range(0, self.row_count, self.chunk_rows):
            yield np.arange(start, min(start + self.chunk_rows, self.row_count), dtype=np.int64)

    def keys(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """The keys of rows: int64, uint64, or objects of bytes."""
        found = self._client.keys_of(self.name, ids, version=self.version)
        if self.key_kind != "bytes":
            return found
        keys = np.empty(found.shape, object)
        keys[:] = [key.encode(errors="surrogateescape") for key in found]
        return keys

    def _rows(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        rows = self._client.lookup(self.name, ids, dtype=self.dtype.value, version=self.version)
        if self.dtype is DType.BFLOAT16:
            # Widened on the way, without loss.
            return (rows.view(np.uint32) >> 16).astype(np.uint16)
        return rows

    def _find_row_count(self) -> int:
        """The smallest id without a row, found by asking."""
        low, high = 0, 1
        while self._has(high - 1):
            low, high = high, high * 2
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._has(middle) else (low, middle)
        return low

    def _has(self, row: int) -> bool:
        _, status = self._client.lookup(
            self.name, [row], missing="zero", version=self.version, return_status=True
        )
        return not status[0]


def _format(out: Path, given: str | None) -> Format:
    if given is not None:
        return Format(given)
    found = _SUFFIXES.get(out.suffix.lower())
    if found is None:
        known = ", ".join(_SUFFIXES)
        raise InvalidArgument(f"{out} says no format by its suffix ({known}); give --format")
    return found


def _dtype_given(kind: Format, given: str | None) -> DType | None:
    if kind in (Format.NPY, Format.SAFETENSORS):
        return None if given is None else DType(given)
    if given not in (None, DType.FLOAT32.value):
        raise InvalidArgument(f"{kind.value} is of float32; leave --dtype out")
    return DType.FLOAT32


def _partial(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL_SUFFIX)


def _write(
    stack: ExitStack,
    path: Path,
    overwrite: bool,
    writer: Callable[["_Source", BinaryIO], None],
    source: "_Source",
) -> Path:
    """Write to a file beside `path`, durably; `stack` removes it unless it is renamed."""
    if path.exists() and not overwrite:
        raise AlreadyExists(f"{path} is there already; --overwrite replaces it")
    partial = _partial(path)

    def remove() -> None:
        with suppress(OSError):
            partial.unlink(missing_ok=True)

    stack.callback(remove)
    try:
        with open(partial, "wb") as file:
            writer(source, file)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{partial}: {error.strerror or error}") from None
    Files().sync_path(partial)
    return path


def _write_keys(stack: ExitStack, out: Path, overwrite: bool, source: "_Source") -> Path:
    if source.key_kind == "bytes":
        path = out.with_name(out.name + KEYS_SUFFIX)
        return _write(stack, path, overwrite, _write_key_lines, source)
    path = out.with_name(out.name + KEYS_SUFFIX + ".npy")
    return _write(stack, path, overwrite, _write_key_integers, source)


def _write_key_lines(source: "_Source", file: BinaryIO) -> None:
    for ids in source.ids():
        keys = source.keys(ids)
        for row, key in zip(ids.tolist(), keys, strict=True):
            if b"\n" in key or key.endswith(b"\r"):
                raise _unwritable(source, row, key, "a line of its own")
        file.write(b"".join(key + b"\n" for key in keys))


def _write_key_integers(source: "_Source", file: BinaryIO) -> None:
    dtype = np.dtype(source.key_kind)
    file.write(npy_header(dtype.str, (source.row_count,)))
    file.writelines(source.keys(ids).astype(dtype, copy=False).tobytes() for ids in source.ids())


def _write_npy(source: "_Source", file: BinaryIO) -> None:
    file.write(npy_header(NPY_DESCR[source.dtype], (source.row_count, source.dim)))
    file.writelines(rows.tobytes() for _, rows in source.chunks())


def _write_safetensors(source: "_Source", file: BinaryIO) -> None:
    """The layout of safetensors: 8 bytes of length, JSON padded by blanks to 8, the tensor."""
    entry = {
        "dtype": _TENSOR_DTYPES[source.dtype],
        "shape": [source.row_count, source.dim],
        "data_offsets": [0, source.row_count * source.row_bytes],
    }
    header = json.dumps({source.name: entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    file.write(struct.pack("<Q", len(header)) + header)
    file.writelines(rows.tobytes() for _, rows in source.chunks())


def _write_word2vec_binary(source: "_Source", file: BinaryIO) -> None:
    file.write(b"%d %d\n" % (source.row_count, source.dim))
    for ids, rows in source.chunks():
        paired = zip(_tokens(source, ids), rows, strict=True)
        file.writelines(key + b" " + row.tobytes() + b"\n" for key, row in paired)


def _write_word2vec_text(source: "_Source", file: BinaryIO) -> None:
    file.write(b"%d %d\n" % (source.row_count, source.dim))
    for ids, rows in source.chunks():
        paired = zip(_tokens(source, ids), rows, strict=True)
        file.writelines(key + b" " + _decimals(row) + b"\n" for key, row in paired)


def _decimals(row: NDArray[np.float32]) -> bytes:
    if not np.isfinite(row).all():
        return " ".join(map(str, row)).encode()
    # The shortest decimals that read as the same float32, as repr() gives for float64.
    listed = orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)
    return listed[1:-1].replace(b",", b" ")


def _tokens(source: "_Source", ids: NDArray[np.int64]) -> Iterator[bytes]:
    for row, key in zip(ids.tolist(), source.keys(ids), strict=True):
        token = key if isinstance(key, bytes) else b"%d" % key
        if any(blank in token for blank in _BLANKS):
            raise _unwritable(source, row, token, "a blank in it")
        yield token


def _unwritable(source: "_Source", row: int, key: bytes, why: str) -> InvalidArgument:
    return InvalidArgument(
        f"table {source.name!r}: the key {key[:64]!r} of row {row} can't be written: {why}"
    )


_WRITERS: dict[Format, Callable[["_Source", BinaryIO], None]] = {
    Format.NPY: _write_npy,
    Format.SAFETENSORS: _write_safetensors,
    Format.WORD2VEC_BINARY: _write_word2vec_binary,
    Format.WORD2VEC_TEXT: _write_word2vec_text,
}
