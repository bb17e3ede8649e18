"""Readers of a data dir that changes under them: one set of versions a request, and the newest."""

import gc
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from gatherd import Client
from gatherd.errors import (
    BadFile,
    FailedPrecondition,
    GatherdError,
    TableNotFound,
    TableRefused,
    VersionNotFound,
)
from gatherd.store.catalog import version_dir
from gatherd.store.live import LiveTables, View
from gatherd.store.shards import open_rows
from gatherd.store.table import Preload, Table
from gatherd_server.engine.engine import Engine
from gatherd_server.engine.tables import ServedTables, open_source
from gatherd_server.types import Lookup, TableSource
from support.file_tables import open_file_table
from support.publisher import ROWS, Publisher
from support.small_engine import LIMITS

IDS = np.arange(ROWS)
PUBLISHES = 80


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    publisher = Publisher(tmp_path)
    publisher.publish(1, "a", "b")
    return publisher


def one_value(rows: NDArray[Any]) -> float:
    """The one number that all rows of a version hold."""
    assert rows.min() == rows.max()
    return float(rows[0, 0])


def value_of(table: Table) -> float:
    return one_value(table.lookup(IDS).vectors)


def values(live: LiveTables, *wanted: tuple[str, int]) -> list[float]:
    return [value_of(table) for table in live.take(wanted)]


def mapped_files(path: Path) -> list[str]:
    """The files below `path` that this process has mapped, but for the control page."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if str(path) in line and not line.endswith("/control")]


# What one reader sees


def test_a_change_is_seen_at_the_next_request(publisher: Publisher) -> None:
    live = LiveTables(publisher.path)
    assert values(live, ("a", 0), ("b", 0)) == [1, 1]
    publisher.stage("a", 2)
    assert values(live, ("a", 0)) == [1]
    publisher.switch(a=2)
    assert values(live, ("a", 0), ("b", 0)) == [2, 1]
    publisher.switch(a=1)
    assert values(live, ("a", 0)) == [1]
    publisher.publish(7, "new")
    assert values(live, ("new", 0)) == [7]
    publisher.switch(a=None)
    with pytest.raises(TableNotFound, match="no table 'a'; there are: b, new"):
        live.take([("a", 0)])


def test_a_view_stays_what_it_was(publisher: Publisher) -> None:
    view = LiveTables(publisher.path).current()
    table = view.table("a")
    publisher.switch(a=None)
    assert view.names() == ["a", "b"]
    assert view.table("a") is table
    assert value_of(table) == 1


def test_the_catalog_is_read_when_it_changed_and_not_before(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LiveTables(publisher.path)
    view = live.current()
    (publisher.path / "catalog.json").rename(publisher.path / "away")
    assert live.current() is view
    (publisher.path / "away").rename(publisher.path / "catalog.json")
    publisher.publish(2, "a")
    assert live.current() is not view


def test_kept_versions_can_be_asked_for(publisher: Publisher) -> None:
    for value in (2, 3, 4):
        publisher.publish(value, "a")
    live = LiveTables(publisher.path)
    assert values(live, ("a", 0), ("a", 2), ("a", 3), ("a", 4)) == [4, 2, 3, 4]
    view = live.current()
    assert (view.versions("a"), view.live_version("a")) == ((2, 3, 4), 4)
    for missing in (1, 5):
        with pytest.raises(VersionNotFound) as caught:
            live.take([("a", missing)])
        assert caught.value.message == (
            f"table 'a' has no version {missing}; it has 2, 3, 4; version 4 is live"
        )
    publisher.publish(5, "a")
    assert values(live, ("a", 3)) == [3]
    with pytest.raises(VersionNotFound, match="it has 3, 4, 5; version 5 is live"):
        live.take([("a", 2)])


def test_a_table_made_anew_is_another_table(publisher: Publisher) -> None:
    live = LiveTables(publisher.path)
    (old,) = live.take([("a", 1)])
    publisher.switch(a=None)
    publisher.publish(9, "a")
    assert values(live, ("a", 0), ("a", 1)) == [9, 9]
    assert value_of(old) == 1


def test_files_of_a_table_that_is_gone_are_not_taken_for_it(publisher: Publisher) -> None:
    live = LiveTables(publisher.path)
    views: list[View] = []

    def ask(view: View) -> float:
        if not views:
            publisher.switch(a=None)
            publisher.stage("a", 99)  # another table's, which isn't there yet
        views.append(view)
        return value_of(view.table("a"))

    with pytest.raises(TableNotFound):
        live.read(ask)
    assert len(views) == 2


@pytest.mark.parametrize("keep_superseded", [True, False])
def test_a_superseded_version_stays_mapped_if_it_is_to(
    publisher: Publisher, keep_superseded: bool
) -> None:
    dropped: list[Table] = []
    live = LiveTables(publisher.path, at_drop=dropped.extend, keep_superseded=keep_superseded)
    (before,) = live.take([("a", 0)])
    publisher.publish(2, "a", keep=2)
    (after,) = live.take([("a", 1)])
    assert value_of(after) == 1
    assert (after is before) is keep_superseded
    assert dropped == ([] if keep_superseded else [before])
    dropped.clear()
    publisher.publish(3, "a", keep=2)
    live.current()
    assert after in dropped


def test_a_version_is_unmapped_when_the_last_who_reads_it_is_done(publisher: Publisher) -> None:
    live = LiveTables(publisher.path)
    held = live.take([("a", 0)])
    publisher.switch(a=None)
    publisher.publish(2, "b", keep=1)
    assert values(live, ("b", 0)) == [2]
    gc.disable()  # what is let go mustn't wait for it
    try:
        assert len(mapped_files(publisher.path / "tables" / "a")) == 1
        assert value_of(held[0]) == 1
        del held
        assert mapped_files(publisher.path / "tables" / "a") == []
    finally:
        gc.enable()


def test_tables_of_files_stand_beside_those_of_the_data_dir_and_hide_them(
    publisher: Publisher, tmp_path: Path
) -> None:
    np.save(tmp_path / "file.npy", np.full((ROWS, 8), 42, np.float32))
    file = open_file_table("a", tmp_path / "file.npy", None)
    live = LiveTables(publisher.path, fixed={"a": file}, refused={"c": "its file is truncated"})
    assert values(live, ("a", 0), ("a", 1), ("b", 0)) == [42, 42, 1]
    publisher.publish(2, "a", "b", "c")
    assert values(live, ("a", 0), ("b", 0)) == [42, 2]
    assert live.current().names() == ["a", "b", "c"]
    with pytest.raises(VersionNotFound, match="'a' has no version 2; it has 1"):
        live.take([("a", 2)])
    with pytest.raises(TableRefused, match="'c' can't be served: its file is truncated"):
        live.take([("c", 0)])


def replacing_file(folder: Path, name: str, version: int, value: float) -> Table:
    """A file's table, whose path is another file before and after."""
    new = folder / "new.npy"
    np.save(new, np.full((ROWS, 8), value, np.float32))
    new.replace(folder / "file.npy")
    source = TableSource(name, folder / "file.npy")
    fd = open_rows(source.path, None)
    try:
        return open_source(source, fd, version)
    finally:
        os.close(fd)


