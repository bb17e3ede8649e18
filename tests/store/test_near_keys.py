"""A key without a row is answered with keys that were likely meant."""

import numpy as np
import pytest
from numpy.typing import NDArray

from gatherd.errors import KeyNotFound
from gatherd.store.key_index import KeyIndex, KeyKind
from gatherd.store.keys import StringKeys, as_keys
from gatherd.store.near_keys import EDITED_CHARS_MAX, near_keys
from gatherd_server.storage.files import Files
from gatherd_server.storage.key_index_writer import KeyIndexBuilder

# Ordered by how often they occur, as in files of word vectors.
WORDS = ["the", "king", "kings", "queen", "kind", "new_york", "Paris", "Zürich", "x" * 200]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> KeyIndex:
    folder = tmp_path_factory.mktemp("keys")
    with KeyIndexBuilder(Files(), folder, KeyKind.BYTES) as builder:
        builder.add(as_keys(WORDS))
        builder.finish()
    found = KeyIndex.open(folder)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("missing", "meant"),
    [
        ("King", "'king'"),
        ("KING", "'king'"),
        ("kingg", "'king' or 'kings'"),
        ("kng", "'king'"),
        ("kin", "'king' or 'kind'"),
        ("quene", "'queen'"),
        ("New York", "'new_york'"),
        ("new-york", "'new_york'"),
        (" king ", "'king'"),
        ("paris", "'Paris'"),
        ("ZÜRICH", "'Zürich'"),
        ("Züric", "'Zürich'"),
        ("dragon", None),
        ("\udcff", None),
        ("x" * 201, None),
    ],
)
def test_the_keys_that_may_have_been_meant(
    index: KeyIndex, missing: str, meant: str | None
) -> None:
    keys = as_keys([["the", missing], ["nothing-like-it", "king"]])
    error = index.not_found("words", keys, index.rows_of(keys))
    assert isinstance(error, KeyNotFound)
    assert "keys[0][1]=" in str(error)
    if meant is None:
        assert "did you mean" not in str(error)
    else:
        assert str(error).endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize("length", [EDITED_CHARS_MAX, EDITED_CHARS_MAX + 1, 1000])
def test_the_number_of_keys_that_are_tried_is_bounded(length: int) -> None:
    missing = "".join(map(chr, np.random.default_rng(1).integers(97, 123, length)))
    tried: list[int] = []

    def rows_of(keys: StringKeys) -> NDArray[np.int64]:
        tried.append(keys.size)
        return np.full(keys.size, -1)

    assert near_keys(missing, rows_of) == []
    assert sum(tried) < 60 * EDITED_CHARS_MAX
    assert bool(tried) is (length <= EDITED_CHARS_MAX)
