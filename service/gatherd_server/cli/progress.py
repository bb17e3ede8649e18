"""Progress of everything that may take over a second: one line on the terminal, gone at the end.

Nothing is written where standard error is no terminal, nor in the first second. A thread redraws
the line, so that it tells the time also while a step takes long.
"""

import shutil
import sys
import threading
import time
from types import TracebackType
from typing import Final, Self, TextIO

SILENT_SECONDS: Final = 1.0
REDRAW_SECONDS: Final = 0.2
_ERASE: Final = "\r\x1b[K"
_UNITS: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody may look at `stream`: None, if it was closed at the start."""
    return stream is not None and stream.isatty()


class Progress:
    """A context manager: inside, `label` and what is done are shown. Set `done` as it goes on."""

    def __init__(
        self,
        label: str,
        total: float = 0,
        unit: str = "",
        *,
        stream: TextIO | None = None,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        """`total` and `done` count `unit`s, as "B"; without a total only `done` is shown."""
        self.label, self.total, self.unit, self.done = label, total, unit, 0.0
        self._stream = stream if stream is not None else sys.stderr
        self._silent_seconds = silent_seconds
        self._begun = 0.0
        self._has_ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._begun = time.monotonic()
        if is_terminal(self._stream):
            self._thread = threading.Thread(target=self._draw, name="gatherd-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._has_ended.set()
        if self._thread is not None:
            self._thread.join()

    def line(self) -> str:
        """What is shown now."""
        seconds = time.monotonic() - self._begun
        parts = [f"{self.label}:"]
        if self.total:
            part = min(1.0, self.done / self.total)
            parts.append(f"{part:.0%}")
            if 0 < part < 1:
                parts.append(f"({_count(self.done)} of {_count(self.total)}{self.unit}),")
                parts.append(f"{_time(seconds / part - seconds)} left")
                return " ".join(parts)
        elif self.done:
            parts.append(f"{_count(self.done)}{self.unit},")
        parts.append(_time(seconds))
        return " ".join(parts)

    def _draw(self) -> None:
        if self._has_ended.wait(self._silent_seconds):
            return
        try:
            while True:
                width = shutil.get_terminal_size().columns
                self._stream.write(_ERASE + self.line()[: max(1, width - 1)])
                self._stream.flush()
                if self._has_ended.wait(REDRAW_SECONDS):
                    break
            self._stream.write(_ERASE)
            self._stream.flush()
        except OSError:
            return  # the terminal is gone, and the work goes on


def _count(count: float) -> str:
    for size, prefix in _UNITS:
        if count >= size:
            return f"{count / size:.1f} {prefix}"
    return f"{count:.0f} "


def _time(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min"
