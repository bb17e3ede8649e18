"""Two programs that race: one gives rows to other keys without pause, the other reads them by key.

`python open_races.py write FOLDER KIND` changes the version in FOLDER and says "storing" when each
of its rows has had another key; it goes on until its standard input ends, and then says how many
rows it created. `python open_races.py read DATA_DIR KIND ROWS` reads rows in the ways that ROWS, in
JSON, has, as many as it says, and says in JSON how many were wrong, missing, and lost: of a key
that always has a row. After "blind" the kernels compare keys before they copy, and not once more
under the row's counter.

Key i has the vector (i, i, …) or no row; the vector that rows begin with is (−1, −1, …).
"""

import importlib.util
import json
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAME = "t"
DIM = 96
KEYS = 2048
"""float16 has all these numbers."""
KEPT = 64
"""The keys below this one always have a row."""
ROWS_MAX = 640
CHANGED = 160
BATCH = 1024

Read = Callable[[NDArray[np.int64]], tuple[NDArray[Any], NDArray[Any]]]


def key_of(kind: str, i: int) -> Any:
    """Key i."""
    return f"the key of {i}" if kind == "bytes" else i * 10**12


def write(folder: Path, kind: str) -> None:
    """The writer's program."""
    from support.open_rows import OpenWriter

    writer = OpenWriter(folder)
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    rng = np.random.default_rng(0)
    keys = [key_of(kind, i) for i in range(KEYS)]
    vectors = np.repeat(np.arange(KEYS, dtype=np.float32)[:, None], DIM, axis=1)
    others = rng.permutation(np.arange(KEPT, KEYS))
    there = others[: ROWS_MAX - KEPT]
    waiting = others[ROWS_MAX - KEPT :]
    first = np.concatenate([np.arange(KEPT), there])
    writer.put([keys[i] for i in first], vectors[first])
    count = 0
    while not ended.is_set():
        gone, there = there[:CHANGED], there[CHANGED:]
        come, waiting = (
            waiting[:CHANGED],
            np.concatenate([waiting[CHANGED:], rng.permutation(gone)]),
        )
        writer.put([keys[i] for i in come], vectors[come], [keys[i] for i in gone])
        there = np.concatenate([there, come])
        if count < ROWS_MAX <= count + CHANGED:
            print("storing", flush=True)
        count += CHANGED
    print(count, flush=True)
    writer.close()


def blind(source: str) -> str:
    """The kernels' source without the second look."""
    changes = (
        # What is found is compared before anything is copied…
        (
            "put(hints, block + i, row)",
            "put(hints, block + i, _find(table, first, data, block + i))",
        ),
        # … and not under the row's counter.
        ("if not _has_key(table, row, first, data, i):", "if False:"),
    )
    for before, after in changes:
        assert source.count(before) == 1, before
        source = source.replace(before, after)
    return source


