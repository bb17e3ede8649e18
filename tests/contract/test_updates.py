"""The effect of an update, on every surface, judged by NumPy.

Values are multiples of an eighth, small enough that float32 adds them exactly in any order, so
every comparison is exact. Before each update the tables are read anew: the oracle applies the
update to those rows in NumPy.
"""

import itertools
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from contract.conftest import open_surface
from contract.surfaces import Surface, Update, Updated
from gatherd import Client
from gatherd.errors import (
    GatherdError,
    IdOutOfRange,
    InvalidArgument,
    KeyNotFound,
    LimitExceeded,
    NoKeys,
    NonfiniteValues,
    NoOptimizer,
    RequestIdReused,
    TableNotFound,
    TableReadOnly,
    VersionMismatch,
)
from support.cli import invoke
from support.server import RunningServer

ROWS, DIM, IDS_MAX, LR = 40, 3, 2_000, 0.5
WORDS = ["king", "queen", "Zürich", "🌊"]
ITEMS = [7, -(2**60), 2**62]
STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# By ids alone; every table's rows are zeros when the server starts.
BY_ID = tuple(STORED)
EXAMPLES = settings(max_examples=8, deadline=None)
SURFACES = (
    "sdk-http", "sdk-unix", "sdk-grpc", "sdk-local",
    "async-http", "async-unix", "async-grpc", "async-local",
    "connect-proto", "connect-json", "grpc-stub", "rest-json", "rest-octets",
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A server whose tables take updates, and a reader of its own."""

    server: RunningServer
    data_dir: Path
    socket: Path
    reader: Client

    def rows(self, table: str) -> NDArray[np.float32]:
        """Every row of `table`, as a lookup gives it now."""
        count = self.reader.table(table).rows
        return self.reader.lookup(table, np.arange(count))

    def all_rows(self) -> dict[str, NDArray[np.float32]]:
        return {info.name: self.rows(info.name) for info in self.reader.tables()}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("updates")
    data_dir = folder / "data"
    sgd = ("--optimizer", "sgd", "--lr", str(LR), "--data-dir", data_dir)
    shape = ("--rows", str(ROWS), "--dim", str(DIM), "--init", "zeros")
    for dtype in STORED:
        invoke("create", dtype, *shape, "--dtype", dtype, *sgd)
    invoke("create", "plain", *shape, "--data-dir", data_dir)
    invoke("create", "frozen", *shape, "--frozen", "--data-dir", data_dir)
    lines = [f"{word} {i} {i + 0.5} -{i}" for i, word in enumerate(WORDS)]
    (folder / "words.txt").write_text("\n".join(lines) + "\n")
    invoke("import", "words", folder / "words.txt", *sgd)
    np.save(folder / "items.npy", np.zeros((len(ITEMS), DIM), np.float32))
    np.save(folder / "keys.npy", np.array(ITEMS))
    invoke("import", "items", folder / "items.npy", "--keys", folder / "keys.npy", *sgd)
    socket = folder / "gatherd.sock"
    limits = ("--ids-max", str(IDS_MAX), "--tables-max", "4")
    arguments = ("--data-dir", data_dir, "--unix", socket, "--workers", "2", *limits)
    with RunningServer(*arguments) as server, Client(server.grpc) as reader:
        yield Trained(server, data_dir, socket, reader)


@pytest.fixture(scope="session", params=SURFACES)
def surface(request: pytest.FixtureRequest, trained: Trained) -> Iterator[Surface]:
    opened = open_surface(request.param, trained.server, trained.data_dir, trained.socket)
    yield opened
    opened.close()


def updated(
    op: str, before: NDArray[np.float32], update: Update, stored: Any = np.float32
) -> NDArray[np.float32]:
    """`before` updated by NumPy: computed in float32, rounded to the table's dtype once."""
    after = before.copy()
    flat = np.asarray(update.rows).reshape(-1).astype(np.int64)
    values = np.asarray(update.values).astype(np.float32).reshape(flat.size, before.shape[1])
    match op:
        case "scatter_add":
            np.add.at(after, flat, values)
        case "apply_gradients":
            lr = np.float32(LR if update.lr is None else update.lr)
            np.add.at(after, flat, -lr * values)
        case "assign":
            for row, value in zip(flat, values, strict=True):
                after[row] = value
    return after.astype(stored).astype(np.float32)


OPS = ("scatter_add", "apply_gradients", "assign")
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
eighths = st.integers(-32, 32).map(lambda n: n / 8)


@st.composite
def changes(draw: st.DrawFn, op: str) -> Update:
    """An update of a table of ROWS rows; of few of them, so that duplicates are the rule."""
    ids = draw(hnp.arrays(draw(st.sampled_from(INTEGERS)), shapes, elements=st.integers(0, 5)))
    values = draw(hnp.arrays(np.float32, (*ids.shape, DIM), elements=eighths))
    kind = draw(st.sampled_from(list(STORED.values())))
    lr = draw(st.sampled_from([None, 0.25, 2.0])) if op == "apply_gradients" else None
    return Update(ids, values.astype(kind), lr=lr)


# Effects


@EXAMPLES
@given(data=st.data())
@pytest.mark.parametrize("op", OPS)
def test_an_update_leaves_the_rows_that_numpy_would(
    surface: Surface, trained: Trained, op: str, data: st.DataObject
) -> None:
    table = data.draw(st.sampled_from(BY_ID))
    update = data.draw(changes(op))
    assume(surface.can_tell(update.rows.shape))
    before = trained.rows(table)
    done = surface.update(op, {table: update})
    assert done.lsn > 0
    assert done.versions == {table: trained.reader.table(table).version}
    wanted = updated(op, before, update, STORED[table])
    np.testing.assert_array_equal(trained.rows(table), wanted)


@EXAMPLES
@given(data=st.data())
def test_many_tables_are_one_update(
    surface: Surface, trained: Trained, data: st.DataObject
) -> None:
    one_table_at_most(surface)
    op = data.draw(st.sampled_from(OPS))
    updates = {table: data.draw(changes(op)) for table in BY_ID}
    assume(all(surface.can_tell(update.rows.shape) for update in updates.values()))
    before = trained.all_rows()
    done = surface.update(op, updates)
    assert list(done.versions) == list(updates)
    for table, update in updates.items():
        wanted = updated(op, before[table], update, STORED[table])
        np.testing.assert_array_equal(trained.rows(table), wanted)


def one_table_at_most(surface: Surface) -> None:
    if not surface.updates_many:
        pytest.skip("raw bytes are of one table: many tables go as JSON or by Connect")


@pytest.mark.parametrize("op", OPS)
def test_rows_are_updated_by_their_keys(surface: Surface, trained: Trained, op: str) -> None:
    values = np.arange(9, dtype=np.float32).reshape(3, DIM) / 8
    by_integer = Update(np.array([ITEMS[1], ITEMS[0], ITEMS[1]]), values, by_keys=True)
    before = trained.rows("items")
    surface.update(op, {"items": by_integer})
    wanted = updated(op, before, Update([1, 0, 1], values))
    np.testing.assert_array_equal(trained.rows("items"), wanted)
    if surface.name == "rest-octets":
        return  # integers only
    before = trained.rows("words")
    surface.update(op, {"words": Update(["🌊", "queen", "🌊"], values, by_keys=True)})
    wanted = updated(op, before, Update([3, 1, 3], values))
    np.testing.assert_array_equal(trained.rows("words"), wanted)


def test_decimal_strings_are_integer_keys_of_updates_in_json(
    surface: Surface, trained: Trained
) -> None:
    if surface.name != "rest-json":
        pytest.skip("JSON alone has no 64-bit integers of its own")
    before = trained.rows("items")
    one = np.ones((1, DIM), np.float32)
    surface.update("scatter_add", {"items": Update([str(ITEMS[1])], one, by_keys=True)})
    before[1] += 1
    np.testing.assert_array_equal(trained.rows("items"), before)
    with pytest.raises(KeyNotFound, match=r"9007199254740993"):
        surface.update("assign", {"items": Update(["9007199254740993"], one, by_keys=True)})


def test_ids_and_keys_go_together(surface: Surface, trained: Trained) -> None:
    one_table_at_most(surface)
    ones = np.ones((1, DIM), np.float32)
    before = trained.all_rows()
    done = surface.update(
        "scatter_add",
        {"float32": Update(np.array([2]), ones), "words": Update(["king"], ones, by_keys=True)},
    )
    assert set(done.versions) == {"float32", "words"}
    np.testing.assert_array_equal(trained.rows("float32")[2], before["float32"][2] + 1)
    np.testing.assert_array_equal(trained.rows("words")[0], before["words"][0] + 1)


def test_a_table_without_an_optimizer_takes_updates_but_no_gradients(
    surface: Surface, trained: Trained
) -> None:
    info = trained.reader.table("plain")
    assert (info.trainable, info.optimizer) == (True, None)
    update = Update(np.array([3, 1, 3]), np.arange(9, dtype=np.float32).reshape(3, DIM) / 8)
    for op in ("scatter_add", "assign"):
        before = trained.rows("plain")
        surface.update(op, {"plain": update})
        np.testing.assert_array_equal(trained.rows("plain"), updated(op, before, update))
    everything = trained.all_rows()
    with pytest.raises(NoOptimizer, match="`gatherd set-optimizer plain "):
        surface.update("apply_gradients", {"plain": update})
    unchanged(trained, everything)


def test_an_acknowledged_update_is_seen_everywhere(surface: Surface, trained: Trained) -> None:
    urls = (
        trained.server.http,
        trained.server.grpc,
        f"unix://{trained.socket}",
        f"local:{trained.data_dir}",
    )
    clients = [Client(url) for url in (*urls, *urls)]  # twice: there are two workers
    try:
        for number in range(20):
            row = np.full((1, DIM), number / 8, np.float32)
            surface.update("assign", {"float32": Update(np.array([7]), row)})
            for client in clients:
                np.testing.assert_array_equal(client.lookup("float32", [7]), row)
    finally:
        for client in clients:
            client.close()


def test_the_log_goes_on(surface: Surface, trained: Trained) -> None:
    lsns = [add_one(surface).lsn for _ in range(3)]
    assert lsns == sorted(set(lsns))
    assert trained.reader.table("float32").lsn >= lsns[-1]


def add_one(surface: Surface, request_id: str | None = None, value: float = 1) -> Updated:
    values = np.full((1, DIM), value, np.float32)
    return surface.update("scatter_add", {"float32": Update(np.array([9]), values)}, request_id)


def test_the_updates_of_many_clients_all_count(surface: Surface, trained: Trained) -> None:
    before = trained.rows("float32")
    clients = [
        open_surface(surface.name, trained.server, trained.data_dir, trained.socket)
        for _ in range(4)
    ]
    with futures.ThreadPoolExecutor(len(clients)) as pool:
        for counted in pool.map(lambda client: [add_one(client).lsn for _ in range(8)], clients):
            assert counted == sorted(counted)
    for client in clients:
        client.close()
    np.testing.assert_array_equal(trained.rows("float32")[9], before[9] + 32)


# Versions


def test_if_version_is_insisted_on(surface: Surface, trained: Trained) -> None:
    live = trained.reader.table("float32").version
    ones = np.ones((1, DIM), np.float32)
    surface.update("scatter_add", {"float32": Update(np.array([1]), ones, if_version=live)})
    before = trained.all_rows()
    with pytest.raises(VersionMismatch, match="float32"):
        surface.update("scatter_add", {"float32": Update(np.array([1]), ones, if_version=live + 1)})
    unchanged(trained, before)


# Request ids

_numbers = itertools.count()


def fresh_key(surface: Surface) -> str:
    return f"{surface.name}-{next(_numbers)}"


def test_a_retry_gets_the_first_answer_and_changes_nothing(
    surface: Surface, trained: Trained
) -> None:
    key = fresh_key(surface)
    before = trained.rows("float32")
    first = add_one(surface, key)
    add_one(surface)
    assert [add_one(surface, key) for _ in range(3)] == [first] * 3
    np.testing.assert_array_equal(trained.rows("float32")[9], before[9] + 2)


def test_a_retry_may_come_another_way(surface: Surface, trained: Trained) -> None:
    key = fresh_key(surface)
    first = add_one(surface, key)
    before = trained.all_rows()
    for url in (trained.server.http, trained.server.grpc, f"local:{trained.data_dir}"):
        with Client(url) as client:
            ones = np.ones((1, DIM), np.float32)
            again = client.scatter_add("float32", np.array([9]), ones, idempotency_key=key)
            assert (again.lsn, again.versions) == (first.lsn, first.versions)
    unchanged(trained, before)


def test_an_id_that_belongs_to_another_update_is_refused(
    surface: Surface, trained: Trained
) -> None:
    key = fresh_key(surface)
    add_one(surface, key)
    before = trained.all_rows()
    with pytest.raises(RequestIdReused):
        add_one(surface, key, value=2)
    unchanged(trained, before)


def test_a_refused_update_leaves_its_id_free(surface: Surface, trained: Trained) -> None:
    key = fresh_key(surface)
    wrong = Update(np.array([ROWS]), np.ones((1, DIM), np.float32))
    with pytest.raises(IdOutOfRange):
        surface.update("scatter_add", {"float32": wrong}, key)
    before = trained.rows("float32")
    add_one(surface, key)
    np.testing.assert_array_equal(trained.rows("float32")[9], before[9] + 1)


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256])
def test_a_key_that_is_none_is_refused(surface: Surface, trained: Trained, key: str) -> None:
    if surface.name.startswith("rest") and key == "é":
        pytest.skip("httpx sends no such header")
    before = trained.all_rows()
    with pytest.raises(InvalidArgument, match=r"(?i)idempotency.key"):
        add_one(surface, key)
    unchanged(trained, before)


