"""One reading of a connection's bytes: where each request ends, and which bytes are no request.

A proxy before this server that keeps its connections splits the same bytes into requests. If the
two disagree, one client's bytes become another client's request. So bytes that can be read in two
ways are refused, and nothing behind a refused request is read as another.

llhttp, in strict mode, does the splitting. This module adds the rules that llhttp, httptools and
uvicorn leave out:

- An `Upgrade` is ignored (RFC 9110, 7.8). httptools ends such a request after its head, and would
  read its body as the next request; here the head is parsed again without that header, by a parser
  that then goes on with the body.
- A request has one `Host` (RFC 9112, 3.2), HTTP/1.0 or 1.1, and no transfer coding but `chunked`.
- Trailers don't count as headers, and neither keep a connection open nor close it.
- A refusal waits for the answers before it, says why as every error does, and ends the connection
  in a way that lets the peer read it.
"""

import re
from typing import Any, Final

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gatherd import errors
from gatherd.errors import GatherdError
from gatherd_proto.procedures import PATH_PREFIX
from gatherd_server.errors import unexpected
from gatherd_server.http.errors import connect_problem, http_problem
from gatherd_server.http.observed import logger
from gatherd_server.observe.trail import REQUEST_ID_HEADER, Trail
from gatherd_server.wire.codes import code_of

# After a refusal the peer's further data is dropped, for so long and up to so many bytes. If the
# connection were closed at once, the kernel would answer unread bytes with a reset, which can
# destroy the refusal before it is read.
LINGER_SECONDS: Final = 2.0
LINGER_BYTES_MAX: Final = 8 << 20
VERSIONS: Final = ("1.1", "1.0")
# CONNECT has no body and asks for a tunnel. The others belong to protocols that llhttp knows (RTSP,
# Icecast) and whose requests would pass for HTTP/1.0.
METHODS_REFUSED: Final = frozenset(
    b"ANNOUNCE CONNECT DESCRIBE FLUSH GET_PARAMETER PAUSE PLAY RECORD REDIRECT SETUP SET_PARAMETER"
    b" SOURCE TEARDOWN".split()
)
# RFC 3986's characters of an authority without user information, which may be empty; then blanks.
_HOST: Final = re.compile(rb"[A-Za-z0-9.~!$&'()*+,;=:%\[\]_-]*[ \t]*")


class Refused(Exception):
    """A request that is answered with `status` and `error`, and ends its connection."""

    def __init__(self, status: int, error: GatherdError) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error

    def response(self, url: bytes) -> Response:
        """The answer, in the error format of the wire that `url` belongs to."""
        # A proxy's prefix may come before it.
        if PATH_PREFIX.encode() in url.partition(b"?")[0]:
            response = connect_problem(self.error, self.status, code_of(self.error), {})
        else:
            response = http_problem(self.status, self.error.message)
        request_id = Trail(lambda _name: None).request_id
        response.headers[REQUEST_ID_HEADER] = request_id
        logger.debug(
            "a request was refused, status %d: %s",
            self.status,
            self.error.message,
            extra={"request_id": request_id},
        )
        return response


def malformed(why: str) -> Refused:
    """A 400 that says `why`."""
    return Refused(400, errors.MalformedRequest(why))


class _NoEvent:
    """uvicorn wakes its own cycles by an event; a refusal needs no waking."""

    def set(self) -> None:
        pass


class _Refusal:
    """The last answer of a connection; to uvicorn a cycle like its own."""

    keep_alive: Final = False
    more_body: Final = False
    message_event: Final = _NoEvent()

    def __init__(self, connection: "StreamProtocol", response: Response | None) -> None:
        self.body = bytearray()
        self.disconnected = False
        self.response_complete = False
        self._connection = connection
        self._response = response

    async def run_asgi(self, _app: Any) -> None:
        """Answer. uvicorn calls it, by this name, when all requests before are answered."""
        self.answer()

    def answer(self) -> None:
        """Write the refusal, if there is one to write, and end the connection."""
        connection, response = self._connection, self._response
        self.response_complete = True
        if connection.transport.is_closing():
            return
        if response is not None:
            lines = [*connection.server_state.default_headers, *response.raw_headers]
            lines.append((b"connection", b"close"))
            head = b"".join(b"%b: %b\r\n" % line for line in lines)
            status = STATUS_LINE[response.status_code]
            connection.transport.write(status + head + b"\r\n" + bytes(response.body))
        connection.end()


