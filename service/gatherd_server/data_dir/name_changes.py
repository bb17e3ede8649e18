"""Changes of names: rename, and aliases. Each is one record of the log, and moves no file.

A table's folder stays when it is renamed; the catalog has it then. An alias points to a table,
never to an alias, so there are no chains and no cycles. A table and an alias never share a name.
"""

from dataclasses import replace

from gatherd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from gatherd.store.catalog import Catalog, CatalogEntry, check_table_name, named_entry
from gatherd_server.types import (
    ChangeResult,
    CloneTable,
    DeleteAlias,
    DeleteTable,
    RenameTable,
    SetAlias,
    WriterLimits,
)
from gatherd_server.writer.writer import Writer

ALIASES_MAX = 10_000


class NameChanges:
    """Makes changes of names through a writer. The caller makes them one at a time."""

    def __init__(self, writer: Writer, limits: WriterLimits) -> None:
        self._writer = writer
        self._files = limits.file_tables

    def check_is_new(self, name: str) -> None:
        """AlreadyExists when a table, an alias or a served file has the name `name`."""
        catalog = self._catalog()
        if name in self._files:
            raise AlreadyExists(
                f"the server serves a file as table {name!r}, which would hide the new one; choose "
                "another name, or start the server without the file",
                {"table": name},
            )
        if name in catalog.tables:
            raise AlreadyExists(f"there is a table {name!r} already", {"table": name})
        if name in catalog.aliases:
            raise AlreadyExists(
                f"{name!r} is an alias of table {catalog.aliases[name]!r} already; "
                f"`gatherd unalias {name}` removes it",
                {"table": name},
            )

    def check_is_no_file(self, *names: str) -> None:
        """FailedPrecondition when one of `names` is a file that is served in place."""
        for name in names:
            if name in self._files:
                raise FailedPrecondition(
                    f"table {name!r} is a file that is served where it lies, so nothing of it can "
                    "be changed; `gatherd import` makes a table of it that can",
                    {"table": name},
                )

    def meant(self, name: str) -> tuple[str, CatalogEntry]:
        """The table that `name`, perhaps an alias, means; TableNotFound when there is none."""
        return named_entry(self._catalog(), name)

    def folder_for(self, name: str, uid: str) -> str:
        """A folder for the new table `name`: of that name, unless a renamed table has it."""
        taken = {entry.folder_of(table) for table, entry in self._catalog().tables.items()}
        return name if name not in taken else f"{name}~{uid[:8]}"

    def rename(self, change: RenameTable) -> ChangeResult:
        """Rename a table; its aliases follow."""
        self.check_is_no_file(change.table)
        self._check_is_table(change.table)
        check_table_name(change.to)

        def switch() -> int:
            self.check_is_new(change.to)
            catalog = self._catalog()
            table, entry = named_entry(catalog, change.table)
            folder = entry.folder_of(table)
            tables = {name: one for name, one in catalog.tables.items() if name != table}
            tables[change.to] = replace(entry, folder="" if folder == change.to else folder)
            aliases = {
                alias: change.to if target == table else target
                for alias, target in catalog.aliases.items()
            }
            if change.keep_alias:
                aliases[table] = change.to
                _check_count(aliases)
            return self._writer.change_catalog(replace(catalog, tables=tables, aliases=aliases))

        lsn = self._writer.between(switch)
        return ChangeResult(self.meant(change.to)[1].live, lsn)

    def set_alias(self, change: SetAlias) -> ChangeResult:
        """Point an alias to a table."""
        alias, table = check_table_name(change.alias), change.table
        self.check_is_no_file(table)
        catalog = self._catalog()
        if table in catalog.aliases:
            raise InvalidArgument(
                f"{table!r} is itself an alias, of table {catalog.aliases[table]!r}; point to "
                f"that: `gatherd alias {alias} {catalog.aliases[table]}`",
                {"table": table},
            )
        if alias not in catalog.aliases:
            self.check_is_new(alias)

        def switch() -> int:
            catalog = self._catalog()
            named_entry(catalog, table)
            aliases = {**catalog.aliases, alias: table}
            _check_count(aliases)
            return self._writer.change_catalog(replace(catalog, aliases=aliases))

        lsn = self._writer.between(switch)
        return ChangeResult(self.meant(table)[1].live, lsn)

    def delete_alias(self, change: DeleteAlias) -> ChangeResult:
        """Remove an alias. The table stays."""
        catalog, alias = self._catalog(), change.alias
        if alias in catalog.tables:
            raise InvalidArgument(
                f"{alias!r} is a table and no alias; `gatherd delete {alias}` removes a table",
                {"table": alias},
            )
        if alias not in catalog.aliases:
            raise NotFound(f"there is no alias {alias[:128]!r}", {"table": alias[:128]})
        _, entry = self.meant(alias)

        def switch() -> int:
            aliases = {name: of for name, of in self._catalog().aliases.items() if name != alias}
            return self._writer.change_catalog(replace(self._catalog(), aliases=aliases))

        return ChangeResult(entry.live, self._writer.between(switch))

    def check_can_be_deleted(self, change: DeleteTable) -> None:
        """Refuse an alias, and a table with aliases unless these are to go with it."""
        self._check_is_table(change.table)
        aliases = self._catalog().aliases_of(change.table)
        if aliases and not change.force:
            one = aliases[0]
            more = f" (and {len(aliases) - 1} more)" if len(aliases) > 1 else ""
            raise FailedPrecondition(
                f"alias {one!r}{more} points to table {change.table!r}; first point it to another "
                f"table, `gatherd alias {one} TABLE`, or remove it, `gatherd unalias {one}`; or "
                f"remove them all: `gatherd delete {change.table} --force`",
                {"table": change.table, "alias": one},
            )

    def check_clone(self, change: CloneTable) -> None:
        """Refuse a clone whose name is impossible or taken, or whose source is a file."""
        check_table_name(change.table)
        self.check_is_no_file(change.source)
        self.check_is_new(change.table)

    def _check_is_table(self, name: str) -> None:
        target = self._catalog().aliases.get(name)
        if target is not None:
            raise FailedPrecondition(
                f"{name!r} is an alias of table {target!r}; name that table, or remove the alias: "
                f"`gatherd unalias {name}`",
                {"table": name},
            )

    def _catalog(self) -> Catalog:
        return self._writer.versions().catalog


def _check_count(aliases: dict[str, str]) -> None:
    if len(aliases) > ALIASES_MAX:
        raise FailedPrecondition(f"there are {ALIASES_MAX} aliases already; remove some first")
