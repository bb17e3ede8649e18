"""Clients with hooks: the same calls, each of which tells them when it starts and ends.

A client that is made with hooks becomes an instance of a subclass, which is made here once for each
class. So a client without hooks has not one instruction more. What a call sends is counted where
its effects are performed.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isfunction, isgeneratorfunction
from typing import Any, Final, TypeVar, cast

from gatherd._calls.rebuilt import made
from gatherd._plans.effects import Send, Sleep
from gatherd._tracebacks import trimmed
from gatherd.errors import GatherdError, InvalidArgument
from gatherd.hooks import Call, Hook, current
from gatherd.transports.headers import checked_headers, request_headers

C = TypeVar("C", bound=type)

_CALLS: Final = "gatherd._calls."
# Their first argument is no table.
_OF_NO_TABLE: Final = ("snapshot", "delete_snapshot")
_log = logging.getLogger("gatherd.hooks")


def checked_hooks(hooks: Iterable[Hook]) -> tuple[Hook, ...]:
    """`hooks`, or InvalidArgument if one isn't a Hook."""
    given = tuple(hooks)
    for hook in given:
        if not isinstance(hook, Hook):
            raise InvalidArgument(f"hooks are instances of gatherd.Hook, not {hook!r}")
    return given


@cache
def observing(cls: C) -> C:
    """The subclass of a client's class `cls` whose calls tell `_hooks`."""
    members: dict[str, Any] = {"__module__": cls.__module__, "__doc__": cls.__doc__, "_of": cls}
    awaited = False
    for name in sorted(_public_calls(cls)):
        call = getattr(cls, name)
        awaited |= iscoroutinefunction(call)
        members[name] = (_awaited if iscoroutinefunction(call) else _blocking)(name, call)
    mixin = _AwaitedCounting if awaited else _Counting
    return cast(C, type(cls.__name__, (mixin, cls), members))


def _public_calls(cls: type) -> Iterator[str]:
    for base in cls.__mro__:
        if not base.__module__.startswith(_CALLS):
            continue
        for name, call in vars(base).items():
            streams = isgeneratorfunction(call) or isasyncgenfunction(call)
            if isfunction(call) and not name.startswith("_") and not streams:
                yield name


class _Observing:
    """What both kinds of observed clients have."""

    _of: type
    _hooks: tuple[Hook, ...]
    _settings: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return made, (self._of, self._settings)


class _Counting(_Observing):
    """Counts what the blocking client sends for the current call."""

    def _perform(self, effect: Any) -> Any:
        _count_effect(effect)
        reply = super()._perform(effect)  # type: ignore[misc]  # the client's own
        return _received(effect, reply)

    def _ask(self, foreseen: Any, varying: Any, out: Any, deadline: Any) -> Any:
        reply = super()._ask(foreseen, varying, out, deadline)  # type: ignore[misc]
        _count_foreseen(foreseen, varying, reply)
        return reply


class _AwaitedCounting(_Observing):
    """Counts what the awaited client sends for the current call."""

    async def _perform(self, effect: Any) -> Any:
        _count_effect(effect)
        reply = await super()._perform(effect)  # type: ignore[misc]  # the client's own
        return _received(effect, reply)

    async def _ask(self, foreseen: Any, varying: Any, out: Any, deadline: Any) -> Any:
        reply = await super()._ask(foreseen, varying, out, deadline)  # type: ignore[misc]
        _count_foreseen(foreseen, varying, reply)
        return reply


def _count_effect(effect: Any) -> None:
    call = current.get()
    if call is not None and isinstance(effect, Send):
        call.requests += 1
        call.bytes_sent += effect.nbytes
    elif call is not None and isinstance(effect, Sleep):
        call.retries += 1


def _received(effect: Any, reply: Any) -> Any:
    call = current.get()
    if call is not None and isinstance(effect, Send):
        call.bytes_received += len(reply)
    return reply


def _count_foreseen(foreseen: Any, varying: Any, reply: Any) -> None:
    call = current.get()
    if call is None:
        return
    call.requests += 1
    call.bytes_sent += foreseen.nbytes or sum(len(one) for one in varying)
    if isinstance(reply, list):
        call.bytes_received += len(foreseen.prefix) + foreseen.later_bytes
    elif isinstance(reply, memoryview):
        call.bytes_received += len(reply)


def _blocking(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def observed(self: Any, *args: Any, **options: Any) -> Any:
        if current.get() is not None:  # a part of another call
            return call(self, *args, **options)
        try:
            with _told(self._hooks, name, args, options):
                return call(self, *args, **options)
        except GatherdError as error:
            raise trimmed(error)  # noqa: B904 - it is the same error

    return observed


def _awaited(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    async def observed(self: Any, *args: Any, **options: Any) -> Any:
        if current.get() is not None:
            return await call(self, *args, **options)
        try:
            with _told(self._hooks, name, args, options):
                return await call(self, *args, **options)
        except GatherdError as error:
            raise trimmed(error)  # noqa: B904 - it is the same error

    return observed


@contextmanager
def _told(
    hooks: tuple[Hook, ...], name: str, args: tuple[Any, ...], options: Mapping[str, Any]
) -> Iterator[None]:
    """Tell `hooks` of the call that is made inside."""
    call = Call(name, () if name in _OF_NO_TABLE else _tables(args, options))
    for hook in hooks:
        _tell(hook, hook.started, call)
    token = current.set(call)
    try:
        with _headers(call):
            yield
    except BaseException as error:
        call.error = error
        raise
    finally:
        current.reset(token)
        call.seconds = time.perf_counter() - call.started_at
        for hook in reversed(hooks):
            _tell(hook, hook.ended, call)


def _tell(hook: Hook, what: Callable[[Call], None], call: Call) -> None:
    try:
        what(call)
    except Exception:  # noqa: BLE001 - it is a stranger's, and the call's result matters more
        _log.exception("%r failed at a call of %s", hook, call.method)


def _headers(call: Call) -> AbstractContextManager[None]:
    if not call.headers:
        return nullcontext()
    try:
        checked_headers(call.headers)
    except InvalidArgument:
        _log.exception("the headers that a hook gave %s can't be sent", call.method)
        return nullcontext()
    return request_headers(call.headers)


def _tables(args: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[str, ...]:
    named = (*args[:1], *(options.get(name) for name in ("table", "name")))
    for one in named:
        if isinstance(one, str):
            return (one,)
    given = (*args[:1], *(options.get(name) for name in ("ids", "updates", "keys")))
    return tuple(str(table) for one in given if isinstance(one, Mapping) for table in one)
