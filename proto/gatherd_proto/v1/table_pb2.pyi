from gatherd_proto.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Table(_message.Message):
    __slots__ = ("name", "rows", "dim", "dtype", "version", "refused", "trainable", "key_kind", "rows_bytes", "keys_bytes", "resident_bytes", "versions", "optimizer", "lsn", "open")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    TRAINABLE_FIELD_NUMBER: _ClassVar[int]
    KEY_KIND_FIELD_NUMBER: _ClassVar[int]
    ROWS_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEYS_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    rows: int
    dim: int
    dtype: _tensor_pb2.DType
    version: int
    refused: str
    trainable: bool
    key_kind: str
    rows_bytes: int
    keys_bytes: int
    resident_bytes: int
    versions: _containers.RepeatedScalarFieldContainer[int]
    optimizer: Optimizer
    lsn: int
    open: OpenOptions
    def __init__(self, name: _Optional[str] = ..., rows: _Optional[int] = ..., dim: _Optional[int] = ..., dtype: _Optional[_Union[_tensor_pb2.DType, str]] = ..., version: _Optional[int] = ..., refused: _Optional[str] = ..., trainable: _Optional[bool] = ..., key_kind: _Optional[str] = ..., rows_bytes: _Optional[int] = ..., keys_bytes: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., versions: _Optional[_Iterable[int]] = ..., optimizer: _Optional[_Union[Optimizer, _Mapping]] = ..., lsn: _Optional[int] = ..., open: _Optional[_Union[OpenOptions, _Mapping]] = ...) -> None: ...