# Refusals, with nothing changed


def unchanged(trained: Trained, before: dict[str, NDArray[np.float32]]) -> None:
    after = trained.all_rows()
    for table, rows in before.items():
        np.testing.assert_array_equal(after[table], rows, err_msg=table)


ONES = np.ones((2, DIM), np.float32)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("table", "update", "error", "says"),
    [
        ("float32", Update(np.array([1, ROWS]), ONES), IdOutOfRange, rf"ids\[1\]={ROWS}"),
        ("float32", Update(np.array([1, -1]), ONES), IdOutOfRange, r"ids\[1\]=-1"),
        ("float32", Update(np.array([1, 2**63], "u8"), ONES), IdOutOfRange, str(2**63)),
        ("nope", Update(np.array([1, 2]), ONES), TableNotFound, "nope"),
        ("frozen", Update(np.array([1, 2]), ONES), TableReadOnly, "set-optimizer frozen none"),
        ("float32", Update(np.array([1, 2]), ONES[:, :2]), InvalidArgument, "dim"),
        ("float32", Update(np.array([1, 2]), ONES[:1]), InvalidArgument, "shape|values"),
        ("float32", Update(np.array([1.0, 2.0]), ONES), InvalidArgument, "integers"),
        ("items", Update(np.array([7, 8]), ONES, by_keys=True), KeyNotFound, "8"),
        ("float32", Update(np.array([7, 8]), ONES, by_keys=True), NoKeys, "float32"),
    ],
)
def test_a_wrong_update_is_refused(
    surface: Surface,
    trained: Trained,
    op: str,
    table: str,
    update: Update,
    error: type[GatherdError],
    says: str,
) -> None:
    if surface.name == "rest-octets" and update.values.shape == (1, DIM):
        pytest.skip("raw bytes have no shape of their own")
    before = trained.all_rows()
    with pytest.raises(error, match=says):
        surface.update(op, {table: update})
    unchanged(trained, before)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(
    surface: Surface, trained: Trained, op: str, wrong: float
) -> None:
    values = ONES.copy()
    values[1, 2] = wrong
    before = trained.all_rows()
    # JSON has no such numbers, so there the body isn't JSON.
    error = InvalidArgument if surface.name == "rest-json" else NonfiniteValues
    with pytest.raises(error):
        surface.update(op, {"float32": Update(np.array([4, 5]), values)})
    unchanged(trained, before)


