"""The first hour of somebody who has word vectors.

A GloVe text and a word2vec text, looked up by word, pooled into sentences, and asked for the
nearest words, as gensim does; from the command line and from a notebook with pandas and Polars.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl

from gatherd import Client, InvalidArgument, KeyNotFound, NoKeys
from tours.terminal import Terminal, terminal

# Roughly "royal", "male", "female", "edible".
WORDS = {
    "king": [0.9, 0.8, 0.1, 0.0],
    "queen": [0.9, 0.1, 0.8, 0.0],
    "kingdom": [1.0, 0.4, 0.4, 0.1],
    "man": [0.1, 0.8, 0.1, 0.1],
    "woman": [0.1, 0.1, 0.8, 0.1],
    "soup": [0.0, 0.0, 0.1, 0.9],
}
matrix = np.array(list(WORDS.values()), np.float32)
lines = "".join(f"{word} {' '.join(map(str, row))}\n" for word, row in WORDS.items())


def importing(user: Terminal) -> None:
    """A text can't be served as it lies; the error says what to type, and typing it works."""
    Path("glove.txt").write_text(lines)
    Path("w2v.txt").write_text(f"{len(WORDS)} 4\n{lines}")

    user.mistypes("gatherd serve words=glove.txt", "gatherd import words glove.txt", status=6)
    user.types_what_it_says("6 rows of 4 float32", "GloVe text")
    user.types(
        "gatherd import w2v w2v.txt --data-dir ./data", "6 rows of 4 float32", "word2vec text"
    )

    user.mistypes("gatherd import words w2v.txt --data-dir ./data", "'words'", status=5)
    user.types_what_it_says("words v2: 6 rows")
    user.mistypes(
        "gatherd import more gloev.txt --data-dir ./data", "did you mean 'glove.txt'", status=6
    )
    Path("torn.txt").write_text(f"{lines}queue 0.1 0.2\n")
    user.mistypes("gatherd import torn torn.txt --data-dir ./data", "--on-bad-row skip", status=6)
    user.types("gatherd import torn torn.txt --data-dir ./data --on-bad-row skip", "6 rows")
    user.types("gatherd delete torn --data-dir ./data --yes")


def at_the_command_line(user: Terminal) -> None:
    """Words are keys, not ids."""
    user.mistypes("gatherd lookup words king", "--by-key")
    user.types_what_it_says("king: 0.9 0.8 0.1 0")
    user.mistypes("""gatherd lookup words '["king", "queen"]'""", "--by-key")
    user.types_what_it_says("king: 0.9", "queen: 0.9")
    user.mistypes("gatherd lookup words kign king --by-key", "no key keys[0]='kign'", status=4)
    user.types_what_it_says("kign: 0 0 0 0")
    user.mistypes("gatherd lookup words kingg --by-key", "did you mean 'king'?", status=4)
    user.mistypes("gatherd lookup words king --by_key", "--by-key")
    user.mistypes("gatherd lookup wrods king --by-key", "did you mean 'words'?", status=4)
    user.mistypes("gatherd lokup words king", "Did you mean 'lookup'?")

    user.types("gatherd keys words --prefix king", "king", "kingdom")
    user.types("gatherd neighbors words king -k 2", "kingdom")
    user.types("gatherd info words", "bytes")


def as_in_gensim(user: Terminal, client: Client) -> None:
    """`client["words"]` is the KeyedVectors of this trade."""
    words = client["words"]
    assert "king" in words
    assert "lasagne" not in words
    assert len(words) == 6
    assert words.vector_size == 4
    assert np.array_equal(words["king"], matrix[0])
    assert np.array_equal(words[["king", "soup"]], matrix[[0, 5]])

    units = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    ranked = [list(WORDS)[row] for row in np.argsort(-units @ units[0])[1:]]
    assert [word for word, _ in words.most_similar("king", topn=5)] == ranked
    (best, _), *_ = words.most_similar(["king", "woman"], negative=["man"], topn=1)
    assert best == "queen"
    assert list(words.keys(prefix="king").keys) == ["king", "kingdom"]
    assert words.ids_of(["queen", "man"]).tolist() == [1, 3]
    assert list(words.keys_of([5])) == ["soup"]

    with user.mistake(KeyNotFound, "did you mean 'king'?"):
        words.most_similar("kingg")
    with user.mistake(KeyNotFound, "did you mean 'king'?"):
        words.lookup(keys=["King"])
    with user.mistake(InvalidArgument, "given as keys="):
        client.lookup("words", ["king"])
    with user.mistake(InvalidArgument, "did you mean 'cosine'?"):
        words.neighbors("king", metric="cosin")


def sentences(user: Terminal, client: Client) -> None:
    """Each sentence is a bag of words, pooled on the server."""
    texts = ["the king ate soup", "a woman", ""]
    bags = [text.split() for text in texts]
    with user.mistake(KeyNotFound, "keys[0]='the'"):
        client.lookup_bags("words", keys=bags, mode="mean")
    vectors = client.lookup_bags("words", keys=bags, mode="mean", missing="skip")
    assert np.allclose(vectors, [matrix[[0, 5]].mean(axis=0), matrix[4], np.zeros(4)])
    units = client.lookup_bags("words", keys=bags, mode="mean", missing="skip", normalize=True)
    assert np.allclose(np.linalg.norm(units, axis=1), [1, 1, 0])
    # The first dimensions only, as of Matryoshka vectors.
    short = client.lookup("words", keys=["king"], dims=2, normalize=True)
    assert np.allclose(short, matrix[[0], :2] / np.linalg.norm(matrix[0, :2]))
    with user.mistake(InvalidArgument, "did you mean 'mean'?"):
        client.lookup_bags("words", keys=bags, mode="maen")  # type: ignore[call-overload]


def from_a_notebook(user: Terminal, client: Client) -> None:
    """Columns of pandas and Polars go in as they are, and nulls are found."""
    frame = pd.DataFrame({"word": ["soup", "king"], "row": [5, 0]})
    assert np.array_equal(client.lookup("words", keys=frame["word"]), matrix[[5, 0]])
    assert np.array_equal(client.lookup("words", frame["row"]), matrix[[5, 0]])
    column = pl.Series(["queen", "man"])
    assert np.array_equal(client.lookup("words", keys=column), matrix[[1, 3]])
    assert np.array_equal(client.lookup("words", pl.Series([1, 3])), matrix[[1, 3]])

    with user.mistake(InvalidArgument, "ids[1] is null", "fill nulls in, or drop them"):
        client.lookup("words", pl.Series([1, None]))
    with user.mistake(InvalidArgument, "keys[1]", "drop them"):
        client.lookup("words", keys=pd.Series(["king", None]))
    np.save("numbers.npy", matrix)
    user.types("gatherd import numbers numbers.npy --data-dir ./data")
    with user.mistake(NoKeys, "'numbers'", "ids"):
        client.lookup("numbers", keys=["king"])
    assert "king" in repr(client["words"].keys(prefix="king"))
    assert "words" in client.tables()._repr_html_()


with terminal() as user:
    importing(user)
    server = user.serves("gatherd serve --data-dir ./data")
    at_the_command_line(user)
    with Client(server.http) as client:
        as_in_gensim(user, client)
        sentences(user, client)
        from_a_notebook(user, client)
    assert server.stops() == 0
