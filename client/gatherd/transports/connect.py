"""The Connect unary protocol over HTTP/1.1, for the blocking and the awaited transport."""

import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from gatherd._outcome import NOT_SENT, OUTCOME, UNKNOWN
from gatherd._plans.effects import REPLY_BYTES_MAX, Deadline, Send
from gatherd._plans.foreseen import Foreseen, Varying
from gatherd._plans.retry import parse_retry_after
from gatherd._wire.errors import from_http
from gatherd.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    GatherdError,
    InternalError,
    InvalidArgument,
    Unauthenticated,
    Unavailable,
)
from gatherd.transports import mismatch
from gatherd.transports.credentials import Credentials, no_password
from gatherd.transports.headers import USER_AGENT, Headers, merged, of_block
from gatherd.transports.http1 import (
    ConnectionEnded,
    HttpError,
    NotHttp,
    ResponseReader,
    around_length,
    finish_request,
    parse_head,
    request_parts,
    request_prefix,
)
from gatherd.transports.proxy import ANSWER_BYTES_MAX
from gatherd.transports.target import Target
from gatherd_proto.headers import CONNECT_VERSION, PROTO, RETRY_AFTER, TIMEOUT_DIGITS_MAX

REQUEST_ID_HEADER = "x-request-id"
# How many connections a client opens at most; a further call waits for one.
CONNECTIONS_MAX = 256
# The buffer for a response until its first bytes show whether it is the foreseen one.
RECEIVE_BYTES = 64 << 10
# A connection that was idle for longer is checked before use: servers close idle ones.
IDLE_UNCHECKED_SECONDS = 2.0
# Up to this size head and body are joined for one send; beyond, a second send is cheaper.
JOINED_BYTES_MAX = 64 << 10
# How long sent bytes may go unacknowledged by the peer's kernel, or a wait last without a sign of
# life.
VANISHED_SECONDS = 12
# A response isn't foreseen if its head and frame are longer.
EXPECTED_BYTES_MAX = 4 << 10
_TIMEOUT_MS_MAX = 10**TIMEOUT_DIGITS_MAX - 1
# The server's socket in its data dir.
SERVER_SOCKET = "server.sock"
# Words in the names of TLS alerts from a server that wants another certificate.
_ABOUT_CERTIFICATES = ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE", "ACCESS_DENIED")
_NO_SERVER = (FileNotFoundError, NotADirectoryError, ConnectionRefusedError)


class Stale(Exception):
    """The connection failed before a byte of the response came."""


class TimeIsUp(Exception):
    """A call's time ended before its response did."""


@dataclass(frozen=True, slots=True, eq=False)
class Wire:
    """The bytes to send for a `Foreseen`: what varies has its place among `pieces`.

    `expected` is the beginning of the response, up to what its `later_bytes` are; empty if it can't
    be foreseen.
    """

    template: tuple[bytes, bytes] | None
    pieces: list[Any]  # 1 is for the milliseconds, then 3, 5, … for what varies
    nbytes: int  # of the request's body; 0 if that varies, and then its digits are at 3
    expected: bytes
    later_bytes: int


class Heads:
    """The heads of requests, and that of this server's responses, learnt from one of them."""

    def __init__(self, target: Target, credentials: Credentials) -> None:
        self._target = target
        self._credentials = credentials
        # By method: a server may answer each of them in its own way.
        self._templates: dict[str, tuple[bytes, bytes] | None] = {}
        # By path, with the current token.
        self._prefixes: dict[str, bytes] = {}
        credentials.on_renewal(self._forget)

    def _forget(self) -> None:
        """Drop everything made with the old token."""
        self._templates = {}
        self._prefixes = {}

    def request(self, send: Send, now: float) -> bytes:
        """The head of the HTTP request for `send`."""
        prefix = self._prefix(_path(self._target, send.method), of_block())
        return finish_request(prefix, timeout_ms(send.deadline.at - now), send.nbytes)

    def _prefix(self, path: str, more: Headers = ()) -> bytes:
        prefix = None if more else self._prefixes.get(path)
        if prefix is None:
            headers = [("Content-Type", PROTO), (CONNECT_VERSION.title(), "1")]
            token, proxy = self._credentials.token, self._target.proxy
            if token is not None:
                headers.append(("Authorization", f"Bearer {token}"))
            if proxy is not None and not self._target.tls:
                headers += proxy.headers
            headers += merged((("user-agent", USER_AGENT), *self._credentials.headers), more)
            prefix = request_prefix("POST", path, self._target.authority, headers)
            if not more:
                self._prefixes[path] = prefix
        return prefix

    def wire(self, foreseen: Foreseen) -> Wire:
        """The Wire of `foreseen`."""
        found: Wire | None = foreseen.wire
        template = self._templates.get(foreseen.method)
        if found is not None and found.template is template:
            return found
        prefix = self._prefix(_path(self._target, foreseen.method))
        before, after = request_parts(prefix, foreseen.nbytes)
        if foreseen.around:
            pieces: list[Any] = [None] * (2 * len(foreseen.around) + 1)
            pieces[2::2] = foreseen.around
            pieces[2] = after + pieces[2]
        else:
            start, end = after.split(b"0")
            pieces = [None, None, start, None, end, None]
        pieces[0] = before
        expected = b""
        if template is not None and foreseen.prefix:
            length = len(foreseen.prefix) + foreseen.later_bytes
            expected = b"%b%d%b%b" % (template[0], length, template[1], foreseen.prefix)
            if len(expected) > EXPECTED_BYTES_MAX or length > REPLY_BYTES_MAX:
                expected = b""
        made = Wire(template, pieces, foreseen.nbytes, expected, foreseen.later_bytes)
        foreseen.wire = made
        return made

    def learn(self, method: str, reader: ResponseReader) -> None:
        """Learn the head of a reply to `method` that left the connection open."""
        found = around_length(reader.raw_head)
        if found != self._templates.get(method):
            self._templates[method] = found


