"""What can befall bytes: bits that flip, ends that are cut, lengths that lie, foreign parts."""

import re
from collections.abc import Sequence

from hypothesis import strategies as st

BYTES_MAX = 1 << 16
OPERATIONS_MAX = 6
# Lengths and counts that overflow something, in the widths that formats have.
_NUMBERS = (0, 1, 7, 127, 128, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**53 + 1, 2**62,
            2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
_TEXTS = (
    *(str(number).encode() for number in (*_NUMBERS, -1, -(2**63), 10**40)),
    b"1e999", b"nan", b"-0.0", b"0x10", b"1_0", b"true", b"null", b'""', b"[]", b"{}", b"[" * 2000,
)  # fmt: skip
_DIGITS = re.compile(rb"-?[0-9]+")

Operation = tuple[int, int, int]
"""Which one, where (of 2**16 parts of the bytes), and how much."""


def mutated(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of `seeds`, changed by up to OPERATIONS_MAX operations; now and then as it is."""
    operation = st.tuples(
        st.integers(0, len(_OPERATIONS) - 1), st.integers(0, 65_535), st.integers(0, 65_535)
    )
    return st.builds(
        lambda which, other, operations: _apply(seeds[which], seeds[other], operations),
        st.integers(0, len(seeds) - 1),
        st.integers(0, len(seeds) - 1),
        st.lists(operation, max_size=OPERATIONS_MAX),
    )


def _apply(seed: bytes, other: bytes, operations: list[Operation]) -> bytes:
    data = seed
    for kind, where, amount in operations:
        at = where * len(data) >> 16
        data = _OPERATIONS[kind](data, at, amount, other)[:BYTES_MAX]
    return data


def _flip(data: bytes, at: int, amount: int, _other: bytes) -> bytes:
    return data[:at] + bytes((data[at] ^ 1 << amount % 8,)) + data[at + 1 :] if data else data


def _cut(data: bytes, at: int, _amount: int, _other: bytes) -> bytes:
    return data[:at]


def _without(data: bytes, at: int, amount: int, _other: bytes) -> bytes:
    return data[:at] + data[at + 1 + amount % 64 :]


def _twice(data: bytes, at: int, amount: int, _other: bytes) -> bytes:
    end = at + 1 + amount % 256
    return data[:end] + data[at:end] + data[end:]


def _byte(data: bytes, at: int, amount: int, _other: bytes) -> bytes:
    return data[:at] + bytes((amount & 255,)) + data[at + 1 :]


def _insert(data: bytes, at: int, amount: int, _other: bytes) -> bytes:
    return data[:at] + bytes((amount & 255,)) * (1 + (amount >> 8) % 32) + data[at:]


def _number(data: bytes, at: int, amount: int, _other: bytes) -> bytes:
    width = (1, 2, 4, 8)[amount % 4]
    value = _NUMBERS[(amount >> 3) % len(_NUMBERS)] % (1 << 8 * width)
    order = "big" if amount & 4 else "little"
    return data[:at] + value.to_bytes(width, order) + data[at + width :]  # type: ignore[arg-type]  # a literal


def _digits(data: bytes, at: int, amount: int, _other: bytes) -> bytes:
    match = _DIGITS.search(data, at) or _DIGITS.search(data)
    if match is None:
        return data
    return data[: match.start()] + _TEXTS[amount % len(_TEXTS)] + data[match.end() :]


def _splice(data: bytes, at: int, amount: int, other: bytes) -> bytes:
    return data[:at] + other[amount * len(other) >> 16 :]


def _swap(data: bytes, at: int, amount: int, _other: bytes) -> bytes:
    then = amount * len(data) >> 16
    begin, end = min(at, then), max(at, then)
    size = min(16, end - begin)
    first, second = data[begin : begin + size], data[end : end + size]
    return data[:begin] + second + data[begin + size : end] + first + data[end + size :]


_OPERATIONS = (_flip, _cut, _without, _twice, _byte, _insert, _number, _digits, _splice, _swap)
