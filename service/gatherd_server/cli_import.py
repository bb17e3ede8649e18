"""`gatherd import`: its options, its progress bar and its summary."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument
from gatherd.store.catalog import read_default_vector
from gatherd.store.dtypes import DType
from gatherd_server.cli_optimizer import optimizer_options, read_optimizer
from gatherd_server.loaders.batches import OnBadRow
from gatherd_server.loaders.limits import UnpackLimits
from gatherd_server.loaders.opening import OpenOptions, open_sources
from gatherd_server.loaders.streams import is_uri
from gatherd_server.writer.importing import (
    ImportOptions,
    ImportSummary,
    OnDuplicate,
    OnNonfinite,
    import_rows,
)
from gatherd_server.writer.publish import own_data_dir

_LIMITS = UnpackLimits()

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    envvar="GATHERD_DATA_DIR",
    required=True,
    help="Data dir to put the table into; made when it isn't there.",
)
default_vector_option = click.option(
    "--default-vector",
    type=click.Path(path_type=Path),
    help="FILE.npy of shape (dim,): the vector for missing ids, instead of the mean of the rows.",
)


def read_default(path: Path | None, dim: int) -> NDArray[np.float32] | None:
    """The default vector in `path`; InvalidArgument when it isn't of the table's dim."""
    if path is None:
        return None
    vector = read_default_vector(path)
    if vector.shape != (dim,):
        raise InvalidArgument(f"{path} has shape {vector.shape}; the table's dim is {dim}")
    return vector


def _choice(policy: type[OnDuplicate] | type[OnNonfinite] | type[OnBadRow]) -> click.Choice[str]:
    return click.Choice([member.value for member in policy])


@click.command("import")
@click.argument("name")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE[#PART]...")
@click.option(
    "--dtype",
    type=click.Choice([dtype.value for dtype in DType]),
    help="Convert; by default as the source has it, and float32 for text.",
)
@click.option("--keys", metavar="FILE", help="Keys for the rows: a line each, or a .npy of ints.")
@click.option("--key-column", metavar="COLUMN", help="Column of keys, of Parquet and Arrow files.")
@click.option(
    "--on-duplicate",
    type=_choice(OnDuplicate),
    default="error",
    show_default=True,
    help="A key that stands there twice: refuse the source, or keep the first.",
)
@click.option(
    "--on-bad-row",
    type=_choice(OnBadRow),
    default="error",
    show_default=True,
    help="A line or list that isn't a key and dim numbers: refuse the source, or leave it out.",
)
@click.option(
    "--on-nonfinite",
    type=_choice(OnNonfinite),
    default="error",
    show_default=True,
    help="A row with NaN or infinity: refuse the source, leave the row out (with keys), or keep.",
)
@click.option(
    "--unpacked-bytes-max",
    type=click.IntRange(1),
    default=_LIMITS.bytes_max,
    show_default=True,
    help="Bytes that a packed source may unpack to, or a remote one have.",
)
@click.option(
    "--unpacked-ratio-max",
    type=click.IntRange(1),
    default=_LIMITS.ratio_max,
    show_default=True,
    help="How many times its size a packed source may unpack to.",
)
@default_vector_option
@optimizer_options
@data_dir_option
def import_table(
    name: str,
    sources: tuple[str, ...],
    dtype: str | None,
    keys: str | None,
    key_column: str | None,
    on_duplicate: str,
    on_bad_row: str,
    on_nonfinite: str,
    unpacked_bytes_max: int,
    unpacked_ratio_max: int,
    default_vector: Path | None,
    optimizer: str | None,
    lr: float | None,
    optimizer_option: tuple[str, ...],
    data_dir: Path,
) -> None:
    """Copy the rows of a file, or of several, into a new table.

    \b
        gatherd import words glove.6B.100d.txt --data-dir ./data
        gatherd import words glove.6B.zip#glove.6B.50d.txt --on-bad-row skip --data-dir ./data
        gatherd import words vectors.npy --optimizer adagrad --lr 0.05 --data-dir ./data
        gatherd import emb model.safetensors#embeddings.weight --dtype float16 --data-dir ./data
        gatherd import items s3://bucket/items.parquet#vector --key-column id --data-dir ./data

    The format is told by the content: .npy, .npz, safetensors, GloVe, word2vec and fastText .vec,
    torch, Keras and HDF5, Parquet and Arrow; each as it is, or as .gz or .zip.
    """  # click takes a real backspace as "don't rewrap"
    trained = read_optimizer(optimizer, lr, optimizer_option)
    limits = UnpackLimits(unpacked_bytes_max, unpacked_ratio_max)
    with ExitStack() as stack:
        owned = stack.enter_context(own_data_dir(data_dir, create=True))
        owned.check_is_new(name)
        spool = stack.enter_context(owned.scratch())
        opening = OpenOptions(spool, key_column, keys, OnBadRow(on_bad_row), limits)
        source = stack.enter_context(open_sources(sources, opening))
        options = ImportOptions(
            DType(dtype) if dtype is not None else None,
            OnDuplicate(on_duplicate),
            OnNonfinite(on_nonfinite),
            read_default(default_vector, source.dim),
            trained,
        )
        with click.progressbar(
            length=source.total or 1,
            label=f"importing {name}",
            file=sys.stderr,
            hidden=not sys.stderr.isatty(),
        ) as bar:
            summary = import_rows(
                owned, name, source, options, _origin(sources), lambda done: _show(bar, done)
            )
    _tell(name, summary, data_dir)


def _origin(sources: tuple[str, ...]) -> dict[str, Any]:
    """What the manifest says of where the rows came from."""
    locations = []
    for source in sources:
        location, hash_sign, part = source.partition("#")
        if not is_uri(location):
            location = str(Path(location).resolve())
        locations.append(location + hash_sign + part)
    return {"imported": locations}


def _show(bar: Any, done: int) -> None:
    bar.update(max(0, min(done, bar.length) - bar.pos))


def _tell(name: str, summary: ImportSummary, data_dir: Path) -> None:
    byte_count = summary.row_count * summary.dim * summary.dtype.itemsize
    click.echo(
        f"{name}: {summary.row_count} rows of {summary.dim} {summary.dtype.value} "
        f"({byte_count / 1e6:.1f} MB) from {summary.format} in {data_dir}"
    )
    for count, what in (
        (summary.duplicates, "with a key that stood there before"),
        (summary.bad_rows, "without a key and as many numbers as the others"),
        (summary.nonfinite_rows, "with NaN or infinity"),
    ):
        if count:
            click.echo(f"  left out: {count} row{'s' if count > 1 else ''} {what}")
