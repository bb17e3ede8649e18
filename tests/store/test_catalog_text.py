"""The quick ways to write and read catalog.json give what the general ones give."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gatherd.errors import BadFile
from gatherd.store.catalog import (
    CATALOG_INDENT,
    CATALOG_NAME,
    Catalog,
    CatalogEntry,
    Damage,
    read_catalog,
)
from gatherd.store.catalog_text import CatalogReader, compact_catalog, encode_catalog
from gatherd.store.checksums import document_crc, encode_document

NUMBERS = st.integers(0, 2**63)
DAMAGE = st.builds(Damage, NUMBERS, st.text(), NUMBERS, NUMBERS)


@st.composite
def entries(draw: st.DrawFn) -> CatalogEntry:
    versions = tuple(sorted(draw(st.sets(st.integers(1, 10**6), min_size=1, max_size=4))))
    damaged = tuple(draw(st.lists(DAMAGE, max_size=2)))
    return CatalogEntry(draw(st.text()), draw(st.sampled_from(versions)), versions, damaged)


NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,9}", fullmatch=True)
CATALOGS = st.builds(Catalog, NUMBERS, st.dictionaries(NAMES, entries(), max_size=5))
HOSTILE = Damage(2, '"\n    },\n    "x": {"', 3, 4)


@given(CATALOGS)
@example(Catalog(0, {}))
@example(Catalog(9, {"a": CatalogEntry("\u00e4\n", 2, (1, 2), (HOSTILE,))}))
def test_a_catalog_is_written_as_any_document_is(catalog: Catalog) -> None:
    document = catalog.to_json()
    assert encode_catalog(catalog) == encode_document(document, CATALOG_INDENT)
    assert json.loads(compact_catalog(catalog)) == document


@settings(deadline=None)
@given(catalogs=st.lists(CATALOGS, min_size=2, max_size=4))
def test_a_reader_gives_what_the_file_holds_and_the_objects_that_it_had(
    tmp_path_factory: pytest.TempPathFactory, catalogs: list[Catalog]
) -> None:
    folder = tmp_path_factory.mktemp("read")
    reader = CatalogReader(folder)
    before: dict[str, CatalogEntry] = {}
    for number, catalog in enumerate(catalogs):
        # Each has what the ones before had, but for what it says itself.
        merged = Catalog(number, {**before, **catalog.tables})
        (folder / CATALOG_NAME).write_bytes(encode_catalog(merged))
        found = reader.read()
        assert found == merged == read_catalog(folder)
        same = {name for name, entry in before.items() if merged.tables[name] == entry}
        assert all(found.tables[name] is before[name] for name in same)
        before = found.tables


def test_a_reader_takes_and_refuses_what_the_judge_does(tmp_path: Path) -> None:
    tables = {
        name: CatalogEntry(name * 4, 2, (1, 2), (Damage(1, "gone", 3, 4),) if name == "b" else ())
        for name in "abc"
    }
    whole = encode_catalog(Catalog(12, tables))
    path, reader = tmp_path / CATALOG_NAME, CatalogReader(tmp_path)

    def agree(data: bytes) -> None:
        path.write_bytes(data)
        try:
            expected: object = read_catalog(tmp_path)
        except BadFile as error:
            expected = error.message
        try:
            found: object = reader.read()
        except BadFile as error:
            found = error.message
        assert found == expected

    agree(whole)
    for at in range(len(whole)):
        agree(whole[:at])
        agree(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
    document = json.loads(whole)
    # Written otherwise, by a release of before there were checksums.
    del document["crc32"]
    agree(json.dumps(document).encode())
    # A table twice, and names out of their order, with the checksum that those bytes would have.
    twice = whole.replace(b'"b": {', b'"a": {')
    agree(twice.replace(b"%d" % json.loads(whole)["crc32"], b"%d" % document_crc(document)))
    document["tables"] = dict(reversed(document["tables"].items()))
    agree(encode_document(document, CATALOG_INDENT))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON), st.integers(0, 3))
def test_a_document_is_indented_as_json_does(document: dict[str, object], indent: int) -> None:
    rest = {name: value for name, value in document.items() if name != "crc32"}
    expected = json.dumps({**rest, "crc32": document_crc(rest)}, indent=indent)
    assert encode_document(document, indent) == expected.encode()
