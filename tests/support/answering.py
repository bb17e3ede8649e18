"""Tables of every dtype and kind of keys, and two ways to answer from them."""

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray
from safetensors.numpy import save_file

from gatherd.errors import GatherdError
from gatherd.store.catalog import open_table
from gatherd.store.dtypes import DType
from gatherd.store.format import read_layout
from gatherd.store.initializer import Initializer
from gatherd.store.kernels import compiled
from gatherd.store.key_index import KeyIndex, KeyKind, StringKeys
from gatherd.store.live import LiveTables
from gatherd.store.open_spec import OpenSpec
from gatherd.store.table import Gathered, Preload, Table
from gatherd_proto.v1 import embedding_pb2
from gatherd_server.engine.engine import Engine
from gatherd_server.engine.tables import ServedTables
from gatherd_server.storage.files import Files
from gatherd_server.storage.key_index_writer import KeyIndexBuilder
from gatherd_server.types import Limits, Lookup
from gatherd_server.wire import lookups
from gatherd_server.wire.compiled.answers import (
    LOOKUP,
    LOOKUP_BAGS,
    LOOKUP_BAGS_MANY,
    LOOKUP_MANY,
    NOT_MINE,
    Answers,
    Pieces,
)
from gatherd_server.wire.compiled.directory import Directory
from support.open_rows import OpenWriter, make_open_table

LIMITS = Limits(
    request_bytes_max=1 << 20,
    reply_bytes_max=16 << 20,
    ids_max=20_000,
    tables_max=8,
    requests_in_flight_max=16,
)
WORDS = [b"king", b"queen", "Zürich".encode(), b"caf\xe9", b"a", b"exactly8", b"nul\0", b"x" * 1000]
WORDS += [f"word{i}".encode() for i in range(92)]
CLASSES: dict[int, type[Message]] = {
    LOOKUP: embedding_pb2.LookupRequest,
    LOOKUP_MANY: embedding_pb2.LookupManyRequest,
    LOOKUP_BAGS: embedding_pb2.LookupBagsRequest,
    LOOKUP_BAGS_MANY: embedding_pb2.LookupBagsManyRequest,
}
# What isn't written to is that many of it.
GUARD = 7
_LOOKUPS: dict[int, Callable[[Any, Limits], list[Lookup]]] = {
    LOOKUP: lambda request, _: [lookups.lookup_of(request)],
    LOOKUP_MANY: lookups.lookups_of,
    LOOKUP_BAGS: lambda request, _: [lookups.bag_lookup_of(request)],
    LOOKUP_BAGS_MANY: lookups.bag_lookups_of,
}


@dataclass
class TwoWays:
    """Answers requests from `tables`, whose rows are `rows`, compiled and in general."""

    tables: dict[str, Table]
    rows: dict[str, NDArray[Any]]
    keys: dict[str, Any]
    counters: NDArray[np.uint32]
    """Of the tables whose rows may change; all even."""
    limits: Limits = LIMITS
    out: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(1 << 20, np.uint8))

    def __post_init__(self) -> None:
        compiled.warm()
        self.engine = Engine(ServedTables(self.tables, {}), self.limits)
        self.directory = Directory(LiveTables(None, fixed=self.tables).current())
        self.answers = Answers(self.limits)
        self.counts = self.answers.use(self.directory)
        self.answers.write_to(self.out)
        self.slow = Answers(self.limits)
        self.slow.use(self.directory)

    @property
    def row_counts(self) -> dict[str, int]:
        """By table."""
        return {name: table.row_count for name, table in self.tables.items()}

    def compiled(self, message: int, body: bytes) -> bytes | None:
        """The compiled answer, if it gives one."""
        length = self.answers.answer(message, body)
        assert length >= NOT_MINE, "it says that the reply is too large"
        return None if length == NOT_MINE else self.out[:length].tobytes()

    def begun(self, message: int, body: bytes, out: NDArray[np.uint8], work: int) -> Pieces | None:
        """The compiled answer in pieces, the first in `out`; None where `compiled` gives none."""
        self.slow.write_to(out[:0])
        if self.slow.answer(message, body) >= NOT_MINE:
            return None
        self.slow.write_to(out)
        return self.slow.begin(message, body, work)

    def in_pieces(self, message: int, body: bytes, room: int, work: int) -> bytes | None:
        """The same, joined; each piece has so much more `room` than it has to have."""
        out = np.full(room, GUARD, np.uint8)
        pieces = self.begun(message, body, out, work)
        if pieces is None:
            return None
        found = [out[: pieces.written].tobytes()]
        left = pieces.byte_count - pieces.written
        while left:
            out = np.full(pieces.unit_bytes + room + GUARD, GUARD, np.uint8)
            written = pieces.go_on(out[:-GUARD], work)
            assert 0 < written <= left
            assert (out[written:] == GUARD).all()
            found.append(out[:written].tobytes())
            left -= written
        return b"".join(found)

    def gathered(self, message: int, body: bytes) -> list[Gathered]:
        """What the engine finds. A GatherdError for what can't be answered."""
        request = lookups.parse(CLASSES[message](), body, self.limits)
        return self.engine.lookup_many(_LOOKUPS[message](request, self.limits))

    def general(self, message: int, body: bytes) -> bytes | GatherdError:
        """The reply of the general way, or its error."""
        try:
            gathered = self.gathered(message, body)
        except GatherdError as error:
            return error
        if message in (LOOKUP, LOOKUP_BAGS):
            return b"".join(lookups.lookup_reply(gathered[0]))
        return b"".join(lookups.lookup_many_reply(gathered))

    def same(self, message: int, body: bytes) -> bool:
        """Whether there is a compiled answer; AssertionError when it isn't the general way's.

        Nor when pieces of it, whose length depends on the body, make another one.
        """
        given = self.compiled(message, body)
        assert given is None or given == self.general(message, body)
        if given:
            drawn = zlib.crc32(body)
            work = len(given) // 8 + drawn % 997
            assert self.in_pieces(message, body, drawn % 1021, work) == given
        return given is not None


