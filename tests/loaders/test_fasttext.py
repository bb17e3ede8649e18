"""A fastText model comes in with the vectors that the program would compose, or is refused.

The judge is the layout and the formula written down here once more; tests/peers has gensim.
"""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gatherd.errors import BadFile, InvalidArgument
from loaders.harness import run_import

WORDS = ["</s>", "king", "naïve", "日本語", "a", "🦆"]
DIM = 7
BUCKETS = 50


def model(
    *,
    minn: int = 3,
    maxn: int = 6,
    buckets: int = BUCKETS,
    quantised: bool = False,
    version: int = 12,
    labels: tuple[str, ...] = (),
    pruned: int = -1,
) -> bytes:
    rows = matrix(buckets)
    head = struct.pack("<ii", 793712314, version)
    head += struct.pack("<12id", DIM, 5, 5, 1, 5, 1, 2, 2, buckets, minn, maxn, 100, 1e-4)
    entries = [*WORDS, *labels]
    head += struct.pack("<iiiqq", len(entries), len(WORDS), len(labels), 99, pruned)
    for entry in entries:
        head += entry.encode() + b"\0" + struct.pack("<qb", 3, entry in labels)
    return head + struct.pack("<?qq", quantised, *rows.shape) + rows.tobytes() + b"output"


def matrix(buckets: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(len(WORDS) + buckets, DIM)).astype(np.float32)


def composed(word: str, minn: int, maxn: int, buckets: int = BUCKETS) -> NDArray[np.float32]:
    """A word's vector as fastText's Dictionary and FastText::getWordVector make it."""
    rows = matrix(buckets)
    used = [rows[WORDS.index(word)]] if word in WORDS else []
    marked = f"<{word}>"
    for start in range(len(marked) if word != "</s>" else 0):
        for length in range(max(minn, 1), maxn + 1):
            ngram = marked[start : start + length]
            at_edge = start == 0 or start + length == len(marked)
            if len(ngram) < length or (length == 1 and at_edge):
                continue
            hashed = 2166136261
            for byte in ngram.encode():
                signed = byte - 256 if byte >= 128 else byte
                hashed = ((hashed ^ (signed & 0xFFFFFFFF)) * 16777619) & 0xFFFFFFFF
            used.append(rows[len(WORDS) + hashed % buckets])
    return np.asarray(np.mean(used, axis=0))


@pytest.mark.parametrize(("minn", "maxn"), [(3, 6), (1, 2), (2, 2), (0, 0)])
@pytest.mark.parametrize("labels", [(), ("__label__x",)])
def test_a_word_has_its_own_row_and_those_of_its_ngrams(
    tmp_path: Path, minn: int, maxn: int, labels: tuple[str, ...]
) -> None:
    (tmp_path / "m.bin").write_bytes(model(minn=minn, maxn=maxn, labels=labels))
    done = run_import(tmp_path / "d", tmp_path / "m.bin")
    assert done.keys == [word.encode() for word in WORDS]
    assert done.summary.format == "fastText"
    expected = [composed(word, minn, maxn) for word in WORDS]
    np.testing.assert_allclose(done.rows, expected, rtol=1e-5, atol=1e-6)


def test_unknown_words_get_vectors_where_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.bin").write_bytes(model())
    (tmp_path / "words").write_text("\ufeffkings\n\nking\nnaïveté\r\nkings\n")
    for size in (1, 4 << 20):
        monkeypatch.setattr("gatherd_server.loaders.fasttext.BATCH_BYTES", size)
        done = run_import(tmp_path / "d", tmp_path / "m.bin", words=str(tmp_path / "words"))
        expected = [*WORDS, "kings", "naïveté"]
        assert done.keys == [word.encode() for word in expected]
        np.testing.assert_allclose(
            done.rows, [composed(word, 3, 6) for word in expected], rtol=1e-5, atol=1e-6
        )


def test_a_client_can_compose_any_word_from_the_ngrams(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(model())
    done = run_import(tmp_path / "d", f"{tmp_path}/m.bin#ngrams")
    assert done.table.keys is None
    np.testing.assert_array_equal(done.rows, matrix(BUCKETS)[len(WORDS) :])


def test_a_word_without_ngrams_has_no_vector(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(model(minn=5, maxn=6))
    (tmp_path / "words").write_text("queen\nx\n")
    with pytest.raises(BadFile, match=r"word 8 b'x' has no n-grams of 5 to 6 .*--on-bad-row skip"):
        run_import(tmp_path / "d", tmp_path / "m.bin", words=str(tmp_path / "words"))
    done = run_import(
        tmp_path / "d", tmp_path / "m.bin", words=str(tmp_path / "words"), on_bad_row="skip"
    )
    assert done.keys[-1] == b"queen"
    assert done.summary.bad_rows == 1
    (tmp_path / "m.bin").write_bytes(model(minn=0, maxn=0, buckets=0))
    with pytest.raises(InvalidArgument, match=r"trained without n-grams .* leave --words out"):
        run_import(tmp_path / "d", tmp_path / "m.bin", words=str(tmp_path / "words"))
    with pytest.raises(InvalidArgument, match="has no part 'ngrams'"):
        run_import(tmp_path / "d", f"{tmp_path}/m.bin#ngrams")
    np.save(tmp_path / "a.npy", matrix(3))
    with pytest.raises(InvalidArgument, match=r"is \.npy, so leave --words out"):
        run_import(tmp_path / "d", tmp_path / "a.npy", words=str(tmp_path / "words"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (model(quantised=True), r"is a quantised fastText model \(\.ftz\); import the model it"),
        (model(pruned=7), "is a pruned fastText model"),
        (model(version=13), "of version 13; 11 and 12 are read"),
        (model(maxn=70), "the front of it is no fastText model's"),
    ],
)
def test_what_is_not_read_says_what_to_do(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises(BadFile, match=message):
        run_import(tmp_path / "d", tmp_path / "m.bin")


def test_a_truncated_model_is_refused_at_every_byte(tmp_path: Path) -> None:
    whole = model().removesuffix(b"output")
    for length in [*range(4, 300, 3), *range(300, len(whole), 97)]:
        (tmp_path / "m.bin").write_bytes(whole[:length])
        with pytest.raises(BadFile, match=r"truncated|damaged"):
            run_import(tmp_path / "d", tmp_path / "m.bin")


@pytest.mark.parametrize("damage", [lambda x: b"\xff" * len(x), lambda x: bytes(len(x))])
def test_a_damaged_front_is_refused_or_harmless(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    whole = model()
    for place in range(8, 260, 5):
        (tmp_path / "m.bin").write_bytes(
            whole[:place] + damage(whole[place : place + 4]) + whole[place + 4 :]
        )
        try:
            done = run_import(tmp_path / "d", tmp_path / "m.bin", on_nonfinite="keep")
        except BadFile:
            continue
        assert done.table.dim == DIM
