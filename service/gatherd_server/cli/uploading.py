"""A server as the place to put an imported table: read here, uploaded in chunks."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd import Client
from gatherd._requests.tables import UploadResult
from gatherd.errors import AlreadyExists, TableNotFound
from gatherd.store.dtypes import DType
from gatherd.store.key_index import KeyKind
from gatherd.store.keys import Keys, StringKeys
from gatherd.store.limits import LIVE_VERSION
from gatherd_server.data_dir.owning import saving_to
from gatherd_server.storage.files import Files
from gatherd_server.storage.table_writer import TableFiles
from gatherd_server.types import OnDuplicate


class ServerTables:
    """The tables of a server, to import into; `duplicates` counts those of the last import."""

    def __init__(self, client: Client, on_duplicate: OnDuplicate) -> None:
        self.client = client
        self.duplicates = 0
        self._on_duplicate = on_duplicate

    def check_is_new(self, name: str) -> None:
        """AlreadyExists when the server has a table `name`."""
        with suppress(TableNotFound):
            self.client.table(name)
            raise AlreadyExists(f"the server has a table {name!r} already", {"table": name})

    @contextmanager
    def scratch(self) -> Iterator[Callable[[str, Iterable[bytes]], Path]]:
        """A function that saves a named stream of bytes to a temporary file in the block."""
        with tempfile.TemporaryDirectory(prefix="gatherd-") as folder:
            yield saving_to(Files(), Path(folder))

    def add_table(self, table: TableFiles) -> int:
        """Upload a new table; its row count. Nothing is left of it if that fails."""
        return self._taken(
            self.client.create_table(
                table.name,
                _batches(table),
                frozen=table.optimizer is None,
                **self._options(table),
            )
        )

    def publish(self, table: TableFiles, if_version: int = LIVE_VERSION) -> int:
        """Upload a new version of a table and make it live; its row count."""
        options = self._options(table)
        done = self.client.publish(
            table.name, _batches(table), if_version=if_version or None, **options
        )
        return self._taken(done)

    def _options(self, table: TableFiles) -> dict[str, Any]:
        return {
            "dtype": table.dtype.value,
            "optimizer": None if table.optimizer is None else table.optimizer.to_json(),
            "default_vector": table.default_vector,
            # The importer has treated them already, as it was asked to.
            "allow_nonfinite": True,
            "on_duplicate": self._on_duplicate.value if table.key_kind else "error",
        }

    def _taken(self, done: object) -> int:
        assert isinstance(done, UploadResult)
        self.duplicates = done.duplicates
        return done.rows


def _batches(table: TableFiles) -> Iterator[tuple[Any, Any]]:
    # An empty batch first, because a source may have no rows.
    yield _no_keys(table.key_kind), _sent(np.empty((0, table.dim), table.dtype.storage), table)
    for block in table.blocks:
        yield block.keys, _sent(block.rows, table)


def _no_keys(kind: KeyKind | None) -> Keys | None:
    if kind is None:
        return None
    if kind is KeyKind.BYTES:
        return StringKeys.of([])
    return np.empty(0, kind.value)


def _sent(rows: NDArray[Any], table: TableFiles) -> NDArray[Any]:
    """Rows as the SDK takes them: bfloat16 as a .npy file has it."""
    if table.dtype is not DType.BFLOAT16:
        return rows
    return np.ascontiguousarray(rows).view("V2")
