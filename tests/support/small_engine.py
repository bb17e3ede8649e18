"""A small engine in this process, with copies of its tables in NumPy."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.store.table import Preload
from gatherd_proto.v1 import embedding_pb2, tensor_pb2
from gatherd_server.access.admission import Admission
from gatherd_server.engine.engine import Engine
from gatherd_server.engine.tables import ServedTables
from gatherd_server.http.offload import Offload
from gatherd_server.types import Limits
from support.file_tables import open_file_table

LIMITS = Limits(
    request_bytes_max=1 << 20,
    reply_bytes_max=16 << 20,
    ids_max=100_000,
    tables_max=3,
    requests_in_flight_max=16,
)
THREADS = 4
"""The threads for long work in one server."""
REFUSED = "refused"


@dataclass(frozen=True)
class SmallEngine:
    """`rows` holds every table as float32; the table REFUSED can't be looked up."""

    engine: Engine
    rows: dict[str, NDArray[np.float32]]
    admission: Admission
    offload: Offload


def small_engine(folder: Path, **limits: Any) -> SmallEngine:
    """Tables words (float32), half (float16), odd (NaN and infinity) and empty (no rows)."""
    rng = np.random.default_rng(7)
    tables: dict[str, NDArray[Any]] = {
        "words": rng.normal(size=(5000, 64)).astype(np.float32),
        "half": rng.normal(size=(300, 5)).astype(np.float16),
        "odd": np.array([[np.nan, np.inf], [-np.inf, 1.5]], np.float32),
        "empty": np.empty((0, 3), np.float32),
    }
    opened = {}
    for name, rows in tables.items():
        np.save(folder / f"{name}.npy", rows)
        opened[name] = open_file_table(name, folder / f"{name}.npy", None)
        opened[name].preload(Preload.POPULATE)
    narrowed = replace(LIMITS, **limits)
    engine = Engine(ServedTables(opened, {REFUSED: "its file is truncated"}), narrowed)
    return SmallEngine(
        engine,
        {name: rows.astype(np.float32) for name, rows in tables.items()},
        Admission(narrowed),
        Offload(THREADS),
    )


def lookup_request(table: str, ids: Any, **fields: Any) -> embedding_pb2.LookupRequest:
    """A LookupRequest with ids of an integer dtype."""
    array = np.asarray(ids)
    tensor = tensor_pb2.Tensor(
        dtype=f"DTYPE_{array.dtype.name.upper()}",
        shape=array.shape,
        data=array.tobytes(),
    )
    return embedding_pb2.LookupRequest(table=table, ids=tensor, **fields)


def vectors_of(reply: embedding_pb2.LookupResponse) -> NDArray[np.float32]:
    """The float32 vectors of a reply."""
    assert reply.vectors.dtype == tensor_pb2.DTYPE_FLOAT32
    return np.frombuffer(reply.vectors.data, "<f4").reshape(tuple(reply.vectors.shape))
