"""The data dir as readers see it: its tables and versions, and their places.

    catalog.json                           {"format", "generation", "tables": {NAME: ENTRY},
                                           "crc32"}, ENTRY being {"uid", "live", "versions"}, and
                                           "damaged" where a version can't be used; see `Damage`;
                                           and "optimizers", {VERSION: {"name", …}}, of those whose
                                           optimizer isn't the manifest's any more
control                                see control.py
lock                                   held by the one process that may change anything
tables/<name>/v000001/manifest.json    its description: dtype, rows, dim, origin, …
tables/<name>/v000001/weights.npy      the rows; bfloat16 as V2, as ml_dtypes saves it
tables/<name>/v000001/slot_*.npy       the state of its optimizer, if it has one
tables/<name>/v000001/seq              the counters of its stripes, stripes.py; absent if frozen
tables/<name>/v000001/default.npy      the vector for missing ids, float32 (dim,); may be absent
tables/<name>/v000001/keys.*           the index from keys to rows, key_index.py; may be absent
staging/                               files not published yet; readers never look into it
staging/uploads/<id>/                  tables that are being uploaded

Releases up to 0.1 wrote a catalog without "crc32". It is read, but flipped bits in its numbers go
unnoticed. The first change of a table writes one with "crc32".
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gatherd._suggestions import did_you_mean, near
from gatherd.errors import BadFile, DataDirVersion, InvalidArgument, TableNotFound
from gatherd.store.checksums import (
    decode_document,
    decode_object,
    read_document,
    read_file,
)
from gatherd.store.dtypes import DType
from gatherd.store.format import open_readonly, read_layout, read_npy_header
from gatherd.store.key_index import KeyIndex
from gatherd.store.open_files import OPEN
from gatherd.store.open_index import OpenIndex
from gatherd.store.open_spec import OpenSpec
from gatherd.store.open_table import OpenTable
from gatherd.store.stripes import map_counters
from gatherd.store.table import Table

DATA_DIR_FORMAT = 1
CATALOG_NAME = "catalog.json"
LOCK_NAME = "lock"
TABLES_NAME = "tables"
STAGING_NAME = "staging"
MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "weights.npy"
DEFAULT_NAME = "default.npy"
CATALOG_INDENT = 2
NO_OPTIMIZER = {"name": "none"}
"""A manifest's "optimizer" of a table that takes updates but no gradients; null if it is frozen."""

NAMES_SHOWN_MAX = 5
NAME_SHOWN_MAX = 128

TABLE_NAME_PATTERN = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_TABLE_NAME = re.compile(TABLE_NAME_PATTERN)


def check_table_name(name: str) -> str:
    """`name` when it may name a table, else InvalidArgument."""
    if not _TABLE_NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} can't name a table: it takes 1 to 128 of A-Z a-z 0-9 _ . -, "
            "and begins with a letter, a digit or _"
        )
    return name


def table_not_found(name: str, known: Iterable[str]) -> TableNotFound:
    """The error for a table that doesn't exist; it names the most similar tables that do."""
    name = name[:NAME_SHOWN_MAX]
    names = sorted(known)
    hint = did_you_mean(near(name, names))
    if not hint and names:
        more = f" and {len(names) - NAMES_SHOWN_MAX} more" if len(names) > NAMES_SHOWN_MAX else ""
        hint = f"; there are: {', '.join(names[:NAMES_SHOWN_MAX])}{more}"
    return TableNotFound(f"no table {name!r}{hint or '; there is none'}", {"table": name})


@dataclass(frozen=True, slots=True)
class Damage:
    """A version whose files can't be used, though they lack updates that the log has.

    In the catalog: {"version", "why", "after_lsn", "until_lsn"}. Mending needs the files as they
    were at `after_lsn`. The log's updates of the version from there up to `until_lsn` are kept
    until the version is whole again, or gone. It never took a newer one.
    """

    version: int
    why: str
    after_lsn: int
    until_lsn: int

    @property
    def reason(self) -> str:
        """The reason given to callers that ask for the version."""
        return (
            f"{self.why}; its updates of LSN {self.after_lsn + 1} to {self.until_lsn} are kept in "
            "the log"
            if self.until_lsn > self.after_lsn
            else self.why
        )

    def to_json(self) -> dict[str, Any]:
        """Its JSON in the catalog."""
        return {
            "version": self.version,
            "why": self.why,
            "after_lsn": self.after_lsn,
            "until_lsn": self.until_lsn,
        }


class EntryText(NamedTuple):
    """An entry as catalog.json writes it: `lines` there, `compact` for its checksum."""

    lines: str
    compact: str


