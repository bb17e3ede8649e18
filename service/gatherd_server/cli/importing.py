"""`gatherd import` and `gatherd publish`: their options, progress bar and summary."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.core import ParameterSource
from numpy.typing import NDArray

from gatherd.errors import FailedPrecondition, InvalidArgument, VersionMismatch
from gatherd.store.catalog import NO_OPTIMIZER, open_table, table_not_found
from gatherd.store.dtypes import DType
from gatherd.store.key_index import KeyKind
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.memory import give_back_large_buffers
from gatherd_server.cli.data_dir import open_data_dir
from gatherd_server.cli.options import (
    default_vector_option,
    frozen_option,
    optimizer_options,
    read_default,
    read_optimizer,
)
from gatherd_server.cli.progress import Progress
from gatherd_server.cli.target import CommandTarget, destination_options, target_options
from gatherd_server.cli.typed import FILE, TABLE
from gatherd_server.cli.uploading import ServerTables
from gatherd_server.cli.versions import if_version_option, keep_versions_option, publish_copy
from gatherd_server.data_dir.importing import (
    ImportOptions,
    ImportSummary,
    NewVersion,
    OnNonfinite,
    import_rows,
)
from gatherd_server.data_dir.owning import DataDir
from gatherd_server.loaders.batches import OnBadRow, RowSource
from gatherd_server.loaders.limits import UnpackLimits
from gatherd_server.loaders.locations import STANDARD_INPUT, is_uri, without_password
from gatherd_server.loaders.opening import OpenOptions, open_sources
from gatherd_server.loaders.text_shape import FirstField
from gatherd_server.training.optimizer import Optimizer
from gatherd_server.types import OnDuplicate

_LIMITS = UnpackLimits()


def _choice(policy: type[OnDuplicate] | type[OnNonfinite] | type[OnBadRow]) -> click.Choice[str]:
    return click.Choice([member.value for member in policy])


def _source_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options for reading a source, for import and publish; `_Reading` takes them."""
    for option in reversed(_SOURCE_OPTIONS):
        command = option(command)
    return command


_SOURCE_OPTIONS = (
    click.option(
        "--dtype",
        type=click.Choice([dtype.value for dtype in DType]),
        help="Convert; by default as the source has it, and float32 for text.",
    ),
    click.option(
        "--keys",
        metavar="FILE",
        help="Keys for the rows: a line each, a .npy, JSON, or a tokenizer's vocabulary.",
    ),
    click.option(
        "--key-column", metavar="COLUMN", help="Column of keys, of CSV, JSON Lines, Parquet, Arrow."
    ),
    click.option(
        "--vector-columns",
        metavar="COLUMNS",
        help="Columns with a number each, as names or patterns with commas between: 'emb_*'.",
    ),
    click.option(
        "--first-field",
        type=click.Choice([member.value for member in FirstField]),
        help="What the first field of a line is where a text holds nothing but numbers.",
    ),
    click.option(
        "--words",
        metavar="FILE",
        help="Words, a line each, that a fastText model composes vectors for beside its own.",
    ),
    click.option(
        "--limit", type=click.IntRange(1), metavar="N", help="Only the first N rows of the source."
    ),
    click.option(
        "--on-duplicate",
        type=_choice(OnDuplicate),
        default="error",
        show_default=True,
        help="A key that stands there twice: refuse the source, or keep the first or last.",
    ),
    click.option(
        "--on-bad-row",
        type=_choice(OnBadRow),
        default="error",
        show_default=True,
        help="A line or list that isn't a key and dim numbers: refuse the source, or leave it out.",
    ),
    click.option(
        "--on-nonfinite",
        type=_choice(OnNonfinite),
        default="error",
        show_default=True,
        help="A row with NaN or infinity: refuse the source, leave the row out (with keys), or "
        "keep.",
    ),
    click.option(
        "--unpacked-bytes-max",
        type=click.IntRange(1),
        default=_LIMITS.bytes_max,
        show_default=True,
        help="Bytes that a packed source may unpack to, or a remote one have.",
    ),
    click.option(
        "--unpacked-ratio-max",
        type=click.IntRange(1),
        default=_LIMITS.ratio_max,
        show_default=True,
        help="How many times its size a packed source may unpack to.",
    ),
    default_vector_option,
)


