r"""Vectors as text: GloVe (no header), word2vec and fastText .vec (a first line "ROWS DIM").

A line is a token, then dim decimals, separated by blanks or tabs. Tokens are any bytes and may
contain blanks: the last dim fields are the vector. Blanks around a token, "\r" at a line's end and
blank lines are ignored. If a line begins with two blanks or more and has only dim numbers, its
token is those blanks but one. text_shape.py finds out dim, and whether lines have tokens at all.
"""

import math
from collections.abc import Iterator
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile
from gatherd.store.dtypes import DType
from gatherd.store.key_index import KEY_BYTES_MAX, KeyKind
from gatherd_server.loaders.batches import OnBadRow, RowBatch, RowSource, keys_of_spans
from gatherd_server.loaders.limits import BATCH_BYTES, LINE_BYTES_MAX
from gatherd_server.loaders.streams import ByteStream
from gatherd_server.loaders.text_shape import COMMENT, SAMPLE_BYTES, TextShape, decimal

FIELD_BYTES_SHOWN_MAX = 40


def text_source(stream: ByteStream, shape: TextShape, on_bad_row: OnBadRow) -> RowSource:
    """The vectors of a text file, read in one pass; tokens become the keys."""
    return RowSource(
        stream.name,
        shape.format,
        DType.FLOAT64,
        DType.FLOAT32,
        shape.dim,
        # A header's row count isn't trusted: nothing is reserved by it.
        None,
        KeyKind.BYTES if shape.has_keys else None,
        "line",
        stream.total,
        lambda: _Reader(stream, shape, on_bad_row).batches(),
    )


