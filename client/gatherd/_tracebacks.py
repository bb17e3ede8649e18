"""Short tracebacks: of an error that a caller gets, the SDK's own frames help nobody but us.

A public call raises its errors anew (`trimmed`), so a traceback has the caller's frames and one of
the SDK's. IPython asks an exception how it is shown; `rendered` has a line for each of the caller's
frames, and the message. With GATHERD_FULL_TRACEBACKS=1 in the environment both show everything.
"""

import linecache
import os
import sys
import traceback
from types import TracebackType
from typing import Any, Final, TypeVar

FULL: Final = "GATHERD_FULL_TRACEBACKS"
FRAMES_SHOWN_MAX: Final = 10
CONTEXTS_MAX: Final = 100
LINE_CHARS_MAX: Final = 200
# The modules whose frames aren't the caller's.
_NOT_THE_CALLERS: Final = ("gatherd", "IPython", "ipykernel", "asyncio", "concurrent")

E = TypeVar("E", bound=BaseException)


def trimmed(error: E) -> E:
    """`error` without the frames that it has come through, and the SDK's errors that led to it.

    What the caller was handling meanwhile stays its context.
    """
    if is_full():
        return error
    if error.__cause__ is None:
        context = error.__context__
        for _ in range(CONTEXTS_MAX):
            if context is None or not _is_ours(context):
                break
            context = context.__context__
        error.__context__, error.__suppress_context__ = context, context is None
    return error.with_traceback(None)


def _is_ours(error: BaseException) -> bool:
    """Whether it was the SDK that caught it."""
    caught = error.__traceback__
    return caught is not None and _room(caught) == "gatherd"


def _room(frame: TracebackType) -> str:
    """The package whose code a frame runs."""
    return str(frame.tb_frame.f_globals.get("__name__", "")).partition(".")[0]


def is_full() -> bool:
    """Whether the environment asks for every frame."""
    return os.environ.get(FULL, "") not in ("", "0")


def rendered(error: BaseException) -> list[str]:
    """`error` as IPython shows it: a line for each of the caller's frames, then the message."""
    if is_full() or error.__cause__ or (error.__context__ and not error.__suppress_context__):
        return "".join(traceback.format_exception(error)).splitlines()
    lines = [_line(frame) for frame in _callers_frames(error.__traceback__)]
    if len(lines) > FRAMES_SHOWN_MAX:
        hidden = len(lines) - FRAMES_SHOWN_MAX
        lines = [*lines[:1], f"… {hidden} more …", *lines[1 - FRAMES_SHOWN_MAX :]]
    notes: list[str] = getattr(error, "__notes__", [])
    return [*lines, f"{type(error).__name__}: {error}", *notes]


def _callers_frames(found: TracebackType | None) -> list[TracebackType]:
    frames = []
    while found is not None:
        if _room(found) not in _NOT_THE_CALLERS:
            frames.append(found)
        found = found.tb_next
    return frames


def _line(frame: TracebackType) -> str:
    code = frame.tb_frame.f_code
    source = linecache.getline(code.co_filename, frame.tb_lineno, frame.tb_frame.f_globals).strip()
    where = f"{_place(code.co_filename)}, line {frame.tb_lineno}"
    if code.co_name != "<module>":
        where += f", in {code.co_name}"
    return f"{where}: {source[:LINE_CHARS_MAX]}" if source else where


def _place(filename: str) -> str:
    """A file by its name, and a notebook's cell by its number."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        cell = shell.compile.format_code_name(filename)
        if cell is not None:
            return " ".join(cell)
    return os.path.basename(filename)  # noqa: PTH119 - it need not be a path
