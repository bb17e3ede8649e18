"""Keys from JSON: a list of tokens, a dict of token to row, or Hugging Face's tokenizer.json.

tokenizer.json keeps a model's vocabulary under "model": WordPiece, BPE and WordLevel as a dict of
token to id, Unigram as a list of [token, score] in the order of the ids; "added_tokens" have ids of
their own. Tokens are taken as they are written there ("##ing", "Ġking", "▁the"), never decoded.
"""

import json
from typing import Any

import numpy as np

from gatherd.errors import BadFile
from gatherd.store.key_index import KEY_BYTES_MAX, Keys, StringKeys
from gatherd_server.loaders.limits import VOCABULARY_BYTES_MAX
from gatherd_server.loaders.streams import ByteStream


def vocabulary_keys(stream: ByteStream) -> Keys:
    """The keys in the JSON of `stream`, by row; BadFile when it has none.

    An empty token becomes an empty key; the caller refuses it or leaves it out.
    """
    name = stream.name
    data = stream.read(VOCABULARY_BYTES_MAX + 1)
    if len(data) > VOCABULARY_BYTES_MAX:
        raise BadFile(f"{name} is JSON of more than {VOCABULARY_BYTES_MAX} bytes; keys as a text "
                      "file, one a line, may be of any length")  # fmt: skip
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{name} begins as JSON does, but: {error}") from None
    tokens: list[Any] = _listed(document) if isinstance(document, list) else _by_id(name, document)
    if all(type(token) is int for token in tokens):
        return _integers(name, tokens)
    return _strings(name, tokens)


def _listed(document: list[Any]) -> list[Any]:
    if document and all(isinstance(entry, list) and len(entry) == 2 for entry in document):
        # Unigram's [token, score].
        return [entry[0] for entry in document]
    return document


def _by_id(name: str, document: dict[str, Any]) -> list[str]:
    """The tokens of a vocab.json or tokenizer.json, by their ids."""
    vocabulary: Any = document
    added: Any = []
    if isinstance(document.get("model"), dict):
        vocabulary = document["model"].get("vocab")
        added = document.get("added_tokens") or []
    if isinstance(vocabulary, list):
        tokens = dict(enumerate(_listed(vocabulary)))
    elif isinstance(vocabulary, dict) and all(type(row) is int for row in vocabulary.values()):
        tokens = {}
        for token, row in vocabulary.items():
            _put(name, tokens, row, token)
    else:
        raise BadFile(
            f"{name} is JSON, but neither a list of tokens, a dict of token to row (vocab.json) "
            "nor a tokenizer.json"
        )
    for entry in added:
        match entry:
            case {"id": int(row), "content": str(token)}:
                _put(name, tokens, row, token)
            case _:
                raise BadFile(f"{name}: an entry of its added_tokens has no id and content")
    ordered = []
    for row in range(len(tokens)):
        if row not in tokens:
            raise BadFile(f"{name} has {len(tokens)} tokens, but none with id {row}")
        ordered.append(tokens[row])
    return ordered


def _put(name: str, tokens: dict[int, Any], row: int, token: str) -> None:
    before = tokens.setdefault(row, token)
    if before != token:
        raise BadFile(f"{name} has two tokens with id {row}: {before!r} and {token!r}")


def _integers(name: str, tokens: list[int]) -> Keys:
    kind = np.uint64 if tokens and max(tokens) >= 2**63 else np.int64
    try:
        return np.array(tokens, kind)
    except OverflowError:
        raise BadFile(f"{name} has a key that doesn't fit into {kind.__name__}") from None


def _strings(name: str, tokens: list[Any]) -> Keys:
    encoded = []
    for row, token in enumerate(tokens):
        if not isinstance(token, str):
            raise BadFile(f"{name}: key {row} isn't a string, as others are")
        encoded.append(token.encode("utf-8", "surrogatepass"))
        if len(encoded[-1]) > KEY_BYTES_MAX:
            raise BadFile(f"{name}: key {row} has {len(encoded[-1])} bytes, over {KEY_BYTES_MAX}")
    return StringKeys.of(encoded)
