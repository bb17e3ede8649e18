r"""Vectors as text: GloVe (no header), word2vec and fastText .vec (a first line "ROWS DIM").

A line is a token, then dim decimals, separated by blanks or tabs. Tokens are bytes, whatever they
mean, and may have blanks in them: the last dim fields are the vector. Blanks around a token, "\r"
at a line's end, blank lines and a UTF-8 byte order mark at the front count for nothing. A line that
begins with two blanks or more and has dim numbers has a token of blanks, one fewer.

Without a header, dim is what most of the first lines have: how many fields at the end of a line
are numbers, but not the whole of it. With one it has to agree with that too, or a wrong header
would make numbers part of the tokens. For the same reason a token with blanks whose last word is a
decimal ("word 0.25") is taken for a line with a number too many; "catch 22" is a token.

Where the first lines hold nothing but numbers, as numpy.savetxt and the projector's tensors.tsv
have them, the first of each is part of the vector if it has a point or exponent anywhere. If they
all are integers nobody can tell, and `FirstField` has to. Such files may have commas or semicolons
between the numbers, and comments, lines that begin with "#".
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.key_index import KEY_BYTES_MAX, KeyKind
from gatherd_server.loaders.batches import OnBadRow, RowBatch, RowSource, keys_of_spans
from gatherd_server.loaders.limits import BATCH_BYTES, LINE_BYTES_MAX
from gatherd_server.loaders.streams import ByteStream

SAMPLE_BYTES = 256 << 10
SAMPLE_LINES_MAX = 64
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FIELD_BYTES_SHOWN_MAX = 40
_COMMENT = b"#"
_SEPARATORS = (b",", b";")


class FirstField(Enum):
    """What the first field of a line is: the row's key, or a number of its vector."""

    KEY = "key"
    NUMBER = "number"


@dataclass(frozen=True, slots=True)
class TextShape:
    """What the front of a text file says.

    `row_count` is None and `header` False without a header. Without keys (`has_keys`) a line is
    all vector; `separator` is what stands between its numbers other than blanks.
    """

    dim: int
    row_count: int | None
    header: bool
    has_keys: bool = True
    separator: bytes = b" "

    @property
    def format(self) -> str:
        """What such a file is called."""
        if not self.has_keys:
            return "text of numbers"
        return "word2vec text" if self.header else "GloVe text"


def text_shape(
    stream: ByteStream, first_field: FirstField | None = None, *, has_other_keys: bool = False
) -> TextShape | None:
    """The shape of the vectors in `stream`, which isn't moved; None when it isn't such text.

    Where its rows have keys from elsewhere (`has_other_keys`), numbers alone are numbers.

    BadFile when the header is wrong; InvalidArgument when only `first_field` can say what the first
    numbers are, or says what can't be.
    """
    lines = first_lines(stream)
    header = header_of(lines[0]) if lines else None
    if header is not None and len(lines) > 1 and _is_binary(lines, header[1]):
        return None
    if header is not None and len(lines) == 1:
        return TextShape(header[1], header[0], True) if header[0] == 0 else None
    numbers = _shape_of_numbers(stream.name, lines, first_field, has_other_keys)
    if numbers is not None:
        return numbers
    lengths = Counter(map(_trailing_numbers, lines if header is None else lines[1:]))
    lengths.pop(0, None)
    if not lengths:
        return None
    if _have_commas(lines):
        return None
    most = max(lengths.values())
    # Of as many, the longest: too large a dim is an error soon, too small a one makes odd tokens.
    dim = max(length for length, count in lengths.items() if count == most)
    if header is None:
        return TextShape(dim, None, False)
    if header[1] != dim:
        # "5 3" can be the token 5 and its vector: only what follows tells.
        if dim == 1:
            return TextShape(1, None, False)
        raise BadFile(
            f"{stream.name}: line 1 says {header[1]} numbers a line, the lines after it have {dim}"
        )
    return TextShape(dim, header[0], True)


def _have_commas(lines: list[bytes]) -> bool:
    """Whether most lines have something other than blanks between their fields."""
    fields = [line.split() for line in lines[1:] or lines]
    count = sum(any(field.endswith(_SEPARATORS) for field in line[:-1]) for line in fields)
    return 2 * count > len(fields)


def _shape_of_numbers(
    name: str, lines: list[bytes], first_field: FirstField | None, has_other_keys: bool
) -> TextShape | None:
    """The shape of lines that have nothing but numbers in them; else None."""
    rows = [line for line in lines if not line.lstrip().startswith(_COMMENT)]
    separator = next((mark for mark in _SEPARATORS if rows and mark in rows[0]), b" ")
    split = [line.replace(separator, b" ").split() for line in rows]
    is_plain = bool(split) and all(_number(field) is not None for line in split for field in line)
    # A line that has more or fewer is for the reader to tell of.
    dim = Counter(map(len, split)).most_common(1)[0][0] if split else 0
    header = header_of(rows[0]) if rows else None
    if header is not None and header[1] == dim - 1 and first_field is None:
        # "ROWS DIM" before lines of a key and DIM numbers; "5 1" can be numbers itself.
        is_plain = is_plain and dim == 2 and header[0] < len(split) - 1
    if not is_plain:
        if first_field is FirstField.NUMBER:
            raise InvalidArgument(
                f"{name}: its first lines aren't numbers alone; leave --first-field number out"
            )
        return None
    if first_field is None:
        are_integers = all(fields[0].lstrip(b"+-").isdigit() for fields in split)
        if are_integers and not has_other_keys:
            raise InvalidArgument(
                f"{name}: its first {len(split)} lines hold {dim} numbers each, and the first "
                "could be a key: say --first-field key, or --first-field number when all of them "
                "are the vector"
            )
        first_field = FirstField.NUMBER
    if first_field is FirstField.KEY:
        return TextShape(dim - 1, None, False, True, separator) if dim > 1 else None
    return TextShape(dim, None, False, False, separator)


