"""Rows from records with named fields (CSV, JSON Lines): chooses the fields and makes batches.

The vector is one column of lists, or several columns of numbers. A column is the key only if an
option names it. A column is taken for the vector only if no other could be.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.key_index import KEY_BYTES_MAX, KeyKind, Keys, StringKeys
from gatherd.store.parts import PARTS_SHOWN_MAX
from gatherd_server.loaders.batches import OnBadRow, RowBatch, RowSource, rows_per_batch
from gatherd_server.loaders.streams import ByteStream


@dataclass(frozen=True, slots=True)
class ColumnOptions:
    """The columns the user names: of lists (`vector`), of numbers (`vectors`), of keys (`key`)."""

    vector: str | None = None
    vectors: str | None = None
    key: str | None = None

    @property
    def is_given(self) -> bool:
        """Whether any is named."""
        return not (self.vector is None and self.vectors is None and self.key is None)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The columns of a file's rows: the vectors' names, and whether it is one column of lists."""

    vectors: list[str]
    is_list: bool
    key: str | None


def select_columns(where: str, names: Sequence[str], spec: str) -> list[str]:
    """Those of `names` that `spec` selects: names and patterns (`emb_*`), separated by commas.

    They are in `spec`'s order, those of one pattern in the file's. InvalidArgument when a name or
    pattern fits no column, or a column is selected twice.
    """
    found: list[str] = []
    for wanted in next(csv.reader([spec]), []):
        exact = [name for name in names if name == wanted]
        fitting = exact or [name for name in names if fnmatchcase(name, wanted)]
        if not fitting:
            raise InvalidArgument(f"{where} has no column {wanted!r}; {_listed(names)}")
        found += fitting
    if len(set(found)) != len(found) or not found:
        raise InvalidArgument(f"--vector-columns {spec} asks for a column twice, or for none")
    return found


def _listed(names: Sequence[str]) -> str:
    more = len(names) - PARTS_SHOWN_MAX
    shown = ", ".join(names[:PARTS_SHOWN_MAX])
    return f"there are: {shown}" + (f", and {more} more" if more > 0 else "")


def choose(where: str, names: list[str], kinds: dict[str, str], options: ColumnOptions) -> Chosen:
    """The columns to read; `kinds` says which have a "number" or "list" in most of the first rows.

    InvalidArgument when a named column doesn't exist, or only an option can decide.
    """
    if len(set(names)) != len(names):
        raise BadFile(f"{where} has two columns of one name; {_listed(names)}")
    for wanted in (options.key, options.vector):
        if wanted is not None and wanted not in names:
            raise InvalidArgument(f"{where} has no column {wanted!r}; {_listed(names)}")
    if options.vector is not None and options.vectors is not None:
        raise InvalidArgument(f"{where}: #{options.vector} and --vector-columns are one too many")
    if options.vectors is not None:
        return Chosen(select_columns(where, names, options.vectors), False, options.key)
    if options.vector is not None:
        return Chosen([options.vector], kinds.get(options.vector) != "number", options.key)
    others = [name for name in names if name != options.key]
    if options.key is not None:
        lists = [name for name in others if kinds.get(name) == "list"]
        if len(lists) == 1:
            return Chosen(lists, True, options.key)
        if others and all(kinds.get(name) == "number" for name in others):
            return Chosen(others, False, options.key)
    elif len(others) == 1 and kinds.get(others[0]) == "list":
        return Chosen(others, True, None)
    raise InvalidArgument(
        f"{where} has named columns: --key-column says which has the keys, if any, and "
        f"--vector-columns (names or patterns, as 'emb_*') or #COLUMN (of lists) which have the "
        f"vector; {_listed(names)}"
    )


