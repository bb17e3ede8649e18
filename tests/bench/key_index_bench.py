"""The key index beside a Python dict: memory, open, lookups in batches of 1,024, one thread.

`taskset -c 1 python tests/bench/key_index_bench.py [KEYS]`, half a minute. The marks, at 4 M keys:
under 20 MB of private memory, open in under 0.2 s, 3 M int64 or 1 M string keys/s.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gatherd.store.kernels import compiled
from gatherd.store.key_index import KeyIndex, KeyKind, StringKeys, as_keys
from gatherd_server.storage.files import Files
from gatherd_server.storage.key_index_writer import KeyIndexBuilder

BATCH = 1024
BATCHES = 1000
PART = 65_536


def private_mb() -> float:
    """What only this process holds: anonymous pages and written copies."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous")) / 1024


def rate(call: Callable[[Any], object], batches: list[Any]) -> float:
    """Millions of keys a second, the best of three passes."""
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        for batch in batches:
            call(batch)
        best = min(best, time.perf_counter() - begin)
    return len(batches) * BATCH / best / 1e6


def measure(kind: KeyKind, count: int, folder: Path) -> None:
    """Build an index of `count` keys in `folder`, then print both sides."""
    rng = np.random.default_rng(0)
    drawn: list[Any] = np.unique(rng.integers(0, 2**62, count + count // 100))[:count].tolist()
    rng.shuffle(drawn)
    if kind is KeyKind.BYTES:
        drawn = [f"w{key:x}" for key in drawn]
    begin = time.perf_counter()
    with KeyIndexBuilder(Files(), folder, kind) as builder:
        for start in range(0, count, PART):
            builder.add(as_keys(drawn[start : start + PART]))
        builder.finish()
    built = time.perf_counter() - begin
    picked = rng.integers(0, count, (BATCHES, BATCH))
    lists = [[drawn[i] for i in batch] for batch in picked]
    hits = [as_keys(batch) for batch in lists]
    if kind is KeyKind.BYTES:
        misses = [as_keys([key + "!" for key in batch]) for batch in lists]
    else:
        misses = [as_keys([key + 2**62 for key in batch]) for batch in lists]

    before = private_mb()
    begin = time.perf_counter()
    index = KeyIndex.open(folder)
    opened = time.perf_counter() - begin
    assert index is not None
    index.populate()
    hit_rate, miss_rate = rate(index.rows_of, hits), rate(index.rows_of, misses)
    list_rate = rate(lambda batch: index.rows_of(as_keys(batch)), lists)
    private = private_mb() - before
    for batch, rows in zip(hits, picked, strict=True):
        assert (index.rows_of(batch) == rows).all()
        assert isinstance(batch, StringKeys | np.ndarray)
    assert all((index.rows_of(batch) == -1).all() for batch in misses)
    before = private_mb()
    table = dict(zip(drawn, range(count), strict=True))
    dict_mb = private_mb() - before
    dict_rate = rate(lambda batch: [table.get(key, -1) for key in batch], lists)
    print(
        f"{kind.value:6} {count} keys, {index.nbytes / 1e6:.0f} MB mapped, built in {built:.1f} s"
        f"\n  open {opened * 1e3:.2f} ms; private memory {private:.1f} MB "
        f"(a dict: {dict_mb:.0f} MB beside the keys themselves)"
        f"\n  hits {hit_rate:.1f}, misses {miss_rate:.1f}, from Python lists {list_rate:.1f} "
        f"M keys/s (a dict: {dict_rate:.1f})"
    )


def main() -> None:
    """Print both kinds."""
    compiled.warm()
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 4_000_000
    for kind in (KeyKind.INT64, KeyKind.BYTES):
        with tempfile.TemporaryDirectory() as folder:
            measure(kind, count, Path(folder))


if __name__ == "__main__":
    main()
