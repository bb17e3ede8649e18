r"""Keys from a file of their own, for sources without keys: `gatherd import --keys FILE`.

It has a key for each row, in the rows' order, and is one of

- a text file with one key per line: the bytes up to its line feed (a "\r" before that isn't part of
  the key, nor is a UTF-8 byte order mark at the front);
- a text file whose first line names columns separated by tabs, like the TensorFlow projector's
  metadata.tsv; the first column has the keys, or the one that `--key-column` names;
- a .npy file of integers, of str or of bytes;
- JSON, see vocabulary.py.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.format import NPY_MAGIC
from gatherd.store.key_index import KEY_BYTES_MAX, KeyKind, Keys, StringKeys
from gatherd.store.parts import pick
from gatherd_server.loaders.arrays import read_npy_header
from gatherd_server.loaders.batches import (
    OnBadRow,
    RowBatch,
    RowSource,
    join_keys,
    keys_of_spans,
    select_keys,
    slice_keys,
)
from gatherd_server.loaders.encoding import skip_byte_order_mark
from gatherd_server.loaders.limits import BATCH_BYTES, LINE_BYTES_MAX
from gatherd_server.loaders.streams import ByteStream
from gatherd_server.loaders.vocabulary import vocabulary_keys

# A token may be "[PAD]", "[" or "{".
_JSON = re.compile(rb'\s*(\{\s*"|\[\s*(["\[\]]|-?[0-9]))')


def with_keys(
    source: RowSource,
    stream: ByteStream,
    column: str | None = None,
    on_bad_row: OnBadRow = OnBadRow.ERROR,
    *,
    may_have_more: bool = False,
) -> RowSource:
    """`source` with the keys that `stream` has for its rows, in the same order.

    `column` names the column of the keys. With `on_bad_row` SKIP a row with an empty key is left
    out. `may_have_more` allows more keys than rows, for a source that is cut short. InvalidArgument
    when the source has keys already, or there is no such column; BadFile, while it is read, when
    the keys are more or fewer than the rows.
    """
    if source.key_kind is not None:
        raise InvalidArgument(f"{source.name} has keys of its own; leave --keys out")
    kind, parts = _key_parts(stream, column, on_bad_row)
    return replace(
        source,
        key_kind=kind,
        read=lambda: _zip(source, stream.name, parts, may_have_more),
    )


def _zip(
    source: RowSource, name: str, parts: Iterator[Keys], may_have_more: bool
) -> Iterator[RowBatch]:
    waiting: list[Keys] = []
    waiting_count = rows_done = 0
    for batch in source.read():
        needed = len(batch.rows) + batch.bad_count
        while waiting_count < needed:
            part = next(parts, None)
            if part is None:
                count = rows_done + waiting_count
                raise BadFile(
                    f"{name} has {count} keys; {source.name} has more rows "
                    f"(--limit {count} takes only the first {count})"
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
        yield _without_empty_keys(replace(batch, keys=taken), taken)
    if may_have_more:
        return
    waiting_count += sum(part.size for part in parts)
    if waiting_count:
        raise BadFile(
            f"{name} has more keys than {source.name} has rows ({rows_done}): "
            f"{rows_done + waiting_count}"
        )


def _without_empty_keys(batch: RowBatch, keys: Keys) -> RowBatch:
    """`batch`, whose keys are `keys`, without the rows with empty keys."""
    if not isinstance(keys, StringKeys):
        return batch
    is_good = np.diff(keys.offsets) > 0
    if is_good.all():
        return batch
    bad_count = int(is_good.size - np.count_nonzero(is_good))
    return replace(
        batch,
        rows=batch.rows[is_good],
        keys=select_keys(keys, is_good),
        numbers=batch.numbers[is_good],
        bad_count=bad_count,
    )


def _key_parts(
    stream: ByteStream, column: str | None, on_bad_row: OnBadRow
) -> tuple[KeyKind, Iterator[Keys]]:
    skips = on_bad_row is OnBadRow.SKIP
    if stream.peek(len(NPY_MAGIC)) == NPY_MAGIC:
        return _array(stream, skips)
    skip_byte_order_mark(stream)
    if column is None and _JSON.match(stream.peek(64)):
        keys = vocabulary_keys(stream)
        if isinstance(keys, StringKeys):
            return KeyKind.BYTES, _checked(stream.name, "key", 0, keys, skips)
        return _kind(keys), iter([keys])
    header = _header(stream)
    if column is None and len(header) == 1:
        return KeyKind.BYTES, _lines(stream, skips)
    place = _place_of(stream.name, header, column)
    return KeyKind.BYTES, _column(stream, place, len(header), skips)


def _kind(keys: NDArray[Any]) -> KeyKind:
    return KeyKind.UINT64 if keys.dtype.kind == "u" else KeyKind.INT64


def _checked(
    name: str, place: str, first: int, keys: StringKeys, skips: bool
) -> Iterator[StringKeys]:
    """`keys` if they are valid, else BadFile; errors count `place`s ("line", …) from `first` on."""
    lengths = np.diff(keys.offsets)
    wrong = np.flatnonzero((lengths > KEY_BYTES_MAX) | ((lengths < 1) & (not skips)))
    if wrong.size:
        number, length = first + wrong[0], lengths[wrong[0]]
        if length:
            raise BadFile(
                f"{name}: {place} {number} has {length} bytes; a key has 1 to {KEY_BYTES_MAX}"
            )
        raise BadFile(
            f"{name}: {place} {number} has 0 bytes; a key has 1 to {KEY_BYTES_MAX} "
            "(--on-bad-row skip leaves its row out)"
        )
    yield keys


def _array(stream: ByteStream, skips: bool) -> tuple[KeyKind, Iterator[Keys]]:
    """Keys of a .npy file: integers, or NumPy's strings of a fixed width."""
    shape, _, dtype, offset = read_npy_header(stream.name, stream)
    count = shape[0] if shape else 0
    if dtype.hasobject:
        raise BadFile(
            f"{stream.name} holds Python objects, which are a pickle, never run here; save "
            "numpy.array(keys, dtype=str)"
        )
    if (
        dtype.kind not in "iuUS"
        or not dtype.itemsize
        or count < 0
        or shape not in ((count,), (count, 1))
    ):
        raise BadFile(
            f"{stream.name} is {dtype} {shape}; keys are integers, str or bytes, of shape (rows,)"
        )
    parts = _array_parts(stream, offset, count, dtype)
    if dtype.kind in "iu":
        kind = KeyKind.INT64 if dtype.kind == "i" else KeyKind.UINT64
        return kind, (part.astype("<i8" if dtype.kind == "i" else "<u8") for part in parts)
    return KeyKind.BYTES, _fixed_strings(stream.name, parts, skips)


