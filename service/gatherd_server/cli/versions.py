"""`gatherd versions`, `rollback`, `set-optimizer`, `delete` and `snapshot`.

Those that change a table do it in a data dir (--data-dir), whether or not a server has it, or ask a
server (--url). `publish` is in importing.py beside `import`, whose options it shares.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from gatherd import SnapshotResult
from gatherd.errors import InvalidArgument
from gatherd.store.limits import LIVE_VERSION
from gatherd_server.cli.data_dir import CHANGE_SECONDS_MAX, ServedDataDir, ask, open_data_dir
from gatherd_server.cli.options import OPTIMIZERS, optimizer_values, read_options
from gatherd_server.cli.progress import Progress
from gatherd_server.cli.target import CommandTarget, target_options
from gatherd_server.cli.typed import TABLE
from gatherd_server.cli.verbs import Subverbs
from gatherd_server.data_dir.owning import OwnedDataDir
from gatherd_server.settings import ServeSettings
from gatherd_server.training.optimizer import Optimizer
from gatherd_server.types import (
    ChangeResult,
    DeleteTable,
    DeleteVersion,
    OptimizerSpec,
    Publish,
    Rollback,
    SetOptimizer,
    TableChange,
)

if_version_option = click.option(
    "--if-version", type=click.IntRange(1), help="Only when this version of the table is live."
)
keep_versions_option = click.option(
    "--keep-versions",
    type=click.IntRange(0, 10_000),
    help="Superseded versions that stay, besides the live one; a server that has the data dir "
    f"has its own.  [default: {ServeSettings.model_fields['keep_versions'].default}]",
)


@contextmanager
def changing(
    target: CommandTarget, keep_versions: int | None = None
) -> Iterator[Callable[[TableChange], ChangeResult]]:
    """A function that makes a change in the data dir or at the server that was chosen."""
    if target.data_dir is not None:
        with open_data_dir(target.data_dir, keep_versions=keep_versions) as opened:
            yield _shown(opened.change)
        return
    if keep_versions is not None:
        raise InvalidArgument("--keep-versions is for a data dir; a server has its own setting")
    with target.connect(timeout=CHANGE_SECONDS_MAX) as client:
        yield _shown(lambda change: ask(client, change))


def _shown(make: Callable[[TableChange], ChangeResult]) -> Callable[[TableChange], ChangeResult]:
    """`make`, which shows that it takes its time."""

    def made(change: TableChange) -> ChangeResult:
        with Progress(f"changing {change.table}"):
            return make(change)

    return made


@click.group(cls=Subverbs)
def versions() -> None:
    """List a table's versions, or delete one.

    \b
        gatherd versions words
        gatherd versions delete words 3
    """


@versions.command("list")
@click.argument("table", type=TABLE)
@target_options
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def list_versions(table: str, target: CommandTarget, as_json: bool) -> None:
    """List the versions of TABLE that can be looked up or rolled back to.

    The word `list` can be left out.
    """
    with target.connect() as client:
        info = client.table(table)
    if as_json:
        click.echo(json.dumps({"table": table, "versions": info.versions, "live": info.version}))
        return
    for version in info.versions:
        click.echo(f"{version}{'  (live)' if version == info.version else ''}")


@versions.command("delete")
@click.argument("table", type=TABLE)
@click.argument("version", type=click.IntRange(1))
@click.option("--yes", is_flag=True, help="Don't ask.")
@target_options
def delete_version(table: str, version: int, yes: bool, target: CommandTarget) -> None:
    """Remove a superseded VERSION of TABLE, and free its disk space.

    Refused are the live version, the one with the highest number, since no number is given twice,
    and one that a server's lookups named in the last ten seconds.
    """
    if not yes:
        where = target.data_dir or target.url
        click.confirm(f"Remove version {version} of table {table!r} from {where}?", abort=True)
    with changing(target) as make:
        done = make(DeleteVersion(table, version))
    click.echo(f"{table}: version {version} is deleted, LSN {done.lsn}")


@click.command()
@click.argument("table", type=TABLE)
@click.option(
    "--to",
    "version",
    type=click.IntRange(1),
    help="The version to make live.  [default: the newest of those before the live one]",
)
@if_version_option
@keep_versions_option
@target_options
def rollback(
    table: str,
    version: int | None,
    if_version: int | None,
    keep_versions: int | None,
    target: CommandTarget,
) -> None:
    """Make an older version of TABLE live again, as it was when it was superseded.

    \b
        gatherd rollback words --data-dir ./data
        gatherd rollback words --to 3 --if-version 5 --url http://127.0.0.1:8000
    """
    change = Rollback(table, version or LIVE_VERSION, if_version or LIVE_VERSION)
    with changing(target, keep_versions) as make:
        tell_live(table, make(change))


@click.command("set-optimizer")
@click.argument("table", type=TABLE)
@click.argument("optimizer", type=OPTIMIZERS, required=False)
@optimizer_values
@if_version_option
@keep_versions_option
@target_options
def set_optimizer(
    table: str,
    optimizer: str | None,
    lr: float | None,
    optimizer_option: tuple[str, ...],
    if_version: int | None,
    keep_versions: int | None,
    target: CommandTarget,
) -> None:
    """Change the options of TABLE's optimizer, or train it by another one.

    Without OPTIMIZER the present one gets the options given and keeps the others. Where the state
    stays as it is, nothing is copied and the version stays. Another kind of optimizer begins its
    state anew, in a copy of the table that becomes the live version; the one before it keeps the
    old state, to roll back to.

    \b
        gatherd set-optimizer words --lr 0.01 --data-dir ./data
        gatherd set-optimizer words adagrad --lr 0.05 --data-dir ./data
        gatherd set-optimizer words sgd --optimizer-option momentum=0.9
        gatherd set-optimizer words none
    """
    options = read_options(lr, optimizer_option)
    if optimizer is not None:
        Optimizer.parse(optimizer, options)
    elif not options:
        raise InvalidArgument("name an OPTIMIZER, or give options to change, such as --lr 0.01")
    spec = OptimizerSpec(optimizer or "", options)
    with target.connect() as client:
        before = client.table(table).version
    with changing(target, keep_versions) as make:
        done = make(SetOptimizer(table, spec, if_version or LIVE_VERSION))
    tell_live(table, done)
    if done.version == before:
        return
    with target.connect() as client:
        is_kept = before in client.table(table).versions
    what = f"version {before} keeps" if is_kept else "no version keeps"
    click.echo(f"  the optimizer's state begins anew; {what} the one before")


@click.command()
@click.argument("table", type=TABLE)
@click.option("--yes", is_flag=True, help="Don't ask.")
@target_options
def delete(table: str, yes: bool, target: CommandTarget) -> None:
    """Remove TABLE with all its versions."""
    if not yes:
        where = target.data_dir or target.url
        click.confirm(f"Remove table {table!r} and all its versions from {where}?", abort=True)
    with changing(target) as make:
        done = make(DeleteTable(table))
    click.echo(f"{table}: deleted, LSN {done.lsn}")


@click.command()
@click.argument("name", required=False, default="")
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path),
    help="Folder to make it in; a server that has the data dir makes it in its --snapshot-dir.",
)
@target_options
def snapshot(name: str, folder: Path | None, target: CommandTarget) -> None:
    """Copy a data dir as it is at one LSN; updates go on meanwhile.

    NAME is its folder's, by default made of the time and the LSN. Weights, optimizer state and what
    is known of done pushes agree in it. A server makes it in its own --snapshot-dir.

    \b
        gatherd snapshot monday --data-dir ./data --to ./snapshots
        gatherd snapshot --url http://127.0.0.1:8000
    """
    data_dir = target.data_dir
    if data_dir is None:
        if folder is not None:
            raise InvalidArgument("--to is for a data dir; a server has its own --snapshot-dir")
        with target.connect() as client, Progress("taking a snapshot"):
            made = client.snapshot(name, timeout=CHANGE_SECONDS_MAX)
        tell_snapshot(made)
        return
    with open_data_dir(data_dir) as opened:
        if isinstance(opened, ServedDataDir):
            if folder is not None:
                raise InvalidArgument(
                    f"a server has data dir {data_dir} and makes snapshots in its own "
                    "--snapshot-dir; leave --to out"
                )
            with Progress("taking a snapshot"):
                made = opened.client.snapshot(name, timeout=CHANGE_SECONDS_MAX)
            tell_snapshot(made)
            return
        if folder is None:
            raise InvalidArgument("no server has the data dir; say by --to where the snapshot goes")
        assert isinstance(opened, OwnedDataDir)
        with Progress("taking a snapshot"):
            taken = opened.snapshot(folder, name)
        tell_snapshot(SnapshotResult(taken.path, taken.lsn))


def publish_copy(
    table: str,
    if_version: int | None,
    keep_versions: int | None,
    target: CommandTarget,
) -> None:
    """Do what `gatherd publish` does without a source."""
    with changing(target, keep_versions) as make:
        tell_live(table, make(Publish(table, if_version=if_version or LIVE_VERSION)))


def tell_live(table: str, done: ChangeResult) -> None:
    """Say which version is live after a change."""
    click.echo(f"{table}: version {done.version} is live, LSN {done.lsn}")


def tell_snapshot(made: SnapshotResult) -> None:
    """Say where a snapshot is."""
    click.echo(f"{made.path}: snapshot as of LSN {made.lsn}")
