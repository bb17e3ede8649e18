"""A process that stores rows, each filled with one value, as fast as it can, for others to read.

`python row_writer.py FOLDER` maps the version in FOLDER, says "storing" when every row was stored
once, and goes on until its standard input ends; then it says how many rows it stored.
"""

import sys
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gatherd.store.dtypes import DType, convert
from gatherd_server.storage.files import Files
from gatherd_server.storage.mapped_rows import MappedVersion

AT_ONCE = 512
# Integers that every dtype holds exactly.
VALUES = 250
SETS = 16


def images(version: MappedVersion, rows: NDArray[np.int64], shift: int) -> NDArray[np.uint8]:
    """The bytes of `rows`, each of one value, which differs from one `shift` to the next."""
    values = ((rows * 7 + shift * 13) % VALUES).astype(np.float32)
    wide = np.repeat(values[:, None], version.dim, axis=1)
    stored = np.empty(wide.shape, version.dtype.storage)
    convert(wide, DType.FLOAT32, stored, version.dtype)
    return stored.view(np.uint8)


def main() -> None:
    version = MappedVersion.open(Files(), Path(sys.argv[1]))
    rng = np.random.default_rng(0)
    batches = []
    for shift in range(SETS):
        order = rng.permutation(version.row_count).astype(np.int64)
        for rows in np.array_split(order, -(-order.size // AT_ONCE)):
            batches.append((rows, images(version, rows, shift)))
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    count, is_told = 0, False
    while not ended.is_set():
        for rows, new in batches:
            version.store(rows, new, {}, {})
            count += rows.size
        if not is_told:
            print("storing", flush=True)
            is_told = True
    print(count, flush=True)
    version.close()


if __name__ == "__main__":
    main()
