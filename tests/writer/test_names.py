"""Names of tables against a dict: rename, aliases, clone, replace, publish, rollback, delete.

A machine makes the changes through a writer in this process and sometimes opens the data dir anew;
after each step the catalog, and every row by every name, are what the dict says.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from durability.trainer import Quick
from gatherd.errors import (
    AlreadyExists,
    FailedPrecondition,
    GatherdError,
    InvalidArgument,
    NotFound,
    TableNotFound,
    VersionNotFound,
)
from gatherd.store.catalog import TABLES_NAME
from gatherd.store.live import LiveTables
from gatherd_server.data_dir.changes import Changes
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.types import (
    CloneTable,
    DeleteAlias,
    DeleteTable,
    Publish,
    Push,
    RenameTable,
    ReplaceTable,
    Rollback,
    SetAlias,
    TableChange,
    TableUpdate,
    UpdateOp,
    WriterLimits,
)
from gatherd_server.writer.window import push_digest
from gatherd_server.writer.writer import Writer
from support.tables import drawn_table

NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
ROWS, DIM, KEEP = 3, 2, 2
Rows = NDArray[np.float32]


class Names(RuleBasedStateMachine):
    """`tables` has each table's versions and the live one; `aliases` the table of each alias."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        with own_data_dir(self.folder, create=True, files=Quick()):
            pass
        self.tables: dict[str, tuple[int, dict[int, Rows]]] = {}
        self.aliases: dict[str, str] = {}
        self.reader = LiveTables(self.folder)
        self.pushed = 0
        self.open()
        self.create("a")
        self.create("b")

    def open(self) -> None:
        self.writer = Writer(self.folder, Quick(), WriterLimits(keep_versions=KEEP))
        self.changes = Changes(self.writer, WriterLimits(keep_versions=KEEP))
        self.changes.begin()

    def close(self) -> None:
        self.changes.close()
        self.writer.close()

    def teardown(self) -> None:
        self.close()
        shutil.rmtree(self.folder)

    def refused(self, change: TableChange, why: type[GatherdError] | None) -> bool:
        """Make the change; whether it was refused, which it has to be for `why`."""
        error = self.changes.change(change).exception(30)
        if why is None:
            assert error is None, change
            return False
        assert isinstance(error, why), (change, error)
        return True

    def meant(self, name: str) -> str:
        return self.aliases.get(name, name)

    def is_taken(self, name: str) -> bool:
        return name in self.tables or name in self.aliases

    def superseded(self, name: str, version: int, live: int) -> None:
        """Keep the versions that stay when `version` is made live."""
        versions = self.tables[name][1]
        others = sorted(set(versions) - {version}, key=lambda number: (number == live, number))
        kept = {version, max(versions), *others[-KEEP:]}
        self.tables[name] = version, {number: versions[number] for number in kept}

    @rule(name=NAMES)
    def create(self, name: str) -> None:
        why = AlreadyExists if self.is_taken(name) else None
        if not self.refused(drawn_table(name, ROWS, DIM, optimizer="adagrad"), why):
            self.tables[name] = 1, {1: np.zeros((ROWS, DIM), np.float32)}

    @rule(name=NAMES, to=NAMES, keep=st.booleans())
    def rename(self, name: str, to: str, keep: bool) -> None:
        why: type[GatherdError] | None = None
        if name in self.aliases:
            why = FailedPrecondition
        elif self.is_taken(to):
            why = AlreadyExists
        elif name not in self.tables:
            why = TableNotFound
        if not self.refused(RenameTable(name, to, keep), why):
            self.tables[to] = self.tables.pop(name)
            self.aliases = {a: to if of == name else of for a, of in self.aliases.items()}
            if keep:
                self.aliases[name] = to

    @rule(name=NAMES, table=NAMES)
    def alias(self, name: str, table: str) -> None:
        why: type[GatherdError] | None = None
        if table in self.aliases:
            why = InvalidArgument
        elif name in self.tables:
            why = AlreadyExists
        elif table not in self.tables:
            why = TableNotFound
        if not self.refused(SetAlias(name, table), why):
            self.aliases[name] = table

    @rule(name=NAMES)
    def unalias(self, name: str) -> None:
        why = None if name in self.aliases else NotFound
        if not self.refused(DeleteAlias(name), InvalidArgument if name in self.tables else why):
            del self.aliases[name]

    @rule(name=NAMES, force=st.booleans())
    def delete(self, name: str, force: bool) -> None:
        why: type[GatherdError] | None = None
        if name in self.aliases or (name in self.aliases.values() and not force):
            why = FailedPrecondition
        elif name not in self.tables:
            why = TableNotFound
        if not self.refused(DeleteTable(name, force), why):
            del self.tables[name]
            self.aliases = {alias: of for alias, of in self.aliases.items() if of != name}

    @rule(source=NAMES, to=NAMES)
    def clone(self, source: str, to: str) -> None:
        why: type[GatherdError] | None = None
        if self.is_taken(to):
            why = AlreadyExists
        elif self.meant(source) not in self.tables:
            why = TableNotFound
        if not self.refused(CloneTable(to, source), why):
            live, versions = self.tables[self.meant(source)]
            self.tables[to] = 1, {1: versions[live]}

    @rule(name=NAMES, source=NAMES)
    def replace(self, name: str, source: str) -> None:
        table, of = self.meant(name), self.meant(source)
        why: type[GatherdError] | None = None
        if table not in self.tables or of not in self.tables:
            why = TableNotFound
        elif table == of:
            why = InvalidArgument
        if not self.refused(ReplaceTable(name, source), why):
            live, versions = self.tables[of]
            self.published(table, versions[live])

    @rule(name=NAMES)
    def publish(self, name: str) -> None:
        table = self.meant(name)
        if not self.refused(Publish(name), None if table in self.tables else TableNotFound):
            live, versions = self.tables[table]
            self.published(table, versions[live])

    def published(self, table: str, rows: Rows) -> None:
        live, versions = self.tables[table]
        new = max(versions) + 1
        versions[new] = rows
        self.superseded(table, new, live)

    @rule(name=NAMES)
    def roll_back(self, name: str) -> None:
        table = self.meant(name)
        why: type[GatherdError] | None = TableNotFound
        older: list[int] = []
        if table in self.tables:
            live, versions = self.tables[table]
            older = [version for version in versions if version < live]
            why = None if older else VersionNotFound
        if not self.refused(Rollback(name), why):
            self.superseded(table, max(older), live)

    @rule(name=NAMES)
    def push(self, name: str) -> None:
        self.pushed += 1
        rows = np.full((1, DIM), self.pushed, np.float32)
        update = TableUpdate(name, np.array([self.pushed % ROWS]), rows)
        push = Push(UpdateOp.ASSIGN, (update,))
        future = self.writer.submit(push, push_digest(push))
        table = self.meant(name)
        if table not in self.tables:
            assert isinstance(future.exception(30), TableNotFound)
            return
        live, versions = self.tables[table]
        assert future.result(30).versions == (live,)
        changed = versions[live].copy()
        changed[self.pushed % ROWS] = rows
        versions[live] = changed

    @rule()
    def open_anew(self) -> None:
        self.close()
        self.open()

    @invariant()
    def every_name_means_what_the_dict_says(self) -> None:
        view = self.reader.current()
        assert dict(view.catalog.aliases) == self.aliases
        assert view.names() == sorted(self.tables)
        for name in (*self.tables, *self.aliases):
            live, versions = self.tables[self.meant(name)]
            assert view.live_version(name) == live
            for version, rows in versions.items():
                found = self.reader.take([(name, version)])[0]
                np.testing.assert_array_equal(found.lookup(np.arange(ROWS)).vectors, rows)
        folders = {path.name for path in (self.folder / TABLES_NAME).glob("*")}
        assert len(folders) == len(self.tables)


Names.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestNames: Any = Names.TestCase
