"""The client of gatherd, an embedding-table lookup service. See Client."""

from importlib.metadata import version as _version

from gatherd._batching import Batching
from gatherd._changes import ChangeResult, SnapshotResult
from gatherd._headers import request_headers
from gatherd._lookup import TableInfo
from gatherd._updates import UpdateResult
from gatherd.aio import AsyncClient
from gatherd.client import Client
from gatherd.errors import (
    AlreadyExists,
    BadFile,
    ClientClosed,
    ClientError,
    DataDirInUse,
    DataDirVersion,
    DeadlineExceeded,
    DiskFull,
    FailedPrecondition,
    ForkedClient,
    GatherdError,
    IdOutOfRange,
    InternalError,
    InvalidArgument,
    KeyNotFound,
    LimitExceeded,
    MalformedRequest,
    NoKeys,
    NonfiniteValues,
    NotFound,
    Overloaded,
    PermissionDenied,
    RequestIdReused,
    RequestIdStale,
    RetryableError,
    StorageError,
    TableNotFound,
    TableReadOnly,
    TableRefused,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    UpdatesStopped,
    VersionMismatch,
    VersionNotFound,
)
from gatherd.store.memory import tune_allocator

__version__ = _version("gatherd")

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "BadFile",
    "Batching",
    "ChangeResult",
    "Client",
    "ClientClosed",
    "ClientError",
    "DataDirInUse",
    "DataDirVersion",
    "DeadlineExceeded",
    "DiskFull",
    "FailedPrecondition",
    "ForkedClient",
    "GatherdError",
    "IdOutOfRange",
    "InternalError",
    "InvalidArgument",
    "KeyNotFound",
    "LimitExceeded",
    "MalformedRequest",
    "NoKeys",
    "NonfiniteValues",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "RequestIdReused",
    "RequestIdStale",
    "RetryableError",
    "SnapshotResult",
    "StorageError",
    "TableInfo",
    "TableNotFound",
    "TableReadOnly",
    "TableRefused",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "UpdateResult",
    "UpdatesStopped",
    "VersionMismatch",
    "VersionNotFound",
    "__version__",
    "request_headers",
    "tune_allocator",
]
