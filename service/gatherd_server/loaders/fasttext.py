"""fastText's models, .bin: a vector for each word, composed as fastText itself does it.

    int32        magic 793712314, version 11 or 12
    int32 x 12   dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, minn, maxn,
                 lrUpdateRate
    float64      t
    int32 x 3    entries, words, labels
    int64 x 2    tokens, pruned buckets (-1: not pruned)
    entries      bytes up to a zero, int64 count, int8 type; words first, then labels
    uint8        whether the matrix is quantised
    int64 x 2    rows, dim; then the input matrix, float32: a row per word, then one per bucket

and the output matrix, which isn't read. All is little-endian. A word's vector is the mean of its
own row and of the rows of its n-grams' buckets; a word that the model doesn't know has only the
latter. "</s>", which ends a sentence, has no n-grams.

`#ngrams` picks the buckets' rows themselves: a table without keys, with a row per bucket, so that a
client can compose any word as the mean of a lookup. Quantised models (.ftz) are refused.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.format import RowLayout, open_readonly
from gatherd.store.key_index import KEY_BYTES_MAX, KeyKind, StringKeys
from gatherd.store.parts import pick
from gatherd_server.loaders.arrays import array_source
from gatherd_server.loaders.batches import OnBadRow, RowBatch, RowSource
from gatherd_server.loaders.encoding import skip_byte_order_mark
from gatherd_server.loaders.limits import BATCH_BYTES, WORDS_BYTES_MAX
from gatherd_server.loaders.streams import ByteStream, Opened, read_at, reading

FASTTEXT_MAGIC = struct.pack("<i", 793712314)
_HEAD = struct.Struct("<ii12id3iqq")
_MATRIX = struct.Struct("<?qq")
_ENTRY_TAIL_BYTES = 9
_READ_BYTES = 1 << 20
# A word of the dictionary; fastText itself reads no word longer than a line.
_WORD_BYTES_MAX = 64 << 10
_NGRAM_MAX = 64
_SUPERVISED = 3
_END_OF_SENTENCE = b"</s>"
_WORDS_PER_BATCH = 1024


@dataclass(frozen=True, slots=True)
class _Model:
    """A model's parameters, and the places of its parts."""

    name: str
    fd: int
    dim: int
    word_count: int
    bucket_count: int
    minn: int
    maxn: int
    rows_offset: int

    @property
    def row_bytes(self) -> int:
        return self.dim * 4

    @property
    def has_ngrams(self) -> bool:
        return self.maxn > 0 and self.bucket_count > 0


def fasttext_source(
    opened: Opened, part: str | None, extra_words: ByteStream | None, on_bad_row: OnBadRow
) -> RowSource:
    """The words of a model, followed by those of `extra_words` that it doesn't know.

    `extra_words` is a text with one per line. BadFile when the model is damaged or quantised.
    """
    path: Path = opened.as_file()
    file = opened.closing.enter_context(os.fdopen(open_readonly(path), "rb", 0))
    wanted = _read_words(extra_words) if extra_words is not None else {}
    model = _read_model(opened.name, file.fileno(), wanted)
    shapes = {"words": f"float32 {(model.word_count, model.dim)}"}
    if model.bucket_count:
        shapes["ngrams"] = f"float32 {(model.bucket_count, model.dim)}"
    if pick(opened.name, part or "words", shapes, "part") == "ngrams":
        if wanted:
            raise InvalidArgument(f"{opened.name}#ngrams has no words; leave --words out")
        offset = model.rows_offset + model.word_count * model.row_bytes
        layout = RowLayout(DType.FLOAT32, model.bucket_count, model.dim, offset)
        name = f"{opened.name}#ngrams"
        return array_source(name, "fastText", ByteStream(name, file, None), layout)
    if wanted and not model.has_ngrams:
        raise InvalidArgument(
            f"{opened.name} was trained without n-grams (maxn 0): it has no vectors for words it "
            "doesn't know; leave --words out"
        )
    count = model.word_count + len(wanted)
    return RowSource(
        opened.name,
        "fastText",
        DType.FLOAT32,
        DType.FLOAT32,
        model.dim,
        count,
        KeyKind.BYTES,
        "word",
        count,
        lambda: _read(model, list(wanted), on_bad_row),
    )


def _read_words(stream: ByteStream) -> dict[bytes, None]:
    """The words of a text with one per line; blank lines are ignored."""
    skip_byte_order_mark(stream)
    data = stream.read(WORDS_BYTES_MAX + 1)
    if len(data) > WORDS_BYTES_MAX:
        raise BadFile(
            f"{stream.name} is longer than {WORDS_BYTES_MAX} bytes; --words takes no more"
        )
    words = dict.fromkeys(line.removesuffix(b"\r") for line in data.split(b"\n"))
    words.pop(b"", None)
    longest = max(words, key=len, default=b"")
    if len(longest) > KEY_BYTES_MAX:
        raise BadFile(
            f"{stream.name} has a word of {len(longest)} bytes; a key has 1 to {KEY_BYTES_MAX}"
        )
    return words


