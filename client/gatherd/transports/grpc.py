"""gRPC, blocking and awaited: the codec's bytes through identity serializers.

grpc's own retries are off: _plans/retry.py decides for every wire.

A channel that was silent until a call's time was up is replaced by a new one: a balancer or a NAT
that forgot the connection swallows everything sent on it. Pings notice that too, but only after
some seconds. Calls still under way on the old channel may end there.

A forked child makes a channel of its own. But grpc survives a fork only if no other thread is in a
call, and grpc.aio has a thread that always is. Otherwise the child would hang or crash, so it
raises ForkedClient instead.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from numpy.typing import NDArray

from gatherd._outcome import NOT_SENT, OUTCOME
from gatherd._plans.effects import REPLY_BYTES_MAX, Deadline, Send
from gatherd._plans.foreseen import Foreseen, Varying
from gatherd._plans.retry import parse_retry_after
from gatherd._wire.errors import from_grpc
from gatherd.errors import (
    ClientClosed,
    FailedPrecondition,
    ForkedClient,
    GatherdError,
    InternalError,
    InvalidArgument,
)
from gatherd.transports import mismatch
from gatherd.transports.connect import (
    REQUEST_ID_HEADER,
    bytes_of,
    no_answer,
    remaining_seconds,
    with_request_id,
)
from gatherd.transports.credentials import Credentials
from gatherd.transports.headers import USER_AGENT
from gatherd.transports.target import Target
from gatherd_proto.errors import DETAILS_TRAILER, code_name
from gatherd_proto.headers import RETRY_AFTER

OPTIONS: list[tuple[str, int]] = [
    # The limit is checked below: grpc's own error for it reads like an overload.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    # Both matter from half a megabyte upwards.
    ("grpc.http2.lookahead_bytes", 16 << 20),
    ("grpc.http2.max_frame_size", 4 << 20),
    # A server that came back is found within two seconds; the default is up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Each client has its own connection, as over Connect.
    ("grpc.use_local_subchannel_pool", 1),
    # While a call waits, a silent connection is pinged, and given up early enough for another try
    # within the usual timeout.
    ("grpc.keepalive_time_ms", 4_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
]
# A channel is replaced after this much silence, not sooner: else calls with timeouts of a few
# milliseconds to a slow server would each make a connection.
SILENT_SECONDS = 1.0


def channel_options(target: Target) -> list[tuple[str, Any]]:
    """The options of a channel to `target`."""
    options: list[tuple[str, Any]] = [*OPTIONS, ("grpc.primary_user_agent", USER_AGENT)]
    # By itself grpc would take a proxy from the environment.
    options.append(("grpc.enable_http_proxy", int(target.proxy is not None)))
    if target.proxy is not None:
        options.append(("grpc.http_proxy", target.proxy.url))
    return options


class _Forks:
    """Counts the forks that led to this process, and knows whether it can use grpc."""

    def __init__(self) -> None:
        self.count = 0
        self.calling: set[int] = set()  # the threads that are in a call
        self.awaited = False  # grpc.aio has a thread that is in a call at all times
        self.is_usable = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._in_child)

    def _in_child(self) -> None:
        is_off = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "1").lower() in ("0", "false", "no")
        if self.awaited or self.calling - {threading.get_ident()} or is_off:
            self.is_usable = False
        self.count += 1
        self.calling.clear()

    def check(self) -> None:
        """ForkedClient if grpc can't be used."""
        if not self.is_usable:
            raise ForkedClient(
                "grpc doesn't survive a fork while another thread is in a call, after an "
                "AsyncClient of grpc://, or with GRPC_ENABLE_FORK_SUPPORT=0, and this process was "
                "forked so: start it by spawn, or use an http:// or unix:// URL"
            )


_forks = _Forks()


def channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    """Credentials to verify the server and to identify us; InvalidArgument for unusable files."""
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


