"""Open tables on every surface: rows that come with a push and go with another.

Each surface has keys of its own in the same tables; what rows hold is judged by NumPy and by the
initial vectors that every surface has to give alike.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.conftest import open_surface
from contract.surfaces import Surface, Update, Updated
from gatherd import Client
from gatherd.errors import (
    GatherdError,
    InvalidArgument,
    KeyNotFound,
    LimitExceeded,
    NoKeys,
    VersionMismatch,
)
from support.cli import invoke
from support.server import RunningServer

DIM = 3
SURFACES = (
    "sdk-http", "sdk-unix", "sdk-grpc", "sdk-local",
    "async-http", "async-unix", "async-grpc", "async-local",
    "connect-proto", "connect-json", "grpc-stub", "rest-json", "rest-octets",
)  # fmt: skip


@dataclass(frozen=True)
class Served:
    """A server of open tables and of closed ones, and a reader of its own."""

    server: RunningServer
    data_dir: Path
    socket: Path
    reader: Client


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("open")
    data = folder / "data"
    opened = ("--dim", str(DIM), "--init", "normal", "--seed", "7", "--data-dir", data)
    sgd = ("--optimizer", "sgd", "--lr", "0.5")
    invoke("create", "ints", "--keys", "int64", *opened, *sgd)
    invoke("create", "words", "--keys", "string", *opened, *sgd)
    invoke("create", "shy", "--keys", "int64", "--admit-after", "2", *opened)
    invoke("create", "eager", "--keys", "int64", "--on-missing", "create", *opened)
    lru = ("--rows-max", "4", "--on-full", "evict-lru")
    invoke("create", "small", "--keys", "int64", *lru, *opened)
    invoke("create", "tiny", "--keys", "int64", "--rows-max", "2", *opened)
    invoke("create", "plain", "--rows", "4", "--dim", str(DIM), "--data-dir", data)
    (folder / "closed.txt").write_text("king 1 2 3\nqueen 4 5 6\n")
    invoke("import", "closed", folder / "closed.txt", "--data-dir", data)
    socket = folder / "gatherd.sock"
    arguments = ("--data-dir", data, "--unix", socket, "--workers", "2")
    with RunningServer(*arguments) as server, Client(server.grpc) as reader:
        yield Served(server, data, socket, reader)


@pytest.fixture(scope="module", params=SURFACES)
def surface(request: pytest.FixtureRequest, served: Served) -> Iterator[Surface]:
    opened = open_surface(request.param, served.server, served.data_dir, served.socket)
    yield opened
    opened.close()


@pytest.fixture
def base(surface: Surface) -> int:
    """Where this surface's own integer keys begin."""
    return 1_000 * (1 + SURFACES.index(surface.name)) - 2**40


def as_given(keys: Any) -> Any:
    """Strings as they are, and integers as an array of int64, which every surface can send."""
    array = np.asarray(keys)
    return keys if array.dtype.kind not in "iu" else array


def push(surface: Surface, op: str, table: str, keys: Any, value: float, **more: Any) -> Updated:
    shape = (*np.shape(keys), DIM)
    values = np.full(shape, value, np.float32)
    return surface.update(op, {table: Update(as_given(keys), values, by_keys=True, **more)})


def delete(surface: Surface, table: str, keys: Any) -> Updated:
    return surface.update("delete_rows", {table: Update(as_given(keys), None, by_keys=True)})


def initial(surface: Surface, table: str, keys: Any) -> Any:
    vectors, status = surface.lookup_keys(table, as_given(keys), missing="init")
    assert status.all()
    return vectors