@dataclass(frozen=True)
class CatalogEntry:
    """One table in the catalog.

    `uid` belongs to the table for its whole life, and to no other. `versions` are the kept ones,
    ascending, `live` among them. Under one uid a number means one version for ever: readers keep
    their mappings by it. The versions in `damaged` are refused until the writer has mended them.
    """

    uid: str
    live: int
    versions: tuple[int, ...]
    damaged: tuple[Damage, ...] = ()
    optimizers: tuple[tuple[int, str], ...] = ()
    """By version, as JSON, the optimizers that were changed in place; a manifest has the first."""

    def optimizer_of(self, version: int) -> dict[str, Any] | None:
        """A version's optimizer, as a manifest has it; None if it is the manifest's own."""
        found = dict(self.optimizers).get(version)
        optimizer: dict[str, Any] | None = None if found is None else json.loads(found)
        return optimizer

    def with_optimizer(self, version: int, optimizer: dict[str, Any]) -> "CatalogEntry":
        """This entry with another optimizer of a version."""
        others = [one for one in self.optimizers if one[0] != version]
        listed = sorted([*others, (version, json.dumps(optimizer))])
        return replace(self, optimizers=tuple(listed))

    def kept(self) -> "CatalogEntry":
        """This entry without the optimizers of versions that it no longer has."""
        listed = tuple(one for one in self.optimizers if one[0] in self.versions)
        return self if listed == self.optimizers else replace(self, optimizers=listed)

    def damage_of(self, version: int) -> Damage | None:
        """The damage of a version, or None."""
        return next((one for one in self.damaged if one.version == version), None)

    @cached_property
    def text(self) -> EntryText:
        """See catalog_text.py; made once, because each change of any table writes it again."""
        if self.damaged or self.optimizers or not self.versions:
            document = self.to_json()
            lines = json.dumps(document, indent=CATALOG_INDENT).replace("\n", "\n    ")
            return EntryText(lines, json.dumps(document, sort_keys=True, separators=(",", ":")))
        # The same for what most entries are, ten times as fast: a start needs it of every table.
        uid, numbers = json.dumps(self.uid), [str(version) for version in self.versions]
        listed = ",\n        ".join(numbers)
        return EntryText(
            f'{{\n      "uid": {uid},\n      "live": {self.live},\n'
            f'      "versions": [\n        {listed}\n      ]\n    }}',
            f'{{"live":{self.live},"uid":{uid},"versions":[{",".join(numbers)}]}}',
        )

    def to_json(self) -> dict[str, Any]:
        """Its JSON in the catalog."""
        document: dict[str, Any] = {
            "uid": self.uid,
            "live": self.live,
            "versions": list(self.versions),
        }
        if self.damaged:
            document["damaged"] = [one.to_json() for one in self.damaged]
        if self.optimizers:
            document["optimizers"] = {
                str(version): json.loads(optimizer) for version, optimizer in self.optimizers
            }
        return document

    @classmethod
    def from_json(cls, entry: Any) -> "CatalogEntry":
        """The reverse of `to_json`. LookupError, TypeError or ValueError for anything else."""
        _check_members(entry, {"uid", "live", "versions", "damaged", "optimizers"})
        damaged = [
            Damage(
                int(one["version"]),
                str(one["why"]),
                int(one["after_lsn"]),
                int(one["until_lsn"]),
            )
            for one in entry.get("damaged", ())
        ]
        versions = tuple(map(int, entry["versions"]))
        optimizers = sorted(
            (int(version), json.dumps(_named(one)))
            for version, one in entry.get("optimizers", {}).items()
        )
        uid, live = str(entry["uid"]), int(entry["live"])
        return cls(uid, live, versions, tuple(damaged), tuple(optimizers))


def _named(optimizer: Any) -> dict[str, Any]:
    """`optimizer` if it is an object with a name; TypeError for anything else."""
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("name"), str):
        raise TypeError(f"an optimizer is {optimizer!r}")
    return optimizer


def _check_members(document: Any, known: set[str]) -> None:
    """ValueError when a JSON object has an unknown member, such as one with a damaged name."""
    if strange := sorted(set(document) - known):
        raise ValueError(f"it has a member {strange[0]!r}, which this release doesn't know")


