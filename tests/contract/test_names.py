"""Aliases on every surface, and every change of names on every wire, judged by NumPy."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from contract.conftest import SURFACES, open_surface
from contract.names import MessageNames, Names, RestNames, SdkNames
from contract.surfaces import Bags, Search, Surface, Update
from gatherd import Client
from gatherd.errors import (
    AlreadyExists,
    FailedPrecondition,
    GatherdError,
    InvalidArgument,
    NotFound,
    TableNotFound,
)
from support.cli import invoke
from support.server import RunningServer

ROWS, DIM = 40, 4
WORDS = [f"w{i}" for i in range(ROWS)]
WAYS = ("sdk-http", "sdk-grpc", "sdk-local", "async-http", "rest", "proto", "json", "grpc")
BAD: list[tuple[str, tuple[str, ...], type[GatherdError], str]] = [
    ("alias", ("new", "a"), InvalidArgument, "`gatherd alias new blue`"),
    ("alias", ("green", "blue"), AlreadyExists, "a table 'green' already"),
    ("alias", ("new", "nothing"), TableNotFound, "no table 'nothing'"),
    ("alias", ("no/name", "blue"), InvalidArgument, "can't name a table"),
    ("unalias", ("new",), NotFound, "no alias 'new'"),
    ("unalias", ("blue",), InvalidArgument, "`gatherd delete blue`"),
    ("rename", ("a", "new"), FailedPrecondition, "`gatherd unalias a`"),
    ("rename", ("blue", "green"), AlreadyExists, "a table 'green' already"),
    ("rename", ("blue", "a"), AlreadyExists, "`gatherd unalias a`"),
    ("rename", ("nothing", "new"), TableNotFound, "no table 'nothing'"),
    ("rename", ("blue", ".."), InvalidArgument, "can't name a table"),
    ("delete", ("a",), FailedPrecondition, "`gatherd unalias a`"),
    ("delete", ("blue",), FailedPrecondition, "`gatherd delete blue --force`"),
    ("clone", ("blue", "a"), AlreadyExists, "`gatherd unalias a`"),
    ("clone", ("blue", "green"), AlreadyExists, "a table 'green' already"),
    ("clone", ("nothing", "new"), TableNotFound, "no table 'nothing'"),
    ("replace", ("blue", "a"), InvalidArgument, "is table 'blue' itself"),
    ("replace", ("blue", "wide"), FailedPrecondition, "allow_dim_change"),
    ("replace", ("blue", "words"), FailedPrecondition, "bytes keys"),
    ("replace", ("blue", "nothing"), TableNotFound, "no table 'nothing'"),
]


@dataclass(frozen=True)
class Named:
    """A server with tables blue, green, wide and words, and alias a of blue, k of words."""

    server: RunningServer
    data_dir: Path
    socket: Path
    reader: Client

    def rows(self, table: str) -> NDArray[np.float32]:
        return self.reader.lookup(table, np.arange(ROWS))

    def names(self) -> dict[str, tuple[str, ...]]:
        return {info.name: info.aliases for info in self.reader.tables()}

    def way(self, way: str) -> Names:
        server = self.server
        urls = {"http": server.http, "grpc": server.grpc, "local": f"local:{self.data_dir}"}
        kind, _, which = way.partition("-")
        if kind in ("sdk", "async"):
            return SdkNames(urls[which], awaits=kind == "async")
        return (
            RestNames(server.http) if way == "rest" else MessageNames(server.grpc, server.http, way)
        )


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Named]:
    folder = tmp_path_factory.mktemp("names")
    data_dir, socket = folder / "data", folder / "gatherd.sock"
    for seed, name in enumerate(("blue", "green")):
        shape = ("--rows", str(ROWS), "--dim", str(DIM), "--seed", str(seed))
        invoke("create", name, *shape, "--optimizer", "adam", "--data-dir", data_dir)
    invoke("create", "wide", "--rows", "3", "--dim", "9", "--data-dir", data_dir)
    rng = np.random.default_rng(5)
    lines = [" ".join([word, *map(str, rng.integers(0, 9, DIM))]) for word in WORDS]
    (folder / "words.txt").write_text("\n".join(lines) + "\n")
    invoke("import", "words", folder / "words.txt", "--data-dir", data_dir)
    invoke("alias", "a", "blue", "--data-dir", data_dir)
    invoke("alias", "k", "words", "--data-dir", data_dir)
    arguments = ("--data-dir", data_dir, "--unix", socket, "--workers", "2")
    with RunningServer(*arguments) as server, Client(server.grpc) as reader:
        yield Named(server, data_dir, socket, reader)


@pytest.fixture(
    scope="module", params=[name for name in SURFACES if not name.endswith(("asgi", "merged"))]
)
def surface(request: pytest.FixtureRequest, named: Named) -> Iterator[Surface]:
    opened = open_surface(request.param, named.server, named.data_dir, named.socket)
    yield opened
    opened.close()


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest, named: Named) -> Iterator[Names]:
    opened = named.way(request.param)
    yield opened
    opened.close()


def test_a_switched_alias_answers_from_the_next_request_on(surface: Surface, named: Named) -> None:
    ids = np.array([[3, 0], [ROWS - 1, 3]])
    for table in ("green", "blue", "green", "blue"):
        named.reader.alias("a", table)
        # Both workers, and the compiled answer after it has seen the alias.
        for _ in range(4):
            vectors, _ = surface.lookup("a", ids)
            np.testing.assert_array_equal(vectors, named.rows(table)[ids])


def test_everything_that_asks_a_table_goes_by_an_alias(surface: Surface, named: Named) -> None:
    words = named.rows("words")
    if surface.has("lookup_keys") and surface.name not in ("rest-octets", "rest-npy"):
        np.testing.assert_array_equal(surface.lookup_keys("k", ["w3", "w0"])[0], words[[3, 0]])
    if surface.has("keys_of"):
        assert surface.keys_of("k", [2, 1]) == ["w2", "w1"]
    if surface.has("ids_of"):
        assert surface.ids_of("k", ["w9"]) == [9]
    if surface.has("keys"):
        assert surface.keys("k", limit=2)[0] == ["w0", "w1"]
    if surface.has("lookup_bags"):
        pooled, _ = surface.lookup_bags("k", Bags([1, 2, 3], [0, 2]))
        np.testing.assert_array_equal(pooled, [words[1] + words[2], words[3]])
    if surface.has("neighbors"):
        by_alias = surface.neighbors("k", Search([4], "ids", k=3))
        np.testing.assert_array_equal(
            by_alias.ids, surface.neighbors("words", Search([4], "ids", k=3)).ids
        )
    if surface.has("lookup_many"):
        both = surface.lookup_many({"a": [1], "blue": [1], "words": [2]})
        np.testing.assert_array_equal(both["a"], both["blue"])


def test_a_push_by_an_alias_changes_its_table(surface: Surface, named: Named) -> None:
    if not surface.has("update"):
        pytest.skip("the surface has no updates")
    rows = np.arange(ROWS * DIM).reshape(ROWS, DIM)
    named.reader.assign("blue", np.arange(ROWS), rows)
    update = Update(np.array([5, 5]), np.ones((2, DIM), np.float32))
    assert surface.update("scatter_add", {"a": update}).versions == {"a": 1}
    expected = rows.astype(np.float32)
    expected[5] += 2
    np.testing.assert_array_equal(named.rows("blue"), expected)
    if surface.updates_many:
        with pytest.raises(InvalidArgument, match="the same table 'blue'"):
            surface.update("scatter_add", {"a": update, "blue": update})
        np.testing.assert_array_equal(named.rows("blue"), expected)


def test_every_wire_makes_every_change_of_names(way: Names, named: Named) -> None:
    blue, green = named.rows("blue"), named.rows("green")
    assert way.clone("a", "trial").version == 1
    np.testing.assert_array_equal(named.rows("trial"), blue)
    assert way.alias("b", "trial").version == 1
    assert way.described("b") == ("trial", [])
    assert way.described("trial") == ("", ["b"])
    way.rename("trial", "kept", keep_alias=True)
    assert named.names()["kept"] == ("b", "trial")
    done = way.replace("b", "green")
    assert (done.version, done.state) == (2, "kept")
    np.testing.assert_array_equal(named.rows("trial"), green)
    assert way.publish("trial").version == 3
    done = way.replace("kept", "wide", allow_dim_change=True)
    assert (done.version, done.state) == (4, "")
    assert named.reader.lookup("b", [0]).shape == (1, 9)
    way.unalias("b")
    with pytest.raises(TableNotFound):
        way.described("b")
    assert way.delete("kept", force=True).version == 0
    assert named.names() == {"blue": ("a",), "green": (), "wide": (), "words": ("k",)}


@pytest.mark.parametrize(("verb", "arguments", "error", "says"), BAD)
def test_what_is_wrong_is_told_and_changes_nothing(
    way: Names,
    named: Named,
    verb: str,
    arguments: tuple[str, ...],
    error: type[GatherdError],
    says: str,
) -> None:
    if isinstance(way, RestNames) and "/" in arguments[0]:
        pytest.skip("it is another path")
    lsn, names = named.reader.table("blue").lsn, named.names()
    with pytest.raises(error, match=says.replace("(", r"\(")):
        getattr(way, verb)(*arguments)
    assert named.names() == names
    assert named.reader.table("blue").lsn == lsn
