"""Sentence vectors from word vectors: pooled on the server, compared here.

A table of word vectors, imported with its words as keys, is all that is needed:

    gatherd import words glove.6B.100d.txt --data-dir ./data
    python sentence_pooling.py "a red car" "the blue automobile" "a bowl of soup"

The server adds a sentence's rows up where they lie, so that one vector a sentence crosses the
network, and not one a word.
"""

import argparse
import re

import numpy as np
from numpy.typing import NDArray

from gatherd import Client


def words_of(sentence: str) -> list[str]:
    """Lower-case words: as the table has them, or they would be missing."""
    return re.findall(r"\w+", sentence.lower())


def embed(
    client: Client, table: str, sentences: list[str]
) -> tuple[NDArray[np.float32], list[list[str]]]:
    """Vectors of length 1, (sentences, dim), and the words of each sentence that have no row."""
    bags = [words_of(sentence) for sentence in sentences]
    # "skip": a word without a row doesn't take part, and its status is 1.
    vectors, status = client.lookup_bags(
        table, keys=bags, mode="mean", missing="skip", return_status=True
    )
    is_missing = iter(status.tolist())  # one for each word, over all bags
    unknown = [[word for word in bag if next(is_missing)] for bag in bags]
    # A sentence without any known word is zeros, and stays so.
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12), unknown


def main() -> None:
    """Print how alike the sentences are."""
    parser = argparse.ArgumentParser(description="Compare sentences by their words' vectors.")
    parser.add_argument("sentences", nargs="+")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--table", default="words")
    given = parser.parse_args()
    with Client(given.url) as client:
        vectors, unknown = embed(client, given.table, given.sentences)
    for sentence, words in zip(given.sentences, unknown, strict=True):
        if words:
            print(f"{sentence!r}: no vector for {', '.join(words)}")
    first = given.sentences[0]
    for sentence, cosine in zip(given.sentences[1:], vectors[1:] @ vectors[0], strict=True):
        print(f"{cosine:+.3f}  {first!r} and {sentence!r}")


if __name__ == "__main__":
    main()