def test_files_are_replaced_together_beside_a_data_dir_that_changes(
    publisher: Publisher, tmp_path: Path
) -> None:
    file = partial(replacing_file, tmp_path)
    dropped: list[Table] = []
    first = file("f", 1, 42)
    live = LiveTables(
        publisher.path,
        fixed={"f": first, "g": file("g", 1, 43)},
        refused={"c": "its file is truncated"},
        at_drop=dropped.extend,
    )
    assert values(live, ("f", 0), ("g", 0), ("a", 0)) == [42, 43, 1]
    began = live.current()
    live.replace_fixed({"f": file("f", 2, 52), "c": file("c", 2, 62)})
    assert values(live, ("f", 0), ("f", 2), ("g", 0), ("c", 0), ("a", 0)) == [52, 52, 43, 62, 1]
    assert dropped == [first]
    assert value_of(began.table("f")) == 42, "a request that began before goes on"
    with pytest.raises(VersionNotFound, match="'f' has no version 1; it has 2"):
        live.take([("f", 1)])
    publisher.publish(2, "a", "b")
    assert values(live, ("f", 0), ("c", 0), ("a", 0)) == [52, 62, 2]
    assert live.current().names() == ["a", "b", "c", "f", "g"]


def test_a_catalog_older_than_the_page_is_read_until_they_agree(publisher: Publisher) -> None:
    live = LiveTables(publisher.path)
    before = (publisher.path / "catalog.json").read_bytes()
    publisher.publish(2, "a")
    after = (publisher.path / "catalog.json").read_bytes()
    (publisher.path / "catalog.json").write_bytes(before)
    assert values(live, ("a", 0)) == [1]
    (publisher.path / "catalog.json").write_bytes(after)
    assert values(live, ("a", 0)) == [2]


