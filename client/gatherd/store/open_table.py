"""One version of an open table: rows that are asked for by key, while they come and go.

A row is one key's today and another's tomorrow, so an id means nothing: ids are refused. Each row
is copied under the second look of kernels/open_rows.py, into the answer or, if it is converted or
pooled, to memory that only this call has.
"""

from copy import copy as copied
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import FailedPrecondition, InvalidArgument, Unavailable
from gatherd.store import bags
from gatherd.store.dtypes import DType
from gatherd.store.format import RowLayout
from gatherd.store.initial import Initial
from gatherd.store.kernels import compiled
from gatherd.store.kernels.compiled import RowKind
from gatherd.store.key_index import KeyIndex, KeyKind
from gatherd.store.keys import Keys, StringKeys
from gatherd.store.mapping import MappedFile
from gatherd.store.open_index import GivenKeys, OpenIndex
from gatherd.store.open_spec import OpenSpec
from gatherd.store.query import Asked, BagsQuery, ByKey, Missing
from gatherd.store.stripes import Patience, RowReader
from gatherd.store.table import CONVERT_BLOCK_BYTES, Copy, Gathered, Table

# Numbers of Missing in embedding.proto, for the kernels.
_MISSING: Final = {
    Missing.ERROR: 1,
    Missing.ZERO: 2,
    Missing.DEFAULT: 3,
    Missing.SKIP: 4,
    Missing.INIT: 5,
}
_KINDS: Final = {
    DType.FLOAT32: RowKind.FLOAT32,
    DType.FLOAT16: RowKind.FLOAT16,
    DType.BFLOAT16: RowKind.BFLOAT16,
}
# How often a lookup begins anew whose keys come and go between two looks.
LOOKS_MAX: Final = 100


