"""`gatherd verify` and `gatherd plan`: checks a data dir, and sizes a table to come."""

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from gatherd.errors import GatherdError, InvalidArgument
from gatherd.store.catalog import named_entry, read_catalog
from gatherd.store.dtypes import DType
from gatherd_server.cli.exit_codes import ExitCode
from gatherd_server.cli.options import optimizer_options, read_optimizer
from gatherd_server.cli.progress import Progress
from gatherd_server.cli.target import data_dir_options
from gatherd_server.cli.typed import FILE, TABLE
from gatherd_server.data_dir.estimate import WORKER_PRIVATE_BYTES, Estimate, estimate_source
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.data_dir.verify import repair_keys, verify_log, verify_version
from gatherd_server.data_dir.verify_live import Coverage
from gatherd_server.loaders.opening import OpenOptions, open_sources
from gatherd_server.loaders.streams import Spool
from gatherd_server.snapshots.snapshot import SNAPSHOT_NAME, read_snapshot, verify_snapshot

MB = 1e6


@click.command()
@click.argument("tables", nargs=-1, type=TABLE)
@data_dir_options("Data dir, or snapshot, to verify; a server may have it.")
@click.option(
    "--repair",
    is_flag=True,
    help="Build damaged key indexes anew from their keys; needs the data dir to itself.",
)
def verify(tables: tuple[str, ...], data_dir: Path, repair: bool) -> None:
    """Check a data dir, or TABLES of it, or a snapshot, for damage.

    What doesn't change any more is held against its checksums, byte for byte: snapshots, read-only
    and superseded versions. Weights and optimizer state of a live version that is trained are held
    against the sums of the last checkpoint, but for what moved since or has none yet, which is
    said. The log is read up to what was acknowledged last, unless TABLES are given.

    The first damaged range of bytes of each version is named, and the exit status is 6.
    """
    if (data_dir / SNAPSHOT_NAME).exists():
        if tables or repair:
            raise InvalidArgument(f"{data_dir} is a snapshot, which is verified whole, as it is")
        sys.exit(ExitCode.DONE if _verify_snapshot(data_dir) else ExitCode.STORAGE)
    catalog = read_catalog(data_dir)
    named = [named_entry(catalog, name)[0] for name in tables]
    is_sound = True
    for name in named or sorted(catalog.tables):
        for version in catalog.tables[name].versions:
            is_sound &= _verify(data_dir, name, version, repair=repair)
    if not tables:
        is_sound &= _verify_log(data_dir)
    if not is_sound:
        sys.exit(ExitCode.STORAGE)


def _verify(data_dir: Path, name: str, version: int, *, repair: bool) -> bool:
    """Whether a version is sound, or was repaired; prints the result."""
    what = f"{name} v{version}"
    coverage = Coverage()
    problem = _problem(what, verify_version(data_dir, name, version, coverage))
    if problem and repair:
        with own_data_dir(data_dir):
            repair_keys(data_dir, name, version)
        click.echo(f"{what}: {problem}; its key index was built anew")
        problem = _problem(what, verify_version(data_dir, name, version, coverage))
    left = coverage.byte_count - coverage.held_bytes
    partly = f"ok, but for {left} of {coverage.byte_count} bytes that moved or have no sum yet"
    click.echo(f"{what}: {problem or (partly if left else 'ok')}", err=problem is not None)
    return problem is None


def _verify_log(data_dir: Path) -> bool:
    try:
        with Progress("verifying log"):
            found = verify_log(data_dir)
    except GatherdError as error:
        click.echo(f"log: {error.message}", err=True)
        return False
    click.echo(f"log: ok, LSN {found.last_lsn}, checkpoint at {found.checkpoint_lsn}")
    return True


def _verify_snapshot(snapshot: Path) -> bool:
    problem = _problem("snapshot", verify_snapshot(snapshot))
    if problem is None:
        click.echo(f"snapshot: ok, LSN {read_snapshot(snapshot).lsn}")
    else:
        click.echo(f"snapshot: {problem}", err=True)
    return problem is None


