"""Opens a user's path, URI or standard input as a stream."""

import os
from contextlib import ExitStack
from pathlib import Path

from gatherd.errors import InvalidArgument
from gatherd.store.format import open_readonly
from gatherd_server.loaders.limits import UnpackLimits
from gatherd_server.loaders.remote import open_uri
from gatherd_server.loaders.streams import ByteStream, Opened, Spool, reading

STANDARD_INPUT = "-"


def _open_standard_input(spool: Spool, limits: UnpackLimits, closing: ExitStack) -> Opened:
    name = "standard input"
    with reading(name):
        if os.isatty(0):
            raise InvalidArgument(
                "standard input is a terminal; pipe a file into it, as in: zcat vectors.gz | "
                "gatherd import NAME -"
            )
        # A copy, so that closing it doesn't close descriptor 0.
        file = closing.enter_context(os.fdopen(os.dup(0), "rb", 0))
    return Opened(name, ByteStream(name, file, None), None, spool, limits, closing)


def without_password(uri: str) -> str:
    """`uri` without the user and password before its host, safe to show to others."""
    scheme, separator, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return scheme + separator + host.rpartition("@")[2] + slash + path


def is_uri(location: str) -> bool:
    """Whether `location` is a URI rather than a path."""
    scheme, separator, _ = location.partition("://")
    return bool(separator) and scheme.replace("+", "").replace("::", "").isalnum()


def open_location(location: str, spool: Spool, limits: UnpackLimits, closing: ExitStack) -> Opened:
    """Open a path or a URI; `closing` will close it.

    BadFile when it can't be opened, InvalidArgument when a package for its scheme is missing.
    """
    if location == STANDARD_INPUT:
        return _open_standard_input(spool, limits, closing)
    if is_uri(location):
        stream = open_uri(location)
        closing.callback(stream.close)
        return Opened(stream.name, stream, None, spool, limits, closing)
    path = Path(location)
    if path.is_fifo():
        # Another program's output, such as `<(zcat …)` in a shell: it comes once, without a size.
        with reading(location):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stream = ByteStream(location, closing.enter_context(os.fdopen(fd, "rb", 0)), None)
        return Opened(location, stream, None, spool, limits, closing)
    file = closing.enter_context(os.fdopen(open_readonly(path), "rb", 0))
    stream = ByteStream(location, file, path.stat().st_size)
    return Opened(location, stream, path, spool, limits, closing)
