r"""word2vec's binary form: a line "ROWS DIM", then for each row its token, a blank, dim float32.

The original program writes "\n" after each vector, gensim none; line feeds before a token count for
nothing. Tokens are bytes, whatever they mean.
"""

from collections.abc import Iterator

import numpy as np

from gatherd.errors import BadFile
from gatherd.store.dtypes import DType
from gatherd.store.key_index import KEY_BYTES_MAX, KeyKind
from gatherd_server.loaders.batches import RowBatch, RowSource, keys_of_spans
from gatherd_server.loaders.limits import BATCH_BYTES, DIM_MAX
from gatherd_server.loaders.streams import ByteStream
from gatherd_server.loaders.text import header_of

HEADER_BYTES_MAX = 64


def word2vec_binary_source(stream: ByteStream) -> RowSource | None:
    """The rows of `stream`, or None when it doesn't begin as such a file does."""
    line, newline, _ = stream.peek(HEADER_BYTES_MAX).partition(b"\n")
    header = header_of(line) if newline else None
    if header is None or not 1 <= header[1] <= DIM_MAX:
        return None
    row_count, dim = header

    def read() -> Iterator[RowBatch]:
        stream.skip(len(line) + 1)
        yield from _records(stream, row_count, dim)

    return RowSource(
        stream.name,
        "word2vec binary",
        DType.FLOAT32,
        DType.FLOAT32,
        dim,
        None,
        KeyKind.BYTES,
        "record",
        stream.total,
        read,
    )


def _records(stream: ByteStream, row_count: int, dim: int) -> Iterator[RowBatch]:
    name = stream.name
    row_bytes = dim * 4
    record_bytes_max = row_bytes + KEY_BYTES_MAX + 2
    done = 0
    data = b""
    while done < row_count:
        more = stream.read(max(BATCH_BYTES, record_bytes_max))
        data += more
        spans = _spans(data, row_bytes, row_count - done, name, done)
        if not spans and not more:
            raise BadFile(
                f"{name} is truncated: it ends in record {done + 1} of the {row_count} that its "
                "first line promises"
            )
        if not spans:
            continue
        bounds = np.array(spans, np.int64)
        whole = np.frombuffer(data, np.uint8)
        # Every window of a row's length, as a view; only those picked are copied.
        windows = np.lib.stride_tricks.sliding_window_view(whole, row_bytes)
        rows = windows[bounds[:, 1] + 1].view("<f4")
        keys = keys_of_spans(whole, bounds[:, 0], bounds[:, 1])
        numbers = np.arange(done + 1, done + 1 + len(spans))
        yield RowBatch(rows, keys, numbers, stream.done())
        done += len(spans)
        data = data[spans[-1][1] + 1 + row_bytes :]
    if (data + stream.read(BATCH_BYTES)).strip():
        raise BadFile(f"{name}: its first line promises {row_count} rows, but there are more")


def _spans(data: bytes, row_bytes: int, wanted: int, name: str, done: int) -> list[tuple[int, int]]:
    """Where the tokens of the whole records in `data` begin and end, `wanted` at most."""
    spans: list[tuple[int, int]] = []
    at = 0
    while len(spans) < wanted:
        while data[at : at + 1] == b"\n":
            at += 1
        blank = data.find(b" ", at, at + KEY_BYTES_MAX + 1)
        if blank < 0:
            if len(data) - at > KEY_BYTES_MAX:
                raise BadFile(
                    f"{name}: record {done + len(spans) + 1} doesn't begin with a token of at "
                    f"most {KEY_BYTES_MAX} bytes and a blank; is its first line right?"
                )
            break
        if blank == at:
            raise BadFile(f"{name}: record {done + len(spans) + 1} has an empty token")
        if blank + 1 + row_bytes > len(data):
            break
        spans.append((at, blank))
        at = blank + 1 + row_bytes
    return spans
