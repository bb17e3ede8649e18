"""Changes what readers of a data dir see: its first files, and the catalog."""

import mmap
import os
import struct
from dataclasses import replace
from pathlib import Path

from gatherd.store.catalog import CATALOG_NAME, Catalog, encode_catalog
from gatherd.store.control import CONTROL_BYTES, CONTROL_NAME, GENERATION_OFFSET, initial_page
from gatherd.store.mapping import naming
from gatherd_server.storage.files import Files


def is_data_dir(path: Path) -> bool:
    """Whether `path` was made a data dir."""
    return (path / CATALOG_NAME).exists()


def init_data_dir(files: Files, path: Path) -> None:
    """Make the folder `path` an empty data dir; the caller holds its lock.

    The catalog comes last: a folder that has one is whole.
    """
    if not (path / CONTROL_NAME).exists():
        files.replace(path / CONTROL_NAME, initial_page())
    files.replace(path / CATALOG_NAME, encode_catalog(Catalog(0, {})))


def write_catalog(files: Files, data_dir: Path, catalog: Catalog) -> Catalog:
    """Make `catalog` what readers see, at their next request; returns it with its new generation.

    Durable on return.
    """
    fresh = replace(catalog, generation=catalog.generation + 1)
    put_catalog(files, data_dir, fresh)
    _set_generation(data_dir / CONTROL_NAME, fresh.generation)
    return fresh


def put_catalog(files: Files, data_dir: Path, catalog: Catalog) -> None:
    """Replace the catalog by this very one, durable on return; nobody is told of it."""
    prepare_catalog(files, data_dir, catalog)
    put_prepared(files, data_dir)


def prepare_catalog(files: Files, data_dir: Path, catalog: Catalog) -> None:
    """Write the catalog that `put_prepared` puts. DiskFull: nothing was changed."""
    files.prepare(data_dir / CATALOG_NAME, encode_catalog(catalog))


def discard_prepared(files: Files, data_dir: Path) -> None:
    """Delete a catalog that was prepared and isn't to be put, if there is one."""
    files.discard(data_dir / CATALOG_NAME)


def put_prepared(files: Files, data_dir: Path) -> None:
    """Replace the catalog by the one that was prepared, durable on return."""
    files.put(data_dir / CATALOG_NAME)


def _set_generation(path: Path, generation: int) -> None:
    # Not synced: after a power cut no reader is left, and whoever opens reads the catalog.
    with naming(path):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        with mmap.mmap(fd, CONTROL_BYTES) as page:
            struct.pack_into("<Q", page, GENERATION_OFFSET, generation)
    finally:
        os.close(fd)