def _array_parts(
    stream: ByteStream, offset: int, count: int, dtype: np.dtype[Any]
) -> Iterator[NDArray[Any]]:
    stream.skip(offset)
    step = max(1, BATCH_BYTES // dtype.itemsize)
    while count:
        wanted = min(count, step) * dtype.itemsize
        data = stream.read(wanted)
        if len(data) < wanted:
            raise BadFile(
                f"{stream.name} is truncated: {count - len(data) // dtype.itemsize} keys are "
                "missing"
            )
        count -= wanted // dtype.itemsize
        yield np.frombuffer(data, dtype)


def _fixed_strings(name: str, parts: Iterator[NDArray[Any]], skips: bool) -> Iterator[StringKeys]:
    first = 0
    for part in parts:
        try:
            encoded = np.char.encode(part, "utf-8") if part.dtype.kind == "U" else part
        except (UnicodeError, ValueError) as error:
            raise BadFile(f"{name} has a key that is no text: {error}") from None
        keys = encoded.tolist()
        yield from _checked(name, "key", first, StringKeys.of(keys), skips)
        first += len(keys)


def _header(stream: ByteStream) -> list[bytes]:
    """The fields of the first line; the stream stays before it."""
    line = stream.peek(KEY_BYTES_MAX * 8).partition(b"\n")[0]
    return line.removesuffix(b"\r").split(b"\t")


def _place_of(name: str, header: list[bytes], column: str | None) -> int:
    if column is None:
        return 0
    names = [field.decode("utf-8", "surrogateescape") for field in header]
    picked = pick(name, column, dict.fromkeys(names, ""), "column")
    return names.index(picked)


def _column(stream: ByteStream, place: int, column_count: int, skips: bool) -> Iterator[Keys]:
    """One column of a file whose first line names them; its fields have no quotes."""
    for line, block in _blocks(stream, LINE_BYTES_MAX):
        fields = [row.removesuffix(b"\r").split(b"\t") for row in block.split(b"\n")[:-1]]
        for number, row in enumerate(fields):
            if len(row) != column_count:
                raise BadFile(
                    f"{stream.name}: line {line + number + 1} has {len(row)} columns, line 1 has "
                    f"{column_count}"
                )
        keys = [row[place] for row in fields[line == 0 :]]
        first = line + 1 + (line == 0)
        yield from _checked(stream.name, "line", first, StringKeys.of(keys), skips)


def _lines(stream: ByteStream, skips: bool) -> Iterator[Keys]:
    for line, block in _blocks(stream, KEY_BYTES_MAX):
        raw = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(raw == ord("\n"))
        begins = np.concatenate([[0], ends[:-1] + 1])
        ends = ends - ((ends > begins) & (raw[ends - 1] == ord("\r")))
        yield from _checked(stream.name, "line", line + 1, keys_of_spans(raw, begins, ends), skips)


def _blocks(stream: ByteStream, line_bytes_max: int) -> Iterator[tuple[int, bytes]]:
    """Whole lines, each with its line feed, and the number of lines before them."""
    rest = b""
    line = 0
    while data := stream.read(BATCH_BYTES):
        data = rest + data
        cut = data.rfind(b"\n") + 1
        rest = data[cut:]
        if len(rest) > line_bytes_max + 1:
            raise BadFile(
                f"{stream.name}: line {line + data.count(10) + 1} is longer than a "
                f"key's {line_bytes_max} bytes"
            )
        if cut:
            yield line, data[:cut]
            line += data.count(b"\n")
    if rest:
        yield line, rest + b"\n"
