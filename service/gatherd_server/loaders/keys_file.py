r"""Keys from a file of their own, for sources that have none: `gatherd import --keys FILE`.

A text file has one key a line, the bytes up to its line feed (a "\r" before that isn't part of
it); a .npy file has int64 or uint64 keys. Either may be .gz.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.format import NPY_MAGIC
from gatherd.store.key_index import KEY_BYTES_MAX, KeyKind, Keys
from gatherd_server.loaders.arrays import read_npy_header
from gatherd_server.loaders.batches import (
    RowBatch,
    RowSource,
    join_keys,
    keys_of_spans,
    slice_keys,
)
from gatherd_server.loaders.limits import BATCH_BYTES
from gatherd_server.loaders.streams import ByteStream


def with_keys(source: RowSource, stream: ByteStream) -> RowSource:
    """`source` with the keys that `stream` has for its rows, in the same order.

    InvalidArgument when it has keys already; BadFile, while it is read, when the keys are more or
    fewer than the rows.
    """
    if source.key_kind is not None:
        raise InvalidArgument(f"{source.name} has keys of its own; leave --keys out")
    kind, parts = _key_parts(stream)
    return replace(source, key_kind=kind, read=lambda: _zip(source, stream.name, parts))


def _zip(source: RowSource, name: str, parts: Iterator[Keys]) -> Iterator[RowBatch]:
    waiting: list[Keys] = []
    waiting_count = rows_done = 0
    for batch in source.read():
        needed = len(batch.rows) + batch.bad_count
        while waiting_count < needed:
            part = next(parts, None)
            if part is None:
                raise BadFile(
                    f"{name} has {rows_done + waiting_count} keys; {source.name} has more rows"
                )
            waiting.append(part)
            waiting_count += part.size
        keys = join_keys(waiting) if waiting else None
        if keys is None:
            yield batch
            continue
        waiting = [slice_keys(keys, needed, waiting_count)]
        waiting_count -= needed
        taken = slice_keys(keys, 0, needed)
        if batch.bad_count:
            raise BadFile(f"{source.name}: rows were left out, so {name} doesn't fit any more")
        rows_done += needed
        yield replace(batch, keys=taken)
    if waiting_count or any(part.size for part in parts):
        raise BadFile(f"{name} has more keys than {source.name} has rows ({rows_done})")


def _key_parts(stream: ByteStream) -> tuple[KeyKind, Iterator[Keys]]:
    if stream.peek(len(NPY_MAGIC)) != NPY_MAGIC:
        return KeyKind.BYTES, _lines(stream)
    shape, _, dtype, offset = read_npy_header(stream.name, stream)
    if dtype.str not in ("<i8", "<u8") or len(shape) != 1:
        raise BadFile(f"{stream.name} is {dtype} {shape}; keys are int64 or uint64, (rows,)")
    kind = KeyKind.INT64 if dtype.kind == "i" else KeyKind.UINT64
    return kind, _integers(stream, offset, shape[0], dtype)


def _integers(
    stream: ByteStream, offset: int, count: int, dtype: np.dtype[np.integer]
) -> Iterator[Keys]:
    stream.skip(offset)
    while count:
        data = stream.read(min(count * 8, BATCH_BYTES))
        if not data or len(data) % 8:
            raise BadFile(f"{stream.name} is truncated: {count} keys are missing")
        count -= len(data) // 8
        yield np.frombuffer(data, dtype)


def _lines(stream: ByteStream) -> Iterator[Keys]:
    rest = b""
    line = 0
    while data := stream.read(BATCH_BYTES):
        data = rest + data
        cut = data.rfind(b"\n") + 1
        rest = data[cut:]
        if len(rest) > KEY_BYTES_MAX + 1:
            raise BadFile(
                f"{stream.name}: line {line + data.count(10) + 1} is longer than a key's "
                f"{KEY_BYTES_MAX} bytes"
            )
        if cut:
            yield _split(stream.name, data[:cut], line)
            line += data.count(b"\n")
    if rest:
        yield _split(stream.name, rest + b"\n", line)


def _split(name: str, text: bytes, line: int) -> Keys:
    raw = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(raw == ord("\n"))
    begins = np.concatenate([[0], ends[:-1] + 1])
    ends = ends - ((ends > begins) & (raw[ends - 1] == ord("\r")))
    lengths = ends - begins
    wrong = np.flatnonzero((lengths < 1) | (lengths > KEY_BYTES_MAX))
    if wrong.size:
        raise BadFile(
            f"{name}: line {line + wrong[0] + 1} has {lengths[wrong[0]]} bytes; a key has 1 to "
            f"{KEY_BYTES_MAX}"
        )
    return keys_of_spans(raw, begins, ends)
