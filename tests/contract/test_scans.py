"""Scans: every row of a table page by page, on every surface, judged by NumPy."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from contract.conftest import ServedTables, open_surface
from contract.surfaces import Rows, Scan, Surface
from gatherd import Client
from gatherd.errors import (
    GatherdError,
    InvalidArgument,
    NoKeys,
    TableNotFound,
    VersionNotFound,
)
from gatherd.store.catalog import open_table
from gatherd.store.scans import ScanPage, ScanQuery
from gatherd.store.table import Table
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.types import Publish
from support.server import RunningServer
from support.tables import drawn_table, make_data_dir

ROWS, DIM = 900, 3
WIRES = (
    "sdk-http", "async-http", "sdk-grpc", "sdk-local", "async-local",
    "connect-proto", "connect-json", "grpc-stub", "rest-json", "rest-octets", "rest-npy",
)  # fmt: skip


def whole(pages: list[Rows]) -> tuple[list[int], list[Any] | None, NDArray[Any]]:
    """The ids, keys and vectors of all pages, one after the other."""
    ids = [row for page in pages for row in page.ids]
    keys = None if pages[0].keys is None else [key for page in pages for key in page.keys or ()]
    return ids, keys, np.concatenate([page.vectors for page in pages])


# Every table of the contract's server


@pytest.mark.parametrize("limit", [1000, 7])
@pytest.mark.parametrize("table", ["float32", "float16", "bfloat16", "items", "words", "one-row"])
def test_a_scan_has_every_row_once_in_order(
    surface: Surface, served: ServedTables, table: str, limit: int
) -> None:
    if not (surface.has("scan") or surface.has("scan_page")):
        pytest.skip("a stream has lookups alone")
    pages = surface.scan(table, Scan(limit=limit))
    ids, keys, vectors = whole(pages)
    rows = served.oracles[table].rows
    assert ids == list(range(len(rows)))
    assert keys == {"words": served.words, "items": served.items.tolist()}.get(table)
    np.testing.assert_array_equal(vectors, rows)
    assert all(len(page.ids) <= limit for page in pages)
    assert len(pages) >= len(rows) / limit


def test_a_large_table_is_the_same_as_a_lookup_of_all_its_ids(
    surface: Surface, served: ServedTables
) -> None:
    if surface.name == "grpc-stream":
        pytest.skip("a stream has lookups alone")
    pages = surface.scan("float64", Scan(limit=50_000))
    ids, _, vectors = whole(pages)
    with Client(served.server.http) as client:
        np.testing.assert_array_equal(vectors, client.lookup("float64", np.array(ids)))
    assert len(ids) == len(served.oracles["float64"].rows)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_vectors_come_in_the_dtype_asked_for(
    surface: Surface, served: ServedTables, dtype: str
) -> None:
    if surface.name == "grpc-stream":
        pytest.skip("a stream has lookups alone")
    _, _, vectors = whole(surface.scan("float32", Scan(dtype=dtype)))
    kind: Any = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    rounded = served.oracles["float32"].rows.astype(kind)
    np.testing.assert_array_equal(vectors.astype(np.float32), rounded.astype(np.float32))


def test_a_table_without_rows_has_none(surface: Surface) -> None:
    if surface.name == "grpc-stream":
        pytest.skip("a stream has lookups alone")
    assert [row for page in surface.scan("no-rows", Scan()) for row in page.ids] == []


def test_a_prefix_leaves_the_other_rows_out(surface: Surface, served: ServedTables) -> None:
    if surface.name == "grpc-stream":
        pytest.skip("a stream has lookups alone")
    for prefix in ("Z", "caf\udce9", "x", "京"):
        ids, keys, vectors = whole(surface.scan("words", Scan(prefix=prefix)))
        wanted = [i for i, word in enumerate(served.words) if word.startswith(prefix)]
        assert (ids, keys) == (wanted, [served.words[i] for i in wanted])
        np.testing.assert_array_equal(vectors, served.oracles["words"].rows[wanted])
    with pytest.raises(NoKeys):
        surface.scan("float32", Scan(prefix="a"))
    with pytest.raises(InvalidArgument, match="a prefix is for strings"):
        surface.scan("items", Scan(prefix="a"))


# A server whose tables change


@dataclass(frozen=True)
class Changing:
    server: RunningServer
    data_dir: Path
    writer: Client


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Changing]:
    data_dir = tmp_path_factory.mktemp("scans") / "data"
    make_data_dir(
        data_dir,
        drawn_table("adam", ROWS, DIM, optimizer="adam", options={"lr": 0.5}),
        drawn_table("rowwise", ROWS, DIM, optimizer="rowwise-adagrad"),
        drawn_table("plain", ROWS, DIM, optimizer="none"),
        drawn_table("frozen", ROWS, DIM, optimizer=None),
        drawn_table("adagrad", ROWS, DIM, optimizer="adagrad", options={"lr": 1.0}),
    )
    with RunningServer("--data-dir", data_dir) as server, Client(server.http) as writer:
        yield Changing(server, data_dir, writer)


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest, changing: Changing) -> Iterator[Surface]:
    opened = open_surface(request.param, changing.server, changing.data_dir, Path())
    yield opened
    opened.close()


def test_slots_come_with_their_rows(wire: Surface, changing: Changing) -> None:
    rows = np.array([2, 500, 899])
    grads = np.arange(9, dtype=np.float32).reshape(3, DIM)
    changing.writer.apply_gradients("adam", rows, grads)
    changing.writer.apply_gradients("rowwise", rows, grads)
    step = np.load(changing.data_dir / "tables/adam/v000001/slot_step.npy")
    pages = wire.scan("adam", Scan(limit=400, slots=True))
    assert [len(page.ids) for page in pages] == [400, 400, 100]
    for page in pages:
        assert page.slots.keys() == {"step", "exp_avg", "exp_avg_sq"}
        np.testing.assert_array_equal(page.slots["step"], step)
        for name in ("exp_avg", "exp_avg_sq"):
            stored = np.load(changing.data_dir / f"tables/adam/v000001/slot_{name}.npy")
            np.testing.assert_array_equal(page.slots[name], stored[page.ids])
    (page,) = wire.scan("rowwise", Scan(slots=True))
    assert page.slots["sum"].shape == (ROWS, 1)
    assert page.slots["sum"].any()
    for table in ("plain", "frozen"):
        (page,) = wire.scan(table, Scan(slots=True))
        assert page.slots == {}


@pytest.mark.parametrize(
    "cursor",
    [b"x", b"\0" * 21, b"\1" * 21, b"\xff" * 21, bytes(2**12), b"\1" + b"\0" * 20],
    ids=lambda cursor: f"{len(cursor)} bytes of {cursor[:1].hex()}",
)
def test_a_cursor_that_no_page_gave_is_refused(wire: Surface, cursor: bytes) -> None:
    if not wire.has("scan_page"):
        pytest.skip("the SDK takes no cursors")
    # A version that there isn't is named before anything else is known of the cursor.
    with pytest.raises((InvalidArgument, VersionNotFound), match="begin"):
        wire.scan_page("plain", Scan(cursor=cursor))


def test_a_cursor_is_of_one_table_prefix_and_version(wire: Surface, changing: Changing) -> None:
    if not wire.has("scan_page"):
        pytest.skip("the SDK takes no cursors")
    cursor = wire.scan_page("plain", Scan(limit=10)).cursor
    assert wire.scan_page("plain", Scan(limit=5, cursor=cursor)).ids == [10, 11, 12, 13, 14]
    for table in ("frozen", "adam"):
        with pytest.raises(InvalidArgument, match=f"isn't one of table '{table}'"):
            wire.scan_page(table, Scan(cursor=cursor))
    with pytest.raises(InvalidArgument, match="version 3 is asked for"):
        wire.scan_page("plain", Scan(cursor=cursor, version=3))
    with pytest.raises(InvalidArgument, match="with this prefix"):
        wire.scan_page("plain", Scan(cursor=cursor, prefix="a"))


@pytest.mark.parametrize(
    ("table", "scan", "error", "says"),
    [
        ("nope", Scan(), TableNotFound, "nope"),
        ("plain", Scan(version=77), VersionNotFound, "no version 77"),
        ("plain", Scan(prefix="a"), NoKeys, "plain"),
    ],
)
def test_a_wrong_scan_is_refused(
    wire: Surface, table: str, scan: Scan, error: type[GatherdError], says: str
) -> None:
    with pytest.raises(error, match=says):
        wire.scan(table, scan)


def test_all_pages_are_of_the_first_ones_version(wire: Surface, changing: Changing) -> None:
    if not wire.has("scan_page"):
        pytest.skip("the SDK's batches are of many pages")
    writer = changing.writer
    writer.assign("plain", np.arange(ROWS), np.full((ROWS, DIM), 1, np.float32))
    first = wire.scan_page("plain", Scan(limit=300))
    writer.publish("plain")
    writer.assign("plain", np.arange(ROWS), np.full((ROWS, DIM), 2, np.float32))
    second = wire.scan_page("plain", Scan(limit=300, cursor=first.cursor))
    assert second.version == first.version
    assert (second.vectors == 1).all()
    assert (wire.scan_page("plain", Scan()).vectors == 2).all()
    for _ in range(3):
        writer.publish("plain")
    with pytest.raises(VersionNotFound, match="The scan's version was dropped; begin it anew"):
        wire.scan_page("plain", Scan(cursor=second.cursor))


def test_the_sdks_scan_is_of_one_version(changing: Changing) -> None:
    writer = changing.writer
    for url in (changing.server.http, changing.server.grpc, f"local:{changing.data_dir}"):
        with Client(url) as client:
            before = client.lookup("plain", np.arange(ROWS))
            scan = client["plain"].scan(batch=100)
            batches = [next(scan)]
            writer.publish("plain")
            writer.assign("plain", np.arange(ROWS), before + 1)
            batches += scan
            np.testing.assert_array_equal(np.concatenate([b.vectors for b in batches]), before)
            scan = client.rows("plain", batch=100)
            next(scan)
            for _ in range(4):
                writer.publish("plain")
            with pytest.raises(VersionNotFound, match="begin it anew"):
                list(scan)


@pytest.mark.parametrize("kind", ["http", "grpc", "local"])
def test_rows_and_slots_belong_together_while_updates_go_on(changing: Changing, kind: str) -> None:
    """Each step by 1 raises Adagrad's sum by 1, so that the sum gives the row."""
    urls = {
        "http": changing.server.http,
        "grpc": changing.server.grpc,
        "local": f"local:{changing.data_dir}",
    }
    with Client(urls[kind]) as client:
        start = next(client.rows("adagrad", slots=True)).slots["sum"]
        ones, ids = np.ones((ROWS, DIM), np.float32), np.arange(ROWS)
        is_over = threading.Event()

        def push() -> None:
            while not is_over.is_set():
                changing.writer.apply_gradients("adagrad", ids, ones)

        pusher = threading.Thread(target=push)
        pusher.start()
        try:
            seen: set[float] = set()
            while len(seen) < 5:
                for batch in client.rows("adagrad", batch=250, slots=True):
                    sums = batch.slots["sum"]
                    np.testing.assert_array_equal(batch.vectors, rows_after(sums))
                    seen |= set(sums.reshape(-1).tolist())
        finally:
            is_over.set()
            pusher.join()
        assert max(seen) > start.max()


