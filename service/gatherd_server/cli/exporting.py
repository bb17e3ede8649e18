"""`gatherd export`: a table's rows, and keys, in a file that other programs read.

    .npy           the rows; bfloat16 as V2, as ml_dtypes saves it
    .safetensors   the rows, as a tensor called like the table
    .bin           word2vec binary: a line "ROWS DIM", then key, blank, float32, line feed
    .vec, .txt     word2vec text: a line "ROWS DIM", then a line a row: key and decimals, the
                   shortest that give the same float32

The first two have no place for keys. Keys go to OUT.keys, a line each, or, if they are integers, to
OUT.keys.npy; `gatherd import --keys` reads either.

All files are written in one scan of one version (`Client.rows`), a page at a time. A row's vector
and its key come from one page, so OUT and OUT.keys fit each other whatever changes meanwhile. Rows
of an open table come and go, so their number is known only at the end: each file's head has a fixed
length and is corrected then. Where the number wasn't known, word2vec's ROWS begins with zeros.

The rows of a live version that takes updates may be of several LSNs; each row is whole. A row of an
open table that is deleted and created again meanwhile may be in the file twice. For rows of one
LSN, export from a snapshot or a superseded version.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np
from numpy.typing import NDArray

from gatherd import Client, RowBatch, TableInfo
from gatherd.errors import AlreadyExists, BadFile, InvalidArgument, StorageError
from gatherd.store.dtypes import REPLY_DTYPES, DType
from gatherd.store.limits import ROWS_MAX
from gatherd.store.query import PAGE_KEYS_MAX
from gatherd.store.scans import PAGE_BYTES_MAX
from gatherd_server.cli.export_forms import (
    Chunk,
    Exported,
    Format,
    Output,
    format_of,
    outputs_of,
)
from gatherd_server.cli.progress import Progress
from gatherd_server.cli.target import CommandTarget, target_options
from gatherd_server.cli.typed import TABLE
from gatherd_server.storage.files import Files

EXPORT_SECONDS_MAX = 60.0
PARTIAL_SUFFIX = ".partial"


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
    kind = format_of(out, file_format)
    with target.connect(timeout=EXPORT_SECONDS_MAX) as client, ExitStack() as stack:
        source = _Source(client, client.table(table), version, _dtype_given(kind, dtype))
        outputs = outputs_of(kind, out, source.exported)
        for output in outputs:
            if output.path.exists() and not overwrite:
                raise AlreadyExists(f"{output.path} is there already; --overwrite replaces it")
        _write(stack, source, outputs)
        files = Files()
        for output in outputs:
            files.rename(_partial(output.path), output.path)
    written = " and ".join(str(output.path) for output in outputs)
    rows = f"{source.row_count} rows of {source.exported.dim} {source.exported.dtype.value}"
    click.echo(f"{written}: {rows}, version {source.version} of {table}")


class _Source:
    """One version of a table, read in chunks."""

    def __init__(
        self, client: Client, info: TableInfo, version: int | None, dtype: DType | None
    ) -> None:
        if info.refused:
            raise BadFile(f"table {info.name!r} can't be read: {info.refused}")
        is_live = version in (None, info.version)
        self.version = version or info.version
        self.row_count = 0
        """How many rows have been read."""
        self._client, self._table = client, info.name
        stored = DType(info.dtype)
        if dtype is None and is_live:
            if stored not in REPLY_DTYPES:
                raise InvalidArgument(
                    f"table {info.name!r} is {stored.value}, which lookups don't answer in; "
                    "say --dtype float32 to have its rows rounded"
                )
            dtype = stored
        self._dtype = dtype or DType.FLOAT32
        # A table's description is of its live version; rows and dim of others may differ.
        self._rows_shown = info.rows if is_live else 0
        first = next(self._scan(batch=1), None)
        self.exported = Exported(
            info.name,
            info.key_kind,
            info.dim if first is None else first.vectors.shape[1],
            self._dtype,
            info.rows if is_live and info.open is None else ROWS_MAX,
        )

    def chunks(self) -> Iterator[Chunk]:
        """All rows, about a page at a time; shows the progress, and counts them."""
        batch = min(PAGE_KEYS_MAX, max(1, PAGE_BYTES_MAX // self.exported.row_bytes))
        with Progress(f"exporting {self._table}", self._rows_shown, "rows") as shown:
            for found in self._scan(batch):
                yield Chunk(found.ids, _stored_keys(found.keys), self._stored(found.vectors))
                self.row_count += len(found)
                shown.done = self.row_count

    def _scan(self, batch: int) -> Iterator[RowBatch]:
        return self._client.rows(
            self._table, batch=batch, dtype=self._dtype.value, version=self.version
        )

    def _stored(self, rows: NDArray[Any]) -> NDArray[Any]:
        if self._dtype is DType.BFLOAT16:
            # Widened on the way, without loss.
            return (rows.view(np.uint32) >> 16).astype(np.uint16)
        return rows


def _dtype_given(kind: Format, given: str | None) -> DType | None:
    if kind in (Format.NPY, Format.SAFETENSORS):
        return None if given is None else DType(given)
    if given not in (None, DType.FLOAT32.value):
        raise InvalidArgument(f"{kind.value} is of float32; leave --dtype out")
    return DType.FLOAT32


def _partial(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL_SUFFIX)


def _write(stack: ExitStack, source: _Source, outputs: list[Output]) -> None:
    """Write files beside the outputs', durably; `stack` removes those that aren't renamed."""
    exported = source.exported
    written = [_PartialFile(_partial(output.path), stack) for output in outputs]
    heads = [output.head(exported, exported.row_count_max) for output in outputs]
    for file, head in zip(written, heads, strict=True):
        file.write([head])
    for chunk in source.chunks():
        for file, output in zip(written, outputs, strict=True):
            file.write(output.body(exported, chunk))
    for file, output, head in zip(written, outputs, heads, strict=True):
        final = output.head(exported, source.row_count)
        assert len(final) == len(head)
        file.finish(final)


class _PartialFile:
    """A file that `stack` closes, and removes unless it is renamed."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        stack.callback(self._discard)
        with self._reported():
            self._file = open(path, "wb")  # noqa: SIM115 - _discard closes it

    def write(self, parts: Iterable[bytes]) -> None:
        """Add `parts`. StorageError when they can't be written."""
        assert self._file is not None
        with self._reported():
            self._file.writelines(parts)

    def finish(self, head: bytes) -> None:
        """Put `head` at the beginning, and make all of it durable."""
        assert self._file is not None
        with self._reported():
            self._file.seek(0)
            self._file.write(head)
            self._file.close()
        Files().sync_path(self._path)

    def _discard(self) -> None:
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror or error}") from None


def _stored_keys(found: NDArray[Any] | None) -> NDArray[Any] | None:
    if found is None or found.dtype != object:
        return found
    keys = np.empty(found.shape, object)
    keys[:] = [key.encode(errors="surrogateescape") for key in found]
    return keys
