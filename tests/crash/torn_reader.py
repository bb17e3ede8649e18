"""A reading process of the torn-row test: looks rows up until it has seen enough of them.

    python -m crash.torn_reader URL rows|bags|unchecked ROWS

Each row of the table is one value repeated, and each push gives each row another value: a row with
two values is one that was half written. Bags are sums of such rows, so their columns are equal too.
`unchecked` reads the weights' file under a data dir as NumPy maps it, without looking at the
stripes' counters. Prints {"rows", "torn", "changes"}: `changes` is how often row 0 was another.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd import Client

TABLE, ROWS, DIM = "values", 128, 256
BATCH = 16_384
IDS_A_BAG = 16
SECONDS_MAX = 100.0

Look = Callable[[NDArray[np.int64]], NDArray[Any]]


@contextmanager
def looking(url: str, what: str) -> Iterator[Look]:
    """What gives the vectors of flat ids."""
    if what == "unchecked":
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


def main(url: str, what: str, row_count: int) -> None:
    """Look until `row_count` rows were seen, or SECONDS_MAX are over."""
    rng = np.random.default_rng()
    # Drawing many ids takes longer than looking them up.
    batches = [rng.integers(0, ROWS, BATCH) for _ in range(8)]
    for ids in batches:
        ids[:IDS_A_BAG] = 0
    seen = torn = changes = 0
    last = np.float32(-1)
    deadline = time.monotonic() + SECONDS_MAX
    with looking(url, what) as look:
        while seen < row_count and time.monotonic() < deadline:
            for ids in batches:
                vectors = look(ids)
                # To look at every column takes longer than to gather; where tears are to be found
                # rather than ruled out, the two ends are enough.
                columns = vectors[:, -1:] if what == "unchecked" else vectors
                torn += int((columns != vectors[:, :1]).any(axis=1).sum())
                changes += int(vectors[0, 0] != last)
                last = vectors[0, 0].copy()
                seen += ids.size
    print(json.dumps({"rows": seen, "torn": torn, "changes": changes}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