def _error(target: Target, send: Send, call: Any, closed: bool) -> GatherdError:
    """The error of a failed call: grpc.Call and grpc.aio.AioRpcError describe it alike."""
    url = target.url
    code = call.code()
    # A proxy's headers come before a body, and so aren't trailers.
    metadata = {**dict(call.initial_metadata() or ()), **dict(call.trailing_metadata() or ())}
    details = metadata.get(DETAILS_TRAILER)
    if closed and code is grpc.StatusCode.CANCELLED:
        return ClientClosed("the client was closed during the call")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not details:
        return no_answer(url, send.deadline)
    name = code_name(code.name) if code is not None else "unknown"
    retry_after = parse_retry_after(_text(metadata.get(RETRY_AFTER)))
    details_bytes = details if isinstance(details, bytes) else None
    told = call.details() or ""
    reason = mismatch.untrusted(told) if name == "unavailable" and not details else None
    if reason is not None:
        # Trying again won't make the certificate right.
        return FailedPrecondition(mismatch.with_authority(url, reason))
    told += mismatch.told_by_grpc(target, told) if not details else ""
    error = from_grpc(url, name, told, details_bytes, retry_after)
    return with_request_id(error, _text(metadata.get(REQUEST_ID_HEADER)))


def _text(value: str | bytes | None) -> str | None:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _targets(
    foreseen: Foreseen, body: memoryview, out: NDArray[Any] | None
) -> list[NDArray[Any]] | memoryview:
    """What a foreseen reply holds, copied out of grpc's bytes; `body` if it is another one."""
    start = len(foreseen.prefix)
    size = start + foreseen.later_bytes
    if not start or len(body) != size or body[:start] != foreseen.prefix:
        return body
    if not foreseen.later_heads:
        targets = foreseen.targets(out)
        bytes_of(targets[0])[:] = body[start:]
        return targets
    found = foreseen.split(body[start:], out)
    return body if found is None else found


@dataclass(slots=True, eq=False)
class _Open:
    """A channel of grpc or grpc.aio, and its state."""

    channel: Any
    forks: int
    heard_at: float = field(default_factory=time.monotonic)
    ends_at: float = 0.0  # the latest deadline of its calls
    methods: dict[str, Any] = field(default_factory=dict)

    def method(self, name: str) -> Any:
        """The callable of a procedure."""
        found = self.methods.get(name)
        if found is None:
            found = self.methods[name] = self.channel.unary_unary(name)
        return found


class _Channels:
    """The channel that calls go over, and the replaced ones. `make` opens one."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self.current: _Open | None = None
        self.left: list[_Open] = []

    def get(self, ends_at: float) -> _Open:
        """The channel for a call until `ends_at`. ForkedClient if there can't be one."""
        found = self.current
        if found is None or found.forks != _forks.count:
            _forks.check()
            self.left = []
            found = self.current = _Open(self._make(), _forks.count)
        found.ends_at = max(found.ends_at, ends_at)
        return found

    def leave(self, silent: _Open) -> None:
        """Make the next call open another channel, if `silent` has been silent for long enough."""
        if time.monotonic() - silent.heard_at >= SILENT_SECONDS and self.current is silent:
            self.left.append(silent)
            self.current = None

    def ended(self) -> list[Any]:
        """The replaced channels on which no call can be under way, to be closed."""
        now = time.monotonic()
        ended = [one for one in self.left if one.ends_at < now]
        self.left = [one for one in self.left if one not in ended]
        return [one.channel for one in ended]

    def all(self) -> list[Any]:
        """The channels of this process."""
        known = [*self.left, self.current]
        return [one.channel for one in known if one is not None and one.forks == _forks.count]


