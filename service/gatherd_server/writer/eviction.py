"""Which rows of a full open table make room: those pushed least recently, or least often.

Exact, and without a look at every row for each push. A scan finds the rows of the lowest ranks and
sorts them; they are handed out one after the other, as long as they weren't pushed meanwhile. A
row's rank is its stamp, or its count and then its stamp. While a row lives, its rank only rises, so
every row that the scan left out stays above those that it found. The rows to compare with them are
those that were created since and, by counts, those of them that were pushed: few, in a heap.

A scan reads 8 bytes a row, by counts 12, and finds FOUND_MAX rows or more; the next one comes when
they are used up.
"""

import heapq
from typing import Final

import numpy as np
from numpy.typing import NDArray

# A table of so many rows is sorted whole.
SORTED_MAX: Final = 1 << 17
FOUND_MAX: Final = 1 << 16
SAMPLED: Final = 1 << 14
SCANNED_AT_ONCE: Final = 1 << 20
# So many rows are looked at together while the heap is empty.
BLOCK_MIN: Final = 64

Rank = tuple[int, int, int]
"""Count (0 if that doesn't matter), stamp, row."""


class Eviction:
    """Finds the rows to evict of one table. One thread uses it."""

    def __init__(
        self, stamps: NDArray[np.uint64], counts: NDArray[np.uint32], *, by_count: bool
    ) -> None:
        """`stamps` and `counts`, (rows_max,), are the table's own; a stamp of 0 is of no row."""
        self._stamps = stamps
        self._counts = counts
        self._by_count = by_count
        self._found = np.empty(0, np.int64)
        self._found_stamps = np.empty(0, np.uint64)
        self._found_counts = np.empty(0, np.uint32)
        self._next = 0
        # Every row that isn't among the found, nor in the heap or given, is above it.
        self._bound: Rank = (0, 0, 0)
        self._heap: list[Rank] = []
        self._given: dict[int, Rank] = {}
        self._pinned: set[int] = set()

    def begin(self) -> None:
        """A batch begins: nothing is pinned, and rows that were given and stayed can be again."""
        self._pinned.clear()
        for row, rank in self._given.items():
            now = self._rank(row)
            is_low = now[1] and now <= self._bound
            if is_low and (now == rank or self._by_count):
                heapq.heappush(self._heap, now)
        self._given.clear()

    def created(self, rows: NDArray[np.int64]) -> None:
        """Rows were created, and stored with their stamps."""
        if not self._by_count:
            return  # their stamps are above all others
        if len(self._heap) + rows.size > SORTED_MAX:
            self._forget()
            return
        for row in rows.tolist():
            rank = self._rank(row)
            if rank <= self._bound:
                heapq.heappush(self._heap, rank)

    def pin(self, rows: NDArray[np.int64]) -> None:
        """Rows that the batch changes: it doesn't get them."""
        self._pinned.update(rows.tolist())

    def take(self, count: int, used_rows: int) -> NDArray[np.int64]:
        """The `count` rows of the lowest ranks, ascending, or as many as there are.

        None that is pinned or was given in this batch. No row from `used_rows` on lives.
        """
        taken: list[int] = []
        while len(taken) < count:
            if self._take_block(count, taken):
                continue
            rank = self._lowest()
            if rank is not None:
                row = rank[2]
                if row not in self._given:
                    self._given[row] = rank
                    if row not in self._pinned:
                        taken.append(row)
            elif not self._scan(used_rows):
                break
        return np.array(taken, np.int64)

    def _take_block(self, count: int, taken: list[int]) -> bool:
        """Take of the found rows together while there is no heap; whether any was looked at."""
        if self._heap or self._next == self._found.size:
            return False
        end = self._next + max(BLOCK_MIN, count - len(taken))
        rows = self._found[self._next : end]
        is_same = self._stamps[rows] == self._found_stamps[self._next : end]
        if self._by_count and not is_same.all():
            return False
        for done, (row, same) in enumerate(zip(rows.tolist(), is_same.tolist(), strict=True), 1):
            if same and row not in self._given:
                self._given[row] = self._rank(row)
                if row not in self._pinned:
                    taken.append(row)
                    if len(taken) == count:
                        self._next += done
                        return True
        self._next += rows.size
        return True

    def _lowest(self) -> Rank | None:
        """The lowest rank of a row that lives, removed from the found or from the heap."""
        while True:
            found = self._found_rank()
            if self._heap and (found is None or self._heap[0] < found):
                rank = heapq.heappop(self._heap)
            elif found is not None:
                self._next += 1
                rank = found
            else:
                return None
            now = self._rank(rank[2])
            if now == rank:
                return rank
            if now[1] and self._by_count and now <= self._bound:
                heapq.heappush(self._heap, now)

    def _found_rank(self) -> Rank | None:
        at = self._next
        if at == self._found.size:
            return None
        count = int(self._found_counts[at]) if self._by_count else 0
        return count, int(self._found_stamps[at]), int(self._found[at])

    def _rank(self, row: int) -> Rank:
        return int(self._counts[row]) if self._by_count else 0, int(self._stamps[row]), row

    def _forget(self) -> None:
        """Begin anew with a scan at the next call."""
        self._heap.clear()
        self._found = self._found[:0]
        self._next = 0
        self._bound = (0, 0, 0)

    def _scan(self, used_rows: int) -> bool:
        """Find the rows of the lowest ranks, without pinned and given ones; False for none."""
        self._forget()
        left_out = np.array([*self._pinned | self._given.keys()], np.int64)
        count, stamp = self._threshold(used_rows, left_out)
        parts = []
        for begin in range(0, used_rows, SCANNED_AT_ONCE):
            stamps = self._stamps[begin : min(begin + SCANNED_AT_ONCE, used_rows)]
            is_low = stamps <= stamp
            if self._by_count:
                counts = self._counts[begin : begin + stamps.size]
                is_low = (counts < count) | ((counts == count) & is_low)
            parts.append(np.flatnonzero(is_low & (stamps > 0)) + begin)
        rows = np.concatenate([np.empty(0, np.int64), *parts])
        if left_out.size:
            # They come back into the heap when the next batch begins, if they are what they were.
            for row in rows[np.isin(rows, left_out)].tolist():
                self._given.setdefault(row, self._rank(row))
            rows = rows[~np.isin(rows, left_out)]
        stamps, counts = self._stamps[rows], self._counts[rows]
        order = np.lexsort((rows, stamps, counts) if self._by_count else (rows, stamps))
        self._found = rows[order]
        self._found_stamps, self._found_counts = stamps[order], counts[order]
        self._bound = (count if self._by_count else 0, stamp, self._stamps.size)
        return rows.size > 0

    def _threshold(self, used_rows: int, left_out: NDArray[np.int64]) -> tuple[int, int]:
        """Count and stamp of about the FOUND_MAXth lowest rank, or above all of a small table."""
        above = np.iinfo(np.uint32).max, np.iinfo(np.int64).max
        if used_rows <= SORTED_MAX:
            return above
        sample = np.random.default_rng(used_rows).integers(0, used_rows, SAMPLED)
        sample = sample[(self._stamps[sample] > 0) & ~np.isin(sample, left_out)]
        if not sample.size:
            return above
        stamps, counts = self._stamps[sample], self._counts[sample]
        order = np.lexsort((stamps, counts) if self._by_count else (stamps,))
        at = order[min(FOUND_MAX * SAMPLED // used_rows + 1, sample.size - 1)]
        return int(counts[at]), int(stamps[at])
