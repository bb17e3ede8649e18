"""What a batch of pushes does to one open table's keys, before any of it is done.

A push of the batch sees the rows that an earlier one created, and not those that it removed. Rows
and places are claimed (storage/open_space.py). All of it is forgotten unless the batch is
committed; a batch that is computed anew begins anew.

A key that the batch creates or removes is noted: in a hash table of the batch's own, with the row
that it has now, −1 for none, and the row that it had before the batch.
"""

import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import DiskFull, GatherdError, InvalidArgument, LimitExceeded
from gatherd.store.kernels import compiled
from gatherd.store.key_index import KeyKind, key_bits
from gatherd.store.keys import KEY_BYTES_MAX, Keys, StringKeys
from gatherd.store.open_files import LENGTH_BITS
from gatherd_server.storage import compiled_open
from gatherd_server.storage.images_record import OpenImages, VersionImages, no_keys
from gatherd_server.storage.open_index import entry_bounds, unit_counts
from gatherd_server.storage.open_space import Claim
from gatherd_server.storage.open_version import OpenVersion
from gatherd_server.training.images import RowImages
from gatherd_server.writer.policy import PolicyBatch

NOTED_MIN = 64


@dataclass(frozen=True, slots=True, eq=False)
class Created:
    """Rows that one push creates, and their keys; and how many it evicts or doesn't create."""

    rows: NDArray[np.int64]
    keys: Keys
    evicted: int = 0
    not_admitted: int = 0


class HalfDone(Exception):
    """A push was refused with `error` after it had changed what its batch came to."""

    def __init__(self, error: GatherdError) -> None:
        super().__init__(error)
        self.error = error


class TooManyPinned(LimitExceeded):
    """The batch changes the rows that could make room: in a batch of its own a push may do."""


