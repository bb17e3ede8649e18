"""The keys of a table that a missing one may have been meant for.

A hash index can't be searched for similar keys, but it can be asked for every key at a distance of
one edit. Those are some 50 for each character, so the cost is bounded: half a millisecond for
the longest key that is tried. Rows of word vectors are ordered by how often a word occurs, so of
several the first row is the likeliest.

Left out on purpose: two edits, which are thousands of keys; and integer keys, which nobody spells.
"""

from collections.abc import Callable, Iterator
from string import ascii_lowercase
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gatherd.store.keys import StringKeys

EDITED_CHARS_MAX: Final = 20
NEAR_MAX: Final = 3


def near_keys(
    missing: str, rows_of: Callable[[StringKeys], NDArray[np.int64]], count: int = NEAR_MAX
) -> list[str]:
    """At most `count` keys that have a row, in another case or one edit away from `missing`.

    `rows_of` has the row of each key, −1 for none.
    """
    if not 0 < len(missing) <= EDITED_CHARS_MAX:
        return []
    found: dict[str, None] = {}
    for candidates, by_row in ((_recased(missing), False), (_edited(missing), True)):
        texts = [text for text in dict.fromkeys(candidates) if text and text != missing]
        if not texts:
            continue
        rows = rows_of(StringKeys.of([_encoded(text) for text in texts]))
        places = np.flatnonzero(rows >= 0)
        if by_row:
            places = places[np.argsort(rows[places], kind="stable")]
        found |= dict.fromkeys(texts[place] for place in places[:count])
    return list(found)[:count]


def _recased(text: str) -> Iterator[str]:
    """The text in other cases, and with other marks between its words."""
    marked = [text, *(text.replace(mark, other) for mark in " _-" for other in " _-")]
    for one in (text.strip(), *marked):
        yield from (one, one.lower(), one.capitalize(), one.title(), one.upper())


def _edited(text: str) -> Iterator[str]:
    for i in range(len(text) + 1):
        head, tail = text[:i], text[i:]
        yield head + tail[1:]
        if len(tail) > 1:
            yield head + tail[1] + tail[0] + tail[2:]
        for letter in ascii_lowercase:
            yield head + letter + tail
            if tail:
                yield head + letter + tail[1:]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
