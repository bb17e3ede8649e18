r"""The shape of a text of vectors from its first lines: GloVe, word2vec, fastText .vec, or numbers.

Without a header, dim is the count that most of the first lines share: the numbers at the end of a
line, its first field excluded. A header must agree with this count, or a wrong one would make
numbers part of the tokens. For the same reason a token with blanks whose last word is a decimal
("word 0.25") is taken for a line with a number too many; "catch 22" is a token.

If the first lines have only numbers, as numpy.savetxt and the projector's tensors.tsv write them,
the first of each is part of the vector if it has a point or exponent in any line. If these are all
integers, only `FirstField` can decide. Such files may have commas or semicolons between the
numbers, and comments, which are lines that begin with "#".
"""

from collections import Counter
from dataclasses import dataclass
from enum import Enum

from gatherd.errors import BadFile, InvalidArgument
from gatherd_server.loaders.limits import LINE_BYTES_MAX
from gatherd_server.loaders.streams import ByteStream

SAMPLE_BYTES = 256 << 10
SAMPLE_LINES_MAX = 64
COMMENT = b"#"
_SEPARATORS = (b",", b";")


class FirstField(Enum):
    """The meaning of a line's first field: the row's key, or a number of its vector."""

    KEY = "key"
    NUMBER = "number"


@dataclass(frozen=True, slots=True)
class TextShape:
    """The shape of a text file, from its first lines.

    `row_count` is None and `header` False without a header. Without keys (`has_keys`) a line is
    only its vector; `separator` is the character between its numbers, if not a blank.
    """

    dim: int
    row_count: int | None
    header: bool
    has_keys: bool = True
    separator: bytes = b" "

    @property
    def format(self) -> str:
        """The name of the file's format."""
        if not self.has_keys:
            return "text of numbers"
        return "word2vec text" if self.header else "GloVe text"


def text_shape(
    stream: ByteStream, first_field: FirstField | None = None, *, has_other_keys: bool = False
) -> TextShape | None:
    """The shape of the vectors in `stream`, which isn't moved; None when it isn't such text.

    If its rows get keys from elsewhere (`has_other_keys`), lines of only numbers have no tokens.

    BadFile when the header is wrong; InvalidArgument when only `first_field` can decide what the
    first numbers mean, or doesn't fit the lines.
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
    rows = lines if header is None else lines[1:]
    lengths = Counter(map(_trailing_decimals, rows))
    lengths.pop(0, None)
    # Some lines of a log or an archive end in numbers too; importing only those would be wrong.
    if 2 * sum(lengths.values()) < len(rows) or not lengths or _have_commas(lines):
        return None
    most = max(lengths.values())
    # On a tie the largest: too large a dim is an error soon, too small a one makes odd tokens.
    dim = max(length for length, count in lengths.items() if count == most)
    if header is None:
        return TextShape(dim, None, False)
    if header[1] != dim:
        # "5 3" can be the token 5 and its vector; only the next lines show it.
        if dim == 1:
            return TextShape(1, None, False)
        raise BadFile(
            f"{stream.name}: line 1 says {header[1]} numbers a line, the lines after it have {dim}"
        )
    return TextShape(dim, header[0], True)


def _have_commas(lines: list[bytes]) -> bool:
    """Whether most lines separate their fields by another character than blanks."""
    fields = [line.split() for line in lines[1:] or lines]
    count = sum(any(field.endswith(_SEPARATORS) for field in line[:-1]) for line in fields)
    return 2 * count > len(fields)


def _shape_of_numbers(
    name: str, lines: list[bytes], first_field: FirstField | None, has_other_keys: bool
) -> TextShape | None:
    """The shape of lines that have only numbers in them; else None."""
    rows = [line for line in lines if not line.startswith(COMMENT)]
    separator = next((mark for mark in _SEPARATORS if rows and mark in rows[0]), b" ")
    split = [line.replace(separator, b" ").split() for line in rows]
    is_plain = (
        bool(split)
        and all(split)
        and all(decimal(field) is not None for line in split for field in line)
    )
    # The reader will report a line that has more or fewer.
    dim = Counter(map(len, split)).most_common(1)[0][0] if split else 0
    header = header_of(rows[0]) if rows else None
    if header is not None and header[1] == dim - 1 and first_field is None:
        # "ROWS DIM" before lines of a key and DIM numbers; but "5 1" may itself be numbers.
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
    """Whether word2vec's binary form follows the header "ROWS DIM".

    There decimals don't follow the first token: 4 * dim bytes that all look like decimals are as
    good as impossible. In text whose first token has a blank they don't either, so enough numbers
    at the line's end mean text as well.
    """
    after_token = lines[1].partition(b" ")[2][: 4 * dim]
    decimals = not after_token.strip(b"0123456789+-.eE \t\r")
    return not (after_token and decimals) and _trailing_decimals(lines[1]) < max(1, dim)


def first_lines(stream: ByteStream) -> list[bytes]:
    """The first lines that aren't blank, without one that the sample cuts off."""
    size = SAMPLE_BYTES
    while True:
        head = stream.peek(size)
        is_whole = len(head) < size
        lines = head.split(b"\n")
        if not is_whole:
            lines.pop()
        lines = [line for line in lines if line.strip()]
        if is_whole or len(lines) > 1 or size >= LINE_BYTES_MAX:
            return lines[:SAMPLE_LINES_MAX]
        size *= 4


def _trailing_decimals(line: bytes) -> int:
    """The number of fields at the end of `line` that are numbers, the first field excluded."""
    count = 0
    for field in reversed(line.split()[1:]):
        if decimal(field) is None:
            break
        count += 1
    return count


def decimal(field: bytes) -> float | None:
    """The number in `field`, as Python reads it; None when it isn't one."""
    # float() reads 1_0 as 10; no other program writes or reads that.
    if b"_" in field:
        return None
    try:
        return float(field)
    except ValueError:
        return None
