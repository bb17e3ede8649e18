"""HTTP/1.1 as a client speaks it, without a socket: bytes in, bytes out.

`ResponseReader` offers a buffer to receive into and takes the number of bytes that came, which
suits both `socket.recv_into` and `asyncio.BufferedProtocol`; a body of known length is received
straight into its own memory. A response that isn't plainly HTTP/1.1 is an error: if two readers
could frame it differently, requests could get each other's answers.

Left out on purpose: pipelining, trailers' meaning, content codings (none is asked for), upgrades.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np

from gatherd._plans.effects import REPLY_BYTES_MAX
from gatherd_proto.headers import CONNECT_TIMEOUT

HEAD_BYTES_MAX = 32 << 10
HEADERS_MAX = 128
INTERIM_RESPONSES_MAX = 16
CHUNK_LINE_BYTES_MAX = 256
TRAILER_BYTES_MAX = 8 << 10
# A small reply arrives whole with its head; larger ones are finished in their own buffer.
RECEIVE_BYTES = 64 << 10
# A body ends on this boundary: tensors are a reply's last bytes, so they are aligned too.
ALIGN_BYTES = 64

_TIMEOUT = CONNECT_TIMEOUT.title().encode()
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\r\n\0]*)?\r\n")
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\r\n\0]*?)[ \t]*\r\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\0]*)?")
_CONTENT_LENGTH = re.compile(r"[0-9]{1,18}")
_LENGTH_HEADER = re.compile(rb"\r\n(?i:content-length):[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)")
_NO_BODY = (204, 304)


class HttpError(Exception):
    """The peer doesn't speak HTTP/1.1 as it should."""


class NotHttp(HttpError):
    """The peer's first bytes, `data`, are no HTTP/1.1."""

    def __init__(self, data: bytes) -> None:
        super().__init__(f"{data!r} isn't HTTP/1.1")
        self.data = data


class ConnectionEnded(HttpError):
    """The peer closed the connection before the response was complete."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status and headers; names are in lower case, repeated headers joined by ', '."""

    status: int
    minor_version: int
    headers: Mapping[str, str]


def request_prefix(method: str, path: str, host: str, headers: Sequence[tuple[str, str]]) -> bytes:
    """The part of a request's head that is the same every time; `finish_request` adds the rest."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{n}: {v}" for n, v in headers)]
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")


def finish_request(prefix: bytes, timeout_ms: int, body_bytes: int) -> bytes:
    """The whole head of a request with a body of `body_bytes`."""
    return b"%b%b: %d\r\nContent-Length: %d\r\n\r\n" % (prefix, _TIMEOUT, timeout_ms, body_bytes)


def request_parts(prefix: bytes, body_bytes: int) -> tuple[bytes, bytes]:
    """The head of `finish_request` in two parts, without the timeout's digits between them."""
    return b"%b%b: " % (prefix, _TIMEOUT), b"\r\nContent-Length: %d\r\n\r\n" % body_bytes


def parse_head(raw: bytes) -> ResponseHead:
    """Read a head, up to and with its empty line. HttpError when it is malformed."""
    match = _STATUS_LINE.match(raw)
    if match is None:
        raise HttpError(f"{raw[:40]!r} isn't a status line of HTTP/1.1")
    headers: dict[str, str] = {}
    pos, end, count = match.end(), len(raw) - 2, 0
    while pos < end:
        header = _HEADER.match(raw, pos, end)
        if header is None:
            raise HttpError(f"{raw[pos : pos + 40]!r} isn't a header")
        count += 1
        if count > HEADERS_MAX:
            raise HttpError(f"the response has more than {HEADERS_MAX} headers")
        name, value = header[1].decode("ascii").lower(), header[2].decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
        pos = header.end()
    return ResponseHead(int(match[2]), int(match[1]), headers)


def around_length(raw: bytes) -> tuple[bytes, bytes] | None:
    """A head in two parts, around the digits of its Content-Length; None if it has none.

    `raw` is a head that `parse_head` takes. With another number between the parts it is still one,
    with the same status and headers but for the length.
    """
    found = list(_LENGTH_HEADER.finditer(raw))
    if len(found) != 1 or not found[0][1].isdigit():
        return None
    return raw[: found[0].start(1)], raw[found[0].end(1) :]


