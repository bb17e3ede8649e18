"""What gensim writes comes in as gensim has it."""

from pathlib import Path

import numpy as np
import pytest
from gensim.models import Doc2Vec, FastText, KeyedVectors, Word2Vec
from gensim.models.doc2vec import TaggedDocument
from gensim.models.fasttext import load_facebook_model, save_facebook_model

from gatherd.errors import BadFile
from loaders.harness import run_import

WORDS = ["king", "queen", "naïve", "日本", "new_york", "a.b", "3", "1e5", "🦆"]


def vectors(dtype: type[np.floating] = np.float32) -> KeyedVectors:
    made = KeyedVectors(vector_size=20, dtype=dtype)
    rows = np.random.default_rng(0).normal(size=(len(WORDS), 20))
    made.add_vectors(WORDS, rows.astype(dtype))
    return made


@pytest.mark.parametrize("packing", ["", ".gz"])
@pytest.mark.parametrize("binary", [False, True])
def test_word2vec_format_comes_in_with_and_without_its_header(
    tmp_path: Path, binary: bool, packing: str
) -> None:
    made = vectors()
    path = tmp_path / f"v{packing}"
    made.save_word2vec_format(str(path), binary=binary)
    done = run_import(tmp_path / "d", path)
    assert done.keys == [word.encode() for word in WORDS]
    np.testing.assert_array_equal(done.rows, made.vectors)
    if not binary:
        made.save_word2vec_format(str(path), write_header=False)
        done = run_import(tmp_path / "d", path)
        assert done.keys == [word.encode() for word in WORDS]
        np.testing.assert_array_equal(done.rows, made.vectors)


def test_what_gensim_reads_we_read_alike(tmp_path: Path) -> None:
    lines = [f"w{number} " + " ".join(f"{x:.4g}" for x in row) for number, row in
             enumerate(np.random.default_rng(1).normal(size=(500, 7)) * 1e-4)]  # fmt: skip
    (tmp_path / "v.vec").write_text("500 7\n" + "".join(line + " \n" for line in lines))
    theirs = KeyedVectors.load_word2vec_format(str(tmp_path / "v.vec"))
    ours = run_import(tmp_path / "d", tmp_path / "v.vec")
    np.testing.assert_array_equal(ours.rows, theirs.vectors)
    assert ours.keys == [key.encode() for key in theirs.index_to_key]


@pytest.mark.parametrize(("minn", "maxn"), [(3, 6), (1, 3)])
def test_a_fasttext_model_gives_the_vectors_that_gensim_gives(
    tmp_path: Path, minn: int, maxn: int
) -> None:
    rng = np.random.default_rng(0)
    sentences = [[WORDS[word] for word in rng.integers(0, len(WORDS), 10)] for _ in range(50)]
    made = FastText(
        sentences, vector_size=16, min_count=1, min_n=minn, max_n=maxn, bucket=700, epochs=2
    )
    save_facebook_model(made, str(tmp_path / "m.bin"))
    theirs = load_facebook_model(str(tmp_path / "m.bin")).wv
    unknown = ["kings", "naïveté", "日本語", "unseen"]
    (tmp_path / "words").write_text("\n".join([*unknown, "king"]))
    ours = run_import(tmp_path / "d", tmp_path / "m.bin", words=str(tmp_path / "words"))
    expected = [*theirs.index_to_key, *unknown]
    assert ours.keys == [word.encode() for word in expected]
    np.testing.assert_allclose(
        ours.rows, np.stack([theirs[word] for word in expected]), rtol=1e-5, atol=1e-7
    )
    ngrams = run_import(tmp_path / "d", f"{tmp_path}/m.bin#ngrams")
    np.testing.assert_array_equal(ngrams.rows, theirs.vectors_ngrams)


def test_a_word2vec_binary_that_gensim_cannot_keep_apart_is_damage(tmp_path: Path) -> None:
    made = KeyedVectors(vector_size=20)
    rows = np.random.default_rng(0).normal(size=(4, 20)).astype(np.float32)
    made.add_vectors(["king", "new york", "queen", "duck"], rows)
    made.save_word2vec_format(str(tmp_path / "v.bin"), binary=True)
    with pytest.raises(BadFile, match=r"record 2 is damaged: .* may have a blank in it"):
        run_import(tmp_path / "d", tmp_path / "v.bin")


@pytest.mark.parametrize("packing", ["", ".gz", ".bz2"])
@pytest.mark.parametrize("separately", [None, ["vectors"]])
def test_gensims_own_format_comes_in(
    tmp_path: Path, separately: list[str] | None, packing: str
) -> None:
    made = vectors()
    path = tmp_path / f"v.kv{packing}"
    made.save(str(path), separately=separately)
    assert len(list(tmp_path.iterdir())) == (2 if separately else 1)
    theirs = KeyedVectors.load(str(path))
    ours = run_import(tmp_path / "d", path)
    assert ours.keys == [word.encode() for word in theirs.index_to_key]
    np.testing.assert_array_equal(ours.rows, theirs.vectors)


@pytest.mark.parametrize("limit", [1, 10 << 20])
@pytest.mark.parametrize("kind", [Word2Vec, Doc2Vec])
def test_a_trained_model_comes_in_by_its_words(
    tmp_path: Path, kind: type[Word2Vec], limit: int
) -> None:
    rng = np.random.default_rng(0)
    texts = [[WORDS[word] for word in rng.integers(0, len(WORDS), 10)] for _ in range(50)]
    sentences = [TaggedDocument(text, [0]) for text in texts] if kind is Doc2Vec else texts
    made = kind(sentences, vector_size=12, min_count=1, epochs=2)
    # Arrays of `limit` elements on lie beside it.
    made.save(str(tmp_path / "m.model"), sep_limit=limit)
    assert (tmp_path / "m.model.wv.vectors.npy").exists() == (limit == 1)
    theirs = kind.load(str(tmp_path / "m.model"))
    ours = run_import(tmp_path / "d", tmp_path / "m.model")
    assert ours.keys == [word.encode() for word in theirs.wv.index_to_key]
    np.testing.assert_array_equal(ours.rows, theirs.wv.vectors)
    beside, expected = (
        ("dv.vectors", theirs.dv.vectors) if kind is Doc2Vec else ("syn1neg", theirs.syn1neg)
    )
    found = run_import(tmp_path / "d", f"{tmp_path}/m.model#{beside}")
    np.testing.assert_array_equal(found.rows, expected)


def test_a_fasttext_model_that_gensim_saved_says_how_to_save_it(tmp_path: Path) -> None:
    made = FastText([WORDS] * 3, vector_size=8, min_count=1, bucket=50, epochs=1)
    for name, saved in (("m.model", made), ("m.kv", made.wv)):
        saved.save(str(tmp_path / name))
        with pytest.raises(BadFile, match=r"saves no vectors of the words .*save_facebook_model"):
            run_import(tmp_path / "d", tmp_path / name)
