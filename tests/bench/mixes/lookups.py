"""Lookups of every kind, and how each is asked: of rows, many tables, keys, bags; in JSON.

Peers begin with what the SDK is given, ids or keys, and end with an array in the caller's hands.
Flight and the bare socket, which know no tables, are given the ids in EVERYTHING beforehand. Flight
can't do keys, and neither does statuses; Redis' half precision is what was stored so.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.harness import BATCH_COUNT, BATCHES, Ids
from bench.latency import HTTP
from bench.mixes.asks import (
    BAG,
    BAGS,
    STRINGS,
    ByKeys,
    Many,
    ManyBags,
    OneTable,
    ask_bags,
    ask_flat,
    ask_key_bags,
    ask_keys,
    ask_many,
    ask_many_bags,
    ask_many_statuses,
    ask_rows,
    ask_small,
    ask_statuses,
)
from bench.mixes.json_client import JsonClient
from bench.mixes.mix import Array, Ask, Call, Mget, Mix
from bench.mixes.scene import (
    BFLOAT,
    DOUBLE,
    HALF,
    HOLES,
    INTEGERS,
    NAMES,
    TABLE_COUNT,
    TRAINED,
    Scene,
    Tables,
    flat,
    half_key,
    integer_key,
)
from bench.peers import FLIGHT_EXCHANGE, FLOOR, REDIS, redis_keys

FLOAT16, BFLOAT16 = "float16 reply", "bfloat16 reply"
STATUSES, ONE_TABLE = 'missing="zero"', "one table of as many ids"
PIPELINE, REDIS_HALF = "Redis, a pipeline of MGETs", "Redis MGET of float16 values"
REDIS_STATUSES = f"{REDIS}, some missing"
JSON: Final = "gatherd http://, JSON"
MANY_SIZES, KEY_SIZES, JSON_SIZES, MANY_BAGS = (1, 16, 256), (1, 64), (1, 64), (1, 16, 256)
# Of a request of 26 × 256 bags this is 85 MB of rows: few batches are drawn.
BATCH_IDS: Final = 1 << 19


def counted(count: int, what: str) -> str:
    """As `1 id`, `64 ids`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def rows_name(size: int) -> str:
    """A mix's name."""
    return f"1 table × {counted(size, 'id')}"


def many_name(size: int) -> str:
    """A mix's name."""
    return f"{TABLE_COUNT} tables × {counted(size, 'id')}"


def keys_name(size: int, kind: str) -> str:
    """A mix's name."""
    return counted(size, "string key" if kind == STRINGS else "64-bit key")


def bags_name(what: str) -> str:
    """A mix's name."""
    return f"{BAGS} bags × {BAG} {what}, mean"


def many_bags_name(bags: int) -> str:
    """A mix's name."""
    return f"{TABLE_COUNT} tables × {counted(bags, 'bag')} × {BAG} ids, mean"


def json_name(size: int) -> str:
    """A mix's name."""
    return f"REST JSON, {counted(size, 'id')}"


