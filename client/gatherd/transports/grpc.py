"""gRPC, blocking and awaited: the codec's bytes through identity serializers.

grpc can't be used in a child forked from a process that used it, so a client made before a fork
says so instead of hanging. grpc's own retries are off: _retry.py decides for every wire.
"""

import os
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from numpy.typing import NDArray

from gatherd._credentials import Credentials
from gatherd._effects import LOOKUP, REPLY_BYTES_MAX, Deadline, Send
from gatherd._headers import USER_AGENT
from gatherd._plain import Plain
from gatherd._retry import parse_retry_after
from gatherd._target import Target
from gatherd._wire_errors import from_grpc
from gatherd.errors import ClientClosed, ForkedClient, GatherdError, InternalError, InvalidArgument
from gatherd.transports._connect import bytes_of, no_answer, remaining_seconds

OPTIONS: list[tuple[str, int]] = [
    # The limit is checked below: grpc's own error for it reads like an overload.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    # Anchors: both matter from half a megabyte upwards.
    ("grpc.http2.lookahead_bytes", 16 << 20),
    ("grpc.http2.max_frame_size", 4 << 20),
    # A server that came back is found within two seconds; the default is up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # As over Connect: a connection of one's own for each client.
    ("grpc.use_local_subchannel_pool", 1),
]


def channel_options(target: Target) -> list[tuple[str, Any]]:
    """The options of a channel to `target`."""
    options: list[tuple[str, Any]] = [*OPTIONS, ("grpc.primary_user_agent", USER_AGENT)]
    # By itself grpc would take a proxy from the environment.
    options.append(("grpc.enable_http_proxy", int(target.proxy is not None)))
    if target.proxy is not None:
        options.append(("grpc.http_proxy", target.proxy.url))
    return options


def check_fork(pid: int) -> None:
    """ForkedClient when this isn't the process that `pid` names."""
    if os.getpid() != pid:
        raise ForkedClient(
            "this client was made before a fork, and grpc doesn't survive one: make a new client "
            "in the child, or use an http:// or unix:// URL"
        )


def channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    """What verifies the server, and shows who we are; InvalidArgument for files that can't."""
    try:
        ca = Path(credentials.ca).read_bytes() if credentials.ca is not None else None
        cert, key = map(_read, credentials.cert or (None, None))
    except OSError as error:
        raise InvalidArgument(f"ca and cert can't be used for TLS: {error}") from None
    return grpc.ssl_channel_credentials(ca, key, cert)


def _read(path: str | None) -> bytes | None:
    return Path(path).read_bytes() if path is not None else None


def _checked(url: str, reply: bytes) -> memoryview:
    if len(reply) > REPLY_BYTES_MAX:
        raise InternalError(
            f"{url} answered {len(reply)} bytes; at most {REPLY_BYTES_MAX} are taken"
        )
    return memoryview(reply)


def _error(url: str, send: Send, call: Any, closed: bool) -> GatherdError:
    """The error of a failed call: grpc.Call and grpc.aio.AioRpcError say alike what happened."""
    code = call.code()
    metadata = dict(call.trailing_metadata() or ())
    details = metadata.get("grpc-status-details-bin")
    if closed and code is grpc.StatusCode.CANCELLED:
        return ClientClosed("the client was closed during the call")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not details:
        return no_answer(url, send.deadline)
    name = code.name.lower() if code is not None else "unknown"
    retry_after = parse_retry_after(_text(metadata.get("retry-after")))
    details_bytes = details if isinstance(details, bytes) else None
    return from_grpc(url, name, call.details() or "", details_bytes, retry_after)


def _text(value: str | bytes | None) -> str | None:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _foreseen(
    plain: Plain, body: memoryview, out: NDArray[Any] | None
) -> NDArray[Any] | memoryview:
    """The vectors in a reply that is the foreseen one, copied out of grpc's bytes; else `body`."""
    start = len(plain.prefix)
    if not start or len(body) != start + plain.data_bytes or body[:start] != plain.prefix:
        return body
    target = plain.target(out)
    bytes_of(target)[:] = body[start:]
    return plain.result(target, out)


