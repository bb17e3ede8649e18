from gatherd_proto.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Table(_message.Message):
    __slots__ = ("name", "rows", "dim", "dtype", "version", "refused", "trainable", "key_kind", "rows_bytes", "keys_bytes", "resident_bytes")
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
    def __init__(self, name: _Optional[str] = ..., rows: _Optional[int] = ..., dim: _Optional[int] = ..., dtype: _Optional[_Union[_tensor_pb2.DType, str]] = ..., version: _Optional[int] = ..., refused: _Optional[str] = ..., trainable: _Optional[bool] = ..., key_kind: _Optional[str] = ..., rows_bytes: _Optional[int] = ..., keys_bytes: _Optional[int] = ..., resident_bytes: _Optional[int] = ...) -> None: ...

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
