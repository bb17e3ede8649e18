"""The tables that can be looked up: one live version of each name."""

from collections.abc import Mapping
from pathlib import Path

from gatherd.errors import GatherdError, TableRefused, VersionNotFound
from gatherd.store.catalog import open_table, read_catalog, read_default_vector, table_not_found
from gatherd.store.format import read_layout
from gatherd.store.table import Preload, Table
from gatherd_server.types import LIVE_VERSION, TableInfo, TableSource


class LiveTables:
    """Names to mapped tables, and to the reason for those that had to be refused."""

    def __init__(self, tables: Mapping[str, Table], refused: Mapping[str, str]) -> None:
        self._tables = dict(tables)
        self._refused = dict(refused)

    def get(self, name: str, version: int = LIVE_VERSION) -> Table:
        """The table called `name`; TableNotFound, TableRefused or VersionNotFound if not."""
        table = self._tables.get(name)
        if table is None:
            raise self._why_not(name)
        if version not in (LIVE_VERSION, table.version):
            raise VersionNotFound(
                f"table {name!r} has no version {version}; version {table.version} is live",
                {"table": name, "version": str(version), "live": str(table.version)},
            )
        return table

    def _why_not(self, name: str) -> GatherdError:
        if name in self._refused:
            return TableRefused(
                f"table {name!r} can't be served: {self._refused[name]}", {"table": name}
            )
        return table_not_found(name, self._tables)

    def info(self, name: str) -> TableInfo:
        """What is told about `name`, refused or not. TableNotFound when it isn't there."""
        if name in self._refused:
            return TableInfo(name, 0, 0, None, 0, refused=self._refused[name])
        table = self.get(name)
        return TableInfo(
            name,
            table.row_count,
            table.dim,
            table.dtype,
            table.version,
            trainable=table.is_trainable,
            key_kind=table.keys.kind.value if table.keys else "",
            rows_bytes=table.nbytes,
            keys_bytes=table.keys.nbytes if table.keys else 0,
            resident_bytes=table.resident_bytes(),
        )

    def states(self) -> dict[str, str]:
        """Every table's name, in order, and why it is refused, or "" when it is served."""
        served = dict.fromkeys(self._tables, "")
        return dict(sorted({**served, **self._refused}.items()))

    def infos(self) -> list[TableInfo]:
        """Every table, by name."""
        return [self.info(name) for name in self.states()]


def open_sources(
    sources: Mapping[int, TableSource], data_dir: Path | None, preload: Preload
) -> LiveTables:
    """Open what a worker serves: files by their descriptors, and the data dir's live versions.

    A table that can't be opened is refused with the reason, and the others are served: a worker
    that comes back after a file was truncated has to answer for the rest.
    """
    tables: dict[str, Table] = {}
    refused: dict[str, str] = {}
    for fd, source in sources.items():
        try:
            tables[source.name] = open_source(source, fd)
        except GatherdError as error:
            refused[source.name] = error.message
    if data_dir is not None:
        for name, entry in read_catalog(data_dir).tables.items():
            try:
                tables[name] = open_table(data_dir, name, entry.live)
            except GatherdError as error:
                refused[name] = error.message
    for name, table in list(tables.items()):
        try:
            table.preload(preload)
        except GatherdError as error:
            refused[name] = error.message
            del tables[name]
    return LiveTables(tables, refused)


def open_source(source: TableSource, fd: int) -> Table:
    """Map a file where it lies, as version 1. BadFile or InvalidArgument when it can't be."""
    layout = read_layout(fd, str(source.path), source.tensor)
    default = read_default_vector(source.default_vector) if source.default_vector else None
    return Table.map(source.name, 1, fd, layout, default)