def test_a_row_begins_with_the_vector_that_its_key_had_before(
    surface: Surface, served: Served, base: int
) -> None:
    keys = [[base, base + 1], [base + 2, base + 3]]
    with pytest.raises(KeyNotFound):
        surface.lookup_keys("ints", as_given(keys))
    first = initial(surface, "ints", keys)
    assert np.unique(first).size == first.size
    np.testing.assert_array_equal(served.reader.lookup("ints", keys=keys, missing="init"), first)
    added = push(surface, "scatter_add", "ints", keys, 0.5, create=True)
    assert (added.created, added.removed, added.not_admitted) == ({"ints": 4}, {}, {})
    vectors, status = surface.lookup_keys("ints", as_given(keys), missing="init")
    assert not status.any()
    np.testing.assert_array_equal(vectors, first + np.float32(0.5))
    stepped = push(surface, "apply_gradients", "ints", keys, 1.0, create=True)
    assert stepped.created == {}
    stepped_back = first + np.float32(0.5) - np.float32(0.5)
    np.testing.assert_array_equal(surface.lookup_keys("ints", as_given(keys))[0], stepped_back)
    # Gone, the keys have their first vectors again, and so do rows that come again.
    gone = delete(surface, "ints", [keys[0][0], keys[0][0], keys[1][1], base + 99])
    assert gone.removed == {"ints": 2}
    _, status = surface.lookup_keys("ints", as_given(keys), missing="zero")
    assert status.tolist() == [[1, 0], [0, 1]]
    np.testing.assert_array_equal(
        initial(surface, "ints", [keys[0][0], keys[1][1]]), first[[0, 1], [0, 1]]
    )
    again = push(surface, "scatter_add", "ints", [keys[0][0]], 0.0, create=True)
    assert again.created == {"ints": 1}
    np.testing.assert_array_equal(
        surface.lookup_keys("ints", as_given([keys[0][0]]))[0], first[0, :1]
    )


def test_strings_come_and_go(surface: Surface, served: Served) -> None:
    if surface.name == "rest-octets":
        pytest.skip("raw bytes are integers")
    words = [f"{surface.name} {word}" for word in ("Zürich", "🌊", "x" * 300)]
    first = initial(surface, "words", words)
    made = push(surface, "assign", "words", words, 2.0, create=True)
    assert made.created == {"words": 3}
    np.testing.assert_array_equal(surface.lookup_keys("words", words)[0], np.full((3, DIM), 2.0))
    assert delete(surface, "words", words).removed == {"words": 3}
    np.testing.assert_array_equal(initial(surface, "words", words), first)


def test_a_push_of_several_tables_creates_where_it_is_asked_to(surface: Surface, base: int) -> None:
    if not surface.updates_many:
        pytest.skip("raw bytes are of one table")
    ones = np.ones((2, DIM), np.float32)
    keys = [base + 10, base + 11]
    updates = {
        "ints": Update(as_given(keys), ones, by_keys=True, create=True),
        "eager": Update(as_given(keys), ones, by_keys=True),
        "shy": Update(as_given([base + 10]), ones[:1], by_keys=True, create=True),
        "plain": Update([0], ones[:1] * 0),
    }
    done = surface.update("scatter_add", updates)
    assert done.created == {"ints": 2, "eager": 2}
    assert done.not_admitted == {"shy": 1}
    both = {table: Update(as_given(keys), None, by_keys=True) for table in ("ints", "eager", "shy")}
    assert surface.update("delete_rows", both).removed == {"ints": 2, "eager": 2}


def test_a_key_is_admitted_at_its_second_push(surface: Surface, base: int) -> None:
    keys = [base + 20, base + 21]
    first = push(surface, "assign", "shy", keys, 1.0, create=True)
    assert (first.created, first.not_admitted) == ({}, {"shy": 2})
    _, status = surface.lookup_keys("shy", as_given(keys), missing="zero")
    assert status.all()
    second = push(surface, "assign", "shy", keys[:1], 1.0, create=True)
    assert (second.created, second.not_admitted) == ({"shy": 1}, {})
    delete(surface, "shy", keys)


def test_a_full_table_evicts_or_refuses(surface: Surface, base: int) -> None:
    keys = [base + n for n in range(6)]
    push(surface, "assign", "small", keys[:4], 1.0, create=True)
    push(surface, "assign", "small", keys[:1], 1.0)
    done = push(surface, "assign", "small", keys[4:], 1.0, create=True)
    assert (done.created, done.removed) == ({"small": 2}, {"small": 2})
    _, status = surface.lookup_keys("small", as_given(keys), missing="zero")
    assert not status[[0, 4, 5]].any()
    assert status.sum() == 2
    with pytest.raises(LimitExceeded, match="'tiny' is full: it has 0 rows of 2") as full:
        push(surface, "assign", "tiny", keys[:3], 1.0, create=True)
    assert full.value.metadata["limit"] == "rows_max"


