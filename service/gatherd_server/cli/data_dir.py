"""A data dir that the command line changes, whether or not a server has it.

Without a server this process takes the data dir's lock and makes the change itself. With one it
writes imported files beside the server's, where nobody looks, and asks the server over the socket
in the data dir to take them in, so that the running server's next request sees them.

Left out on purpose: waiting for a lock that another command holds; its owner may take hours.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gatherd import ChangeResult as ClientResult
from gatherd import Client
from gatherd.errors import DataDirInUse, FailedPrecondition
from gatherd.store.catalog import STAGING_NAME
from gatherd.store.limits import LIVE_VERSION
from gatherd_server.data_dir.owning import DataDir, own_data_dir
from gatherd_server.processes.sockets import SERVER_SOCKET_NAME, open_beside
from gatherd_server.storage.files import Files
from gatherd_server.types import (
    AddStaged,
    ChangeResult,
    CreateTable,
    DeleteTable,
    DeleteVersion,
    Publish,
    Rollback,
    SetOptimizer,
    TableChange,
    WriterLimits,
)

# A change that a server makes may copy a table, and have every worker map it.
CHANGE_SECONDS_MAX = 3600.0
ANSWER_SECONDS_MAX = 5.0
# A starting server sweeps staging, which takes as long as deleting its files.
SWEEP_SECONDS_MAX = 30.0
_PAUSE_SECONDS = 0.05


class ServedDataDir(DataDir):
    """A data dir that a server on this machine has; made by `open_data_dir`."""

    def __init__(self, files: Files, path: Path, client: Client) -> None:
        super().__init__(files, path)
        self.client = client

    def change(self, change: TableChange) -> ChangeResult:
        """Have the server make a change. On return it is durable, and its next request sees it."""
        return ask(self.client, change)


@contextmanager
def open_data_dir(
    path: Path, *, create: bool = False, keep_versions: int | None = None
) -> Iterator[DataDir]:
    """The data dir `path`, to be changed inside the `with` block; see `own_data_dir`.

    `keep_versions` is how many superseded versions stay; None for a server's default, or for the
    setting of the server that has the data dir. DataDirInUse when a process other than a server has
    it, FailedPrecondition when a server has it and `keep_versions` is given.
    """
    keep = WriterLimits().keep_versions if keep_versions is None else keep_versions
    with ExitStack() as stack:
        try:
            owned: DataDir = stack.enter_context(
                own_data_dir(path, create=create, keep_versions=keep)
            )
        except DataDirInUse:
            if not has_server(path):
                raise
            if keep_versions is not None:
                raise FailedPrecondition(
                    f"a server has data dir {path}, and keeps as many versions as its own "
                    "keep_versions says; leave --keep-versions out"
                ) from None
            owned = stack.enter_context(_served(path))
        yield owned


@contextmanager
def _served(path: Path) -> Iterator[ServedDataDir]:
    files = Files()
    files.make_dirs(path / STAGING_NAME, durable=False)
    with (
        _unswept(files, path / STAGING_NAME),
        Client(f"local:{path.resolve()}", timeout=CHANGE_SECONDS_MAX) as client,
    ):
        yield ServedDataDir(files, path, client)


def has_server(path: Path) -> bool:
    """Whether a server listens on the data dir's socket."""
    folder, address = open_beside(path, SERVER_SOCKET_NAME)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(ANSWER_SECONDS_MAX)
            probe.connect(str(address))
            return True
    except OSError:
        return False
    finally:
        os.close(folder)


@contextmanager
def _unswept(files: Files, staging: Path) -> Iterator[None]:
    """Keep a server that starts meanwhile from sweeping away the files being staged."""
    deadline = time.monotonic() + SWEEP_SECONDS_MAX
    while True:
        with files.shared_folder(staging, exclusive=False) as is_held:
            if is_held:
                yield
                return
        if time.monotonic() >= deadline:
            raise DataDirInUse(
                f"{staging} was swept for longer than {SWEEP_SECONDS_MAX:g} seconds; try again"
            )
        time.sleep(_PAUSE_SECONDS)


def ask(client: Client, change: TableChange) -> ChangeResult:
    """Have a server make a change. Raises the client's errors."""
    seconds = CHANGE_SECONDS_MAX
    match change:
        case AddStaged(table, staged):
            done = client.add_staged_table(table, staged, timeout=seconds)
        case DeleteTable(table):
            done = client.delete_table(table, timeout=seconds)
        case DeleteVersion(table, version):
            done = client.delete_version(table, version, timeout=seconds)
        case Publish(table, staged, if_version):
            insisted = _given(if_version)
            done = client.publish(table, staged=staged, if_version=insisted, timeout=seconds)
        case Rollback(table, version, if_version):
            insisted = _given(if_version)
            done = client.rollback(table, _given(version), if_version=insisted, timeout=seconds)
        case SetOptimizer(table, spec, if_version):
            insisted = _given(if_version)
            # Without a name the options are of the present optimizer.
            wanted: dict[str, Any] = {**spec.options, "optimizer": spec.name or None}
            done = client.set_optimizer(table, **wanted, if_version=insisted, timeout=seconds)
        case CreateTable():
            done = _create_open(client, change)
    return ChangeResult(done.version, done.lsn)


def _create_open(client: Client, change: CreateTable) -> ClientResult:
    """An open table; the command line stages the files of any other that it creates."""
    spec, optimizer = change.open, change.optimizer
    assert spec is not None
    return client.create_table(
        change.table,
        dim=change.dim,
        keys=spec.keys,
        rows_max=spec.rows_max,
        on_missing=spec.on_missing,
        admit_after=spec.admit_after,
        on_full=spec.on_full.value,
        ttl=spec.ttl_seconds or None,
        touch_on_lookup=spec.touch_on_lookup,
        dtype=change.dtype.value,
        init=spec.init.to_json(),
        seed=spec.seed,
        optimizer=None if optimizer is None else {"name": optimizer.name, **optimizer.options},
        timeout=CHANGE_SECONDS_MAX,
    )


def _given(version: int) -> int | None:
    return None if version == LIVE_VERSION else version
