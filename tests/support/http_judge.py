"""Reads a client's bytes with h11: the judge of how a stream splits into requests.

RFC 9112 has a server skip blank lines before a request line (2.2). h11 doesn't, so they are removed
here before h11 sees them.
"""

from dataclasses import dataclass
from enum import Enum

import h11


@dataclass(frozen=True)
class Read:
    """One whole request."""

    method: bytes
    target: bytes
    body: bytes


class End(Enum):
    """The rest of a stream after its last whole request."""

    MORE = "the next request isn't complete"
    IDLE = "nothing is left"
    CLOSE = "the last request was the connection's last"
    REFUSED = "what follows is no request"


def judged(data: bytes) -> tuple[list[Read], End]:
    """The requests in `data`, and the rest after them."""
    reads: list[Read] = []
    while data := data.lstrip(b"\r\n"):
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        connection.receive_data(data)
        try:
            read = _next(connection)
        except h11.RemoteProtocolError:
            return reads, End.REFUSED
        if read is None:
            return reads, End.MORE
        reads.append(read)
        connection.send(h11.Response(status_code=404, headers=[("content-length", "0")]))
        connection.send(h11.EndOfMessage())
        if connection.our_state is h11.MUST_CLOSE:
            return reads, End.CLOSE
        data = connection.trailing_data[0]
    return reads, End.IDLE


def _next(connection: h11.Connection) -> Read | None:
    method = target = body = b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            method, target = event.method, event.target
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return Read(method, target, body)
        else:
            assert event is h11.NEED_DATA
            return None
