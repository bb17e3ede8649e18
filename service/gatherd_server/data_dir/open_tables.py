"""Open tables as they come into a data dir: their first files, and the writer's hold on a version.

An open version is settled before it is live: its index is built of its rows, as a new file, and the
writer goes on with the version as it is mapped then. Building it after readers have mapped the
version would leave them with an index that nobody keeps.
"""

from pathlib import Path
from typing import Any

from gatherd.store.open_files import OPEN
from gatherd_server.storage.files import Files
from gatherd_server.storage.open_table_writer import OpenTable, stage_open_table
from gatherd_server.storage.open_version import OpenVersion
from gatherd_server.storage.table_writer import StagedTable
from gatherd_server.storage.trainable import read_manifest
from gatherd_server.training.optimizer import Optimizer
from gatherd_server.types import CreateTable


def stage_created(files: Files, staging: Path, change: CreateTable) -> StagedTable:
    """Write a new open table's files to a folder in `staging`; raises what stage_open_table does.

    Without an optimizer it takes scatter_add, assign and delete_rows.
    """
    spec = change.open
    assert spec is not None
    optimizer = Optimizer.parse("none", {})
    if change.optimizer is not None:
        optimizer = Optimizer.from_spec(change.optimizer)
    origin: dict[str, Any] = {"created": "open"}
    table = OpenTable(change.table, change.dtype, change.dim, spec, optimizer, origin)
    return stage_open_table(files, staging, table)


def is_open(folder: Path) -> bool:
    """Whether a version's manifest says that it is open. BadFile when it can't be read."""
    return OPEN in read_manifest(folder)


def settled(files: Files, folder: Path) -> OpenVersion | None:
    """The open version in `folder`, settled, for the writer to adopt; None if it isn't open.

    Nobody stores into it yet. BadFile when its files are damaged, DiskFull without room.
    """
    if not is_open(folder):
        return None
    version = OpenVersion.open(files, folder)
    version.settle()
    return version