@pytest.mark.parametrize(
    ("table", "large"), [("float32", 3e38), ("float16", 6e4), ("bfloat16", 3e38)]
)
def test_a_row_that_would_not_be_finite_is_refused(
    surface: Surface, trained: Trained, table: str, large: float
) -> None:
    row, values = np.array([11]), np.full((1, DIM), large, np.float32)
    surface.update("assign", {table: Update(row, values)})
    before = trained.all_rows()
    with pytest.raises(NonfiniteValues, match="11"):
        surface.update("scatter_add", {table: Update(row, values)})
    unchanged(trained, before)
    surface.update("assign", {table: Update(row, np.zeros((1, DIM), np.float32))})


@pytest.mark.parametrize("lr", [-1.0, -1e-9])
def test_a_learning_rate_is_not_negative(surface: Surface, trained: Trained, lr: float) -> None:
    before = trained.all_rows()
    with pytest.raises(InvalidArgument, match=r"lr|learning rate"):
        surface.update("apply_gradients", {"float32": Update(np.array([1, 2]), ONES, lr=lr)})
    unchanged(trained, before)


def test_a_learning_rate_of_0_is_a_step_that_moves_no_row(
    surface: Surface, trained: Trained
) -> None:
    before = trained.all_rows()
    surface.update("apply_gradients", {"float32": Update(np.array([1, 2]), ONES, lr=0.0)})
    unchanged(trained, before)


