"""The client of gatherd, an embedding-table lookup service. See Client."""

from importlib.metadata import version as _version

from gatherd._batching.rules import Batching
from gatherd._calls.handles import TableHandle
from gatherd._calls.handles_aio import AsyncTableHandle
from gatherd._requests.keys import KeyPage
from gatherd._requests.lookups import LookupInfo, TableInfo
from gatherd._requests.names import Bags, Ids, Keys, Status, Values, Vectors
from gatherd._requests.neighbors import Neighbors
from gatherd._requests.scans import RowBatch
from gatherd._requests.tables import ChangeResult, ServerInfo, SnapshotInfo, SnapshotResult
from gatherd._requests.updates import UpdateResult
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
    NoOptimizer,
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
    TooManyFiles,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    UpdatesStopped,
    VersionMismatch,
    VersionNotFound,
)
from gatherd.hooks import Call, Hook
from gatherd.store.memory import tune_allocator
from gatherd.transports.headers import request_headers

__version__ = _version("gatherd")

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "AsyncTableHandle",
    "BadFile",
    "Bags",
    "Batching",
    "Call",
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
    "Hook",
    "IdOutOfRange",
    "Ids",
    "InternalError",
    "InvalidArgument",
    "KeyNotFound",
    "KeyPage",
    "Keys",
    "LimitExceeded",
    "LookupInfo",
    "MalformedRequest",
    "Neighbors",
    "NoKeys",
    "NoOptimizer",
    "NonfiniteValues",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "RequestIdReused",
    "RequestIdStale",
    "RetryableError",
    "RowBatch",
    "ServerInfo",
    "SnapshotInfo",
    "SnapshotResult",
    "Status",
    "StorageError",
    "TableHandle",
    "TableInfo",
    "TableNotFound",
    "TableReadOnly",
    "TableRefused",
    "TooManyFiles",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "UpdateResult",
    "UpdatesStopped",
    "Values",
    "Vectors",
    "VersionMismatch",
    "VersionNotFound",
    "__version__",
    "request_headers",
    "tune_allocator",
]
