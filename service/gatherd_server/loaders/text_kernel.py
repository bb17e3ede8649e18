"""The compiled loop that reads decimals from text. text.py imports it when it first needs it.

Take a number of at most 19 digits that make an integer of at most 2**53, with a power of ten of at
most 22. It is that integer times or divided by the power. Both are exact in float64, so the
operation's single rounding is the right one (Clinger 1990). Nearly every number in a file of
vectors is such a number; the others are left to Python's float(), which is as exact.

Lines are read from their end: the last fields are the vector, the rest is the token.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numba import types

_F = TypeVar("_F", bound=Callable[..., Any])

_ONE = np.uint64(1)
_TEN = np.uint64(10)
_EXACT_MAX = np.uint64(2**53)
_POWERS = 10.0 ** np.arange(23)

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_INT64 = types.Array(types.int64, 1, "C")


def compiled(signature: Any) -> Callable[[_F], _F]:
    """Compile for `signature`, and cache the code for the next process if possible."""

    def decorate(function: _F) -> _F:
        try:
            made: _F = numba.njit(signature, nogil=True, cache=True)(function)
        except Exception:  # noqa: BLE001  # numba's cache fails in every way a file system can
            # No folder to write to, a full disk, a damaged file: only the start is slower.
            made = numba.njit(signature, nogil=True)(function)
        return made

    return decorate


@compiled(
    types.int64(
        _BYTES,
        types.Array(types.int64, 1, "C", readonly=True),
        types.int64,
        types.Array(types.float64, 2, "C"),
        types.Array(types.int64, 2, "C"),
        _INT64,
        types.Array(types.int64, 2, "C"),
    )
)
def parse_lines(  # noqa: C901  # one loop: as one it takes 0.3 s of an import
    text: Any, line_ends: Any, dim: Any, values: Any, tokens: Any, fields: Any, left: Any
) -> int:
    """Read the lines of `text`, uint8, that end before `line_ends`, int64 (n,).

    Fills `values`, float64 (n, dim); `tokens`, int64 (n, 3), each token's begin, end and number of
    blanks; and `fields`, int64 (n,), the number of a line's numbers, at most `dim`.
    A number that isn't read here is put into `left`, int64 (m, 4), as line, column, begin and end;
    returns the number of those. m must be enough for all numbers that the text can have.
    """
    left_count = 0
    start = np.uint64(0)
    for line in range(line_ends.size):
        end_of_line = np.uint64(line_ends[line])
        at = end_of_line
        count = 0
        while count < dim:
            while at > start and (
                text[at - _ONE] == 32 or text[at - _ONE] == 9 or text[at - _ONE] == 13
            ):
                at -= _ONE
            if at == start:
                break
            end = at
            # From the back: the digits so far as an integer, and the next digit's weight.
            mantissa = np.uint64(0)
            place = _ONE
            digits = 0
            decimals = -1
            exponent: Any = 0
            has_exponent = False
            minus = False
            is_signed = False
            is_simple = True
            while at > start:
                byte = text[at - _ONE]
                if byte == 32 or byte == 9:
                    break
                at -= _ONE
                digit = np.uint8(byte - np.uint8(48))
                if digit < 10:
                    if is_signed:
                        is_simple = False
                    mantissa += place * np.uint64(digit)
                    place *= _TEN
                    digits += 1
                elif byte == 46:
                    if is_signed or decimals >= 0:
                        is_simple = False
                    decimals = digits
                elif byte == 45 or byte == 43:
                    if is_signed:
                        is_simple = False
                    is_signed = True
                    minus = byte == 45
                elif byte == 101 or byte == 69:
                    if has_exponent or decimals >= 0 or digits == 0 or digits > 3:
                        is_simple = False
                    exponent = np.int64(mantissa)
                    if minus:
                        exponent = -exponent
                    has_exponent = True
                    mantissa = np.uint64(0)
                    place = _ONE
                    digits = 0
                    minus = False
                    is_signed = False
                else:
                    is_simple = False
            count += 1
            if decimals > 0:
                exponent -= decimals
            if is_simple and 0 < digits <= 19 and mantissa <= _EXACT_MAX and -22 <= exponent <= 22:
                value = np.float64(mantissa)
                if exponent < 0:
                    value /= _POWERS[-exponent]
                else:
                    value *= _POWERS[exponent]
                values[line, dim - count] = -value if minus else value
            else:
                left[left_count, 0] = line
                left[left_count, 1] = dim - count
                left[left_count, 2] = at
                left[left_count, 3] = end
                left_count += 1
        while at > start and (text[at - _ONE] == 32 or text[at - _ONE] == 9):
            at -= _ONE
        while start < at and (text[start] == 32 or text[start] == 9):
            start += _ONE
        blanks = 0
        for position in range(start, at):
            if text[position] == 32 or text[position] == 9:
                blanks += 1
        tokens[line, 0] = start
        tokens[line, 1] = at
        tokens[line, 2] = blanks
        fields[line] = count
        start = end_of_line + _ONE
    return left_count
