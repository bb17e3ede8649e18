"""A reading process of the torn-row test: looks rows up until it has seen enough of them.

    python -m crash.torn_reader URL rows|bags|plain ROWS [TORN]

Each row of the table is one value repeated, and each push gives each row another value: a row with
two values is one that was half written. Bags are sums of such rows, so their columns are equal too.
However fast it reads, it goes on until row 0 was another CHANGES_MIN times: rows that nobody writes
can't be torn. `plain` reads the weights' file under a data dir as NumPy maps it, without looking at
the stripes' counters. Ends early when it has seen TORN torn rows. Prints {"rows", "torn",
"changes"}: `changes` is how often row 0 was another.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd import Client

TABLE, ROWS, DIM = "values", 128, 256
BATCH = 16_384
IDS_A_BAG = 16
SECONDS_MAX = 100.0
CHANGES_MIN = 2

Look = Callable[[NDArray[np.int64]], NDArray[Any]]


@contextmanager
def looking(url: str, what: str) -> Iterator[Look]:
    """What gives the vectors of flat ids."""
    if what == "plain":
        folder = Path(url.removeprefix("local:")) / "tables" / TABLE / "v000001"
        rows = np.load(folder / "weights.npy", mmap_mode="r")
        yield lambda ids: np.take(rows, ids, axis=0)
        return
    with Client(url, timeout=60, retries=10) as client:
        if what == "bags":
            offsets = np.arange(0, BATCH, IDS_A_BAG)
            yield lambda ids: client.lookup_bags(TABLE, ids, offsets, mode="sum")
        else:
            out = np.empty((BATCH, DIM), np.float32)
            yield lambda ids: client.lookup(TABLE, ids, out=out)


def main(url: str, what: str, row_count: int, torn_max: int) -> None:
    """Look until `row_count` rows or `torn_max` torn ones were seen, or SECONDS_MAX are over."""
    rng = np.random.default_rng()
    # Drawing many ids takes longer than looking them up.
    batches = [rng.integers(0, ROWS, BATCH) for _ in range(8)]
    for ids in batches:
        ids[:IDS_A_BAG] = 0
    seen = torn = changes = 0
    last = np.float32(-1)
    deadline = time.monotonic() + SECONDS_MAX
    with looking(url, what) as look:
        for ids in cycle(batches):
            vectors = look(ids)
            torn += int((vectors != vectors[:, :1]).any(axis=1).sum())
            changes += int(vectors[0, 0] != last)
            last = vectors[0, 0].copy()
            seen += ids.size
            has_seen_enough = seen >= row_count and changes >= CHANGES_MIN
            if has_seen_enough or torn >= torn_max or time.monotonic() >= deadline:
                break
    print(json.dumps({"rows": seen, "torn": torn, "changes": changes}))


if __name__ == "__main__":
    most = int(sys.argv[4]) if len(sys.argv) > 4 else sys.maxsize
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), most)
