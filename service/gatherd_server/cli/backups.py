"""`gatherd backup`, `backups` and `restore`: snapshots copied to another place, and back."""

import json
from pathlib import Path
from typing import Any

import click

from gatherd.errors import BadFile, GatherdError, InvalidArgument
from gatherd_server.cli.data_dir import open_data_dir
from gatherd_server.cli.progress import Progress
from gatherd_server.cli.target import data_dir_options
from gatherd_server.cli.typed import FILE
from gatherd_server.snapshots.backups.contents import Backup, list_store, read_backup
from gatherd_server.snapshots.backups.copying import copy_snapshots
from gatherd_server.snapshots.backups.fetching import fetch, verify_backup
from gatherd_server.snapshots.backups.store import (
    FILE_SCHEME,
    FolderStore,
    Store,
    is_remote,
    join_url,
    open_store,
)
from gatherd_server.snapshots.restoring import restore as restore_snapshot
from gatherd_server.storage.files import Files


@click.command()
@click.argument("snapshots", type=click.Path(path_type=Path))
@click.argument("url")
@click.option(
    "--keep",
    type=click.IntRange(1, 10_000),
    help="Unnamed backups that stay there; without it all.",
)
def backup(snapshots: Path, url: str, keep: int | None) -> None:
    """Copy snapshots to URL, a folder or what fsspec has a package for.

    SNAPSHOTS is a folder of them, whose newest unnamed and all named ones are copied unless they
    are there, or one snapshot. A server with --backup-url does the same by itself.

    \b
        gatherd backup ./snapshots s3://bucket/gatherd --keep 7
        gatherd backup ./snapshots/monday /mnt/other/gatherd
    """
    if not snapshots.is_dir():
        raise BadFile(f"{snapshots} isn't a folder of snapshots")
    with Progress("copying snapshots"):
        outcome = copy_snapshots(snapshots, open_store(url), keep)
    failed = [one for one in outcome.copied if one.error]
    for one in outcome.copied:
        if not one.error:
            click.echo(f"{one.name}: copied, {one.byte_count} bytes, LSN {one.lsn}")
    for name in outcome.removed:
        click.echo(f"{name}: deleted there")
    if not outcome.copied:
        click.echo("nothing new to copy")
    if failed:
        raise BadFile("; ".join(f"{one.name}: {one.error}" for one in failed))


@click.command()
@click.argument("url")
@click.option("--verify", is_flag=True, help="Read every byte of each.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def backups(url: str, verify: bool, as_json: bool) -> None:
    """List the backups at URL, and what is no backup there. Exit status 6 when one is damaged."""
    store = open_store(url)
    contents = list_store(store)
    damaged = dict(contents.damaged)
    rows: list[dict[str, Any]] = []
    for one in sorted(contents.backups.values(), key=lambda one: one.snapshot.created):
        try:
            if verify:
                with Progress(f"verifying {one.name}"):
                    verify_backup(store, one)
        except GatherdError as error:
            damaged[one.name] = error.message
            continue
        rows.append(_row(one))
    if as_json:
        document = {"backups": rows, "unfinished": contents.unfinished, "damaged": damaged}
        click.echo(json.dumps(document))
    else:
        for row in rows:
            state = "  ok" if verify else ""
            click.echo(
                f"{row['name']}: LSN {row['lsn']}, {row['bytes']} bytes, {row['created']}{state}"
            )
        for name in contents.unfinished:
            click.echo(f"{name}: not whole; it can't be restored")
    if damaged:
        raise BadFile("; ".join(f"{name}: {why}" for name, why in damaged.items()))


def _row(one: Backup) -> dict[str, Any]:
    found = one.snapshot
    created = found.created.isoformat(timespec="seconds")
    return {
        "name": one.name,
        "lsn": found.lsn,
        "bytes": found.byte_count,
        "created": created,
    }


@click.command()
@click.argument("source", type=FILE, metavar="SNAPSHOT")
@click.option("--newest", is_flag=True, help="The newest of those in the folder SNAPSHOT.")
@data_dir_options("Folder to become the data dir, new or empty; with --table the data dir.")
@click.option(
    "--table",
    help="Only this table, into a data dir that has others: as a new version, which is live then.",
)
def restore(source: str, newest: bool, data_dir: Path, table: str | None) -> None:
    """Make a data dir of SNAPSHOT, a folder or a URL, every byte of it verified.

    With --table, only that table is restored, out of a folder; a server may have the data dir, and
    goes on. What the log keeps for a damaged table above the snapshot's LSN is stored into it.

    \b
        gatherd restore ./snapshots/monday --table words --data-dir ./data
        gatherd restore ./snapshots/monday --data-dir ./data
        gatherd restore s3://bucket/gatherd/monday --data-dir /data
        gatherd restore s3://bucket/gatherd --newest --data-dir /data
    """
    root, name = (source, "") if newest else _split(source)
    store = open_store(root)
    if newest:
        name = _newest(store).name
    if table is not None:
        if not isinstance(store, FolderStore):
            raise InvalidArgument(
                "one table is restored out of a folder; copy the backup to one first"
            )
        with open_data_dir(data_dir) as opened, Progress(f"restoring {table}"):
            done, lsn = opened.restore_table(store.root / name, table)
        click.echo(f"{table}: version {done.version} is live, restored as of LSN {lsn}")
        return
    with Progress(f"restoring {name}"):
        if isinstance(store, FolderStore):
            lsn = restore_snapshot(Files(), store.root / name, data_dir)
        else:
            lsn = fetch(Files(), store, read_backup(store, name), data_dir)
    click.echo(f"{data_dir}: {join_url(store.shown, name)} as of LSN {lsn}")


def _split(source: str) -> tuple[str, str]:
    """A snapshot's place, and its name there. InvalidArgument for a URL without a name."""
    if not is_remote(source):
        path = Path(source.removeprefix(FILE_SCHEME))
        return str(path.parent), path.name
    root, _, name = source.rstrip("/").rpartition("/")
    if root.endswith("/"):
        raise InvalidArgument(f"{source} has no backup's name in it; `gatherd backups` lists them")
    return root, name


def _newest(store: Store) -> Backup:
    contents = list_store(store)
    if contents.newest is None:
        raise BadFile(f"{store.shown} has no backup that is whole; `gatherd backups` shows it")
    return contents.newest
