"""Changes a data dir as the writer does, so that tests can watch readers meanwhile.

Tables have 64 rows of dim 8; all numbers of a version are equal, so that a reader sees which one it
got. `python -m support.publisher DIR COUNT` is a process that publishes all the time.
"""

import shutil
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gatherd.store.catalog import Catalog, CatalogEntry, read_catalog, version_dir
from gatherd.store.checksums import encode_document
from gatherd_server.storage.catalog_writer import init_data_dir, is_data_dir, put_catalog
from gatherd_server.storage.control_writer import ControlWriter
from gatherd_server.storage.files import Files

ROWS = 64
DIM = 8


class Publisher:
    """Changes the catalog of a data dir, in the order that readers build on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = Files()
        if not is_data_dir(path):
            init_data_dir(self._files, path)
        self.catalog = read_catalog(path)

    def stage(self, name: str, value: float, version: int | None = None, **manifest: Any) -> int:
        """Put the files of a version that the catalog doesn't name yet in place; its number."""
        if version is None:
            known = self.catalog.tables.get(name)
            version = max(known.versions) + 1 if known else 1
        folder = version_dir(self.path, name, version)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        np.save(folder / "weights.npy", np.full((ROWS, DIM), value, np.float32))
        document = {
            "format": 1,
            "name": name,
            "version": version,
            "dtype": "float32",
            "rows": ROWS,
            "dim": DIM,
            **manifest,
        }
        (folder / "manifest.json").write_bytes(encode_document(document))
        return version

    def switch(self, keep: int = 3, **live: int | None) -> None:
        """Make these versions live, all at once, keeping `keep`; None deletes a table."""
        tables = dict(self.catalog.tables)
        for name, version in live.items():
            entry = tables.pop(name, None) or CatalogEntry(uuid.uuid4().hex, 0, ())
            if version is not None:
                versions = sorted({*entry.versions, version})
                kept = {version, versions[-1], *versions[-keep:]}
                entry = replace(entry, live=version, versions=tuple(sorted(kept)))
                tables[name] = entry
        self.replace(Catalog(self.catalog.generation, tables))

    def replace(self, catalog: Catalog) -> None:
        """Replace the catalog, and then delete the versions that it has no longer."""
        before = self.catalog
        self.catalog = replace(catalog, generation=catalog.generation + 1)
        put_catalog(self._files, self.path, self.catalog)
        control = ControlWriter(self._files, self.path)
        control.set_generation(self.catalog.generation)
        control.close(is_clean=False)
        for name, entry in before.tables.items():
            now = catalog.tables.get(name)
            for version in entry.versions:
                if now is None or now.uid != entry.uid or version not in now.versions:
                    shutil.rmtree(version_dir(self.path, name, version))

    def publish(self, value: float, *names: str, keep: int = 3) -> None:
        """Make new live versions of these tables, all with `value`, at once."""
        self.switch(keep, **{name: self.stage(name, value) for name in names})


def main() -> None:
    """Publish tables a and b together, 1, 2, … COUNT, keeping two versions; one line for each.

    Table c is deleted and made again, with the negative number.
    """
    publisher = Publisher(Path(sys.argv[1]))
    for value in range(1, int(sys.argv[2]) + 1):
        publisher.publish(value, "a", "b", keep=2)
        if value % 4 == 0:
            publisher.switch(c=None)
        if value % 4 == 2:
            publisher.publish(-value, "c")
        print(value, flush=True)


if __name__ == "__main__":
    main()
