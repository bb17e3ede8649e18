"""catalog.json as bytes, quickly: the catalog is one document, and each change writes it anew.

With a thousand tables it has 150 KB, of which a change touches one entry. So an entry keeps its own
text, and a document is a join of texts. Whoever reads it again and again (`CatalogReader`) parses
only entries whose text it hasn't seen, and gets the very objects that it had for the others.

`read_catalog` in catalog.py is the judge: it takes any document that a release wrote, and is the
only author of errors. What isn't byte by byte what `encode_catalog` writes is read by it.
"""

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.catalog import (
    CATALOG_INDENT,
    CATALOG_NAME,
    DATA_DIR_FORMAT,
    Catalog,
    CatalogEntry,
    check_names,
    decode_catalog,
)
from gatherd.store.checksums import read_file

_BETWEEN: Final = b"\n    },\n"
_WHOLE: Final = re.compile(
    rb'\{\n  "format": %d,\n  "generation": (0|[1-9][0-9]*),\n  "tables": \{\n'
    rb'(.+)\n    \}\n  \},\n(?:  "aliases": (\{\n.+\n  \}),\n)?  "crc32": (0|[1-9][0-9]*)\n\}'
    % DATA_DIR_FORMAT,
    re.DOTALL,
)


def encode_catalog(catalog: Catalog) -> bytes:
    """What catalog.json holds: the bytes of `encode_document` for the catalog."""
    named = sorted(catalog.tables.items())
    lines = ",\n".join([f'    "{name}": {entry.text.lines}' for name, entry in named])
    tables = f"{{\n{lines}\n  }}" if named else "{}"
    aliases = _alias_lines(catalog.aliases)
    listed = f'  "aliases": {aliases},\n' if aliases else ""
    return (
        f'{{\n  "format": {DATA_DIR_FORMAT},\n  "generation": {catalog.generation},\n'
        f'  "tables": {tables},\n{listed}  "crc32": {zlib.crc32(compact_catalog(catalog))}\n}}'
    ).encode()


def compact_catalog(catalog: Catalog) -> bytes:
    """The catalog as JSON without white space, its keys sorted: what its checksum is of."""
    named = sorted(catalog.tables.items())
    return _compact(
        catalog.generation,
        [f'"{name}":{entry.text.compact}'.encode() for name, entry in named],
        catalog.aliases,
    )


def _compact(generation: int, entries: Iterable[bytes], aliases: Mapping[str, str]) -> bytes:
    listed = json.dumps(aliases, sort_keys=True, separators=(",", ":")) if aliases else ""
    first = f'"aliases":{listed},'.encode() if listed else b""
    head = b'{%b"format":%d,"generation":%d,"tables":{' % (first, DATA_DIR_FORMAT, generation)
    return b"".join((head, b",".join(entries), b"}}"))


def _alias_lines(aliases: Mapping[str, str]) -> str:
    """The aliases as catalog.json writes them, "" for none."""
    document = dict(sorted(aliases.items()))
    return json.dumps(document, indent=CATALOG_INDENT).replace("\n", "\n  ") if aliases else ""


class CatalogReader:
    """Reads one data dir's catalog as often as it changes. Safe to use from many threads."""

    def __init__(self, data_dir: Path) -> None:
        """Touches no file."""
        self.data_dir = data_dir
        self._path = data_dir / CATALOG_NAME
        # By an entry's text in the document: its name, what it says, and its compact text.
        self._known: dict[bytes, tuple[str, CatalogEntry, bytes]] = {}

    def read(self) -> Catalog:
        """The catalog as it is now; raises as `read_catalog` does.

        Entries that didn't change since the last call are the same objects.
        """
        encoded = read_file(self._path)
        return self._as_written(encoded) or decode_catalog(encoded, self._path)

    def _as_written(self, encoded: bytes) -> Catalog | None:
        """What `encode_catalog` made `encoded` of; None when it may be anything else."""
        match = _WHOLE.fullmatch(encoded)
        if match is None:
            return None
        generation, body, alias_lines, crc = match.groups()
        before, known = self._known, {}
        for text in body.split(_BETWEEN):
            found = before.get(text) or self._parsed(text)
            if found is None:
                return None
            known[text] = found
        tables = {name: entry for name, entry, _ in known.values()}
        aliases = self._parsed_aliases(alias_lines, tables)
        if aliases is None:
            return None
        compact = _compact(int(generation), [compact for _, _, compact in known.values()], aliases)
        if zlib.crc32(compact) != int(crc) or len(tables) != body.count(_BETWEEN) + 1:
            return None
        self._known = known
        return Catalog(int(generation), tables, aliases)

    def _parsed_aliases(
        self, lines: bytes | None, tables: Mapping[str, CatalogEntry]
    ) -> dict[str, str] | None:
        if lines is None:
            return {}
        try:
            aliases: dict[str, str] = json.loads(lines)
            check_names(tables, aliases)
        except (ValueError, TypeError, RecursionError, InvalidArgument):
            return None
        return aliases if _alias_lines(aliases).encode() == lines else None

    def _parsed(self, text: bytes) -> tuple[str, CatalogEntry, bytes] | None:
        try:
            document = json.loads(b"{%b}}" % text)
            tables = Catalog.from_json(
                {"format": DATA_DIR_FORMAT, "generation": 0, "tables": document}, self._path
            ).tables
        except (ValueError, RecursionError, BadFile):
            return None
        if len(tables) != 1:
            return None
        ((name, entry),) = tables.items()
        if f'    "{name}": {entry.text.lines}'.encode() != text + b"\n    }":
            return None
        return name, entry, f'"{name}":{entry.text.compact}'.encode()