def test_a_catalog_that_contradicts_itself_is_an_error(publisher: Publisher) -> None:
    entry = publisher.catalog.tables["a"]
    tables = {"a": replace(entry, live=7)}
    publisher.replace(replace(publisher.catalog, tables=tables))
    with pytest.raises(BadFile, match=r"catalog\.json is damaged: table 'a' .* version 7 is live"):
        LiveTables(publisher.path).current()


def test_a_forked_child_goes_on_reading(publisher: Publisher) -> None:
    live = LiveTables(publisher.path)
    assert values(live, ("a", 0)) == [1]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.read(reader, 1)
            os._exit(0 if values(live, ("a", 0), ("b", 0)) == [2, 1] else 1)
        finally:
            os._exit(2)
    publisher.publish(2, "a")
    os.write(writer, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Mapped beforehand, as a server does


def test_every_live_version_is_given_to_at_open_once(publisher: Publisher) -> None:
    opened: list[tuple[str, int]] = []
    live = LiveTables(publisher.path, at_open=lambda t: opened.append((t.name, t.version)))
    live.current()
    assert sorted(opened) == [("a", 1), ("b", 1)]
    opened.clear()
    publisher.publish(2, "a")
    live.current()
    live.take([("a", 1)])
    assert opened == [("a", 2)]
    publisher.switch(a=1)
    live.current()
    assert opened == [("a", 2), ("a", 1)]


def test_a_prepared_version_needs_nothing_at_the_switch(publisher: Publisher) -> None:
    opened: list[tuple[str, int]] = []
    ready: list[Table] = []
    live = LiveTables(publisher.path, at_open=lambda t: opened.append((t.name, t.version)))
    live.current()
    opened.clear()
    live.prepare("a", publisher.stage("a", 2), ready.append)
    live.prepare("new", publisher.stage("new", 5), ready.append)
    assert values(live, ("a", 0)) == [1]
    publisher.switch(a=2, new=1)
    assert live.take([("a", 0), ("new", 0)]) == ready
    assert opened == []
    live.prepare("a", 1, ready.append)
    publisher.switch(a=1)
    assert live.take([("a", 0)]) == ready[2:]
    assert opened == []


def test_what_was_prepared_and_given_up_is_let_go(publisher: Publisher) -> None:
    live = LiveTables(publisher.path, at_open=lambda _: None)
    live.prepare("a", publisher.stage("a", 2), lambda _: None)
    folder = publisher.path / "tables" / "a" / "v000002"
    assert len(mapped_files(folder)) == 1
    publisher.publish(2, "b")
    live.current()
    assert mapped_files(folder) == []


def test_prepared_files_that_were_replaced_are_not_served(publisher: Publisher) -> None:
    live = LiveTables(publisher.path, at_open=lambda _: None)
    live.prepare("a", publisher.stage("a", 2), lambda _: None)
    publisher.stage("a", 3, version=2)
    publisher.switch(a=2)
    assert values(live, ("a", 0)) == [3]


def test_what_cannot_be_prepared_says_so(publisher: Publisher) -> None:
    live = LiveTables(publisher.path, at_open=lambda _: None)

    def refuse(table: Table) -> None:
        raise BadFile(f"{table.name} can't be locked")

    with pytest.raises(BadFile, match=r"v000009.manifest\.json isn't there"):
        live.prepare("a", 9, lambda _: None)
    with pytest.raises(BadFile, match="a can't be locked"):
        live.prepare("a", publisher.stage("a", 2), refuse)
    with pytest.raises(FailedPrecondition, match="no data dir"):
        LiveTables(None).prepare("a", 1, lambda _: None)
    assert values(live, ("a", 0)) == [1]


def test_a_table_that_cannot_be_opened_is_refused_and_the_others_are_served(
    publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    served = ServedTables({}, {}, publisher.path)
    served.start()
    version = publisher.stage("a", 2)
    os.truncate(version_dir(publisher.path, "a", version) / "weights.npy", 200)
    publisher.switch(a=version)
    with pytest.raises(TableRefused, match=r"weights\.npy"):
        served.get("a")
    assert value_of(served.get("a", 1)) == 1
    assert value_of(served.get("b")) == 1
    states = served.states()
    assert "weights.npy" in states["a"]
    assert states["b"] == ""
    info = served.info("a")
    assert (info.refused, info.version, info.versions) == (states["a"], 2, (1, 2))
    assert [record.message for record in caplog.records] == [f"table 'a' is refused: {states['a']}"]
    publisher.publish(3, "a")
    assert value_of(served.get("a")) == 3
    assert served.states() == {"a": "", "b": ""}


@pytest.mark.parametrize("preload", list(Preload))
def test_every_preload_policy_follows_the_changes(publisher: Publisher, preload: Preload) -> None:
    served = ServedTables({}, {}, publisher.path, preload)
    served.start()
    publisher.publish(2, "a")
    assert value_of(served.get("a")) == 2
    served.prepare_version("a", publisher.stage("a", 3))
    publisher.switch(a=3)
    assert [value_of(served.get("a", version)) for version in (0, 1, 2, 3)] == [3, 1, 2, 3]


def test_what_is_told_of_a_table(publisher: Publisher) -> None:
    served = ServedTables({}, {}, publisher.path)
    publisher.publish(2, "a", "b")
    publisher.switch(a=1)
    infos = served.infos()
    assert [(info.name, info.version, info.versions) for info in infos] == [
        ("a", 1, (1, 2)),
        ("b", 2, (1, 2)),
    ]
    assert [(info.row_count, info.trainable, info.optimizer) for info in infos] == [
        (ROWS, False, None)
    ] * 2
    with Client(f"local:{publisher.path}") as client:
        local = client.tables()
        assert [(info.name, info.version, info.versions, info.lsn) for info in local] == [
            (info.name, info.version, info.versions, info.lsn) for info in infos
        ]


# Readers and a writer at once


@contextmanager
def publishing(path: Path) -> Iterator[Callable[[], int]]:
    """A process that publishes; yields what tells the last number that it acknowledged."""
    command = [sys.executable, "-m", "support.publisher", str(path), str(PUBLISHES)]
    tests = str(Path(__file__).parents[1])
    search = [tests, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search))}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    acknowledged = [0]
    started = threading.Event()

    def follow() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            acknowledged[0] = int(line)
            started.set()

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        assert started.wait(60)
        yield lambda: acknowledged[0]
    finally:
        process.terminate()  # it has ended, unless a test failed
        process.wait(60)
        follower.join()
        assert process.stdout is not None
        process.stdout.close()