def test_a_retry_of_a_push_that_created_rows_gets_its_answer(surface: Surface, base: int) -> None:
    update = {
        "ints": Update(
            as_given([base + 30]), np.ones((1, DIM), np.float32), by_keys=True, create=True
        )
    }
    first = surface.update("assign", update, f"create-{surface.name}")
    assert first.created == {"ints": 1}
    delete(surface, "ints", [base + 30])
    assert surface.update("assign", update, f"create-{surface.name}") == first
    with pytest.raises(KeyNotFound):
        surface.lookup_keys("ints", as_given([base + 30]))


REFUSED: dict[str, tuple[type[GatherdError], str, str, dict[str, Any]]] = {
    "a key without a row": (KeyNotFound, "ints", "assign", {"rows": [5]}),
    "ids of an open table": (InvalidArgument, "ints", "assign", {"rows": [0], "by_keys": False}),
    "rows of a closed table": (
        InvalidArgument, "closed", "assign", {"rows": ["king"], "create": True},
    ),
    "rows of a table without keys": (NoKeys, "plain", "assign", {"rows": [5], "create": True}),
    "strings for integers": (InvalidArgument, "ints", "assign", {"rows": ["five"], "create": True}),
    "integers for strings": (InvalidArgument, "words", "assign", {"rows": [5], "create": True}),
    "an integer too large": (
        InvalidArgument, "ints", "assign", {"rows": [2**63], "create": True},
    ),
    "another version": (
        VersionMismatch, "ints", "assign", {"rows": [5], "create": True, "if_version": 9},
    ),
    "to delete of a closed table": (
        InvalidArgument, "closed", "delete_rows", {"rows": ["king"], "values": None},
    ),
    "to delete of a table without keys": (
        NoKeys, "plain", "delete_rows", {"rows": [0], "values": None},
    ),
    "to delete by another kind": (
        InvalidArgument, "words", "delete_rows", {"rows": [5], "values": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_can_not_be_is_refused_and_changes_nothing(
    surface: Surface, served: Served, what: str
) -> None:
    error, table, op, fields = REFUSED[what]
    rows = fields["rows"]
    if surface.name == "rest-octets" and not isinstance(rows[0], int):
        pytest.skip("raw bytes are integers")
    if op == "delete_rows" and fields.get("if_version"):
        pytest.skip("the same as of other pushes")
    before = {info.name: (info.rows, info.lsn) for info in served.reader.tables()}
    values = np.ones((len(rows), DIM), np.float32)
    update = Update(**{"by_keys": True, "values": values, **fields, "rows": as_given(rows)})
    with pytest.raises(error) as refused:
        surface.update(op, {table: update})
    assert repr(table) in str(refused.value)
    assert before == {info.name: (info.rows, info.lsn) for info in served.reader.tables()}


@pytest.mark.parametrize("table", ["ints", "closed", "plain"])
def test_lookups_that_can_not_be_are_refused(surface: Surface, table: str) -> None:
    """Ids of an open table, initial vectors of a closed one."""
    if table == "closed" and surface.name == "rest-octets":
        pytest.skip("raw bytes are integers")
    asked: dict[str, Callable[[], object]] = {
        "ints": lambda: surface.lookup(table, [0]),
        "closed": lambda: surface.lookup_keys(table, ["king"], missing="init"),
        "plain": lambda: surface.lookup(table, [0], missing="init"),
    }
    with pytest.raises(InvalidArgument, match=f"table '{table}'"):
        asked[table]()


def test_a_table_tells_how_many_rows_it_has_and_how_they_come_and_go(served: Served) -> None:
    told = served.reader.table("small")
    assert told.open == {
        "keys": "int64", "rows_max": 4, "seed": 7, "on_missing": "error", "admit_after": 1,
        "init": {"name": "normal", "mean": 0.0, "stddev": 0.05},
        "on_full": "evict-lru", "ttl_seconds": None, "touch_on_lookup": False,
    }  # fmt: skip
    assert (told.rows, told.key_kind, told.trainable) == (4, "int64", True)
    assert served.reader.table("plain").open is None
    with Client(f"local:{served.data_dir}") as local:
        assert local.table("small").open == told.open
