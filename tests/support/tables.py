"""Data dirs with tables, made in the test's own process because a command takes a second."""

from collections.abc import Mapping
from pathlib import Path

from gatherd.store.dtypes import DType
from gatherd.store.initializer import Initializer
from gatherd_server.data_dir.owning import own_data_dir
from gatherd_server.types import CreateTable, OptimizerSpec


def drawn_table(
    name: str,
    rows: int,
    dim: int,
    *,
    dtype: str = "float32",
    init: str = "zeros",
    seed: int = 0,
    optimizer: str | None = "sgd",
    options: Mapping[str, float] | None = None,
) -> CreateTable:
    """The arguments of `gatherd create`; `optimizer` None makes a frozen table."""
    spec = None if optimizer is None else OptimizerSpec(optimizer, dict(options or {}))
    drawn = Initializer.parse(init)
    return CreateTable(name, rows, dim, DType(dtype), drawn, seed, spec, frozen=spec is None)


def make_data_dir(path: Path, *tables: CreateTable) -> None:
    """Create `tables` in data dir `path`, which may be missing and which no process may own."""
    with own_data_dir(path, create=True) as owned:
        for table in tables:
            owned.change(table)