def _problem(what: str, steps: Iterator[int]) -> str | None:
    """The problem that a check finds, or None; `steps` yields the bytes checked so far."""
    with Progress(f"verifying {what}", unit="B") as shown:
        try:
            for checked_bytes in steps:
                shown.done = checked_bytes
        except GatherdError as error:
            return error.message
    return None


@click.command()
@click.argument("sources", nargs=-1, type=FILE, metavar="[SOURCE]...")
@click.option("--rows", type=click.IntRange(0), help="Instead of SOURCE: number of rows.")
@click.option("--dim", type=click.IntRange(1), help="Instead of SOURCE: elements a row.")
@click.option(
    "--dtype",
    type=click.Choice([dtype.value for dtype in DType]),
    help="What the rows are to be stored in; by default as the source has it, or float32.",
)
@click.option("--keys", help="File of keys, as for import.")
@click.option("--key-column", help="Column of keys, as for import.")
@optimizer_options
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def plan(
    sources: tuple[str, ...],
    rows: int | None,
    dim: int | None,
    dtype: str | None,
    keys: str | None,
    key_column: str | None,
    optimizer: str | None,
    lr: float | None,
    optimizer_option: tuple[str, ...],
    as_json: bool,
) -> None:
    """Tell the disk, memory and start time of a table before it is there.

    \b
        gatherd plan glove.6B.100d.txt --dtype float16
        gatherd plan --rows 1000000 --dim 64

    A source that doesn't tell its rows in a header is read to its end.
    """
    target = DType(dtype) if dtype else None
    trained = read_optimizer(optimizer, lr, optimizer_option)
    if sources and rows is None and dim is None:
        with tempfile.TemporaryDirectory() as folder:
            options = OpenOptions(_spool_to(Path(folder)), key_column, keys)
            with open_sources(sources, options) as source, Progress(f"reading {source.name}"):
                estimate = estimate_source(source, target, trained)
    elif not sources and rows is not None and dim is not None:
        estimate = Estimate(rows, dim, target or DType.FLOAT32, optimizer=trained)
    else:
        raise InvalidArgument("give either a SOURCE, or --rows and --dim")
    if trained is not None:
        trained.check_table(estimate.dtype, estimate.row_count)
    click.echo(json.dumps(_document(estimate)) if as_json else _shown(estimate))


def _spool_to(folder: Path) -> Spool:
    def save(name: str, chunks: Iterable[bytes]) -> Path:
        path = folder / f"{len(list(folder.iterdir()))}-{Path(name).name[-64:]}"
        with open(path, "xb") as file:
            file.writelines(chunks)
        return path

    return save


def _document(estimate: Estimate) -> dict[str, object]:
    return {
        "rows": estimate.row_count,
        "dim": estimate.dim,
        "dtype": estimate.dtype.value,
        "keys": estimate.key_kind.value if estimate.key_kind else None,
        "rows_bytes": estimate.rows_bytes,
        "keys_bytes": estimate.keys_bytes,
        "slots_bytes": estimate.slots_bytes,
        "disk_bytes": estimate.disk_bytes,
        "mapped_bytes": estimate.mapped_bytes,
        "private_bytes_per_worker": WORKER_PRIVATE_BYTES,
        "start_seconds": round(estimate.start_seconds, 2),
    }


def _shown(estimate: Estimate) -> str:
    parts = f"rows {estimate.rows_bytes / MB:.1f} MB"
    keyed = "no keys"
    if estimate.key_kind is not None:
        parts += f", key index {estimate.keys_bytes / MB:.1f} MB"
        keyed = f"{estimate.row_count} {estimate.key_kind.value} keys"
    if estimate.slots_bytes:
        parts += f", slots {estimate.slots_bytes / MB:.1f} MB"
    shape = f"{estimate.row_count} rows of {estimate.dim} {estimate.dtype.value}, {keyed}"
    private = WORKER_PRIVATE_BYTES / MB
    return (
        f"table    {shape}\n"
        f"disk     {estimate.disk_bytes / MB:.1f} MB ({parts})\n"
        f"mapped   {estimate.mapped_bytes / MB:.1f} MB, once for all workers\n"
        f"private  {private:.0f} MB for each worker, whatever its tables\n"
        f"ready    {estimate.start_seconds:.1f} s after the start, with the files in the page cache"
    )