class OpenBatch:
    """One open table during one batch. The version isn't changed."""

    def __init__(self, name: str, version: OpenVersion, policy: PolicyBatch, now_us: int) -> None:
        """`now_us` is the time of the batch, microseconds since 1970."""
        assert version.index is not None
        self.version = version
        self.claim = Claim(version.space)
        self._name = name
        self._policy = policy
        self._now_us = now_us
        self._index = version.index
        self._kind = version.spec.kind
        self._stamp = version.last_stamp
        self._seed = secrets.randbits(64)
        self._count = 0
        self._capacity = 0
        self._slots: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._stored: NDArray[Any] = np.empty(0, np.uint64)
        self._offsets: NDArray[np.uint64] = np.zeros(1, np.uint64)
        self._row = self._before = np.empty(0, np.int64)
        self._is_fresh = self._is_removed = np.empty(0, np.bool_)
        self._word = np.empty(0, np.uint64)
        self._given: list[NDArray[np.int64]] = []
        self._stamps: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._counts: NDArray[np.uint32] = np.empty(0, np.uint32)
        self._known = 0

    # ------------------------------------------------------------------------------ keys

    def check(self, keys: Keys) -> None:
        """InvalidArgument for strings when the table's keys are integers, or the reverse."""
        if keys.size and isinstance(keys, StringKeys) is not (self._kind is KeyKind.BYTES):
            given = "strings" if isinstance(keys, StringKeys) else "integers"
            held = "strings" if self._kind is KeyKind.BYTES else self._kind.value
            raise InvalidArgument(f"keys are {given}; the keys of table {self._name!r} are {held}")

    def rows_of(self, keys: Keys) -> NDArray[np.int64]:
        """The row of each key, (n,), as the pushes before left it; −1 for a missing key."""
        if not keys.size:
            return np.empty(0, np.int64)  # no keys are of any kind
        rows = self._index.rows_of(keys, self.version.keys)
        if self._count:
            positions = self._positions_of(keys)
            is_noted = positions >= 0
            rows[is_noted] = self._row[positions[is_noted]]
        return rows

    def create(self, keys: Keys, rows: NDArray[np.int64]) -> Created:
        """Give the keys that have −1 in `rows`, (n,), rows of their own, and enter them there.

        Those that aren't admitted stay −1. Rows are evicted if the table says so, though not those
        in `rows`. LimitExceeded when the table is full (`TooManyPinned` when the batch's earlier
        pushes may be to blame), InvalidArgument for an integer that isn't of its kind, DiskFull
        when there is no room on the disk. Nothing has changed then, unless it is HalfDone.
        """
        is_missing = rows < 0
        self._check_fits(keys, is_missing)
        positions = self._note(keys, is_missing)
        fresh = np.unique(positions[is_missing])
        fresh = fresh[self._row[fresh] < 0]
        not_admitted = 0
        if not self._policy.admits_at_once:
            is_admitted = self._policy.admitted(self._keys_at(fresh))
            not_admitted = int(fresh.size - np.count_nonzero(is_admitted))
            fresh = fresh[is_admitted]
        evicted = self._make_room(fresh.size, rows)
        try:
            taken = self._take_rows(fresh)
        except GatherdError as error:
            if evicted or not_admitted:
                raise HalfDone(error) from error
            raise
        self._is_fresh[fresh] = True
        rows[is_missing] = self._row[positions[is_missing]]
        return Created(taken, self._keys_at(fresh), evicted, not_admitted)

    def _take_rows(self, fresh: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows, and places in the heap, for the keys noted at `fresh`, which get them."""
        words, units = self._take_places(fresh)
        taken = self.claim.take_rows(fresh.size)
        try:
            self.version.reserve(self.claim.rows_end, self.claim.units_end)
        except DiskFull:
            self.claim.give_rows(taken)
            if units is not None:
                self.claim.give_places(entry_bounds(words)[0], units)
            raise
        self._row[fresh] = taken
        self._word[fresh] = words
        return taken

    def touch(self, rows: NDArray[np.int64]) -> None:
        """A push changes `rows`: later ones of the batch don't evict them."""
        self._policy.pin(rows)

    def remove(self, keys: Keys) -> int:
        """Take their rows from the keys; how many had one."""
        rows = self.rows_of(keys)
        is_found = rows >= 0
        if not is_found.any():
            return 0
        known = self._count
        positions = self._note(keys, is_found)
        at = positions[is_found]
        is_new = at >= known
        self._row[at[is_new]] = self._before[at[is_new]] = rows[is_found][is_new]
        gone = np.unique(at)
        gone = gone[self._row[gone] >= 0]
        freed = self._row[gone]
        self._row[gone] = -1
        is_own = self._is_fresh[gone]
        self._is_fresh[gone] = False
        self._is_removed[gone[~is_own]] = True
        self._give_places(gone[is_own], freed[~is_own])
        self._given.append(freed)
        self._policy.pin(freed)
        self.claim.give_rows(freed)
        return int(gone.size)

    def remove_rows(self, rows: NDArray[np.int64]) -> int:
        """Take `rows`, (n,), each in use before the batch, from their keys; how many."""
        return self.remove(self.version.keys_of(rows))

    def _check_fits(self, keys: Keys, wanted: NDArray[np.bool_]) -> None:
        if isinstance(keys, StringKeys):
            lengths = np.diff(keys.offsets)[wanted]
            if lengths.size and not 1 <= int(lengths.min()) <= int(lengths.max()) <= KEY_BYTES_MAX:
                raise InvalidArgument(f"a key has 1 to {KEY_BYTES_MAX} bytes")
            return
        fits = key_bits(keys.reshape(-1), self._kind)[1]
        if fits is not None and not fits.all():
            first = int(keys.reshape(-1)[np.flatnonzero(~fits)[0]])
            raise InvalidArgument(
                f"key {first} doesn't fit into {self._kind.value}, the kind of the keys of table "
                f"{self._name!r}"
            )

    def _make_room(self, count: int, rows: NDArray[np.int64]) -> int:
        """Have room for so many more rows beside `rows`; how many were evicted."""
        short = count - self.claim.room()
        victims = np.empty(0, np.int64)
        if short > 0 and self._policy.evicts:
            self._policy.pin(rows[rows >= 0])
            victims = self._policy.victims(short)
        if short > victims.size:
            raise self._is_full(count)
        if self.claim.created + count > self._index.room():
            raise DiskFull(
                f"table {self._name!r}: the index of its keys can't grow, because the disk is full"
            )
        return self.remove_rows(victims) if victims.size else 0

    def _is_full(self, count: int) -> LimitExceeded:
        rows_max = self.version.row_count
        told = {"table": self._name, "limit": "rows_max", "max": str(rows_max)}
        full = (
            f"table {self._name!r} is full: it has {self.version.space.live_rows} rows of "
            f"{rows_max} (rows_max), and {count} more are asked for; "
        )
        if not self._policy.evicts:
            return LimitExceeded(
                f"{full}delete some, or create the table with on_full evict-lru or evict-lfu", told
            )
        return TooManyPinned(
            f"{full}the push itself changes the rows that could make room, so push fewer keys at "
            "once",
            told,
        )

    def _take_places(
        self, fresh: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64] | None]:
        """The words of the keys noted at `fresh`, and for strings how many units each takes."""
        if self._kind is not KeyKind.BYTES:
            return self._stored[fresh], None
        lengths = (self._offsets[fresh + 1] - self._offsets[fresh]).view(np.int64)
        units = unit_counts(lengths)
        begins = self.claim.take_places(units)
        if begins is None:
            raise LimitExceeded(
                f"table {self._name!r}: its keys' bytes leave no room for these keys; delete rows "
                "with long keys first",
                {"table": self._name, "limit": "rows_max"},
            )
        words = begins.view(np.uint64) << np.uint64(LENGTH_BITS) | lengths.view(np.uint64)
        return words, units

    def _give_places(self, own: NDArray[np.int64], before: NDArray[np.int64]) -> None:
        """The heap's places of keys noted at `own`, created by the batch, and of rows before it."""
        if self._kind is KeyKind.BYTES:
            words = np.concatenate([self._word[own], self.version.keys.words[before]])
            begins, lengths = entry_bounds(words)
            self.claim.give_places(begins, unit_counts(lengths))

    # ---------------------------------------------------------------------------- noted

    def _positions_of(self, keys: Keys) -> NDArray[np.int64]:
        positions = np.empty(keys.size, np.int64)
        if isinstance(keys, StringKeys):
            stored = self._offsets[: self._count + 1], self._stored
            compiled.find_strings(
                self._slots, *stored, keys.offsets, keys.data, self._seed, positions
            )
            return positions
        bits, fits = key_bits(keys.reshape(-1), self._kind)
        compiled.find_ints(self._slots, self._stored[: self._count], bits, self._seed, positions)
        if fits is not None:
            positions[~fits] = -1
        return positions

    def _note(self, keys: Keys, wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Note the `wanted` ones of `keys`; the position of each of them, (n,)."""
        positions = np.full(keys.size, -1, np.int64)
        self._grow(self._count + int(np.count_nonzero(wanted)), keys)
        seed = np.uint64(self._seed)
        if isinstance(keys, StringKeys):
            count = compiled_open.note_strings(
                self._slots, self._offsets, self._stored, self._count, keys.offsets, keys.data,
                wanted, seed, positions,
            )  # fmt: skip
        else:
            bits = key_bits(keys.reshape(-1), self._kind)[0]
            count = compiled_open.note_ints(
                self._slots, self._stored, self._count, bits, wanted, seed, positions
            )
        assert count >= 0, "a quarter full table of a random seed has long runs"
        self._count = count
        return positions

    def _grow(self, count: int, keys: Keys) -> None:
        """Have room for so many noted keys, and the bytes of `keys`."""
        if isinstance(keys, StringKeys):
            used = int(self._offsets[self._count])
            if used + keys.data.size > self._stored.size or self._stored.dtype != np.uint8:
                stored = np.empty(2 * (used + keys.data.size), np.uint8)
                stored[:used] = self._stored[:used]
                self._stored = stored
        if count <= self._capacity:
            return
        self._capacity = capacity = max(NOTED_MIN, 2 * count)
        self._row = _grown(self._row, capacity, -1)
        self._before = _grown(self._before, capacity, -1)
        self._word = _grown(self._word, capacity, 0)
        self._is_fresh = _grown(self._is_fresh, capacity, 0)
        self._is_removed = _grown(self._is_removed, capacity, 0)
        self._slots = np.zeros(1 << (4 * capacity - 1).bit_length(), np.uint64)
        if self._kind is KeyKind.BYTES:
            self._offsets = _grown(self._offsets, capacity + 1, 0)
            compiled.place_strings(
                self._slots, self._offsets, self._stored, 0, self._count, self._seed
            )
        else:
            self._stored = _grown(self._stored, capacity, 0)
            compiled.place_ints(self._slots, self._stored, 0, self._count, self._seed)

    def _keys_at(self, positions: NDArray[np.int64]) -> Keys:
        """The keys noted at `positions`, ascending."""
        if self._kind is not KeyKind.BYTES:
            words = self._stored[positions]
            return words.view("<i8") if self._kind is KeyKind.INT64 else words
        begins = self._offsets[positions].view(np.int64)
        lengths = self._offsets[positions + 1].view(np.int64) - begins
        offsets = np.zeros(positions.size + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        if not positions.size:
            return no_keys(self._kind)
        if int(positions[-1] - positions[0]) + 1 == positions.size:
            first = int(begins[0])
            data = self._stored[first : first + int(offsets[-1])].copy()
        else:
            source = np.arange(int(offsets[-1])) + np.repeat(begins - offsets[:-1], lengths)
            data = self._stored[source]
        return StringKeys(data, offsets, (positions.size,))

    # --------------------------------------------------------------------------- images

    def begin_images(
        self, images: RowImages, created: Created | None, *, with_vectors: bool
    ) -> None:
        """Before a push changes `images`: those of the rows that it creates.

        Without `with_vectors` the push replaces their vectors.
        """
        room = images.capacity
        if self._stamps.size < room:
            self._stamps, self._counts = np.zeros(room, np.uint64), np.zeros(room, np.uint32)
        if created is not None and created.rows.size:
            vectors = self.version.initial.vectors(created.keys) if with_vectors else None
            positions = images.create(created.rows, vectors)
            self._know(images)
            self._counts[positions] = 0

    def end_images(self, images: RowImages) -> None:
        """After a push changed `images`: its rows' stamps and counts."""
        self._know(images)
        self._stamp = max(self._now_us, self._stamp + 1)
        touched = images.touched
        self._stamps[touched] = self._stamp
        counts = self._counts[touched]
        self._counts[touched] = counts + (counts < np.iinfo(np.uint32).max)

    def _know(self, images: RowImages) -> None:
        """Begin the counts of rows whose images are new."""
        count = images.row_count
        self._counts[self._known : count] = self.version.counts[images.rows[self._known :]]
        self._known = count

    def finish(self, images: RowImages | None, uid: str, version: int) -> VersionImages:
        """What the log gets, and what is stored."""
        row, before = self._row, self._before
        fresh = np.flatnonzero(self._is_fresh[: self._count])
        gone = np.flatnonzero(self._is_removed[: self._count])
        rows, weights, slots, scalars = self._contents(images)
        stamps, counts = self._stamps[: rows.size], self._counts[: rows.size]
        dead = np.setdiff1d(np.concatenate([*self._given, row[:0]]), row[fresh])
        if dead.size:
            is_kept = ~np.isin(rows, dead)
            rows, weights = rows[is_kept], weights[is_kept]
            slots = {name: slot[is_kept] for name, slot in slots.items()}
            stamps, counts = stamps[is_kept], counts[is_kept]
        order = np.argsort(rows, kind="stable")
        created = order[np.searchsorted(rows[order], row[fresh])].astype(np.int64)
        opened = OpenImages(
            self._kind,
            stamps,
            counts,
            created,
            self._keys_at(fresh),
            self._word[fresh],
            before[gone],
            self._keys_at(gone),
            self._policy.counted,
        )
        return VersionImages(uid, version, rows, weights, slots, scalars, opened)

    def commit(self) -> None:
        """Take what the batch claims, after it was stored."""
        space = self.version.space
        self.claim.commit()
        self._policy.stored(self._row[np.flatnonzero(self._is_fresh[: self._count])])
        self._index.publish_counts(space.live_rows, space.used_rows)

    def _contents(
        self, images: RowImages | None
    ) -> tuple[
        NDArray[np.int64],
        NDArray[np.uint8],
        dict[str, NDArray[np.float32]],
        dict[str, NDArray[np.int64]],
    ]:
        if images is not None:
            return images.rows, images.weights, images.slots, images.scalars
        return np.empty(0, np.int64), np.empty((0, self.version.weights.shape[1]), np.uint8), {}, {}


def _grown(array: NDArray[Any], capacity: int, value: int) -> NDArray[Any]:
    grown = np.full(capacity, value, array.dtype)
    grown[: array.size] = array
    return grown
