"""The boundary of public calls, where their errors lose the SDK's own frames.

`lookup` and its like catch errors themselves, because a call more is worth avoiding there: a `try`
costs nothing as long as nothing is raised.
"""

from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, TypeVar, cast

from gatherd._tracebacks import trimmed
from gatherd.errors import GatherdError

__all__ = ["short", "trimmed"]

F = TypeVar("F", bound=Callable[..., Any])


def short(call: F) -> F:
    """`call`, blocking or awaited, whose errors have one frame of the SDK's."""
    made: Callable[..., Any]
    if iscoroutinefunction(call):

        @wraps(call)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            try:
                return await call(*args, **kwargs)
            except GatherdError as error:
                raise trimmed(error)  # noqa: B904 - it is the same error

        made = awaited
    else:

        @wraps(call)
        def blocking(*args: Any, **kwargs: Any) -> Any:
            try:
                return call(*args, **kwargs)
            except GatherdError as error:
                raise trimmed(error)  # noqa: B904 - as above

        made = blocking
    return cast(F, made)