@dataclass(frozen=True, slots=True)
class Catalog:
    """The contents of one catalog file."""

    generation: int
    tables: dict[str, CatalogEntry]

    def to_json(self) -> dict[str, Any]:
        """The contents of catalog.json."""
        return {
            "format": DATA_DIR_FORMAT,
            "generation": self.generation,
            "tables": {name: entry.to_json() for name, entry in sorted(self.tables.items())},
        }

    @classmethod
    def from_json(cls, document: Any, where: Path) -> "Catalog":
        """The reverse of `to_json`. BadFile, naming `where`, for anything else."""
        try:
            if document["format"] != DATA_DIR_FORMAT:
                raise DataDirVersion(
                    f"{where} has format {document['format']}; this release reads {DATA_DIR_FORMAT}"
                )
            _check_members(document, {"format", "generation", "tables", "crc32"})
            entries = {
                check_table_name(name): CatalogEntry.from_json(entry)
                for name, entry in document["tables"].items()
            }
            generation = int(document["generation"])
        except KeyError as error:
            raise BadFile(f"{where} is damaged: it has no {error.args[0]!r} where one is") from None
        except (TypeError, AttributeError, ValueError, OverflowError) as error:
            if isinstance(error, DataDirVersion):
                raise
            raise BadFile(f"{where} is damaged: {error}") from None
        for name, entry in entries.items():
            if entry.live not in entry.versions or sorted(entry.versions) != [*entry.versions]:
                raise BadFile(
                    f"{where} is damaged: table {name!r} has the versions {list(entry.versions)}, "
                    f"and version {entry.live} is live"
                )
        return cls(generation, entries)


def version_dir(data_dir: Path, table: str, version: int) -> Path:
    """The folder of a version's files."""
    return data_dir / TABLES_NAME / table / f"v{version:06d}"


def read_catalog(data_dir: Path) -> Catalog:
    """Read catalog.json. BadFile when it is damaged, DataDirVersion when it has another format."""
    path = data_dir / CATALOG_NAME
    return decode_catalog(read_file(path), path)


def decode_catalog(encoded: bytes, where: Path) -> Catalog:
    """The catalog in the bytes of catalog.json; raises what `read_catalog` does, naming `where`."""
    document = decode_object(encoded, str(where))
    if "crc32" in document:
        document = decode_document(encoded, str(where), CATALOG_INDENT)
    return Catalog.from_json(document, where)


def open_table(data_dir: Path, name: str, version: int) -> Table:
    """Map one version of a table. BadFile when its files are missing or contradict each other."""
    folder = version_dir(data_dir, name, version)
    manifest = read_document(folder / MANIFEST_NAME)
    try:
        if manifest["format"] != DATA_DIR_FORMAT:
            raise DataDirVersion(
                f"{folder} has format {manifest['format']}; this release reads {DATA_DIR_FORMAT}"
            )
        dtype = DType(manifest["dtype"])
        shape = (int(manifest["rows"]), int(manifest["dim"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadFile(f"{folder / MANIFEST_NAME} is damaged: {error}") from None
    weights = folder / WEIGHTS_NAME
    fd = open_readonly(weights)
    try:
        layout = read_layout(fd, str(weights))
        if (layout.dtype, layout.row_count, layout.dim) != (dtype, *shape):
            raise BadFile(f"{weights} isn't the {shape} {dtype.value} array of its manifest")
        default = _read_default(folder / DEFAULT_NAME)
        trained = manifest.get("optimizer")
        counters = map_counters(folder, layout.row_count) if trained is not None else None
        if OPEN in manifest:
            keys = OpenIndex(folder, OpenSpec.from_json(manifest[OPEN]))
            if counters is None:
                raise BadFile(f"{folder / MANIFEST_NAME} is of an open table that takes no updates")
            table: Table = OpenTable.map(name, version, fd, layout, default, keys, counters)
        else:
            table = Table.map(name, version, fd, layout, default, KeyIndex.open(folder), counters)
        table.uid = str(manifest.get("uid", ""))
        table.is_trainable = trained is not None
        table.optimizer = None if trained == NO_OPTIMIZER else trained
        return table
    finally:
        os.close(fd)


def read_default_vector(path: Path) -> NDArray[np.float32]:
    """A vector from a .npy file of floats, 1-D, as float32. BadFile when it isn't one."""
    fd = open_readonly(path)
    try:
        shape, _, dtype, offset = read_npy_header(fd, str(path))
        if len(shape) != 1 or dtype.kind != "f":
            raise BadFile(
                f"{path} isn't a default vector: it takes one float array of shape (dim,)"
            )
        data = os.pread(fd, shape[0] * dtype.itemsize, offset)
    finally:
        os.close(fd)
    if len(data) != shape[0] * dtype.itemsize:
        raise BadFile(f"{path} is truncated: it has {len(data)} bytes of a {dtype} {shape} array")
    return np.frombuffer(data, dtype).astype(np.float32)


def _read_default(path: Path) -> NDArray[np.float32] | None:
    return read_default_vector(path) if path.exists() else None
