"""Pooled bags beside torch's `embedding_bag`, alternating in one run, one thread each.

Wants an environment with torch: `taskset -c 1 python tests/bench/bags_bench.py [ROWS]`. The mark is
26 tables × 1,024 bags × 20 ids, dim 128, float32, sum: at most 1.2 times torch.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from gatherd.store.bags import pool
from gatherd.store.kernels import compiled
from gatherd.store.query import Pooling

TABLES, BAGS, IDS, DIM = 26, 1024, 20, 128
ROUNDS = 15
TORCH_DTYPES = {"<f4": torch.float32, "<f2": torch.float16, "<u2": torch.bfloat16}


def timed(call: Callable[[int], object]) -> float:
    """Milliseconds that one call takes."""
    begin = time.perf_counter()
    call(0)
    return (time.perf_counter() - begin) * 1e3


def draw(rng: np.random.Generator, row_count: int, zipf: bool) -> NDArray[np.int64]:
    """The ids of one table's bags."""
    if zipf:
        return rng.zipf(1.05, BAGS * IDS) % row_count
    return rng.integers(0, row_count, BAGS * IDS)


def compare(row_count: int, descr: str, mode: Pooling, zipf: bool) -> None:
    """Print both sides' medians for tables of `row_count` rows."""
    rng = np.random.default_rng(0)
    tensors = [
        torch.from_numpy(rng.standard_normal((row_count, DIM), np.float32)).to(TORCH_DTYPES[descr])
        for _ in range(TABLES)
    ]
    tables = [(t.view(torch.uint16) if descr == "<u2" else t).numpy().view(descr) for t in tensors]
    offsets = np.arange(BAGS) * IDS
    out, filler = np.empty((TABLES, BAGS, DIM), np.float32), np.zeros(DIM, np.float32)
    mine, others = [], []
    for _ in range(ROUNDS):
        ids = [draw(rng, row_count, zipf) for _ in range(TABLES)]
        tensor_ids, tensor_offsets = [torch.from_numpy(i) for i in ids], torch.from_numpy(offsets)

        def ours(_: int, ids: list[NDArray[np.int64]] = ids) -> None:
            for k in range(TABLES):
                pool(tables[k], ids[k], offsets, None, mode, filler, out[k])

        def theirs(
            _: int,
            ids: list[torch.Tensor] = tensor_ids,
            begins: torch.Tensor = tensor_offsets,
        ) -> None:
            for k in range(TABLES):
                torch.nn.functional.embedding_bag(ids[k], tensors[k], begins, mode=mode.value)

        mine.append(timed(ours))
        others.append(timed(theirs))
    a, b = np.median(mine[2:]), np.median(others[2:])
    skew = "zipf" if zipf else "uniform"
    name = str(TORCH_DTYPES[descr]).removeprefix("torch.")
    print(
        f"{row_count:9} rows  {name:8}  {mode.value:4}  {skew:7}"
        f"  gatherd {a:6.1f} ms  torch {b:6.1f} ms  {a / b:5.2f} times torch"
    )


def main() -> None:
    """Print a line for each case."""
    torch.set_num_threads(1)
    compiled.warm()
    row_count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    print(f"{TABLES} tables × {BAGS} bags × {IDS} ids, dim {DIM}, one thread")
    for zipf in (False, True):
        compare(row_count, "<f4", Pooling.SUM, zipf)
    compare(500, "<f4", Pooling.SUM, zipf=False)
    for mode in (Pooling.MEAN, Pooling.MAX):
        compare(row_count, "<f4", mode, zipf=False)
    for descr in ("<f2", "<u2"):
        compare(row_count, descr, Pooling.SUM, zipf=False)


if __name__ == "__main__":
    main()