class _Reader:
    """One pass over a text file."""

    def __init__(self, stream: ByteStream, shape: TextShape, on_bad_row: OnBadRow) -> None:
        self._stream = stream
        self._name = stream.name
        self._shape = shape
        self._on_bad_row = on_bad_row
        # Lines before the present block, and those of them that weren't blank.
        self._lines = 0
        self._vectors = 0

    def batches(self) -> Iterator[RowBatch]:
        kernel = load_kernel()
        if self._shape.header:
            self._skip_header()
        for block in self._blocks():
            yield self._parse(kernel, block)
        promised = self._shape.row_count
        skips = self._on_bad_row is OnBadRow.SKIP
        if promised is not None and self._vectors != promised and not skips:
            raise BadFile(
                f"{self._name}: line 1 promises {promised} rows, the file ends at line "
                f"{self._lines} after {self._vectors} (--on-bad-row skip takes those)"
            )

    def _skip_header(self) -> None:
        while True:
            line = self._stream.peek(SAMPLE_BYTES).partition(b"\n")[0]
            self._stream.read(len(line) + 1)
            self._lines += 1
            if line.strip():
                return

    def _blocks(self) -> Iterator[bytes]:
        """The text in blocks of whole lines, each ending in a line feed."""
        parts: list[bytes] = []
        size = 0
        while data := self._stream.read(BATCH_BYTES):
            cut = data.rfind(b"\n") + 1
            size += cut or len(data)
            parts.append(data[:cut] if cut else data)
            if cut:
                yield b"".join(parts)
                parts = [data[cut:]]
                size = len(data) - cut
            if size > LINE_BYTES_MAX:
                raise BadFile(
                    f"{self._name}: a line after line {self._lines} is longer than "
                    f"{LINE_BYTES_MAX} bytes"
                )
        rest = b"".join(parts)
        if rest:
            yield rest + b"\n"

    def _parse(self, kernel: ModuleType, block: bytes) -> RowBatch:
        dim = self._shape.dim
        if self._shape.separator != b" ":
            block = block.replace(self._shape.separator, b" ")
        text = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(text == ord("\n"))
        values = np.empty((ends.size, dim))
        tokens = np.empty((ends.size, 3), np.int64)
        fields = np.empty(ends.size, np.int64)
        # A number takes at least two bytes; pages that aren't written take no memory.
        left = np.empty((min(ends.size * dim, len(block) // 2 + 1), 4), np.int64)
        left_count = kernel.parse_lines(text, ends, dim, values, tokens, fields, left)
        if self._shape.has_keys:
            _find_blank_tokens(block, tokens, (fields == dim) & (tokens[:, 0] == tokens[:, 1]))
        lengths = tokens[:, 1] - tokens[:, 0]
        is_blank = (fields == 0) & (lengths == 0)
        wrong = self._read_left(block, left[:left_count], values)
        if self._shape.has_keys:
            is_good = (fields == dim) & (lengths > 0) & (lengths <= KEY_BYTES_MAX)
            wrong.update(_numbers_too_many(block, tokens))
        else:
            is_blank |= _are_comments(text, ends)
            wrong = {line: field for line, field in wrong.items() if not is_blank[line]}
            is_good = (fields == dim) & (lengths == 0) & ~is_blank
        is_good[list(wrong)] = False
        bad = np.flatnonzero(~is_good & ~is_blank)
        numbers = np.arange(self._lines + 1, self._lines + 1 + ends.size)
        self._check_promise(numbers, is_blank)
        if bad.size and self._on_bad_row is OnBadRow.ERROR:
            line = int(bad[0])
            raise BadFile(
                f"{self._name}: line {numbers[line]}: "
                + self._expected(tokens[line], int(fields[line]), wrong.get(line))
            )
        self._lines += ends.size
        if bad.size or is_blank.any():
            values, tokens, numbers = values[is_good], tokens[is_good], numbers[is_good]
        keys = keys_of_spans(text, tokens[:, 0], tokens[:, 1]) if self._shape.has_keys else None
        return RowBatch(values, keys, numbers, self._stream.done(), int(bad.size))

    def _expected(self, token: NDArray[np.int64], fields: int, wrong: bytes | None) -> str:
        """What is wrong with a line, and which option decides."""
        dim = self._shape.dim
        if self._shape.has_keys:
            return (
                f"expected a token and {dim} numbers, {_found(token, fields, wrong, dim)} "
                "(--on-bad-row skip leaves such lines out; if line 1 names columns, --key-column "
                "says which has the keys)"
            )
        found = f"found {fields} fields" if fields < dim else "found more"
        if wrong:
            found = f"found {_shown(wrong)} where a number should be"
        return (
            f"expected {dim} numbers and nothing else, {found} (if the first field of each line "
            "is its key: --first-field key)"
        )

    def _check_promise(self, numbers: NDArray[np.int64], is_blank: NDArray[np.bool_]) -> None:
        """Count the lines that aren't blank, and compare their number with the header's."""
        before, promised = self._vectors, self._shape.row_count
        self._vectors += int(is_blank.size - np.count_nonzero(is_blank))
        skips = self._on_bad_row is OnBadRow.SKIP
        if promised is not None and self._vectors > promised and not skips:
            extra = int(np.flatnonzero(~is_blank)[promised - before])
            raise BadFile(
                f"{self._name}: line 1 promises {promised} rows, but line {numbers[extra]} is "
                "one more (--on-bad-row skip takes all there are)"
            )

    def _read_left(
        self, block: bytes, left: NDArray[np.int64], values: NDArray[np.float64]
    ) -> dict[int, bytes]:
        """Read the numbers that the kernel left; return lines with a bad field, and that field."""
        wrong: dict[int, bytes] = {}
        for line, column, begin, end in left.tolist():
            field = block[begin:end]
            number = decimal(field)
            if number is None:
                wrong[line] = field
                number = math.nan
            values[line, column] = number
        return wrong


def load_kernel() -> ModuleType:
    """The compiled loop. Loading numba takes half a second, and only text needs it."""
    from gatherd_server.loaders import text_kernel

    return text_kernel


def _find_blank_tokens(
    block: bytes, tokens: NDArray[np.int64], is_empty: NDArray[np.bool_]
) -> None:
    """Give a token of blanks to lines that begin with two or more and have no other token."""
    for line in np.flatnonzero(is_empty).tolist():
        begin = int(tokens[line, 0])
        end = begin
        while block[end] == ord(" "):
            end += 1
        if end - begin > 1:
            tokens[line] = (begin, end - 1, 0)


def _are_comments(text: NDArray[np.uint8], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the lines that end before `ends`, (n,), begin with "#"; bool (n,)."""
    return np.asarray(text[np.concatenate([[0], ends[:-1] + 1])] == COMMENT[0])


def _numbers_too_many(block: bytes, tokens: NDArray[np.int64]) -> dict[int, bytes]:
    """The lines whose token ends in a decimal, which must be one number too many."""
    found = {}
    for line in np.flatnonzero(tokens[:, 2]).tolist():
        last = block[tokens[line, 0] : tokens[line, 1]].split()[-1]
        if (b"." in last or b"e" in last) and decimal(last) is not None and last[-1:].isdigit():
            found[line] = b""
    return found


def _found(token: NDArray[np.int64], fields: int, wrong: bytes | None, dim: int) -> str:
    """The actual contents of a bad line."""
    length = int(token[1] - token[0])
    if length == 0:
        return f"found {fields} fields"
    if wrong == b"":
        return f"found a number more before the last {dim}"
    if wrong is not None:
        return f"found {_shown(wrong)} where a number should be"
    return f"found a token of {length} bytes; a key has at most {KEY_BYTES_MAX}"


def _shown(field: bytes) -> str:
    return repr(field[:FIELD_BYTES_SHOWN_MAX].decode("utf-8", "backslashreplace"))
