"""The client of gatherd, an embedding-table lookup service. See Client."""

from importlib.metadata import version as _version

from gatherd._lookup import TableInfo
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
    NotFound,
    Overloaded,
    RetryableError,
    StorageError,
    TableNotFound,
    TableRefused,
    Unavailable,
    Unimplemented,
    VersionNotFound,
)
from gatherd.store.memory import tune_allocator

__version__ = _version("gatherd")

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "BadFile",
    "Client",
    "ClientClosed",
    "ClientError",
    "DataDirInUse",
    "DataDirVersion",
    "DeadlineExceeded",
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
    "NotFound",
    "Overloaded",
    "RetryableError",
    "StorageError",
    "TableInfo",
    "TableNotFound",
    "TableRefused",
    "Unavailable",
    "Unimplemented",
    "VersionNotFound",
    "__version__",
    "tune_allocator",
]
