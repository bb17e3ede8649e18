"""The compiled answer: the typed door to answering.py and the modules beside it.

As with gatherd/store/kernels/compiled.py, numba is loaded at the first call or by `warm()`, and
everything is then compiled, or loaded from numba's cache, at once.
"""

from functools import cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray


@cache
def _answering() -> ModuleType:
    from gatherd_server.wire.compiled import answering

    return answering


def index_words(count: int) -> int:
    """Words of the index that `begin` takes for so many of CALL_INDEX_WORDS."""
    return count + count // 8 + 1


def warm() -> None:
    """Compile or load every kernel. Takes 0.1 s from the cache."""
    _answering()


def answer(request: bytes, message: int, call_at: int) -> int:
    """Answer `request`, a message of words.py, with the block CALL at an address.

    words.py has what is returned.
    """
    found: int = _answering().answer(np.frombuffer(request, np.uint8), message, call_at)
    return found


def begin(
    request: bytes,
    message: int,
    call_at: int,
    blocks: NDArray[np.int64],
    index: NDArray[np.int64],
    work_bytes: int,
) -> int:
    """Begin an answer in pieces, whose first takes so much work; answering.py has the rest."""
    given = np.frombuffer(request, np.uint8)
    found: int = _answering().begin(given, message, call_at, blocks, index, work_bytes)
    return found


def go_on(call_at: int, work_bytes: int) -> int:
    """Write another piece of an answer that was begun; its bytes."""
    found: int = _answering().go_on(call_at, work_bytes)
    return found


def enter_names(columns: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
    """Fill the zeroed hash table of a directory's `columns`, (tables, words.TABLE_WORDS)."""
    _answering().enter_names(columns.ctypes.data, len(columns), slots.ctypes.data, slots.size)
