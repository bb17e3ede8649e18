"""What gensim writes comes in as gensim has it."""

from pathlib import Path

import numpy as np
import pytest
from gensim.models import KeyedVectors

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


def test_gensims_own_format_is_a_pickle_and_is_refused(tmp_path: Path) -> None:
    vectors().save(str(tmp_path / "v.kv"))
    with pytest.raises(
        BadFile, match=r"is a pickle, which is never run here; .*save_word2vec_form"
    ):
        run_import(tmp_path / "d", tmp_path / "v.kv")
