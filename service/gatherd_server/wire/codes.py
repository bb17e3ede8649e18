"""The code of every error class, once for both wires.

gRPC's status codes and Connect's are the same; the names here are Connect's. All else is a wire's
own: REST's statuses are in http/errors.py.
"""

from collections.abc import Mapping
from typing import Final

from gatherd import errors
from gatherd_server.errors import AddressInUse, ConfigError, StartError

CODES: Final[Mapping[type[errors.GatherdError], str]] = {
    errors.GatherdError: "unknown",
    errors.InvalidArgument: "invalid_argument",
    errors.MalformedRequest: "invalid_argument",
    errors.IdOutOfRange: "invalid_argument",
    errors.KeyNotFound: "invalid_argument",
    errors.NoKeys: "invalid_argument",
    errors.NonfiniteValues: "invalid_argument",
    errors.RequestIdReused: "invalid_argument",
    errors.NotFound: "not_found",
    errors.TableNotFound: "not_found",
    errors.VersionNotFound: "not_found",
    errors.AlreadyExists: "already_exists",
    errors.FailedPrecondition: "failed_precondition",
    errors.TableRefused: "failed_precondition",
    errors.TableReadOnly: "failed_precondition",
    errors.NoOptimizer: "failed_precondition",
    errors.VersionMismatch: "failed_precondition",
    errors.RequestIdStale: "failed_precondition",
    errors.Unauthenticated: "unauthenticated",
    errors.PermissionDenied: "permission_denied",
    errors.LimitExceeded: "resource_exhausted",
    errors.RetryableError: "unavailable",
    errors.Unavailable: "unavailable",
    errors.Overloaded: "resource_exhausted",
    errors.DeadlineExceeded: "deadline_exceeded",
    errors.Unimplemented: "unimplemented",
    errors.InternalError: "internal",
    errors.StorageError: "internal",
    errors.DiskFull: "resource_exhausted",
    errors.TooManyFiles: "resource_exhausted",
    errors.UpdatesStopped: "failed_precondition",
    errors.BadFile: "internal",
    errors.DataDirInUse: "internal",
    errors.DataDirVersion: "internal",
    errors.ClientError: "internal",
    errors.ClientClosed: "internal",
    errors.ForkedClient: "internal",
    StartError: "internal",
    ConfigError: "internal",
    AddressInUse: "internal",
}


def class_of(error: errors.GatherdError) -> type[errors.GatherdError]:
    """The class of `error`, or the nearest above it, that has a code."""
    return next(cls for cls in type(error).__mro__ if cls in CODES)


def code_of(error: errors.GatherdError) -> str:
    """The code of `error`."""
    return CODES[class_of(error)]
