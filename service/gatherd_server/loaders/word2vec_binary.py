r"""word2vec's binary form: a line "ROWS DIM", then for each row its token, a blank, dim float32.

The original program writes "\n" after each vector, gensim doesn't; line feeds before a token are
ignored. Nothing marks a record's beginning: if a token contains a blank, the rest of the token is
taken for the vector's first bytes, and the vector's last bytes for the next token's. So a token
that isn't UTF-8, or has control characters, counts as damage; if the first record has its "\n", so
does a record without one. The original program cuts long tokens even inside a character; after a
"\n" such a token is taken as it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gatherd.errors import BadFile
from gatherd.store.dtypes import DType
from gatherd.store.key_index import KEY_BYTES_MAX, KeyKind
from gatherd.store.limits import DIM_MAX
from gatherd_server.loaders.batches import OnBadRow, RowBatch, RowSource, keys_of_spans
from gatherd_server.loaders.limits import BATCH_BYTES
from gatherd_server.loaders.streams import ByteStream
from gatherd_server.loaders.text_shape import header_of

HEADER_BYTES_MAX = 64
TOKEN_BYTES_SHOWN_MAX = 40
_CONTROL = bytes(set(range(32)) - set(b"\t\r"))
_MOVED = "is damaged: the file doesn't end where it does; its token may have a blank in it"
_SKIP = "(--on-bad-row skip leaves such records out)"


def word2vec_binary_source(stream: ByteStream, on_bad_row: OnBadRow) -> RowSource | None:
    """The rows of `stream`, or None when it doesn't begin like such a file."""
    line, newline, _ = stream.peek(HEADER_BYTES_MAX).partition(b"\n")
    header = header_of(line) if newline else None
    if header is None or not 1 <= header[1] <= DIM_MAX:
        return None
    row_count, dim = header

    def read() -> Iterator[RowBatch]:
        stream.skip(len(line) + 1)
        yield from _Reader(stream, row_count, dim, on_bad_row).batches()

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


@dataclass(slots=True)
class _Record:
    """The begin and end of a record's token, and what is wrong with the record, if anything."""

    begin: int
    end: int
    wrong: str = ""


