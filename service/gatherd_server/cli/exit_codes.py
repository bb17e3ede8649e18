"""The exit status of a command: the one table from error class to status; docs/cli.md shows it."""

from enum import IntEnum
from typing import Final

from gatherd import errors
from gatherd_server.errors import AddressInUse, ConfigError, StartError


class ExitCode(IntEnum):
    """Why a command ended."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    NOT_FOUND = 4
    REFUSED = 5
    STORAGE = 6


MEANINGS: Final = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "a fault of gatherd's, or the question was answered with no",
    ExitCode.USAGE: "wrong usage: an option, argument, setting or value",
    ExitCode.UNAVAILABLE: "unavailable: no server answers, it is overloaded, or a data dir or "
    "address is in use; try again",
    ExitCode.NOT_FOUND: "not found: there is no such table, version, id or key",
    ExitCode.REFUSED: "refused: a token is missing or doesn't allow it, the name is taken, or the "
    "table's or the machine's state or a limit doesn't allow it",
    ExitCode.STORAGE: "storage: a file can't be read or written, or is damaged",
}

# A class that isn't here has the status of the nearest class above it.
_CODES: Final[dict[type[errors.GatherdError], ExitCode]] = {
    errors.GatherdError: ExitCode.FAILED,
    errors.InvalidArgument: ExitCode.USAGE,
    ConfigError: ExitCode.USAGE,
    errors.RetryableError: ExitCode.UNAVAILABLE,
    errors.DeadlineExceeded: ExitCode.UNAVAILABLE,
    errors.DataDirInUse: ExitCode.UNAVAILABLE,
    StartError: ExitCode.REFUSED,
    AddressInUse: ExitCode.UNAVAILABLE,
    errors.NotFound: ExitCode.NOT_FOUND,
    errors.IdOutOfRange: ExitCode.NOT_FOUND,
    errors.KeyNotFound: ExitCode.NOT_FOUND,
    errors.AlreadyExists: ExitCode.REFUSED,
    errors.FailedPrecondition: ExitCode.REFUSED,
    errors.Unauthenticated: ExitCode.REFUSED,
    errors.PermissionDenied: ExitCode.REFUSED,
    errors.LimitExceeded: ExitCode.REFUSED,
    errors.Unimplemented: ExitCode.REFUSED,
    errors.StorageError: ExitCode.STORAGE,
}


def exit_code(error: type[errors.GatherdError]) -> ExitCode:
    """The exit status of a command that failed with an error of this class."""
    return next(_CODES[cls] for cls in error.__mro__ if cls in _CODES)
