"""`gatherd snapshots`: lists and deletes the snapshots of a server, or those in a folder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from gatherd import Client, SnapshotInfo
from gatherd.errors import BadFile, InvalidArgument
from gatherd_server.cli.data_dir import CHANGE_SECONDS_MAX, has_server
from gatherd_server.cli.target import CommandTarget, target_options
from gatherd_server.cli.verbs import Subverbs
from gatherd_server.snapshots.snapshot import delete_snapshot, list_snapshots
from gatherd_server.storage.files import Files

_folder_option = click.option(
    "--in",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of snapshots, instead of a server's --snapshot-dir.",
)


@click.group(cls=Subverbs)
def snapshots() -> None:
    """List snapshots, or delete one.

    \b
        gatherd snapshots
        gatherd snapshots --in ./snapshots
        gatherd snapshots delete monday
    """


@snapshots.command("list")
@_folder_option
@target_options
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def list_all(folder: Path | None, target: CommandTarget, as_json: bool) -> None:
    """List snapshots, oldest first, with LSN, size and time.

    The word `list` can be left out. Status 6 when one is damaged.
    """
    if folder is not None:
        infos = _in_folder(folder)
    else:
        with _asking(target) as client:
            infos = client.snapshots()
    if as_json:
        rows = [{**asdict(info), "created": info.created and str(info.created)} for info in infos]
        click.echo(json.dumps({"snapshots": rows}))
    else:
        for info in infos:
            if not info.damaged:
                click.echo(f"{info.name}: LSN {info.lsn}, {info.bytes} bytes, {info.created}")
    damaged = [f"{info.name}: {info.damaged}" for info in infos if info.damaged]
    if damaged:
        raise BadFile("; ".join(damaged))


@snapshots.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Don't ask.")
@_folder_option
@target_options
def delete(name: str, yes: bool, folder: Path | None, target: CommandTarget) -> None:
    """Remove the snapshot NAME.

    Refused are one that is being copied or restored, and a folder that isn't a snapshot.
    """
    if not yes:
        where = folder or target.data_dir or target.url
        click.confirm(f"Remove snapshot {name!r} from {where}?", abort=True)
    if folder is not None:
        delete_snapshot(Files(), _existing(folder), name)
    else:
        with _asking(target) as client:
            client.delete_snapshot(name, timeout=CHANGE_SECONDS_MAX)
    click.echo(f"{name}: deleted")


@contextmanager
def _asking(target: CommandTarget) -> Iterator[Client]:
    """A client of the server, which alone knows its folder of snapshots."""
    if target.data_dir is not None and not has_server(target.data_dir):
        raise InvalidArgument(
            f"no server has data dir {target.data_dir}; say by --in which folder has its snapshots"
        )
    with target.connect() as client:
        yield client


def _in_folder(folder: Path) -> list[SnapshotInfo]:
    return [
        SnapshotInfo(
            one.name,
            one.path,
            one.lsn,
            None if one.damaged else datetime.fromtimestamp(one.created_seconds, UTC),
            one.byte_count,
            one.damaged,
        )
        for one in list_snapshots(_existing(folder)).snapshots
    ]


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise BadFile(f"{folder} isn't a folder of snapshots")
    return folder