def rows_after(sums: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows of zeros after so many steps of Adagrad by gradients of 1, with a rate of 1."""
    known = [np.float32(0)]
    for count in range(1, int(sums.max()) + 1):
        step = np.float32(1) / (np.sqrt(np.float32(count)) + np.float32(1e-10))
        known.append(known[-1] - step)
    rows: NDArray[np.float32] = np.array(known, np.float32)[sums.astype(int)]
    return rows


# Cursors in this process


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cursors") / "data"
    make_data_dir(path, drawn_table("t", 100, 2, init="uniform", seed=1))
    return path


def page_of(table: Table, cursor: bytes) -> ScanPage:
    """The page that a server would answer with, of whichever version the cursor names."""
    query = ScanQuery(cursor=cursor)
    assert query.answering >= 0
    return ScanPage.of(table, query)


@settings(max_examples=300, deadline=None)
@given(
    start=st.integers(1, 99),
    place=st.integers(0, 20),
    flip=st.integers(1, 255),
    cut=st.integers(0, 25),
)
def test_a_changed_cursor_is_refused(
    data_dir: Path, start: int, place: int, flip: int, cut: int
) -> None:
    table = open_table(data_dir, "t", 1)
    page = ScanPage.of(table, ScanQuery(limit=start))
    right = ScanPage.of(table, ScanQuery(cursor=page.cursor))
    assert right.ids.tolist() == list(range(start, 100))
    changed = bytearray(page.cursor)
    changed[place] ^= flip
    for wrong in (bytes(changed), page.cursor[:cut], page.cursor + bytes(cut + 1)):
        if wrong in (b"", page.cursor):
            continue
        with pytest.raises(InvalidArgument, match="begin the scan anew"):
            page_of(table, wrong)


def test_a_cursor_does_not_go_on_in_a_table_made_anew(tmp_path: Path) -> None:
    made = drawn_table("t", 100, 2)
    make_data_dir(tmp_path / "one", made)
    make_data_dir(tmp_path / "other", made)
    cursor = ScanPage.of(open_table(tmp_path / "one", "t", 1), ScanQuery(limit=5)).cursor
    with pytest.raises(InvalidArgument, match="as it is now"):
        ScanPage.of(open_table(tmp_path / "other", "t", 1), ScanQuery(cursor=cursor))


def test_a_superseded_versions_slots_are_its_own(tmp_path: Path) -> None:
    make_data_dir(tmp_path, drawn_table("t", 3, 2, optimizer="adagrad"))
    with own_data_dir(tmp_path) as owned:
        owned.change(Publish("t"))
    with Client(f"local:{tmp_path}") as client:
        (batch,) = client.rows("t", version=1, slots=True)
        np.testing.assert_array_equal(batch.slots["sum"], np.zeros((3, 2), np.float32))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"batch": 0}, "batch=0 asks for no rows"),
        ({"batch": -1}, "batch=-1 isn't possible"),
        ({"batch": 2.5}, "batch is an integer"),
        ({"slots": 1}, "slots is True or False"),
        ({"prefix": 3}, "prefix is a str or bytes"),
        ({"dtype": "int8"}, "int8"),
        ({"version": "new"}, "version is an integer"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    data_dir: Path, arguments: dict[str, Any], says: str
) -> None:
    with Client(f"local:{data_dir}") as client, pytest.raises(InvalidArgument, match=says):
        next(client.rows("t", **arguments))
