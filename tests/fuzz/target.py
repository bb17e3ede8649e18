"""A decoder to be fuzzed: valid bytes to begin with, and what has to hold whatever they become."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Check = Callable[[bytes], object]
"""Feeds bytes to a decoder. Returns when it gave the right result or raised the error that is
documented; AssertionError for a wrong result, and whatever else it raised."""


@dataclass(frozen=True, slots=True)
class Target:
    """One decoder."""

    name: str
    seeds: Sequence[bytes]
    check: Check
