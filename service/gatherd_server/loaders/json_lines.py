"""Vectors as JSON Lines: an object per line, with a list of numbers as one member.

Or several members are numbers (`--vector-columns`). Keys are strings or integers.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from gatherd.errors import BadFile
from gatherd.store.key_index import KeyKind
from gatherd_server.loaders.batches import OnBadRow, RowSource
from gatherd_server.loaders.limits import BATCH_BYTES, LINE_BYTES_MAX
from gatherd_server.loaders.records import (
    Chosen,
    ColumnOptions,
    Key,
    Record,
    choose,
    record_source,
    usual_dim,
)
from gatherd_server.loaders.streams import ByteStream
from gatherd_server.loaders.text_shape import first_lines

_OBJECT = re.compile(rb'\s*\{\s*"')


def json_lines_source(
    stream: ByteStream, options: ColumnOptions, on_bad_row: OnBadRow
) -> RowSource | None:
    """The rows of `stream`; None when its first line isn't a JSON object of such members."""
    if not _OBJECT.match(stream.peek(64)):
        return None
    sample = [_parsed(line) for line in first_lines(stream)]
    first = sample[0] if sample else None
    if not isinstance(first, dict) or isinstance(first.get("weight_map"), dict):
        return None
    objects = [entry for entry in sample if isinstance(entry, dict)]
    kinds = {name: _kind_of([entry.get(name) for entry in objects]) for name in first}
    chosen = choose(stream.name, list(first), kinds, options)
    dim = usual_dim(stream.name, (_vector(entry, chosen) for entry in objects))
    key_kind = None
    if chosen.key is not None:
        keys = [entry.get(chosen.key) for entry in objects]
        key_kind = KeyKind.BYTES
        if type(keys[0]) is int:
            key_kind = KeyKind.INT64
            if any(type(key) is int and key >= 2**63 for key in keys):
                key_kind = KeyKind.UINT64
    return record_source(
        stream, "JSON Lines", chosen, dim, key_kind, on_bad_row,
        lambda: _records(stream, chosen),
    )  # fmt: skip


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _kind_of(values: list[Any]) -> str:
    """The kind of most of a member's values."""
    lists = [value for value in values if isinstance(value, list) and value]
    if lists and 2 * sum(all(map(_is_number, value)) for value in lists) >= len(values):
        return "list"
    return "number" if values and 2 * sum(map(_is_number, values)) >= len(values) else ""


def _vector(entry: dict[str, Any], chosen: Chosen) -> list[float] | str:
    """The vector of an object, or what is wrong with the object."""
    values = entry.get(chosen.vectors[0]) if chosen.is_list else list(
        map(entry.get, chosen.vectors)
    )  # fmt: skip
    if not isinstance(values, list):
        return f"its {chosen.vectors[0]!r} isn't a list of numbers"
    for place, value in enumerate(values):
        if not _is_number(value):
            where = f"element {place}" if chosen.is_list else f"its {chosen.vectors[place]!r}"
            return f"{where} isn't a number but {str(value)[:40]!r}"
    try:
        return list(map(float, values))
    except OverflowError:
        return "a number of its vector is too large for float64"


def _key(entry: dict[str, Any], name: str | None) -> Key:
    key = entry.get(name) if name is not None else None
    if isinstance(key, str):
        return key.encode("utf-8", "surrogatepass")
    return key if type(key) is int else None


def _records(stream: ByteStream, chosen: Chosen) -> Iterator[Record]:
    for number, line in numbered_lines(stream):
        if not line.strip():
            continue
        entry = _parsed(line)
        if isinstance(entry, dict):
            yield number, _key(entry, chosen.key), _vector(entry, chosen)
        else:
            yield number, None, "isn't a JSON object"


def numbered_lines(stream: ByteStream) -> Iterator[tuple[int, bytes]]:
    """The lines of `stream`, with their line feeds, and their numbers; the first is 1."""
    rest: list[bytes] = []
    rest_bytes = number = 0
    while data := stream.read(BATCH_BYTES):
        lines = data.splitlines(keepends=True) if b"\r" not in data else _split(data)
        for line in lines:
            rest.append(line)
            rest_bytes += len(line)
            if rest_bytes > LINE_BYTES_MAX:
                raise BadFile(
                    f"{stream.name}: a line after line {number} is longer than {LINE_BYTES_MAX} "
                    "bytes"
                )
            if line.endswith(b"\n"):
                number += 1
                yield number, b"".join(rest)
                rest, rest_bytes = [], 0
    if rest:
        yield number + 1, b"".join(rest)


def _split(data: bytes) -> list[bytes]:
    r"""Split at "\n" alone; a "\r" stays in its line."""
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]
