"""An open table answers by key as a dict of vectors does, while its rows come and go."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gatherd.errors import BadFile, FailedPrecondition, InvalidArgument, KeyNotFound, Unavailable
from gatherd.store import forms
from gatherd.store.bags import pool
from gatherd.store.catalog import open_table
from gatherd.store.dtypes import DType, convert
from gatherd.store.initializer import Initializer
from gatherd.store.key_index import KeyKind
from gatherd.store.key_pages import find_ids, find_keys
from gatherd.store.keys import as_keys
from gatherd.store.neighbors import Norms, search
from gatherd.store.open_files import KEYS_INDEX
from gatherd.store.open_spec import OpenSpec
from gatherd.store.open_table import OpenTable
from gatherd.store.query import (
    BagsQuery,
    ByKey,
    KeyQuery,
    Missing,
    NeighborsQuery,
    Pooling,
    VectorForm,
)
from gatherd.store.scans import ScanPage, ScanQuery
from support.open_rows import Key, OpenWriter, make_open_table

NAME, DIM, ROWS_MAX = "t", 70, 500
DTYPES = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)
KINDS = (KeyKind.INT64, KeyKind.UINT64, KeyKind.BYTES)
DEFAULT = np.linspace(-1, 1, DIM, dtype=np.float32)


def spec_of(kind: KeyKind, rows_max: int = ROWS_MAX) -> OpenSpec:
    return OpenSpec(kind, rows_max, 99, Initializer.parse("normal", {"stddev": 0.5}))


def key_of(kind: KeyKind, i: int) -> Key:
    """The i-th of many keys; of strings, some have several words, and some almost all in common."""
    if kind is KeyKind.BYTES:
        return f"{'x' * (i % 40)}{i}"
    return i * 2**40 - (2**62 if kind is KeyKind.INT64 else 0)


def by_key(*keys: Key) -> ByKey:
    return ByKey(as_keys(list(keys)))


def asked(kind: KeyKind, numbers: Any) -> ByKey:
    return by_key(*(key_of(kind, int(i)) for i in numbers))


class Scene:
    """An open table, its writer, and a dict of what is in it."""

    def __init__(self, data_dir: Path, kind: KeyKind, dtype: DType = DType.FLOAT32) -> None:
        self.kind, self.dtype = kind, dtype
        folder = make_open_table(data_dir, NAME, spec_of(kind), DIM, dtype, DEFAULT)
        self.writer = OpenWriter(folder)
        opened = open_table(data_dir, NAME, 1)
        assert isinstance(opened, OpenTable)
        self.table: OpenTable = opened
        self.rows: dict[int, NDArray[np.float32]] = {}
        self._rng = np.random.default_rng(3)

    def put(self, numbers: range, remove: range = range(0)) -> None:
        vectors = self._rng.standard_normal((len(numbers), DIM)).astype(np.float32)
        self.writer.put(
            [key_of(self.kind, i) for i in numbers],
            vectors,
            [key_of(self.kind, i) for i in remove],
        )
        for i in remove:
            self.rows.pop(i, None)
        self.rows |= dict(zip(numbers, self.stored(vectors), strict=True))
        self.table = self.table.renewed()

    def stored(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors after they were rounded to the table's dtype."""
        narrow = np.empty(vectors.shape, self.dtype.storage)
        convert(vectors, DType.FLOAT32, narrow, self.dtype)
        wide = np.empty(vectors.shape, np.float32)
        convert(narrow, self.dtype, wide, DType.FLOAT32)
        return wide

    def initial(self, i: int) -> NDArray[np.float32]:
        keys = as_keys([key_of(self.kind, i)])
        found: NDArray[np.float32] = self.stored(self.table.initial.vectors(keys))[0]
        return found


@pytest.fixture(params=[(kind, dtype) for kind in KINDS for dtype in DTYPES], ids=str)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path, *request.param)
    made.put(range(300))
    made.put(range(300, 450), remove=range(50, 150))
    yield made
    made.writer.close()