def header_of(line: bytes) -> tuple[int, int] | None:
    """Rows and dim when `line` is a header, else None."""
    fields = line.split()
    if len(fields) == 2 and all(field.isdigit() and len(field) < 19 for field in fields):
        return int(fields[0]), int(fields[1])
    return None


def _is_binary(lines: list[bytes], dim: int) -> bool:
    """Whether what follows the header "ROWS DIM" is word2vec's binary form.

    Then the first token isn't followed by decimals: 4 * dim bytes that all look like them are as
    good as impossible. Tokens with blanks in them are text that this takes for binary, but for
    their line's end.
    """
    after_token = lines[1].partition(b" ")[2][: 4 * dim]
    decimals = not after_token.strip(b"0123456789+-.eE \t\r")
    return not (after_token and decimals) and _trailing_numbers(lines[1]) < max(1, dim)


def first_lines(stream: ByteStream) -> list[bytes]:
    """The first lines that aren't blank; of a cut one only what is whole."""
    size = SAMPLE_BYTES
    while True:
        head = stream.peek(size)
        is_whole = len(head) < size
        lines = head.removeprefix(BYTE_ORDER_MARK).split(b"\n")
        if not is_whole:
            lines.pop()
        lines = [line for line in lines if line.strip()]
        if is_whole or len(lines) > 1 or size >= LINE_BYTES_MAX:
            return lines[:SAMPLE_LINES_MAX]
        size *= 4


def _trailing_numbers(line: bytes) -> int:
    """How many fields at the end of `line` are numbers, without the first field."""
    count = 0
    for field in reversed(line.split()[1:]):
        if _number(field) is None:
            break
        count += 1
    return count


def _number(field: bytes) -> float | None:
    # float() takes 1_0 for 10, which no other program writes or reads.
    if b"_" in field:
        return None
    try:
        return float(field)
    except ValueError:
        return None


def text_source(stream: ByteStream, shape: TextShape, on_bad_row: OnBadRow) -> RowSource:
    """The vectors of a text file, read in one pass; tokens become the keys."""
    return RowSource(
        stream.name,
        shape.format,
        DType.FLOAT64,
        DType.FLOAT32,
        shape.dim,
        # What a header promises isn't taken for granted: nothing is reserved by it.
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
        # Lines that came before the block at hand, and those of them that weren't blank.
        self._lines = 0
        self._vectors = 0

    def batches(self) -> Iterator[RowBatch]:
        kernel = load_kernel()
        if self._stream.peek(3) == BYTE_ORDER_MARK:
            self._stream.skip(3)
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
        # At least two bytes a number; pages that aren't written to are no memory.
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
        """Count the lines that aren't blank, and hold them against the header."""
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
        """Read what the kernel left; the lines with a field that is no number, and that field."""
        wrong: dict[int, bytes] = {}
        for line, column, begin, end in left.tolist():
            field = block[begin:end]
            number = _number(field)
            if number is None:
                wrong[line] = field
                number = math.nan
            values[line, column] = number
        return wrong


def load_kernel() -> ModuleType:
    """The compiled loop; numba takes half a second to load, which only text needs."""
    from gatherd_server.loaders import text_kernel

    return text_kernel


def _find_blank_tokens(
    block: bytes, tokens: NDArray[np.int64], is_empty: NDArray[np.bool_]
) -> None:
    """Give the lines that begin with two blanks or more and have no other token one of blanks."""
    for line in np.flatnonzero(is_empty).tolist():
        begin = int(tokens[line, 0])
        end = begin
        while block[end] == ord(" "):
            end += 1
        if end - begin > 1:
            tokens[line] = (begin, end - 1, 0)


def _are_comments(text: NDArray[np.uint8], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the lines that end before `ends`, (n,), begin with "#"; bool (n,)."""
    return np.asarray(text[np.concatenate([[0], ends[:-1] + 1])] == _COMMENT[0])


def _numbers_too_many(block: bytes, tokens: NDArray[np.int64]) -> dict[int, bytes]:
    """The lines whose token ends in what must be one more number of the vector."""
    found = {}
    for line in np.flatnonzero(tokens[:, 2]).tolist():
        last = block[tokens[line, 0] : tokens[line, 1]].split()[-1]
        if (b"." in last or b"e" in last) and _number(last) is not None and last[-1:].isdigit():
            found[line] = b""
    return found


def _found(token: NDArray[np.int64], fields: int, wrong: bytes | None, dim: int) -> str:
    """What a bad line has instead."""
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
