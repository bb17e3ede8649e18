"""Token tables of GGUF files, and their tokens as keys. gatherd.store.gguf reads the header."""

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from gatherd.errors import BadFile
from gatherd.store.format import file_bytes, gguf_layout, open_readonly
from gatherd.store.gguf import GgufArray, GgufCursor, read_gguf_header
from gatherd.store.key_index import KEY_BYTES_MAX, KeyKind, Keys, StringKeys
from gatherd.store.parts import pick
from gatherd_server.loaders.arrays import array_source
from gatherd_server.loaders.batches import RowBatch, RowSource
from gatherd_server.loaders.streams import ByteStream, Opened

# Strings and integers.
_KEY_CODES = {"", *"bBhHiIqQ"}


def gguf_source(opened: Opened, tensor: str | None, key_column: str | None) -> RowSource:
    """One tensor of a GGUF file, by default its token table.

    `key_column` names an array of the metadata with a key for each row, such as
    tokenizer.ggml.tokens.
    """
    file = opened.closing.enter_context(os.fdopen(open_readonly(opened.as_file()), "rb", 0))
    header = read_gguf_header(file.fileno(), opened.name)
    shapes = {key: f"{found.kind} {found.shape}" for key, found in sorted(header.tensors.items())}
    tensor = pick(opened.name, tensor or header.token_table, shapes)
    layout = gguf_layout(header, opened.name, tensor, file_bytes(file.fileno()))
    where = f"{opened.name}#{tensor}"
    source = array_source(where, "GGUF", ByteStream(where, file, None), layout)
    if key_column is None:
        return source
    usable = {
        key: array for key, array in sorted(header.arrays.items()) if array.code in _KEY_CODES
    }
    shown = {
        key: f"{'numbers' if array.code else 'strings'} ({array.count},)"
        for key, array in usable.items()
    }
    array = usable[pick(opened.name, key_column, shown, "key column")]
    if array.count != layout.row_count:
        raise BadFile(
            f"{opened.name}: {key_column} has {array.count} keys; {tensor} has "
            f"{layout.row_count} rows"
        )
    kind = KeyKind.BYTES if not array.code else KeyKind.INT64
    if array.code and array.code.isupper():
        kind = KeyKind.UINT64
    keys = GgufCursor(file.fileno(), f"{opened.name}: {key_column}", array.offset)
    return replace(source, key_kind=kind, read=lambda: _with_keys(source, keys, array))


def _with_keys(source: RowSource, cursor: GgufCursor, array: GgufArray) -> Iterator[RowBatch]:
    for batch in source.read():
        yield replace(batch, keys=_keys(cursor, array.code, batch))


def _keys(cursor: GgufCursor, code: str, batch: RowBatch) -> Keys:
    if code:
        stored = np.dtype(code).newbyteorder("<")
        data = cursor.take(len(batch.rows) * stored.itemsize)
        return np.frombuffer(data, stored).astype(np.uint64 if code.isupper() else np.int64)
    found = []
    for row in batch.numbers.tolist():
        found.append(cursor.string(KEY_BYTES_MAX))
        if not found[-1]:
            raise BadFile(f"{cursor.file_name}: the key of row {row} is empty")
    return StringKeys.of(found)
