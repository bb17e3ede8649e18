"""Every exception gatherd raises, in the client and in the server alike.

GatherdError
├── InvalidArgument (also ValueError)      the request is wrong; sending it again won't help
│   ├── MalformedRequest                   the body can't be read as what it says it is
│   ├── IdOutOfRange (also IndexError)     an id has no row
│   ├── KeyNotFound (also KeyError)        a key has no row
│   ├── NoKeys                             keys asked of a table that has none
│   ├── NonfiniteValues                    an update has NaN or infinity, or would make one
│   └── RequestIdReused                    an update's id belongs to another update
├── NotFound (also LookupError)
│   ├── TableNotFound
│   └── VersionNotFound
├── AlreadyExists
├── FailedPrecondition                     valid, but not in the current state
│   ├── TableRefused                       the table's file can't be served; the message says why
│   ├── TableReadOnly                      the table takes no updates; the message says how it would
│   ├── NoOptimizer                        the table takes updates, but no gradients
│   ├── VersionMismatch                    another version is live than the request insists on
│   └── RequestIdStale                     too old to tell whether the update was done already
├── Unauthenticated                        no token, or none that the server knows
├── PermissionDenied                       the token doesn't allow this; metadata says what
├── LimitExceeded                          more than the server takes; metadata names the limit
├── RetryableError                         try again after a pause; an update, by the same id
│   ├── Unavailable (also ConnectionError)
│   └── Overloaded
├── DeadlineExceeded (also TimeoutError)
├── Unimplemented
├── InternalError                          the server's fault; its log says more
├── StorageError (also OSError)
│   ├── DiskFull                           nothing was changed
│   ├── TooManyFiles                       the process may open or map no more; the file is sound
│   ├── UpdatesStopped                     the disk failed; lookups go on, updates need a restart
│   ├── BadFile                            a file is damaged, truncated or not of a format we read
│   ├── DataDirInUse
│   └── DataDirVersion
└── ClientError
    ├── ClientClosed
    └── ForkedClient

`reason` is the name a class has on the wires; `by_reason` finds the class again.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar


class GatherdError(Exception):
    """The root of every exception gatherd raises.

    `message` is for people; `metadata` holds, as strings, the facts that a program may need.
    """

    reason: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})

    def __str__(self) -> str:
        return self.message

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython shows, in a notebook too, instead of a traceback."""
        from gatherd._tracebacks import rendered

        return rendered(self)


class InvalidArgument(GatherdError, ValueError):
    """The request is wrong in itself."""

    reason = "INVALID_ARGUMENT"


class MalformedRequest(InvalidArgument):
    """The request's body can't be read as what it says it is."""

    reason = "MALFORMED_REQUEST"


class IdOutOfRange(InvalidArgument, IndexError):
    """An id has no row in the table."""

    reason = "ID_OUT_OF_RANGE"


class KeyNotFound(InvalidArgument, KeyError):
    """A key has no row in the table."""

    reason = "KEY_NOT_FOUND"


class NoKeys(InvalidArgument):
    """Keys were asked of a table that has none; its rows have ids only."""

    reason = "NO_KEYS"


class NonfiniteValues(InvalidArgument):
    """An update has NaN or infinity in it, or would leave one in a row."""

    reason = "NONFINITE_VALUES"


class RequestIdReused(InvalidArgument):
    """An update has the request id of another update."""

    reason = "REQUEST_ID_REUSED"


class NotFound(GatherdError, LookupError):
    """The request names something that doesn't exist."""

    reason = "NOT_FOUND"


class TableNotFound(NotFound):
    """No table has that name."""

    reason = "TABLE_NOT_FOUND"


class VersionNotFound(NotFound):
    """The table has no such version, or no longer."""

    reason = "VERSION_NOT_FOUND"


class AlreadyExists(GatherdError):
    """The name is taken."""

    reason = "ALREADY_EXISTS"


class FailedPrecondition(GatherdError):
    """The request is valid, but the current state doesn't allow it."""

    reason = "FAILED_PRECONDITION"