class OpenTable(Table):
    """A mapped (rows_max, dim) array and lookups of it by key. Safe to use from many threads."""

    def __init__(
        self,
        name: str,
        version: int,
        layout: RowLayout,
        mapping: MappedFile | None,
        rows: NDArray[np.uint8],
        default_vector: NDArray[np.float32] | None,
        keys: KeyIndex | OpenIndex | None,
        counters: NDArray[np.uint32] | None = None,
    ) -> None:
        """As Table, with an OpenIndex and counters."""
        super().__init__(name, version, layout, mapping, rows, default_vector, keys, counters)
        assert isinstance(keys, OpenIndex)
        assert counters is not None
        spec = keys.spec
        self.initial = Initial(
            spec.seed, layout.dim, spec.init.distribution(spec.rows_max, layout.dim)
        )
        """The initial vectors of its keys."""
        self._rows_reader = RowReader(name, counters)
        self._use(keys)

    def _use(self, keys: OpenIndex) -> None:
        self.keys = self._index = keys
        self.words = compiled.table_words(
            keys.words,
            self.rows,
            self.counters,
            self.dim,
            _KINDS[self.dtype],
            self.initial.seed,
            self.initial.words,
        )
        """What the kernels need to know of it; addresses of arrays that it holds."""

    def renewed(self) -> "OpenTable":
        """This, or its like with the file that its index is now: all else is shared.

        BadFile when that file is damaged.
        """
        keys = self._index.renewed()
        if keys is self._index:
            return self
        renewed = copied(self)
        renewed._use(keys)  # noqa: SLF001  # its own
        return renewed

    @property
    def open_spec(self) -> OpenSpec:
        """How its rows come and go."""
        return self._index.spec

    @property
    def used_rows(self) -> int:
        """The first row that never had a key, after the last commit."""
        return self._index.used_rows

    @property
    def live_rows(self) -> int:
        """How many keys have a row, after the last commit."""
        return self._index.live_rows

    def key_index(self) -> KeyIndex:
        """There is none that ids could be found in: InvalidArgument."""
        raise self._takes_no_ids()

    def _refuse(self, *_arguments: Any, **_more: Any) -> NoReturn:
        raise self._takes_no_ids()

    take = read_rows = rows_of = keys_of = _refuse

    def _takes_no_ids(self) -> InvalidArgument:
        return InvalidArgument(
            f"table {self.name!r} is open: its rows come and go, so ids mean nothing; ask by key",
            {"table": self.name},
        )

    def lookup(
        self,
        asked: Asked,
        dtype: DType = DType.FLOAT32,
        missing: Missing = Missing.ERROR,
        out: NDArray[Any] | None = None,
    ) -> Gathered:
        """As Table's, of keys; InvalidArgument for ids.

        `out` may be filled in part at KeyNotFound too, if a row went while others were copied.
        """
        if not isinstance(asked, ByKey):
            raise self._takes_no_ids()
        return super().lookup(asked, dtype, missing, out)

    def fill(
        self, asked: Asked, missing: Missing, out: NDArray[Any], copy: Copy | None = None
    ) -> NDArray[np.bool_] | None:
        """As Table's, of keys. Each row is looked at twice; see the module."""
        if not isinstance(asked, ByKey):
            raise self._takes_no_ids()
        given = self._index.given(asked.keys)
        for _ in range(LOOKS_MAX):
            rows = np.empty(given.count, np.int64)
            if self._look_up(given, rows, missing, out, copy):
                return None
            if missing is not Missing.ERROR:
                return (rows >= 0).reshape(asked.shape)
            self._check_there(asked.keys)
        raise self._restless()

    def _look_up(
        self,
        given: GivenKeys,
        rows: NDArray[np.int64],
        missing: Missing,
        out: NDArray[Any],
        copy: Copy | None,
    ) -> bool:
        """Fill `out`, (n, …), and `rows`, (n,), −1 for a missing one; whether all are there.

        If they have to be, and one is known not to be, nothing is copied.
        """
        if copy is None and given.fits is None:
            missed = compiled.look_up(
                self.words, given.first, given.data, rows, _MISSING[missing], out
            )
            if missed >= 0:
                return missed == 0
            done = compiled.torn_row(missed)
            self._take_stored(given.part(done, given.count), rows[done:], missing, out[done:])
        else:
            self._find_hints(given, rows)
            if missing is not Missing.ERROR or rows.min(initial=0) >= 0:
                self._take(given, rows, missing, out, copy)
        return bool(rows.min(initial=0) >= 0)

    def _find_hints(self, given: GivenKeys, rows: NDArray[np.int64]) -> None:
        """Fill `rows` with the row that each key may have, or −1."""
        compiled.find_hints(self.words, given.first, given.data, rows)
        if given.fits is not None:
            rows[~given.fits] = -1  # no key of the table has these 64 bits, or it is another one

    def _take(
        self,
        given: GivenKeys,
        rows: NDArray[np.int64],
        missing: Missing,
        out: NDArray[Any],
        copy: Copy | None,
    ) -> None:
        """Fill `out`, (n, …), with the rows of keys whose hints `rows` has; see take_open."""
        if copy is None:
            self._take_stored(given, rows, missing, out)
            return
        step = max(1, CONVERT_BLOCK_BYTES // self.row_bytes)
        buffer = np.empty((min(step, given.count), self.row_bytes), np.uint8)
        index = np.arange(len(buffer))
        for begin in range(0, given.count, step):
            end = min(begin + step, given.count)
            stored = buffer[: end - begin]
            self._take_stored(given.part(begin, end), rows[begin:end], missing, stored)
            copy(stored, index[: end - begin], out[begin:end])

    def _take_stored(
        self, given: GivenKeys, rows: NDArray[np.int64], missing: Missing, out: NDArray[Any]
    ) -> None:
        """The same, as they are stored. Unavailable when a writer died while it wrote a row."""
        number, patience = _MISSING[missing], None
        while True:
            found = compiled.take_open(self.words, given.first, given.data, rows, number, out)
            if found == compiled.DONE:
                return
            done = compiled.torn_row(found)
            if patience is None or done:
                patience = Patience(self._rows_reader)
            given, rows, out = given.part(done, given.count), rows[done:], out[done:]
            patience.wait(int(rows[0]))

    def live_keys(self, begin: int, end: int) -> tuple[NDArray[np.int64], Keys]:
        """The rows from `begin` up to `end` that have a key, (n,), and the key of each.

        Unavailable as in `lookup`.
        """
        index = self._index
        rows = np.arange(begin, min(end, self.used_rows))
        words = np.zeros((rows.size, 2), np.uint64)
        self._rows_reader.read(rows, words, index.copy_words)
        if index.kind is not KeyKind.BYTES:
            live = np.flatnonzero(words[:, 1])
            return rows[live], words[live, 0].view(f"<{index.kind.value[0]}8")
        # A string is copied after its entry: if that and the stamp are still the same then, it was
        # the row's. The others are looked at once more.
        keys = [b""] * rows.size
        left = np.flatnonzero(words[:, 1])
        for _ in range(LOOKS_MAX):
            copied_keys = index.strings_at(words[left, 0])
            again = np.zeros((left.size, 2), np.uint64)
            self._rows_reader.read(rows[left], again, index.copy_words)
            is_same = (again == words[left]).all(axis=1)
            for position in np.flatnonzero(is_same).tolist():
                keys[left[position]] = copied_keys[position]
            words[left] = again
            left = left[~is_same & (again[:, 1] != 0)]
            if not left.size:
                break
        else:
            raise self._restless()
        found = np.array([i for i, key in enumerate(keys) if key], np.intp)
        return rows[found], StringKeys.of([keys[i] for i in found.tolist()])

    def _check_there(self, keys: Keys) -> None:
        """KeyNotFound if a key has no row now; it may have got one since it was missed."""
        rows = self._index.rows_of(keys)
        if (rows < 0).any():
            raise self._index.not_found(self.name, keys, rows)

    def _restless(self) -> Unavailable:
        return Unavailable(
            f"table {self.name!r}: keys came and went {LOOKS_MAX} times while they were looked up; "
            "try again",
            {"table": self.name},
        )

    def _pool(
        self, asked: Asked, query: BagsQuery, missing: Missing, out: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        if not isinstance(asked, ByKey):
            raise self._takes_no_ids()
        if query.padding_id is not None and query.padding_id >= 0:
            raise InvalidArgument(
                f"table {self.name!r} is open and has no ids, so none is padding: leave "
                f"padding_id={query.padding_id} out",
                {"table": self.name},
            )
        out[...] = 0
        given = self._index.given(asked.keys)
        if not (given.count and query.offsets.size):
            return np.ones(given.count, np.bool_)
        filler = np.zeros(self.dim, np.float32)
        if missing is Missing.DEFAULT:
            filler = self.default_vector()
        for _ in range(LOOKS_MAX):
            rows = np.empty(given.count, np.int64)
            self._find_hints(given, rows)
            if self._pool_rows(given, rows, query, missing, filler, out):
                return rows >= 0
            self._check_there(asked.keys)
        raise self._restless()

    def _pool_rows(
        self,
        given: GivenKeys,
        rows: NDArray[np.int64],
        query: BagsQuery,
        missing: Missing,
        filler: NDArray[np.float32],
        out: NDArray[np.float32],
    ) -> bool:
        """Pool rows of keys whose hints `rows` has; False if one isn't there that has to be."""
        if missing is Missing.ERROR and rows.min() < 0:
            return False
        pooling = compiled.OpenPooling(
            self.words,
            given.first,
            given.data,
            rows,
            query.offsets,
            query.weights,
            bags.MODES[query.pooling],
            _MISSING[missing],
            filler,
            out,
        )
        begin, patience = 0, None
        while True:
            found = pooling.run(begin)
            if found == compiled.DONE:
                return True
            if found >= 0:
                return False
            torn = compiled.torn_row(found)
            bag = int(np.searchsorted(query.offsets, torn, "right")) - 1
            if patience is None or bag > begin:
                begin, patience = bag, Patience(self._rows_reader)
            patience.wait(int(rows[torn]))

    @property
    def default_vector_is_known(self) -> bool:
        """Whether it was given one."""
        return self._default_vector is not None

    def default_vector(self) -> NDArray[np.float32]:
        """The stored one. FailedPrecondition without: the mean would change all the time."""
        if self._default_vector is None:
            raise FailedPrecondition(
                f"table {self.name!r} is open and has no default vector, and the mean of rows that "
                'come and go is none; ask with missing="init" for the vectors that rows begin with',
                {"table": self.name},
            )
        return self._default_vector