def test_keys_have_their_own_vectors_and_others_what_is_chosen(scene: Scene) -> None:
    numbers = np.random.default_rng(1).integers(0, 600, (40, 5))
    keys = ByKey(as_keys([[key_of(scene.kind, int(i)) for i in row] for row in numbers]))
    is_missing = np.array([[int(i) not in scene.rows for i in row] for row in numbers])
    assert 0 < is_missing.sum() < is_missing.size
    for missing, absent in (
        (Missing.ZERO, lambda _: np.zeros(DIM, np.float32)),
        (Missing.DEFAULT, lambda _: DEFAULT),
        (Missing.INIT, scene.initial),
    ):
        found = scene.table.lookup(keys, DType.FLOAT32, missing)
        assert found.status is not None
        np.testing.assert_array_equal(found.status, is_missing)
        expected = [scene.rows.get(int(i), absent(int(i))) for i in numbers.reshape(-1)]
        np.testing.assert_array_equal(found.vectors.reshape(-1, DIM), expected)
    with pytest.raises(KeyNotFound, match=rf"and {int(is_missing.sum()) - 5} more"):
        scene.table.lookup(keys)


@pytest.mark.parametrize("reply", DTYPES)
def test_replies_are_converted_as_other_tables_replies_are(scene: Scene, reply: DType) -> None:
    numbers = [*range(40), *range(300, 310), 555]
    out = np.empty((len(numbers), DIM), reply.storage)
    found = scene.table.lookup(asked(scene.kind, numbers), reply, Missing.INIT, out)
    assert found.vectors is out
    wide = np.stack([scene.rows[i] if i in scene.rows else scene.initial(i) for i in numbers])
    expected = np.empty(wide.shape, reply.storage)
    convert(wide, DType.FLOAT32, expected, reply)
    np.testing.assert_array_equal(out, expected)
    form = VectorForm(dims=7, normalize=True)
    formed = forms.lookup(scene.table, asked(scene.kind, numbers), form, missing=Missing.INIT)
    short = wide[:, :7].astype(np.float64)
    short /= np.linalg.norm(short, axis=1, keepdims=True)
    np.testing.assert_allclose(formed.vectors, short, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mode", list(Pooling))
@pytest.mark.parametrize("missing", [Missing.ZERO, Missing.DEFAULT, Missing.SKIP, Missing.INIT])
def test_bags_have_the_bits_that_a_closed_table_s_have(
    scene: Scene, mode: Pooling, missing: Missing
) -> None:
    rng = np.random.default_rng(5)
    numbers = rng.integers(0, 600, 200)
    offsets = np.array([0, 0, 30, 31, 40, 150, 200, 200])
    weights = None if mode is Pooling.MAX else rng.standard_normal(200).astype(np.float32)
    query = BagsQuery(offsets, mode, weights)
    got = scene.table.lookup_bags(asked(scene.kind, numbers), query, missing=missing)
    # The same rows, one behind the other, without any that could change.
    rows = np.stack([scene.rows.get(int(i), scene.initial(int(i))) for i in numbers])
    index = np.arange(200)
    is_missing = np.array([int(i) not in scene.rows for i in numbers])
    if missing is not Missing.INIT:
        index[is_missing] = -1 if missing is Missing.SKIP else -2
    filler = DEFAULT if missing is Missing.DEFAULT else np.zeros(DIM, np.float32)
    stored = np.empty(rows.shape, scene.dtype.storage)
    convert(rows, DType.FLOAT32, stored, scene.dtype)
    expected = np.empty((offsets.size, DIM), np.float32)
    pool(stored, index, offsets, weights, mode, filler, expected)
    np.testing.assert_array_equal(got.vectors, expected)
    np.testing.assert_array_equal(got.status, is_missing)
    with pytest.raises(KeyNotFound):
        scene.table.lookup_bags(asked(scene.kind, numbers), query)


def test_an_initial_vector_is_the_same_before_the_row_and_after_it(scene: Scene) -> None:
    keys = asked(scene.kind, [900])
    before = scene.table.lookup(keys, missing=Missing.INIT).vectors
    scene.writer.put([key_of(scene.kind, 900)], before)
    with_row = scene.table.lookup(keys)
    np.testing.assert_array_equal(with_row.vectors, before)
    scene.writer.put([key_of(scene.kind, 900)], np.ones((1, DIM), np.float32))
    assert (scene.table.lookup(keys).vectors == 1).all()
    scene.writer.remove([key_of(scene.kind, 900)])
    after = scene.table.lookup(keys, missing=Missing.INIT)
    np.testing.assert_array_equal(after.vectors, before)
    assert after.status is not None
    assert after.status.tolist() == [1]


def test_rows_that_are_used_again_are_their_new_keys_alone(scene: Scene) -> None:
    for step in range(6):
        scene.put(
            range(1000 + 100 * step, 1100 + 100 * step),
            remove=range(1000 + 100 * (step - 1), 1000 + 100 * step),
        )
    numbers = [*range(450), *range(1000, 1600)]
    found = scene.table.lookup(asked(scene.kind, numbers), missing=Missing.ZERO)
    expected = [scene.rows.get(i, np.zeros(DIM, np.float32)) for i in numbers]
    np.testing.assert_array_equal(found.vectors, expected)
    assert scene.table.live_rows == len(scene.rows)
    assert scene.table.used_rows <= ROWS_MAX


def test_integers_that_the_kind_can_t_hold_have_no_row(tmp_path: Path) -> None:
    scene = Scene(tmp_path, KeyKind.INT64)
    scene.writer.put([-1, 0], np.ones((2, DIM), np.float32))
    keys = ByKey(np.array([2**64 - 1, 0], np.uint64))
    found = scene.table.lookup(keys, missing=Missing.INIT)
    assert found.status is not None
    assert found.status.tolist() == [1, 0]
    np.testing.assert_array_equal(found.vectors[0], scene.table.initial.vectors(np.array([-1]))[0])
    bags = scene.table.lookup_bags(keys, BagsQuery(np.array([0])), missing=Missing.ZERO)
    np.testing.assert_array_equal(bags.vectors, np.ones((1, DIM)))
    with pytest.raises(KeyNotFound, match=str(2**64 - 1)):
        scene.table.lookup(keys)
    # Zero is a key as any other.
    scene.writer.remove([0])
    with pytest.raises(KeyNotFound):
        scene.table.lookup(by_key(0))


@pytest.mark.parametrize(
    "call",
    [
        lambda table: table.lookup(np.arange(3)),
        lambda table: table.lookup_bags(np.arange(3), BagsQuery(np.array([0]))),
        lambda table: table.take(np.arange(3), None),
        lambda table: table.keys_of(np.arange(3)),
        lambda table: forms.lookup(table, np.arange(3), VectorForm(2)),
    ],
)
def test_ids_are_refused(tmp_path: Path, call: Any) -> None:
    scene = Scene(tmp_path, KeyKind.INT64)
    with pytest.raises(InvalidArgument, match=r"is open: its rows come and go, .* ask by key"):
        call(scene.table)


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    scene = Scene(tmp_path, KeyKind.INT64)
    with pytest.raises(InvalidArgument, match="keys are strings; the keys of this table are int64"):
        scene.table.lookup(by_key("a"))
    with pytest.raises(InvalidArgument, match="leave padding_id=3 out"):
        scene.table.lookup_bags(by_key(3), BagsQuery(np.array([0]), padding_id=3))
    folder = make_open_table(tmp_path / "other", NAME, spec_of(KeyKind.INT64), DIM)
    plain = open_table(tmp_path / "other", NAME, 1)
    with pytest.raises(FailedPrecondition, match=r'no default vector.*missing="init"'):
        plain.lookup(by_key(3), missing=Missing.DEFAULT)
    (folder / "other").write_bytes(b"\0" * 4096)
    (folder / "other").rename(folder / KEYS_INDEX)
    with pytest.raises(BadFile, match=r"keys\.index"):
        open_table(tmp_path / "other", NAME, 1)
    with pytest.raises(BadFile, match=r"keys\.index"):
        plain.renewed()


def test_an_empty_batch_has_no_row(tmp_path: Path) -> None:
    scene = Scene(tmp_path, KeyKind.INT64)
    keys = ByKey(np.empty((0, 3), np.int64))
    assert scene.table.lookup(keys).vectors.shape == (0, 3, DIM)
    bags = scene.table.lookup_bags(ByKey(np.empty(0, np.int64)), BagsQuery(np.zeros(2, np.int64)))
    np.testing.assert_array_equal(bags.vectors, np.zeros((2, DIM)))
    assert scene.table.live_rows == 0


def test_a_renewed_table_shares_all_but_its_index(tmp_path: Path) -> None:
    scene = Scene(tmp_path, KeyKind.BYTES)
    scene.put(range(100))
    old = scene.table
    assert old.renewed() is old
    scene.writer.renew_index()
    scene.put(range(100, 200))
    new = scene.table
    assert new is not old
    assert np.shares_memory(new.rows, old.rows)
    # A request that began before goes on with what it has.
    np.testing.assert_array_equal(
        old.lookup(asked(scene.kind, range(100))).vectors, [scene.rows[i] for i in range(100)]
    )
    np.testing.assert_array_equal(
        new.lookup(asked(scene.kind, range(200))).vectors, [scene.rows[i] for i in range(200)]
    )


def test_a_row_that_its_writer_died_in_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatherd.store.stripes.WAIT_SECONDS", 0.05)
    scene = Scene(tmp_path, KeyKind.INT64)
    scene.put(range(10))
    seq = np.memmap(tmp_path / "tables" / NAME / "v000001" / "seq", np.uint32, "r+")
    seq[4] += 1
    others = [i for i in range(10) if i != 4]
    scene.table.lookup(asked(scene.kind, others))
    with pytest.raises(Unavailable, match="couldn't be read whole"):
        scene.table.lookup(asked(scene.kind, range(10)))
    with pytest.raises(Unavailable, match="couldn't be read whole"):
        scene.table.lookup_bags(asked(scene.kind, range(10)), BagsQuery(np.array([0, 3])))
    seq[4] += 1
    scene.table.lookup(asked(scene.kind, range(10)))


def test_keys_that_have_a_row_are_listed_and_no_others(scene: Scene) -> None:
    listed: list[Any] = []
    query: KeyQuery | None = KeyQuery(limit=37)
    while query is not None:
        page = find_keys(scene.table, query)
        assert page.ids.size == page.keys.size <= 37
        listed += page.keys.tolist()
        query = None if page.next is None else KeyQuery(limit=37, start=page.next)
    known = [key_of(scene.kind, i) for i in scene.rows]
    expected = [key.encode() if isinstance(key, str) else key for key in known]
    assert sorted(listed) == sorted(expected)
    with pytest.raises(InvalidArgument, match="ask by key"):
        find_ids(scene.table, asked(scene.kind, [1]).keys, allow_missing=True)


def test_keys_with_a_prefix_are_listed(tmp_path: Path) -> None:
    scene = Scene(tmp_path, KeyKind.BYTES)
    scene.put(range(300))
    found = find_keys(scene.table, KeyQuery(b"x" * 30))
    expected = [key_of(scene.kind, i) for i in range(300) if i % 40 >= 30]
    assert sorted(found.keys.tolist()) == sorted(str(key).encode() for key in expected)
    with pytest.raises(InvalidArgument, match="beyond"):
        find_keys(scene.table, KeyQuery(start=ROWS_MAX + 1))


def test_a_scan_has_each_key_s_own_vector(scene: Scene) -> None:
    query = ScanQuery(limit=100)
    seen: dict[Any, Any] = {}
    while True:
        page = ScanPage.of(scene.table, query)
        assert page.keys is not None
        seen |= dict(zip(page.keys.tolist(), page.vectors, strict=True))
        if not page.cursor:
            break
        query = ScanQuery(page.cursor, limit=100)
    assert len(seen) == len(scene.rows)
    for i, vector in scene.rows.items():
        key = key_of(scene.kind, i)
        np.testing.assert_array_equal(seen[key.encode() if isinstance(key, str) else key], vector)
    with pytest.raises(InvalidArgument, match="scanned without their slots"):
        ScanPage.of(scene.table, ScanQuery(with_slots=True))


def test_neighbors_are_refused(tmp_path: Path) -> None:
    scene = Scene(tmp_path, KeyKind.INT64)
    with pytest.raises(FailedPrecondition, match="is open: neighbors are searched in"):
        search(scene.table, NeighborsQuery(by_key(1), None), Norms(), lambda: None)