def test_one_wrong_table_leaves_all_of_many_as_they_were(
    surface: Surface, trained: Trained
) -> None:
    one_table_at_most(surface)
    before = trained.all_rows()
    right = Update(np.array([1, 2]), ONES)
    wrongs: tuple[tuple[str, Update, type[GatherdError]], ...] = (
        ("bfloat16", Update(np.array([1, ROWS]), ONES), IdOutOfRange),
        ("frozen", right, TableReadOnly),
        ("nope", right, TableNotFound),
        ("words", Update(["king", "nobody"], ONES, by_keys=True), KeyNotFound),
        ("bfloat16", Update(np.array([1, 2]), ONES, if_version=99), VersionMismatch),
    )
    for table, wrong, error in wrongs:
        with pytest.raises(error):
            surface.update("scatter_add", {"float32": right, table: wrong, "float16": right})
        unchanged(trained, before)


def test_an_update_over_the_limit_is_refused_whole(surface: Surface, trained: Trained) -> None:
    ids = np.arange(IDS_MAX + 1) % ROWS
    before = trained.all_rows()
    with pytest.raises(LimitExceeded, match=f"{IDS_MAX}"):
        surface.update(
            "scatter_add", {"float32": Update(ids, np.ones((ids.size, DIM), np.float32))}
        )
    unchanged(trained, before)


def test_too_many_tables_are_refused(surface: Surface, trained: Trained) -> None:
    one_table_at_most(surface)
    before = trained.all_rows()
    updates = {f"{name}": Update(np.array([1, 2]), ONES) for name in (*BY_ID, "words", "items")}
    with pytest.raises(LimitExceeded, match="4"):
        surface.update("scatter_add", updates)
    unchanged(trained, before)