def usual_dim(where: str, vectors: Iterable[list[float] | str]) -> int:
    """The number of elements of most of the first vectors; BadFile when none is valid."""
    wrong = "there are none"
    lengths: Counter[int] = Counter()
    for vector in vectors:
        if isinstance(vector, str):
            wrong = vector
        else:
            lengths[len(vector)] += 1
    if not lengths:
        raise BadFile(f"{where}: its first rows have no vectors: {wrong}")
    return lengths.most_common(1)[0][0]


Key = bytes | int | None
Record = tuple[int, Key, list[float] | str]
"""A line's number, its key, and its vector or a text that says what is wrong with it."""


def record_source(
    stream: ByteStream,
    format_name: str,
    chosen: Chosen,
    dim: int,
    key_kind: KeyKind | None,
    on_bad_row: OnBadRow,
    records: Callable[[], Iterator[Record]],
) -> RowSource:
    """The rows of `records`, in one pass."""

    def read() -> Iterator[RowBatch]:
        step = rows_per_batch(dim, 8)
        batch = _Batch(stream, dim, key_kind, on_bad_row)
        for record in records():
            batch.add(record)
            if len(batch.rows) + batch.bad_count == step:
                yield batch.finish()
        if batch.rows or batch.bad_count:
            yield batch.finish()

    name = stream.name + ("#" + chosen.vectors[0] if chosen.is_list else "")
    return RowSource(
        name, format_name, DType.FLOAT64, DType.FLOAT32, dim, None, key_kind, "line", stream.total,
        read,
    )  # fmt: skip


class _Batch:
    """Collects rows until a batch is full."""

    def __init__(
        self, stream: ByteStream, dim: int, key_kind: KeyKind | None, on_bad_row: OnBadRow
    ) -> None:
        self._stream = stream
        self._dim = dim
        self._key_kind = key_kind
        self._on_bad_row = on_bad_row
        self._clear()

    def _clear(self) -> None:
        self.rows: list[list[float]] = []
        self.bad_count = 0
        self._keys: list[Any] = []
        self._numbers: list[int] = []

    def add(self, record: Record) -> None:
        """Take a record; BadFile for a wrong one, unless such records are skipped."""
        number, key, vector = record
        wrong = vector if isinstance(vector, str) else self._wrong_key(key)
        if wrong is None and len(vector) != self._dim:
            wrong = f"its vector has {len(vector)} elements, others have {self._dim}"
        if wrong is None and not isinstance(vector, str):
            self.rows.append(vector)
            self._keys.append(key)
            self._numbers.append(number)
            return
        self.bad_count += 1
        if self._on_bad_row is OnBadRow.ERROR:
            raise BadFile(
                f"{self._stream.name}: line {number}: {wrong} "
                "(--on-bad-row skip leaves such rows out)"
            )

    def _wrong_key(self, key: Key) -> str | None:
        if self._key_kind is None:
            return None
        if self._key_kind is KeyKind.BYTES:
            if not isinstance(key, bytes):
                return "its key isn't a string, as others are" if key is not None else "has no key"
            if not 1 <= len(key) <= KEY_BYTES_MAX:
                return f"its key has {len(key)} bytes; a key has 1 to {KEY_BYTES_MAX}"
            return None
        low, high = (-(2**63), 2**63) if self._key_kind is KeyKind.INT64 else (0, 2**64)
        if not isinstance(key, int) or not low <= key < high:
            return f"its key {key!r} isn't of {self._key_kind.value}, as others are"
        return None

    def finish(self) -> RowBatch:
        """The rows taken since the last call."""
        rows = np.array(self.rows, np.float64).reshape(-1, self._dim)
        numbers = np.array(self._numbers, np.int64)
        made = RowBatch(rows, self._joined(), numbers, self._stream.done(), self.bad_count)
        self._clear()
        return made

    def _joined(self) -> Keys | None:
        if self._key_kind is None:
            return None
        if self._key_kind is not KeyKind.BYTES:
            return np.array(self._keys, f"<{'i' if self._key_kind is KeyKind.INT64 else 'u'}8")
        return StringKeys.of(self._keys)
