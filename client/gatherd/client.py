"""The blocking client: runs the plans of _plans/answering.py and waits."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from gatherd._batching.rules import Batching, LookupKind
from gatherd._batching.threads import Batcher
from gatherd._calls.handles import AllCalls
from gatherd._calls.rebuilt import Rebuilt
from gatherd._calls.short import short
from gatherd._plans.answering import Answering
from gatherd._plans.effects import Deadline, Effect, Plan, Send, Sleep, T
from gatherd._plans.foreseen import Foreseen, Varying
from gatherd._plans.foreseen_calls import Asking, ForeseenCalls, foreseen_plan
from gatherd._plans.pushes import Pushes
from gatherd._plans.remote import RemoteAnswering
from gatherd._plans.retry import Tries
from gatherd._requests.lookups import Answer
from gatherd.busy_poll import BUSY_POLL_US
from gatherd.errors import ClientClosed, GatherdError, InvalidArgument, Unauthenticated
from gatherd.hooks import Hook
from gatherd.store.ids import as_id_array
from gatherd.transports.credentials import Credentials
from gatherd.transports.headers import of_block
from gatherd.transports.target import parse_target

if TYPE_CHECKING:
    from gatherd.transports import local
    from gatherd.transports.transport import Transport


class Client(Rebuilt, AllCalls):
    """Looks up and updates vectors in embedding tables. Safe to use from many threads.

    Every call raises a `gatherd.GatherdError`: `TableNotFound`, `IdOutOfRange`,
    `KeyNotFound`, `InvalidArgument`, `Unavailable` once the retries are used up, ….

    After a fork it connects anew in the child. A grpc:// client raises `ForkedClient` instead if
    another thread was in a call at the fork, or an AsyncClient had used grpc. It can be pickled and
    copied, which makes a new client with the same arguments. An exception at any instant, as by
    Ctrl-C, leaves it usable.
    """

    @short
    def __init__(
        self,
        url: str,
        *,
        timeout: float = 10.0,
        retries: int | None = None,
        batching: Batching | None = None,
        busy_poll_us: int = BUSY_POLL_US,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        ca: str | os.PathLike[str] | None = None,
        cert: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
        headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        """Nothing is connected yet; the first call does that.

        url: http://host:8000, https://…, grpc://host:8001, grpcs://…, unix:///run/gatherd.sock
        (Connect over a Unix socket), or local:/data (reads a data dir's files itself, and sends
        updates and changes to the server that runs on it).
        timeout: seconds for each whole call, its retries included.
        retries: how often at most a request is sent again, after growing pauses, when the server
        can't be reached or is overloaded; None for as often as the timeout allows. So by default a
        server may restart within the timeout, and no call fails. Reading local: files has nothing
        to retry.
        batching: merge small lookups that are made at the same time into one request, within
        these bounds; `Batching()` has usual ones. Each keeps its own answer, error and timeout.
        busy_poll_us: for how many µs a lookup over http:// or unix:// busy-polls for its reply
        before it sleeps, as long as replies mostly come that soon; 0 for never. It costs a core's
        time and saves the wake-up, which is most of a small lookup's latency.
        token, token_file: the token for a server that wants one, or the file that holds it, which
        is read again when the server doesn't know the token any more.
        ca: PEM file of the authorities that may have signed the server's certificate, instead of
        the system's. cert: PEM files (certificate, key) of this client, for a server that wants
        one.
        headers: sent with every request, over gRPC as metadata; `request_headers` adds some to the
        requests of a block of code.
        proxy: http://[USER:PASSWORD@]HOST:PORT of an HTTP proxy to go through, or "environment" to
        take it from http_proxy, https_proxy and no_proxy; without it no proxy is used.
        hooks: told of every call, for metrics and traces; see `Hook` and `gatherd.otel`.
        """
        self._settings = {
            "url": url,
            "timeout": timeout,
            "retries": retries,
            "batching": batching,
            "busy_poll_us": busy_poll_us,
            "token": token,
            "token_file": token_file,
            "ca": ca,
            "cert": cert,
            "headers": dict(headers) if isinstance(headers, Mapping) else headers,
            "proxy": proxy,
            "hooks": hooks,
        }
        target = parse_target(url, proxy)
        self._credentials = Credentials(
            target, token=token, token_file=token_file, ca=ca, cert=cert, headers=headers
        )
        self._transport: Transport
        self._answering: Answering
        tries = Tries(timeout=timeout, retries=retries)
        self._pushes = Pushes(tries)
        self._foreseen = ForeseenCalls()
        self._local: local.LocalAnswering | None = None
        self._closed = False
        self._batching = batching
        self._batcher: Batcher | None = None
        if batching is not None:
            if target.scheme == "local":
                raise InvalidArgument("a local: client sends no lookups, so there is no batching")
            self._batcher = Batcher(batching, self._ask_merged)
        if target.scheme == "local":
            from gatherd.transports.local import LocalAnswering

            self._local = LocalAnswering(target.path, tries)
            self._answering = self._local
        else:
            self._answering = RemoteAnswering(tries)
        # Imported when needed: grpc takes longer to import than all the rest.
        if target.scheme in ("grpc", "grpcs"):
            from gatherd.transports.grpc import GrpcTransport

            self._transport = GrpcTransport(target, self._credentials)
        else:
            from gatherd.transports.http import HttpTransport

            self._transport = HttpTransport(target, self._credentials, busy_poll_us)
        if hooks:
            from gatherd._calls.observed import checked_hooks, observing

            self._hooks = checked_hooks(hooks)
            self.__class__ = observing(type(self))

    def close(self) -> None:
        """Close the connections; later calls raise ClientClosed. Closing twice is fine."""
        self._closed = True
        self._answering.close()
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _quick(
        self,
        table: str,
        ids: Any,
        dtype: Any,
        missing: str,
        out: Any,
        version: Any,
        timeout: Any,
        return_status: object,
    ) -> Any:
        if self._closed or of_block():
            return None
        if ids.__class__ is not np.ndarray or not ids.flags.c_contiguous:
            try:
                ids = as_id_array(ids)
            except GatherdError:
                return None
        if self._local is not None:
            if missing != "error":
                return None
            vectors = self._local.quick(table, ids, dtype, out, version, timeout)
            if vectors is None or not return_status:
                return vectors
            return Answer(vectors, None).with_status()
        foreseen = self._foreseen.plain(table, ids, dtype, missing, version, out)
        if foreseen is None:
            return None
        deadline = self._answering.deadline(timeout)
        return self._send_foreseen(foreseen, ids, out, deadline, return_status)

    def _carried(
        self,
        find: Callable[[ForeseenCalls], Asking | None],
        plan: Callable[[float | Deadline | None], Plan[Any]],
        return_status: object,
        timeout: float | None,
    ) -> Any:
        if self._closed or self._local is not None or of_block():
            return self._run(plan(timeout))
        asking = find(self._foreseen)
        if asking is None:
            return self._run(plan(timeout))
        foreseen, deadline = asking.foreseen, self._answering.deadline(timeout)
        reply = self._ask(foreseen, asking.varying, asking.out, deadline)
        if isinstance(reply, list):
            return asking.result(reply, return_status)
        return self._go_on(foreseen, plan(deadline), reply)

    def _send_foreseen(
        self,
        foreseen: Foreseen,
        ids: NDArray[Any],
        out: NDArray[Any] | None,
        deadline: Deadline,
        return_status: object = False,
    ) -> Any:
        reply = self._ask(foreseen, (ids,), out, deadline)
        if isinstance(reply, list):
            return foreseen.result(reply, out, return_status)
        plan = foreseen_plan(self._answering, foreseen, ids, out, deadline)
        answer = self._go_on(foreseen, plan, reply)
        return answer.with_status() if return_status else answer.vectors

    def _ask(
        self, foreseen: Foreseen, varying: Varying, out: NDArray[Any] | None, deadline: Deadline
    ) -> list[NDArray[Any]] | memoryview | GatherdError:
        try:
            return self._transport.ask_foreseen(foreseen, varying, out, deadline)
        except Unauthenticated as error:
            if self._credentials.renew():
                send = Send(foreseen.method, foreseen.request(varying), deadline)
                return self._resent(send)
            return error
        except GatherdError as error:
            return error

    def _go_on(self, foreseen: Foreseen, plan: Plan[T], reply: memoryview | GatherdError) -> T:
        """The result of `plan`, whose first request was sent already, and got `reply`."""
        found = self._run(plan, reply)
        if isinstance(reply, memoryview):
            self._foreseen.learn(foreseen, reply)
        return found

    def _batched(
        self, table: str, ids: Any, dtype: Any, missing: Any, out: Any, version: Any, timeout: Any
    ) -> Answer | None:
        batcher = self._batcher
        if self._closed or batcher is None or of_block():
            return None
        if batcher.pid != os.getpid():
            assert self._batching is not None  # there is a batcher
            batcher = self._batcher = Batcher(self._batching, self._ask_merged)
        found = batcher.kinds.find(table, ids, dtype, missing, out, version)
        if found is None:
            return None
        return batcher.lookup(*found, out, self._answering.deadline(timeout))

    def _ask_merged(
        self, lookups: Sequence[tuple[LookupKind, NDArray[Any]]], deadline: Deadline
    ) -> list[Answer]:
        if len(lookups) == 1 and lookups[0][0].is_foreseen:
            kind, ids = lookups[0]
            foreseen = self._foreseen.plain(
                kind.like.table, ids, kind.dtype, "error", kind.version, None
            )
            if foreseen is not None and not self._closed:
                return [Answer(self._send_foreseen(foreseen, ids, None, deadline), None)]
        specs = [kind.spec(ids) for kind, ids in lookups]
        return self._run(self._answering.gather(specs, deadline))

    def _resent(self, send: Send) -> memoryview | GatherdError:
        try:
            return self._transport.call(send)
        except GatherdError as error:
            return error

    def _run(self, plan: Plan[T], first: memoryview | GatherdError | None = None) -> T:
        """Run `plan`, return its result; `first` is the result of its first effect, if known."""
        if self._closed:
            raise ClientClosed("the client was closed")
        try:
            effect = next(plan)
            if isinstance(first, GatherdError):
                effect = plan.throw(first)
            elif first is not None:
                effect = plan.send(first)
            while True:
                try:
                    result = self._perform(effect)
                except GatherdError as error:
                    effect = plan.throw(error)
                else:
                    effect = plan.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def _perform(self, effect: Effect) -> Any:
        if isinstance(effect, Send):
            try:
                return self._transport.call(effect)
            except Unauthenticated:
                # The server did nothing, so sending it again does nothing twice.
                if not self._credentials.renew():
                    raise
                return self._transport.call(effect)
        if isinstance(effect, Sleep):
            return time.sleep(effect.seconds)
        return effect.run()