def foreseen_pieces(wire: Wire, varying: Varying, left_seconds: float) -> tuple[Any, ...]:
    """The pieces to write for a foreseen call, in order: few, no large one copied."""
    pieces = wire.pieces.copy()
    pieces[1] = b"%d" % timeout_ms(left_seconds)
    if not wire.nbytes:
        (body,) = varying
        pieces[3], pieces[5] = b"%d" % len(body), body
    else:
        pieces[3::2] = varying
        if wire.nbytes > JOINED_BYTES_MAX and len(varying) == 1:
            return b"".join(pieces[:3]), bytes_of(pieces[3]), pieces[4]
    return (b"".join(pieces),)


def bytes_of(buffer: Any) -> memoryview:
    """The bytes of a C-contiguous array that isn't empty, or of another buffer, in place."""
    return memoryview(buffer).cast("B")


def timeout_ms(left_seconds: float) -> int:
    """A call's remaining time, as the header has it."""
    return max(1, min(int(left_seconds * 1000), _TIMEOUT_MS_MAX))


def _path(target: Target, method: str) -> str:
    if target.scheme in ("unix", "local"):
        return method
    through = target.proxy is not None and not target.tls
    return (
        f"{target.scheme}://{target.authority}{target.path}{method}"
        if through
        else (target.path + method)
    )


def outgoing(head: bytes, send: Send) -> tuple[bytes | memoryview, ...]:
    """The pieces to write, in order: few, and no large one copied."""
    if len(send.body) <= JOINED_BYTES_MAX:
        return (head + send.body, *send.rest)
    return (head, send.body, *send.rest)


def notice_vanishing(sock: socket.socket) -> None:
    """Have the kernel end a TCP connection whose peer vanished without closing it.

    A killed container does that: its network goes with it, so nothing answers any more. A call then
    fails after VANISHED_SECONDS, in time for another try, and not at its own timeout.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", VANISHED_SECONDS // 2),
        ("TCP_KEEPINTVL", VANISHED_SECONDS // 4),
        ("TCP_KEEPCNT", 2),
        ("TCP_USER_TIMEOUT", VANISHED_SECONDS * 1000),
    ):
        option = getattr(socket, name, None)  # not every system has all of them
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def readability(fd: int) -> Callable[[], object]:
    """A function that says at once whether a socket has something to read; its result is truthy."""
    if not hasattr(select, "poll"):  # as on Windows
        return lambda: select.select((fd,), (), (), 0)[0]
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return partial(poller.poll, 0)


def is_silent(fd: int) -> bool:
    """Whether an idle connection is still open, and has nothing to read, as it should."""
    return fd >= 0 and not readability(fd)()


@contextmanager
def socket_path(target: Target) -> Iterator[str]:
    """The path to connect to for a unix: or local: URL, good as long as the context lasts.

    The socket of a data dir is reached through a descriptor of its folder: the kernel takes no path
    of more than 107 bytes.
    """
    if target.scheme == "unix":
        yield target.path
        return
    folder = os.open(target.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{SERVER_SOCKET}"
    finally:
        os.close(folder)


def reply_body(url: str, reader: ResponseReader) -> memoryview:
    """The body of a complete response if it is a reply; otherwise raises the error in it."""
    head = reader.head
    assert head is not None  # the reader is done
    content_type = head.headers.get("content-type", "")
    if head.status != 200:
        retry_after = parse_retry_after(head.headers.get(RETRY_AFTER))
        error = from_http(url, head.status, content_type, bytes(reader.body), retry_after)
        raise with_request_id(error, head.headers.get(REQUEST_ID_HEADER))
    if content_type.partition(";")[0].strip().lower() != PROTO:
        raise InternalError(
            f"{url} answered {content_type[:80]!r} and not {PROTO}: is it a gatherd server?",
            {OUTCOME: UNKNOWN},
        )
    if head.headers.get("content-encoding", "identity") != "identity":
        raise InternalError(
            f"{url} answered in a content coding that wasn't asked for", {OUTCOME: UNKNOWN}
        )
    return reader.body


def with_request_id(error: GatherdError, request_id: str | None) -> GatherdError:
    """`error` with the id that the server's log has for its request, under `request_id`."""
    if request_id:
        error.metadata["request_id"] = request_id
    return error