def _odd_values(rows: NDArray[Any]) -> NDArray[Any]:
    """Rows that have every kind of number near their ends: NaN, infinity, the smallest, halves."""
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[rows.dtype.itemsize]
    random = np.random.default_rng(3)
    scaled = rows.astype(np.float64) * 10.0 ** random.integers(-12, 9, rows.shape)
    with np.errstate(over="ignore"):
        rows[:] = scaled.astype(rows.dtype)
    raw = random.integers(0, 1 << 62, rows.shape, np.uint64) * np.uint64(3)
    is_any = random.random(rows.shape) < 0.3
    rows.view(bits)[is_any] = raw.astype(bits)[is_any]
    return rows


def _key_index(folder: Path, kind: KeyKind, keys: Any) -> KeyIndex:
    folder.mkdir()
    with KeyIndexBuilder(Files(), folder, kind) as builder:
        builder.add(keys)
        builder.finish()
    index = KeyIndex.open(folder)
    assert index is not None
    return index


def two_ways(folder: Path) -> TwoWays:
    """Tables of every stored dtype, plain, odd (NaN and such), keyed, and with counters."""
    random = np.random.default_rng(11)
    dtypes = {
        "float32": np.dtype(np.float32),
        "float16": np.dtype(np.float16),
        "bfloat16": np.dtype(ml_dtypes.bfloat16),
        "float64": np.dtype(np.float64),
    }
    rows: dict[str, NDArray[Any]] = {}
    for name, dtype in dtypes.items():
        # 70 is no multiple of a vector's lanes, and 24 fewer than one of the pooling's.
        rows[name] = random.normal(size=(300, 70)).astype(dtype)
        rows[f"odd-{name}"] = _odd_values(random.normal(size=(40, 37)).astype(dtype))
        if name != "float64":
            rows[f"live-{name}"] = random.normal(size=(200, 24)).astype(dtype)
    rows["wide"] = random.normal(size=(70_000, 1)).astype(np.float32)
    keys: dict[str, Any] = {
        "words": WORDS,
        "signed": random.permutation(np.arange(-50, 50)).astype(np.int64) * 2**53 + 7,
        "unsigned": random.permutation(100).astype(np.uint64) * np.uint64(2**57) + np.uint64(3),
        "small": np.arange(3, 103, dtype=np.int64),
    }
    for name in keys:
        rows[name] = random.normal(size=(100, 6)).astype(np.float32)
    indices = {
        "words": _key_index(folder / "words", KeyKind.BYTES, StringKeys.of(WORDS)),
        "signed": _key_index(folder / "signed", KeyKind.INT64, keys["signed"]),
        "unsigned": _key_index(folder / "unsigned", KeyKind.UINT64, keys["unsigned"]),
        "small": _key_index(folder / "small", KeyKind.INT64, keys["small"]),
    }
    keys["small"] = keys["small"].astype(np.uint8)
    counters = np.zeros(64, np.uint32)
    tables = {}
    for name, values in rows.items():
        path = folder / f"{name}.safetensors"
        # A tensor of odd length before ours misaligns it in the file.
        save_file({"a": np.zeros(3, np.int8), "rows": values}, path)
        fd = os.open(path, os.O_RDONLY)
        default = random.normal(size=(values.shape[1],)).astype(np.float32)
        tables[name] = Table.map(
            name, 1, fd, read_layout(fd, name, "rows"), default, indices.get(name),
            counters if name.startswith("live") else None,
        )  # fmt: skip
        os.close(fd)
        tables[name].preload(Preload.POPULATE)
    _add_open_tables(folder, tables, rows, keys)
    return TwoWays(tables, rows, keys, counters)


def _add_open_tables(
    folder: Path, tables: dict[str, Table], rows: dict[str, NDArray[Any]], keys: dict[str, Any]
) -> None:
    """Tables of the same keys whose rows come and go, and went: "open-…"."""
    random = np.random.default_rng(12)
    for name, kind, dtype, dim in (
        ("words", KeyKind.BYTES, DType.FLOAT32, 70),
        ("signed", KeyKind.INT64, DType.FLOAT16, 6),
        ("unsigned", KeyKind.UINT64, DType.BFLOAT16, 24),
        ("small", KeyKind.INT64, DType.FLOAT32, 6),
    ):
        spec = OpenSpec(kind, 150, 5, Initializer.parse("truncated_normal"))
        default = random.normal(size=dim).astype(np.float32)
        version = make_open_table(
            folder / f"open-{name}", f"open-{name}", spec, dim, dtype, default
        )
        writer = OpenWriter(version)
        known = keys[name]
        given = (
            [one.decode("utf-8", "surrogateescape") for one in known]
            if name == "words"
            else known.tolist()
        )
        vectors = random.normal(size=(len(given), dim)).astype(np.float32)
        writer.put(given[:60], vectors[:60])
        writer.put(given[60:], vectors[60:], given[:20])
        writer.put(given[:20], vectors[:20])
        writer.close()
        rows[f"open-{name}"], keys[f"open-{name}"] = vectors, known
        tables[f"open-{name}"] = open_table(folder / f"open-{name}", f"open-{name}", 1)
        tables[f"open-{name}"].preload(Preload.POPULATE)
