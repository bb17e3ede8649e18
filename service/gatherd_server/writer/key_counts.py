"""Which keys of an open table were pushed often enough to get a row.

A push of a key without a row is counted under the key's 64-bit hash, in a count-min sketch (Cormode
and Muthukrishnan, 2005): DEPTH rows of `width` one-byte cells, of which a hash has one in each; the
least of them is its count, and never too low. So that the sketch doesn't fill up, there are two of
them: after `window` counted pushes the older is cleared and takes the new counts. A count is the
sum of both.

Promised: a key whose last `admit_after` pushes are among the last `window` counted ones of the
table gets its row. A key may get it earlier, because others share its cells: with both sketches
full, one key in 400 at least one push too early. Older pushes are forgotten.

    width    the power of two from rows_max on, but 2**14 to 2**22
    window   width / 8
    memory   8 * width bytes: 128 KiB to 32 MiB, and as much in each checkpoint

The log has the hashes that a push counted, so a replay from a checkpoint's sketch gives the same
one, whatever the batches were.
"""

from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

DEPTH: Final = 4
WIDTH_MIN: Final = 1 << 14
WIDTH_MAX: Final = 1 << 22
WINDOW_PART: Final = 8
CELL_MAX: Final = 255


class KeyCounts:
    """The counts of one open table. One thread uses it."""

    def __init__(self, admit_after: int, rows_max: int) -> None:
        width = 1 << (min(max(rows_max, WIDTH_MIN), WIDTH_MAX) - 1).bit_length()
        self.window = width // WINDOW_PART
        """After so many counted pushes the older half of the counts is forgotten."""
        self._admit_after = admit_after
        self._mask = np.uint64(width - 1)
        self._cells = np.zeros((2, DEPTH, width), np.uint8)
        self._newer = 0
        self._counted = 0

    @property
    def is_needed(self) -> bool:
        """Whether a key needs more than one push."""
        return self._admit_after > 1

    def begin(self) -> "KeyCountsBatch":
        """The counts during a batch; one that isn't committed leaves nothing behind."""
        return KeyCountsBatch(self, self._admit_after)

    def counts(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The count of each hash, (n,), never less than its pushes of the last `window`."""
        found = np.full(hashes.size, 2 * CELL_MAX, np.int64)
        for depth in range(DEPTH):
            at = self._places(hashes, depth)
            both = self._cells[0, depth, at].astype(np.int64) + self._cells[1, depth, at]
            np.minimum(found, both, out=found)
        return found

    def count(self, hashes: NDArray[np.uint64]) -> None:
        """Count a push of each of `hashes`, (n,), in their order."""
        begin = 0
        while begin < hashes.size:
            part = hashes[begin : begin + self.window - self._counted]
            for depth in range(DEPTH):
                at, times = np.unique(self._places(part, depth), return_counts=True)
                cells = self._cells[self._newer, depth]
                cells[at] = np.minimum(cells[at] + times, CELL_MAX)
            begin += part.size
            self._counted += part.size
            if self._counted == self.window:
                self._counted = 0
                self._newer = 1 - self._newer
                self._cells[self._newer] = 0

    def _places(self, hashes: NDArray[np.uint64], depth: int) -> NDArray[np.intp]:
        # Two hashes give as many as are wanted (Kirsch and Mitzenmacher, 2006).
        step = (hashes >> np.uint64(32)) | np.uint64(1)
        return ((hashes + np.uint64(depth) * step) & self._mask).astype(np.intp)

    def to_state(self) -> tuple[list[int], NDArray[np.uint8]]:
        """Numbers and an array that `restored` takes; the array is a copy."""
        return [self._newer, self._counted], self._cells.reshape(-1).copy()

    @classmethod
    def restored(
        cls, admit_after: int, rows_max: int, numbers: list[int], cells: NDArray[Any]
    ) -> Self:
        """The counts as `to_state` gave them. ValueError for others."""
        made = cls(admit_after, rows_max)
        newer, counted = numbers
        if newer not in (0, 1) or not 0 <= counted < made.window or cells.size != made._cells.size:
            raise ValueError(f"the key counts have {numbers} and {cells.size} cells")
        made._newer, made._counted = newer, counted
        made._cells = cells.astype(np.uint8).reshape(made._cells.shape)
        return made


class KeyCountsBatch:
    """KeyCounts during one batch: what its pushes count so far is added to the counts."""

    def __init__(self, key_counts: KeyCounts, admit_after: int) -> None:
        self._key_counts = key_counts
        self._admit_after = admit_after
        self._pending: dict[int, int] = {}
        self.counted: list[NDArray[np.uint64]] = []
        """The hashes that were counted, push by push: for `KeyCounts.count`, and for the log."""

    def admitted(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which keys of one push, each once, get a row by it; the others are counted."""
        if self._admit_after <= 1:
            return np.ones(hashes.size, np.bool_)
        before = self._key_counts.counts(hashes)
        if self._pending:
            before += np.fromiter((self._pending.get(one, 0) for one in hashes.tolist()), np.int64)
        is_admitted: NDArray[np.bool_] = before + 1 >= self._admit_after
        counted = hashes[~is_admitted]
        if counted.size:
            self.counted.append(counted)
            for one in counted.tolist():
                self._pending[one] = self._pending.get(one, 0) + 1
        return is_admitted
