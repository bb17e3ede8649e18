"""Imports into a data dir of the test, in this process, as `gatherd import` does."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.store.catalog import open_table
from gatherd.store.dtypes import DType
from gatherd.store.table import Table
from gatherd_server.data_dir.importing import (
    ImportOptions,
    ImportSummary,
    OnNonfinite,
    import_rows,
)
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.loaders.batches import OnBadRow
from gatherd_server.loaders.limits import UnpackLimits
from gatherd_server.loaders.opening import OpenOptions, open_sources
from gatherd_server.types import OnDuplicate


@dataclass(frozen=True)
class Imported:
    """A table that was imported."""

    table: Table
    summary: ImportSummary
    folder: Path

    @property
    def rows(self) -> NDArray[np.float32]:
        """All of its rows, as a lookup answers them."""
        return self.table.lookup(np.arange(self.table.row_count)).vectors

    @property
    def keys(self) -> list[Any]:
        """All of its keys, by row."""
        return self.table.keys_of(np.arange(self.table.row_count)).tolist()


def run_import(
    data_dir: Path,
    *sources: str | Path,
    dtype: DType | None = None,
    keys: str | Path | None = None,
    key_column: str | None = None,
    on_duplicate: str = "error",
    on_bad_row: str = "error",
    on_nonfinite: str = "error",
    limits: UnpackLimits | None = None,
    **others: Any,
) -> Imported:
    """Import `sources` as a new table; whatever happens, nothing is left in staging.

    `others` are OpenOptions' own.
    """
    name = f"t{uuid.uuid4().hex[:8]}"
    try:
        with own_data_dir(data_dir, create=True) as owned, owned.scratch() as spool:
            options = OpenOptions(
                spool,
                key_column,
                None if keys is None else str(keys),
                OnBadRow(on_bad_row),
                limits or UnpackLimits(),
                **others,
            )
            policies = ImportOptions(dtype, OnDuplicate(on_duplicate), OnNonfinite(on_nonfinite))
            seen: list[int] = []
            with open_sources(list(map(str, sources)), options) as source:
                summary = import_rows(owned, name, source, policies, {"test": True}, seen.append)
            assert seen == sorted(seen)
            assert source.total is None or not seen or seen[-1] <= source.total
    finally:
        assert not list((data_dir / "staging").iterdir())
    table = open_table(data_dir, name, 1)
    return Imported(table, summary, data_dir / "tables" / name / "v000001")


def text_file(
    path: Path, tokens: Sequence[bytes], rows: NDArray[Any], *, header: bool, end: bytes = b"\n"
) -> Path:
    """Write vectors as text, so that float() gives them back."""
    lines = [b" ".join([token, *(repr(float(x)).encode() for x in row)]) for token, row in
             zip(tokens, rows, strict=True)]  # fmt: skip
    if header:
        lines.insert(0, b"%d %d" % rows.shape)
    path.write_bytes(b"".join(line + end for line in lines))
    return path