class OpenOptions(_message.Message):
    __slots__ = ("keys", "rows_max", "on_missing", "admit_after", "on_full", "ttl_seconds", "touch_on_lookup", "init", "seed", "init_parameters", "init_words")
    class InitParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class InitWordsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    KEYS_FIELD_NUMBER: _ClassVar[int]
    ROWS_MAX_FIELD_NUMBER: _ClassVar[int]
    ON_MISSING_FIELD_NUMBER: _ClassVar[int]
    ADMIT_AFTER_FIELD_NUMBER: _ClassVar[int]
    ON_FULL_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOUCH_ON_LOOKUP_FIELD_NUMBER: _ClassVar[int]
    INIT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    INIT_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    INIT_WORDS_FIELD_NUMBER: _ClassVar[int]
    keys: str
    rows_max: int
    on_missing: str
    admit_after: int
    on_full: str
    ttl_seconds: int
    touch_on_lookup: bool
    init: str
    seed: int
    init_parameters: _containers.ScalarMap[str, float]
    init_words: _containers.ScalarMap[str, str]
    def __init__(self, keys: _Optional[str] = ..., rows_max: _Optional[int] = ..., on_missing: _Optional[str] = ..., admit_after: _Optional[int] = ..., on_full: _Optional[str] = ..., ttl_seconds: _Optional[int] = ..., touch_on_lookup: _Optional[bool] = ..., init: _Optional[str] = ..., seed: _Optional[int] = ..., init_parameters: _Optional[_Mapping[str, float]] = ..., init_words: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Optimizer(_message.Message):
    __slots__ = ("name", "options")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    options: _containers.ScalarMap[str, float]
    def __init__(self, name: _Optional[str] = ..., options: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("request_bytes_max", "reply_bytes_max", "ids_max", "tables_max")
    REQUEST_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    REPLY_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    IDS_MAX_FIELD_NUMBER: _ClassVar[int]
    TABLES_MAX_FIELD_NUMBER: _ClassVar[int]
    request_bytes_max: int
    reply_bytes_max: int
    ids_max: int
    tables_max: int
    def __init__(self, request_bytes_max: _Optional[int] = ..., reply_bytes_max: _Optional[int] = ..., ids_max: _Optional[int] = ..., tables_max: _Optional[int] = ...) -> None: ...

class ListTablesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTablesResponse(_message.Message):
    __slots__ = ("tables", "limits")
    TABLES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    tables: _containers.RepeatedCompositeFieldContainer[Table]
    limits: Limits
    def __init__(self, tables: _Optional[_Iterable[_Union[Table, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class GetTableRequest(_message.Message):
    __slots__ = ("table",)
    TABLE_FIELD_NUMBER: _ClassVar[int]
    table: str
    def __init__(self, table: _Optional[str] = ...) -> None: ...

class GetTableResponse(_message.Message):
    __slots__ = ("table", "limits")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    table: Table
    limits: Limits
    def __init__(self, table: _Optional[_Union[Table, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class CreateTableRequest(_message.Message):
    __slots__ = ("table", "staged", "rows", "dim", "dtype", "init", "seed", "optimizer", "init_parameters", "init_words", "frozen", "open")
    class InitParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class InitWordsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TABLE_FIELD_NUMBER: _ClassVar[int]
    STAGED_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    INIT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    INIT_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    INIT_WORDS_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    table: str
    staged: str
    rows: int
    dim: int
    dtype: _tensor_pb2.DType
    init: str
    seed: int
    optimizer: Optimizer
    init_parameters: _containers.ScalarMap[str, float]
    init_words: _containers.ScalarMap[str, str]
    frozen: bool
    open: OpenOptions
    def __init__(self, table: _Optional[str] = ..., staged: _Optional[str] = ..., rows: _Optional[int] = ..., dim: _Optional[int] = ..., dtype: _Optional[_Union[_tensor_pb2.DType, str]] = ..., init: _Optional[str] = ..., seed: _Optional[int] = ..., optimizer: _Optional[_Union[Optimizer, _Mapping]] = ..., init_parameters: _Optional[_Mapping[str, float]] = ..., init_words: _Optional[_Mapping[str, str]] = ..., frozen: _Optional[bool] = ..., open: _Optional[_Union[OpenOptions, _Mapping]] = ...) -> None: ...

class DeleteTableRequest(_message.Message):
    __slots__ = ("table",)
    TABLE_FIELD_NUMBER: _ClassVar[int]
    table: str
    def __init__(self, table: _Optional[str] = ...) -> None: ...

class PublishRequest(_message.Message):
    __slots__ = ("table", "staged", "if_version")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    STAGED_FIELD_NUMBER: _ClassVar[int]
    IF_VERSION_FIELD_NUMBER: _ClassVar[int]
    table: str
    staged: str
    if_version: int
    def __init__(self, table: _Optional[str] = ..., staged: _Optional[str] = ..., if_version: _Optional[int] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("table", "version", "if_version")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IF_VERSION_FIELD_NUMBER: _ClassVar[int]
    table: str
    version: int
    if_version: int
    def __init__(self, table: _Optional[str] = ..., version: _Optional[int] = ..., if_version: _Optional[int] = ...) -> None: ...

class SetOptimizerRequest(_message.Message):
    __slots__ = ("table", "optimizer", "if_version")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    IF_VERSION_FIELD_NUMBER: _ClassVar[int]
    table: str
    optimizer: Optimizer
    if_version: int
    def __init__(self, table: _Optional[str] = ..., optimizer: _Optional[_Union[Optimizer, _Mapping]] = ..., if_version: _Optional[int] = ...) -> None: ...

class ChangeResponse(_message.Message):
    __slots__ = ("version", "lsn")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    version: int
    lsn: int
    def __init__(self, version: _Optional[int] = ..., lsn: _Optional[int] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class SnapshotResponse(_message.Message):
    __slots__ = ("path", "lsn")
    PATH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    path: str
    lsn: int
    def __init__(self, path: _Optional[str] = ..., lsn: _Optional[int] = ...) -> None: ...

class GetServerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerResponse(_message.Message):
    __slots__ = ("version", "commit", "ready", "updates")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    version: str
    commit: str
    ready: bool
    updates: str
    def __init__(self, version: _Optional[str] = ..., commit: _Optional[str] = ..., ready: _Optional[bool] = ..., updates: _Optional[str] = ...) -> None: ...

class DeleteVersionRequest(_message.Message):
    __slots__ = ("table", "version")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    table: str
    version: int
    def __init__(self, table: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ListSnapshotsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSnapshotsResponse(_message.Message):
    __slots__ = ("snapshots",)
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[SnapshotInfo]
    def __init__(self, snapshots: _Optional[_Iterable[_Union[SnapshotInfo, _Mapping]]] = ...) -> None: ...

class SnapshotInfo(_message.Message):
    __slots__ = ("name", "path", "lsn", "created_seconds", "bytes", "damaged")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    CREATED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    lsn: int
    created_seconds: int
    bytes: int
    damaged: str
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., lsn: _Optional[int] = ..., created_seconds: _Optional[int] = ..., bytes: _Optional[int] = ..., damaged: _Optional[str] = ...) -> None: ...

class DeleteSnapshotRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteSnapshotResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