def _batch_count(ids: int) -> int:
    return max(4, min(BATCH_COUNT, BATCH_IDS // ids))


# --- rows of one table, in every precision ---


def rows(scene: Scene) -> Iterator[Mix]:
    """One table, of all dtypes that are stored or answered in."""
    for size in BATCHES:
        yield rows_mix(scene, size)


def rows_mix(scene: Scene, size: int) -> Mix:
    """`rows` of one size."""
    tables, rng = scene.tables, scene.rng()
    batches = []
    for _ in range(_batch_count(size)):
        ids = rng.integers(0, tables.row_count, size)
        holes = ids.copy()
        holes[HOLES - 1 :: HOLES] = tables.row_count + 1
        batches.append(OneTable(ids, ids % tables.rows, holes))

    def small(batch: OneTable) -> Array:
        return tables.everything[batch.small]

    def statuses(batch: OneTable) -> Array:
        missing = batch.holes >= tables.row_count
        expected = np.where(missing[:, None], 0, tables.everything[batch.ids])
        return np.concatenate([expected.ravel(), missing])

    asks = {
        "": Ask(ask_rows),
        FLOAT16: Ask(functools.partial(ask_rows, dtype="float16"), tolerance=1e-2),
        BFLOAT16: Ask(functools.partial(ask_rows, dtype="bfloat16"), tolerance=1e-1),
        STATUSES: Ask(ask_statuses, statuses),
    }
    for table, what, tolerance in (
        (HALF, "float16 table", 1e-2),
        (BFLOAT, "bfloat16 table", 1e-1),
        (DOUBLE, "float64 table", 0.0),
        (TRAINED, "trainable table", 0.0),
    ):
        asks[what] = Ask(functools.partial(ask_small, table=table), small, tolerance)
    peers = _flat_peers(scene)
    others = {}
    if scene.redis is not None:
        peers[REDIS_HALF] = _half(tables.dim).of(scene.redis)
        others[REDIS_HALF] = asks["float16 table"]
        peers[REDIS_STATUSES] = _with_statuses(scene.redis, tables.dim)
        others[REDIS_STATUSES] = asks[STATUSES]
    return Mix(
        rows_name(size),
        batches,
        lambda batch: tables.everything[batch.ids],
        asks,
        _mget(tables),
        peers,
        others,
    )


def _flat_peers(scene: Scene) -> dict[str, Call]:
    floor, flight = scene.floor, scene.flight
    peers: dict[str, Call] = {FLOOR: lambda batch: floor(batch.ids)}
    if flight is not None:
        peers[FLIGHT_EXCHANGE] = lambda batch: flight(batch.ids)
    return peers


def _mget(tables: Tables) -> Mget:
    return Mget(lambda batch: redis_keys(batch.ids), lambda values: _joined(values, tables.dim))


def _joined(values: list[bytes], dim: int) -> NDArray[np.float32]:
    return np.frombuffer(b"".join(values), np.float32).reshape(-1, dim)


def _half(dim: int) -> Mget:
    return Mget(
        lambda batch: [half_key(row) for row in batch.small.tolist()],
        lambda values: np.frombuffer(b"".join(values), np.float16).reshape(-1, dim),
    )


def _with_statuses(client: Any, dim: int) -> Call:
    zeros = bytes(dim * 4)

    def call(batch: OneTable) -> tuple[Array, Array]:
        values = client.mget(redis_keys(batch.holes))
        missing = np.array([value is None for value in values], np.uint8)
        return _joined([zeros if value is None else value for value in values], dim), missing

    return call


# --- many tables ---


def tables(scene: Scene) -> Iterator[Mix]:
    """Many tables."""
    for size in MANY_SIZES:
        yield many_mix(scene, size)


def many_mix(scene: Scene, size: int) -> Mix:
    """`tables` of one size."""
    tables = scene.tables

    def expected(batch: Many) -> Array:
        return tables.everything[batch.ids]

    def statuses(batch: Many) -> Array:
        by_table = expected(batch).reshape(TABLE_COUNT, -1)
        return np.pad(by_table, ((0, 0), (0, size)))

    asks = {
        "": Ask(ask_many),
        FLOAT16: Ask(functools.partial(ask_many, dtype="float16"), tolerance=1e-2),
        STATUSES: Ask(ask_many_statuses, statuses),
        ONE_TABLE: Ask(ask_flat),
    }
    peers = _flat_peers(scene)
    if scene.redis is not None:
        peers[PIPELINE] = _pipeline(scene.redis, tables)
    batches = many_batches(scene, size)
    return Mix(many_name(size), batches, expected, asks, _mget_many(tables), peers)


def many_batches(scene: Scene, size: int) -> list[Many]:
    rng, tables = scene.rng(), scene.tables
    drawn = []
    for _ in range(_batch_count(size * TABLE_COUNT)):
        ids = {name: rng.integers(0, tables.rows, size) for name in NAMES}
        drawn.append(Many(ids, flat(tables, ids)))
    return drawn


def _mget_many(tables: Tables) -> Mget:
    """One MGET of all rows, to a dict by table."""
    dim = tables.dim

    def by_table(values: list[bytes]) -> dict[str, Array]:
        rows = _joined(values, dim).reshape(TABLE_COUNT, -1, dim)
        return dict(zip(NAMES, rows, strict=True))

    return Mget(lambda batch: _many_keys(tables, batch.tables), by_table)


def _many_keys(tables: Tables, ids: Mapping[str, Ids]) -> list[bytes]:
    firsts = range(0, tables.row_count, tables.rows)
    return [
        b"%012d" % (first + one)
        for first, of_table in zip(firsts, ids.values(), strict=True)
        for one in of_table.tolist()
    ]


def _pipeline(client: Any, tables: Tables) -> Call:
    def call(batch: Many) -> dict[str, Array]:
        pipeline = client.pipeline(transaction=False)
        for k, ids in enumerate(batch.tables.values()):
            pipeline.mget(redis_keys(ids + k * tables.rows))
        replies = pipeline.execute()
        return {
            name: _joined(values, tables.dim)
            for name, values in zip(batch.tables, replies, strict=True)
        }

    return call


# --- keys ---


def key_batches(scene: Scene, kind: str, size: int) -> list[ByKeys]:
    """Of a table with keys of that kind."""
    rng, tables = scene.rng(), scene.tables
    drawn = []
    for _ in range(_batch_count(size)):
        picked = rng.integers(0, tables.rows, size)
        keys: Any = tables.integer_keys[picked]
        if kind == STRINGS:
            keys = [tables.string_keys[row] for row in picked.tolist()]
        drawn.append(ByKeys(keys, picked))
    return drawn


def keys(scene: Scene) -> Iterator[Mix]:
    """By key, of either kind."""
    for kind in (INTEGERS, STRINGS):
        for size in KEY_SIZES:
            yield keys_mix(scene, kind, size)


def keys_mix(scene: Scene, kind: str, size: int) -> Mix:
    """`keys` of one kind and size."""
    tables = scene.tables
    return Mix(
        keys_name(size, kind),
        key_batches(scene, kind, size),
        lambda batch: tables.everything[batch.rows],
        {"": Ask(functools.partial(ask_keys, table=kind))},
        _mget_by_key(kind, tables.dim),
    )


def _mget_by_key(kind: str, dim: int) -> Mget:
    def keys(batch: ByKeys) -> list[Any]:
        if kind == STRINGS:
            of_strings: list[Any] = batch.keys
            return of_strings
        return [integer_key(key) for key in batch.keys.tolist()]

    return Mget(keys, lambda values: _joined(values, dim))


# --- bags ---


def bags(scene: Scene) -> Iterator[Mix]:
    """Bags, of one table and of many; peers' rows are pooled by NumPy."""
    yield bags_mix(scene)
    yield key_bags_mix(scene)
    for size in MANY_BAGS:
        yield _many_bags_mix(scene, size)


def _pooled(rows: Array, dim: int) -> Array:
    mean: Array = rows.reshape(-1, BAG, dim).mean(axis=1)
    return mean


def bags_mix(scene: Scene) -> Mix:
    """Bags of ids of one table."""
    tables, rng = scene.tables, scene.rng()
    drawn = [rng.integers(0, tables.row_count, BAGS * BAG) for _ in range(BATCH_COUNT)]
    batches = [OneTable(ids, ids, ids) for ids in drawn]
    return Mix(
        bags_name("ids"),
        batches,
        lambda batch: _pooled(tables.everything[batch.ids], tables.dim),
        {"": Ask(ask_bags, tolerance=1e-4)},
        _pooled_mget(_mget(tables), tables.dim),
        {name: _then_pooled(call, tables.dim) for name, call in _flat_peers(scene).items()},
    )


def key_bags_mix(scene: Scene) -> Mix:
    """Bags of string keys."""
    tables = scene.tables
    return Mix(
        bags_name("string keys"),
        key_batches(scene, STRINGS, BAGS * BAG),
        lambda batch: _pooled(tables.everything[batch.rows], tables.dim),
        {"": Ask(ask_key_bags, tolerance=1e-4)},
        _pooled_mget(_mget_by_key(STRINGS, tables.dim), tables.dim),
    )


def _pooled_mget(mget: Mget, dim: int) -> Mget:
    return Mget(mget.keys, lambda values: _pooled(np.asarray(mget.answer(values)), dim))


def _then_pooled(call: Callable[[Any], Any], dim: int) -> Call:
    return lambda batch: _pooled(call(batch), dim)


def _many_bags_mix(scene: Scene, size: int) -> Mix:
    tables, dim = scene.tables, scene.tables.dim
    offsets = np.arange(0, size * BAG, BAG)
    batches = [
        ManyBags({name: (ids, offsets) for name, ids in many.tables.items()}, many.ids)
        for many in many_batches(scene, size * BAG)
    ]
    peers = {
        name: _then_pooled(call, dim)
        for name, call in _flat_peers(scene).items()
        if name != FLOOR or size * BAG * TABLE_COUNT <= max(BATCHES)
    }

    def keys(batch: ManyBags) -> list[bytes]:
        return _many_keys(tables, {name: ids for name, (ids, _) in batch.bags.items()})

    def by_table(values: list[bytes]) -> dict[str, Array]:
        pooled = _pooled(_joined(values, dim), dim).reshape(TABLE_COUNT, -1, dim)
        return dict(zip(NAMES, pooled, strict=True))

    return Mix(
        many_bags_name(size),
        batches,
        lambda batch: _pooled(tables.everything[batch.ids], dim),
        {"": Ask(ask_many_bags, tolerance=1e-4)},
        Mget(keys, by_table),
        peers,
    )


# --- JSON ---


def json(scene: Scene) -> Iterator[Mix]:
    """REST, as JSON: by a bare socket and orjson; the rest over the SDK and Redis, for a scale."""
    with JsonClient(scene.servers[HTTP].http) as client:
        for size in JSON_SIZES:
            mix = rows_mix(scene, size)
            usual = {"": Ask(ask_rows)}
            peers: dict[str, Call] = {JSON: client.rows}
            yield Mix(json_name(size), mix.batches, mix.expected, usual, mix.mget, peers)
