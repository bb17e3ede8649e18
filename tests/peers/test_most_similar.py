"""A handle's most_similar gives what gensim's KeyedVectors gives."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gensim.models import KeyedVectors

from gatherd import Client, TableHandle
from support.server import run_cli

VECTORS = np.random.default_rng(5).normal(size=(200, 16)).astype(np.float32)
WORDS = [f"w{row}" for row in range(200)]


@pytest.fixture(scope="module")
def theirs() -> Any:
    vectors = KeyedVectors(VECTORS.shape[1])
    vectors.add_vectors(WORDS, VECTORS)
    return vectors


@pytest.fixture(scope="module")
def ours(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TableHandle]:
    folder: Path = tmp_path_factory.mktemp("gensim")
    theirs.save_word2vec_format(folder / "words.bin", binary=True)
    run_cli("import", "words", folder / "words.bin", "--data-dir", folder / "data")
    with Client(f"local:{folder / 'data'}") as client:
        yield client["words"]


@pytest.mark.parametrize(
    "asked",
    [
        {"positive": "w3"},
        {"positive": ["w3"], "topn": 3},
        {"positive": ["w3", "w8"], "negative": ["w1"]},
        {"positive": [VECTORS[4] + 0.1, "w9"], "topn": 20},
        {"negative": ["w5", "w6"]},
    ],
    ids=str,
)
def test_the_same_neighbors_with_the_same_scores(
    ours: TableHandle, theirs: Any, asked: dict[str, Any]
) -> None:
    expected = theirs.most_similar(**asked)
    found = ours.most_similar(**asked)
    assert [word for word, _ in found] == [word for word, _ in expected]
    np.testing.assert_allclose(
        [score for _, score in found], [score for _, score in expected], atol=1e-5
    )


def test_the_rest_of_what_fingers_type(ours: TableHandle, theirs: Any) -> None:
    assert ours.vector_size == theirs.vector_size
    assert len(ours) == len(theirs)
    assert "w3" in ours
    assert "nope" not in ours
    np.testing.assert_array_equal(ours["w3"], theirs["w3"])
    np.testing.assert_array_equal(ours[["w3", "w4"]], theirs[["w3", "w4"]])
    assert ours.ids_of(["w3", "w4"]).tolist() == [
        theirs.key_to_index[word] for word in ("w3", "w4")
    ]
    assert ours.keys(prefix="w19").keys.tolist() == [w for w in WORDS if w.startswith("w19")]