@dataclass(frozen=True, slots=True)
class _Reading:
    """The values of `_source_options`."""

    dtype: str | None
    keys: str | None
    key_column: str | None
    vector_columns: str | None
    first_field: str | None
    words: str | None
    limit: int | None
    on_duplicate: str
    on_bad_row: str
    on_nonfinite: str
    unpacked_bytes_max: int
    unpacked_ratio_max: int
    default_vector: Path | None

    def open(
        self, stack: ExitStack, place: DataDir | ServerTables, sources: tuple[str, ...]
    ) -> RowSource:
        """The rows of `sources`, until `stack` is closed."""
        spool = stack.enter_context(place.scratch())
        limits = UnpackLimits(self.unpacked_bytes_max, self.unpacked_ratio_max)
        opening = OpenOptions(
            spool,
            self.key_column,
            self.keys,
            OnBadRow(self.on_bad_row),
            limits,
            vector_columns=self.vector_columns,
            first_field=FirstField(self.first_field) if self.first_field is not None else None,
            words=self.words,
            limit=self.limit,
        )
        with Progress(f"opening {Path(sources[0]).name}"):
            return stack.enter_context(open_sources(sources, opening))

    def stored_dtype(self, source: RowSource) -> DType:
        """What the rows of `source` are stored in."""
        return DType(self.dtype) if self.dtype is not None else source.stored_dtype

    def options(
        self, default_vector: NDArray[np.float32] | None, trained: Optimizer | None
    ) -> ImportOptions:
        """How the rows become a table."""
        return ImportOptions(
            DType(self.dtype) if self.dtype is not None else None,
            OnDuplicate(self.on_duplicate),
            OnNonfinite(self.on_nonfinite),
            default_vector,
            trained,
        )


@click.command("import")
@click.argument("name", type=TABLE)
@click.argument("sources", nargs=-1, type=FILE, required=True, metavar="SOURCE[#PART]...")
@_source_options
@optimizer_options
@frozen_option
@destination_options("Data dir to put the table into; made when it isn't there.")
def import_table(
    name: str,
    sources: tuple[str, ...],
    optimizer: str | None,
    lr: float | None,
    optimizer_option: tuple[str, ...],
    frozen: bool,
    target: CommandTarget,
    **reading: Any,
) -> None:
    """Copy the rows of a file, or of several, into a new table.

    \b
        gatherd import words glove.6B.100d.txt --data-dir ./data
        gatherd import words glove.6B.zip#glove.6B.50d.txt --on-bad-row skip --data-dir ./data
        gatherd import words vectors.npy --optimizer adagrad --lr 0.05 --data-dir ./data
        gatherd import emb model.safetensors#embeddings.weight --dtype float16 --data-dir ./data
        gatherd import items s3://bucket/items.parquet#vector --key-column id --data-dir ./data
        gatherd import items items.csv --key-column id --vector-columns 'emb_*' --data-dir ./data
        zcat words.gz | gatherd import words - --limit 1000 --data-dir ./data
        gatherd import words glove.6B.100d.txt --url http://127.0.0.1:8000

    The format is told by the content: .npy, .npz, safetensors, GloVe, word2vec and fastText .vec
    and .bin, CSV and JSON Lines, torch, Keras and HDF5, Parquet and Arrow; each as it is, or in
    .gz, .bz2, .xz, .zst, .zip or .tar. SOURCE "-" is standard input.

    The table takes updates: scatter-add and assign, and with --optimizer gradients too. A server
    may have the data dir: its next request sees the table. With --url the file is read here, and
    its rows are uploaded in chunks; nothing is left of them if that fails.
    """  # click takes a real backspace as "don't rewrap"
    wanted = read_optimizer(optimizer, lr, optimizer_option)
    given = _Reading(**reading)
    with ExitStack() as stack:
        opened = _opened(stack, target, given)
        opened.check_is_new(name)
        source = given.open(stack, opened, sources)
        stored = given.stored_dtype(source)
        trained = Optimizer.for_new_table(wanted, stored, frozen=frozen)
        options = given.options(read_default(given.default_vector, source.dim), trained)
        summary = _imported(opened, name, source, options, sources)
    _tell(name, summary, target)
    if trained is None and not frozen:
        click.echo(
            f"  it is {stored.value} and takes no updates; --dtype float32 makes it take them"
        )


def _opened(stack: ExitStack, target: CommandTarget, given: _Reading) -> DataDir | ServerTables:
    """Where an import goes, until `stack` is closed."""
    if target.data_dir is not None:
        return stack.enter_context(open_data_dir(target.data_dir, create=True))
    return ServerTables(stack.enter_context(target.connect()), OnDuplicate(given.on_duplicate))