class GrpcTransport:
    """Blocking gRPC over one channel. Safe to use from many threads."""

    def __init__(self, target: Target, credentials: Credentials) -> None:
        self._credentials = credentials
        self._url = target.url
        self._pid = os.getpid()
        self._closed = False
        if target.tls:
            secure = channel_credentials(credentials)
            self._channel = grpc.secure_channel(target.authority, secure, channel_options(target))
        else:
            self._channel = grpc.insecure_channel(target.authority, channel_options(target))
        self._methods: dict[str, Any] = {}

    def call(self, send: Send) -> memoryview:
        """See Transport."""
        check_fork(self._pid)
        if self._closed:
            raise ClientClosed("the client was closed")
        timeout = remaining_seconds(self._url, send.deadline)
        try:
            method = self._methods.get(send.method)
            if method is None:
                method = self._methods[send.method] = self._channel.unary_unary(send.method)
            metadata = self._credentials.metadata
            reply = method(send.joined(), timeout=timeout, metadata=metadata)
            return _checked(self._url, reply)
        except (grpc.RpcError, ValueError) as error:
            raise self._explained(send, error) from None

    def plain(
        self, plain: Plain, ids: NDArray[Any], out: NDArray[Any] | None, deadline: Deadline
    ) -> NDArray[Any] | memoryview:
        """See Transport. After a call nothing is in the caches, so this has few lines to run."""
        method = self._methods.get(LOOKUP)
        left = deadline.at - time.monotonic()
        if method is None or left <= 0 or self._closed or os.getpid() != self._pid:
            return _foreseen(plain, self.call(Send(LOOKUP, plain.request(ids), deadline)), out)
        try:
            metadata = self._credentials.metadata
            reply = method(plain.request(ids), timeout=left, metadata=metadata)
        except (grpc.RpcError, ValueError) as error:
            raise self._explained(Send(LOOKUP, b"", deadline), error) from None
        return _foreseen(plain, _checked(self._url, reply), out)

    def _explained(self, send: Send, error: Exception) -> Exception:
        """What to raise for a call that failed."""
        if isinstance(error, grpc.RpcError):
            return _error(self._url, send, error, self._closed)
        # A ValueError is grpc's word for a channel that was closed by another thread.
        return ClientClosed("the client was closed") if self._closed else error

    def close(self) -> None:
        """See Transport. Calls under way end with ClientClosed."""
        self._closed = True
        if os.getpid() == self._pid:
            self._channel.close()


class AsyncGrpcTransport:
    """Awaited gRPC over one channel of one event loop."""

    def __init__(self, target: Target, credentials: Credentials) -> None:
        self._credentials = credentials
        self._target = target
        self._url = target.url
        self._closed = False
        # Made at the first call: an aio channel belongs to the loop that runs when it is made.
        self._channel: grpc.aio.Channel | None = None
        self._methods: dict[str, Any] = {}

    async def call(self, send: Send) -> memoryview:
        """See AsyncTransport."""
        if self._closed:
            raise ClientClosed("the client was closed")
        timeout = remaining_seconds(self._url, send.deadline)
        method = self._methods.get(send.method)
        if method is None:
            method = self._methods[send.method] = self._open().unary_unary(send.method)
        try:
            metadata = self._credentials.metadata
            reply = await method(send.joined(), timeout=timeout, metadata=metadata)
            return _checked(self._url, reply)
        except grpc.aio.AioRpcError as error:
            raise _error(self._url, send, error, self._closed) from None
        except grpc.aio.UsageError:
            raise ClientClosed("the client was closed") from None

    async def plain(
        self, plain: Plain, ids: NDArray[Any], out: NDArray[Any] | None, deadline: Deadline
    ) -> NDArray[Any] | memoryview:
        """See AsyncTransport."""
        reply = await self.call(Send(LOOKUP, plain.request(ids), deadline))
        return _foreseen(plain, reply, out)

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            authority, options = self._target.authority, channel_options(self._target)
            if self._target.tls:
                secure = channel_credentials(self._credentials)
                self._channel = grpc.aio.secure_channel(authority, secure, options)
            else:
                self._channel = grpc.aio.insecure_channel(authority, options)
        return self._channel

    async def aclose(self) -> None:
        """See AsyncTransport. Calls under way end with ClientClosed."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()