class TableRefused(FailedPrecondition):
    """The table's file can't be served; the message says why."""

    reason = "TABLE_REFUSED"


class TableReadOnly(FailedPrecondition):
    """The table takes no updates: it is frozen, or served from a file."""

    reason = "TABLE_READ_ONLY"


class NoOptimizer(FailedPrecondition):
    """The table takes updates, but no gradients: it has no optimizer."""

    reason = "NO_OPTIMIZER"


class VersionMismatch(FailedPrecondition):
    """Another version is live than the one that the request insists on."""

    reason = "VERSION_MISMATCH"


class RequestIdStale(FailedPrecondition):
    """The request id is so old that the server can't tell whether it was done already."""

    reason = "REQUEST_ID_STALE"


class Unauthenticated(GatherdError):
    """The server wants a token or a certificate, and got none that it knows."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(GatherdError):
    """The token is known, but doesn't allow this operation or this table."""

    reason = "PERMISSION_DENIED"


class LimitExceeded(GatherdError):
    """The request or its reply is larger than the server takes."""

    reason = "LIMIT_EXCEEDED"


class RetryableError(GatherdError):
    """The same request may succeed after a pause.

    A lookup can be sent again as it is. An update may have been done and only its answer lost: it
    has to be sent again under the same request id, as the SDK does.

    `retry_after_seconds` is the server's hint, or None.
    """

    reason = "RETRYABLE"

    def __init__(
        self,
        message: str,
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, metadata)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(RetryableError, ConnectionError):
    """The server can't be reached, is starting or is stopping."""

    reason = "UNAVAILABLE"


class Overloaded(RetryableError):
    """The server has as many requests in flight as it takes."""

    reason = "OVERLOADED"


class DeadlineExceeded(GatherdError, TimeoutError):
    """The call's deadline passed."""

    reason = "DEADLINE_EXCEEDED"


class Unimplemented(GatherdError):
    """The server doesn't know this operation."""

    reason = "UNIMPLEMENTED"


class InternalError(GatherdError):
    """Something went wrong in the server; its log says what."""

    reason = "INTERNAL"


class StorageError(GatherdError, OSError):
    """A file or folder can't be used."""

    reason = "STORAGE"


class DiskFull(StorageError):
    """There is no room; nothing was changed."""

    reason = "DISK_FULL"


class TooManyFiles(StorageError):
    """The process, or its machine, has as many files open or mapped as it may.

    Nothing is wrong with the file; nothing was changed.
    """

    reason = "TOO_MANY_FILES"


class UpdatesStopped(StorageError):
    """The disk failed under an update; no more are taken before a restart, and lookups go on.

    After the restart, resending the update under its request id shows whether it was applied.
    """

    reason = "UPDATES_STOPPED"


class BadFile(StorageError):
    """A file is damaged, truncated or not of a format gatherd reads."""

    reason = "BAD_FILE"


class DataDirInUse(StorageError):
    """Another process owns the data dir."""

    reason = "DATA_DIR_IN_USE"


class DataDirVersion(StorageError):
    """The data dir was written in a format this release doesn't read."""

    reason = "DATA_DIR_VERSION"


class ClientError(GatherdError):
    """The client object is used in a way it can't be."""

    reason = "CLIENT"


class ClientClosed(ClientError):
    """The client was closed."""

    reason = "CLIENT_CLOSED"


class ForkedClient(ClientError):
    """The process was forked in a way that grpc doesn't survive; the message says why."""

    reason = "FORKED_CLIENT"


def subclasses(root: type[GatherdError] = GatherdError) -> Iterator[type[GatherdError]]:
    """`root` and every class below it."""
    yield root
    for child in root.__subclasses__():
        yield from subclasses(child)


def by_reason(reason: str) -> type[GatherdError] | None:
    """The class that `reason` names on the wires, or None if it is unknown."""
    return next((cls for cls in subclasses() if cls.reason == reason), None)