def body_length(head: ResponseHead) -> int | None:
    """Content-Length, or None when there is none. HttpError when it is ambiguous."""
    value = head.headers.get("content-length")
    if value is None:
        return None
    values = {part.strip() for part in value.split(",")}
    text = values.pop()
    if values or not _CONTENT_LENGTH.fullmatch(text):
        raise HttpError(f"Content-Length {value[:40]!r} isn't one number")
    return int(text)


def keeps_alive(head: ResponseHead) -> bool:
    """Whether the connection stays open after this response."""
    options = {part.strip().lower() for part in head.headers.get("connection", "").split(",")}
    if head.minor_version == 0:
        return "keep-alive" in options
    return "close" not in options


class _State(Enum):
    HEAD = auto()
    LENGTH = auto()
    CHUNK_LINE = auto()
    CHUNK_DATA = auto()
    CHUNK_END = auto()
    TRAILERS = auto()
    UNTIL_CLOSE = auto()
    DONE = auto()


class ResponseReader:
    """Reads one response after another on one connection; `reset` begins the next.

    Receive into `buffer()`, then call `received(n)`, or `eof()` at the end of the stream, until
    `done`. After an HttpError the connection must be closed.
    """

    def __init__(self, body_bytes_max: int = REPLY_BYTES_MAX) -> None:
        self._body_bytes_max = body_bytes_max
        self._scratch = bytearray(RECEIVE_BYTES)
        self._scratch_view = memoryview(self._scratch)
        self._parsed = b"", ResponseHead(0, 1, {})
        self.reset()

    def reset(self) -> None:
        """Begin the next response."""
        self.head: ResponseHead | None = None
        self.raw_head = b""
        self.body = memoryview(b"")
        self.started = False  # whether a byte of the response came
        self.reusable = False  # once done: whether the connection can carry another request
        self._state = _State.HEAD
        self._filled = 0  # bytes in scratch while in HEAD, of the body while in LENGTH
        self._searched = 0
        self._interim = 0
        self._grown = bytearray()  # a body of unknown length
        self._line = bytearray()
        self._remaining = 0

    @property
    def done(self) -> bool:
        """Whether `head` and `body` are complete."""
        return self._state is _State.DONE

    def buffer(self) -> memoryview:
        """The memory to receive into; never empty."""
        if self._state is _State.LENGTH:
            return self.body[self._filled :]
        if self._state is _State.HEAD:
            return self._scratch_view[self._filled :]
        return self._scratch_view

    def received(self, count: int) -> None:
        """`count` bytes came into `buffer()`. HttpError when they aren't a response's."""
        self.started = True
        if self._state is _State.LENGTH:
            self._filled += count
            if self._filled == len(self.body):
                self._finish()
        elif self._state is _State.HEAD:
            self._filled += count
            self._read_head()
        elif self._state is _State.DONE:
            self.reusable = False  # these bytes are beyond the response, so they answer nothing
        else:
            self._feed(bytes(self._scratch_view[:count]))

    def eof(self) -> None:
        """The peer sent its last byte. HttpError when the response isn't complete."""
        if self._state is _State.UNTIL_CLOSE:
            self.body = memoryview(self._grown)
            self._state = _State.DONE
        elif self._state is not _State.DONE:
            raise ConnectionEnded(
                "it was closed "
                + ("in the middle of the response" if self.started else "without a response")
            )
        self.reusable = False

    def _read_head(self) -> None:
        scratch = self._scratch
        while True:
            known = min(self._filled, 7)
            if scratch[:known] != b"HTTP/1."[:known]:
                raise NotHttp(bytes(scratch[: min(self._filled, 40)]))
            end = scratch.find(b"\r\n\r\n", max(0, self._searched - 3), self._filled)
            if end + 4 > HEAD_BYTES_MAX or (end < 0 and self._filled > HEAD_BYTES_MAX):
                raise HttpError(f"the response's head is longer than {HEAD_BYTES_MAX} bytes")
            if end < 0:
                self._searched = self._filled
                return
            raw = bytes(self._scratch_view[: end + 4])
            # A server's next head most often has the same bytes, for a second.
            if raw != self._parsed[0]:
                self._parsed = raw, parse_head(raw)
            self.raw_head, head = self._parsed
            if head.status >= 200:
                break
            self._interim += 1
            if head.status == 101 or self._interim > INTERIM_RESPONSES_MAX:
                raise HttpError(f"HTTP {head.status} wasn't asked for")
            left = self._filled - end - 4
            scratch[:left] = scratch[end + 4 : self._filled]
            self._filled, self._searched = left, 0
        self.head = head
        rest = bytes(self._scratch_view[end + 4 : self._filled])
        self._begin_body(head, rest)

    def _begin_body(self, head: ResponseHead, rest: bytes) -> None:
        length = body_length(head)
        coding = head.headers.get("transfer-encoding")
        if coding is not None:
            if length is not None or coding.lower() != "chunked" or head.minor_version == 0:
                raise HttpError(f"Transfer-Encoding {coding[:40]!r} leaves the body's end unclear")
            self._state = _State.CHUNK_LINE
        elif head.status in _NO_BODY:
            length = 0
        elif length is None:
            self._state = _State.UNTIL_CLOSE
        if length is None:
            self._feed(rest)
            return
        if length > self._body_bytes_max:
            raise HttpError(
                f"the body has {length} bytes; at most {self._body_bytes_max} are taken"
            )
        # np.empty and not bytearray, which would write zeros to every page first.
        pad = -length % ALIGN_BYTES
        self.body = np.empty(pad + length, np.uint8).data[pad:]
        taken = min(length, len(rest))
        self.body[:taken] = rest[:taken]
        self._filled = taken
        self._state = _State.LENGTH
        if taken == length:
            self._finish()
            self.reusable = self.reusable and len(rest) == taken

    def _finish(self) -> None:
        assert self.head is not None
        self._state = _State.DONE
        self.reusable = keeps_alive(self.head)

    def _feed(self, data: bytes) -> None:
        """Take bytes of a body of unknown length."""
        pos = 0
        while pos < len(data):
            if self._state is _State.UNTIL_CLOSE:
                self._grow(data[pos:])
                return
            if self._state is _State.DONE:
                self.reusable = False
                return
            if self._state is _State.CHUNK_DATA:
                part = data[pos : pos + self._remaining]
                self._grow(part)
                pos += len(part)
                self._remaining -= len(part)
                if not self._remaining:
                    self._state = _State.CHUNK_END
            else:
                pos = self._feed_line(data, pos)

    def _feed_line(self, data: bytes, pos: int) -> int:
        stop = data.find(b"\n", pos) + 1
        self._line += data[pos : stop or len(data)]
        most = TRAILER_BYTES_MAX if self._state is _State.TRAILERS else CHUNK_LINE_BYTES_MAX
        if len(self._line) > most:
            raise HttpError("a chunk's framing is too long")
        if not stop:
            return len(data)
        if not self._line.endswith(b"\r\n"):
            raise HttpError("a chunk's line doesn't end in CR LF")
        line = bytes(self._line[:-2])
        self._line.clear()
        if self._state is _State.CHUNK_LINE:
            self._begin_chunk(line)
        elif self._state is _State.CHUNK_END:
            if line:
                raise HttpError("a chunk is longer than its size")
            self._state = _State.CHUNK_LINE
        elif not line:
            self.body = memoryview(self._grown)
            self._finish()
        else:
            self._interim += 1
            if self._interim > HEADERS_MAX:
                raise HttpError(f"the response has more than {HEADERS_MAX} trailers")
        return stop

    def _begin_chunk(self, line: bytes) -> None:
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise HttpError(f"{line[:40]!r} isn't a chunk's size")
        self._remaining = int(match[1], 16)
        self._state = _State.CHUNK_DATA if self._remaining else _State.TRAILERS
        if len(self._grown) + self._remaining > self._body_bytes_max:
            raise HttpError(f"the body has more than {self._body_bytes_max} bytes")

    def _grow(self, data: bytes) -> None:
        if len(self._grown) + len(data) > self._body_bytes_max:
            raise HttpError(f"the body has more than {self._body_bytes_max} bytes")
        self._grown += data


def feed(reader: ResponseReader, data: memoryview) -> None:
    """Give `reader` bytes that were received into another buffer than its own."""
    while len(data):
        room = reader.buffer()
        count = min(len(room), len(data))
        room[:count] = data[:count]
        reader.received(count)
        data = data[count:]
