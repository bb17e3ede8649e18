"""What a lookup costs from its bytes to its reply's: compiled, and in general, turn by turn.

No socket, one thread, tables in memory, and another request each time. ROWS a table, 200,000 of 128
float32 by default, and 26 tables: PYTHONPATH=tests python tests/bench/answers_bench.py [ROWS]
"""

import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from google.protobuf.message import Message

from gatherd.store.format import read_layout
from gatherd.store.key_index import KeyIndex, KeyKind, StringKeys
from gatherd.store.table import Preload, Table
from gatherd_proto.v1 import embedding_pb2
from gatherd_server.storage.files import Files
from gatherd_server.storage.key_index_writer import KeyIndexBuilder
from gatherd_server.types import Limits
from gatherd_server.wire.compiled.answers import LOOKUP, LOOKUP_BAGS, LOOKUP_BAGS_MANY, LOOKUP_MANY
from support.answering import TwoWays
from support.request_bytes import string_keys, tensor
from support.small_engine import lookup_request

TABLES, DIM = 26, 128
REQUESTS = 32
# Short rounds, the best of which had a core of its own.
ROUNDS, ROUND_SECONDS = 60, 0.002
LIMITS = Limits(16 << 20, 64 << 20, 1 << 20, 100, 16)


def opened(name: str, path: Path, keys: KeyIndex | None = None) -> Table:
    with open(path, "rb") as file:
        table = Table.map(name, 1, file.fileno(), read_layout(file.fileno(), name), None, keys)
    table.preload(Preload.POPULATE)
    return table


def make_tables(folder: Path, row_count: int) -> tuple[dict[str, Table], list[bytes]]:
    random = np.random.default_rng(0)
    rows = random.normal(size=(row_count, DIM)).astype(np.float32)
    tables = {}
    for i in range(TABLES):
        np.save(folder / f"t{i}.npy", rows)
        tables[f"t{i}"] = opened(f"t{i}", folder / f"t{i}.npy")
    words = [f"item-{i:07}".encode() for i in range(row_count)]
    with KeyIndexBuilder(Files(), folder, KeyKind.BYTES) as builder:
        builder.add(StringKeys.of(words))
        builder.finish()
    tables["words"] = opened("words", folder / "t0.npy", KeyIndex.open(folder))
    return tables, words


def best_us(call: Callable[[bytes], object], bodies: list[bytes]) -> float:
    """The best round's mean, in µs."""
    turns = itertools.cycle(bodies)
    best = float("inf")
    for _ in range(ROUNDS):
        count, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < ROUND_SECONDS:
            call(next(turns))
            count += 1
        best = min(best, (time.perf_counter() - begun) / count)
    return best * 1e6


def main() -> None:
    row_count = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    random = np.random.default_rng(1)

    def ids(count: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        return random.integers(0, row_count, count)

    def bags(table: str, count: int, length: int) -> embedding_pb2.LookupBagsRequest:
        return embedding_pb2.LookupBagsRequest(
            lookup=lookup_request(table, ids(count * length)),
            offsets=tensor(np.arange(0, count * length, length)),
            pooling="POOLING_MEAN",
        )

    with tempfile.TemporaryDirectory() as folder:
        tables, words = make_tables(Path(folder), row_count)
        ways = TwoWays(tables, {}, {}, np.zeros(1, np.uint32), LIMITS)
        ways.answers.write_to(np.zeros(32 << 20, np.uint8))

        def keyed(count: int) -> embedding_pb2.LookupRequest:
            drawn = [words[int(i)] for i in ids(count)]
            return embedding_pb2.LookupRequest(table="words", keys=string_keys(drawn, (count,)))

        def many(count: int) -> embedding_pb2.LookupManyRequest:
            one_each = [lookup_request(f"t{i}", ids(count)) for i in range(TABLES)]
            return embedding_pb2.LookupManyRequest(lookups=one_each)

        def one(count: int, **fields: str) -> embedding_pb2.LookupRequest:
            return lookup_request("t0", ids(count), **fields)

        def bag_each() -> embedding_pb2.LookupBagsManyRequest:
            one_each = [bags(f"t{i}", 1, 20) for i in range(TABLES)]
            return embedding_pb2.LookupBagsManyRequest(bags=one_each)

        kinds: dict[str, tuple[int, Callable[[], Message]]] = {}
        for n in (1, 16, 256):
            kinds[f"26 tables × {n}"] = LOOKUP_MANY, partial(many, n)
        for n in (1, 64, 1024, 16384):
            for dtype in ("float32", "float16", "bfloat16"):
                asked = partial(one, n, dtype=f"DTYPE_{dtype.upper()}")
                kinds[f"1 table × {n}, {dtype}"] = LOOKUP, asked
            kinds[f"1 table × {n}, missing=zero"] = LOOKUP, partial(one, n, missing="MISSING_ZERO")
        for n in (1, 64):
            kinds[f"{n} string keys"] = LOOKUP, partial(keyed, n)
        kinds["32 bags × 20"] = LOOKUP_BAGS, partial(bags, "t0", 32, 20)
        kinds["26 tables × 1 bag × 20"] = LOOKUP_BAGS_MANY, bag_each
        print(f"{'':34}{'compiled, µs':>14}{'in general, µs':>16}{'ratio':>8}")
        for name, (message, make) in kinds.items():
            bodies = [make().SerializeToString() for _ in range(REQUESTS)]
            assert all(ways.answers.answer(message, body) > 0 for body in bodies)
            fast = best_us(partial(ways.answers.answer, message), bodies)
            general = best_us(partial(ways.general, message), bodies)
            print(f"{name:34}{fast:14.1f}{general:16.1f}{general / fast:8.1f}")


if __name__ == "__main__":
    main()