@click.command()
@click.argument("name", type=TABLE)
@click.argument("sources", nargs=-1, type=FILE, metavar="[SOURCE[#PART]]...")
@_source_options
@if_version_option
@keep_versions_option
@target_options
def publish(
    name: str,
    sources: tuple[str, ...],
    if_version: int | None,
    keep_versions: int | None,
    target: CommandTarget,
    **reading: Any,
) -> None:
    """Make the rows of a file, or of several, the live version of a table that is there.

    Without SOURCE it is a copy of the live version, optimizer state and all: what was live stays as
    it is now, to roll back to. With one, the table keeps its optimizer, whose state begins anew,
    and its default vector, unless another is given; dim and kind of keys have to be the table's.

    \b
        gatherd publish words glove.6B.100d.txt --data-dir ./data
        gatherd publish words glove.6B.100d.txt --url http://127.0.0.1:8000
        gatherd publish words --if-version 3 --url http://127.0.0.1:8000

    SOURCE and its options are as for `gatherd import`. A server may have the data dir.
    """
    given = _Reading(**reading)
    if not sources:
        _check_only_copied()
        publish_copy(name, if_version, keep_versions, target)
        return
    if target.data_dir is None:
        _publish_to_server(name, sources, if_version, keep_versions, target, given)
        return
    data_dir = target.data_dir
    with ExitStack() as stack:
        opened = stack.enter_context(open_data_dir(data_dir, keep_versions=keep_versions))
        live = opened.catalog.tables.get(name)
        if live is None:
            raise table_not_found(name, opened.catalog.tables)
        if if_version not in (None, live.live):
            raise VersionMismatch(f"table {name!r} has version {live.live} live, not {if_version}")
        table = open_table(data_dir, name, live.live)
        source = given.open(stack, opened, sources)
        if (source.dim, source.key_kind) != (table.dim, table.keys.kind if table.keys else None):
            raise FailedPrecondition(
                f"{source.name} has dim {source.dim} and {_keys(source.key_kind)}; table {name!r} "
                f"has dim {table.dim} and {_keys(table.keys.kind if table.keys else None)}"
            )
        default = read_default(given.default_vector, source.dim)
        if default is None and table.default_vector_is_known:
            default = table.default_vector()
        optimizer = live.optimizer_of(live.live) or table.optimizer or NO_OPTIMIZER
        kept = Optimizer.from_json(optimizer)
        trained = kept if table.is_trainable else None
        version = NewVersion(if_version or LIVE_VERSION)
        options = given.options(default, trained)
        summary = _imported(opened, name, source, options, sources, version)
        now = opened.catalog.tables[name].live
    _tell(f"{name} v{now}", summary, target)


def _publish_to_server(
    name: str,
    sources: tuple[str, ...],
    if_version: int | None,
    keep_versions: int | None,
    target: CommandTarget,
    given: _Reading,
) -> None:
    if keep_versions is not None:
        raise FailedPrecondition(
            "a server keeps as many versions as its own keep_versions says; leave --keep-versions "
            "out"
        )
    with ExitStack() as stack:
        client = stack.enter_context(target.connect())
        server = ServerTables(client, OnDuplicate(given.on_duplicate))
        client.table(name)
        source = given.open(stack, server, sources)
        options = given.options(read_default(given.default_vector, source.dim), None)
        version = NewVersion(if_version or LIVE_VERSION)
        summary = _imported(server, name, source, options, sources, version)
        now = client.table(name).version
    _tell(f"{name} v{now}", summary, target)


def _check_only_copied() -> None:
    """InvalidArgument when an option about a source was given."""
    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        is_given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if name in _Reading.__dataclass_fields__ and is_given:
            raise InvalidArgument(f"{option.opts[0]} is about a source; give one")


def _keys(kind: KeyKind | None) -> str:
    return "no keys" if kind is None else f"{kind.value} keys"


def _imported(
    place: DataDir | ServerTables,
    name: str,
    source: RowSource,
    options: ImportOptions,
    sources: tuple[str, ...],
    new_version: NewVersion | None = None,
) -> ImportSummary:
    give_back_large_buffers()
    with Progress(f"importing {name}", source.total or 0, "B") as shown:

        def note(done: int) -> None:
            shown.done = done

        origin = _origin(sources)
        summary = import_rows(place, name, source, options, origin, note, new_version)
    if isinstance(place, ServerTables):
        if options.on_duplicate is OnDuplicate.LAST:
            summary.replaced = place.duplicates
        else:
            summary.duplicates = place.duplicates
    return summary


def _origin(sources: tuple[str, ...]) -> dict[str, Any]:
    """The manifest's entry about the origin of the rows."""
    locations = []
    for source in sources:
        location, hash_sign, part = source.partition("#")
        if is_uri(location):
            location = without_password(location)
        elif location != STANDARD_INPUT:
            location = str(Path(location).resolve())
        locations.append(location + hash_sign + part)
    return {"imported": locations}


def _tell(name: str, summary: ImportSummary, target: CommandTarget) -> None:
    byte_count = summary.row_count * summary.dim * summary.dtype.itemsize
    click.echo(
        f"{name}: {summary.row_count} rows of {summary.dim} {summary.dtype.value} "
        f"({byte_count / 1e6:.1f} MB) from {summary.format} in {target.data_dir or target.url}"
    )
    for count, what in (
        (summary.duplicates, "with a key that stood there before"),
        (summary.bad_rows, "without a key and as many numbers as the others"),
        (summary.nonfinite_rows, "with NaN or infinity"),
    ):
        if count:
            click.echo(f"  left out: {count} row{'s' if count > 1 else ''} {what}")
    if summary.replaced:
        plural = "s" if summary.replaced > 1 else ""
        click.echo(f"  replaced: {summary.replaced} row{plural}, by a later one of the same key")
