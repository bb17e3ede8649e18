"""Changes the files that readers of a data dir see: its first files, and the catalog."""

from pathlib import Path

from gatherd.store.catalog import CATALOG_NAME, Catalog
from gatherd.store.catalog_text import encode_catalog
from gatherd.store.control import CONTROL_NAME, initial_page
from gatherd_server.storage.files import Files


def is_data_dir(path: Path) -> bool:
    """Whether `path` was made a data dir."""
    return (path / CATALOG_NAME).exists()


def init_data_dir(files: Files, path: Path) -> None:
    """Make the folder `path` an empty data dir; the caller holds its lock.

    The catalog comes last: a folder with a catalog is complete.
    """
    if not (path / CONTROL_NAME).exists():
        files.replace(path / CONTROL_NAME, initial_page())
    files.replace(path / CATALOG_NAME, encode_catalog(Catalog(0, {})))


def put_catalog(files: Files, data_dir: Path, catalog: Catalog) -> None:
    """Replace the catalog by this one, durable on return; readers are not notified."""
    prepare_catalog(files, data_dir, catalog)
    put_prepared(files, data_dir)


def prepare_catalog(files: Files, data_dir: Path, catalog: Catalog) -> None:
    """Write the catalog that `put_prepared` will put. After DiskFull nothing has changed."""
    files.prepare(data_dir / CATALOG_NAME, encode_catalog(catalog))


def discard_prepared(files: Files, data_dir: Path) -> None:
    """Delete a prepared catalog that won't be put, if there is one."""
    files.discard(data_dir / CATALOG_NAME)


def put_prepared(files: Files, data_dir: Path) -> None:
    """Replace the catalog by the prepared one, durable on return."""
    files.put(data_dir / CATALOG_NAME)
