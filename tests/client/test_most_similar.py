"""gensim's most_similar, on both handles, held against NumPy; tests/peers asks gensim itself."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatherd import AsyncClient, Client, InvalidArgument, KeyNotFound
from support.cli import invoke

RNG = np.random.default_rng(11)
VECTORS = RNG.normal(size=(60, 6)).astype(np.float32)
WORDS = [f"w{row}" for row in range(60)]
UNITS = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("similar")
    lines = (
        f"{word} {' '.join(map(repr, row.tolist()))}"
        for word, row in zip(WORDS, VECTORS, strict=True)
    )
    (folder / "words.txt").write_text("\n".join(lines) + "\n")
    np.save(folder / "rows.npy", VECTORS)
    np.save(folder / "keys.npy", np.arange(60) * 10)
    data_dir = folder / "data"
    invoke("import", "words", folder / "words.txt", "--data-dir", data_dir)
    invoke("import", "plain", folder / "rows.npy", "--data-dir", data_dir)
    invoke(
        "import", "numbered", folder / "rows.npy", "--keys", folder / "keys.npy",
        "--data-dir", data_dir,
    )  # fmt: skip
    return data_dir


def nearest(query: Any, without: list[int], topn: int) -> list[tuple[int, float]]:
    scores = UNITS @ (query / np.linalg.norm(query))
    order = [row for row in np.argsort(-scores).tolist() if row not in without]
    return [(row, float(scores[row])) for row in order[:topn]]


def agree(found: list[tuple[Any, float]], expected: list[tuple[Any, float]]) -> None:
    assert [name for name, _ in found] == [name for name, _ in expected]
    np.testing.assert_allclose(
        [score for _, score in found], [score for _, score in expected], atol=1e-5
    )


CASES: list[tuple[dict[str, Any], list[int], list[int]]] = [
    ({"positive": "w3"}, [3], []),
    ({"positive": ["w3", "w4"], "topn": 5}, [3, 4], []),
    ({"positive": ["w3", b"w7"], "negative": "w9"}, [3, 7], [9]),
    ({"negative": ["w9"], "topn": 3}, [], [9]),
]


@pytest.mark.parametrize(("asked", "plus", "minus"), CASES)
def test_keys_as_numpy_finds_them(
    data_dir: Path, asked: dict[str, Any], plus: list[int], minus: list[int]
) -> None:
    query = UNITS[plus].sum(axis=0) - UNITS[minus].sum(axis=0)
    rows = nearest(query, [*plus, *minus], asked.get("topn", 10))
    expected = [(WORDS[row], score) for row, score in rows]
    with Client(f"local:{data_dir}") as client:
        agree(client["words"].most_similar(**asked), expected)

    async def ask() -> None:
        async with AsyncClient(f"local:{data_dir}") as client:
            agree(await client["words"].most_similar(**asked), expected)

    asyncio.run(ask())


def test_vectors_ids_and_integer_keys(data_dir: Path) -> None:
    vector = RNG.normal(size=6)
    with Client(f"local:{data_dir}") as client:
        words = client["words"]
        expected = [(WORDS[row], score) for row, score in nearest(vector, [], 10)]
        for given in (vector, vector.astype(np.float16).astype(np.float64), vector.tolist()):
            assert [name for name, _ in words.most_similar(given)][:3] == [
                name for name, _ in expected[:3]
            ]
        agree(words.most_similar(vector), expected)
        mixed = vector + UNITS[3]
        expected = [(WORDS[row], score) for row, score in nearest(mixed, [3], 4)]
        agree(words.most_similar([vector, "w3"], topn=4), expected)
        agree(client["plain"].most_similar(3), nearest(UNITS[3], [3], 10))
        numbered = [(row * 10, score) for row, score in nearest(UNITS[3], [3], 10)]
        agree(client["numbered"].most_similar(30), numbered)
        near = words.neighbors("w3", k=4, metric="dot")
        assert near.ids.shape == (4,)
        assert "w3" not in near._repr_html_()


def test_what_cannot_be_similar_is_refused(data_dir: Path) -> None:
    with Client(f"local:{data_dir}") as client:
        words = client["words"]
        with pytest.raises(InvalidArgument, match="none were given"):
            words.most_similar()
        with pytest.raises(KeyNotFound, match="'w333'; did you mean 'w33'"):
            words.most_similar("w333")
        with pytest.raises(InvalidArgument, match=r"the dims \[5, 6\]"):
            words.most_similar([np.ones(5), "w3"])
        with pytest.raises(InvalidArgument, match="a vector has one dimension"):
            words.most_similar(np.ones((1, 2, 6)))