class _Reader:
    """One pass over the records."""

    def __init__(self, stream: ByteStream, row_count: int, dim: int, on_bad_row: OnBadRow) -> None:
        self._stream = stream
        self._name = stream.name
        self._row_count = row_count
        self._row_bytes = dim * 4
        self._skips = on_bad_row is OnBadRow.SKIP
        self._done = 0
        # Whether records end in a line feed; the first one decides.
        self._has_ends: bool | None = None

    def batches(self) -> Iterator[RowBatch]:
        size = max(BATCH_BYTES, self._row_bytes + KEY_BYTES_MAX + 2)
        data = b""
        while True:
            more = self._stream.read(size)
            data += more
            is_last = len(more) < size
            records, rest = self._records(data, is_last)
            if records:
                yield self._batch(data, records)
                self._done += len(records)
            data = data[rest:]
            if is_last:
                break
            if not self._skips and self._done >= self._row_count:
                break
        left = (data + self._stream.read(BATCH_BYTES)).strip(b"\n")
        if self._skips:
            if left:
                yield self._left_out()
            return
        if self._done < self._row_count:
            raise BadFile(
                f"{self._name} is truncated: it ends in record {self._done + 1} of the "
                f"{self._row_count} that its first line promises (--on-bad-row skip takes those "
                "before)"
            )
        if left:
            raise BadFile(
                f"{self._name}: its first line promises {self._row_count} rows, but there are more "
                f"bytes after record {self._done}: more rows (--on-bad-row skip takes all there "
                f"are), or the token of record {self._done} has a blank in it"
            )

    def _left_out(self) -> RowBatch:
        """A batch without rows, which counts the record that the file's end cuts off."""
        nothing = np.empty((0, self._row_bytes // 4), np.float32)
        none = np.empty(0, np.int64)
        keys = keys_of_spans(np.empty(0, np.uint8), none, none)
        return RowBatch(nothing, keys, none, self._stream.done(), 1)

    def _batch(self, data: bytes, records: list[_Record]) -> RowBatch:
        wrong = next((i for i, record in enumerate(records) if record.wrong), None)
        if wrong is not None and not self._skips:
            raise BadFile(
                f"{self._name}: record {self._done + wrong + 1} {records[wrong].wrong} {_SKIP}"
            )
        good = [i for i, record in enumerate(records) if not record.wrong]
        bounds = np.array([(records[i].begin, records[i].end) for i in good], np.int64)
        bounds = bounds.reshape(-1, 2)
        whole = np.frombuffer(data, np.uint8)
        # Every window of a row's length, as a view; only the selected ones are copied.
        windows = np.lib.stride_tricks.sliding_window_view(whole, self._row_bytes)
        rows = windows[bounds[:, 1] + 1].view("<f4")
        keys = keys_of_spans(whole, bounds[:, 0], bounds[:, 1])
        numbers = np.array(good, np.int64) + self._done + 1
        return RowBatch(rows, keys, numbers, self._stream.done(), len(records) - len(good))

    def _records(self, data: bytes, is_last: bool) -> tuple[list[_Record], int]:
        """The whole records in `data`, and the beginning of the rest.

        If more records follow, the last one is left to the next call: only the token after it shows
        whether its vector is right.
        """
        records: list[_Record] = []
        at = begin = 0
        while self._skips or self._done + len(records) < self._row_count:
            while data[at : at + 1] == b"\n":
                at += 1
            blank = data.find(b" ", at, at + KEY_BYTES_MAX + 1)
            if blank < 0 and len(data) - at > KEY_BYTES_MAX:
                raise BadFile(
                    f"{self._name}: record {self._done + len(records) + 1} doesn't begin with a "
                    f"token of at most {KEY_BYTES_MAX} bytes and a blank; is its first line right?"
                )
            end = blank + 1 + self._row_bytes
            # Two more bytes, to see whether a line feed follows.
            if blank < 0 or end > len(data) or (end + 2 > len(data) and not is_last):
                break
            if self._has_ends is None and data[end : end + 2] not in (b"\n ", b"\n\n"):
                # Otherwise the "\n" may be the next token, or come before an empty one.
                self._has_ends = data[end : end + 1] == b"\n"
            self._judge(data, records, at, blank)
            begin, at = at, end
        left = data[at:].strip(b"\n")
        if records and is_last and left and b" " not in left:
            # These bytes aren't a truncated record, but the end of a shifted one.
            records[-1].wrong = records[-1].wrong or _MOVED
        is_next = self._skips or len(records) + self._done < self._row_count
        if records and not is_last and is_next:
            records.pop()
            return records, begin
        return records, at

    def _judge(self, data: bytes, records: list[_Record], begin: int, end: int) -> None:
        """Add the record whose token is `data[begin:end]`, and say what is wrong with it."""
        record = _Record(begin, end)
        records.append(record)
        token = data[begin:end]
        after = end + 1 + self._row_bytes
        if not token:
            record.wrong = "has an empty token, or one of line feeds"
        elif not _is_text(token, bool(self._has_ends)):
            shown = token[:TOKEN_BYTES_SHOWN_MAX]
            record.wrong = f"is damaged: its token {shown!r} isn't UTF-8 text"
            if len(records) > 1:
                before = records[-2]
                before.wrong = before.wrong or (
                    f"is damaged: what follows it, {shown!r}, is no token of UTF-8 text; the token "
                    f"of this one may have a blank in it"
                )
        elif self._has_ends and data[after : after + 1] not in (b"\n", b""):
            record.wrong = (
                "is damaged: no line feed follows it as it follows record 1; its token may have a "
                "blank in it"
            )


def _is_text(token: bytes, has_ends: bool) -> bool:
    """Whether a token is real, and not the end of the vector before it."""
    if token.translate(None, _CONTROL) != token:
        return False
    if has_ends:
        return True
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True