Read = Callable[..., list[float]]
"""The values of tables, all read in one request, of a version or the live ones."""


def local_reader(path: Path) -> Read:
    client = Client(f"local:{path}")

    def read(*names: str, version: int = 0) -> list[float]:
        if version:
            return [one_value(client.lookup(name, IDS, version=version)) for name in names]
        return list(map(one_value, client.lookup_many(dict.fromkeys(names, IDS)).values()))

    return read


def engine_reader(path: Path) -> Read:
    served = ServedTables({}, {}, path, Preload.POPULATE)
    served.start()
    engine = Engine(served, LIMITS)

    def read(*names: str, version: int = 0) -> list[float]:
        plans = [Lookup(name, IDS, version=version) for name in names]
        return [one_value(found.vectors) for found in engine.lookup_many(plans)]

    return read


@pytest.mark.parametrize("make", [local_reader, engine_reader])
def test_readers_never_see_a_mixture_nor_an_old_version_nor_none(
    tmp_path: Path, make: Callable[[Path], Read]
) -> None:
    Publisher(tmp_path).publish(0, "a", "b")
    read = make(tmp_path)
    seen: set[float] = set()

    def follow(acknowledged: Callable[[], int]) -> None:
        while (least := acknowledged()) < PUBLISHES:
            a, b = read("a", "b")
            assert a == b
            assert a >= least
            seen.add(a)
            # Versions are counted from 1 and the values from 0. Two are kept.
            with suppress(VersionNotFound):
                assert read("a", version=int(a) + 1) == [a]

    with publishing(tmp_path) as acknowledged, ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(follow, acknowledged) for _ in range(3)]:
            done.result()
    assert len(seen) > 10
    assert read("a", "b") == [PUBLISHES, PUBLISHES]