def no_answer(url: str, deadline: Deadline) -> DeadlineExceeded:
    """The error for a call whose time is up."""
    return DeadlineExceeded(
        f"{url} gave no answer within the call's timeout of {deadline.timeout_seconds:g} seconds"
    )


class Tunnel:
    """The opening of a proxy's tunnel: send `request`, then give `received` the answer."""

    def __init__(self, target: Target) -> None:
        assert target.proxy is not None
        self._target, self._proxy = target, target.proxy
        self._answer = b""
        self.request = self._proxy.tunnel_request(target.authority)

    def received(self, data: bytes) -> bool:
        """Take bytes of the answer; whether the tunnel is open. OSError if it is refused."""
        self._answer += data
        end = self._answer.find(b"\r\n\r\n")
        if end < 0:
            if not data or len(self._answer) > ANSWER_BYTES_MAX:
                raise OSError(f"the proxy {self._proxy.authority} didn't answer in HTTP")
            return False
        try:
            status = parse_head(self._answer[: end + 4]).status
        except HttpError as error:
            raise OSError(f"the proxy {self._proxy.authority}: {error}") from None
        if status != 200:
            raise OSError(
                f"the proxy {self._proxy.authority} answered {status} when it was asked for a "
                f"tunnel to {self._target.authority}"
            )
        return True


def unreachable(target: Target, error: OSError) -> GatherdError:
    """The error for a connection that can't be made."""
    if isinstance(error, ssl.SSLCertVerificationError):
        # Trying again won't make the certificate right.
        reason = error.verify_message or str(error)
        return FailedPrecondition(mismatch.with_authority(target.url, reason))
    refused = _refused(target.url, error)
    if refused is not None:
        return refused
    known = {OUTCOME: NOT_SENT}
    if target.scheme == "local" and isinstance(error, _NO_SERVER):
        return Unavailable(
            f"no server runs on data dir {target.path}; start one with "
            f"`gatherd serve --data-dir {target.path}`",
            known,
        )
    through = f" through the proxy {target.proxy.authority}" if target.proxy else ""
    told = str(error.strerror or error)
    hint = mismatch.without_tls(target, told) if isinstance(error, ssl.SSLError) else ""
    return Unavailable(f"can't connect to {target.url}{through}: {told}{hint}", known)


def _refused(url: str, error: object) -> Unauthenticated | None:
    """The error for a server that wants another certificate of us, if a TLS alert says so."""
    if not isinstance(error, ssl.SSLError) or "ALERT" not in (error.reason or ""):
        return None
    if not any(word in error.reason for word in _ABOUT_CERTIFICATES):
        return None
    return Unauthenticated(
        f"{url} wants a certificate of this client, from an authority that it knows "
        f"({error.reason}): give it as cert=(CERTIFICATE, KEY)"
    )


def broken(url: str, error: BaseException, found: str = "") -> GatherdError:
    """The error for a connection that ended before the response did; `found` is a Probe's hint."""
    # An error from before the first byte came is inside another exception.
    for cause in (error, error.__cause__, *error.args):
        refused = _refused(url, cause)
        if refused is not None:
            return refused
    hint = found
    if url.startswith("https:"):
        # The server may have sent an alert, which is lost when it closes at once.
        hint = " (as a server does that wants a certificate of this client, or another one: cert=)"
    return Unavailable(f"the connection to {url} broke: {error}{hint}", {OUTCOME: UNKNOWN})


def unspoken(target: Target, error: HttpError) -> GatherdError:
    """The error for a response that can't be read."""
    url = target.url
    if isinstance(error, ConnectionEnded):
        return broken(url, error)
    hint = mismatch.answered_otherwise(target, error.data) if isinstance(error, NotHttp) else ""
    if hint:
        return FailedPrecondition(f"{url} doesn't answer in HTTP/1.1{hint}", {OUTCOME: UNKNOWN})
    return InternalError(f"{url} doesn't answer in HTTP/1.1: {error}", {OUTCOME: UNKNOWN})


def tls_context(credentials: Credentials) -> ssl.SSLContext:
    """A context that verifies the server by `ca`, SSL_CERT_FILE or the system's certificates."""
    try:
        context = ssl.create_default_context(cafile=credentials.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if credentials.cert is not None:
            context.load_cert_chain(*credentials.cert, password=no_password)
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"ca and cert can't be used for TLS: {error}") from None
    context.set_alpn_protocols(["http/1.1"])
    return context


def remaining_seconds(url: str, deadline: Deadline) -> float:
    """The time that is left; DeadlineExceeded if there is none."""
    left = deadline.at - time.monotonic()
    if left <= 0:
        raise no_answer(url, deadline)
    return left