class StreamProtocol(HttpToolsProtocol):
    """uvicorn's connection, with one reading of its bytes."""

    # One of uvicorn's cycles or a refusal; None before the first request.
    cycle: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Counts of requests begun and of those received whole; unless equal, we wait for the peer.
        self._begun = self._ended = 0
        self._is_in_head = False
        # True from the end of a head with an Upgrade until the head is parsed again without it.
        self._is_upgrade = False
        self._is_refused = False
        self._thrown_away_bytes_left = LINGER_BYTES_MAX
        self._why: Refused | None = None

    def data_received(self, data: bytes) -> None:
        """Parse the data. Blank lines between two requests don't count as activity."""
        if self._is_refused:
            self._thrown_away_bytes_left -= len(data)
            if self._thrown_away_bytes_left < 0:
                self.transport.abort()
            return
        if self._begun != self._ended:
            self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self.refuse(
                self._why
                or Refused(500, unexpected(cause if isinstance(cause, Exception) else error))
            )
        except httptools.HttpParserError as error:
            self.refuse(malformed(f"what came isn't an HTTP/1.1 request: {error}"))

    def _feed(self, data: bytes) -> None:
        piece: bytes | memoryview = data
        while True:
            try:
                self.parser.feed_data(piece)
                return
            except httptools.HttpParserUpgrade as upgrade:
                head_bytes: int = upgrade.args[0]
            piece = memoryview(piece)[head_bytes:]
            self._parse_without_upgrade()

    def _parse_without_upgrade(self) -> None:
        """Parse the head that has just ended once more, without its Upgrade."""
        before = self.parser
        lines = [
            b"%b %b HTTP/%b" % (before.get_method(), self.url, before.get_http_version().encode())
        ]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        # As in uvicorn: bytes after a last request are dropped, without an error.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"\r\n".join(lines) + b"\r\n\r\n")

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._begin()
        super().on_message_begin()

    def _begin(self) -> None:
        self._unset_keepalive_if_required()
        self._is_in_head = True
        if not self._is_upgrade:
            self._begun += 1

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        if self._is_head_taken():
            self._to_application()

    def _is_head_taken(self) -> bool:
        """Whether the head that ends here begins a request; not if it is to be parsed again."""
        if self.parser.should_upgrade() and self.parser.get_method() not in METHODS_REFUSED:
            self._is_upgrade = True
            return False
        self._is_upgrade = False
        try:
            self._check_head()
        except Refused as refused:
            self._why = refused
            raise
        return not self.transport.is_closing()

    def _check_head(self) -> None:
        """Raise Refused for a head that HTTP/1.1 forbids, or that others may read differently."""
        parser = self.parser
        version = parser.get_http_version()
        if version not in VERSIONS:
            why = f"this is HTTP/1.1, and the request is of HTTP/{version}"
            raise Refused(505, errors.Unimplemented(why))
        if parser.get_method() in METHODS_REFUSED:
            raise Refused(501, errors.Unimplemented("there is no such method on this server"))
        if not self.url.startswith(b"/") and not _has_path(self.url):
            raise malformed("the request's target isn't a path on this server")
        names = [name for name, _ in self.headers]
        count = names.count(b"host")
        if count != 1 and (count or version == "1.1"):
            raise malformed(f"a request has one Host header, and this one has {count}")
        if count and not _HOST.fullmatch(self.headers[names.index(b"host")][1]):
            raise malformed("the Host header isn't a host and a port")
        if b"transfer-encoding" in names:
            coding = self.headers[names.index(b"transfer-encoding")][1]
            if version == "1.0":
                raise malformed("HTTP/1.0 has no Transfer-Encoding")
            if coding.strip().lower() != b"chunked" or names.count(b"transfer-encoding") > 1:
                why = "of transfer codings there is only chunked here, given once"
                raise Refused(501, errors.Unimplemented(why))
        if version == "1.0":
            self.expect_100_continue = False  # RFC 9110, 10.1.1

    def _to_application(self) -> None:
        """Pass a complete and valid head on to ASGI."""
        # The parser keeps the blanks behind a value, which aren't part of it (RFC 9112, 5.1).
        self.headers[:] = [(name, value.rstrip(b" \t")) for name, value in self.headers]
        HttpToolsProtocol.on_headers_complete(self)
        # The application owns the list; trailers go into a new one that nobody reads.
        self.headers = []
        self._is_in_head = False

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        if self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._is_upgrade:
            return
        self._ended += 1
        cycle = self.cycle
        if cycle is None:
            return
        super().on_message_complete()
        if cycle.keep_alive and not self.parser.should_keep_alive():
            # A trailer made the parser take this request for the last one.
            cycle.keep_alive = False
            if cycle.response_complete:
                self.transport.close()

    def refuse(self, refused: Refused) -> None:
        """Answer `refused` when it is its turn, and read nothing more.

        A request whose body turns out to be malformed gets no other answer, and the application
        sees its client leave.
        """
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        before = self.cycle
        is_in_body = self._begun > self._ended and not self._is_in_head
        is_answered = before is None or before.response_complete
        # A request that has its answer already gets no second one.
        response = None if is_in_body and is_answered else refused.response(self.url)
        self.cycle = refusal = _Refusal(self, response)
        self._begun = self._ended + 1  # never again between two requests
        if is_answered:
            refusal.answer()
        elif not is_in_body:
            self.pipeline.appendleft((refusal, None))  # type: ignore[arg-type]
        elif self.pipeline and self.pipeline[0][0] is before:
            self.pipeline[0] = (refusal, None)  # type: ignore[assignment]
        elif getattr(before, "response_started", True):
            self.transport.abort()  # too late: the client sees an incomplete answer
        else:
            before.disconnected = True
            before.message_event.set()
            refusal.answer()

    def end(self) -> None:
        """Close, leaving the peer time to read what was written."""
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()


def _has_path(url: bytes) -> bool:
    """Whether an absolute URL has a path that can be routed."""
    try:
        return bool(httptools.parse_url(url).path)
    except httptools.HttpParserInvalidURLError:
        return False
