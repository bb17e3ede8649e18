"""Vectors as CSV or TSV (RFC 4180, by Python's csv): fields separated by commas, tabs, ";" or "|".

The first record names the columns, unless it has numbers where the others have numbers: then the
columns are called 1, 2, …. A vector is one column of lists ("[0.1, 0.2]", "0.1 0.2"), or a column
for each dimension. Keys are text, as written.
"""

import csv
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gatherd.errors import BadFile
from gatherd.store.key_index import KeyKind
from gatherd_server.loaders.batches import OnBadRow, RowSource
from gatherd_server.loaders.json_lines import numbered_lines
from gatherd_server.loaders.limits import LINE_BYTES_MAX
from gatherd_server.loaders.records import (
    Chosen,
    ColumnOptions,
    Record,
    choose,
    record_source,
    usual_dim,
)
from gatherd_server.loaders.streams import ByteStream
from gatherd_server.loaders.text_shape import SAMPLE_BYTES, SAMPLE_LINES_MAX, FirstField

_DELIMITERS = "\t,;|"
_LIST_MARKS = str.maketrans("[](){},;|\t\r\n", " " * 12)


@dataclass(frozen=True, slots=True)
class _Shape:
    """The format of a file's records: the delimiter, and the columns' names."""

    delimiter: str
    names: list[str]
    has_header: bool


def delimited_source(
    stream: ByteStream,
    options: ColumnOptions,
    on_bad_row: OnBadRow,
    first_field: FirstField | None = None,
) -> RowSource | None:
    """The rows of `stream`; None unless its first records have fields, mostly equally many."""
    # A vector as a list is one field.
    csv.field_size_limit(LINE_BYTES_MAX)
    found = _sample(stream)
    if found is None:
        return None
    delimiter, sample = found
    width = len(sample[0])
    kinds = [_kind_of([row[place] for row in sample[1:]]) for place in range(width)]
    has_header = len(sample) > 1 and any(
        kind and not _kind_of([sample[0][place]]) for place, kind in enumerate(kinds)
    )
    rows = sample[1:] if has_header else sample
    names = sample[0] if has_header else [str(place + 1) for place in range(width)]
    kinds = [_kind_of([row[place] for row in rows]) for place in range(width)]
    if not has_header and not options.is_given:
        options = _without_names(names, kinds, first_field)
    shape = _Shape(delimiter, names, has_header)
    if not options.is_given and not any(kinds):
        return None
    chosen = choose(stream.name, names, dict(zip(names, kinds, strict=True)), options)
    dim = usual_dim(stream.name, map(_Places(shape, chosen).vector, rows))
    key_kind = KeyKind.BYTES if chosen.key is not None else None
    return record_source(
        stream, "TSV" if delimiter == "\t" else "CSV", chosen, dim, key_kind, on_bad_row,
        lambda: _records(stream, shape, chosen),
    )  # fmt: skip


def _without_names(
    names: list[str], kinds: list[str], first_field: FirstField | None
) -> ColumnOptions:
    """The columns of a file without a header: text and then numbers, as in GloVe's."""
    is_keyed = not kinds[0] or first_field is FirstField.KEY
    if len(names) > 1 and is_keyed and all(kind == "number" for kind in kinds[1:]):
        return ColumnOptions(key=names[0])
    return ColumnOptions()