def _read_model(name: str, fd: int, wanted: dict[bytes, None]) -> _Model:
    """The model's parameters, checked; words that it knows are removed from `wanted`."""
    head = read_at(fd, _HEAD.size, 0, name)
    if len(head) < _HEAD.size:
        raise BadFile(f"{name} is truncated: a fastText model's front has {_HEAD.size} bytes")
    _, version, dim, *rest = _HEAD.unpack(head)
    kind, bucket_count, minn, maxn = rest[6], rest[7], rest[8], rest[9]
    entry_count, word_count, label_count, _, pruned = rest[12:]
    if version not in (11, 12):
        raise BadFile(f"{name} is a fastText model of version {version}; 11 and 12 are read")
    if version == 11 and kind == _SUPERVISED:
        maxn = 0
    sound = (
        dim >= 1
        and min(word_count, label_count, bucket_count, minn, maxn) >= 0
        and entry_count == word_count + label_count
        and maxn <= _NGRAM_MAX
        and pruned >= -1
    )
    if not sound:
        raise BadFile(f"{name} is damaged: the front of it is no fastText model's")
    if pruned >= 0:
        raise BadFile(f"{name} is a pruned fastText model, of a quantised one (.ftz); {_TO_DO}")
    offset = _end_of_entries(name, fd, entry_count, word_count, wanted)
    row_count, columns, rows_offset = _read_matrix(name, fd, offset)
    if columns != dim or row_count not in (word_count, word_count + bucket_count):
        raise BadFile(
            f"{name} is damaged: its matrix is {row_count} by {columns}; it has {word_count} words "
            f"and {bucket_count} buckets of {dim}"
        )
    buckets = row_count - word_count
    return _Model(name, fd, dim, word_count, buckets, minn, maxn, rows_offset)


def _end_of_entries(
    name: str, fd: int, entry_count: int, word_count: int, wanted: dict[bytes, None]
) -> int:
    """The end of the dictionary; words in it are removed from `wanted`."""
    offset = _HEAD.size
    for index, (word, is_label, end) in enumerate(_entries(name, fd, entry_count)):
        if is_label is not (index >= word_count):
            raise BadFile(f"{name} is damaged: entry {index} of its dictionary")
        if not is_label:
            wanted.pop(word, None)
        offset = end
    return offset


def _read_matrix(name: str, fd: int, offset: int) -> tuple[int, int, int]:
    """Rows, columns and position of the matrix whose header is at `offset`."""
    head = read_at(fd, _MATRIX.size, offset, name)
    if len(head) < _MATRIX.size:
        raise BadFile(f"{name} is truncated: it ends before its matrix")
    is_quantised, row_count, columns = _MATRIX.unpack(head)
    if is_quantised:
        raise BadFile(f"{name} is a quantised fastText model (.ftz); {_TO_DO}")
    offset += _MATRIX.size
    size = os.fstat(fd).st_size
    if min(row_count, columns) < 0 or offset + row_count * columns * 4 > size:
        raise BadFile(f"{name} is truncated: it ends at byte {size}, within its matrix")
    return row_count, columns, offset


_TO_DO = "import the model it was made of, or its vectors as text (.vec)"


def _entries(name: str, fd: int, count: int) -> Iterator[tuple[bytes, bool, int]]:
    """The dictionary's entries: the word, whether it is a label, and the next one's position."""
    data, at, position = b"", 0, _HEAD.size
    for index in range(count):
        end = data.find(b"\0", at)
        while end < 0 or end + 1 + _ENTRY_TAIL_BYTES > len(data):
            position += at
            data, at = data[at:], 0
            more = read_at(fd, _READ_BYTES, position + len(data), name)
            if not more:
                raise BadFile(f"{name} is truncated: it ends in entry {index} of its dictionary")
            data += more
            end = data.find(b"\0")
            if len(data) > _READ_BYTES + _WORD_BYTES_MAX and end < 0:
                raise BadFile(
                    f"{name} is damaged: entry {index} of its dictionary has more than "
                    f"{_WORD_BYTES_MAX} bytes"
                )
        word = data[at:end]
        at = end + 1 + _ENTRY_TAIL_BYTES
        yield word, data[at - 1] != 0, position + at


