"""Standard error that is JSON to the last line, for log_format json.

grpc's core, the C library and Python itself write to descriptor 2 without asking. So it becomes a
pipe, which the processes of the server inherit. A thread of the supervisor passes the log's lines
on, and makes one of each other line.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

STANDARD_ERROR: Final = 2
LINE_BYTES_MAX: Final = 1 << 20
# Another process may still hold the pipe when the server ends; nobody waits for it longer.
REST_SECONDS: Final = 1.0


@contextmanager
def json_stderr(made: Callable[[str], str], begin: bytes) -> Iterator[None]:
    """Inside, a line on standard error that doesn't begin with `begin` is given to `made` first."""
    reader, writer = os.pipe()
    real = os.dup(STANDARD_ERROR)
    os.set_inheritable(real, False)
    os.dup2(writer, STANDARD_ERROR)
    os.close(writer)
    thread = threading.Thread(
        target=_pass_on, args=(reader, real, made, begin), name="gatherd-stderr", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        os.dup2(real, STANDARD_ERROR)
        thread.join(REST_SECONDS)


def _pass_on(reader: int, real: int, made: Callable[[str], str], begin: bytes) -> None:
    with open(reader, "rb", buffering=0) as pipe:
        rest = b""
        while data := pipe.read(1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > LINE_BYTES_MAX:
                lines, rest = [*lines, rest], b""
            _write(real, lines, made, begin)
        _write(real, [rest] if rest else [], made, begin)


def _write(real: int, lines: list[bytes], made: Callable[[str], str], begin: bytes) -> None:
    whole = b"".join(
        (line if line.startswith(begin) else made(line.decode(errors="replace")).encode()) + b"\n"
        for line in lines
        if line.strip()
    )
    while whole:
        try:
            whole = whole[os.write(real, whole) :]
        except OSError:  # nobody reads standard error any more, and the server goes on
            return