def _sample(stream: ByteStream) -> tuple[str, list[list[str]]] | None:
    """The delimiter and the first records; None when no delimiter fits them."""
    head = stream.peek(SAMPLE_BYTES)
    is_whole = len(head) < SAMPLE_BYTES
    while not is_whole and b"\n" not in head and len(head) < LINE_BYTES_MAX:
        size = len(head) * 4
        head = stream.peek(size)
        is_whole = len(head) < size
    if b"\0" in head:
        return None
    text = head.decode("utf-8", "surrogateescape")
    lines = text.split("\n")
    lines = [line + "\n" for line in (lines if is_whole else lines[:-1])]
    best: tuple[str, list[list[str]]] | None = None
    for delimiter in _DELIMITERS:
        records: list[list[str]] = []
        with suppress(csv.Error):
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            records.extend(filter(None, islice(reader, SAMPLE_LINES_MAX)))
        width = len(records[0]) if records else 0
        # The reader will report a wrong line among them.
        fitting = [record for record in records if len(record) == width]
        if width > 1 and len(fitting) * 2 > len(records) and (
            best is None or width > len(best[1][0])
        ):  # fmt: skip
            best = delimiter, fitting
    return best


def _number(field: str) -> float | None:
    if "_" in field:
        return None
    try:
        return float(field)
    except ValueError:
        return None


def _elements(field: str) -> list[float] | None:
    """The numbers of a list in a field; None when it isn't one."""
    parts = field.translate(_LIST_MARKS).split()
    numbers = [_number(part) for part in parts]
    return None if None in numbers or not numbers else numbers  # type: ignore[return-value]  # no None in it


def _kind_of(fields: list[str]) -> str:
    """The kind of most of a column's fields."""
    for kind, read in (("number", _number), ("list", _elements)):
        if fields and 2 * sum(read(field) is not None for field in fields) >= len(fields):
            return kind
    return ""


class _Places:
    """The positions of a record's fields."""

    def __init__(self, shape: _Shape, chosen: Chosen) -> None:
        place = {name: index for index, name in enumerate(shape.names)}
        self._vectors = [place[name] for name in chosen.vectors]
        self._names = chosen.vectors
        self._is_list = chosen.is_list
        self.key = place[chosen.key] if chosen.key is not None else None

    def vector(self, record: Sequence[str]) -> list[float] | str:
        """The vector of a record, or what is wrong with the record."""
        if self._is_list:
            elements = _elements(record[self._vectors[0]])
            return elements or f"its {self._names[0]!r} isn't a list of numbers"
        fields = [record[place] for place in self._vectors]
        if "_" not in "".join(fields):
            with suppress(ValueError):
                return list(map(float, fields))
        for name, field in zip(self._names, fields, strict=True):
            if _number(field) is None:
                return f"its {name!r} isn't a number but {field[:40]!r}"
        raise AssertionError(fields)


def _records(stream: ByteStream, shape: _Shape, chosen: Chosen) -> Iterator[Record]:
    places = _Places(shape, chosen)
    lines = _Lines(stream)
    reader: Any = csv.reader(lines, delimiter=shape.delimiter, strict=True)
    width = len(shape.names)
    is_header = shape.has_header
    while True:
        number = lines.begin()
        try:
            record = next(reader, None)
        except csv.Error as error:
            yield number, None, f"isn't a record of RFC 4180: {error}"
            continue
        if record is None:
            return
        if not record:
            continue
        if is_header:
            is_header = False
        elif len(record) != width:
            yield number, None, f"has {len(record)} fields, others have {width}"
        else:
            key = None
            if places.key is not None:
                key = record[places.key].encode("utf-8", "surrogateescape")
            yield number, key, places.vector(record)


class _Lines:
    """A stream's lines for csv's reader. BadFile when a record takes more than LINE_BYTES_MAX."""

    def __init__(self, stream: ByteStream) -> None:
        self._name = stream.name
        self._lines = numbered_lines(stream)
        self._number = 0
        self._record_bytes = 0

    def begin(self) -> int:
        """Begin a record; return the number of its first line."""
        self._record_bytes = 0
        return self._number + 1

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        self._number, line = next(self._lines)
        self._record_bytes += len(line)
        if self._record_bytes > LINE_BYTES_MAX:
            raise BadFile(
                f"{self._name}: the record that ends after line {self._number} is longer than "
                f"{LINE_BYTES_MAX} bytes; is a quotation mark left open?"
            )
        return line.decode("utf-8", "surrogateescape")
