"""Makes a table from a source's rows: conversion, and the policies for bad rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.dtypes import DType, convert
from gatherd.store.limits import LIVE_VERSION
from gatherd_server.loaders.batches import RowBatch, RowSource, select_keys, show_key
from gatherd_server.storage.table_writer import Block, TableFiles
from gatherd_server.training.optimizer import Optimizer
from gatherd_server.types import OnDuplicate


class OnNonfinite(Enum):
    """What to do with a row that has NaN or infinity, also after conversion."""

    ERROR = "error"
    SKIP = "skip"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How to make a table from a source; `dtype` None keeps the source's own."""

    dtype: DType | None = None
    on_duplicate: OnDuplicate = OnDuplicate.ERROR
    on_nonfinite: OnNonfinite = OnNonfinite.ERROR
    default_vector: NDArray[np.float32] | None = None
    optimizer: Optimizer | None = None


@dataclass(frozen=True, slots=True)
class NewVersion:
    """Asks for a new version of an existing table, provided that `if_version` is live then."""

    if_version: int = LIVE_VERSION


@dataclass(slots=True)
class ImportSummary:
    """What happened to a source's rows."""

    format: str
    dtype: DType
    dim: int
    row_count: int = 0
    bad_rows: int = 0
    nonfinite_rows: int = 0
    duplicates: int = 0
    replaced: int = 0


class Destination(Protocol):
    """Where a table is put: a data dir, or a server."""

    def add_table(self, table: TableFiles) -> int:
        """Write a new table and publish it as version 1, durable on return; its row count."""

    def publish(self, table: TableFiles, if_version: int = LIVE_VERSION) -> int:
        """Write a new version of a table and make it live; its row count."""


def import_rows(
    destination: Destination,
    name: str,
    source: RowSource,
    options: ImportOptions,
    origin: dict[str, Any],
    on_progress: Callable[[int], None],
    new_version: NewVersion | None = None,
) -> ImportSummary:
    """Make the table `name` from `source`'s rows and publish it, durable on return.

    With `new_version` the table exists, and the rows become its live version. `on_progress` is
    called with the position in the source, in the unit of its `total`. Whatever is raised, nothing
    of what was written is left.
    """
    if options.on_nonfinite is OnNonfinite.SKIP and source.key_kind is None:
        raise InvalidArgument(
            f"{source.name} has no keys: leaving rows out would change the ids of those after "
            "them; keep them (--on-nonfinite keep), or give keys (--keys)"
        )
    importer = _Importer(source, options, on_progress)
    summary = importer.summary
    table = TableFiles(
        name,
        summary.dtype,
        source.row_count,
        source.dim,
        importer.blocks(),
        origin,
        options.default_vector,
        source.key_kind,
        options.optimizer,
    )
    if new_version is None:
        summary.row_count = destination.add_table(table)
    else:
        summary.row_count = destination.publish(table, new_version.if_version)
    return summary


class _Importer:
    """One pass over a source."""

    def __init__(
        self, source: RowSource, options: ImportOptions, on_progress: Callable[[int], None]
    ) -> None:
        self._source = source
        self._options = options
        self._on_progress = on_progress
        self._dtype = options.dtype or source.stored_dtype
        self.summary = ImportSummary(source.format, self._dtype, source.dim)

    def blocks(self) -> Iterator[Block]:
        """The rows in the table's dtype, without those that the policies leave out."""
        for batch in self._source.read():
            self.summary.bad_rows += batch.bad_count
            rows = self._converted(batch.rows)
            keys, numbers = batch.keys, batch.numbers
            if self._options.on_nonfinite is not OnNonfinite.KEEP:
                is_finite = _finite_rows(rows, self._dtype)
                if not is_finite.all():
                    self._check_nonfinite(batch, is_finite)
                    rows, numbers = rows[is_finite], numbers[is_finite]
                    keys = select_keys(keys, is_finite) if keys is not None else None
            yield Block(rows, keys, self._at_duplicates(keys, numbers))
            self._on_progress(batch.done)

    def _converted(self, rows: NDArray[Any]) -> NDArray[Any]:
        if self._source.dtype is self._dtype:
            return rows
        converted = np.empty(rows.shape, self._dtype.storage)
        convert(rows, self._source.dtype, converted, self._dtype)
        return converted

    def _check_nonfinite(self, batch: RowBatch, is_finite: NDArray[np.bool_]) -> None:
        """Count the non-finite rows; BadFile, naming the first, if the policy is an error."""
        wrong = np.flatnonzero(~is_finite)
        if self._options.on_nonfinite is OnNonfinite.SKIP:
            self.summary.nonfinite_rows += int(wrong.size)
            return
        first = int(wrong[0])
        was_finite = _finite_rows(batch.rows[first : first + 1], self._source.dtype)[0]
        what = f"a number too large for {self._dtype.value}" if was_finite else "NaN or infinity"
        skip = "skip or " if batch.keys is not None else ""
        raise BadFile(
            f"{self._source.name}: {self._source.place} {batch.numbers[first]} has {what} "
            f"(--on-nonfinite {skip}keep)"
        )

    def _at_duplicates(
        self, keys: Any, numbers: NDArray[np.int64]
    ) -> Callable[[NDArray[np.bool_]], bool]:
        def count_or_raise(is_duplicate: NDArray[np.bool_]) -> bool:
            if self._options.on_duplicate is not OnDuplicate.ERROR:
                count = int(np.count_nonzero(is_duplicate))
                if self._options.on_duplicate is OnDuplicate.LAST:
                    self.summary.replaced += count
                    return True
                self.summary.duplicates += count
                return False
            first = int(np.flatnonzero(is_duplicate)[0])
            raise BadFile(
                f"{self._source.name}: {self._source.place} {numbers[first]}: the key "
                f"{show_key(keys, first)} stands there already "
                "(--on-duplicate first keeps the first of each, last the last)"
            )

        return count_or_raise


def _finite_rows(rows: NDArray[Any], dtype: DType) -> NDArray[np.bool_]:
    """Which of `rows`, (n, dim), have neither NaN nor infinity; bool (n,)."""
    if dtype is DType.BFLOAT16:
        return np.asarray(((rows & 0x7F80) != 0x7F80).all(axis=1))
    return np.asarray(np.isfinite(rows).all(axis=1))