def test_files_are_replaced_while_readers_meet_new_catalogs(tmp_path: Path) -> None:
    data_dir, folder = tmp_path / "data", tmp_path / "files"
    data_dir.mkdir()
    folder.mkdir()
    Publisher(data_dir).publish(0, "a", "b")
    live = LiveTables(data_dir, fixed={"f": replacing_file(folder, "f", 1, 1)})

    def follow(acknowledged: Callable[[], int]) -> None:
        while acknowledged() < PUBLISHES:
            (table, of_catalog) = live.take([("f", 0), ("a", 0)])
            assert value_of(table) == table.version
            value_of(of_catalog)

    version = 1
    with publishing(data_dir) as acknowledged, ThreadPoolExecutor(3) as pool:
        following = [pool.submit(follow, acknowledged) for _ in range(3)]
        while acknowledged() < PUBLISHES:
            version += 1
            live.replace_fixed({"f": replacing_file(folder, "f", version, version)})
        for done in following:
            done.result()
    assert values(live, ("f", 0), ("f", version), ("a", 0)) == [version, version, PUBLISHES]


def test_a_request_for_many_tables_has_one_set_of_versions(tmp_path: Path) -> None:
    Publisher(tmp_path).publish(0, "a", "b")
    live = LiveTables(tmp_path, at_open=lambda _: None)
    wanted = [("a", 0), ("b", 0)] * 2000
    seen = set()
    with publishing(tmp_path) as acknowledged:
        while acknowledged() < PUBLISHES:
            (version,) = {table.version for table in live.take(wanted)}
            seen.add(version)
    assert len(seen) > 10


def test_a_table_that_comes_and_goes_is_whole_or_not_there(tmp_path: Path) -> None:
    Publisher(tmp_path).publish(0, "a", "b")
    live = LiveTables(tmp_path)
    found: set[bool] = set()
    with publishing(tmp_path) as acknowledged:
        while acknowledged() < PUBLISHES:
            try:
                c, a = values(live, ("c", 0), ("a", 0))
            except TableNotFound:
                found.add(False)
            else:
                found.add(True)
                assert 0 <= a + c <= 4  # made with the number that was a's, two publishes ago
    assert found == {True, False}


# Any history


@settings(max_examples=15, stateful_step_count=25, deadline=None)
class History(RuleBasedStateMachine):
    """Whatever a writer does, readers that look at any time see what the catalog says then."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.publisher = Publisher(self.path)
        self.contents: dict[tuple[str, int], float] = {}
        self.count = 0.0
        self.lazy = LiveTables(self.path)
        self.eager = LiveTables(self.path, at_open=lambda _: None)
        self.seldom = LiveTables(self.path, at_open=lambda _: None, keep_superseded=False)

    def fresh(self, name: str) -> int:
        self.count += 1
        version = self.publisher.stage(name, self.count)
        self.contents[(name, version)] = self.count
        return version

    @rule(names=st.sets(st.sampled_from("xyz"), min_size=1), keep=st.integers(1, 3))
    def publish(self, names: set[str], keep: int) -> None:
        self.publisher.switch(keep, **{name: self.fresh(name) for name in names})

    @rule(name=st.sampled_from("xyz"), is_published=st.booleans())
    def prepare(self, name: str, is_published: bool) -> None:
        version = self.fresh(name)
        for live in (self.eager, self.seldom):
            live.prepare(name, version, lambda _: None)
        if is_published:
            self.publisher.switch(**{name: version})

    @precondition(lambda self: self.publisher.catalog.tables)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.publisher.catalog.tables)))
        version = data.draw(st.sampled_from(self.publisher.catalog.tables[name].versions))
        self.publisher.switch(**{name: version})

    @precondition(lambda self: self.publisher.catalog.tables)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.publisher.catalog.tables)))
        gone: dict[str, int | None] = {name: None}
        self.publisher.switch(3, **gone)

    @rule()
    def look_seldom(self) -> None:
        self.check(self.seldom)

    @invariant()
    def look(self) -> None:
        for live in (self.lazy, self.eager):
            self.check(live)

    def check(self, live: LiveTables) -> None:
        tables = self.publisher.catalog.tables
        assert live.current().names() == sorted(tables)
        for name in "xyz":
            entry = tables.get(name)
            for version in range(5):
                number = entry.live if entry and version == 0 else version
                if entry and number in entry.versions:
                    assert values(live, (name, version)) == [self.contents[(name, number)]]
                    continue
                with pytest.raises((TableNotFound, VersionNotFound)) as caught:
                    live.take([(name, version)])
                assert isinstance(caught.value, GatherdError)
                assert (caught.type is TableNotFound) is (entry is None)

    def teardown(self) -> None:
        self.folder.cleanup()


TestHistory = History.TestCase