def load_blind() -> None:
    """Let this process have kernels without the second look."""
    name = "gatherd.store.kernels.open_rows"
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    path = Path(tempfile.mkdtemp()) / "open_rows.py"
    path.write_text(blind(Path(found.origin).read_text()))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def ways(table: Any, kind: str) -> dict[str, Callable[[], Read]]:
    """How rows are read: vectors and statuses of keys."""
    from gatherd.store.dtypes import DType
    from gatherd.store.keys import as_keys
    from gatherd.store.query import BagsQuery, ByKey, Missing, Pooling

    keys = np.array([key_of(kind, i) for i in range(KEYS)], object if kind == "bytes" else np.int64)
    state = {"table": table}

    def asked(numbers: NDArray[np.int64]) -> ByKey:
        state["table"] = state["table"].renewed()
        chosen = keys[numbers]
        return ByKey(as_keys(chosen.tolist() if kind == "bytes" else chosen))

    def lookup(dtype: DType) -> Read:
        def read(numbers: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
            found = state["table"].lookup(asked(numbers), dtype, Missing.INIT)
            return found.vectors, found.status

        return read

    def bags(mode: Pooling) -> Read:
        # Each key twice, so that a mean of two rows would be seen.
        query = BagsQuery(np.arange(0, 2 * BATCH, 2), mode)

        def read(numbers: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
            found = state["table"].lookup_bags(
                asked(np.repeat(numbers, 2)), query, missing=Missing.SKIP
            )
            status = found.status.reshape(-1, 2).min(axis=1)
            vectors = np.where(status[:, None] == 1, -1, found.vectors)
            return vectors, status

        return read

    def answer() -> Read:
        from gatherd.store.live import LiveTables
        from gatherd_proto.v1 import embedding_pb2
        from gatherd_server.types import Limits
        from gatherd_server.wire.compiled.answers import LOOKUP, Answers
        from gatherd_server.wire.compiled.directory import Directory
        from support.request_bytes import string_keys, tensor

        limits = Limits(1 << 20, 16 << 20, 20_000, 8, 16)
        answers, out = Answers(limits), np.zeros(4 << 20, np.uint8)
        answers.write_to(out)
        general = lookup(DType.FLOAT32)
        held: dict[str, Any] = {}
        encoded = [key.encode() for key in keys] if kind == "bytes" else []

        def read(numbers: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
            current = state["table"] = state["table"].renewed()
            if held.get("of") is not current:
                current.is_populated = True
                live = LiveTables(None, fixed={NAME: current})
                held.update(of=current, directory=Directory(live.current()))
                answers.use(held["directory"])
            request = embedding_pb2.LookupRequest(table=NAME, missing="MISSING_INIT")
            if kind == "bytes":
                request.keys.CopyFrom(string_keys([encoded[i] for i in numbers], [numbers.size]))
            else:
                request.keys.integers.CopyFrom(tensor(keys[numbers]))
            length = answers.answer(LOOKUP, request.SerializeToString())
            if length < 0:  # the writer was put to sleep inside a row
                return general(numbers)
            reply = embedding_pb2.LookupResponse.FromString(out[:length].tobytes())
            vectors = np.frombuffer(reply.vectors.data, np.float32).reshape(-1, DIM)
            return vectors, np.frombuffer(reply.status, np.uint8)

        return read

    return {
        "lookup": lambda: lookup(DType.FLOAT32),
        "converted": lambda: lookup(DType.FLOAT16),
        "mean": lambda: bags(Pooling.MEAN),
        "max": lambda: bags(Pooling.MAX),
        "answer": answer,
    }


def judged(numbers: NDArray[np.int64], vectors: NDArray[Any], status: NDArray[Any]) -> Any:
    """How many rows were wrong, missing, and lost."""
    expected = np.where(status == 1, -1, numbers)
    is_wrong = (vectors.astype(np.float32) != expected[:, None]).any(axis=1)
    return np.array([is_wrong.sum(), (status == 1).sum(), ((status == 1) & (numbers < KEPT)).sum()])


def read_all(data_dir: Path, kind: str, wanted: dict[str, int]) -> None:
    """The reader's program."""
    from gatherd.store.catalog import open_table

    known = ways(open_table(data_dir, NAME, 1), kind)
    found = {way: read_rows(known[way](), row_count) for way, row_count in wanted.items()}
    print(json.dumps(found))


def read_rows(read: Read, row_count: int) -> dict[str, int]:
    """What was found of so many rows."""
    rng = np.random.default_rng(1)
    found, count = np.zeros(3, np.int64), 0
    while count < row_count:
        numbers = rng.integers(0, KEYS, BATCH)
        numbers[::8] %= KEPT
        found += judged(numbers, *read(numbers))
        count += BATCH
    wrong, missing, lost = found.tolist()
    return {"rows": count, "wrong": wrong, "missing": missing, "lost": lost}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), sys.argv[3])
    else:
        if sys.argv[5:] == ["blind"]:
            load_blind()
        read_all(Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))
