"""Which rows of an open version are free, and which places of its heap.

What was never in use is taken in order, from `used_rows` and `used_units` on; before that, what was
given back is taken, the newest first. A batch claims (`Claim`), and nothing changes before it is
committed: a batch that isn't leaves no trace. The log names rows and places, so nobody has to
choose the same ones again.

A place in the heap has units of 8 bytes. A free place is taken by a key of its very size; if the
heap is at its end, free places are joined and cut anew.
"""

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gatherd.store.keys import KEY_BYTES_MAX
from gatherd.store.open_files import UNIT_BYTES

KEY_UNITS_MAX: Final = KEY_BYTES_MAX // UNIT_BYTES

Gaps = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Begins and lengths, in units, of places that no key has."""


class IntStack:
    """Numbers, of which the last ones are taken first."""

    def __init__(self) -> None:
        self._array = np.empty(16, np.int64)
        self.size = 0

    def push(self, numbers: NDArray[np.int64]) -> None:
        """Add numbers."""
        end = self.size + numbers.size
        if end > self._array.size:
            grown = np.empty(max(end, 2 * self._array.size), np.int64)
            grown[: self.size] = self._array[: self.size]
            self._array = grown
        self._array[self.size : end] = numbers
        self.size = end

    def peek(self, count: int, skip: int) -> NDArray[np.int64]:
        """A copy of the last `count` numbers before the last `skip` ones."""
        end = self.size - skip
        return self._array[end - count : end].copy()

    def drop(self, count: int) -> None:
        """Remove the last `count` numbers."""
        self.size -= count


class Space:
    """The free rows and places of one version. One thread uses it."""

    def __init__(self, rows_max: int, heap_units: int, find_gaps: Callable[[], Gaps]) -> None:
        """Everything is free. `find_gaps` finds the places, below `used_units`, without a key."""
        self.rows_max = rows_max
        self.heap_units = heap_units
        self.used_rows = 0
        self.used_units = 0
        self.live_rows = 0
        self.free_rows = IntStack()
        self.places: dict[int, IntStack] = {}
        self.find_gaps = find_gaps

    def give_places(self, begins: NDArray[np.int64], units: NDArray[np.int64]) -> None:
        """Make places free, each of 1 to KEY_UNITS_MAX units."""
        for size in np.unique(units).tolist():
            self.places.setdefault(size, IntStack()).push(begins[units == size])

    def give_gaps(self, gaps: Gaps) -> None:
        """Make gaps free, those that are longer than any key in parts."""
        begins, lengths = gaps
        while begins.size:
            units = np.minimum(lengths, KEY_UNITS_MAX)
            self.give_places(begins, units)
            is_longer = lengths > KEY_UNITS_MAX
            begins = begins[is_longer] + KEY_UNITS_MAX
            lengths = lengths[is_longer] - KEY_UNITS_MAX


class Claim:
    """What one batch takes and gives back."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._popped = 0
        self._new_rows = 0
        self._own = IntStack()
        self._popped_places: dict[int, int] = {}
        self._new_units = 0
        self._given: list[Gaps] = []
        self._taken: list[Gaps] = []
        self.created = 0
        self.removed = 0

    @property
    def rows_end(self) -> int:
        """The first row that stays unused."""
        return self._space.used_rows + self._new_rows

    @property
    def units_end(self) -> int:
        """The first unit of the heap that stays unused."""
        return self._space.used_units + self._new_units

    def room(self) -> int:
        """How many more rows can be taken."""
        space = self._space
        unused = space.rows_max - self.rows_end
        return self._own.size + space.free_rows.size - self._popped + unused

    def take_rows(self, count: int) -> NDArray[np.int64]:
        """Rows that are free, (count,); there is room for them."""
        own = min(count, self._own.size)
        popped = min(count - own, self._space.free_rows.size - self._popped)
        fresh = count - own - popped
        rows = [self._own.peek(own, 0), self._space.free_rows.peek(popped, self._popped)]
        rows.append(np.arange(self.rows_end, self.rows_end + fresh))
        self._own.drop(own)
        self._popped += popped
        self._new_rows += fresh
        self.created += count
        return np.concatenate(rows)

    def give_rows(self, rows: NDArray[np.int64]) -> None:
        """Rows that no key has any more, free at once."""
        self._own.push(rows)
        self.removed += rows.size

    def take_places(self, units: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """A place in the heap for each number of units: where it begins. None if there is no room.

        A place that this batch gives back isn't taken again by it.
        """
        begins = np.full(units.size, -1, np.int64)
        for size in np.unique(units).tolist() if self._space.places else ():
            stack = self._space.places.get(size)
            skip = self._popped_places.get(size, 0)
            if stack is None or stack.size <= skip:
                continue
            wanting = np.flatnonzero(units == size)[: stack.size - skip]
            begins[wanting] = stack.peek(wanting.size, skip)
            self._popped_places[size] = skip + wanting.size
        rest = np.flatnonzero(begins < 0)
        ends = self.units_end + np.cumsum(units[rest])
        if rest.size and ends[-1] > self._space.heap_units:
            return self._squeezed(begins, units, rest)
        if rest.size:
            begins[rest] = ends - units[rest]
            self._new_units += int(ends[-1]) - self.units_end
        self._taken.append((begins, units))
        return begins

    def _squeezed(
        self, begins: NDArray[np.int64], units: NDArray[np.int64], rest: NDArray[np.intp]
    ) -> NDArray[np.int64] | None:
        """The same at the end of the heap: free places are joined first, and cut to fit."""
        space = self._space
        taken = [*self._taken, (begins[begins >= 0], units[begins >= 0])]
        found_begins, found_lengths = space.find_gaps()
        gaps = _without(
            list(zip(found_begins.tolist(), found_lengths.tolist(), strict=True)), taken
        )
        if space.heap_units > self.units_end:
            gaps.append((self.units_end, space.heap_units - self.units_end))
        # From here on all of the heap counts as used, whether the batch is committed or not.
        space.used_units, self._new_units = space.heap_units, 0
        space.places.clear()
        self._popped_places.clear()
        for position in rest[np.argsort(-units[rest], kind="stable")].tolist():
            size = int(units[position])
            at = next((i for i, (_, length) in enumerate(gaps) if length >= size), None)
            if at is None:
                begins[position] = -1
                break
            begin, length = gaps[at]
            begins[position] = begin
            gaps[at] = (begin + size, length - size)
        left = [gap for gap in gaps if gap[1]]
        space.give_gaps((_array(begin for begin, _ in left), _array(size for _, size in left)))
        has_room = bool((begins >= 0).all())
        self._taken.append((begins[begins >= 0], units[begins >= 0]))
        if not has_room:
            self._given.append(self._taken.pop())
            return None
        return begins

    def give_places(self, begins: NDArray[np.int64], units: NDArray[np.int64]) -> None:
        """Places that no key has any more, free after the batch."""
        self._given.append((begins, units))

    def commit(self) -> None:
        """Make it so."""
        space = self._space
        space.free_rows.drop(self._popped)
        space.used_rows += self._new_rows
        space.used_units += self._new_units
        for size, count in self._popped_places.items():
            space.places[size].drop(count)
        space.free_rows.push(self._own.peek(self._own.size, 0))
        for begins, units in self._given:
            space.give_places(begins, units)
        space.live_rows += self.created - self.removed


def _without(gaps: list[tuple[int, int]], taken: list[Gaps]) -> list[tuple[int, int]]:
    """`gaps` without the places in `taken`, each of which is in one of them, or behind all."""
    cut = sorted(
        place
        for begins, units in taken
        for place in zip(begins.tolist(), units.tolist(), strict=True)
    )
    left: list[tuple[int, int]] = []
    number = 0
    for first, length in gaps:
        begin, end = first, first + length
        while number < len(cut) and cut[number][0] < end:
            at, size = cut[number]
            number += 1
            if at >= begin:
                left.append((begin, at - begin))
                begin = at + size
        left.append((begin, end - begin))
    return [gap for gap in left if gap[1]]


def _array(numbers: Iterable[int]) -> NDArray[np.int64]:
    return np.fromiter(numbers, np.int64)