def _read(model: _Model, extra: list[bytes], on_bad_row: OnBadRow) -> Iterator[RowBatch]:
    entries = _entries(model.name, model.fd, model.word_count)
    known = (word for word, _, _ in entries)
    done = 0
    step = max(1, min(_WORDS_PER_BATCH, BATCH_BYTES // model.row_bytes))
    for source, first_row in ((known, 0), (iter(extra), None)):
        row = first_row
        while words := list(islice(source, step)):
            yield _batch(model, words, row, done, on_bad_row)
            done += len(words)
            row = None if row is None else done


def _batch(
    model: _Model, words: list[bytes], first_row: int | None, done: int, on_bad_row: OnBadRow
) -> RowBatch:
    """The vectors of `words`; `first_row` is the row of the first, None for words without rows."""
    counts, buckets = _ngrams_of(model, words)
    is_good = np.array([1 <= len(word) <= KEY_BYTES_MAX for word in words])
    own = 0
    if first_row is None:
        is_good &= counts > 0
    else:
        own = 1
    if not is_good.all() and on_bad_row is OnBadRow.ERROR:
        wrong = int(np.flatnonzero(~is_good)[0])
        length = len(words[wrong])
        what = f"has {length} bytes; a key has 1 to {KEY_BYTES_MAX}"
        if 1 <= length <= KEY_BYTES_MAX:
            what = f"{words[wrong]!r} has no n-grams of {model.minn} to {model.maxn} characters"
        raise BadFile(
            f"{model.name}: word {done + wrong + 1} {what} "
            "(--on-bad-row skip leaves such words out)"
        )
    sums = np.zeros((len(words), model.dim), np.float32)
    if first_row is not None:
        _read_rows(model, np.arange(first_row, first_row + len(words)), sums)
    owners = np.repeat(np.arange(len(words)), counts)
    # The import's policy decides about values that aren't finite.
    with np.errstate(all="ignore"):
        _add_rows(model, buckets + model.word_count, owners, sums)
        sums /= np.maximum(counts + own, 1)[:, None].astype(np.float32)
    good = np.flatnonzero(is_good)
    keys = [words[index] for index in good.tolist()]
    joined = StringKeys.of(keys)
    return RowBatch(sums[good], joined, good + done + 1, done + len(words), len(words) - len(keys))


def _ngrams_of(
    model: _Model, words: Iterable[bytes]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The number of n-grams of each of `words`, int64 (n,), and their buckets, int64 (m,)."""
    # Numba takes half a second to load.
    from gatherd_server.loaders.fasttext_kernel import find_ngrams

    marked = [
        b"" if word == _END_OF_SENTENCE or len(word) > KEY_BYTES_MAX else b"<" + word + b">"
        for word in words
    ]
    counts = np.zeros(len(marked), np.int64)
    if not model.has_ngrams:
        return counts, counts[:0]
    offsets = np.zeros(len(marked) + 1, np.int64)
    np.cumsum([len(word) for word in marked], out=offsets[1:])
    text = np.frombuffer(b"".join(marked), np.uint8)
    buckets = np.empty(text.size * max(0, model.maxn - max(model.minn, 1) + 1), np.int64)
    total = find_ngrams(text, offsets, model.minn, model.maxn, model.bucket_count, buckets, counts)
    return counts, buckets[:total]


def _add_rows(
    model: _Model, rows: NDArray[np.int64], owners: NDArray[np.int64], sums: NDArray[np.float32]
) -> None:
    """Add the matrix's `rows`, (m,), to the `sums`, (n, dim), of their `owners`, ascending (m,)."""
    step = max(1, BATCH_BYTES // model.row_bytes)
    for start in range(0, rows.size, step):
        different, places = np.unique(rows[start : start + step], return_inverse=True)
        read = np.empty((different.size, model.dim), np.float32)
        _read_rows(model, different, read)
        owner = owners[start : start + step]
        begins = np.flatnonzero(np.diff(owner, prepend=-1))
        sums[owner[begins]] += np.add.reduceat(read[places.reshape(-1)], begins, axis=0)


def _read_rows(model: _Model, rows: NDArray[np.int64], target: NDArray[np.float32]) -> None:
    """Read the matrix's `rows`, ascending, into `target`; adjacent ones in one read."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    bounds = np.concatenate([[0], breaks, [rows.size]]).tolist()
    view = target.reshape(-1).view(np.uint8).data
    for begin, end in pairwise(bounds):
        position = model.rows_offset + int(rows[begin]) * model.row_bytes
        part = view[begin * model.row_bytes : end * model.row_bytes]
        while part.nbytes:
            with reading(model.name):
                count = os.preadv(model.fd, [part], position)
            if not count:
                raise BadFile(f"{model.name} is truncated: it was cut while it was read")
            part = part[count:]
            position += count