class GrpcTransport:
    """Blocking gRPC over one channel at a time. Safe to use from many threads."""

    def __init__(self, target: Target, credentials: Credentials) -> None:
        self._credentials = credentials
        self._url = target.url
        self._closed = False
        self._probe = mismatch.Probe(target)
        self._target = target
        self._secure = channel_credentials(credentials) if target.tls else None
        self._channels = _Channels(self._make)

    def _make(self) -> grpc.Channel:
        authority, options = self._target.authority, channel_options(self._target)
        if self._secure is None:
            return grpc.insecure_channel(authority, options)
        return grpc.secure_channel(authority, self._secure, options)

    def call(self, send: Send) -> memoryview:
        """See Transport."""
        if self._closed:
            raise ClientClosed("the client was closed")
        timeout = remaining_seconds(self._url, send.deadline)
        channel = self._channels.get(send.deadline.at)
        thread = threading.get_ident()
        try:
            _forks.calling.add(thread)
            metadata = self._credentials.metadata
            reply = channel.method(send.method)(send.joined(), timeout=timeout, metadata=metadata)
        except (grpc.RpcError, ValueError) as error:
            raise self._explained(send, error, channel) from None
        finally:
            _forks.calling.discard(thread)
        channel.heard_at = time.monotonic()
        if self._channels.left:
            self._close(self._channels.ended())
        return _checked(self._url, reply)

    def ask_foreseen(
        self, foreseen: Foreseen, varying: Varying, out: NDArray[Any] | None, deadline: Deadline
    ) -> list[NDArray[Any]] | memoryview:
        """See Transport. This runs few lines: the processor's caches are cold after a call."""
        channel, left = self._channels.current, deadline.at - time.monotonic()
        method = None if channel is None else channel.methods.get(foreseen.method)
        if channel is None or method is None or channel.forks != _forks.count or left <= 0:
            send = Send(foreseen.method, foreseen.request(varying), deadline)
            return _targets(foreseen, self.call(send), out)
        if deadline.at > channel.ends_at:
            channel.ends_at = deadline.at
        thread = threading.get_ident()
        try:
            _forks.calling.add(thread)
            metadata = self._credentials.metadata
            reply = method(foreseen.request(varying), timeout=left, metadata=metadata)
        except (grpc.RpcError, ValueError) as error:
            raise self._explained(Send(foreseen.method, b"", deadline), error, channel) from None
        finally:
            _forks.calling.discard(thread)
        channel.heard_at = time.monotonic()
        return _targets(foreseen, _checked(self._url, reply), out)

    def _explained(self, send: Send, error: Exception, channel: _Open) -> Exception:
        """The error to raise for a call that failed."""
        if isinstance(error, grpc.RpcError):
            found = _error(self._target, send, error, self._closed)
            if self._probe.is_due(found.message) and found.metadata.get(OUTCOME) == NOT_SENT:
                hint = self._probe.hint(send.deadline.at - time.monotonic())
                found = type(found)(found.message + hint, found.metadata)
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._channels.leave(channel)
            return found
        # grpc raises ValueError for a channel that another thread closed.
        return ClientClosed("the client was closed") if self._closed else error

    def _close(self, channels: list[grpc.Channel]) -> None:
        for channel in channels:
            channel.close()

    def close(self) -> None:
        """See Transport. Calls under way end with ClientClosed."""
        self._closed = True
        self._close(self._channels.all())


class AsyncGrpcTransport:
    """Awaited gRPC over one channel at a time, of one event loop."""

    def __init__(self, target: Target, credentials: Credentials) -> None:
        self._credentials = credentials
        self._target = target
        self._url = target.url
        self._closed = False
        self._probe = mismatch.Probe(target)
        # Made at the first call: an aio channel belongs to the loop that runs when it is made.
        self._channels = _Channels(self._make)

    async def call(self, send: Send) -> memoryview:
        """See AsyncTransport."""
        if self._closed:
            raise ClientClosed("the client was closed")
        timeout = remaining_seconds(self._url, send.deadline)
        channel = self._channels.get(send.deadline.at)
        try:
            metadata = self._credentials.metadata
            method = channel.method(send.method)
            reply = await method(send.joined(), timeout=timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._channels.leave(channel)
            found = _error(self._target, send, error, self._closed)
            if self._probe.is_due(found.message) and found.metadata.get(OUTCOME) == NOT_SENT:
                left = send.deadline.at - time.monotonic()
                hint = await asyncio.to_thread(self._probe.hint, left)
                found = type(found)(found.message + hint, found.metadata)
            raise found from None
        except grpc.aio.UsageError:
            raise ClientClosed("the client was closed") from None
        channel.heard_at = time.monotonic()
        if self._channels.left:
            await self._close(self._channels.ended())
        return _checked(self._url, reply)

    async def ask_foreseen(
        self, foreseen: Foreseen, varying: Varying, out: NDArray[Any] | None, deadline: Deadline
    ) -> list[NDArray[Any]] | memoryview:
        """See AsyncTransport."""
        reply = await self.call(Send(foreseen.method, foreseen.request(varying), deadline))
        return _targets(foreseen, reply, out)

    def _make(self) -> grpc.aio.Channel:
        _forks.awaited = True
        authority, options = self._target.authority, channel_options(self._target)
        if not self._target.tls:
            return grpc.aio.insecure_channel(authority, options)
        return grpc.aio.secure_channel(authority, channel_credentials(self._credentials), options)

    async def _close(self, channels: list[grpc.aio.Channel]) -> None:
        for channel in channels:
            await channel.close()

    def abandon(self) -> None:
        """See AsyncTransport."""
        self._closed = True

    async def aclose(self) -> None:
        """See AsyncTransport. Calls under way end with ClientClosed."""
        self._closed = True
        await self._close(self._channels.all())
